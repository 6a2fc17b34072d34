"""Books at a grid of times out of an exchange's frames, live or recorded; gaps are never bridged.

The rules are docs/orderbook.md, D1 to D3.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from tracepaper.daemon.bybit.instruments import instrument_from
from tracepaper.daemon.bybit.messages import InstrumentInfo
from tracepaper.daemon.bybit.rest import RestClient
from tracepaper.daemon.bybit.retry import Cooldown, RestartBudget, is_loopback
from tracepaper.daemon.bybit.websocket import PublicStream, StreamCallbacks
from tracepaper.daemon.bybit.wire import Received, RefusedFrame, Wire
from tracepaper.daemon.config.sections import ExchangeSection
from tracepaper.daemon.engine.ports import Clock
from tracepaper.replay.archive.depth import EVERY_MS_MAX, EVERY_MS_MIN, DepthHeader, DepthWriter
from tracepaper.replay.archive.fetch import FAILURES_MAX, FAILURES_WINDOW_S
from tracepaper.strategies.books import LEVELS_MAX
from tracepaper.strategies.errors import (
    ConfigInvalid,
    FeedStale,
    MessageMalformed,
    Recoverable,
)
from tracepaper.strategies.market import MINUTE_MS
from tracepaper.strategies.types import Category, Depth, Instrument

STREAM_DEPTHS: Final = (1, 50, 200, 1000)
"""The depths that the exchange sends (docs/v5/websocket/public/orderbook)."""
SILENT_MS: Final = MINUTE_MS
"""A book of which nothing was heard for so long, market time, is not taken to stand still."""

Take = Callable[[Depth, str], None]
"""Is given each book, and why it does not go on from the one before; empty where it does."""


@dataclass(frozen=True)
class DepthRequest:
    """What to record: *levels* a side, each ``every_ms`` of market time."""

    category: Category
    symbol: str
    levels: int
    every_ms: int

    def __post_init__(self) -> None:
        """Raise ``ConfigInvalid`` for what no file holds."""
        if not 1 <= self.levels <= LEVELS_MAX:
            raise ConfigInvalid(f"--depth is {self.levels}: give 1 to {LEVELS_MAX} levels a side.")
        if not EVERY_MS_MIN <= self.every_ms <= EVERY_MS_MAX:
            raise ConfigInvalid(
                f"--every is {self.every_ms}: give {EVERY_MS_MIN} to {EVERY_MS_MAX:,} milliseconds."
            )

    def header(self, instrument: Instrument, source: str) -> DepthHeader:
        """Return the header of the file that it makes."""
        return DepthHeader(
            instrument=instrument.id,
            price_decimals=instrument.price_decimals,
            quantity_decimals=instrument.quantity_decimals,
            levels=self.levels,
            every_ms=self.every_ms,
            source=source,
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
    the date of a frame is believed.
    """

    def __init__(
        self,
        instrument: Instrument,
        request: DepthRequest,
        take: Take,
        *,
        topic: str = "",
        accepts: Callable[[int], bool] = lambda _: True,
    ) -> None:
        self.topic: Final = topic or request.topic
        self._instrument = instrument
        self._request = request
        self._take = take
        self._accepts = accepts
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
            every = self._request.every_ms
            first_ms = max(self._heard_ms, self._taken_ms + 1)
            self._next_ms = -(-first_ms // every) * every
        return received

    def pop_stale_topics(self) -> set[str]:
        """Return the topics whose snapshot is wanted, each once."""
        return self._wire.pop_stale_topics()

    def _book(self, seen_ms: int) -> Depth | None:
        return self._wire.depth(self.topic, self._request.levels, seen_ms)

    def _break(self, cause: str) -> None:
        if self._next_ms is not None:
            self._next_ms, self._cause = None, cause

    def _refused(self, kind: str, _sentence: str) -> None:
        self._break("sequence" if kind == "skipped.orderbook" else "refused")

    def _observe(self, server_ms: int) -> bool:
        """Hand on the books until *server_ms*, the date of a frame that is not applied yet."""
        if not self._accepts(server_ms):
            return False
        heard_ms, self._heard_ms = self._heard_ms, server_ms
        if heard_ms is not None and server_ms < heard_ms:
            self._break("clock")
        if heard_ms is not None and server_ms - heard_ms > SILENT_MS:
            self._break("silent")
        while self._next_ms is not None and self._next_ms < server_ms:
            book = self._book(self._next_ms)
            if book is None:  # a snapshot that does not follow replaced what was known
                self._break("empty" if self._wire.knows(self.topic) else "sequence")
                break
            self._take(book, self._cause)
            self._cause, self._taken_ms = "", self._next_ms
            self._next_ms += self._request.every_ms
        return True


@dataclass(frozen=True)
class ReceivedFrame:
    """One received frame and when it came, UTC milliseconds."""

    received_ms: float
    body: bytes


def sample_frames(
    frames: Iterable[ReceivedFrame],
    item: dict[str, object],
    request: DepthRequest,
    out: Path,
    *,
    topic: str,
    ahead_ms: int,
) -> str:
    """Write the books of recorded *frames* of *topic* to *out*; return what was found there.

    *item* is the instrument as the exchange lists it. A frame dated more than *ahead_ms* after it
    came is not believed. Raises ``ConfigInvalid`` and ``DataInvalid`` as ``DepthWriter`` does.
    """
    instrument = instrument_from(msgspec.convert(item, InstrumentInfo), request.category)
    came_ms = [0.0]
    with DepthWriter(out, request.header(instrument, "frames")) as writer:
        sampler = DepthSampler(
            instrument,
            request,
            writer.add,
            topic=topic,
            accepts=lambda server_ms: server_ms <= came_ms[0] + ahead_ms,
        )
        for frame in frames:
            came_ms[0] = frame.received_ms
            sampler.receive(frame.body)
        return writer.says


def source_of(stream_url: str) -> str:
    """Return whence books of a websocket address are, as a file's header says it.

    The exchange itself is elsewhere and speaks TLS, which the embedded one never does.
    """
    is_real = stream_url.startswith("wss://") and not is_loopback(stream_url)
    return "exchange" if is_real else "loopback"


async def record_live(
    exchange: ExchangeSection,
    request: DepthRequest,
    out: Path,
    *,
    clock: Clock,
    done: asyncio.Future[None],
) -> str:
    """Record the exchange's book to *out* until *done*.

    Returns what was found of an older writer's torn end. Raises ``ConfigInvalid`` for a symbol that
    the exchange lacks, ``FeedLost`` where it cannot be asked at the start; later losses are
    marked as gaps and tried again without end.
    """
    jitter = random.Random(request.every_ms)  # noqa: S311 (waits, not secrets)
    budget = RestartBudget(limit=FAILURES_MAX, window_s=FAILURES_WINDOW_S)
    async with RestClient(exchange, clock=clock, rng=jitter, budget=budget) as rest:
        clock.synchronise(await rest.server_time_ms())
        instrument = await rest.instrument(request.category, request.symbol)
    source = source_of(exchange.stream_url)

    def accepts(server_ms: int) -> bool:
        if server_ms > clock.market_ms() + exchange.ahead_ms:
            return False
        clock.observe(server_ms)
        return True

    with DepthWriter(out, request.header(instrument, source)) as writer:
        sampler = DepthSampler(instrument, request, writer.add, accepts=accepts)

        def receive(frame: bytes) -> Received | None:
            received = sampler.receive(frame)
            if stale := sampler.pop_stale_topics():
                stream.resubscribe(stale)
            return received

        def lost(cause: Recoverable) -> None:
            sampler.lost("stale" if isinstance(cause, FeedStale) else "disconnected")

        stream = PublicStream(
            category=request.category,
            topics=[sampler.topic],
            exchange=exchange,
            handler=StreamCallbacks(receive, lambda: None, lost),
            clock=clock,
            rng=jitter,
            cooldown=Cooldown(clock=clock),
        )
        await _until_done(stream, done)
        return writer.says


async def _until_done(stream: PublicStream, done: asyncio.Future[None]) -> None:
    """Listen until *done*; raise what ends the stream for good before that."""
    listening = asyncio.ensure_future(stream.run())
    try:
        await asyncio.wait((listening, done), return_when=asyncio.FIRST_COMPLETED)
        if listening.done():
            await listening
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
