"""The order book at any moment, and what depth-1, delta and REST views show of it.

The last trade stands at the touch: a buy at the ask, a sell at the bid. Sizes are seeded noise
that changes level by level, so a delta is small; in some ten seconds nothing moves at all, so
depth 1 has to repeat itself. The less volume a bar has, the more of its seconds are so quiet.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracepaper.replay.exchange.intervals import DAY_MS, MINUTE_MS
from tracepaper.replay.exchange.market import SimulatedMarket
from tracepaper.replay.exchange.noise import mix, mix_array

SLOT_MS: Final = 100
EPOCH_SLOTS: Final = 16
QUIET_SLOTS: Final = 100
QUIET_SCALE: Final = 10_000
BUSY_PER_VOLUME: Final = 5
"""A bar of typical volume is quiet in one of six spans, one without volume in all."""
EMPTY_ONE_IN: Final = 4
BID: Final = 0
ASK: Final = 1
STRIDE: Final = 0x9E3779B97F4A7C15

Levels = list[tuple[int, int]]
"""(price, size) from the touch outwards."""


class Best(NamedTuple):
    """Best bid and ask."""

    bid: int
    bid_size: int
    ask: int
    ask_size: int


def best(market: SimulatedMarket, row: int, time_ms: int) -> Best:
    """Return the touch of *market* at *time_ms* in bar *row*."""
    bid, ask = _touch(market, row, time_ms)
    slot = _slot(market, row, time_ms)
    span = _span(market)
    step = market.listing.step
    return Best(
        bid,
        (1 + _level(market, BID, bid, slot) % span) * step,
        ask,
        (1 + _level(market, ASK, ask, slot) % span) * step,
    )


def levels(market: SimulatedMarket, row: int, time_ms: int, depth: int) -> tuple[Levels, Levels]:
    """Return *depth* bids and asks (fewer near zero) of *market* at *time_ms* in bar *row*."""
    bid, ask = _touch(market, row, time_ms)
    slot = _slot(market, row, time_ms)
    ticks = np.arange(2 * depth + EMPTY_ONE_IN, dtype=np.int64) * market.listing.tick
    return (
        _side(market, BID, bid - ticks, slot, depth),
        _side(market, ASK, ask + ticks, slot, depth),
    )


def _touch(market: SimulatedMarket, row: int, time_ms: int) -> tuple[int, int]:
    last = market.touch(row, time_ms)
    tick = market.listing.tick
    wide = mix(market.seed + row) % 8 == 0
    spread = tick * (2 if wide else 1)
    bid = last.price - spread if last.is_buy else last.price
    bid = max(bid, tick)
    return bid, bid + spread


def _slot(market: SimulatedMarket, row: int, time_ms: int) -> int:
    """Return the slot of *time_ms*; in a quiet window, the window's first."""
    slot = time_ms // SLOT_MS
    window = slot // QUIET_SLOTS
    quiet = QUIET_SCALE / (1 + BUSY_PER_VOLUME * market.activity(row))
    if mix(market.seed ^ window) % QUIET_SCALE < quiet:
        return window * QUIET_SLOTS
    return slot


def _span(market: SimulatedMarket) -> int:
    """Return how many steps a level may hold: about a minute's share of the volume."""
    per_minute = market.daily_volume * MINUTE_MS // DAY_MS // market.listing.step
    return max(4, per_minute // 4)


def _level(market: SimulatedMarket, side: int, price: int, slot: int) -> int:
    """Return the noise of one level; its epoch is staggered by its price."""
    place = mix(market.seed + 2 * price + side)
    epoch = (slot + place % EPOCH_SLOTS) // EPOCH_SLOTS
    return mix(place + epoch * STRIDE)


def _side(
    market: SimulatedMarket, side: int, prices: NDArray[np.int64], slot: int, depth: int
) -> Levels:
    prices = prices[prices > 0]
    unsigned = prices.astype(np.uint64)
    start = np.uint64((market.seed + side) & (2**64 - 1))
    place = mix_array(start + np.uint64(2) * unsigned)
    epoch = (np.uint64(slot) + place % np.uint64(EPOCH_SLOTS)) // np.uint64(EPOCH_SLOTS)
    noise = mix_array(place + epoch * np.uint64(STRIDE))
    held = (noise >> np.uint64(40)) % np.uint64(EMPTY_ONE_IN) != 0
    held[0] = True
    sizes = (1 + (noise % np.uint64(_span(market))).astype(np.int64)) * market.listing.step
    return list(zip(prices[held][:depth].tolist(), sizes[held][:depth].tolist(), strict=True))
