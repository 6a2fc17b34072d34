"""Figures of forecasts against what happened, each with its standard error over calendar days.

A figure's error comes from resampling blocks of days (``metrics.blocks_of``); of a single block it
is None. Every figure is a function of sums, and sums over blocks add up, so that a resampled figure
costs a few additions.

The rules are docs/models.md, L14 and L45.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln, stdtr, stdtrit

from tracepaper.replay.report.honesty import LEVEL
from tracepaper.replay.report.metrics import BLOCK_DAYS, blocks_of, lost_elsewhere, mean_error
from tracepaper.strategies.features.rolling import Array

K = TypeVar("K")
RESAMPLES: Final = 500
ECE_BINS: Final = 15
COVERAGE: Final = 0.9
VARIANCE_FLOOR: Final = 0.01
"""Least scaled variance: up to 2.6 % of five-minute labels never move, and QLIKE divides."""


class DailyEstimate(NamedTuple):
    """A value and its standard error over days."""

    value: float
    error: float | None  # None of a single block of days

    def rounded(self, digits: int = 5) -> list[float | None]:
        """Return both with so many decimals, as a card holds them."""
        error = None if self.error is None else round(self.error, digits)
        return [None if np.isnan(self.value) else round(self.value, digits), error]


def figure(
    terms: Array, days: NDArray[np.int64], combine: Callable[[Array], Array]
) -> DailyEstimate:
    """Return ``combine`` of the summed [term, row] *terms*, with its error over *days* [row].

    ``combine`` maps sums [.., term] to values [..]; the error is that of ``RESAMPLES`` bootstraps
    of the blocks of days. The value of no row is NaN, the error of a single block None.
    """
    if not len(days):
        return DailyEstimate(float("nan"), None)
    block = blocks_of(days)
    blocks = [np.bincount(block, row).astype(np.float64) for row in terms]
    value, error = resampled(np.stack(blocks, axis=1), combine)
    return DailyEstimate(float(value), None if error is None else float(error))


def resampled(blocks: Array, combine: Callable[[Array], Array]) -> tuple[Array, Array | None]:
    """Return ``combine`` of [block, term] *blocks* summed, with its error over them, as ``figure``.

    Values may have axes of their own. The bootstrap's error is that of the blocks at hand, so it is
    widened by √(n ÷ (n - 1)).
    """
    count, value = len(blocks), combine(blocks.sum(axis=0)[None])[0]
    if count < 2:
        return value, None
    # A resample is how often each block was drawn, so all resamples together are one product.
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1.0 / count), RESAMPLES)
    spread = np.nanstd(combine(drawn.astype(np.float64) @ blocks), axis=0)
    return value, spread * (count / (count - 1)) ** 0.5


def mean(values: Array, days: NDArray[np.int64]) -> DailyEstimate:
    """Return the mean of *values*; NaN of none."""
    if not len(values):
        return DailyEstimate(float("nan"), None)
    error = mean_error(np.asarray(values, dtype=np.float64), days)
    return DailyEstimate(float(values.mean()), error)


def estimate(values: Array, days: NDArray[np.int64]) -> tuple[float, float | None]:
    """Return the mean of *values* [decision] with its error over days, rounded to be shown."""
    average = mean(values, days)
    return round(average.value, 6), average.rounded(6)[1]


def hits_of(forecast: Array, value: Array) -> Array:
    """Return 1 where the sign was right, else 0; a half without a sign, NaN where nothing moved."""
    sign, moved = np.sign(forecast), np.sign(value)
    hit = np.where(sign == 0, 0.5, (sign == moved).astype(np.float64))
    return np.where(moved == 0, np.nan, hit)


def crps_of(location: Array, scale: Array, dof: Array, value: Array) -> Array:
    """Return the continuous ranked probability score of Student t forecasts, by row.

    It is the integral of the squared distance of the forecast's distribution from a step at
    *value*, in its unit. The degrees of freedom must be above 1; many make a normal law. Source:
    Jordan, Krueger and Lerch, Evaluating probabilistic forecasts with scoringRules, 2019.
    """
    z = (value - location) / scale
    log_density = -0.5 * np.log(dof) - betaln(0.5, dof / 2) - (dof + 1) / 2 * np.log1p(z * z / dof)
    spread = (dof + z * z) / (dof - 1.0)
    separation = (
        np.exp(betaln(0.5, dof - 0.5) - 2 * betaln(0.5, dof / 2)) * np.sqrt(dof) / (dof - 1.0)
    )
    inner = z * (2 * stdtr(dof, z) - 1) + 2 * np.exp(log_density) * spread - 2 * separation
    return scale * inner


def qlike_of(forecast: Array, variance: Array) -> Array:
    """Return v ÷ f - log(v ÷ f) - 1 of each row (Patton, 2011); both have the same floor."""
    ratio = np.maximum(variance, VARIANCE_FLOOR) / np.maximum(forecast, VARIANCE_FLOOR)
    return ratio - np.log(ratio) - 1.0


def inside(location: Array, scale: Array, dof: Array, value: Array, share: float) -> Array:
    """Return 1 where *value* lay in the Student t's central interval of that *share*, else 0."""
    half = stdtrit(dof, 0.5 + share / 2) * scale
    return (np.abs(value - location) <= half).astype(np.float64)


def brier_of(probability: Array, classes: NDArray[np.int64]) -> Array:
    """Return the squared distance of [row, class] probabilities from what happened, by row."""
    happened = np.eye(probability.shape[1])[classes]
    return ((probability - happened) ** 2).sum(axis=1)


def top(measure: Array, coverage: float) -> NDArray[np.bool_]:
    """Return which rows hold the largest *measure*, a *coverage* share of all; ties by order."""
    count = max(round(coverage * len(measure)), 1)
    chosen = np.zeros(len(measure), dtype=np.bool_)
    chosen[np.argsort(-measure, kind="stable")[:count]] = True
    return chosen


# --- differences of losses on the same bars


class DayDifference(NamedTuple):
    """A difference with its standard error over days, and how likely chance alone makes it."""

    value: float
    error: float | None  # None of a single block of days
    days: int
    p: float  # two-sided; 1 where it cannot be said

    @property
    def pair(self) -> tuple[float, float | None]:
        """Value and error."""
        return self.value, self.error

    def rounded(self) -> list[float | None]:
        """Return value, error and p to five significant digits, as a card holds them."""
        error = None if self.error is None else float(f"{self.error:.5g}")
        return [float(f"{self.value:.5g}"), error, float(f"{self.p:.5g}")]


def compared(difference: DailyEstimate, days: int) -> DayDifference:
    """Return *difference*, of so many days, against zero."""
    tested = DayDifference(difference.value, difference.error, days, 1.0)
    return tested._replace(p=chance(tested))


def chance(difference: DayDifference) -> float:
    """Return how likely chance alone makes a difference of such an error, in either direction.

    By Student's t of its blocks of days less one; 1 where the error is not known.
    """
    blocks = difference.days // BLOCK_DAYS
    if blocks < 2 or not difference.error:
        return 1.0
    return 2.0 * float(stdtr(blocks - 1, -abs(difference.value) / difference.error))


def difference(first: Array, second: Array, days: NDArray[np.int64]) -> DayDifference:
    """Return the mean of *first* less *second*, bar by bar, over [row]."""
    return compared(mean(first - second, days), len(np.unique(days)))


def holm(values: Sequence[float]) -> list[float]:
    """Return the p-values *values* corrected for their number (Holm, 1979), in their order."""
    order = sorted(range(len(values)), key=values.__getitem__)
    corrected, least = [0.0] * len(values), 0.0
    for rank, place in enumerate(order):
        least = max(least, min(1.0, (len(values) - rank) * values[place]))
        corrected[place] = least
    return corrected


def corrected(every: Mapping[K, DayDifference]) -> dict[K, DayDifference]:
    """Return *every* comparison with its p-value corrected for the number of candidates."""
    values = holm([each.p for each in every.values()])
    return {name: each._replace(p=p) for (name, each), p in zip(every.items(), values, strict=True)}


def verdict(difference: DayDifference, *, is_less_better: bool = True) -> str:
    """Return ``better``, ``worse``, or ``level`` where chance explains the difference."""
    if not difference.p < LEVEL:
        return "level"
    return "better" if (difference.value < 0) == is_less_better else "worse"


# --- selective prediction


COVERAGES: Final = (0.5, 0.2, 0.1, 0.05)
"""At which a card says what the surest bars gain."""
RISK_COVERAGES: Final = np.linspace(0.05, 1.0, 20)
"""Of the risk–coverage curve."""
_SEED: Final = 20_170_817  # of ties


class RankedBars(NamedTuple):
    """Bars of one horizon: what each costs if it is answered, how sure it was, and its day."""

    risk: Array
    measure: Array  # higher is surer; NaN leaves a bar out
    days: NDArray[np.int64]


class RiskCurve(NamedTuple):
    """Mean risk of the surest ``RISK_COVERAGES``, less that of a random gate as sure.

    ``area`` is the mean of ``excess``; below zero the measure helps.
    """

    risk: float  # of all bars, which a random gate keeps
    excess: Array
    errors: Array | None  # of ``excess``; None of a single block of days
    area: DayDifference
    bars: int

    @property
    def gain(self) -> DailyEstimate:
        """What a measure gains over chance, in the mean over the coverages."""
        return DailyEstimate(-self.area.value, self.area.error)

    def gained(self) -> dict[str, Any]:
        """Return the gain of the surest of ``COVERAGES`` over a random gate, as a card has it."""
        at = [int(np.abs(RISK_COVERAGES - share).argmin()) for share in COVERAGES]
        errors = (None,) * len(at) if self.errors is None else self.errors[at].tolist()
        pairs = zip((-self.excess[at]).tolist(), errors, strict=True)
        gains, noise = zip(*(DailyEstimate(*pair).rounded() for pair in pairs), strict=True)
        area, days = round(self.area.value, 5), self.area.days
        return {"gained": [*gains], "error": [*noise], "area": area, "days": days}


def risk_curve(parts: Sequence[RankedBars], rivals: Sequence[RankedBars] = ()) -> RiskCurve | None:
    """Return the curve pooled over *parts*, each ranked by itself; None where no bar is ranked.

    The surest bars are those of the whole part, ties in drawn order. Blocks are drawn for all parts
    together, since horizons share their market. With *rivals*, of the same bars by another measure,
    it is the curve less theirs.
    """
    ranked = [_finite(part) for part in (*parts, *rivals)]
    signs = [1.0] * len(parts) + [-1.0] * len(rivals)
    both = [(part, sign) for part, sign in zip(ranked, signs, strict=True) if len(part.risk)]
    if not both:
        return None
    ranked = [part for part, _ in both]
    shares = np.array([sign for _, sign in both])[:, None]
    shares /= np.count_nonzero(shares > 0)
    days = np.concatenate([part.days for part in ranked])
    blocks = np.split(blocks_of(days), np.cumsum([len(part.days) for part in ranked])[:-1])
    count = 1 + max(int(block.max()) for block in blocks)
    sums = [_bucketed(part, block, count) for part, block in zip(ranked, blocks, strict=True)]
    size = len(RISK_COVERAGES)

    def excess(sums: Array) -> Array:
        """Return [.., coverage and their mean] of sums [.., part × (risk, count) × bucket]."""
        totals = sums.reshape(len(sums), len(ranked), 2, size).cumsum(axis=-1)
        risk = totals[:, :, 0] / np.maximum(totals[:, :, 1], 1.0)
        pooled = ((risk - risk[:, :, -1:]) * shares).sum(axis=1)
        return np.column_stack([pooled, pooled.mean(axis=1)])

    value, error = resampled(np.concatenate(sums, axis=1), excess)
    area = DailyEstimate(float(value[-1]), None if error is None else float(error[-1]))
    return RiskCurve(
        float(np.mean([part.risk.mean() for part in ranked])),
        value[:-1],
        None if error is None else error[:-1],
        compared(area, len(np.unique(days))),
        sum(len(part.risk) for part, sign in both if sign > 0),
    )


def _finite(part: RankedBars) -> RankedBars:
    finite = np.isfinite(part.measure) & np.isfinite(part.risk)
    return RankedBars(part.risk[finite], part.measure[finite], part.days[finite])


def _bucketed(part: RankedBars, block: NDArray[np.int64], blocks: int) -> Array:
    """Return [block, 2 × coverage]: risk, then bars, that each step of coverage adds."""
    count = len(part.risk)
    drawn = np.random.default_rng(_SEED).random(count)
    place = np.empty(count, dtype=np.int64)
    place[np.lexsort((drawn, -part.measure))] = np.arange(count)
    # The last step holds what is left, whatever rounding did.
    steps = np.round(RISK_COVERAGES[:-1] * count).astype(np.int64)
    size = len(RISK_COVERAGES)
    cell = block * size
    cell += np.searchsorted(steps, place, side="right")
    sums = [np.bincount(cell, of, blocks * size) for of in (part.risk, np.ones(count))]
    tables = [each.reshape(blocks, size).astype(np.float64) for each in sums]
    return np.concatenate(tables, axis=1)


# --- selection


def overfitting(scores: Array) -> float | None:
    """Return the probability that the best of [group, candidate] *scores* is no better elsewhere.

    Lower scores are better. Of every half of the groups the best candidate is taken, and ranked on
    the other half: the share of halves where it is in the worse half of the candidates (Bailey,
    Borwein, López de Prado and Zhu, 2015). None for fewer than two candidates or four groups; of an
    odd number of groups the last is left out.
    """
    groups, candidates = scores.shape
    groups -= groups % 2
    if groups < 4 or candidates < 2:
        return None
    return lost_elsewhere(scores[:groups, None], lambda sums: -sums[0])
