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

from tracepaper.replay.judging.across import (
    RANKS,
    WEIGHTS,
    net_difference,
    net_verdict,
    rank_verdict,
    ranks_of_both,
)
from tracepaper.replay.judging.beside import on_same_bars
from tracepaper.replay.judging.book_refits import recipe_of_books
from tracepaper.replay.judging.judgement import LOSSES, OWN, Losses
from tracepaper.replay.judging.refits import Refits
from tracepaper.replay.report.document import Figure, Form, Table, Value, table
from tracepaper.replay.training.aligned_pipeline import AlignedRecipe
from tracepaper.replay.training.ensemble import half_as_card
from tracepaper.replay.training.paired import DayDifference, corrected, difference, verdict
from tracepaper.replay.training.recipe import Recipe
from tracepaper.replay.training.weighed import NETWORK
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.forecasters.build import HALVES, is_ensemble
from tracepaper.strategies.forecasters.cross_asset import is_together
from tracepaper.strategies.forecasters.tabular import row_kind
from tracepaper.strategies.order_book import KIND

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
            f"--ablate {text} is no change; write one such as encoding=alibi, clock=week,funding "
            "or training.steps=500."
        )
    if (name := f"{section}.{key}") in _KEPT:
        raise ConfigInvalid(
            f"--ablate {text} is no change that folds are fitted by: they keep {name} as it is; "
            "change another key."
        )
    if row_kind(card) is not None:
        raise ConfigInvalid("--ablate changes a network; give it a checkpoint that has one.")
    own = half_as_card(card, HALVES[0]) if is_ensemble(card) else card
    document = _document_of(card)
    before = document(own)[section].get(key)
    other = {**own, section: {**own[section], key: _value(value.strip(), before)}}
    now = document(other)[section].get(key)
    if now is None:
        raise ConfigInvalid(f"--ablate {text}: {section}.{key} is no key of the recipe.")
    if now == before:
        raise ConfigInvalid(f"--ablate {text} changes nothing; {section}.{key} is so already.")
    if own is card:
        return other
    return {**card, "parts": {**card["parts"], HALVES[0]: other}}


def _document_of(card: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Return what reads the sections of a recipe from a card of *card*'s kind."""
    if card["model"].get("kind") == KIND:
        return recipe_of_books
    if is_together(card):
        return lambda one: AlignedRecipe.of(one).document()
    return lambda one: Recipe.of(one).document()


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
