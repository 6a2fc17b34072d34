"""Sans-I/O reader of a websocket connection: bytes in, typed messages out.

For any bytes ``Wire.receive`` returns a result or raises ``MessageMalformed``, nothing else. An
unknown frame is an ``UnreadFrame``, not an error, since the exchange may add topics. A frame that
cannot be true (a future date, off the grid, another symbol than its topic's) is rejected before any
of it is applied. State (ticker fields that deltas omit, book levels) belongs to one connection:
make a new ``Wire`` after each reconnect.

The rules are docs/time.md, T11 to T13.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Final

from msgspec import Struct, structs

from tracepaper.daemon.bybit import messages
from tracepaper.daemon.bybit.instruments import candle_reader, exact, interval_name, rounded
from tracepaper.daemon.bybit.messages import KlineCandle, TickerData, TickerFrame, decode_kline
from tracepaper.strategies.errors import FrameImpossible, MessageMalformed
from tracepaper.strategies.types.market import (
    Bar,
    Category,
    Depth,
    Instrument,
    Mark,
    Quote,
    Side,
    Source,
    Trade,
)
from tracepaper.strategies.units import DAY_MS

EARLY_MS: Final = 1_000
"""A closing frame may be dated this long before the close; an earlier one does not close it."""
BOOK_LEVELS_MAX: Final = 1_000
"""Most levels a side of the exchange's deepest topic; a book with more is dropped."""
FUNDING_AHEAD_MS: Final = DAY_MS
"""Longest time to the next funding; most instruments settle every four or eight hours."""
_ARGUMENTS: Final = {
    "orderbook": ("1", "25", "40", "50", "100", "200", "500", "1000"),
    "tickers": ("",),
    "publicTrade": ("",),
}
"""The texts allowed between a topic's kind and its symbol; other topics get no state."""
_CLOSE_CANDLES: Final = 2  # candles in a frame at a close: the closed and the new one
_STREAM: Final = Source.STREAM
_SIDES: Final = {"Buy": Side.BUY, "Sell": Side.SELL}
"""The sides by the exchange's names."""


class ClosedCandles(Struct, gc=False):
    """A kline frame: its closed candles, oldest first (most frames hold none)."""

    bars: list[Bar]


class Ticker(Struct, gc=False):
    """A linear ticker, merged with the earlier ones of this connection."""

    instrument: str
    mark: Mark | None
    next_funding_ms: int | None


class BestQuotes(Struct, gc=False):
    """The best bid and ask after an order-book frame; None if a side is empty."""

    quote: Quote | None


class Trades(Struct, gc=False):
    """Public trades, oldest first."""

    trades: list[Trade]


class Ack(Struct, gc=False):
    """The exchange's answer to a request; it names no topics, only ``request_id``."""

    ok: bool
    request_id: str
    message: str


class Pong(Struct, gc=False):
    """The answer to a ping: the connection is open, but that is no evidence of data."""


class UnreadFrame(Struct, gc=False):
    """A valid frame that was not subscribed or cannot be applied."""


class RefusedFrame(Struct, gc=False):
    """A frame whose date was rejected; none of it was applied."""


Received = ClosedCandles | Ticker | BestQuotes | Trades | Ack | Pong | UnreadFrame | RefusedFrame
_Sides = tuple[list[tuple[int, int]], list[tuple[int, int]]]


class Levels:
    """The book of one topic, with prices and sizes as exact integers."""

    def __init__(self) -> None:
        self.bids: dict[int, int] = {}
        self.asks: dict[int, int] = {}
        self.is_known = False
        self.update = 0  # the number of the last frame
        self.market_ms = 0

    def forget(self) -> None:
        """Drop all levels; the book is unknown until the next snapshot."""
        self.bids.clear()
        self.asks.clear()
        self.is_known = False

    def follow(self, update: int, *, is_snapshot: bool) -> bool:
        """Return whether the frame with number *update* can be applied.

        The exchange numbers the frames of a deep book consecutively; 0 means no number. A snapshot
        can always be applied; one that does not follow the last frame first clears the book.
        """
        if not self.is_known or not update or update == self.update + 1:
            return True
        if is_snapshot and update != self.update:  # a repeated snapshot changes nothing
            self.forget()
        return is_snapshot

    def apply(self, sides: _Sides, *, is_snapshot: bool) -> None:
        """Apply the levels of *sides*; a snapshot, even an unrequested one, replaces the book."""
        if is_snapshot:
            self.forget()
            self.is_known = True
        for side, levels in zip((self.bids, self.asks), sides, strict=True):
            for price, size in levels:
                if size:
                    side[price] = size
                else:
                    side.pop(price, None)  # a delta may delete an unknown level


def _exact_levels(
    levels: Iterable[tuple[str, str]], instrument: Instrument
) -> list[tuple[int, int]]:
    """Return prices and sizes as exact integers in the decimals of *instrument*."""
    return [
        (exact(price, instrument.price_decimals), exact(size, instrument.quantity_decimals))
        for price, size in levels
    ]


def _packed(levels: list[tuple[int, int]]) -> bytes:
    """Return *levels* as the bytes of one side in ``Depth``."""
    return struct.pack(f"<{2 * len(levels)}q", *chain.from_iterable(levels))


def _reject_doubles(candles: list[KlineCandle], topic: str) -> None:
    """Reject a frame with two different candles of the same time; REST has the right one."""
    first: dict[int, KlineCandle] = {}
    for candle in candles:
        if first.setdefault(candle.start, candle) != candle:
            raise FrameImpossible(
                "double",
                f"One frame of {topic} holds two candles at {candle.start} that differ; it was "
                "dropped, and REST is asked for the candle.",
            )


def _foreign(kind: str, topic: str, named: str) -> FrameImpossible:
    """Return the error of a frame whose data belong to another symbol than its topic."""
    return FrameImpossible(
        "foreign",
        f"A frame of {kind} has the topic {topic[:64]!r} and data of {named[:32]!r}; it was "
        "dropped.",
    )


class Wire:
    """Reads the frames of one connection to ``/v5/public/{category}``.

    ``counters``, shared with the owner, counts rejected and unknown frames as ``<fault>.<kind>``.
    The faults are ``malformed``, ``unknown``, ``ahead``, ``early``, ``off_grid``,
    ``contradictory``, ``untraded``, ``double``, ``foreign``, ``crossed``, ``deep`` and ``skipped``.
    *observe* is called with the date of each frame before any of it is applied, and returns whether
    it is accepted. *refused* is called with the kind and the message of each rejection.
    ``stale_topics`` lost their state with a rejected frame; the owner pops them and subscribes them
    again for a snapshot.
    """

    def __init__(
        self,
        *,
        category: Category,
        instruments: Iterable[Instrument],
        interval_ms: int,
        counters: Counter[str] | None = None,
        observe: Callable[[int], bool] | None = None,
        refused: Callable[[str, str], None] = lambda _kind, _sentence: None,
    ) -> None:
        self.stale_topics: set[str] = set()
        self._observe = observe
        self._refused = refused
        self.counters: Counter[str] = Counter() if counters is None else counters
        self._symbols = {
            instrument.symbol: instrument
            for instrument in instruments
            if instrument.category is category
        }
        name = interval_name(interval_ms)
        self._candle_readers = {
            f"kline.{name}.{symbol}": candle_reader(instrument, interval_ms)
            for symbol, instrument in self._symbols.items()
        }
        self._tickers: dict[str, TickerData] = {}
        self._books: dict[str, Levels] = {}
        self._readers: dict[str, Callable[[bytes, Instrument], Received]] = {
            "kline": self._kline,
            "tickers": self._ticker,
            "orderbook": self._book,
            "publicTrade": self._trades,
        }

    def receive(self, frame: bytes) -> Received:
        """Read one *frame*; ``seen_ms`` is the frame's time until the feed sets it on delivery.

        Raises ``MessageMalformed`` and nothing else, for any bytes.
        """
        kind, topic = "frame", ""
        try:
            head = messages.decode_head(frame)
            topic = head.topic
            kind = topic.partition(".")[0]
            return self._route(head, frame)
        except (MessageMalformed, ValueError, RecursionError) as error:
            kind = kind if kind in self._readers else "frame"
            if isinstance(error, MessageMalformed):
                refusal = error
            else:
                refusal = MessageMalformed(
                    f"A {kind} message is not what Bybit documents ({error}); it was dropped, "
                    "compare it with the exchange's changelog if this repeats."
                )
            fault = refusal.kind if isinstance(refusal, FrameImpossible) else "malformed"
            self._reject(f"{fault}.{kind}", str(refusal))
            self._invalidate(topic)
            if refusal is error:
                raise
            raise refusal from error

    def depth(self, topic: str, levels: int, seen_ms: int) -> Depth | None:
        """Return the best *levels* a side of the book of *topic*; None if a side is empty."""
        book = self._books.get(topic)
        instrument = self._symbols.get(topic.rpartition(".")[2])
        if book is None or instrument is None or not book.bids or not book.asks:
            return None
        bids = sorted(book.bids.items(), reverse=True)[:levels]
        asks = sorted(book.asks.items())[:levels]
        return Depth(instrument.id, _packed(bids), _packed(asks), book.market_ms, seen_ms)

    def last_update(self, topic: str) -> int | None:
        """Return the number of the last frame of the book of *topic*; None if it is unknown."""
        book = self._books.get(topic)
        return book.update if book is not None and book.is_known else None

    def pop_stale_topics(self) -> set[str]:
        """Return the topics that need a snapshot, each once."""
        stale, self.stale_topics = self.stale_topics, set()
        return stale

    def _reject(self, kind: str, sentence: str) -> None:
        self.counters[kind] += 1
        self._refused(kind, sentence)

    def _ahead(self, kind: str, server_ms: int) -> RefusedFrame:
        self._reject(
            f"ahead.{kind}",
            f"A frame of {kind} is dated {server_ms}, ahead of the exchange's time; it was dropped "
            "and that time is read again.",
        )
        return RefusedFrame()

    def _accepts_date(self, server_ms: int) -> bool:
        return self._observe is None or self._observe(server_ms)

    def _invalidate(self, topic: str) -> None:
        """Drop the state of *topic*, since one of its frames is missing now."""
        if (levels := self._books.get(topic)) is not None:
            levels.forget()
            self.stale_topics.add(topic)
        if self._tickers.pop(topic, None) is not None:
            self.stale_topics.add(topic)

    def _route(self, head: messages.FrameHead, frame: bytes) -> Received:
        if not head.topic:  # acknowledgements and pongs, whose form depends on the category
            if head.op == "pong" or head.ret_msg == "pong":
                return Pong()
            if head.success is not None:
                return Ack(head.success, str(head.req_id), head.ret_msg)
            return self._unknown(head.op or head.type)
        kind, _, rest = head.topic.partition(".")
        argument, _, symbol = rest.rpartition(".")
        reader, instrument = self._readers.get(kind), self._symbols.get(symbol)
        if (
            reader is None
            or instrument is None
            or argument not in _ARGUMENTS.get(kind, (argument,))
        ):
            return self._unknown(kind)
        return reader(frame, instrument)

    def _unknown(self, kind: str) -> UnreadFrame:
        """Count a frame that was not subscribed; all unknown kinds share one counter."""
        counted = kind if kind in self._readers else "other"
        self.counters[f"unknown.{counted}"] += 1
        return UnreadFrame()

    def _before_snapshot(self, kind: str, topic: str) -> UnreadFrame:
        """Reject a delta that arrives before any snapshot, and mark its topic as stale."""
        self.stale_topics.add(topic)
        self._reject(
            f"unknown.{kind}",
            f"A delta of {topic[:64]} came before any snapshot; it was dropped and a snapshot is "
            "requested.",
        )
        return UnreadFrame()

    def _kline(self, frame: bytes, _: Instrument) -> Received:
        """Return the closed candles of a frame as bars.

        A candle that is marked as closed before its close counts as open. Raises
        ``MessageMalformed`` if a number is not exact, and ``FrameImpossible`` if a candle
        contradicts itself, is off the grid, or differs from another of the same time.
        """
        kline = decode_kline(frame)
        if (read := self._candle_readers.get(kline.topic)) is None:
            return self._unknown("kline")
        bars: list[Bar] = []
        candles, server_ms = kline.data, kline.ts
        is_close = len(candles) == _CLOSE_CANDLES and candles[0].start != candles[1].start
        if len(candles) > 1 and not is_close:
            _reject_doubles(candles, kline.topic)
        for candle in candles:
            # The exchange repeats the open candle until it closes; only a confirmed one is final.
            if not candle.confirm:
                continue
            bar = read(candle, server_ms, _STREAM)
            if candle.end - EARLY_MS >= server_ms:
                self._reject_early(candle, server_ms)
            else:
                bars.append(bar)
        if self._accepts_date(server_ms):
            return ClosedCandles(bars)
        return self._ahead("kline", server_ms)

    def _reject_early(self, candle: KlineCandle, server_ms: int) -> None:
        """Reject a candle that is marked as closed before its close, or before its start."""
        if candle.start > server_ms + EARLY_MS:
            self._ahead("kline", candle.start)
            return
        self._reject(
            "early.kline",
            f"The candle at {candle.start} is marked as closed before its close; it counts as "
            "open until its closing frame.",
        )

    def _ticker(self, frame: bytes, instrument: Instrument) -> Received:
        """Merge a ticker into the state; one of spot has neither mark nor funding."""
        ticker = messages.decode_ticker(frame)
        data = ticker.data
        if data.symbol != instrument.symbol:
            raise _foreign("tickers", ticker.topic, data.symbol)
        before = self._tickers.get(ticker.topic)
        if ticker.type != "snapshot":
            if before is None:
                return self._before_snapshot("tickers", ticker.topic)
            data = _merged(before, data)
        result = Ticker(
            instrument=instrument.id,
            mark=_mark(data, instrument, ticker.ts),
            next_funding_ms=self._next_funding(ticker, data),
        )
        if not self._accepts_date(ticker.ts):
            return self._ahead("tickers", ticker.ts)
        self._tickers[ticker.topic] = data
        return result

    def _next_funding(self, ticker: TickerFrame, data: TickerData) -> int | None:
        """Return the time of the next funding; None without one or more than a day ahead."""
        if not data.next_funding_time:
            return None
        next_ms = exact(data.next_funding_time, 0)
        if next_ms <= ticker.ts + FUNDING_AHEAD_MS:
            return next_ms
        self._reject(
            "ahead.funding",
            f"{ticker.topic} announces its next funding at {next_ms}, more than a day ahead; the "
            "instrument's own times are kept.",
        )
        return None

    def _book(self, frame: bytes, instrument: Instrument) -> Received:
        """Apply a book frame and return the best quotes; drop a crossed or too deep book."""
        book = messages.decode_book(frame)
        if book.data.s != instrument.symbol:
            raise _foreign("orderbook", book.topic, book.data.s)
        # After a restart of its service the exchange sends a whole book as number 1, of any type.
        is_snapshot = book.type == "snapshot" or book.data.u == 1
        levels = self._books.setdefault(book.topic, Levels())
        if not is_snapshot and not levels.is_known:
            return self._before_snapshot("orderbook", book.topic)
        # A book of depth 1 has only snapshots, whose numbers have gaps.
        is_deep = not book.topic.startswith("orderbook.1.")
        if is_deep and not levels.follow(book.data.u, is_snapshot=is_snapshot):
            raise FrameImpossible(
                "skipped",
                f"Frame {book.data.u} of {book.topic} does not follow {levels.update}; the book "
                "was dropped and a snapshot is requested.",
            )
        sides = (_exact_levels(book.data.b, instrument), _exact_levels(book.data.a, instrument))
        if not self._accepts_date(max(book.ts, book.cts)):
            if not is_snapshot:
                self._invalidate(book.topic)
            return self._ahead("orderbook", max(book.ts, book.cts))
        levels.apply(sides, is_snapshot=is_snapshot)
        levels.update, levels.market_ms = book.data.u, book.ts
        if max(len(levels.bids), len(levels.asks)) > BOOK_LEVELS_MAX:
            raise FrameImpossible(
                "deep",
                f"The book of {instrument.id} has more than {BOOK_LEVELS_MAX} levels a side; it "
                "was dropped and a snapshot is requested.",
            )
        self.stale_topics.discard(book.topic)
        if not levels.bids or not levels.asks:
            return BestQuotes(None)
        bid, ask = max(levels.bids), min(levels.asks)
        if not 0 < bid < ask:
            raise FrameImpossible(
                "crossed",
                f"The best bid of {instrument.id} is not below its best ask; the book was "
                "dropped and a snapshot is requested.",
            )
        quote = Quote(instrument.id, bid, levels.bids[bid], ask, levels.asks[ask], book.ts, book.ts)
        return BestQuotes(quote)

    def _trades(self, frame: bytes, instrument: Instrument) -> Received:
        batch = messages.decode_trades(frame)
        trades = []
        newest_ms = batch.ts
        for trade in batch.data:
            if trade.symbol != instrument.symbol:
                raise _foreign("publicTrade", batch.topic, trade.symbol)
            if (side := _SIDES.get(trade.side)) is None:
                raise MessageMalformed(
                    f"A trade of {instrument.id} has the side {trade.side[:16]!r}, not Buy or "
                    "Sell; the frame was dropped."
                )
            newest_ms = max(newest_ms, trade.time)
            trades.append(
                Trade(
                    instrument.id,
                    trade.i,
                    side,
                    exact(trade.p, instrument.price_decimals),
                    exact(trade.v, instrument.volume_decimals),
                    trade.time,
                    batch.ts,
                )
            )
        if not self._accepts_date(newest_ms):
            return self._ahead("publicTrade", newest_ms)
        return Trades(trades)


def _mark(data: TickerData, instrument: Instrument, server_ms: int) -> Mark | None:
    """Return the mark, index and last price of a ticker; None if it has no mark price."""
    if not data.mark_price:
        return None
    decimals = instrument.price_decimals
    return Mark(
        instrument.id,
        rounded(data.mark_price, decimals),
        server_ms,
        server_ms,
        rounded(data.index_price, decimals) if data.index_price else None,
        rounded(data.last_price, decimals) if data.last_price else None,
    )


def _merged(before: TickerData, delta: TickerData) -> TickerData:
    """Return *before*, updated with the fields of *delta* that are present."""
    values = ((name, getattr(delta, name)) for name in delta.__struct_fields__)
    return structs.replace(before, **{name: value for name, value in values if value is not None})
