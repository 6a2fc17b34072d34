"""Reads every frame of a symbol's order book and trades, and says where one is missing.

A daemon whose orders the book fills, a recorder of events and a reader of their files go by it
alike. The rules are docs/orderbook.md, D25 to D27, and docs/money.md, M62 and M72.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from tracepaper.daemon.bybit.instruments import exact
from tracepaper.daemon.bybit.messages import decode_book, decode_trades
from tracepaper.daemon.bybit.order_book import DepthRequest
from tracepaper.daemon.bybit.wire import BestQuotes, Received, RefusedFrame, Trades, Wire
from tracepaper.daemon.feed.book_follower import ReadFrame
from tracepaper.strategies.errors import MessageMalformed
from tracepaper.strategies.order_book import LEVELS_MAX
from tracepaper.strategies.types.market import Depth, Instrument, Side
from tracepaper.strategies.units import MINUTE_MS

_TAKERS: Final = {"Buy": Side.BUY, "Sell": Side.SELL}


class FrameReader:
    """Reads frames of a book and its trades; ``cause`` is why the last one does not go on."""

    def __init__(
        self,
        instrument: Instrument,
        topics: Sequence[str],
        accepts: Callable[[int], bool] | None = None,
    ) -> None:
        self._instrument, self._topics, self._accepts = instrument, topics, accepts
        self._is_numbered = not topics[0].startswith("orderbook.1.")
        self.forget()

    def forget(self) -> None:
        """Know nothing of what came before."""
        self.cause = self.sentence = ""
        self._wire = Wire(
            category=self._instrument.category,
            instruments=[self._instrument],
            interval_ms=MINUTE_MS,
            observe=self._accepts,
            refused=self._refused,
        )

    def _refused(self, kind: str, sentence: str) -> None:
        self.sentence = sentence
        if kind != "unknown.orderbook":  # a delta of a book that is not known yet
            self.cause = "sequence" if kind == "skipped.orderbook" else "refused"

    def read(self, frame: bytes) -> Received | None:
        """Read *frame*; None where it is refused.

        A snapshot that does not follow what was known is read, with a ``cause``.
        """
        self.cause = ""
        before = self._wire.last_update(self._topics[0])
        try:
            received = self._wire.receive(frame)
        except MessageMalformed:
            return None
        after = self._wire.last_update(self._topics[0])
        if (
            self._is_numbered
            and before is not None
            and after is not None
            and (after - before not in {0, 1})
        ):
            self.cause, self.sentence = "sequence", "It does not follow the frame before it."
        return None if isinstance(received, RefusedFrame) else received

    def depth(self, seen_ms: int) -> Depth | None:
        """Return the whole book; None while a side is empty."""
        return self._wire.depth(self._topics[0], LEVELS_MAX, seen_ms)

    def pop_stale_topics(self) -> set[str]:
        """Return the topics that need a snapshot, each once."""
        return self._wire.pop_stale_topics()


Take = Callable[[bytes, BestQuotes | Trades | None, str], None]
"""Is given each frame that is kept and what it says, or nothing and the cause of a gap."""


class EventReader:
    """Hands on the frames of its topics as they come, and every gap.

    After a gap no frame of the book is handed on before a snapshot. *accepts* is asked whether the
    date of a frame is believed.
    """

    def __init__(
        self,
        instrument: Instrument,
        topics: Iterable[str],
        take: Take,
        *,
        accepts: Callable[[int], bool],
    ) -> None:
        self.topics: Final = tuple(topics)
        self._take = take
        self._stale: set[str] = set()
        self._reader = FrameReader(instrument, self.topics, accepts)

    def lost(self, cause: str) -> None:
        """Hand on a gap for *cause*, and wait for a snapshot."""
        self._take(b"", None, cause)
        self._reader.forget()

    def ask_anew(self) -> None:
        """Forget the book, and ask for a snapshot of it."""
        self._reader.forget()
        self._stale.add(self.topics[0])

    def receive(self, frame: bytes) -> Received | None:
        """Read one frame; None where it was refused, and a new snapshot is needed."""
        received, cause = self._reader.read(frame), self._reader.cause
        if cause and received is not None:
            self._take(b"", None, cause)
        elif cause:
            self.lost(cause)
            self._stale.add(self.topics[0])
        if isinstance(received, BestQuotes | Trades):
            self._take(frame, received, "")
        return received

    def pop_stale_topics(self) -> set[str]:
        """Return the topics that need a snapshot, each once."""
        stale, self._stale = self._stale | self._reader.pop_stale_topics(), set()
        return stale


def fill_topics(request: DepthRequest) -> tuple[str, str]:
    """Return the topics by which a book fills orders: that of the book, then that of the trades."""
    return request.topic, f"publicTrade.{request.symbol}"


def frame_of(read: BestQuotes | Trades, frame: bytes, instrument: Instrument) -> ReadFrame:
    """Return the update of the book by *frame*, read as *read*, in the decimals of *instrument*.

    Block trades and those against retail price improvement are left out.
    """
    prices, sizes = instrument.price_decimals, instrument.quantity_decimals
    if isinstance(read, BestQuotes):
        update = decode_book(frame)
        bids, asks = (
            [(exact(price, prices), exact(size, sizes)) for price, size in side]
            for side in (update.data.b, update.data.a)
        )
        best = None if read.quote is None else (read.quote.bid, read.quote.ask)
        is_snapshot = update.type == "snapshot" or update.data.u == 1
        return ReadFrame(read.server_ms, "", (bids, asks), is_snapshot, best)
    trades = [
        (_TAKERS[trade.side], exact(trade.p, prices), exact(trade.v, sizes))
        for trade in decode_trades(frame).data
        if not (trade.is_block or trade.is_rpi)
    ]
    return ReadFrame(read.server_ms, trades=trades)
