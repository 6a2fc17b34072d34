"""A recipe fitted anew on each fold before the untouched time, and judged on the fold's test.

What is chosen (recipe, score, window, ensemble) is chosen by these, so that no span is opened. Each
fold fits the model and every baseline on its own training spans alone.

The rule is docs/models.md, L44.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from tracepaper.replay.document.values import Table, Value, of_row, table
from tracepaper.replay.judging.across import RANKS, WEIGHTS, rank_table, weights_table
from tracepaper.replay.judging.judgement import LOSSES, OWN, Losses
from tracepaper.replay.judging.statistics import overfitting
from tracepaper.replay.training import figures
from tracepaper.replay.training.across import AcrossAssets
from tracepaper.replay.training.dataset import Dataset
from tracepaper.replay.training.estimator import FitRun, Say, candle_estimator
from tracepaper.replay.training.evaluation import HorizonForecasts
from tracepaper.replay.training.folds import (
    COMBINATORIAL,
    Fold,
    Span,
    asked,
    paths,
    read_folds,
    with_calibration,
)
from tracepaper.replay.training.own import OF_MODEL
from tracepaper.replay.training.paired import (
    corrected,
    difference,
    verdict,
)
from tracepaper.replay.training.series import (
    Part,
)
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.features.rolling import Array
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


def refit(card: Mapping[str, Any], data: Dataset, text: str, *, say: Say) -> Refits:
    """Fit the recipe of *card* on the folds that *text* names, of the time before the untouched.

    Raises ``ConfigInvalid`` for folds that the candles, or a network, cannot have.
    """
    kind, numbers = asked(text)
    estimator = candle_estimator(card)
    recipe = estimator.recipe(card)
    if estimator.walks_only:
        refuse_many(kind, numbers)
    data = estimator.arrange(data)
    for sentence in data.notes:
        say(sentence)
    embargo_ms = data.split.embargo_bars * data.interval_ms
    folds = read_folds(text, _before(data), embargo_ms=embargo_ms)
    if estimator.holds_out_calibration:
        folds = [with_calibration(fold) for fold in folds]
    found = []
    for place, fold in enumerate(folds, start=1):
        say(f"Fold {place} of {len(folds)}.")
        own = data.folded(fold)
        with tempfile.TemporaryDirectory(prefix="tracepaper-fold-") as folder:
            fitted = estimator.fit(own, recipe, FitRun(Path(folder), say=say))
        found.append(fitted.for_fold(own).answers(own, Part.TEST))
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
        by_name = _joined([losses(one) for one in every])
        against = corrected(
            {n: difference(by_name[OWN], of, days) for n, of in by_name.items() if n != OWN}
        )
        for name, loss in by_name.items():
            row = rows.setdefault(name, {"forecaster": _words(name)})
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


def _joined(parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _words(name: str) -> str:
    return (OF_MODEL if name == OWN else name).replace("_", " ")
