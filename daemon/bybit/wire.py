"""Sans-I/O reader of one websocket connection: bytes in, typed results out.

On any bytes whatever ``Wire.receive`` returns a result or raises ``MessageMalformed``, nothing
else. What it does not know is an ``Unknown``, never an error: the exchange may add topics. State
(ticker fields that deltas leave out, book levels) lives as long as the connection: make a new
``Wire`` after each reconnect.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

from msgspec import DecodeError, Struct

from tracepaper.daemon.bybit import messages
from tracepaper.daemon.bybit.candles import candle_layout, stream_bars
from tracepaper.daemon.bybit.decimals import exact, exact_signed, rounded
from tracepaper.daemon.bybit.intervals import interval_name
from tracepaper.daemon.bybit.messages import BookFrame, TickerData, decode_kline
from tracepaper.strategies.errors import MessageMalformed
from tracepaper.strategies.types import (
    MONEY_DECIMALS,
    Bar,
    Category,
    Instrument,
    Mark,
    Quote,
    Side,
    Trade,
)

BOOK_LEVELS_MAX: Final = 2_000
"""More levels a side than any depth of the exchange has; a bound on memory, not a rule."""
_KLINE_BEGINS: Final = b'{"topic":"kline.'
_SHORT_WAY: Final = len(_KLINE_BEGINS)
_SIDES: Final = {"Buy": Side.BUY, "Sell": Side.SELL}


class Candles(Struct, gc=False):
    """A kline frame: its closed candles, oldest first (most frames hold none)."""

    server_ms: int
    bars: list[Bar]


class Ticker(Struct, gc=False):
    """A linear ticker merged with what came before it on this connection."""

    server_ms: int
    instrument: str
    mark: Mark | None
    funding_rate: int | None  # 10^-10
    next_funding_ms: int | None


class Book(Struct, gc=False):
    """The best bid and ask after an order-book frame; None while a side is empty."""

    server_ms: int
    quote: Quote | None


class Trades(Struct, gc=False):
    """Public trades, oldest first."""

    server_ms: int
    trades: list[Trade]


class Ack(Struct, gc=False):
    """The exchange's answer to a request; it names no topics, so match ``request_id``."""

    ok: bool
    request_id: str
    message: str


class Pong(Struct, gc=False):
    """The answer to a ping: the line is open, which says nothing about the data."""


class Unknown(Struct, gc=False):
    """A well-formed frame that is not ours to read."""

    kind: str


Received = Candles | Ticker | Book | Trades | Ack | Pong | Unknown


class Levels:
    """One symbol's book as the frames build it, price text kept as exact integers."""

    def __init__(self) -> None:
        self.bids: dict[int, int] = {}
        self.asks: dict[int, int] = {}
        self.is_known = False

    def apply(self, frame: BookFrame, instrument: Instrument) -> None:
        """Take in *frame*; a snapshot replaces everything, also one that comes unasked."""
        if frame.type == "snapshot" or frame.data.u == 1:
            self.bids.clear()
            self.asks.clear()
            self.is_known = True
        _set_levels(self.bids, frame.data.b, instrument)
        _set_levels(self.asks, frame.data.a, instrument)


def _set_levels(
    side: dict[int, int], levels: Iterable[tuple[str, str]], instrument: Instrument
) -> None:
    """Insert, update or (size 0) delete *levels*; deleting an unknown price is no error."""
    for price_text, size_text in levels:
        price = exact(price_text, instrument.price_decimals)
        if size := exact(size_text, instrument.quantity_decimals):
            side[price] = size
        else:
            side.pop(price, None)
    if len(side) > BOOK_LEVELS_MAX:
        raise MessageMalformed(
            f"The book of {instrument.id} grew beyond {BOOK_LEVELS_MAX} levels; the frame was "
            "dropped, the next snapshot replaces the book."
        )


class Wire:
    """Reads the frames of one connection to ``/v5/public/{category}``.

    ``counters`` is shared with the owner and counts ``frames``, ``malformed.<kind>`` and
    ``unknown.<kind>``.
    """

    def __init__(
        self,
        *,
        category: Category,
        instruments: Iterable[Instrument],
        interval_ms: int,
        counters: Counter[str] | None = None,
    ) -> None:
        self.category = category
        self.counters: Counter[str] = Counter() if counters is None else counters
        self._symbols = {one.symbol: one for one in instruments if one.category is category}
        name = interval_name(interval_ms)
        self._layouts = {
            f"kline.{name}.{symbol}": candle_layout(one, interval_ms)
            for symbol, one in self._symbols.items()
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
        """Read one *frame*; every ``seen_ms`` is the frame's time until the feed hands it on.

        Raises ``MessageMalformed`` and nothing else, whatever the bytes.
        """
        kind = "kline"
        try:
            # Key order differs between categories, so this beginning is only the short way; all
            # other frames are read by the topic that their head names.
            if frame[:_SHORT_WAY] == _KLINE_BEGINS:
                kline = decode_kline(frame)
                if (layout := self._layouts.get(kline.topic)) is not None:
                    return Candles(kline.ts, stream_bars(kline, layout))
            kind = "frame"
            head = messages.decode_head(frame)
            kind = head.topic.partition(".")[0]
            return self._route(head, frame)
        except (DecodeError, MessageMalformed, UnicodeDecodeError, RecursionError) as error:
            kind = kind if kind in self._readers else "frame"
            self.counters[f"malformed.{kind}"] += 1
            if isinstance(error, MessageMalformed):
                raise
            raise MessageMalformed(
                f"A {kind} message is not what Bybit documents ({error}); it was dropped, compare "
                "it with the exchange's changelog if this repeats."
            ) from error

    def _route(self, head: messages.Head, frame: bytes) -> Received:
        """Read *frame* by what its *head* says it is."""
        if not head.topic:
            return self._control(head)
        kind, _, rest = head.topic.partition(".")
        symbol = rest.rpartition(".")[2]
        reader, instrument = self._readers.get(kind), self._symbols.get(symbol)
        if reader is None or instrument is None:
            return self._unknown(kind)
        return reader(frame, instrument)

    def _unknown(self, kind: str) -> Unknown:
        """Count a frame that is not ours; foreign names are cut so that counters stay few."""
        known = kind if kind in self._readers else "other"
        self.counters[f"unknown.{known}"] += 1
        return Unknown(kind[:32])

    def _control(self, head: messages.Head) -> Received:
        """Read an acknowledgement or a pong of any category."""
        if head.op == "pong" or head.ret_msg == "pong":
            return Pong()
        if head.success is not None:
            return Ack(head.success, str(head.req_id), head.ret_msg)
        return self._unknown(head.op or head.type)

    def _kline(self, frame: bytes, _: Instrument) -> Received:
        """Read a kline frame whose keys come in another order; another interval is a stranger."""
        kline = decode_kline(frame)
        if (layout := self._layouts.get(kline.topic)) is None:
            return self._unknown("kline")
        return Candles(kline.ts, stream_bars(kline, layout))

    def _ticker(self, frame: bytes, instrument: Instrument) -> Received:
        """Merge a ticker; spot's has neither mark nor funding and yields no more than its time."""
        ticker = messages.decode_ticker(frame)
        data = ticker.data
        before = self._tickers.get(instrument.symbol)
        if ticker.type != "snapshot":
            if before is None:
                return self._unknown("tickers")
            data = TickerData(
                symbol=data.symbol,
                last_price=before.last_price if data.last_price is None else data.last_price,
                mark_price=before.mark_price if data.mark_price is None else data.mark_price,
                next_funding_time=before.next_funding_time
                if data.next_funding_time is None
                else data.next_funding_time,
                funding_rate=before.funding_rate
                if data.funding_rate is None
                else data.funding_rate,
            )
        result = Ticker(
            server_ms=ticker.ts,
            instrument=instrument.id,
            mark=Mark(
                instrument.id,
                rounded(data.mark_price, instrument.price_decimals),
                ticker.ts,
                ticker.ts,
            )
            if data.mark_price
            else None,
            funding_rate=exact_signed(data.funding_rate, MONEY_DECIMALS)
            if data.funding_rate
            else None,
            next_funding_ms=exact(data.next_funding_time, 0) if data.next_funding_time else None,
        )
        self._tickers[instrument.symbol] = data
        return result

    def _book(self, frame: bytes, instrument: Instrument) -> Received:
        """Apply a book frame and return the best quote; a crossed book is refused."""
        book = messages.decode_book(frame)
        levels = self._books.setdefault(instrument.symbol, Levels())
        if book.type == "delta" and not levels.is_known:
            return self._unknown("orderbook")
        levels.apply(book, instrument)
        if not levels.bids or not levels.asks:
            return Book(book.ts, None)
        bid, ask = max(levels.bids), min(levels.asks)
        if not 0 < bid < ask:
            raise MessageMalformed(
                f"The best bid of {instrument.id} is not below its best ask; the frame was "
                "dropped, the next snapshot replaces the book."
            )
        quote = Quote(instrument.id, bid, levels.bids[bid], ask, levels.asks[ask], book.ts, book.ts)
        return Book(book.ts, quote)

    def _trades(self, frame: bytes, instrument: Instrument) -> Received:
        """Read public trades."""
        batch = messages.decode_trades(frame)
        trades = []
        for one in batch.data:
            if (side := _SIDES.get(one.side)) is None:
                raise MessageMalformed(
                    f"A trade of {instrument.id} has the side {one.side[:16]!r}, not Buy or Sell; "
                    "the frame was dropped."
                )
            trades.append(
                Trade(
                    instrument.id,
                    one.i,
                    side,
                    exact(one.p, instrument.price_decimals),
                    exact(one.v, instrument.volume_decimals),
                    one.time,
                    batch.ts,
                )
            )
        return Trades(batch.ts, trades)
