"""Candles at every interval, and the seeded path of trades within a bar.

The first trade is at the open, the last at the close; one in between touches each extreme. Sizes
sum to the volume exactly; they are multiples of the quantity step, except for a remainder where the
volume is finer. A bar without volume has no trades. No trade happens in a bar's first second, so
the new candle of a roll frame is still empty, as on the exchange. The number of trades grows with
the bar's volume relative to the bars before it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b, shake_128
from itertools import accumulate, pairwise, starmap
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracepaper.replay.archive import Candles
from tracepaper.strategies.api.timeframes import is_made_of
from tracepaper.strategies.months import interval_end
from tracepaper.strategies.units import HOUR_MS, INTERVALS, MINUTE_MS, interval_start

# ------------------------------------------------------------ seeded noise
#
# Everything that the embedded exchange invents (paths, sizes, delays, identifiers) is a function of
# a key, never of a generator's state, so any moment can be computed without its past.

_MASK: Final = (1 << 64) - 1
_FIRST: Final = 0xBF58476D1CE4E5B9
_SECOND: Final = 0x94D049BB133111EB


def key(*parts: str | int) -> int:
    """Return the 64-bit key of *parts*."""
    text = "|".join(map(str, parts))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def draws(seed: int, count: int) -> tuple[int, ...]:
    """Return *count* uniform 32-bit integers of the 64-bit key *seed*."""
    digest = shake_128(seed.to_bytes(8, "little")).digest(4 * count)
    return struct.unpack(f"<{count}I", digest)


def mix(value: int) -> int:
    """Return 64 well-mixed bits of *value* (the finaliser of SplitMix64, Steele et al. 2014)."""
    value &= _MASK
    value = (value ^ (value >> 30)) * _FIRST & _MASK
    value = (value ^ (value >> 27)) * _SECOND & _MASK
    return value ^ (value >> 31)


def mix_array(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return ``mix`` of every element; 64-bit arithmetic wraps as the mask above does."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(_FIRST)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(_SECOND)
    return values ^ (values >> np.uint64(31))


FIRST_TRADE_MS: Final = 1_001
TRADES_MIN: Final = 8
TRADES_SPAN: Final = 17
"""A minute of typical volume has 8 to 24 trades."""
TRADES_MOST: Final = 400
DRAWS_PER_TRADE: Final = 4


class Candle(NamedTuple):
    """One candle, in the market's integer scales."""

    start_ms: int
    open: int
    high: int
    low: int
    close: int
    volume: int
    turnover: int


class PathTrade(NamedTuple):
    """One trade inside a bar; ``size`` is in the unit of its path."""

    time_ms: int
    price: int
    size: int
    is_buy: bool


class Path(NamedTuple):
    """All trades of one bar in time order.

    The unit of sizes is that of the volume divided by ``size_scale``, which is 1, or 10 where the
    volume has fewer units than the path needs trades.
    """

    trades: tuple[PathTrade, ...]
    size_scale: int


EMPTY: Final = Path((), 1)


def walk(
    candle: Candle,
    *,
    interval_ms: int,
    tick: int,
    step: int,
    seed: int,
    typical: int,
    most: int = TRADES_MOST,
) -> Path:
    """Return the path of *candle*; *tick* and *step* are in its price and volume scales.

    *typical* is the typical volume of a bar; the number of trades is proportional to the candle's
    volume divided by it, and at most *most* beside those that make its four prices.
    """
    if candle.volume == 0:
        return EMPTY
    first = draws(seed, 2)
    corners = _corners(candle, high_first=first[0] % 2 == 0)
    scale = 1 if candle.volume >= len(corners) else 10
    units = candle.volume * scale
    usual = (TRADES_MIN + first[1] % TRADES_SPAN) * max(1, interval_ms // MINUTE_MS)
    wanted = min(most, usual * candle.volume // max(1, typical))
    count = max(len(corners), min(wanted, units))
    numbers = iter(draws(seed, 2 + DRAWS_PER_TRADE * count)[2:])
    prices = _prices(corners, count, candle, tick, [next(numbers) for _ in range(count)])
    sizes = _sizes(units, step * scale, [next(numbers) for _ in range(count)])
    times = _times(candle.start_ms, interval_ms, [next(numbers) for _ in range(count)])
    sides = _sides(prices, [next(numbers) for _ in range(count)])
    return Path(tuple(map(PathTrade, times, prices, sizes, sides)), scale)


def _corners(candle: Candle, *, high_first: bool) -> list[int]:
    """Return open, extremes and close, without an extreme that the open or close touches."""
    extremes = (candle.high, candle.low) if high_first else (candle.low, candle.high)
    inner = [price for price in extremes if price not in (candle.open, candle.close)]
    ends = [candle.open] if not inner and candle.open == candle.close else None
    return ends or [candle.open, *inner, candle.close]


def _prices(
    corners: list[int], count: int, candle: Candle, tick: int, numbers: list[int]
) -> list[int]:
    """Return *count* prices through *corners*, noisy in between, never outside the candle."""
    legs = max(1, len(corners) - 1)
    extra = count - len(corners)
    noise = max(1, (candle.high - candle.low) // (8 * tick))
    prices = [corners[0]]
    used = 0
    for leg in range(legs):
        start, end = corners[leg], corners[min(leg + 1, len(corners) - 1)]
        # Differences of rounded partial sums, so that the legs share out exactly *extra*.
        steps = extra * (leg + 1) // legs - extra * leg // legs
        for place in range(1, steps + 1):
            straight = (end - start) * place // ((steps + 1) * tick)
            price = start + (straight + numbers[used] % (2 * noise + 1) - noise) * tick
            # Noise makes no new extreme: the path has to reproduce this candle.
            prices.append(min(max(price, candle.low), candle.high))
            used += 1
        if len(corners) > 1:
            prices.append(end)
    prices[-1] = candle.close
    return prices


def _sizes(units: int, step: int, numbers: list[int]) -> list[int]:
    """Return positive sizes that sum to *units*, in whole steps where there are enough."""
    count = len(numbers)
    grain = step if units // step >= count else 1
    grains, remainder = divmod(units, grain)
    weights = [1 + number % 15 for number in numbers]
    spare, total = grains - count, sum(weights)
    # Each size gets one grain, so that none is 0; rounded partial sums distribute the rest.
    marks = [0, *(spare * weight // total for weight in accumulate(weights))]
    sizes = [(1 + after - before) * grain for before, after in pairwise(marks)]
    sizes[-1] += remainder
    return sizes


def _times(start_ms: int, interval_ms: int, numbers: list[int]) -> list[int]:
    """Return sorted times inside the bar, after its first second."""
    room = interval_ms - FIRST_TRADE_MS
    return sorted(start_ms + FIRST_TRADE_MS + number % room for number in numbers)


def _sides(prices: list[int], numbers: list[int]) -> list[bool]:
    """Return whether each trade's taker bought: at a rise yes, at a fall no, else at random."""
    random_sides = [number % 2 == 0 for number in numbers]
    return [
        random_sides[0],
        *(
            after > before if after != before else random_sides[place]
            for place, (before, after) in enumerate(pairwise(prices), 1)
        ),
    ]


# ------------------------------------------------------------ every interval

IntArray = NDArray[np.int64]
TURNOVER_DECIMALS: Final = 4
"""Decimals of an estimated turnover, as in tickers."""
SLICE_ROWS: Final = 4_096


@dataclass(frozen=True, eq=False)
class CandleTable(Candles):
    """Candles with a turnover, found by row or by time."""

    turnover: IntArray

    @cached_property
    def _columns(self) -> tuple[IntArray, ...]:
        return (self.open_time_ms, *(getattr(self, name) for name in Candle._fields[1:]))

    def candle(self, row: int) -> Candle:
        """Return the candle at *row*."""
        return Candle(*(int(column[row]) for column in self._columns))

    def candles(self, first: int, last: int) -> list[Candle]:
        """Return the candles of rows *first* to *last*, exclusive, oldest first."""
        columns = (column[first:last].tolist() for column in self._columns)
        return list(starmap(Candle, zip(*columns, strict=True)))

    def row_at(self, time_ms: int) -> int:
        """Return the last row that starts at or before *time_ms*; -1 where there is none."""
        return int(self.open_time_ms.searchsorted(time_ms, side="right")) - 1

    def end_of(self, row: int) -> int:
        """Return the first millisecond after the candle at *row*."""
        return interval_end(int(self.open_time_ms[row]), self.interval_ms)


class CandleSeries:
    """The candles of a market's trades, or of its mark, at every interval of the exchange.

    ``running(row, time_ms)`` returns a bar of *base* as of a time, with nothing later in it.
    """

    def __init__(self, base: CandleTable, running: Callable[[int, int], Candle]) -> None:
        self.base: Final = base
        self._running = running
        self._tables = {base.interval_ms: base}

    def table(self, interval: str) -> CandleTable | None:
        """Return the candles at *interval*, or None where the data cannot make them."""
        length_ms = INTERVALS.get(interval, 0)
        if length_ms not in self._tables:
            if not is_made_of(length_ms, self.base.interval_ms):
                return None
            # A candle at a hole is made of the bars that the data has.
            self._tables[length_ms], _ = self.base.aggregated(length_ms)
        return self._tables[length_ms]

    def open_candle(self, interval: str, row: int, time_ms: int) -> Candle:
        """Return the *interval* candle that contains bar *row*, as of *time_ms*."""
        now = self._running(row, time_ms)
        if INTERVALS[interval] == self.base.interval_ms:
            return now
        start = interval_start(int(self.base.open_time_ms[row]), INTERVALS[interval])
        first = self.base.row_at(start - 1) + 1
        if first == row:
            return now._replace(start_ms=start)
        past = slice(first, row)
        return Candle(
            start,
            int(self.base.open[first]),
            max(int(self.base.high[past].max()), now.high),
            min(int(self.base.low[past].min()), now.low),
            now.close,
            int(self.base.volume[past].sum()) + now.volume,
            int(self.base.turnover[past].sum()) + now.turnover,
        )


def typical_turnover(base: Candles) -> IntArray:
    """Return volume x (open + high + low + close) / 4, in 10^-TURNOVER_DECIMALS.

    It replaces the turnover that an archive lacks. The product of two 64-bit integers needs Python
    integers, which are made a slice at a time to save memory.
    """
    shift = base.price_decimals + base.volume_decimals - TURNOVER_DECIMALS
    multiplier, divisor = 10 ** max(0, -shift), 4 * 10 ** max(0, shift)
    total = base.open + base.high + base.low + base.close
    turnover = np.empty(len(base), dtype=np.int64)
    for first in range(0, len(base), SLICE_ROWS):
        rows = slice(first, first + SLICE_ROWS)
        turnover[rows] = total[rows].astype(object) * base.volume[rows] * multiplier // divisor
    return turnover


# ------------------------------------------------------------ mark and index
#
# The data holds only trades. The last trade is above the index by the premium, which drifts from
# hour to hour and varies from bar to bar; the mark lies between the two, nearer to the trade.

PREMIUM_UNIT: Final = 10**6
HOURLY_MOST: Final = 360
BAR_MOST: Final = 40
MARK_SHARE: Final = 4
"""The mark differs from the last trade by the premium divided by this."""


class Marks:
    """The premium of every bar of *base* in 10⁻⁶, and the index and mark prices that follow."""

    def __init__(self, base: CandleTable, seed: int) -> None:
        self._base = base
        self._seed = seed

    @cached_property
    def premiums(self) -> IntArray:
        """The premium of each bar: never near 0, and independent of prices."""
        times = self._base.open_time_ms
        hours, into = times // HOUR_MS, times % HOUR_MS
        before, after = (self._noise(hours + step, HOURLY_MOST) for step in (0, 1))
        drift = (before * (HOUR_MS - into) + after * into) // HOUR_MS
        premium = drift + self._noise(times, BAR_MOST)
        least = np.where(premium < 0, -BAR_MOST, BAR_MOST)
        return np.where(np.abs(premium) < BAR_MOST, least, premium)

    def _noise(self, places: IntArray, most: int) -> IntArray:
        """Return a number from -*most* to *most* for each place."""
        mixed = mix_array(np.uint64(self._seed) ^ places.astype(np.uint64))
        return (mixed % np.uint64(2 * most + 1)).astype(np.int64) - most

    def index(self, row: int, last: int) -> int:
        """Return the index price in bar *row* while the last trade is at *last*."""
        premium = int(self.premiums[row])
        return last - last * premium // (PREMIUM_UNIT + premium)

    def mark(self, row: int, last: int) -> int:
        """Return the mark price in bar *row* while the last trade is at *last*."""
        premium = int(self.premiums[row]) // MARK_SHARE
        return last - last * premium // (PREMIUM_UNIT + premium)

    def running(self, row: int, candle: Candle) -> Candle:
        """Return the mark price's candle for bar *row*, whose trades so far make *candle*.

        It opens at the close of the bar before, as the exchange's do, and has no volume.
        """
        close, high, low = (
            self.mark(row, price) for price in (candle.close, candle.high, candle.low)
        )
        open_price = self.mark(row, candle.open)
        if row > 0:
            open_price = self.mark(row - 1, int(self._base.close[row - 1]))
        return Candle(
            candle.start_ms, open_price, max(open_price, high), min(open_price, low), close, 0, 0
        )

    def table(self) -> CandleTable:
        """Return the mark's candles for all bars."""
        base, premium = self._base, self.premiums // MARK_SHARE
        close, high, low = (
            prices - prices * premium // (PREMIUM_UNIT + premium)
            for prices in (base.close, base.high, base.low)
        )
        first = self.mark(0, int(base.open[0]))
        open_price = np.concatenate((np.array([first], dtype=np.int64), close[:-1]))
        zeros = np.zeros(len(base), dtype=np.int64)
        return replace(
            base,
            open=open_price,
            high=np.maximum(open_price, high),
            low=np.minimum(open_price, low),
            close=close,
            volume=zeros,
            turnover=zeros,
        )
