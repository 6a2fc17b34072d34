"""What a choice of a recipe is worth: the recipe with another value, fitted anew on the same folds.

Each change names one key, such as ``encoding=alibi``, ``clock=week,funding`` or
``training.entropy_weight=0.5``. Model and change are compared on the bars that both answer, by day.

The rule is docs/models.md, L55.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from tracepaper.replay.judging.beside import on_same_bars
from tracepaper.replay.judging.judgement import LOSSES, OWN, Losses
from tracepaper.replay.judging.refits import Refits
from tracepaper.replay.judging.statistics import DayDifference, corrected, difference, verdict
from tracepaper.replay.report.tables import Figure, Form, Table, Value, table
from tracepaper.replay.training.ensemble import half_as_card
from tracepaper.replay.training.recipe import Recipe
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.forecasters.build import HALVES, is_ensemble, row_kind

_SECTION: Final = "architecture"
_SECTIONS: Final = (_SECTION, "training")
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
    value that the recipe cannot have, for one that the folds keep, for one that changes nothing,
    and for a model of rows.
    """
    name, equals, value = text.partition("=")
    section, dot, key = name.strip().partition(".")
    if not dot:
        section, key = _SECTION, section
    if not equals or section not in _SECTIONS or not key:
        raise ConfigInvalid(
            f"--instead {text} is no change; write one such as encoding=alibi, clock=week,funding "
            "or training.steps=500."
        )
    if (name := f"{section}.{key}") in _KEPT:
        raise ConfigInvalid(
            f"--instead {text} is no change that folds are fitted by: they keep {name} as it is; "
            "change another key."
        )
    if row_kind(card) is not None:
        raise ConfigInvalid("--instead changes a network; give it a checkpoint that has one.")
    own = half_as_card(card, HALVES[0]) if is_ensemble(card) else card
    before = Recipe.of(own).document()[section].get(key)
    other = {**own, section: {**own[section], key: _value(value.strip(), before)}}
    now = Recipe.of(other).document()[section].get(key)
    if now is None:
        raise ConfigInvalid(f"--instead {text}: {section}.{key} is no key of the recipe.")
    if now == before:
        raise ConfigInvalid(f"--instead {text} changes nothing; {section}.{key} is so already.")
    if own is card:
        return other
    return {**card, "parts": {**card["parts"], HALVES[0]: other}}


def _value(text: str, like: object) -> object:
    """Return *text* as a value of a recipe, of the kind of the one that it replaces."""
    if isinstance(like, list):
        return [_value(part.strip(), None) for part in text.split(",") if part.strip()]
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def tables(own: Refits, others: Mapping[str, Refits]) -> list[Table]:
    """Return for each loss how much more each change of *others* loses than *own*, by horizon."""
    return [
        _compared(own, others, key, title, losses) for key, (title, _, losses) in LOSSES.items()
    ]


class _Row(dict[str, Value]):
    """A row of values by the keys of its columns."""


def _column(key: str, title: str, form: Form) -> Figure[_Row]:
    return Figure(key, title, form, lambda row: row.get(key))


def _compared(
    own: Refits, others: Mapping[str, Refits], key: str, title: str, losses: Losses
) -> Table:
    rows = {text: _Row(change=text) for text in others}
    horizons = [one.horizon for one in own.forecasts[0]]
    for column, horizon in enumerate(horizons):
        found = corrected(
            {text: _difference(own, other, column, losses) for text, other in others.items()}
        )
        for text, one in found.items():
            rows[text] |= {str(horizon): one.pair, f"{horizon}_verdict": verdict(one)}
            rows[text]["days"] = one.days
    columns = [_column("change", "change", "text")]
    for horizon in horizons:
        columns.append(_column(str(horizon), f"{horizon} bars", "measure"))
        columns.append(_column(f"{horizon}_verdict", "the change is", "text"))
    columns.append(_column("days", "days", "count"))
    note = (
        "The change less the recipe as it is, on the bars that both answer; fitted anew on the "
        "same folds with the same seed, errors by day, the verdict by Holm over the changes."
    )
    return table(
        f"instead_{key}", f"{title}: what changes are worth, {own.text}", columns, rows.values(),
        notes=[note],
    )  # fmt: skip


def _difference(own: Refits, other: Refits, column: int, losses: Losses) -> DayDifference:
    first, second, days = [], [], []
    for mine, theirs in zip(own.forecasts, other.forecasts, strict=True):
        as_is, change = on_same_bars(mine[column], theirs[column])
        first.append(losses(change)[OWN])
        second.append(losses(as_is)[OWN])
        days.append(as_is.days)
    return difference(np.concatenate(first), np.concatenate(second), np.concatenate(days))
