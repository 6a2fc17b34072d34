"""Indicators over arrays, with the names, defaults and values of TA-Lib.

Each takes columns of numbers of equal length, oldest first: arrays such as those of
``context.history``, lists, or Series of pandas or polars. It returns a float64 array of that
length, with leading NaN where too few rows precede. Row i depends only on rows up to i. Given the
same numbers, values equal TA-Lib's within 1e-9 of their scale.

Infinite smoothing (all functions with a ``window`` parameter, such as ``ema``, ``rsi`` and ``atr``)
depends on where the array begins. ``context.history`` always holds the last ``warmup`` bars, so its
newest value is the same after a restart. But yesterday's value in today's array differs from the
value that yesterday saw. With ``window`` each value depends only on the last ``window`` rows. It
differs from the infinite one by at most (1 - a)^(window - period) of the spread of the input, where
a is 2 / (period + 1) for ``ema`` and 1 / period for ``rsi``, ``atr`` and ``adx``.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from math import inf, isqrt, nan

import numpy as np
import numpy.typing as npt

from tracepaper.strategies.smoothing import (
    Floats,
    checked_period,
    from_first_known,
    line_weights,
    padded,
    ratio,
    rising_weights,
    rolling_deviations,
    rolling_means,
    smoothed,
    smoothed_known,
    true_ranges,
    weighted_sums,
    wilder_sums,
    windows,
)
from tracepaper.strategies.without_value import indicator

__all__ = [
    "adx",
    "aroon",
    "atr",
    "bbands",
    "cci",
    "cmf",
    "crossover",
    "crossunder",
    "dema",
    "donchian",
    "ema",
    "heikin_ashi",
    "highest",
    "hma",
    "ichimoku",
    "keltner",
    "linearreg",
    "lowest",
    "macd",
    "mfi",
    "minus_di",
    "mom",
    "natr",
    "obv",
    "plus_di",
    "rma",
    "roc",
    "rsi",
    "sar",
    "sma",
    "stddev",
    "stoch",
    "stochf",
    "stochrsi",
    "supertrend",
    "tema",
    "trange",
    "trix",
    "vwap",
    "vwma",
    "willr",
    "wma",
    "zscore",
]

Flags = npt.NDArray[np.bool_]


# ---------------------------------------------------------------- averages


@indicator
def sma(values: Floats, period: int = 30) -> Floats:
    """Return the mean of the last *period* values."""
    return padded(rolling_means(values, period), values.size)


@indicator
def ema(values: Floats, period: int = 30, *, window: int | None = None) -> Floats:
    """Return the exponential mean: each value weighs 1 - 2 / (period + 1) times the next one.

    It starts from the mean of the first *period* values of the array, or of each *window*.
    """
    return padded(smoothed(values, period, 2 / (period + 1), window), values.size)


@indicator
def wma(values: Floats, period: int = 30) -> Floats:
    """Return the mean with linear weights: *period* for the newest value, 1 for the oldest."""
    return padded(weighted_sums(values, rising_weights(period)), values.size)


@indicator
def rma(values: Floats, period: int = 14, *, window: int | None = None) -> Floats:
    """Return Wilder's mean: each value weighs 1 - 1 / period times the next one (not in TA-Lib)."""
    return padded(smoothed(values, period, 1 / period, window), values.size)


@indicator
def dema(values: Floats, period: int = 30, *, window: int | None = None) -> Floats:
    """Return 2 x ``ema`` - ``ema`` of ``ema``; with *window* it depends on 2 x window - 1 rows."""
    once, twice = _repeated(values, period, 2, window)
    return padded(2 * once - twice, values.size)


@indicator
def tema(values: Floats, period: int = 30, *, window: int | None = None) -> Floats:
    """Return 3 x ``ema`` - 3 x ``ema`` of it + ``ema`` of that; *window*: 3 x window - 2 rows."""
    once, twice, thrice = _repeated(values, period, 3, window)
    return padded(3 * once - 3 * twice + thrice, values.size)


@indicator
def trix(values: Floats, period: int = 30, *, window: int | None = None) -> Floats:
    """Return the change of a triple ``ema`` in per cent; *window*: 3 x window - 1 rows."""
    return roc(padded(_repeated(values, period, 3, window)[2], values.size), 1)


@indicator
def hma(values: Floats, period: int = 16) -> Floats:
    """Return Hull's mean: ``wma`` of (2 x ``wma`` of half the period - ``wma``) (not in TA-Lib)."""
    whole = weighted_sums(values, rising_weights(period))
    half = weighted_sums(values, rising_weights(max(period // 2, 1)))
    ahead = 2 * half[half.size - whole.size :] - whole
    return padded(weighted_sums(ahead, rising_weights(isqrt(period))), values.size)


@indicator
def macd(
    values: Floats,
    fast: int = 12,
    slow: int = 26,
    signal: int = 9,
    *,
    window: int | None = None,
) -> tuple[Floats, Floats, Floats]:
    """Return fast ``ema`` - slow ``ema``, the ``ema`` of that, and their difference.

    With *window* the second and third depend on the last 2 x window - 1 rows.
    """
    if window is None:  # both averages begin at the same row
        known = from_first_known(values)
        quick = smoothed(known[slow - fast :], fast, 2 / (fast + 1), None)
        line = quick - smoothed(known, slow, 2 / (slow + 1), None)
    else:
        quick = smoothed(values, fast, 2 / (fast + 1), window)
        line = quick - smoothed(values, slow, 2 / (slow + 1), window)
    mean = smoothed(line, signal, 2 / (signal + 1), window)
    line = line[line.size - mean.size :]
    size = values.size
    return padded(line, size), padded(mean, size), padded(line - mean, size)


@indicator
def vwap(high: Floats, low: Floats, close: Floats, volume: Floats, period: int = 30) -> Floats:
    """Return the mean typical price of the last *period* bars, weighted by volume (not in TA-Lib).

    NaN if nothing was traded.
    """
    money = windows((high + low + close) / 3 * volume, period).sum(axis=1)
    return padded(ratio(money, windows(volume, period).sum(axis=1), np.nan), close.size)


@indicator
def vwma(values: Floats, volume: Floats, period: int = 20) -> Floats:
    """Return the mean of *period* values, weighted by volume; NaN if it is 0 (not in TA-Lib)."""
    money = windows(values * volume, period).sum(axis=1)
    return padded(ratio(money, windows(volume, period).sum(axis=1), np.nan), values.size)


# ---------------------------------------------------------------- crossings


@indicator
def crossover(values: Floats, other: Floats | float) -> Flags:
    """Return True where *values* rise above *other* from at or below it; False at a NaN."""
    level = np.broadcast_to(other, values.shape)
    crossed = np.zeros(values.shape, np.bool_)
    crossed[1:] = (values[1:] > level[1:]) & (values[:-1] <= level[:-1])
    return crossed


@indicator
def crossunder(values: Floats, other: Floats | float) -> Flags:
    """Return True where *values* fall below *other* from at or above it; False at a NaN."""
    return crossover(-values, -np.asarray(other))


# ---------------------------------------------------------------- spread


@indicator
def stddev(values: Floats, period: int = 5, deviations: float = 1.0) -> Floats:
    """Return *deviations* standard deviations (of the population) of the last *period* values."""
    return padded(deviations * rolling_deviations(values, period), values.size)


@indicator
def zscore(values: Floats, period: int = 30) -> Floats:
    """Return the distance from the mean of the last *period* values, in their standard deviations.

    NaN if they do not vary (not in TA-Lib).
    """
    means = rolling_means(values, period)
    off = values[values.size - means.size :] - means
    spread = np.where(_varies(values, period), rolling_deviations(values, period), 0.0)
    return padded(ratio(off, spread, np.nan), values.size)


@indicator
def bbands(
    values: Floats, period: int = 20, up: float = 2.0, down: float = 2.0
) -> tuple[Floats, Floats, Floats]:
    """Return Bollinger bands: upper, middle (``sma``) and lower."""
    middle, deviation = sma(values, period), stddev(values, period)
    return middle + up * deviation, middle, middle - down * deviation


@indicator
def trange(high: Floats, low: Floats, close: Floats) -> Floats:
    """Return the true range: the range of the bar including the previous close."""
    return padded(true_ranges(high, low, close), close.size)


@indicator
def atr(
    high: Floats, low: Floats, close: Floats, period: int = 14, *, window: int | None = None
) -> Floats:
    """Return the mean true range, smoothed by 1 / period (Wilder)."""
    ranges = true_ranges(high, low, close)
    range_window = None if window is None else window - 1
    return padded(smoothed(ranges, period, 1 / period, range_window), close.size)


@indicator
def natr(
    high: Floats, low: Floats, close: Floats, period: int = 14, *, window: int | None = None
) -> Floats:
    """Return ``atr`` in per cent of the close."""
    return 100 * ratio(atr(high, low, close, period, window=window), close, 0.0)


@indicator
def highest(values: Floats, period: int = 30) -> Floats:
    """Return the highest of the last *period* values: TA-Lib's MAX."""
    return padded(np.maximum.reduce(windows(values, period), axis=1), values.size)


@indicator
def lowest(values: Floats, period: int = 30) -> Floats:
    """Return the lowest of the last *period* values: TA-Lib's MIN."""
    return padded(np.minimum.reduce(windows(values, period), axis=1), values.size)


@indicator
def donchian(high: Floats, low: Floats, period: int = 20) -> tuple[Floats, Floats, Floats]:
    """Return the channel of the last *period* bars: upper, middle and lower (not in TA-Lib)."""
    upper, lower = highest(high, period), lowest(low, period)
    return upper, (upper + lower) / 2, lower


@indicator
def keltner(
    high: Floats,
    low: Floats,
    close: Floats,
    period: int = 20,
    multiple: float = 2.0,
    *,
    window: int | None = None,
) -> tuple[Floats, Floats, Floats]:
    """Return the ``ema`` of the close, and bands at *multiple* x ``ema`` of the true range.

    Upper, middle and lower, as Pine's ``ta.kc`` has them (not in TA-Lib).
    """
    ranges = true_ranges(high, low, close)
    range_window = None if window is None else window - 1
    far = multiple * padded(smoothed(ranges, period, 2 / (period + 1), range_window), close.size)
    middle = ema(close, period, window=window)
    return middle + far, middle, middle - far


@indicator
def ichimoku(
    high: Floats,
    low: Floats,
    conversion: int = 9,
    base: int = 26,
    span: int = 52,
    displacement: int = 26,
) -> tuple[Floats, Floats, Floats, Floats]:
    """Return conversion line, base line and the two leading spans (not in TA-Lib).

    The spans of a row are those of *displacement* rows before, where a chart draws them.
    """
    lines = [donchian(high, low, period)[1] for period in (conversion, base, span)]
    leading = ((lines[0] + lines[1]) / 2, lines[2])
    first, second = (padded(line[: line.size - displacement], line.size) for line in leading)
    return lines[0], lines[1], first, second


@indicator
def supertrend(
    high: Floats,
    low: Floats,
    close: Floats,
    period: int = 10,
    multiple: float = 3.0,
    *,
    window: int | None = None,
) -> tuple[Floats, Floats]:
    """Return the line that trails the price at *multiple* x ``atr``, and its side (not in TA-Lib).

    The side is 1 if the line is below the price, else -1; it starts at -1, as in Pine.
    """
    if window is not None:

        def last_of_window(*part: Floats) -> tuple[Floats, Floats]:
            return supertrend(part[0], part[1], part[2], period, multiple)

        columns = _in_windows(last_of_window, (high, low, close), window)
        return columns[0], columns[1]
    far, middle = multiple * atr(high, low, close, period), (high + low) / 2
    lines, sides = np.full(close.size, np.nan), np.full(close.size, np.nan)
    upper, lower, side = inf, -inf, -1.0
    closes = close.tolist()
    bands = zip((middle + far).tolist()[period:], (middle - far).tolist()[period:], strict=True)
    for row, (above, below) in enumerate(bands, period):
        before, now = closes[row - 1], closes[row]
        upper = above if above < upper or before > upper else upper
        lower = below if below > lower or before < lower else lower
        if row > period and (now > upper if side < 0 else now < lower):
            side = -side
        lines[row], sides[row] = (lower if side > 0 else upper), side
    return lines, sides


@indicator
def sar(
    high: Floats,
    low: Floats,
    acceleration: float = 0.02,
    maximum: float = 0.2,
    *,
    window: int | None = None,
) -> Floats:
    """Return Wilder's parabolic stop and reverse."""
    if window is not None:

        def last_of_window(*part: Floats) -> tuple[Floats]:
            return (sar(part[0], part[1], acceleration, maximum),)

        return _in_windows(last_of_window, (high, low), window)[0]
    if high.size <= 1:  # it has no direction yet
        return np.full(high.size, np.nan)
    highs, lows = high.tolist(), low.tolist()
    fell, rose = lows[0] - lows[1], highs[1] - highs[0]
    stops, acceleration = [nan], min(acceleration, maximum)
    # A falling trend is handled as a rising one with negated prices.
    sign = -1.0 if fell > 0 and fell > rose else 1.0
    sides = {1.0: (highs, lows), -1.0: ([-price for price in lows], [-price for price in highs])}
    tops, bottoms = sides[sign]
    stop, best, step = bottoms[0], tops[1], acceleration
    for row in range(1, high.size):
        last, turns = max(row - 1, 1), bottoms[row] <= stop
        if turns:
            sign = -sign
            tops, bottoms = sides[sign]
            stop, step = min(-best, bottoms[last], bottoms[row]), acceleration
        stops.append(sign * stop)
        if turns or tops[row] > best:
            step = acceleration if turns else min(step + acceleration, maximum)
            best = tops[row]
        stop = min(stop + step * (best - stop), bottoms[last], bottoms[row])
    return np.array(stops)


@indicator
def heikin_ashi(
    open_: Floats, high: Floats, low: Floats, close: Floats, *, window: int | None = None
) -> tuple[Floats, Floats, Floats, Floats]:
    """Return averaged candles (Heikin-Ashi): open, high, low and close (not in TA-Lib)."""
    if window is not None:
        columns = _in_windows(heikin_ashi, (open_, high, low, close), window)
        return columns[0], columns[1], columns[2], columns[3]
    mean = (open_ + high + low + close) / 4
    first = (open_[:1] + close[:1]) / 2
    rest = (
        accumulate(
            mean[:-1].tolist(), lambda previous, value: (previous + value) / 2, initial=first[0]
        )
        if first.size
        else ()
    )
    opened = np.array(list(rest))
    return (
        opened,
        np.maximum(high, np.maximum(opened, mean)),
        np.minimum(low, np.minimum(opened, mean)),
        mean,
    )


# ---------------------------------------------------------------- momentum


@indicator
def mom(values: Floats, period: int = 10) -> Floats:
    """Return the change over *period* rows."""
    return padded(values[checked_period(period) :] - values[:-period], values.size)


@indicator
def roc(values: Floats, period: int = 10) -> Floats:
    """Return the change over *period* rows in per cent; 0 if the first value is 0."""
    before = values[: -checked_period(period)]
    return padded(100 * ratio(values[period:] - before, before, 0.0), values.size)


@indicator
def rsi(values: Floats, period: int = 14, *, window: int | None = None) -> Floats:
    """Return Wilder's relative strength: rises in % of all changes, smoothed by 1 / period."""
    changes = values[1:] - values[:-1]
    change_window = None if window is None else window - 1
    net = smoothed(changes, period, 1 / period, change_window)
    all_ = smoothed(np.abs(changes), period, 1 / period, change_window)
    return padded(50 * ratio(net + all_, all_, 0.0), values.size)


@indicator
def stoch(
    high: Floats, low: Floats, close: Floats, fastk: int = 5, slowk: int = 3, slowd: int = 3
) -> tuple[Floats, Floats]:
    """Return the close's position in the range of *fastk* bars, in per cent: slow K and D."""
    return _slowed(rolling_means(_positions(high, low, close, fastk), slowk), slowd, close.size)


@indicator
def stochf(
    high: Floats, low: Floats, close: Floats, fastk: int = 5, fastd: int = 3
) -> tuple[Floats, Floats]:
    """Return the close's position in the range of *fastk* bars, in per cent: fast K and D."""
    return _slowed(_positions(high, low, close, fastk), fastd, close.size)


@indicator
def stochrsi(
    values: Floats, period: int = 14, fastk: int = 5, fastd: int = 3, *, window: int | None = None
) -> tuple[Floats, Floats]:
    """Return the position of ``rsi`` in its range over *fastk* rows, in per cent: fast K and D.

    With *window* it depends on the last window + fastk + fastd - 2 rows.
    """
    strength = rsi(values, period, window=window)[(window or period + 1) - 1 :]
    # Ignore ranges below 1e-9: an unchanged RSI differs only by rounding.
    return _slowed(_positions(strength, strength, strength, fastk, 1e-9), fastd, values.size)


@indicator
def willr(high: Floats, low: Floats, close: Floats, period: int = 14) -> Floats:
    """Return minus the close's distance from the high of *period* bars, in % of their range."""
    top, bottom = highest(high, period), lowest(low, period)
    return -100 * ratio(top - close, top - bottom, 0.0)


@indicator
def cci(high: Floats, low: Floats, close: Floats, period: int = 14) -> Floats:
    """Return the typical price's distance from its mean, in 0.015 mean deviations."""
    typical = (high + low + close) / 3
    mean = rolling_means(typical, period)
    deviation = np.abs(windows(typical, period) - mean[:, None]).sum(axis=1) / period
    off = typical[typical.size - mean.size :] - mean
    spread = np.where(_varies(typical, period), 0.015 * deviation, 0.0)
    return padded(ratio(off, spread, 0.0), close.size)


@indicator
def adx(
    high: Floats, low: Floats, close: Floats, period: int = 14, *, window: int | None = None
) -> Floats:
    """Return Wilder's average directional index: how one-sided the movement is, in per cent.

    With *window* it depends on the last 2 x window - 1 rows.
    """
    plus, minus, ranges = _directional_sums(high, low, close, period, window)
    both = plus + minus
    index = 100 * ratio(np.abs(plus - minus), both, np.nan)
    index[ranges == 0] = np.nan
    return padded(smoothed_known(index, period, window), close.size)


@indicator
def plus_di(
    high: Floats, low: Floats, close: Floats, period: int = 14, *, window: int | None = None
) -> Floats:
    """Return Wilder's positive directional indicator: rises in per cent of the true range."""
    plus, _, ranges = _directional_sums(high, low, close, period, window)
    return padded(100 * ratio(plus, ranges, 0.0), close.size)


@indicator
def minus_di(
    high: Floats, low: Floats, close: Floats, period: int = 14, *, window: int | None = None
) -> Floats:
    """Return Wilder's negative directional indicator: falls in per cent of the true range."""
    _, minus, ranges = _directional_sums(high, low, close, period, window)
    return padded(100 * ratio(minus, ranges, 0.0), close.size)


@indicator
def aroon(high: Floats, low: Floats, period: int = 14) -> tuple[Floats, Floats]:
    """Return how recent low and high of the last *period* + 1 bars are: 100 is this bar."""
    lows, highs = (windows(column, period + 1)[:, ::-1] for column in (low, high))
    ages = (lows.argmin(axis=1), highs.argmax(axis=1))
    down, up = (padded(100 * (period - age) / period, high.size) for age in ages)
    return down, up


# ---------------------------------------------------------------- volume and fit


@indicator
def mfi(high: Floats, low: Floats, close: Floats, volume: Floats, period: int = 14) -> Floats:
    """Return the money flow of rising bars in per cent of all, over *period* changes.

    0 if nothing flowed. TA-Lib returns 0 for each total below 1, whatever it is counted in.
    """
    typical = (high + low + close) / 3
    flow, sign = (typical * volume)[1:], np.sign(typical[1:] - typical[:-1])
    rises, falls = (windows(flow * (sign == side), period).sum(axis=1) for side in (1, -1))
    return padded(100 * ratio(rises, rises + falls, 0.0), close.size)


@indicator
def cmf(high: Floats, low: Floats, close: Floats, volume: Floats, period: int = 20) -> Floats:
    """Return Chaikin's money flow: volume by the close's position in its range (not in TA-Lib).

    From -1 to 1; NaN if nothing was traded.
    """
    flow = ratio(2 * close - high - low, high - low, 0.0) * volume
    traded = windows(volume, period).sum(axis=1)
    return padded(ratio(windows(flow, period).sum(axis=1), traded, np.nan), close.size)


@indicator
def obv(close: Floats, volume: Floats, *, window: int | None = None) -> Floats:
    """Return on-balance volume: volume at rises minus volume at falls, summed from the first row.

    Its level depends on where the array begins, so only its changes are meaningful. With *window*
    it is the sum over the changes of the last *window* rows.
    """
    changes = close[1:] - close[:-1]
    signed = np.sign(changes) * volume[1:]
    if window is not None:
        return padded(windows(signed, window - 1).sum(axis=1), close.size)
    return np.cumsum(np.concatenate([volume[:1], signed]))


@indicator
def linearreg(values: Floats, period: int = 14) -> Floats:
    """Return the last point of the least-squares line through *period* values."""
    return padded(weighted_sums(values, line_weights(period)), values.size)


# ---------------------------------------------------------------- shared helpers


def _varies(values: Floats, period: int) -> Flags:
    """Return for each window whether its values differ: their mean is off by rounding alone."""
    parts = windows(values, period)
    return np.maximum.reduce(parts, axis=1) > np.minimum.reduce(parts, axis=1)


def _positions(
    high: Floats, low: Floats, close: Floats, period: int, min_range: float = 0.0
) -> Floats:
    """Return the position of each close in the range of *period* bars, in per cent.

    0 without a range, or if it is below *min_range*.
    """
    top = np.maximum.reduce(windows(high, period), axis=1)
    bottom = np.minimum.reduce(windows(low, period), axis=1)
    spread = np.where(top - bottom < min_range, 0.0, top - bottom)
    return 100 * ratio(close[close.size - top.size :] - bottom, spread, 0.0)


def _slowed(fast: Floats, period: int, size: int) -> tuple[Floats, Floats]:
    """Return *fast* and its mean of *period*, both starting where the mean starts."""
    mean = rolling_means(fast, period)
    return padded(fast[fast.size - mean.size :], size), padded(mean, size)


def _directional_sums(
    high: Floats, low: Floats, close: Floats, period: int, window: int | None
) -> tuple[Floats, Floats, Floats]:
    """Return Wilder's sums of rises, falls and true ranges."""
    up, down = high[1:] - high[:-1], low[:-1] - low[1:]
    moves = (
        np.where((up > 0) & (up > down), up, 0.0),
        np.where((down > 0) & (down > up), down, 0.0),
        true_ranges(high, low, close),
    )
    move_window = None if window is None else window - 1
    plus, minus, ranges = (wilder_sums(move, period, move_window) for move in moves)
    return plus, minus, ranges


def _repeated(values: Floats, period: int, times: int, window: int | None) -> list[Floats]:
    """Return the ``ema``, the ``ema`` of it and so on, all starting where the last one starts."""
    means = [values]
    for _ in range(times):
        means.append(smoothed(means[-1], period, 2 / (period + 1), window))
    return [mean[mean.size - means[-1].size :] for mean in means[1:]]


def _in_windows(
    function: Callable[..., tuple[Floats, ...]], columns: tuple[Floats, ...], window: int
) -> list[Floats]:
    """Return the last values of *function* on each window of rows."""
    parts = zip(*(windows(column, window) for column in columns), strict=True)
    last = [[float(values[-1]) for values in function(*part)] for part in parts]
    count = len(function(*(column[:0] for column in columns)))
    rows = np.array(last).reshape(-1, count).T
    return [padded(row, columns[0].size) for row in rows]
