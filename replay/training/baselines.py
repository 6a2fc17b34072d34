"""What a forecast must beat: persistence, seasonal naive, ridge, EWMA, HAR, and chance.

Returns are in units of σ √h and variances of that unit squared, as the network's are. Each
baseline is fitted on the training part alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from tracepaper.replay.training.samples import VARIANCE_FLOOR
from tracepaper.replay.training.series import Segment
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.features_rolling import Array
from tracepaper.strategies.market import DAY_MS, HOUR_MS, MINUTE_MS

HAR_TIMES: Final = (5 * MINUTE_MS, 30 * MINUTE_MS, 4 * HOUR_MS, DAY_MS, 5 * DAY_MS, 20 * DAY_MS)
"""Windows of past variance, milliseconds; one that is shorter than a bar is that bar's."""
EWMA_DECAY: Final = 0.98
RIDGE: Final = 1e-3
"""Ridge penalty per row, in units of the features' own variance of about one."""


def past_return(segment: Segment, horizon: int, *, days: int = 0) -> Array:
    """Return [time]: the scaled return over the last *horizon* bars, or that *days* ago.

    Zero where the segment does not reach back so far. With *days*, the return over the same
    clock time as the one forecast.
    """
    lag = days * segment.bars_a_day
    ends = np.arange(len(segment)) - lag + (horizon if days else 0)
    starts = ends - horizon
    # A horizon longer than the lag would end after the bar: that return is the future.
    known = (starts >= 0) & (ends < len(segment)) & (ends <= np.arange(len(segment)))
    logs = np.log(segment.close)
    found = np.zeros(len(segment))
    moves = logs[ends[known]] - logs[starts[known]]
    found[known] = moves / (segment.sigma[known] * np.sqrt(horizon))
    return np.nan_to_num(found)


def har_windows(interval_ms: int) -> tuple[int, ...]:
    """Return ``HAR_TIMES`` in bars of *interval_ms*, a bar at least."""
    return tuple(max(time_ms // interval_ms, 1) for time_ms in HAR_TIMES)


def past_variances(segment: Segment) -> Array:
    """Return [window + 1, time]: mean squared return over ``HAR_TIMES``, and EWMA, ÷ σ²."""
    logs = np.log(segment.close)
    squares = np.diff(logs, prepend=logs[0]) ** 2
    total = np.concatenate([[0.0], np.cumsum(squares)])
    stops = np.arange(1, len(squares) + 1)
    rows = []
    for window in har_windows(segment.interval_ms):
        starts = np.maximum(stops - window, 0)
        rows.append((total[stops] - total[starts]) / (stops - starts))
    # The filter begins at a usual variance: from zero it would take hundreds of bars to warm.
    start = np.full(1, squares[:60].mean() * EWMA_DECAY)
    smoothed, _ = lfilter([1 - EWMA_DECAY], [1, -EWMA_DECAY], squares, zi=start)
    scaled: Array = np.stack([*rows, smoothed]) / segment.sigma**2
    return scaled


@dataclass(frozen=True)
class Ridge:
    """A linear answer [horizon] to a row; columns are centred on the training part."""

    centre: Array
    weights: Array
    intercept: Array

    def predict(self, rows: NDArray[np.floating]) -> Array:
        """Return [time, horizon] answers to [time, column] *rows*."""
        found: Array = (rows - self.centre) @ self.weights + self.intercept
        return found


def ridge(rows: Sequence[NDArray[np.floating]], values: Sequence[NDArray[np.floating]]) -> Ridge:
    """Fit *values* [time, horizon] on *rows* [time, column], segment by segment, in closed form.

    Values that are NaN are left out, a horizon at a time.
    """
    columns, horizons = rows[0].shape[1], values[0].shape[1]
    count = sum(len(part) for part in rows)
    centre = np.sum([part.sum(axis=0, dtype=np.float64) for part in rows], axis=0) / count
    weights, intercept = np.zeros((columns, horizons)), np.zeros(horizons)
    for column in range(horizons):
        gram, moment = RIDGE * np.eye(columns), np.zeros(columns)
        known = [np.isfinite(part[:, column]) for part in values]
        size = max(sum(int(mask.sum()) for mask in known), 1)
        total = sum(
            float(part[mask, column].sum(dtype=np.float64))
            for part, mask in zip(values, known, strict=True)
        )
        intercept[column] = total / size
        for part, value, mask in zip(rows, values, known, strict=True):
            # Sums over a million float32 squares lose the digits that the solution needs.
            shifted = part[mask].astype(np.float64) - centre
            gram += shifted.T @ shifted / size
            moment += shifted.T @ (value[mask, column] - intercept[column]) / size
        weights[:, column] = np.linalg.solve(gram, moment)
    return Ridge(centre, weights, intercept)


@dataclass(frozen=True)
class LogVariance:
    """Variance as the exponential of a linear answer, times the factor that QLIKE asks for."""

    linear: Ridge
    factor: Array

    def predict(self, rows: NDArray[np.floating]) -> Array:
        """Return [time, horizon] variances for [time, column] *rows*."""
        found: Array = np.exp(self.linear.predict(rows)) * self.factor
        return found


def log_variance(
    rows: Sequence[NDArray[np.floating]], variances: Sequence[NDArray[np.floating]]
) -> LogVariance:
    """Fit log variances; the factor, the mean of v ÷ f, minimises QLIKE on the training part."""
    linear = ridge(rows, [np.log(np.maximum(part, VARIANCE_FLOOR)) for part in variances])
    ratios = [part / np.exp(linear.predict(row)) for row, part in zip(rows, variances, strict=True)]
    return LogVariance(linear, np.nanmean(np.concatenate(ratios), axis=0))


def log_rows(variances: Array) -> Array:
    """Return [time, column] logarithms of [column, time] past variances, floored."""
    return np.log(np.maximum(variances, VARIANCE_FLOOR)).T


# --- the registry


class Training(NamedTuple):
    """What baselines are fitted on, a part a segment; what is not labelled is NaN."""

    rows: list[NDArray[np.float32]]  # [time, feature]
    returns: list[NDArray[np.float32]]  # [time, horizon]
    variances: list[NDArray[np.float32]]  # [time, horizon]
    past: list[Array]  # [window + 1, time], of ``past_variances``


class Asked(NamedTuple):
    """Some bars of one segment that are to be forecast at one horizon."""

    segment: Segment
    rows: NDArray[np.int64]
    past: Array  # [window + 1, row], of ``past_variances``
    horizon: int  # bars
    column: int  # of the horizon


Answer = Callable[[Asked], Array]
"""What a fitted baseline says of each row: [row]."""


class Baseline(NamedTuple):
    """A forecast without a network that every table shows beside the network's."""

    name: str
    of: Literal["mean", "variance"]
    fit: Callable[[Training], Answer]


BASELINES: Final[dict[str, Baseline]] = {}
"""Every baseline by its name, in the order of the tables."""


def baseline(
    name: str, *, of: Literal["mean", "variance"]
) -> Callable[[Callable[[Training], Answer]], Callable[[Training], Answer]]:
    """Register what fits a baseline of the scaled return's mean or of its variance.

    Raises ``ConfigInvalid`` for a name that is taken.
    """

    def known(fit: Callable[[Training], Answer]) -> Callable[[Training], Answer]:
        if name in BASELINES:
            raise ConfigInvalid(f"There is a baseline called {name} already.")
        BASELINES[name] = Baseline(name, of, fit)
        return fit

    return known


@baseline("ridge", of="mean")
def _ridge(training: Training) -> Answer:
    fitted = ridge(training.rows, training.returns)
    return lambda asked: fitted.predict(asked.segment.values[asked.rows])[:, asked.column]


@baseline("persistence", of="mean")
def _persistence(_: Training) -> Answer:
    return lambda asked: past_return(asked.segment, asked.horizon)[asked.rows]


@baseline("reversed_persistence", of="mean")
def _reversed_persistence(_: Training) -> Answer:
    return lambda asked: -past_return(asked.segment, asked.horizon)[asked.rows]


@baseline("seasonal_naive", of="mean")
def _seasonal_naive(_: Training) -> Answer:
    return lambda asked: past_return(asked.segment, asked.horizon, days=1)[asked.rows]


@baseline("har", of="variance")
def _har(training: Training) -> Answer:
    fitted = log_variance([log_rows(past) for past in training.past], training.variances)
    return lambda asked: fitted.predict(log_rows(asked.past))[:, asked.column]


@baseline("log_linear", of="variance")
def _log_linear(training: Training) -> Answer:
    fitted = log_variance(training.rows, training.variances)
    return lambda asked: fitted.predict(asked.segment.values[asked.rows])[:, asked.column]


@baseline("ewma", of="variance")
def _ewma(training: Training) -> Answer:
    ratios = [
        variance / past[-1][:, None]
        for variance, past in zip(training.variances, training.past, strict=True)
    ]
    factor = np.nanmean(np.concatenate(ratios), axis=0)
    return lambda asked: asked.past[-1] * factor[asked.column]
