"""Sums, means and smoothing over windows of an array; the building blocks of indicators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from itertools import accumulate
from math import ceil, isnan, log, log1p
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tracepaper.strategies.errors import StrategyFailed

Floats = npt.NDArray[np.float64]
WEIGHT_LEFT: Final = 0.001
"""An infinite smoothing is settled once what is cut off, or it began with, weighs less."""

_Given = Mapping[str, Any]


def _exponential(*names: str) -> Callable[[_Given], tuple[float, ...]]:
    return lambda given: tuple(2 / (given[name] + 1) for name in names)


def _wilder(*names: str) -> Callable[[_Given], tuple[float, ...]]:
    return lambda given: tuple(1 / given[name] for name in names)


_SHARES: Final[Mapping[str, Callable[[_Given], tuple[float, ...]]]] = {
    **dict.fromkeys(("ema", "keltner"), _exponential("period")),
    "dema": _exponential("period", "period"),
    **dict.fromkeys(("tema", "trix"), _exponential("period", "period", "period")),
    "macd": _exponential("slow", "signal"),
    **dict.fromkeys(
        ("rma", "atr", "natr", "rsi", "stochrsi", "plus_di", "minus_di", "supertrend"),
        _wilder("period"),
    ),
    "adx": _wilder("period", "period"),
    "heikin_ashi": lambda _: (0.5,),
}
"""The shares of the smoothings that follow one another, by the name of an indicator."""


def smoothing_shares(name: str, given: Mapping[str, Any]) -> tuple[float, ...]:
    """Return the shares of the infinite smoothings of the indicator *name* with *given*."""
    return _SHARES[name](given) if name in _SHARES else ()


@lru_cache(maxsize=64)
def rows_to_settle(shares: tuple[float, ...]) -> int:
    """Return the rows after which all older ones weigh less than ``WEIGHT_LEFT``; 0 without any.

    The weights of smoothings that follow one another are the convolution of theirs.
    """
    each = [ceil(log(WEIGHT_LEFT) / log1p(-share)) + 1 for share in shares if share < 1]
    ages, weights = np.arange(sum(each)), np.ones(1)
    for share in shares:
        weights = np.convolve(weights, share * (1 - share) ** ages)[: ages.size]
    return int(np.argmax(1 - np.cumsum(weights) < WEIGHT_LEFT)) + 1 if each else 0


def windows(values: Floats, period: int) -> Floats:
    """Return views [rows - period + 1, period] of all windows; empty for fewer rows."""
    rows = max(values.size - checked_period(period) + 1, 0)
    base = np.ascontiguousarray(values)
    return np.ndarray((rows, period), base.dtype, base, 0, base.strides * 2)


def checked_period(period: int) -> int:
    """Return *period*; raise ``StrategyFailed`` if it is below 1."""
    if period < 1:
        raise StrategyFailed(f"An indicator's period of {period} is too short; give 1 or more.")
    return period


def weighted_sums(values: Floats, weights: Floats) -> Floats:
    """Return the weighted sum of each window; *weights* are oldest first."""
    return np.correlate(values, weights, "valid") if values.size >= weights.size else values[:0]


def rolling_means(values: Floats, period: int) -> Floats:
    """Return the mean of each window of *period* values."""
    return weighted_sums(values, equal_weights(period))


def rolling_deviations(values: Floats, period: int) -> Floats:
    """Return the standard deviation (of the population) of each window of *period* values."""
    off = windows(values, period) - rolling_means(values, period)[:, None]
    return np.sqrt(np.multiply(off, off, out=off).sum(axis=1) / period)


def padded(values: Floats, size: int) -> Floats:
    """Pad *values* with leading NaN to *size* rows."""
    padded = np.empty(size)
    padded.fill(np.nan)
    if values.size:
        padded[size - values.size :] = values
    return padded


def ratio(above: Floats, below: Floats, otherwise: float) -> Floats:
    """Return *above* / *below*, or *otherwise* where *below* is 0.

    Only 0 is 0: TA-Lib takes what is below 1e-14 for it, which a quiet or cheap coin reaches.
    """
    is_zero = below == 0
    if not np.count_nonzero(is_zero):
        return above / below
    quotient = np.full(above.shape, otherwise)
    np.divide(above, below, out=quotient, where=~is_zero)
    return quotient


def true_ranges(high: Floats, low: Floats, close: Floats) -> Floats:
    """Return the true range of each bar but the first."""
    before = close[:-1]
    return np.maximum(high[1:], before) - np.minimum(low[1:], before)


def smoothed(values: Floats, period: int, share: float, window: int | None) -> Floats:
    """Return the mean of the first *period* values, then exponentially smoothed by *share*.

    Without a *window* it begins after leading NaN, which another indicator's first rows are.
    """
    if window is not None:
        return weighted_sums(values, _weights(_at_least(window, period), period, share))
    values = from_first_known(values)
    if values.size < checked_period(period):
        return values[:0]
    rest = values[period:].tolist()
    first = float(values[:period].mean())
    return np.array(
        list(accumulate(rest, lambda mean, value: mean + share * (value - mean), initial=first))
    )


def from_first_known(values: Floats) -> Floats:
    """Return *values* without leading NaN."""
    if not values.size or values[0] == values[0]:
        return values
    known = np.flatnonzero(~np.isnan(values))
    return values[known[0] :] if known.size else values[:0]


def _at_least(window: int, period: int) -> int:
    if window < checked_period(period):
        raise StrategyFailed(
            f"An indicator's window of {window} rows is too short for its period; give a longer "
            "one, such as ten periods."
        )
    return window


@lru_cache(maxsize=64)
def _weights(window: int, period: int, share: float) -> Floats:
    """Return the weights of a window's values in its smoothed mean, oldest first."""
    updates = window - period
    weights = np.empty(window)
    weights[:period] = (1 - share) ** updates / period
    weights[period:] = share * (1 - share) ** np.arange(updates - 1, -1, -1)
    return weights


def wilder_sums(values: Floats, period: int, window: int | None) -> Floats:
    """Return Wilder's sums: that of period - 1 values, then × (1 - 1 / period) + the next value."""
    kept = 1 - 1 / period
    if window is not None:
        ages = np.arange(_at_least(window, period) - 1, -1, -1)
        return weighted_sums(values, kept ** np.minimum(ages, window - period + 1))
    if values.size < checked_period(period):
        return values[:0]
    first = float(values[: period - 1].sum())
    rest = values[period - 1 :].tolist()
    sums = list(accumulate(rest, lambda total, value: total * kept + value, initial=first))
    return np.array(sums[1:])


def smoothed_known(values: Floats, period: int, window: int | None) -> Floats:
    """Return *values* smoothed by 1 / period; a NaN leaves the mean unchanged."""
    if not np.isnan(values).any():
        return smoothed(values, period, 1 / period, window)
    if window is not None:
        return np.array(
            [smoothed_known(part, period, None)[-1] for part in windows(values, window)]
        )
    if values.size < period:
        return values[:0]
    first = float(np.nansum(values[:period])) / period
    means = accumulate(
        values[period:].tolist(),
        lambda mean, value: mean if isnan(value) else mean + (value - mean) / period,
        initial=first,
    )
    return np.array(list(means))


@lru_cache(maxsize=64)
def equal_weights(period: int) -> Floats:
    """Return the weights of a plain mean."""
    return np.full(checked_period(period), 1 / period)


@lru_cache(maxsize=64)
def rising_weights(period: int) -> Floats:
    """Return weights in proportion to 1, 2, ... *period*, oldest first; they sum to 1."""
    return np.arange(1, checked_period(period) + 1, dtype=np.float64) * (
        2 / (period * (period + 1))
    )


@lru_cache(maxsize=64)
def line_weights(period: int) -> Floats:
    """Return the weights that give the end of the least-squares line through a window."""
    at = np.arange(checked_period(period)) - (period - 1) / 2
    spread = float((at**2).sum())
    return equal_weights(period) + (at * at[-1] / spread if spread else 0.0)
