"""The seeded path inside a bar: trades that reproduce its open, high, low, close and volume.

The first trade is at the open, the last at the close; one in between touches each extreme. Sizes
are multiples of the quantity step, but for a remainder where the volume is finer, and sum to the
volume exactly. A bar without volume has no trades. No trade falls into a bar's first second, so
the new candle of a roll frame is still empty, as the exchange's is. The more volume a
bar has beside the bars before it, the more trades.
"""

from __future__ import annotations

import struct
from hashlib import blake2b, shake_128
from itertools import accumulate, pairwise
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracepaper.strategies.market import MINUTE_MS

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
    """One trade inside a bar; ``size`` is in units of 10^-size_decimals of its path."""

    time_ms: int
    price: int
    size: int
    is_buy: bool


class Path(NamedTuple):
    """All trades of one bar in time order.

    ``size_scale`` is 1 in all but a bar whose volume has fewer units than its prices need trades;
    there a unit is a tenth, and ``size_scale`` is 10.
    """

    trades: tuple[PathTrade, ...]
    size_scale: int


EMPTY: Final = Path((), 1)


def walk(
    candle: Candle, *, interval_ms: int, tick: int, step: int, seed: int, typical: int
) -> Path:
    """Return the path of *candle*; *tick* and *step* are in its price and volume scales.

    *typical* is the volume of a bar of its time, to which the number of trades is proportional.
    """
    if candle.volume == 0:
        return EMPTY
    first = draws(seed, 2)
    corners = _corners(candle, high_first=first[0] % 2 == 0)
    scale = 1 if candle.volume >= len(corners) else 10
    units = candle.volume * scale
    usual = (TRADES_MIN + first[1] % TRADES_SPAN) * max(1, interval_ms // MINUTE_MS)
    wanted = min(TRADES_MOST, usual * candle.volume // max(1, typical))
    count = max(len(corners), min(wanted, units))
    numbers = iter(draws(seed, 2 + DRAWS_PER_TRADE * count)[2:])
    prices = _prices(corners, count, candle, tick, [next(numbers) for _ in range(count)])
    sizes = _sizes(units, step * scale, [next(numbers) for _ in range(count)])
    times = _times(candle.start_ms, interval_ms, [next(numbers) for _ in range(count)])
    sides = _sides(prices, [next(numbers) for _ in range(count)])
    return Path(tuple(map(PathTrade, times, prices, sizes, sides)), scale)


def _corners(candle: Candle, *, high_first: bool) -> list[int]:
    """Return open, both extremes and close, less what another corner already touches."""
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
            # Noise makes no new extreme: the path must give this candle again.
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
    whole, remainder = divmod(units, grain)
    weights = [1 + number % 15 for number in numbers]
    spare, total = whole - count, sum(weights)
    # One grain each first, so that no size is 0; rounded partial sums deal out all the rest.
    marks = [0, *(spare * weight // total for weight in accumulate(weights))]
    sizes = [(1 + after - before) * grain for before, after in pairwise(marks)]
    sizes[-1] += remainder
    return sizes


def _times(start_ms: int, interval_ms: int, numbers: list[int]) -> list[int]:
    """Return rising times inside the bar, none of them in its first second."""
    room = interval_ms - FIRST_TRADE_MS
    return sorted(start_ms + FIRST_TRADE_MS + number % room for number in numbers)


def _sides(prices: list[int], numbers: list[int]) -> list[bool]:
    """Return whether each trade's taker bought: up is a buy, down a sell, level is either."""
    level = [number % 2 == 0 for number in numbers]
    return [
        level[0],
        *(
            after > before if after != before else level[place]
            for place, (before, after) in enumerate(pairwise(prices), 1)
        ),
    ]
