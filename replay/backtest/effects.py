"""Finds changed keys without effect: the run is built of the same values without the change.

The rule is docs/identity.md, I22.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from msgspec.structs import replace

from tracepaper.daemon.config.loading import Config, restore
from tracepaper.daemon.session.build import Strategies, engine_terms
from tracepaper.strategies.api.strategy import Forecaster
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.types.decisions import FillModel, RunRow

CHANGEABLE: Final = frozenset(
    {"strategy", "gate", "regime", "sizing", "exits", "execution", "risk", "account"}
)
"""Sections that act on a run's inputs; others choose the inputs, or have no effect."""
KeyPath = tuple[str, ...]
"""A section, a key, and the names of the tables within it."""


def changed_keys(
    before: Mapping[str, object], after: Mapping[str, object]
) -> Iterator[tuple[KeyPath, object, object]]:
    """Yield the path of each key that differs, with its value before and after."""
    for key, value in after.items():
        was = before.get(key)
        if isinstance(was, Mapping) and isinstance(value, Mapping):
            for path, inner_was, inner in changed_keys(was, value):
                yield (key, *path), inner_was, inner
        elif value != was:
            yield (key,), was, value


def keys_without_effect(
    before: Config,
    after: Config,
    config: Config,
    inputs_of: Callable[[Config], object],
) -> tuple[str, ...]:
    """Return the dotted keys in which *after* differs from *before* without effect on the run.

    *config* is that of the run: *after* with what the run filled in. *inputs_of* maps it to the
    values of which the run is built. A key has no effect if these are equal with its value before.
    """
    tables, inputs = before.settings(), inputs_of(config)
    without = []
    for path, _, _ in changed_keys(tables, after.settings()):
        if path[0] not in CHANGEABLE:
            continue
        try:
            is_same = inputs_of(_with_former(config, tables, path)) == inputs
        except ConfigInvalid:
            continue  # the run cannot be without the change
        if is_same:
            without.append(".".join(path))
    return tuple(without)


def sentence_on(keys: Sequence[str], where: str = "in this run") -> str:
    """Return the sentence on *keys* without effect *where*, without its period."""
    *others, last = keys
    names = f"{', '.join(others)} and {last}" if others else last
    verb, them = ("have", "them") if others else ("has", "it")
    return (
        f"{names} {verb} no effect {where}: its gates, sizes, costs and fills follow the same "
        f"settings without {them}"
    )


def _with_former(config: Config, before: Mapping[str, Any], path: KeyPath) -> Config:
    """Return *config* with the key at *path* as it is in the tables *before*."""
    tables = config.settings()
    table: dict[str, Any] = tables
    for key in path[:-1]:
        table, before = table[key], before[key]
    if (last := path[-1]) in before:
        table[last] = before[last]
    else:
        del table[last]
    return restore(json.dumps(tables))


def engine_inputs(
    config: Config,
    run: RunRow,
    strategies: Strategies,
    forecaster: Forecaster | None,
    *,
    execution: FillModel,
) -> tuple[object, ...]:
    """Return the values of which the engine of *run* is built.

    *strategies* are new ones of the run; their own settings are compared as they were written.
    """
    terms = engine_terms(
        config,
        run.instruments,
        execution=execution,
        period_start_ms=run.period_start_ms,
        forecaster=forecaster,
        strategies=strategies,
    )
    keys = config.execution
    settings, model = terms.settings, terms.settings.model
    return (
        config.strategy.model_dump(),
        (keys.model, keys.filters),
        replace(settings, broker=settings.broker.of_fills, model=replace(model, gates={})),
        {key: evaluator.gate_set for key, evaluator in model.gates.items()},
        {key: sizer.settings for key, sizer in terms.sizers.items()},
    )
