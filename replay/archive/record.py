"""Books at a grid of times out of an exchange's frames, live or recorded; gaps are never bridged.

The rules are docs/orderbook.md, D1 to D3.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tracepaper.daemon.bybit.depth import DepthRequest, DepthSampler
from tracepaper.daemon.bybit.instruments import instrument_from
from tracepaper.daemon.bybit.messages import InstrumentInfo
from tracepaper.daemon.bybit.rest import RestClient
from tracepaper.daemon.bybit.retry import Cooldown, RestartBudget, is_loopback
from tracepaper.daemon.bybit.websocket import PublicStream, StreamCallbacks
from tracepaper.daemon.bybit.wire import Received
from tracepaper.daemon.config.sections import ExchangeSection
from tracepaper.daemon.engine.ports import Clock
from tracepaper.replay.archive.depth import DepthHeader, DepthWriter
from tracepaper.replay.archive.fetch import FAILURES_MAX, FAILURES_WINDOW_S
from tracepaper.strategies.errors import (
    FeedStale,
    Recoverable,
)
from tracepaper.strategies.types import Instrument


def header_of(request: DepthRequest, instrument: Instrument, source: str) -> DepthHeader:
    """Return the header of the file that *request* makes."""
    return DepthHeader(
        instrument=instrument.id,
        price_decimals=instrument.price_decimals,
        quantity_decimals=instrument.quantity_decimals,
        levels=request.levels,
        every_ms=request.every_ms,
        source=source,
    )


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
    with DepthWriter(out, header_of(request, instrument, "frames")) as writer:
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

    with DepthWriter(out, header_of(request, instrument, source)) as writer:
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
