"""Order book and ticker at a moment, and their topics."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tracepaper.replay.exchange.candles import mix, mix_array
from tracepaper.replay.exchange.channels import (
    GRID_MS,
    Channel,
    Due,
    Frame,
    FramePace,
    TopicRequest,
    encode,
    topic,
)
from tracepaper.replay.exchange.instruments import padded
from tracepaper.replay.exchange.market import (
    RATE_DECIMALS,
    SimulatedMarket,
    funding_interval_ms,
    funding_rate,
    next_funding_ms,
    open_interest,
)
from tracepaper.strategies.types.market import Category
from tracepaper.strategies.units import DAY_MS, HOUR_MS, MINUTE_MS, rescaled, unscaled

# ------------------------------------------------------------ order book
#
# The last trade is at the touch: a buy at the ask, a sell at the bid. Sizes are seeded noise that
# changes level by level, so deltas are small. In a quiet window of ten seconds nothing changes, so
# depth 1 has to repeat itself. The less volume a bar has, the more of its windows are quiet.

SLOT_MS: Final = 100
EPOCH_SLOTS: Final = 16
QUIET_SLOTS: Final = 100
QUIET_SCALE: Final = 10_000
BUSY_PER_VOLUME: Final = 5
"""One in six windows of a bar with typical volume is quiet, and every window without volume."""
EMPTY_ONE_IN: Final = 4
BID: Final = 0
ASK: Final = 1
STRIDE: Final = 0x9E3779B97F4A7C15

Levels = list[tuple[int, int]]
"""(price, size) from the touch outwards."""


def levels(market: SimulatedMarket, row: int, time_ms: int, depth: int) -> tuple[Levels, Levels]:
    """Return *depth* bids and asks (fewer near zero) of *market* at *time_ms* in bar *row*."""
    bid, ask = _touch(market, row, time_ms)
    slot = _slot(market, row, time_ms)
    if depth == 1:  # the touch is never empty, and single numbers need no array
        return [(bid, _size(market, BID, bid, slot))], [(ask, _size(market, ASK, ask, slot))]
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
    """Return the slot of *time_ms*; in a quiet window, the first slot of the window."""
    slot = time_ms // SLOT_MS
    window = slot // QUIET_SLOTS
    quiet = QUIET_SCALE / (1 + BUSY_PER_VOLUME * market.activity(row))
    if mix(market.seed ^ window) % QUIET_SCALE < quiet:
        return window * QUIET_SLOTS
    return slot


def _largest_size(market: SimulatedMarket) -> int:
    """Return the largest size of a level in steps: a quarter of a minute's volume, at least 4."""
    per_minute = market.daily_volume * MINUTE_MS // DAY_MS // market.listing.step
    return max(4, per_minute // 4)


def _size(market: SimulatedMarket, side: int, price: int, slot: int) -> int:
    """Return the size of the level at *price*, as ``_side`` does."""
    price_hash = mix(market.seed + side + 2 * price)
    epoch = (slot + price_hash % EPOCH_SLOTS) // EPOCH_SLOTS
    noise = mix(price_hash + epoch * STRIDE)
    return (1 + noise % _largest_size(market)) * market.listing.step


def _side(
    market: SimulatedMarket, side: int, prices: NDArray[np.int64], slot: int, depth: int
) -> Levels:
    prices = prices[prices > 0]
    unsigned = prices.astype(np.uint64)
    start = np.uint64((market.seed + side) & (2**64 - 1))
    price_hash = mix_array(start + np.uint64(2) * unsigned)
    epoch = (np.uint64(slot) + price_hash % np.uint64(EPOCH_SLOTS)) // np.uint64(EPOCH_SLOTS)
    noise = mix_array(price_hash + epoch * np.uint64(STRIDE))
    is_filled = (noise >> np.uint64(40)) % np.uint64(EMPTY_ONE_IN) != 0
    is_filled[0] = True
    sizes = (1 + (noise % np.uint64(_largest_size(market))).astype(np.int64)) * market.listing.step
    return list(
        zip(prices[is_filled][:depth].tolist(), sizes[is_filled][:depth].tolist(), strict=True)
    )


# ------------------------------------------------------------ tickers

FIGURE_DECIMALS: Final = 4
CHANGE_DECIMALS: Final = 6
SPOT_CHANGE_DECIMALS: Final = 4
VALUE_DECIMALS: Final = 2

REST_LINEAR: Final = (
    *("symbol", "lastPrice", "indexPrice", "markPrice", "prevPrice24h", "price24hPcnt"),
    *("highPrice24h", "lowPrice24h", "prevPrice1h", "openInterest", "openInterestValue"),
    *("turnover24h", "volume24h", "fundingRate", "nextFundingTime", "predictedDeliveryPrice"),
    *("basisRate", "deliveryFeeRate", "deliveryTime", "ask1Size", "bid1Price", "ask1Price"),
    *("bid1Size", "basis", "preOpenPrice", "preQty", "curPreListingPhase", "fundingIntervalHour"),
    *("basisRateYear", "fundingCap", "singleOpenInterest", "singleOpenInterestValue"),
)
REST_SPOT: Final = (
    *("symbol", "bid1Price", "bid1Size", "ask1Price", "ask1Size", "lastPrice", "prevPrice24h"),
    *("price24hPcnt", "highPrice24h", "lowPrice24h", "turnover24h", "volume24h", "usdIndexPrice"),
)


def _best(market: SimulatedMarket, row: int, time_ms: int) -> dict[str, str]:
    """Return the texts of best bid and ask."""
    (bid,), (ask,) = levels(market, row, time_ms, 1)
    return {
        "bid1Price": market.price_text(bid[0]),
        "bid1Size": market.size_text(bid[1]),
        "ask1Price": market.price_text(ask[0]),
        "ask1Size": market.size_text(ask[1]),
    }


def linear_ticker(market: SimulatedMarket, row: int, time_ms: int) -> dict[str, str]:
    """Return every field of a linear stream snapshot of *market* at *time_ms* in bar *row*."""
    last = market.touch(row, time_ms)
    now, day = market.running(row, time_ms), market.day(row)
    interest = open_interest(market, time_ms)
    half = interest // 2
    price, scale = market.price_text, market.listing.price_decimals
    sizes = market.listing.size_decimals
    volume = rescaled(day.volume + now.volume, sizes, FIGURE_DECIMALS)
    turnover = rescaled(day.turnover + now.turnover, market.turnover_decimals, FIGURE_DECIMALS)
    next_ms = next_funding_ms(market, time_ms)
    return {
        "symbol": market.symbol,
        "tickDirection": last.direction,
        "price24hPcnt": change(last.price, day.price_day_ago, CHANGE_DECIMALS),
        "lastPrice": price(last.price),
        "prevPrice24h": price(day.price_day_ago),
        "highPrice24h": price(max(day.high, now.high)),
        "lowPrice24h": price(min(day.low, now.low)),
        "prevPrice1h": price(day.price_hour_ago),
        "markPrice": price(market.marks.mark(row, last.price)),
        "indexPrice": price(market.marks.index(row, last.price)),
        "openInterest": market.size_text(interest),
        "openInterestValue": value(interest * last.price, sizes + scale),
        "turnover24h": padded(turnover, FIGURE_DECIMALS),
        "volume24h": padded(volume, FIGURE_DECIMALS),
        "fundingIntervalHour": str(funding_interval_ms(market) // HOUR_MS) if next_ms else "",
        "fundingCap": market.listing.item["upperFundingRate"],
        "singleOpenInterest": market.size_text(half),
        "singleOpenInterestValue": value(half * last.price, sizes + scale),
        "nextFundingTime": str(next_ms) if next_ms else "",
        "fundingRate": unscaled(funding_rate(market, next_ms), RATE_DECIMALS) if next_ms else "",
        **_best(market, row, time_ms),
        "preOpenPrice": "",
        "preQty": "",
        "curPreListingPhase": "",
    }


def spot_ticker(market: SimulatedMarket, row: int, time_ms: int) -> dict[str, str]:
    """Return every field of a spot stream snapshot: no bid or ask, no mark, no funding."""
    last = market.touch(row, time_ms)
    now, day = market.running(row, time_ms), market.day(row)
    price = market.price_text
    return {
        "symbol": market.symbol,
        "lastPrice": price(last.price),
        "highPrice24h": price(max(day.high, now.high)),
        "lowPrice24h": price(min(day.low, now.low)),
        "prevPrice24h": price(day.price_day_ago),
        "volume24h": unscaled(day.volume + now.volume, market.listing.size_decimals),
        "turnover24h": unscaled(day.turnover + now.turnover, market.turnover_decimals),
        "price24hPcnt": change(last.price, day.price_day_ago, SPOT_CHANGE_DECIMALS),
        "usdIndexPrice": price(market.marks.index(row, last.price)),
    }


def rest_linear(market: SimulatedMarket, row: int, time_ms: int) -> dict[str, str]:
    """Return the element of a linear ``/v5/market/tickers`` answer."""
    state = linear_ticker(market, row, time_ms) | {"deliveryTime": "0"}
    return {name: state.get(name, "") for name in REST_LINEAR}


def rest_spot(market: SimulatedMarket, row: int, time_ms: int) -> dict[str, str]:
    """Return the element of a spot ``/v5/market/tickers`` answer, which has bid and ask."""
    state = spot_ticker(market, row, time_ms) | _best(market, row, time_ms)
    return {name: state[name] for name in REST_SPOT}


def change(now: int, before: int, decimals: int) -> str:
    """Return ``now / before - 1`` as a fraction, without trailing zeros on spot."""
    scaled = (now - before) * 10**decimals
    share = scaled // before if scaled >= 0 else -(-scaled // before)
    return padded(share, decimals) if decimals == CHANGE_DECIMALS else unscaled(share, decimals)


def value(product: int, decimals: int) -> str:
    """Return *product*, which has *decimals* decimals, as money with the exchange's two."""
    return padded(rescaled(product, decimals, VALUE_DECIMALS), VALUE_DECIMALS)


DEPTHS: Final = (1, 50, 200, 1000)
REPEAT_MS: Final = 3_000
STALE_MS: Final = 1_000
FIRST_QUOTE_MS: Final = 250
"""Delay of a book frame after a confirm; by then the orders of that bar are eligible to fill."""
PAIRS: Final = (("bid1Price", "bid1Size"), ("ask1Price", "ask1Size"))
Pair = tuple[str, str]


def _recent_moment(market: SimulatedMarket, now_ms: int) -> tuple[int, int] | None:
    """Return the bar and time of a state up to a second old, or None where no bar is open."""
    row = market.base.row_at(now_ms)
    if not market.is_open(row, now_ms):
        return None
    return row, max(market.open_ms(row), now_ms - now_ms % GRID_MS - STALE_MS)


@topic("tickers.{symbol}")
def tickers(request: TopicRequest) -> Channel | None:
    """Send tickers: a snapshot, then deltas of changed fields; on spot only snapshots."""
    if request.market is None or request.argument:
        return None
    return TickerChannel(request.topic, request.market, request.pacing)


@topic("orderbook.{depth}.{symbol}")
def orderbook(request: TopicRequest) -> Channel | None:
    """Send the order book of depth 1, 50, 200 or 1000."""
    market, depth = request.market, request.argument
    if market is None or not depth.isdecimal() or int(depth) not in DEPTHS:
        return None
    return BookChannel(request.topic, market, int(depth), request.pacing)


class TickerChannel(Channel):
    """One ticker topic: a snapshot, then deltas of changed fields; on spot only snapshots."""

    def __init__(self, topic: str, market: SimulatedMarket, pacing: FramePace) -> None:
        self.topic: Final = topic
        self._market = market
        self._gap_ms = pacing.ticker_gap_ms(market.interval_ms)
        self._sent: dict[str, str] = {}
        self._sent_ms = 0

    def opening(self, now_ms: int) -> list[Frame]:
        """Return the full state as last sent; the first subscriber gets one up to a second old."""
        if not self._sent:
            moment = _recent_moment(self._market, now_ms)
            if moment is None:
                return []
            self._sent_ms = moment[1]
            self._sent = self._state(*moment)
        return [self._frame("snapshot", self._sent, self._sent_ms)]

    def reset(self) -> None:
        """Forget the state last sent."""
        self._sent = {}

    def steps(self, from_ms: int) -> Iterator[Due]:
        """Yield the updates of each bar at the pace of the channel."""
        market = self._market
        for row in range(max(0, market.base.row_at(from_ms)), len(market.base)):
            first = market.open_ms(row) + self._gap_ms // 2
            for at_ms in range(first, market.close_ms(row), self._gap_ms):
                if at_ms > from_ms:
                    yield at_ms, partial(self._update, row, at_ms)

    def _update(self, row: int, at_ms: int) -> list[Frame]:
        before, after = self._sent, self._state(row, at_ms)
        if before == after:
            return []
        self._sent, self._sent_ms = after, at_ms
        if self._market.category is Category.SPOT:
            return [self._frame("snapshot", after, at_ms)]
        changed = {name: text for name, text in after.items() if before.get(name) != text}
        for pair in PAIRS:
            if any(name in changed for name in pair):
                changed |= {name: after[name] for name in pair}
        delta = {name: after[name] for name in after if name in changed or name == "symbol"}
        return [self._frame("delta", delta, at_ms)]

    def _state(self, row: int, at_ms: int) -> dict[str, str]:
        linear = self._market.category is Category.LINEAR
        return (linear_ticker if linear else spot_ticker)(self._market, row, at_ms)

    def _frame(self, kind: str, state: dict[str, str], at_ms: int) -> Frame:
        sequence = self._market.sequence(at_ms)
        body = {"topic": self.topic, "type": kind, "data": state, "cs": sequence, "ts": at_ms}
        return Frame(self.topic, encode(body), at_ms)


class BookChannel(Channel):
    """One book topic: at depth 1 snapshots, which repeat; deeper, a snapshot and then deltas."""

    def __init__(self, topic: str, market: SimulatedMarket, depth: int, pacing: FramePace) -> None:
        self.topic: Final = topic
        self._market = market
        self._depth = depth
        self._gap_ms = pacing.book_gap_ms(market.interval_ms)
        self._update_id = market.seed % 10_000_000 + 2
        self._bids: Levels = []
        self._asks: Levels = []
        self._matched_ms = 0
        self._sent_ms = 0

    def opening(self, now_ms: int) -> list[Frame]:
        """Return a snapshot as last sent; the first subscriber gets one up to a second old."""
        if not self._bids:
            moment = _recent_moment(self._market, now_ms)
            if moment is None:
                return []
            self._bids, self._asks = levels(self._market, *moment, self._depth)
            self._sent_ms = self._matched_ms = moment[1]
        return [self._frame("snapshot", self._bids, self._asks, self._sent_ms)]

    def reset(self) -> None:
        """Forget the book; its update id still rises."""
        self._bids, self._asks = [], []
        self._update_id += 1

    def steps(self, from_ms: int) -> Iterator[Due]:
        """Yield the updates of each bar, one of them soon after the previous bar's confirm."""
        market = self._market
        for row in range(max(0, market.base.row_at(from_ms)), len(market.base)):
            open_ms, close_ms = market.open_ms(row), market.close_ms(row)
            forced = market.confirm_ms(open_ms) + FIRST_QUOTE_MS
            times = {forced, *range(open_ms + GRID_MS, close_ms, self._gap_ms)}
            for at_ms in sorted(times):
                if at_ms > from_ms:
                    yield at_ms, partial(self._update, row, at_ms, forced=at_ms == forced)

    def _update(self, row: int, at_ms: int, *, forced: bool) -> list[Frame]:
        bids, asks = levels(self._market, row, at_ms - 1, self._depth)
        changed = (bids, asks) != (self._bids, self._asks)
        repeats = self._depth == 1 and (forced or at_ms - self._sent_ms >= REPEAT_MS)
        if not changed and not repeats:
            return []
        before = (dict(self._bids), dict(self._asks))
        self._bids, self._asks = bids, asks
        self._sent_ms = at_ms
        if changed:
            self._update_id += 1
            self._matched_ms = at_ms - 1
        if self._depth == 1:
            return [self._frame("snapshot", bids, asks, at_ms)]
        return [
            self._frame(
                "delta",
                _difference(before[0], bids, falling=True),
                _difference(before[1], asks, falling=False),
                at_ms,
            )
        ]

    def _frame(self, kind: str, bids: Levels, asks: Levels, at_ms: int) -> Frame:
        market = self._market
        content = {
            "s": market.symbol,
            "b": level_texts(market, bids),
            "a": level_texts(market, asks),
            "u": self._update_id,
            "seq": market.sequence(at_ms),
        }
        head = {"topic": self.topic, "type": kind, "ts": at_ms}
        body = {**head, "data": content, "cts": self._matched_ms}
        return Frame(self.topic, encode(body), at_ms)


def level_texts(market: SimulatedMarket, side: Levels) -> list[Pair]:
    """Return *side* as (price, size) texts; a size of 0 is ``"0"``."""
    return [
        (market.price_text(price), market.size_text(size) if size else "0") for price, size in side
    ]


def _difference(before: dict[int, int], now: Levels, *, falling: bool) -> Levels:
    """Return the changed levels in book order; a removed level has size 0."""
    current = dict(now)
    changed = [(price, size) for price, size in now if before.get(price) != size]
    gone = [(price, 0) for price in before if price not in current]
    return sorted(changed + gone, reverse=falling)
