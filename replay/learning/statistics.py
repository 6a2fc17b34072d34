"""Figures of forecasts against what happened, each with its standard error over calendar days.

Bars of one day are not independent: labels overlap and symbols move together. So a figure's error
comes from resampling whole days. Every figure is a function of sums, and sums over days add up,
so that a resampled figure costs a few additions. Selective prediction asks what accuracy remains
when only the surest bars are answered, at equal coverage with gates that cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import softmax

from tracepaper.replay.learning.samples import VARIANCE_FLOOR
from tracepaper.strategies.features.rolling import Array

RESAMPLES: Final = 500
ECE_BINS: Final = 15
COVERAGE: Final = 0.9
LEAST_PROBABILITY: Final = 1e-9
"""A class that came is never taken to have had less: its log loss is finite."""


class DailyEstimate(NamedTuple):
    """A value and its standard error over days."""

    value: float
    error: float

    def rounded(self, digits: int = 5) -> list[float]:
        """Return both with so many decimals, as a card holds them."""
        return [round(self.value, digits), round(self.error, digits)]


def figure(
    terms: Array, days: NDArray[np.int64], combine: Callable[[Array], Array], *, seed: int = 0
) -> DailyEstimate:
    """Return ``combine`` of the summed [term, row] *terms*, with its error over *days* [row].

    ``combine`` maps sums [.., term] to values [..]; the error is that of ``RESAMPLES`` bootstraps.
    """
    daily = daily_sums(terms, days, np.unique(days))
    return bootstrapped(daily, combine, seed=seed)


def daily_sums(terms: Array, days: NDArray[np.int64], names: NDArray[np.int64]) -> Array:
    """Return [day, term]: the sums of [term, row] *terms* over each of the days *names*, rising."""
    day = np.searchsorted(names, days)
    sums = [np.bincount(day, row, len(names)).astype(np.float64) for row in terms]
    return np.stack(sums, axis=1)


def bootstrapped(
    daily: Array, combine: Callable[[Array], Array], *, seed: int = 0
) -> DailyEstimate:
    """Return ``combine`` of [day, term] *daily* summed over days, with its error over them."""
    # A resample is how often each day was drawn, so all resamples together are one product.
    count = len(daily)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1.0 / count), RESAMPLES)
    value = combine(daily.sum(axis=0)[None])
    return DailyEstimate(
        float(value[0]), float(np.nanstd(combine(drawn.astype(np.float64) @ daily)))
    )


def mean(values: Array, days: NDArray[np.int64]) -> DailyEstimate:
    """Return the mean of *values*."""
    return figure(np.stack([values, np.ones_like(values)]), days, lambda s: s[:, 0] / s[:, 1])


def estimate(values: Array, days: NDArray[np.int64]) -> tuple[float, float]:
    """Return the mean of *values* [decision] with its error over days, rounded to be shown."""
    found = mean(values, days)
    return round(found.value, 6), round(found.error, 6)


def correlation(first: Array, second: Array, days: NDArray[np.int64]) -> DailyEstimate:
    """Return Pearson's correlation; of forecasts and returns it is the information coefficient."""
    a, b = first - first.mean(), second - second.mean()
    terms = np.stack([np.ones_like(a), a, b, a * a, b * b, a * b])

    def combine(sums: Array) -> Array:
        n, x, y, xx, yy, xy = sums.T
        spread = (n * xx - x * x) * (n * yy - y * y)
        found: Array = (n * xy - x * y) / np.sqrt(np.maximum(spread, 1e-300))
        return found

    return figure(terms, days, combine)


def rank_correlation(first: Array, second: Array, days: NDArray[np.int64]) -> DailyEstimate:
    """Return Spearman's correlation: Pearson's of the ranks."""
    return correlation(stats.rankdata(first), stats.rankdata(second), days)


def sign_accuracy(forecast: Array, value: Array, days: NDArray[np.int64]) -> DailyEstimate:
    """Return the share of moved bars whose sign was forecast; half a hit where there is none."""
    moved = value != 0
    hit = np.where(forecast == 0, 0.5, np.sign(forecast) == np.sign(value))[moved]
    return mean(hit.astype(np.float64), days[moved])


def sign_risk(forecast: Array, value: Array) -> Array:
    """Return 1 where the sign was wrong, 0 where right; a half where nothing was said or moved."""
    said, came = np.sign(forecast), np.sign(value)
    risk: Array = np.where((said == 0) | (came == 0), 0.5, (said != came).astype(np.float64))
    return risk


def r_squared(forecast: Array, value: Array, days: NDArray[np.int64]) -> DailyEstimate:
    """Return 1 - squared error ÷ squared value: against a forecast of no move."""
    terms = np.stack([(value - forecast) ** 2, value * value])
    return figure(terms, days, lambda s: 1.0 - s[:, 0] / s[:, 1])


def qlike(forecast: Array, variance: Array, days: NDArray[np.int64]) -> DailyEstimate:
    """Return the mean of ``qlike_of``."""
    return mean(qlike_of(forecast, variance), days)


def qlike_of(forecast: Array, variance: Array) -> Array:
    """Return v ÷ f - log(v ÷ f) - 1 of each row (Patton, 2011); both have the same floor."""
    ratio = np.maximum(variance, VARIANCE_FLOOR) / np.maximum(forecast, VARIANCE_FLOOR)
    loss: Array = ratio - np.log(ratio) - 1.0
    return loss


def interval_coverage(
    location: Array, scale: Array, dof: Array, value: Array, days: NDArray[np.int64]
) -> DailyEstimate:
    """Return how often *value* lay in the Student t's central 90 % interval."""
    return mean(inside(location, scale, dof, value, COVERAGE), days)


def inside(location: Array, scale: Array, dof: Array, value: Array, share: float) -> Array:
    """Return 1 where *value* lay in the Student t's central interval of that *share*, else 0."""
    half = stats.t.ppf(0.5 + share / 2, dof) * scale
    found: Array = (np.abs(value - location) <= half).astype(np.float64)
    return found


def probabilities(logits: NDArray[np.float32], temperature: float) -> Array:
    """Return softmax of *logits* [.., class] at that temperature."""
    found: Array = softmax(logits.astype(np.float64) / temperature, axis=-1)
    return found


def brier_of(probability: Array, classes: NDArray[np.int64]) -> Array:
    """Return the squared distance of [row, class] probabilities from what happened, by row."""
    happened = np.eye(probability.shape[1])[classes]
    found: Array = ((probability - happened) ** 2).sum(axis=1)
    return found


def log_loss_of(probability: Array, classes: NDArray[np.int64]) -> Array:
    """Return minus the log of what [row, class] probabilities gave to what happened, by row."""
    given = probability[np.arange(len(classes)), classes]
    found: Array = -np.log(np.maximum(given, LEAST_PROBABILITY))
    return found


def climatology(classes: NDArray[np.int64], kinds: int) -> Array:
    """Return each class's share of all rows as the probability of every row, [row, class]."""
    shares = np.bincount(classes, minlength=kinds) / len(classes)
    return np.broadcast_to(shares, (len(classes), kinds))


def calibration_error(
    probability: Array, classes: NDArray[np.int64], days: NDArray[np.int64]
) -> DailyEstimate:
    """Return the expected calibration error of the top class over 15 equal bins (Guo, 2017)."""
    top = probability.argmax(axis=1)
    sure = probability[np.arange(len(top)), top]
    hit = (top == classes).astype(np.float64)
    bins = np.minimum((sure * ECE_BINS).astype(np.int64), ECE_BINS - 1)
    terms = np.concatenate(
        [np.where(bins == i, hit - sure, 0.0)[None] for i in range(ECE_BINS)]
        + [np.ones_like(hit)[None]]
    )
    return figure(terms, days, lambda s: np.abs(s[:, :-1]).sum(axis=1) / s[:, -1])


def macro_f1(
    probability: Array, classes: NDArray[np.int64], days: NDArray[np.int64]
) -> DailyEstimate:
    """Return the mean over classes of the harmonic mean of precision and recall."""
    top = probability.argmax(axis=1)
    rows = []
    for kind in range(probability.shape[1]):
        said, was = top == kind, classes == kind
        rows += [said & was, said.astype(np.int64) + was]
    terms = np.stack(rows).astype(np.float64)

    def combine(sums: Array) -> Array:
        found: Array = (2 * sums[:, ::2] / np.maximum(sums[:, 1::2], 1.0)).mean(axis=1)
        return found

    return figure(terms, days, combine)


# --- selective prediction

COVERAGES: Final = (0.5, 0.2, 0.1, 0.05)
_AREA_COVERAGES: Final = np.linspace(0.05, 1.0, 20)


def gained(hit: Array, measure: Array, coverage: float, days: NDArray[np.int64]) -> DailyEstimate:
    """Return the accuracy of the *coverage* share with the highest *measure*, less that of all.

    Chance gains nothing, so this is the comparison with a random gate of equal coverage.
    """
    chosen = top(measure, coverage).astype(np.float64)
    terms = np.stack([hit * chosen, chosen, hit, np.ones_like(hit)])
    return figure(terms, days, lambda s: s[:, 0] / np.maximum(s[:, 1], 1.0) - s[:, 2] / s[:, 3])


def top(measure: Array, coverage: float) -> NDArray[np.bool_]:
    """Return which rows hold the largest *measure*, a *coverage* share of all; ties by order."""
    count = max(round(coverage * len(measure)), 1)
    chosen = np.zeros(len(measure), dtype=np.bool_)
    chosen[np.argsort(-measure, kind="stable")[:count]] = True
    return chosen


def area(hit: Array, measure: Array) -> float:
    """Return the area under the risk–coverage curve, less that of a random gate; below 0 helps."""
    risk = 1.0 - hit
    order = np.argsort(-measure, kind="stable")
    cumulative = np.cumsum(risk[order])
    counts = np.maximum((_AREA_COVERAGES * len(hit)).astype(np.int64), 1)
    return float((cumulative[counts - 1] / counts - risk.mean()).mean())


def table(
    hit: Array, measures: Mapping[str, Array], days: NDArray[np.int64]
) -> dict[str, dict[str, list[float] | float]]:
    """Return for each measure the accuracy gained at ``COVERAGES``, its errors, and the area."""
    found: dict[str, dict[str, list[float] | float]] = {}
    for name, measure in measures.items():
        gains = [gained(hit, measure, coverage, days) for coverage in COVERAGES]
        found[name] = {
            "gained": [round(gain.value, 5) for gain in gains],
            "error": [round(gain.error, 5) for gain in gains],
            "area": round(area(hit, measure), 5),
        }
    return found


def area_gained(outcome: Array, measure: Array, days: NDArray[np.int64]) -> DailyEstimate:
    """Return how much better the *outcome* of the surest is than that of all, over all coverages.

    Chance gains nothing. Rows of equal *measure* share their ranks; the error is for those ranks.
    """
    weight = _rank_weights(measure)
    terms = np.stack([outcome * weight, weight, outcome, np.ones_like(outcome)])
    return figure(terms, days, lambda s: s[:, 0] / s[:, 1] - s[:, 2] / s[:, 3])


def area_gained_more(
    outcome: Array, first: Array, second: Array, days: NDArray[np.int64]
) -> DailyEstimate:
    """Return how much more the measure *first* gains than *second*, on the same days."""
    one, two = _rank_weights(first), _rank_weights(second)
    terms = np.stack([outcome * one, one, outcome * two, two])
    return figure(terms, days, lambda s: s[:, 0] / s[:, 1] - s[:, 2] / s[:, 3])


def _rank_weights(measure: Array) -> Array:
    """Return in how many of the coverages 1/n … 1 a row is answered, each divided by its rows."""
    order = np.argsort(-measure, kind="stable")
    weight = np.empty(len(measure))
    weight[order] = np.cumsum(1.0 / np.arange(len(measure), 0, -1.0))[::-1]
    _, tied = np.unique(measure, return_inverse=True)
    shared: Array = (np.bincount(tied, weight) / np.bincount(tied))[tied]
    return shared
