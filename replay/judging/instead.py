"""What a choice of a recipe is worth: the recipe with another value, fitted anew on the same folds.

Each change names one key, such as ``encoding=alibi``, ``clock=week,funding`` or
``training.entropy_weight=0.5``. Model and change are compared on the bars that both answer, by day.

The rule is docs/models.md, L55.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import numpy as np

from tracepaper.replay.document.values import Table, Value, of_row, table
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
    value that the recipe cannot have, one that the folds keep, and one that changes nothing.
    """
    name, equals, value = text.partition("=")
    section, dot, key = name.strip().partition(".")
    if not dot:
        section, key = _SECTION, section
    if not equals or section not in _SECTIONS or not key:
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
    before = recipe_of(own).document()[section].get(key)
    other = {**own, section: {**own[section], key: _value(value.strip(), before)}}
    now = recipe_of(other).document()[section].get(key)
    if now is None:
        raise ConfigInvalid(f"--ablate {text}: {section}.{key} is no key of the recipe.")
    if now == before:
        raise ConfigInvalid(f"--ablate {text} changes nothing; {section}.{key} is so already.")
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


def _compared(
    own: Refits,
    others: Mapping[str, Refits],
    key: str,
    title: str,
    differences: Mapping[str, Callable[[Refits], DayDifference | None]],
    say: Callable[[DayDifference], str],
) -> Table:
    """Return a row a change, and two columns for each of *differences* by its name."""
    rows: dict[str, dict[str, Value]] = {text: {"change": text} for text in others}
    columns = [of_row("change", "change", "text")]
    for name, of in differences.items():
        column = name.removesuffix(" bars")
        every = {text: of(other) for text, other in others.items()}
        known = {text: one for text, one in every.items() if one is not None}
        for text, one in corrected(known).items():
            rows[text] |= {column: one.pair, f"{column}_verdict": say(one), "days": one.days}
        columns.append(of_row(column, name, "measure"))
        columns.append(of_row(f"{column}_verdict", "the change is", "text"))
    columns.append(of_row("days", "days", "count"))
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
