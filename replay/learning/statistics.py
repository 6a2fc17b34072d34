"""Figures of forecasts against outcomes, each with its error over calendar days.

A figure's standard error comes from resampling blocks of days (``metrics.blocks_of``); its error
allows for few blocks (``metrics.widened``) and is None for too few. Every figure is a function of
sums, so a resample only adds the sums of its blocks.

The rules are docs/models.md, L14 and L45.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from tracepaper.replay.report.honesty import LEVEL
from tracepaper.replay.report.metrics import BLOCK_DAYS, blocks_of, standard_error, widened
from tracepaper.strategies.features.rolling import Array

K = TypeVar("K")
RESAMPLES: Final = 500
COVERAGE: Final = 0.9
VARIANCE_FLOOR: Final = 0.01
"""Floor of scaled variances: QLIKE divides by them, and some labels never move."""


class DailyEstimate(NamedTuple):
    """A value and its error over days."""

    value: float
    error: float | None  # None with too few days

    def rounded(self, digits: int = 5) -> list[float | None]:
        """Return [value, error] with *digits* decimals, for a card; None for one that is absent.

        A mean of no rows is absent, and so is a ratio to a variance of zero.
        """
        return [
            round(number, digits) if number is not None and np.isfinite(number) else None
            for number in self
        ]


class BlockEstimate(NamedTuple):
    """A value with its standard error over blocks of days, and the number of rows in each."""

    value: float
    standard_error: float | None  # None with a single block
    sizes: NDArray[np.int64]  # [block]

    @property
    def daily(self) -> DailyEstimate:
        """The value and the error that allows for few blocks."""
        return DailyEstimate(self.value, widened(self.standard_error, self.sizes))


def figure(
    terms: Array, days: NDArray[np.int64], combine: Callable[[Array], Array]
) -> DailyEstimate:
    """Return ``combine`` of the summed [term, row] *terms*, with its error over *days* [row].

    ``combine`` maps sums [.., term] to values [..]. The error comes from ``RESAMPLES`` bootstraps
    of the blocks of days. Without rows the value is NaN.
    """
    if not len(days):
        return BlockEstimate(float("nan"), None, days).daily
    block = blocks_of(days)
    blocks = [np.bincount(block, row).astype(np.float64) for row in terms]
    value, error = resampled(np.stack(blocks, axis=1), combine)
    spread = None if error is None else float(error)
    return BlockEstimate(float(value), spread, np.bincount(block)).daily


def resampled(blocks: Array, combine: Callable[[Array], Array]) -> tuple[Array, Array | None]:
    """Return ``combine`` of [block, term] *blocks* summed, with its standard error over them.

    Values may have further axes. The bootstrap underestimates the error of n blocks, so it is
    widened by √(n ÷ (n - 1)).
    """
    count, value = len(blocks), combine(blocks.sum(axis=0)[None])[0]
    if count < 2:
        return value, None
    # One product computes all resamples.
    spread = np.nanstd(combine(redrawn_blocks(count) @ blocks), axis=0)
    return value, spread * (count / (count - 1)) ** 0.5


def redrawn_blocks(count: int) -> Array:
    """Return [resample, block]: how often each of *count* blocks is drawn."""
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1.0 / count), RESAMPLES)
    return drawn.astype(np.float64)


def mean(values: Array, days: NDArray[np.int64]) -> DailyEstimate:
    """Return the value and error of ``block_mean``."""
    return block_mean(values, days).daily


def block_mean(values: Array, days: NDArray[np.int64]) -> BlockEstimate:
    """Return the mean of *values*, NaN if there are none, with its error over *days*."""
    if not len(values):
        return BlockEstimate(float("nan"), None, days)
    error = standard_error(np.asarray(values, dtype=np.float64), days)
    return BlockEstimate(float(values.mean()), error, np.bincount(blocks_of(days)))


def estimate(values: Array, days: NDArray[np.int64]) -> tuple[float, float | None]:
    """Return the mean of *values* [decision] with its error over days, rounded for display."""
    average = mean(values, days)
    return round(average.value, 6), average.rounded(6)[1]


def hits_of(forecast: Array, value: Array) -> Array:
    """Return 1 where the sign was right, else 0; 0.5 without a sign, NaN where *value* is 0."""
    sign, moved = np.sign(forecast), np.sign(value)
    hit = np.where(sign == 0, 0.5, (sign == moved).astype(np.float64))
    return np.where(moved == 0, np.nan, hit)


def qlike_of(forecast: Array, variance: Array) -> Array:
    """Return v ÷ f - log(v ÷ f) - 1 by row (Patton, 2011), v and f at least the floor."""
    ratio = np.maximum(variance, VARIANCE_FLOOR) / np.maximum(forecast, VARIANCE_FLOOR)
    return ratio - np.log(ratio) - 1.0


def inside(location: Array, scale: Array, dof: Array, value: Array, share: float) -> Array:
    """Return 1 where *value* lies in the Student t's central interval of *share*, else 0."""
    half = stdtrit(dof, 0.5 + share / 2) * scale
    return (np.abs(value - location) <= half).astype(np.float64)


def brier_of(probability: Array, classes: NDArray[np.int64]) -> Array:
    """Return the squared distance of [row, class] probabilities from the realised class, by row."""
    realised = np.eye(probability.shape[1])[classes]
    return ((probability - realised) ** 2).sum(axis=1)


def top(measure: Array, coverage: float) -> NDArray[np.bool_]:
    """Return a mask of the *coverage* share of rows with the largest *measure*; ties by order."""
    count = max(round(coverage * len(measure)), 1)
    chosen = np.zeros(len(measure), dtype=np.bool_)
    chosen[np.argsort(-measure, kind="stable")[:count]] = True
    return chosen


# --- differences of losses on the same bars


class DayDifference(NamedTuple):
    """A difference with its error over days, and its p value."""

    value: float
    error: float | None  # None with too few days
    days: int
    p: float  # two-sided; 1 with a single block of days
    standard_error: float | None = None  # by which p was computed

    @property
    def pair(self) -> tuple[float, float | None]:
        """Value and error."""
        return self.value, self.error

    def rounded(self) -> list[float | None]:
        """Return [value, error, p] to five significant digits, for a card; None if absent."""
        return [
            float(f"{number:.5g}") if number is not None and np.isfinite(number) else None
            for number in (self.value, self.error, self.p)
        ]


def compared(difference: BlockEstimate, days: int) -> DayDifference:
    """Return *difference*, over so many *days*, with its p value against zero."""
    value, error = difference.value, difference.standard_error
    return DayDifference(*difference.daily, days, chance(value, error, days), error)


def chance(value: float, standard_error: float | None, days: int) -> float:
    """Return the two-sided p value of *value* against zero; 1 without a standard error.

    By Student's t with one degree of freedom less than there are blocks of days.
    """
    blocks = days // BLOCK_DAYS
    if blocks < 2 or not standard_error:
        return 1.0
    return 2.0 * float(stdtr(blocks - 1, -abs(value) / standard_error))


def difference(first: Array, second: Array, days: NDArray[np.int64]) -> DayDifference:
    """Return the mean of *first* minus *second* [row], tested over *days* [row]."""
    return compared(block_mean(first - second, days), len(np.unique(days)))


def holm(values: Sequence[float]) -> list[float]:
    """Return the p values *values*, corrected for their number (Holm, 1979), in their order."""
    order = sorted(range(len(values)), key=values.__getitem__)
    corrected, least = [0.0] * len(values), 0.0
    for rank, place in enumerate(order):
        least = max(least, min(1.0, (len(values) - rank) * values[place]))
        corrected[place] = least
    return corrected


def corrected(tests: Mapping[K, DayDifference]) -> dict[K, DayDifference]:
    """Return *tests* with p values corrected for their number."""
    values = holm([test.p for test in tests.values()])
    return {name: test._replace(p=p) for (name, test), p in zip(tests.items(), values, strict=True)}


def verdict(difference: DayDifference, *, is_less_better: bool = True) -> str:
    """Return ``better``, ``worse``, or ``level`` where chance explains the difference."""
    if not difference.p < LEVEL:
        return "level"
    return "better" if (difference.value < 0) == is_less_better else "worse"


# --- selective prediction


COVERAGES: Final = (0.5, 0.2, 0.1, 0.05)
"""Shares of the surest bars whose gains a card has."""
RISK_COVERAGES: Final = np.linspace(0.05, 1.0, 20)
"""Coverages of the risk–coverage curve."""
_SEED: Final = 20_170_817  # orders ties


class RankedBars(NamedTuple):
    """Bars of one horizon: the cost of answering, how sure the forecaster is, and the day."""

    risk: Array
    measure: Array  # higher is surer; NaN leaves a bar out
    days: NDArray[np.int64]


class RiskCurve(NamedTuple):
    """Mean risk of the surest bars at ``RISK_COVERAGES``, minus a random gate's.

    ``area`` is the mean of ``excess``; below zero the measure helps.
    """

    risk: float  # the mean of all bars, which is a random gate's at any coverage
    excess: Array
    errors: Array | None  # of ``excess``; None with too few days
    area: DayDifference
    bars: int

    @property
    def gain(self) -> DailyEstimate:
        """The measure's gain over a random gate, averaged over coverages."""
        return DailyEstimate(-self.area.value, self.area.error)

    def gained(self) -> dict[str, Any]:
        """Return the gains over a random gate at ``COVERAGES``, for a card."""
        at = [int(np.abs(RISK_COVERAGES - share).argmin()) for share in COVERAGES]
        errors = (None,) * len(at) if self.errors is None else self.errors[at].tolist()
        pairs = zip((-self.excess[at]).tolist(), errors, strict=True)
        gains, noise = zip(*(DailyEstimate(*pair).rounded() for pair in pairs), strict=True)
        area, days = round(self.area.value, 5), self.area.days
        return {"gained": [*gains], "error": [*noise], "area": area, "days": days}


def risk_curve(parts: Sequence[RankedBars], rivals: Sequence[RankedBars] = ()) -> RiskCurve | None:
    """Return the curve averaged over *parts*, each ranked separately; None without ranked bars.

    Ties are in seeded random order. Blocks of days are resampled for all parts together, since
    horizons share their market. *rivals* rank the same bars by another measure; their curve is
    subtracted.
    """
    ranked = [_finite(part) for part in (*parts, *rivals)]
    signs = [1.0] * len(parts) + [-1.0] * len(rivals)
    signed = [(part, sign) for part, sign in zip(ranked, signs, strict=True) if len(part.risk)]
    if not signed:
        return None
    ranked = [part for part, _ in signed]
    shares = np.array([sign for _, sign in signed])[:, None]
    shares /= np.count_nonzero(shares > 0)
    days = np.concatenate([part.days for part in ranked])
    blocks = np.split(blocks_of(days), np.cumsum([len(part.days) for part in ranked])[:-1])
    count = 1 + max(int(block.max()) for block in blocks)
    sums = [_bucketed(part, block, count) for part, block in zip(ranked, blocks, strict=True)]
    size = len(RISK_COVERAGES)

    def excess(sums: Array) -> Array:
        """Return [.., coverage] and their mean; *sums* are [.., part × (risk, count) × step]."""
        totals = sums.reshape(len(sums), len(ranked), 2, size).cumsum(axis=-1)
        risk = totals[:, :, 0] / np.maximum(totals[:, :, 1], 1.0)
        pooled = ((risk - risk[:, :, -1:]) * shares).sum(axis=1)
        return np.column_stack([pooled, pooled.mean(axis=1)])

    value, error = resampled(np.concatenate(sums, axis=1), excess)
    sizes = np.bincount(np.concatenate(blocks), minlength=count)
    area = BlockEstimate(float(value[-1]), None if error is None else float(error[-1]), sizes)
    return RiskCurve(
        float(np.mean([part.risk.mean() for part in ranked])),
        value[:-1],
        widened(None if error is None else error[:-1], sizes),
        compared(area, len(np.unique(days))),
        sum(len(part.risk) for part, sign in signed if sign > 0),
    )


def _finite(part: RankedBars) -> RankedBars:
    finite = np.isfinite(part.measure) & np.isfinite(part.risk)
    return RankedBars(part.risk[finite], part.measure[finite], part.days[finite])


def _bucketed(part: RankedBars, block: NDArray[np.int64], blocks: int) -> Array:
    """Return [block, 2 × coverage]: the risk, then the bars, that each step of coverage adds."""
    count = len(part.risk)
    drawn = np.random.default_rng(_SEED).random(count)
    place = np.empty(count, dtype=np.int64)
    place[np.lexsort((drawn, -part.measure))] = np.arange(count)
    # The last step takes the remaining bars, so rounding loses none.
    steps = np.round(RISK_COVERAGES[:-1] * count).astype(np.int64)
    size = len(RISK_COVERAGES)
    cell = block * size
    cell += np.searchsorted(steps, place, side="right")
    sums = [np.bincount(cell, weights, blocks * size) for weights in (part.risk, np.ones(count))]
    tables = [each.reshape(blocks, size).astype(np.float64) for each in sums]
    return np.concatenate(tables, axis=1)
