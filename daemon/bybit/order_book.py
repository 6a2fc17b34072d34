"""Order books sampled on a grid of market times.

The rules are docs/orderbook.md, D1 to D3 and D13.
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
"""The depths that the exchange sends (docs/v5/websocket/public/orderbook)."""

Take = Callable[[Depth, str], None]
"""Is given each book, and why it does not go on from the one before; empty where it does."""


@dataclass(frozen=True)
class DepthRequest:
    """What to record: *levels* a side, each ``every_ms`` of market time, or every event."""

    category: Category
    symbol: str
    levels: int
    every_ms: int
    events: bool = False

    def __post_init__(self) -> None:
        """Raise ``ConfigInvalid`` for what no file holds."""
        if not 1 <= self.levels <= LEVELS_MAX:
            raise ConfigInvalid(f"--depth is {self.levels}: give 1 to {LEVELS_MAX} levels a side.")
        if not EVERY_MS_MIN <= self.every_ms <= EVERY_MS_MAX:
            raise ConfigInvalid(
                f"--every is {self.every_ms}: give {EVERY_MS_MIN} to {EVERY_MS_MAX:,} milliseconds."
            )

    @property
    def topic(self) -> str:
        """The shallowest topic of the exchange that has so many levels."""
        depth = next(depth for depth in STREAM_DEPTHS if depth >= self.levels)
        return f"orderbook.{depth}.{self.symbol}"


class DepthSampler:
    """Reads the frames of one topic, and hands on the book of each time of the grid.

    The book of a time is made of every frame dated until then. It is known once a later frame
    follows, so nothing is said of a stretch whose end was not heard. *accepts* is asked whether
    the date of a frame is believed; *refused* is told of each refusal, and *counters* counts them.
    """

    def __init__(
        self,
        instrument: Instrument,
        request: DepthRequest,
        take: Take,
        *,
        topic: str = "",
        accepts: Callable[[int], bool] = lambda _: True,
        counters: Counter[str] | None = None,
        refused: Callable[[str, str], None] = lambda _kind, _sentence: None,
    ) -> None:
        self.topic: Final = topic or request.topic
        self.topics: Final = (self.topic,)
        self._instrument = instrument
        self._request = request
        self._take = take
        self._accepts = accepts
        self._counters = counters
        self._told = refused
        self._next_ms: int | None = None
        self._cause = "stopped"
        self._heard_ms: int | None = None
        self._taken_ms = 0
        self._wire = self._new_wire()

    def _new_wire(self) -> Wire:
        return Wire(
            category=self._request.category,
            instruments=[self._instrument],
            interval_ms=MINUTE_MS,
            counters=self._counters,
            observe=self._observe,
            refused=self._refused,
        )

    def lost(self, cause: str) -> None:
        """Forget the book, for *cause*: the next one begins after a gap."""
        self._wire = self._new_wire()
        self._heard_ms = None
        self._break(cause)

    def receive(self, frame: bytes) -> Received | None:
        """Read one frame; None where it was refused, and its book is gone until a snapshot."""
        try:
            received = self._wire.receive(frame)
        except MessageMalformed:
            return None
        if isinstance(received, RefusedFrame):
            return None
        if self._next_ms is None and self._heard_ms is not None and self._book(0) is not None:
            every_ms = self._request.every_ms
            first_ms = max(self._heard_ms, self._taken_ms + 1)
            self._next_ms = -(-first_ms // every_ms) * every_ms
        return received

    def pop_stale_topics(self) -> set[str]:
        """Return the topics that need a snapshot, each once."""
        return self._wire.pop_stale_topics()

    def _book(self, seen_ms: int) -> Depth | None:
        return self._wire.depth(self.topic, self._request.levels, seen_ms)

    def _break(self, cause: str) -> None:
        if self._next_ms is not None:
            self._next_ms, self._cause = None, cause

    def _refused(self, kind: str, sentence: str) -> None:
        self._told(kind, sentence)
        self._break("sequence" if kind == "skipped.orderbook" else "refused")

    def _observe(self, server_ms: int) -> bool:
        """Sample the books before *server_ms*, the date of a frame that is not applied yet."""
        if not self._accepts(server_ms):
            return False
        heard_ms, self._heard_ms = self._heard_ms, server_ms
        if heard_ms is not None and server_ms < heard_ms:
            self._break("clock")
        if heard_ms is not None and server_ms - heard_ms > SILENT_MS:
            self._break("silent")
        while self._next_ms is not None and self._next_ms < server_ms:
            book = self._book(self._next_ms)
            if book is None:  # a snapshot out of sequence replaced the book
                self._break("empty" if self._wire.knows(self.topic) else "sequence")
                break
            self._take(book, self._cause)
            self._cause, self._taken_ms = "", self._next_ms
            self._next_ms += self._request.every_ms
        return True
