"""The ticker and book topics: ``tickers.{symbol}`` and ``orderbook.{depth}.{symbol}``."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Final

from tracepaper.replay.exchange.book import Levels, best, levels
from tracepaper.replay.exchange.channels import GRID_MS, Due, Frame, Pacing, encode
from tracepaper.replay.exchange.market import SimulatedMarket
from tracepaper.replay.exchange.tickers import linear_ticker, spot_ticker
from tracepaper.strategies.types import Category

DEPTHS: Final = (1, 50, 200, 1000)
RPI_DEPTH: Final = 50
NO_RPI: Final = "0"
"""The size of price-improvement orders at a level: nobody sends any."""
REPEAT_MS: Final = 3_000
STALE_MS: Final = 1_000
FIRST_QUOTE_MS: Final = 250
"""A book frame comes so soon after a confirm: the orders of that bar are eligible by then."""
PAIRS: Final = (("bid1Price", "bid1Size"), ("ask1Price", "ask1Size"))
Pair = tuple[str, str]


def _stale(market: SimulatedMarket, now_ms: int) -> tuple[int, int] | None:
    """Return the bar and moment of a state up to a second old, or None where no bar is open."""
    row = market.base.row_at(now_ms)
    if not market.is_open(row, now_ms):
        return None
    return row, max(market.open_ms(row), now_ms - now_ms % GRID_MS - STALE_MS)


class TickerChannel:
    """One ticker topic: a snapshot and deltas of changed fields, on spot whole snapshots."""

    def __init__(self, topic: str, market: SimulatedMarket, pacing: Pacing) -> None:
        self.topic: Final = topic
        self._market = market
        self._gap_ms = pacing.ticker_gap_ms(market.interval_ms)
        self._sent: dict[str, str] = {}
        self._sent_ms = 0

    def opening(self, now_ms: int) -> list[Frame]:
        """Return the whole state as last sent; to the first subscriber, a second old."""
        if not self._sent:
            moment = _stale(self._market, now_ms)
            if moment is None:
                return []
            self._sent_ms = moment[1]
            self._sent = self._state(*moment)
        return [self._frame("snapshot", self._sent, self._sent_ms)]

    def reset(self) -> None:
        """Forget the merged state."""
        self._sent = {}

    def steps(self, from_ms: int) -> Iterator[Due]:
        """Yield the paced moments of each bar."""
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
        body: dict[str, Any]
        if self._market.category is Category.SPOT:
            body = {"topic": self.topic, "ts": at_ms, "type": kind, "cs": sequence, "data": state}
        else:
            body = {"topic": self.topic, "type": kind, "data": state, "cs": sequence, "ts": at_ms}
        return Frame(self.topic, encode(body), at_ms)


class BookChannel:
    """One book topic: depth 1 is snapshots with repeats, deeper books a snapshot and deltas."""

    def __init__(
        self,
        topic: str,
        market: SimulatedMarket,
        depth: int,
        pacing: Pacing,
        *,
        extra: tuple[str, ...] = (),
    ) -> None:
        """Make the book of *depth* levels, each with *extra* texts after price and size."""
        self.topic: Final = topic
        self._market = market
        self._depth = depth
        self._extra = extra
        self._gap_ms = pacing.book_gap_ms(market.interval_ms)
        self._update_id = market.seed % 10_000_000 + 2
        self._bids: Levels = []
        self._asks: Levels = []
        self._matched_ms = 0
        self._sent_ms = 0

    def opening(self, now_ms: int) -> list[Frame]:
        """Return a snapshot as last sent; to the first subscriber, a second old."""
        if not self._bids:
            moment = _stale(self._market, now_ms)
            if moment is None:
                return []
            self._bids, self._asks = self._levels(*moment)
            self._sent_ms = self._matched_ms = moment[1]
        return [self._frame("snapshot", self._bids, self._asks, self._sent_ms)]

    def reset(self) -> None:
        """Forget the book; its update id goes on."""
        self._bids, self._asks = [], []
        self._update_id += 1

    def steps(self, from_ms: int) -> Iterator[Due]:
        """Yield the paced moments of each bar, one of them soon after the last bar's confirm."""
        market = self._market
        for row in range(max(0, market.base.row_at(from_ms)), len(market.base)):
            open_ms, close_ms = market.open_ms(row), market.close_ms(row)
            forced = market.confirm_ms(open_ms) + FIRST_QUOTE_MS
            times = {forced, *range(open_ms + GRID_MS, close_ms, self._gap_ms)}
            for at_ms in sorted(times):
                if at_ms > from_ms:
                    yield at_ms, partial(self._update, row, at_ms, forced=at_ms == forced)

    def _update(self, row: int, at_ms: int, *, forced: bool) -> list[Frame]:
        bids, asks = self._levels(row, at_ms - 1)
        changed = (bids, asks) != (self._bids, self._asks)
        if not changed and (self._depth > 1 or self._fresh(at_ms, forced=forced)):
            return []
        known = (dict(self._bids), dict(self._asks))
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
                _difference(known[0], bids, falling=True),
                _difference(known[1], asks, falling=False),
                at_ms,
            )
        ]

    def _fresh(self, at_ms: int, *, forced: bool) -> bool:
        """Return whether the last depth-1 frame needs no repeat yet."""
        return not forced and at_ms - self._sent_ms < REPEAT_MS

    def _levels(self, row: int, at_ms: int) -> tuple[Levels, Levels]:
        if self._depth > 1:
            return levels(self._market, row, at_ms, self._depth)
        touch = best(self._market, row, at_ms)
        return [(touch.bid, touch.bid_size)], [(touch.ask, touch.ask_size)]

    def _frame(self, kind: str, bids: Levels, asks: Levels, at_ms: int) -> Frame:
        market = self._market
        content = {
            "s": market.symbol,
            "b": [(*level, *self._extra) for level in level_texts(market, bids)],
            "a": [(*level, *self._extra) for level in level_texts(market, asks)],
            "u": self._update_id,
            "seq": market.sequence(at_ms),
        }
        head: dict[str, Any] = {"topic": self.topic, "type": kind, "ts": at_ms}
        if market.category is Category.SPOT:
            head = {"topic": self.topic, "ts": at_ms, "type": kind}
        body = head | {"data": content, "cts": self._matched_ms}
        return Frame(self.topic, encode(body), at_ms)


def level_texts(market: SimulatedMarket, side: Levels) -> list[Pair]:
    """Return *side* as (price, size) texts; a size of 0 is ``"0"``."""
    return [
        (market.price_text(price), market.size_text(size) if size else "0") for price, size in side
    ]


def _difference(known: dict[int, int], now: Levels, *, falling: bool) -> Levels:
    """Return the levels that changed, a gone one with size 0, in book order."""
    current = dict(now)
    changed = [(price, size) for price, size in now if known.get(price) != size]
    gone = [(price, 0) for price in known if price not in current]
    return sorted(changed + gone, reverse=falling)
