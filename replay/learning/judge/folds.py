"""Recipes fitted anew on folds, and what a change of a recipe is worth.

What is chosen (recipe, score, window, ensemble) is chosen by these, so that no span is opened. Each
fold fits the model and every baseline on its own training spans alone.

Each change names one key, such as ``encoding=alibi``, ``clock=week,funding`` or
``training.entropy_weight=0.5``. Model and change are compared on the bars that both answer, by day.

The rules are docs/models.md, L44; docs/models.md, L55.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from tracepaper.replay.document.values import Table, Value, of_row, table
from tracepaper.replay.learning.dataset import Dataset
from tracepaper.replay.learning.fit import threads_used, use_threads
from tracepaper.replay.learning.fitted import (
    CandleModel,
    Each,
    FitRun,
    Say,
    candle_kind,
    one_by_one,
)
from tracepaper.replay.learning.judge.assets import (
    RANKS,
    WEIGHTS,
    less_ranked,
    net_verdict,
    rank_table,
    rank_verdict,
    weights_table,
)
from tracepaper.replay.learning.judge.compare import compare, differences_table, forecaster_table
from tracepaper.replay.learning.judge.forecasts import Forecasts, concatenated
from tracepaper.replay.learning.judge.metrics import LOSSES, Metric, views
from tracepaper.replay.learning.judge.portfolio import PORTFOLIOS
from tracepaper.replay.learning.judge.tables import COMPARED
from tracepaper.replay.learning.recipe import kind_of, member_as_card, recipe_of
from tracepaper.replay.learning.recipe_file import ARCHITECTURE, KeyValue
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
    overfitting,
    verdict,
)
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.forecasters.build import HALVES
from tracepaper.strategies.units import DAY_MS

REFITS_MOST: Final = 3
"""Folds of a network: each costs a training."""


class FoldForecasts(NamedTuple):
    """What a recipe fitted on one fold forecasts of the fold's test, and what its weights made."""

    forecasts: Forecasts
    held: Forecasts | None


@dataclass(frozen=True)
class Refits:
    """The forecasts of each fold's test; *combination* is (groups, tests)."""

    text: str
    folds: Sequence[Fold]
    tests: Sequence[FoldForecasts]
    combination: tuple[int, int] | None

    @property
    def pooled(self) -> Forecasts:
        """The rows of all tests."""
        return concatenated([test.forecasts for test in self.tests])

    @property
    def held(self) -> Forecasts | None:
        """What the weights made in all tests; None where there were none."""
        held = [test.held for test in self.tests if test.held is not None]
        return concatenated(held) if held else None

    def joined(self, others: Mapping[str, Refits]) -> Refits:
        """Return it with the forecasts of *others* on the same folds as compared models."""
        tests = list(self.tests)
        for name, other in others.items():
            for place, theirs in enumerate(other.tests):
                rows, held = tests[place]
                if held is not None and theirs.held is not None:
                    held = held.join(theirs.held, name)
                tests[place] = FoldForecasts(rows.join(theirs.forecasts, name), held)
        return replace(self, tests=tests)


@dataclass(frozen=True)
class _FoldFit:
    """Fits the recipe of *card* on one of *count* folds of *data*, and asks it about its test."""

    card: Mapping[str, Any]
    data: Dataset
    count: int
    threads: int

    def __call__(self, unit: tuple[int, Fold], say: Say) -> FoldForecasts:
        """Fit the model on a numbered fold and forecast the fold's test."""
        place, fold = unit
        use_threads(self.threads)
        say(f"Fold {place} of {self.count}.")
        own = self.data.folded(fold)
        with tempfile.TemporaryDirectory(prefix="tracepaper-fold-") as folder:
            recipe = recipe_of(self.card)
            fitted = recipe.kind.fit(own, recipe, FitRun(Path(folder), say=say))
        assert isinstance(fitted, CandleModel)
        model = fitted.for_fold(own)
        return FoldForecasts(model.answers(own, Part.TEST), model.held(own))


def refit(
    card: Mapping[str, Any], data: Dataset, text: str, *, say: Say, each: Each = one_by_one
) -> Refits:
    """Fit the recipe of *card* on the folds that *text* names, of the time before the untouched.

    *each* is where the folds are fitted. Raises ``ConfigInvalid`` for folds that the candles, or a
    network, cannot have.
    """
    kind, numbers = asked(text)
    of_card = candle_kind(card)
    if of_card.walks_only:
        refuse_many(kind, numbers)
    data = of_card.arrange(data)
    for sentence in data.notes:
        say(sentence)
    embargo_ms = data.split.embargo_bars * data.interval_ms
    folds = read_folds(text, _before(data), embargo_ms=embargo_ms)
    if of_card.holds_out_calibration:
        folds = [with_calibration(fold) for fold in folds]
    fit = _FoldFit(card, data, len(folds), threads_used())
    found = each(fit, list(enumerate(folds, start=1)), say)
    combination = (numbers[0], numbers[1]) if kind == COMBINATORIAL else None
    return Refits(text, folds, found, combination)


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
    rows, held, made = found.pooled, found.held, []
    note = (
        "Each fold fits the model and every baseline on its own training spans; errors by day, the "
        "verdict by Holm over the baselines."
    )
    for key in COMPARED:
        metric = LOSSES[key]
        title = f"{metric.title}, over {found.text}"
        made.append(forecaster_table(f"folds_{key}", title, rows, metric, verdict, note))
        if found.combination is not None:
            made.append(_selected(found, f"overfitting_{key}", metric))
    if rows.gives("relative"):
        made.append(rank_table("folds_across", f"{RANKS}, over {found.text}", rows))
    if held is not None:
        made.append(weights_table("folds_weights", f"{WEIGHTS}, over {found.text}", held))
    return made


def _selected(found: Refits, key: str, metric: Metric) -> Table:
    """Return for each horizon the probability that the best forecaster is so by luck, by path."""
    assert found.combination is not None
    rows = []
    routes = paths(*found.combination)
    for horizon in found.tests[0].forecasts.horizons:
        values = [overfitting(_scores(found, route, horizon, metric)) for route in routes]
        known = [value for value in values if value is not None]
        row: dict[str, Value] = {"horizon": str(horizon), "paths": len(routes)}
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
    title = f"{metric.title}: is the best forecaster chosen by luck?"
    return table(key, title, columns, rows, notes=[note])


def _scores(found: Refits, route: Sequence[int], horizon: int, metric: Metric) -> Array:
    """Return [group, forecaster]: the mean loss on each group by the fold that the path takes."""
    scores = []
    for group, place in enumerate(route):
        fold, rows = found.folds[place], found.tests[place].forecasts.at(horizon)
        chosen = _span_of(found, group, fold)
        inside = (rows.day >= chosen[0]) & (rows.day < chosen[1])
        if not inside.any():
            raise ConfigInvalid("A group of the folds has no bar; give fewer groups.")
        losses = (metric.terms(view) for view in views(metric, rows).values())
        scores.append([float(loss[inside].mean()) for loss in losses])
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
    kind = kind_of(own, is_member=True)
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
    joined = own.joined(others)
    note = (
        "The change less the recipe as it is, on the bars that both answer; fitted anew on the "
        "same folds with the same seed, errors by day, the verdict by Holm over the changes."
    )
    losses = {key: LOSSES[key] for key in COMPARED}
    tables = change_tables(joined, others, losses, "bars", lambda _: verdict, note)
    rows, held, worth = joined.pooled, joined.held, f"what changes are worth, {own.text}"
    if rows.gives("relative"):
        ranked = {(str(at), f"{at} bars"): less_ranked(of) for at, of in rows.by_horizon()}
        title = f"{RANKS}: {worth}"
        turned = _turned(ranked, others)
        tables.append(differences_table("instead_across", title, turned, rank_verdict, note))
    if held is not None:
        a_day = ("basis points a day", "basis points a day")
        net = {a_day: compare(held, PORTFOLIOS["net"], others=held.compared)}
        title = f"{WEIGHTS}: {worth}"
        turned = _turned(net, others)
        tables.append(differences_table("instead_weights", title, turned, net_verdict, note))
    return tables


def change_tables(
    joined: Refits,
    others: Iterable[str],
    metrics: Mapping[str, Metric],
    unit: str,
    say: Callable[[Metric], Callable[[DayDifference], str]],
    note: str,
) -> list[Table]:
    """Return a table a metric: each of *others*, which are joined, less the recipe as it is."""
    rows = joined.pooled
    return [
        differences_table(
            f"instead_{key}",
            f"{metric.title}: what changes are worth, {joined.text}",
            _turned(
                {
                    (str(at), f"{at} {unit}"): compare(of, metric, others=rows.compared)
                    for at, of in rows.by_horizon()
                },
                others,
            ),
            say(metric),
            note,
        )
        for key, metric in metrics.items()
    ]


def _turned(
    found: Mapping[tuple[str, str], Mapping[str, DayDifference]], others: Iterable[str]
) -> dict[tuple[str, str], dict[str, DayDifference | None]]:
    """Turn the sign of the recipe less each of *others*; None where one is not compared."""
    return {
        column: {
            name: less._replace(value=0.0 - less.value) if (less := of.get(name)) else None
            for name in others
        }
        for column, of in found.items()
    }
