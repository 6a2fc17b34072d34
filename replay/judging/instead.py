"""What a choice of a recipe is worth: the recipe with another value, fitted anew on the same folds.

Each change names one key, such as ``encoding=alibi``, ``clock=week,funding`` or
``training.entropy_weight=0.5``. Model and change are compared on the bars that both answer, by day.

The rule is docs/models.md, L55.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import numpy as np

from tracepaper.replay.judging.across import (
    RANKS,
    WEIGHTS,
    net_difference,
    net_verdict,
    rank_verdict,
    ranks_of_both,
)
from tracepaper.replay.judging.beside import on_same_bars
from tracepaper.replay.judging.judgement import LOSSES, OWN, Losses
from tracepaper.replay.judging.refits import Refits
from tracepaper.replay.report.document import Figure, Form, Table, Value, table
from tracepaper.replay.training.document import ARCHITECTURE, KeyValue, kind_of
from tracepaper.replay.training.estimator import recipe_of
from tracepaper.replay.training.estimators.ensemble import member_as_card
from tracepaper.replay.training.paired import (
    DayDifference,
    corrected,
    difference,
    verdict,
)
from tracepaper.replay.training.weighed import NETWORK
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.forecasters.build import HALVES

_SECTIONS: Final = (ARCHITECTURE, "training")
_KEPT: Final = frozenset(
    {
        "architecture.features",
        "architecture.horizons",
        "architecture.interval_minutes",
        "training.baselines",
        "training.explained_bars",
        "training.threads",
    }
)
"""Keys that follow from the candles and the judgement, so that no fold is fitted by another."""


def changed(card: Mapping[str, Any], text: str) -> dict[str, Any]:
    """Return *card* with the key of *text*, ``KEY=VALUE``, changed; an ensemble's in its network.

    A key without a section is of the network's architecture. Raises ``ConfigInvalid`` for a key or
    value that the recipe cannot have, one that the folds keep, and one that changes nothing.
    """
    change = KeyValue.read("--ablate", text)
    section, key = change.section, change.key
    if section not in _SECTIONS:
        raise ConfigInvalid(
            f"--ablate {text} is no change; write one such as encoding=alibi, clock=week,funding "
            "or training.steps=500."
        )
    if (name := f"{section}.{key}") in _KEPT:
        raise ConfigInvalid(
            f"--ablate {text} is no change that folds are fitted by: they keep {name} as it is; "
            "change another key."
        )
    own = member_as_card(card, HALVES[0]) if "parts" in card else card
    kind = kind_of(own)
    value = change.typed(kind.sections, f"a recipe of the kind {kind.name}", derived=True)
    before = recipe_of(own).document()[section].get(key)
    other = {**own, section: {**own[section], key: value}}
    now = recipe_of(other).document()[section].get(key)
    if now == before:
        raise ConfigInvalid(f"--ablate {text} changes nothing; {section}.{key} is so already.")
    if own is card:
        return other
    return {**card, "parts": {**card["parts"], HALVES[0]: other}}


def tables(own: Refits, others: Mapping[str, Refits]) -> list[Table]:
    """Return for each loss how much more each change of *others* loses than *own*, by horizon.

    Of a network over several assets also how much better each ranks them, and what its weights make
    more a day.
    """
    horizons = [f"{one.horizon} bars" for one in own.forecasts[0]]
    made = [
        _compared(
            own,
            others,
            f"instead_{key}",
            title,
            {
                name: partial(_difference, own, column=column, losses=losses)
                for column, name in enumerate(horizons)
            },
            verdict,
        )
        for key, (title, _, losses) in LOSSES.items()
    ]
    if own.across:
        ranks = {name: partial(_ranked, own, column=column) for column, name in enumerate(horizons)}
        made.append(_compared(own, others, "instead_across", RANKS, ranks, rank_verdict))
    if any(one.held for one in own.across):
        weights = {"basis points a day": partial(_weighed, own)}
        made.append(_compared(own, others, "instead_weights", WEIGHTS, weights, net_verdict))
    return made


class _Row(dict[str, Value]):
    """A row of values by the keys of its columns."""


def _column(key: str, title: str, form: Form) -> Figure[_Row]:
    return Figure(key, title, form, lambda row: row.get(key))


def _compared(
    own: Refits,
    others: Mapping[str, Refits],
    key: str,
    title: str,
    differences: Mapping[str, Callable[[Refits], DayDifference | None]],
    say: Callable[[DayDifference], str],
) -> Table:
    """Return a row a change, and two columns for each of *differences* by its name."""
    rows = {text: _Row(change=text) for text in others}
    columns = [_column("change", "change", "text")]
    for name, of in differences.items():
        column = name.removesuffix(" bars")
        every = {text: of(other) for text, other in others.items()}
        known = {text: one for text, one in every.items() if one is not None}
        for text, one in corrected(known).items():
            rows[text] |= {column: one.pair, f"{column}_verdict": say(one), "days": one.days}
        columns.append(_column(column, name, "measure"))
        columns.append(_column(f"{column}_verdict", "the change is", "text"))
    columns.append(_column("days", "days", "count"))
    note = (
        "The change less the recipe as it is, on the bars that both answer; fitted anew on the "
        "same folds with the same seed, errors by day, the verdict by Holm over the changes."
    )
    whole = f"{title}: what changes are worth, {own.text}"
    return table(key, whole, columns, rows.values(), notes=[note])


def _difference(own: Refits, other: Refits, *, column: int, losses: Losses) -> DayDifference:
    first, second, days = [], [], []
    for mine, theirs in zip(own.forecasts, other.forecasts, strict=True):
        as_is, change = on_same_bars(mine[column], theirs[column])
        first.append(losses(change)[OWN])
        second.append(losses(as_is)[OWN])
        days.append(as_is.days)
    return difference(np.concatenate(first), np.concatenate(second), np.concatenate(days))


def _ranked(own: Refits, other: Refits, *, column: int) -> DayDifference:
    """Return how much better the change ranks the assets, close by close."""
    as_is, change = (
        [(forecasts[column], across) for forecasts, across in
         zip(one.forecasts, one.across, strict=True)]
        for one in (own, other)
    )  # fmt: skip
    pairs = [pair for both in zip(as_is, change, strict=True) if (pair := ranks_of_both(*both))]
    first, second, days = (
        np.concatenate(of)
        for of in zip(*((b.value, a.value, a.days) for a, b in pairs), strict=True)
    )
    return difference(first, second, days)


def _weighed(own: Refits, other: Refits) -> DayDifference | None:
    """Return what the weights of the change made more a day, in basis points.

    None where no fold has a decision of both.
    """
    held = [
        (change.held[NETWORK], as_is.held[NETWORK])
        for as_is, change in zip(own.across, other.across, strict=True)
        if as_is.held and change.held
    ]
    return net_difference(*(list(of) for of in zip(*held, strict=True))) if held else None
