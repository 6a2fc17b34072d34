"""Indicators over arrays, with the names, defaults and values of TA-Lib.

Each takes float64 arrays of one length, oldest first, such as the columns of ``context.history``,
and returns an array of that length that begins with NaN where too few rows precede. Row i depends
on rows up to i alone. Given the same array, values equal TA-Lib's within 1e-9 of their scale.

What is smoothed endlessly (``ema``, ``macd``, ``rsi``, ``atr``, ``natr``, ``adx``) follows from
where the array begins. ``context.history`` always holds the last ``warmup`` bars, so its newest
value is the same after a restart; but yesterday's value, read off today's array, is not the one
that yesterday saw: an endless smoothing depends on bars that a restart no longer has. With
``window`` each value follows from the last so many rows alone, wherever the array begins. It
differs from the endless one by at most (1 - a)^(window - period) of the spread of what is
smoothed, where a is 2 / (period + 1) for ``ema`` and 1 / period for the others.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import accumulate
from math import isnan
from typing import Final

import numpy as np
import numpy.typing as npt

from tracepaper.strategies.errors import StrategyFailed

__all__ = [
    "adx",
    "atr",
    "bbands",
    "cci",
    "donchian",
    "ema",
    "highest",
    "linearreg",
    "lowest",
    "macd",
    "mom",
    "natr",
    "obv",
    "roc",
    "rsi",
    "sma",
    "stddev",
    "stoch",
    "trange",
    "vwap",
    "willr",
    "zscore",
]

Floats = npt.NDArray[np.float64]

_NOTHING: Final = 1e-14  # what TA-Lib takes for zero


# ---------------------------------------------------------------- averages


def sma(values: Floats, period: int = 30) -> Floats:
    """Return the mean of the last *period* values."""
    return _padded(_means(values, period), values.size)


def ema(values: Floats, period: int = 30, *, window: int | None = None) -> Floats:
    """Return the mean that weighs each value 1 - 2 / (period + 1) times the next one.

    It begins with the plain mean of *period* values: the first of the array, or of each *window*.
    """
    return _padded(_smoothed(values, period, 2 / (period + 1), window), values.size)


def macd(
    values: Floats,
    fast: int = 12,
    slow: int = 26,
    signal: int = 9,
    *,
    window: int | None = None,
) -> tuple[Floats, Floats, Floats]:
    """Return fast less slow ``ema``, the ``ema`` of that, and their difference.

    With *window* the second and third depend on the last 2 x window - 1 rows.
    """
    if window is None:  # both averages begin at the same row
        quick = _smoothed(values[slow - fast :], fast, 2 / (fast + 1), None)
        line = quick - _smoothed(values, slow, 2 / (slow + 1), None)
    else:
        quick = _smoothed(values, fast, 2 / (fast + 1), window)
        line = quick - _smoothed(values, slow, 2 / (slow + 1), window)
    mean = _smoothed(line, signal, 2 / (signal + 1), window)
    line = line[line.size - mean.size :]
    size = values.size
    return _padded(line, size), _padded(mean, size), _padded(line - mean, size)


def vwap(high: Floats, low: Floats, close: Floats, volume: Floats, period: int = 30) -> Floats:
    """Return the mean typical price of the last *period* bars, weighed by volume (not in TA-Lib).

    NaN where nothing was traded.
    """
    money = _windows((high + low + close) / 3 * volume, period).sum(axis=1)
    return _padded(_ratio(money, _windows(volume, period).sum(axis=1), np.nan), close.size)


# ---------------------------------------------------------------- spread


def stddev(values: Floats, period: int = 5, deviations: float = 1.0) -> Floats:
    """Return *deviations* standard deviations (of the population) of the last *period* values."""
    return _padded(deviations * _deviations(values, period), values.size)


def zscore(values: Floats, period: int = 30) -> Floats:
    """Return how many of their deviations the value is above the mean of the last *period*.

    NaN where they do not vary (not in TA-Lib).
    """
    means = _means(values, period)
    off = values[values.size - means.size :] - means
    known = _windows(values, period)
    varies = np.maximum.reduce(known, axis=1) > np.minimum.reduce(known, axis=1)
    found = _ratio(off, np.where(varies, _deviations(values, period), 0.0), np.nan)
    return _padded(found, values.size)


def bbands(
    values: Floats, period: int = 20, up: float = 2.0, down: float = 2.0
) -> tuple[Floats, Floats, Floats]:
    """Return Bollinger's bands: upper, middle (``sma``) and lower."""
    middle, deviation = sma(values, period), stddev(values, period)
    return middle + up * deviation, middle, middle - down * deviation


def trange(high: Floats, low: Floats, close: Floats) -> Floats:
    """Return the true range: of the bar and the close before it."""
    return _padded(_true_ranges(high, low, close), close.size)


def atr(
    high: Floats, low: Floats, close: Floats, period: int = 14, *, window: int | None = None
) -> Floats:
    """Return the mean true range, smoothed as Wilder does: by 1 / period."""
    ranges = _true_ranges(high, low, close)
    of_ranges = None if window is None else window - 1
    return _padded(_smoothed(ranges, period, 1 / period, of_ranges), close.size)


def natr(
    high: Floats, low: Floats, close: Floats, period: int = 14, *, window: int | None = None
) -> Floats:
    """Return ``atr`` in per cent of the close."""
    return 100 * _ratio(atr(high, low, close, period, window=window), close, 0.0)


def highest(values: Floats, period: int = 30) -> Floats:
    """Return the highest of the last *period* values: TA-Lib's MAX."""
    return _padded(np.maximum.reduce(_windows(values, period), axis=1), values.size)


def lowest(values: Floats, period: int = 30) -> Floats:
    """Return the lowest of the last *period* values: TA-Lib's MIN."""
    return _padded(np.minimum.reduce(_windows(values, period), axis=1), values.size)


def donchian(high: Floats, low: Floats, period: int = 20) -> tuple[Floats, Floats, Floats]:
    """Return the channel of the last *period* bars: upper, middle and lower (not in TA-Lib)."""
    upper, lower = highest(high, period), lowest(low, period)
    return upper, (upper + lower) / 2, lower


# ---------------------------------------------------------------- momentum


def mom(values: Floats, period: int = 10) -> Floats:
    """Return the change over *period* rows."""
    return _padded(values[_whole(period) :] - values[:-period], values.size)


def roc(values: Floats, period: int = 10) -> Floats:
    """Return the change over *period* rows in per cent; 0 where it began at 0."""
    before = values[: -_whole(period)]
    return _padded(100 * _ratio(values[period:] - before, before, 0.0), values.size)


def rsi(values: Floats, period: int = 14, *, window: int | None = None) -> Floats:
    """Return Wilder's strength: rises in per cent of all changes, both smoothed by 1 / period."""
    changes = values[1:] - values[:-1]
    of_changes = None if window is None else window - 1
    net = _smoothed(changes, period, 1 / period, of_changes)
    all_ = _smoothed(np.abs(changes), period, 1 / period, of_changes)
    return _padded(50 * _ratio(net + all_, all_, 0.0), values.size)


def stoch(
    high: Floats,
    low: Floats,
    close: Floats,
    fastk: int = 5,
    slowk: int = 3,
    slowd: int = 3,
) -> tuple[Floats, Floats]:
    """Return where the close stands in the range of *fastk* bars, in per cent: slow K and D."""
    top, bottom = highest(high, fastk)[fastk - 1 :], lowest(low, fastk)[fastk - 1 :]
    fast = 100 * _ratio(close[close.size - top.size :] - bottom, top - bottom, 0.0)
    slow = _means(fast, slowk)
    mean = _means(slow, slowd)
    return _padded(slow[slow.size - mean.size :], close.size), _padded(mean, close.size)


def willr(high: Floats, low: Floats, close: Floats, period: int = 14) -> Floats:
    """Return how far the close is below the high of *period* bars, in per cent of their range."""
    top, bottom = highest(high, period), lowest(low, period)
    return -100 * _ratio(top - close, top - bottom, 0.0)


def cci(high: Floats, low: Floats, close: Floats, period: int = 14) -> Floats:
    """Return the typical price's distance from its mean, in 0.015 mean deviations."""
    typical = (high + low + close) / 3
    mean = _means(typical, period)
    apart = np.abs(_windows(typical, period) - mean[:, None]).sum(axis=1) / period
    off = typical[typical.size - mean.size :] - mean
    return _padded(_ratio(off, 0.015 * apart, 0.0), close.size)


def adx(
    high: Floats, low: Floats, close: Floats, period: int = 14, *, window: int | None = None
) -> Floats:
    """Return Wilder's directional index: how much of the movement goes one way, in per cent.

    With *window* it depends on the last 2 x window - 1 rows.
    """
    up, down = high[1:] - high[:-1], low[:-1] - low[1:]
    moves = (
        np.where((up > 0) & (up > down), up, 0.0),
        np.where((down > 0) & (down > up), down, 0.0),
        _true_ranges(high, low, close),
    )
    of_moves = None if window is None else window - 1
    plus, minus, ranges = (_wilder_sums(move, period, of_moves) for move in moves)
    both = plus + minus
    index = 100 * _ratio(np.abs(plus - minus), both, np.nan)
    index[np.abs(ranges) < _NOTHING] = np.nan
    return _padded(_smoothed_known(index, period, window), close.size)


# ---------------------------------------------------------------- volume and fit


def obv(close: Floats, volume: Floats, *, window: int | None = None) -> Floats:
    """Return volume added where the close rose and taken off where it fell, from the first row on.

    Its level means nothing, since it follows from where the array begins; its changes do. With
    *window* it is the sum over the changes of the last so many rows.
    """
    changes = close[1:] - close[:-1]
    signed = np.sign(changes) * volume[1:]
    if window is not None:
        return _padded(_windows(signed, window - 1).sum(axis=1), close.size)
    return np.cumsum(np.concatenate([volume[:1], signed]))


def linearreg(values: Floats, period: int = 14) -> Floats:
    """Return the end of the straight line through the last *period* values (least squares)."""
    return _padded(_weighted_sums(values, _line_weights(period)), values.size)


# ---------------------------------------------------------------- what they are made of


def _windows(values: Floats, period: int) -> Floats:
    """Return the rows' windows, (rows - period + 1, period); none where there are fewer rows."""
    rows = max(values.size - _whole(period) + 1, 0)
    held = np.ascontiguousarray(values)
    return np.ndarray((rows, period), held.dtype, held, 0, held.strides * 2)


def _whole(period: int) -> int:
    if period < 1:
        raise StrategyFailed(f"An indicator's period of {period} is too short; give 1 or more.")
    return period


def _weighted_sums(values: Floats, weights: Floats) -> Floats:
    """Return the weighted sum of each window; *weights* are oldest first."""
    return np.correlate(values, weights, "valid") if values.size >= weights.size else values[:0]


def _means(values: Floats, period: int) -> Floats:
    return _weighted_sums(values, _equal_weights(period))


def _deviations(values: Floats, period: int) -> Floats:
    off = _windows(values, period) - _means(values, period)[:, None]
    return np.sqrt(np.multiply(off, off, out=off).sum(axis=1) / period)


def _padded(values: Floats, size: int) -> Floats:
    """Pad *values* with leading NaN to *size* rows."""
    padded = np.empty(size)
    padded.fill(np.nan)
    if values.size:
        padded[size - values.size :] = values
    return padded


def _ratio(above: Floats, below: Floats, otherwise: float) -> Floats:
    """Return *above* / *below*, and *otherwise* where *below* is 0."""
    nothing = np.abs(below) < _NOTHING
    if not np.count_nonzero(nothing):
        return above / below
    found = np.full(above.shape, otherwise)
    np.divide(above, below, out=found, where=~nothing)
    return found


def _true_ranges(high: Floats, low: Floats, close: Floats) -> Floats:
    """Return the true range of each bar but the first."""
    before = close[:-1]
    return np.maximum(high[1:], before) - np.minimum(low[1:], before)


def _smoothed(values: Floats, period: int, share: float, window: int | None) -> Floats:
    """Return the mean of the first *period* values, then exponentially smoothed by *share*."""
    if window is not None:
        return _weighted_sums(values, _weights(_at_least(window, period), period, share))
    if values.size < _whole(period):
        return values[:0]
    rest = values[period:].tolist()
    first = float(values[:period].mean())
    return np.array(
        list(accumulate(rest, lambda mean, value: mean + share * (value - mean), initial=first))
    )


def _at_least(window: int, period: int) -> int:
    if window < _whole(period):
        raise StrategyFailed(
            f"An indicator's window of {window} rows is too short for its period; give a longer "
            "one, such as ten periods."
        )
    return window


@lru_cache(maxsize=64)
def _weights(window: int, period: int, share: float) -> Floats:
    """Return the weights of a window's values in its smoothed mean, oldest first."""
    moved = window - period
    weights = np.empty(window)
    weights[:period] = (1 - share) ** moved / period
    weights[period:] = share * (1 - share) ** np.arange(moved - 1, -1, -1)
    return weights


def _wilder_sums(values: Floats, period: int, window: int | None) -> Floats:
    """Return Wilder's running sums: of period - 1 values, then less a share, plus the next."""
    kept = 1 - 1 / period
    if window is not None:
        ages = np.arange(_at_least(window, period) - 1, -1, -1)
        return _weighted_sums(values, kept ** np.minimum(ages, window - period + 1))
    if values.size < _whole(period):
        return values[:0]
    first = float(values[: period - 1].sum())
    rest = values[period - 1 :].tolist()
    sums = list(accumulate(rest, lambda total, value: total * kept + value, initial=first))
    return np.array(sums[1:])


def _smoothed_known(values: Floats, period: int, window: int | None) -> Floats:
    """Return *values* smoothed by 1 / period; a NaN leaves the mean unchanged."""
    if not np.isnan(values).any():
        return _smoothed(values, period, 1 / period, window)
    if window is not None:
        return np.array(
            [_smoothed_known(part, period, None)[-1] for part in _windows(values, window)]
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
def _equal_weights(period: int) -> Floats:
    return np.full(_whole(period), 1 / period)


@lru_cache(maxsize=64)
def _line_weights(period: int) -> Floats:
    """Return the weights of a window's values at the end of the line through them."""
    at = np.arange(_whole(period)) - (period - 1) / 2
    spread = float((at**2).sum())
    return _equal_weights(period) + (at * at[-1] / spread if spread else 0.0)
