"""Intervals of 90 % on untouched time: the model's own, fixed, kept up online, and by dropout.

The score of a bar is |return - mean| ÷ scale. A fixed conformal interval is as many scales wide as
covered 90 % of the calibration part. Adaptive conformal inference (Gibbs and Candès, 2021) takes
that quantile over the last scores instead, at a level that falls by each bar that was covered and
rises by each that was missed, so that it follows a shift that the calibration part never saw. A
score is known when its horizon has passed, and not before.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import torch
from scipy.stats import norm, t

from tracepaper.replay.document.values import Table, Value, table_of_rows
from tracepaper.replay.learning.inspection.model import Ids, Subject
from tracepaper.replay.learning.judge.forecasts import Forecasts, SegmentFields, forecasts_of
from tracepaper.replay.learning.predict import Fields, predict
from tracepaper.replay.learning.samples import Samples
from tracepaper.replay.learning.splits import Part
from tracepaper.replay.learning.statistics import (
    COVERAGE,
    estimate,
)
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.networks.architecture import Network

STEP: Final = 0.005
"""γ of adaptive conformal inference: how far one bar moves the level."""
SCORES_KEPT: Final = 1_000
"""Scores that the adaptive quantile is taken over: the newest."""
PASSES: Final = 20
"""Of MC dropout."""
_SEED: Final = 20_170_817


class AdaptiveConformal:
    """One instrument's interval, in scales to either side, kept up online."""

    def __init__(
        self,
        scores: Iterable[float],
        *,
        coverage: float = COVERAGE,
        step: float = STEP,
        kept: int = SCORES_KEPT,
    ) -> None:
        """Begin with the newest *kept* of the calibration part's *scores*."""
        self.level = 1.0 - coverage  # of misses that are aimed at now, α_t
        self._wanted = 1.0 - coverage
        self._step = step
        self._newest: deque[float] = deque(scores, kept)
        self._sorted = sorted(self._newest)

    def width(self) -> float:
        """Return how many scales the interval reaches to either side now.

        Infinite where no miss at all may happen or nothing is known, zero where every bar may be
        missed.
        """
        if self.level >= 1.0:
            return 0.0
        count = len(self._sorted)
        place = int(np.ceil((count + 1) * (1.0 - self.level))) - 1
        return float("inf") if self.level <= 0.0 or place >= count else self._sorted[place]

    def take(self, score: float, width: float) -> None:
        """Learn the *score* of a bar whose interval was *width* scales wide."""
        self.level += self._step * (self._wanted - float(score > width))
        if len(self._newest) == self._newest.maxlen:
            del self._sorted[bisect_left(self._sorted, self._newest[0])]
        self._newest.append(score)
        insort(self._sorted, score)


def adaptive_widths(scores: Array, times: Ids, known: Ids, before: Iterable[float]) -> Array:
    """Return the adaptive width of each bar of one instrument, [bar], oldest first.

    *times* are those of the decisions and *known* those at which each score is known; both ascend.
    *before* are scores of the calibration part.
    """
    state = AdaptiveConformal(before)
    found, learnt = np.empty(len(scores)), 0
    for at, now in enumerate(times.tolist()):
        while learnt < at and known[learnt] <= now:
            state.take(float(scores[learnt]), float(found[learnt]))
            learnt += 1
        found[at] = state.width()
    return found


def fixed_width(scores: Array, coverage: float = COVERAGE) -> float:
    """Return the width, in scales, that covers a next score with that probability (Vovk, 2005)."""
    state = AdaptiveConformal(scores, coverage=coverage, kept=max(len(scores), 1))
    return state.width()


def intervals(subject: Subject) -> list[Table]:
    """Return the coverage and width of every interval on the test part, in all and by day."""
    test = subject.labelled(Part.TEST)
    before, bars = _rows(subject, subject.labelled(Part.CALIBRATION)), _rows(subject, test)
    past_scores, all_scores = _scores(before), _scores(bars)
    names = {"own": t.ppf(0.5 + COVERAGE / 2, bars.value("dof"))}
    fixed, adaptive = np.empty_like(all_scores), np.empty_like(all_scores)
    for asset in np.unique(bars.asset):
        mine, past = bars.asset == asset, before.asset == asset
        learnt = past_scores[past if past.any() else slice(None)]
        fixed[mine] = fixed_width(learnt)
        order = np.flatnonzero(mine)[np.argsort(bars.open_ms[mine], kind="stable")]
        adaptive[order] = adaptive_widths(
            all_scores[order], bars.open_ms[order], bars.until_ms[order], learnt
        )
    names |= {"fixed conformal": fixed, "adaptive conformal": adaptive}
    covered = {name: (all_scores <= widths).astype(np.float64) for name, widths in names.items()}
    halves = {name: widths * bars.value("scale") for name, widths in names.items()}
    left = ""
    if subject.network is not None and (dropped := _dropout(subject, subject.network, test)):
        mean, half = dropped
        name = "MC dropout" if subject.mix is None else "MC dropout of the network"
        covered[name] = (np.abs(bars.labels["returns"] - mean) <= half).astype(np.float64)
        halves[name] = half
    else:
        left = " The model was trained without dropout, so it has no MC dropout interval."
    return [
        _summary(subject, covered, halves, bars.day, left),
        _by_day(covered, bars.day),
    ]


def _rows(
    subject: Subject, asked: Sequence[tuple[Samples, Ids]], fields: Sequence[Fields] = ()
) -> Forecasts:
    """Return the labelled rows of *asked* at the gates' horizon; *fields* in place of its own."""
    fields = fields or [subject.predict(samples.segment, rows) for samples, rows in asked]
    answers = [SegmentFields(*pair, of) for pair, of in zip(asked, fields, strict=True)]
    return forecasts_of(answers, {}, subject.material.horizons).at(subject.horizon)


def _scores(rows: Forecasts) -> Array:
    """Return |return - mean| ÷ scale of each row."""
    off: Array = np.abs(rows.labels["returns"] - rows.value("mean")) / rows.value("scale")
    return off


def _dropout(
    subject: Subject, network: Network, asked: Sequence[tuple[Samples, Ids]]
) -> tuple[Array, Array] | None:
    """Return mean and half width [bar] of MC dropout (Gal and Ghahramani, 2016), if there is any.

    Of the passes' normal mixture: the mean of their variances and the variance of their means.
    """
    if not network.dropping():
        return None
    torch.manual_seed(_SEED)
    means, variances = [], []
    for _ in range(PASSES):
        fields = [predict(network, s.segment, rows, dropout=True) for s, rows in asked]
        passed = _rows(subject, asked, fields)
        dof = passed.value("dof")
        means.append(passed.value("mean"))
        variances.append(passed.value("scale") ** 2 * dof / (dof - 2.0))
    total = np.mean(variances, axis=0) + np.var(means, axis=0)
    return np.mean(means, axis=0), norm.ppf(0.5 + COVERAGE / 2) * np.sqrt(total)


def _summary(
    subject: Subject, covered: dict[str, Array], halves: dict[str, Array], days: Ids, left: str
) -> Table:
    rows: list[dict[str, Value]] = []
    for name, hit in covered.items():
        daily = _daily(hit, days)
        rows.append(
            {
                "interval": name,
                "coverage": estimate(hit, days),
                "least day": round(float(daily.min()), 4),
                "spread of days": round(float(daily.std()), 4),
                "median half width": round(float(np.median(halves[name])), 4),
            }
        )
    return table_of_rows(
        "intervals",
        f"Intervals of {COVERAGE:.0%}, {subject.material.times[subject.column]} ahead,"
        f" {len(days):,} bars of {len(np.unique(days))} days",
        f"Widths in units of σ √h. Adaptive: γ {STEP:g}, the last {SCORES_KEPT:,} scores that were"
        f" known, begun with the calibration part's.{left}",
        rows,
    )


def _by_day(covered: dict[str, Array], days: Ids) -> Table:
    daily = {name: _daily(hit, days).round(4).tolist() for name, hit in covered.items()}
    each, counts = np.unique(days, return_counts=True)
    rows: list[dict[str, Value]] = [
        {
            "day": str(np.datetime64(int(day), "D")),
            "bars": int(count),
            **{name: of[at] for name, of in daily.items()},
        }
        for at, (day, count) in enumerate(zip(each, counts, strict=True))
    ]
    return table_of_rows("interval_days", f"Coverage of {COVERAGE:.0%} intervals by day", "", rows)


def _daily(hit: Array, days: Ids) -> Array:
    _, day = np.unique(days, return_inverse=True)
    found: Array = np.bincount(day, hit) / np.bincount(day)
    return found
