"""Recipes fitted anew on folds, and what a change of a recipe is worth.

What is chosen (recipe, score, window, ensemble) is chosen by these, so that no span is opened. Each
fold fits the model and every baseline on its own training spans alone.

Each change names one key, such as ``encoding=alibi``, ``clock=week,funding`` or
``training.entropy_weight=0.5``. Model and change are compared on the bars that both answer, by day.

The rules are docs/models.md, L44; docs/models.md, L55.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from tracepaper.replay.document.values import Table, Value, of_row, table
from tracepaper.replay.learning import statistics as figures
from tracepaper.replay.learning.dataset import Dataset
from tracepaper.replay.learning.estimator import (
    Answers,
    Each,
    FitRun,
    Say,
    candle_estimator,
    one_by_one,
    recipe_of,
)
from tracepaper.replay.learning.estimators.ensemble import member_as_card
from tracepaper.replay.learning.evaluation.cross_section import NETWORK, AcrossAssets
from tracepaper.replay.learning.evaluation.evaluate import LOSSES, OWN, Losses, on_same_bars, words
from tracepaper.replay.learning.evaluation.forecasts import HorizonForecasts
from tracepaper.replay.learning.evaluation.head_tables import (
    RANKS,
    WEIGHTS,
    net_difference,
    net_verdict,
    rank_table,
    rank_verdict,
    ranks_of_both,
    weights_table,
)
from tracepaper.replay.learning.fit import threads_used, use_threads
from tracepaper.replay.learning.recipe_file import ARCHITECTURE, KeyValue, kind_of
from tracepaper.replay.learning.splits import (
    COMBINATORIAL,
    Fold,
    Part,
    Span,
    asked,
    paths,
    read_folds,
    with_calibration,
)
from tracepaper.replay.learning.statistics import (
    DayDifference,
    corrected,
    difference,
    less_others,
    overfitting,
    verdict,
)
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.forecasters.build import HALVES
from tracepaper.strategies.units import DAY_MS

REFITS_MOST: Final = 3
"""Folds of a network: each costs a training."""


@dataclass(frozen=True)
class Refits:
    """The forecasts of each fold's test, by fold and horizon; *combination* is (groups, tests).

    *across* is what a network over several assets says beside them, by fold; else it is empty.
    """

    text: str
    folds: Sequence[Fold]
    forecasts: Sequence[Sequence[HorizonForecasts]]
    combination: tuple[int, int] | None
    across: Sequence[AcrossAssets] = ()


@dataclass(frozen=True)
class _FoldFit:
    """Fits the recipe of *card* on one of *count* folds of *data*, and asks it about its test."""

    card: Mapping[str, Any]
    data: Dataset
    count: int
    threads: int

    def __call__(self, unit: tuple[int, Fold], say: Say) -> Answers:
        """Fit the model on a numbered fold and forecast the fold's test."""
        place, fold = unit
        use_threads(self.threads)
        say(f"Fold {place} of {self.count}.")
        estimator = candle_estimator(self.card)
        own = self.data.folded(fold)
        with tempfile.TemporaryDirectory(prefix="tracepaper-fold-") as folder:
            fitted = estimator.fit(own, estimator.recipe(self.card), FitRun(Path(folder), say=say))
        return fitted.for_fold(own).answers(own, Part.TEST)


def refit(
    card: Mapping[str, Any], data: Dataset, text: str, *, say: Say, each: Each = one_by_one
) -> Refits:
    """Fit the recipe of *card* on the folds that *text* names, of the time before the untouched.

    *each* is where the folds are fitted. Raises ``ConfigInvalid`` for folds that the candles, or a
    network, cannot have.
    """
    kind, numbers = asked(text)
    estimator = candle_estimator(card)
    if estimator.walks_only:
        refuse_many(kind, numbers)
    data = estimator.arrange(data)
    for sentence in data.notes:
        say(sentence)
    embargo_ms = data.split.embargo_bars * data.interval_ms
    folds = read_folds(text, _before(data), embargo_ms=embargo_ms)
    if estimator.holds_out_calibration:
        folds = [with_calibration(fold) for fold in folds]
    fit = _FoldFit(card, data, len(folds), threads_used())
    found = each(fit, list(enumerate(folds, start=1)), say)
    combination = (numbers[0], numbers[1]) if kind == COMBINATORIAL else None
    across = [one.across for one in found if one.across is not None]
    return Refits(text, folds, [one.forecasts for one in found], combination, across)


def refuse_many(kind: str, numbers: Sequence[int]) -> None:
    """Raise ``ConfigInvalid`` for folds that a network is not fitted on."""
    if kind == COMBINATORIAL or numbers[0] > REFITS_MOST:
        raise ConfigInvalid(
            f"A network is fitted anew at most {REFITS_MOST} times, on folds that walk: write "
            f"--folds walk:{REFITS_MOST}. Combinatorial folds are for tree and glm."
        )


def _before(material: Dataset) -> Span:
    """Return the time from the first bar that has features until the untouched time."""
    first = min(int(one.open_time_ms[one.first]) for one in material.segments)
    last = max(int(one.close_time_ms[-1]) for one in material.segments)
    return first, min(last, material.split.calibration_until_ms)


# --- what the folds say


def tables(found: Refits) -> list[Table]:
    """Return each loss by forecaster and horizon, and how likely a choice by it is luck."""
    made = []
    for key, (title, _, losses) in LOSSES.items():
        made.append(_pooled(found, f"folds_{key}", f"{title}, over {found.text}", losses))
        if found.combination is not None:
            made.append(_selected(found, f"overfitting_{key}", title, losses))
    if found.across:
        each = list(zip(*found.forecasts, strict=True))  # by horizon
        parts = [list(zip(every, found.across, strict=True)) for every in each]
        made.append(rank_table("folds_across", f"{RANKS}, over {found.text}", parts))
        held = [one.held for one in found.across]
        title = f"{WEIGHTS}, over {found.text}"
        made += [one for one in [weights_table("folds_weights", title, held)] if one is not None]
    return made


def _pooled(found: Refits, key: str, title: str, losses: Losses) -> Table:
    """Return a row a forecaster: its mean loss over all tests, and the model's less it."""
    rows: dict[str, dict[str, Value]] = {}
    horizons = [one.horizon for one in found.forecasts[0]]
    for column, horizon in enumerate(horizons):
        every = [fold[column] for fold in found.forecasts]
        days = np.concatenate([one.days for one in every])
        parts = [losses(one) for one in every]
        by_name = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        against = less_others(by_name, days)
        for name, loss in by_name.items():
            row = rows.setdefault(name, {"forecaster": words(name)})
            row[str(horizon)] = figures.mean(loss, days)
            if name in against:
                row[f"{horizon}_verdict"] = verdict(against[name])
    columns = [of_row("forecaster", "forecaster", "text")]
    for horizon in horizons:
        columns.append(of_row(str(horizon), f"{horizon} bars", "measure"))
        columns.append(of_row(f"{horizon}_verdict", "the model is", "text"))
    note = (
        "Each fold fits the model and every baseline on its own training spans; errors by day, the "
        "verdict by Holm over the baselines."
    )
    return table(key, title, columns, rows.values(), notes=[note])


def _selected(found: Refits, key: str, title: str, losses: Losses) -> Table:
    """Return for each horizon the probability that the best forecaster is so by luck, by path."""
    assert found.combination is not None
    rows = []
    routes = paths(*found.combination)
    for column, one in enumerate(found.forecasts[0]):
        values = [overfitting(_scores(found, route, column, losses)) for route in routes]
        known = [value for value in values if value is not None]
        row: dict[str, Value] = {"horizon": str(one.horizon), "paths": len(routes)}
        if known:
            row |= {"mean": float(np.mean(known)), "most": max(known)}
        rows.append(row)
    columns = [
        of_row("horizon", "bars ahead", "text"),
        of_row("paths", "paths", "count"),
        of_row("mean", "probability", "measure"),
        of_row("most", "highest of a path", "measure"),
    ]
    note = (
        "How often the forecaster that is best on half of the groups is in the worse half on the "
        "others; a half is what chance makes. At least four groups."
    )
    return table(
        key, f"{title}: is the best forecaster chosen by luck?", columns, rows, notes=[note]
    )


def _scores(found: Refits, route: Sequence[int], column: int, losses: Losses) -> Array:
    """Return [group, forecaster]: the mean loss on each group by the fold that the path takes."""
    scores = []
    for group, place in enumerate(route):
        fold, one = found.folds[place], found.forecasts[place][column]
        chosen = _span_of(found, group, fold)
        inside = (one.days >= chosen[0]) & (one.days < chosen[1])
        if not inside.any():
            raise ConfigInvalid("A group of the folds has no bar; give fewer groups.")
        scores.append([float(loss[inside].mean()) for loss in losses(one).values()])
    return np.array(scores)


def _span_of(found: Refits, group: int, fold: Fold) -> tuple[int, int]:
    """Return the days from and until of a *group*, which is one test of *fold*."""
    every = sorted({span for each in found.folds for span in each.test})
    start, stop = every[group]
    assert (start, stop) in fold.test
    return start // DAY_MS, stop // DAY_MS


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


def ablated(card: Mapping[str, Any], text: str) -> dict[str, Any]:
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
    if now is None:
        raise ConfigInvalid(f"--ablate {text}: {section}.{key} is no key of the recipe.")
    if now == before:
        raise ConfigInvalid(f"--ablate {text} changes nothing; {section}.{key} is so already.")
    if own is card:
        return other
    return {**card, "parts": {**card["parts"], HALVES[0]: other}}


def ablation_tables(own: Refits, others: Mapping[str, Refits]) -> list[Table]:
    """Return for each loss how much more each change of *others* loses than *own*, by horizon.

    Of a network over several assets also how much better each ranks them, and what its weights make
    more a day.
    """
    by_horizon = [(str(one.horizon), f"{one.horizon} bars") for one in own.forecasts[0]]
    worth = f"what changes are worth, {own.text}"
    note = (
        "The change less the recipe as it is, on the bars that both answer; fitted anew on the "
        "same folds with the same seed, errors by day, the verdict by Holm over the changes."
    )

    def made(
        key: str,
        title: str,
        of: Callable[[Refits, int], DayDifference | None],
        say: Callable[[DayDifference], str] = verdict,
        columns: Sequence[tuple[str, str]] = by_horizon,
    ) -> Table:
        differences = {
            column: {text: of(other, at) for text, other in others.items()}
            for at, column in enumerate(columns)
        }
        return differences_table(f"instead_{key}", f"{title}: {worth}", differences, say, note)

    found = [
        made(key, title, partial(_difference, own, losses=losses))
        for key, (title, _, losses) in LOSSES.items()
    ]
    if own.across:
        found.append(made("across", RANKS, partial(_ranked, own), rank_verdict))
    if any(one.held for one in own.across):
        a_day = ("basis points a day", "basis points a day")
        found.append(made("weights", WEIGHTS, partial(_weighed, own), net_verdict, [a_day]))
    return found


def differences_table(
    key: str,
    title: str,
    differences: Mapping[tuple[str, str], Mapping[str, DayDifference | None]],
    say: Callable[[DayDifference], str],
    note: str,
    first: str = "change",
    says: str = "the change is",
) -> Table:
    """Return a row a name in the column *first*, p by Holm over the names.

    *differences* are by the key and title of their column, then by name; *says* is the title of the
    verdicts.
    """
    rows: dict[str, dict[str, Value]] = {}
    columns = [of_row(first, first, "text")]
    for (column, heading), every in differences.items():
        for name in every:
            rows.setdefault(name, {first: name})
        known = {name: one for name, one in every.items() if one is not None}
        for name, one in corrected(known).items():
            rows[name] |= {column: one.pair, f"{column}_verdict": say(one), "days": one.days}
        columns.append(of_row(column, heading, "measure"))
        columns.append(of_row(f"{column}_verdict", says, "text"))
    columns.append(of_row("days", "days", "count"))
    return table(key, title, columns, rows.values(), notes=[note])


def _difference(own: Refits, other: Refits, column: int, *, losses: Losses) -> DayDifference:
    first, second, days = [], [], []
    for mine, theirs in zip(own.forecasts, other.forecasts, strict=True):
        as_is, change = on_same_bars(mine[column], theirs[column])
        first.append(losses(change)[OWN])
        second.append(losses(as_is)[OWN])
        days.append(as_is.days)
    return difference(np.concatenate(first), np.concatenate(second), np.concatenate(days))


def _ranked(own: Refits, other: Refits, column: int) -> DayDifference:
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


def _weighed(own: Refits, other: Refits, _: int = 0) -> DayDifference | None:
    """Return what the weights of the change made more a day, in basis points.

    None where no fold has a decision of both.
    """
    held = [
        (change.held[NETWORK], as_is.held[NETWORK])
        for as_is, change in zip(own.across, other.across, strict=True)
        if as_is.held and change.held
    ]
    return net_difference(*(list(of) for of in zip(*held, strict=True))) if held else None
