"""Samples the order book of a symbol at regular times.

A daemon that stores books and the recorder use it. The rules are docs/orderbook.md, D1 to D3 and
D13.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tracepaper.daemon.bybit.wire import Received, RefusedFrame, Wire
from tracepaper.strategies.errors import ConfigInvalid, MessageMalformed
from tracepaper.strategies.order_book import EVERY_MS_MAX, EVERY_MS_MIN, LEVELS_MAX, SILENT_MS
from tracepaper.strategies.types.market import Category, Depth, Instrument
from tracepaper.strategies.units import MINUTE_MS

STREAM_DEPTHS: Final = (1, 50, 200, 1000)
"""The depths that the exchange offers (docs/v5/websocket/public/orderbook)."""

TakeBook = Callable[[Depth, str], None]
"""Called with each sampled book and the cause of a gap before it, empty without a gap."""


@dataclass(frozen=True)
class DepthRequest:
    """What to record: *levels* a side, every ``every_ms`` of market time."""

    category: Category
    symbol: str
    levels: int
    every_ms: int

    def __post_init__(self) -> None:
        """Raise ``ConfigInvalid`` for values that the file format does not support."""
        if not 1 <= self.levels <= LEVELS_MAX:
            raise ConfigInvalid(f"--depth is {self.levels}: give 1 to {LEVELS_MAX} levels a side.")
        if not EVERY_MS_MIN <= self.every_ms <= EVERY_MS_MAX:
            raise ConfigInvalid(
                f"--every is {self.every_ms}: give {EVERY_MS_MIN} to {EVERY_MS_MAX:,} milliseconds."
            )

    @property
    def topic(self) -> str:
        """The shallowest topic of the exchange with at least ``levels`` levels."""
        depth = next(depth for depth in STREAM_DEPTHS if depth >= self.levels)
        return f"orderbook.{depth}.{self.symbol}"


class FrameReader:
    """Reads the frames of a book, those of *topic*.

    ``cause`` is the cause of a gap before or at the last frame. *accepts* returns whether to accept
    the date of a frame. *refused* is called for each rejection, and *counters* counts them.
    """

    def __init__(
        self,
        instrument: Instrument,
        topic: str,
        accepts: Callable[[int], bool],
        *,
        counters: Counter[str] | None,
        refused: Callable[[str, str], None],
    ) -> None:
        self._instrument, self._topic, self._accepts = instrument, topic, accepts
        self._counters, self._report_refusal = counters, refused
        self._is_numbered = not topic.startswith("orderbook.1.")
        self.forget()

    def forget(self) -> None:
        """Drop all state."""
        self.cause = ""
        self._wire = Wire(
            category=self._instrument.category,
            instruments=[self._instrument],
            interval_ms=MINUTE_MS,
            counters=self._counters,
            observe=self._accepts,
            refused=self._refused,
        )

    def _refused(self, kind: str, sentence: str) -> None:
        self._report_refusal(kind, sentence)
        if kind != "unknown.orderbook":  # a delta before the first snapshot is no gap
            self.cause = "sequence" if kind == "skipped.orderbook" else "refused"

    def read(self, frame: bytes) -> Received | None:
        """Read *frame*; return None if it is rejected.

        A snapshot that does not follow the last frame is accepted, with a ``cause``.
        """
        self.cause = ""
        before = self._wire.last_update(self._topic)
        try:
            received = self._wire.receive(frame)
        except MessageMalformed:
            return None
        after = self._wire.last_update(self._topic)
        if (
            self._is_numbered
            and before is not None
            and after is not None
            and (after - before not in {0, 1})
        ):
            self.cause = "sequence"
        return None if isinstance(received, RefusedFrame) else received

    @property
    def is_known(self) -> bool:
        """Whether the whole book is known; its sides may be empty."""
        return self._wire.last_update(self._topic) is not None

    def depth(self, seen_ms: int, levels: int) -> Depth | None:
        """Return the best *levels* a side of the book; None if a side is empty."""
        return self._wire.depth(self._topic, levels, seen_ms)

    def pop_stale_topics(self) -> set[str]:
        """Return the topics that need a snapshot, each once."""
        return self._wire.pop_stale_topics()


class DepthSampler:
    """Reads the frames of one topic, and passes on the book at each time of the grid.

    The book at a time includes every frame dated until then. It is passed on when a later frame
    arrives, so a period whose end was not received has no samples.
    """

    def __init__(
        self,
        instrument: Instrument,
        request: DepthRequest,
        take: TakeBook,
        *,
        topic: str = "",
        accepts: Callable[[int], bool] = lambda _: True,
        counters: Counter[str] | None = None,
        refused: Callable[[str, str], None] = lambda _kind, _sentence: None,
    ) -> None:
        self.topic: Final = topic or request.topic
        self._request = request
        self._take = take
        self._accepts = accepts
        self._next_ms: int | None = None
        self._cause = "stopped"
        self._received_ms: int | None = None  # the date of the newest accepted frame
        self._sampled_ms = 0  # the time of the newest sample
        self._reader = FrameReader(
            instrument, self.topic, self._observe, counters=counters, refused=refused
        )
        self.pop_stale_topics = self._reader.pop_stale_topics

    def lost(self, cause: str) -> None:
        """Drop the book; the next sample follows a gap with this *cause*."""
        self._reader.forget()
        self._received_ms = None
        self._break(cause)

    def receive(self, frame: bytes) -> Received | None:
        """Read one frame; return None if it was rejected, which drops the book."""
        received = self._reader.read(frame)
        if received is None:
            self._break(self._reader.cause)
        elif self._next_ms is None and self._received_ms is not None and self._book(0) is not None:
            every_ms = self._request.every_ms
            first_ms = max(self._received_ms, self._sampled_ms + 1)
            self._next_ms = -(-first_ms // every_ms) * every_ms
        return received

    def _book(self, seen_ms: int) -> Depth | None:
        return self._reader.depth(seen_ms, self._request.levels)

    def _break(self, cause: str) -> None:
        if self._next_ms is not None:
            self._next_ms, self._cause = None, cause

    def _observe(self, server_ms: int) -> bool:
        """Sample the book at the times before *server_ms*, the date of the next frame."""
        if not self._accepts(server_ms):
            return False
        last_ms, self._received_ms = self._received_ms, server_ms
        if last_ms is not None and server_ms < last_ms:
            self._break("clock")
        if last_ms is not None and server_ms - last_ms > SILENT_MS:
            self._break("silent")
        while self._next_ms is not None and self._next_ms < server_ms:
            book = self._book(self._next_ms)
            if book is None:  # a snapshot out of sequence replaced the book
                self._break("empty" if self._reader.is_known else "sequence")
                break
            self._take(book, self._cause)
            self._cause, self._sampled_ms = "", self._next_ms
            self._next_ms += self._request.every_ms
        return True
