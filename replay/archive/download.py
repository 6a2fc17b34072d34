"""Downloads candles and records order books; resumable.

The rules are docs/orderbook.md, D1 to D3.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tracepaper.daemon.bybit.client import BybitClient
from tracepaper.daemon.bybit.instruments import instrument_from, interval_name
from tracepaper.daemon.bybit.messages import InstrumentInfo
from tracepaper.daemon.bybit.order_book import DepthRequest, DepthSampler
from tracepaper.daemon.bybit.websocket import PublicStream, StreamCallbacks
from tracepaper.daemon.bybit.wire import Received
from tracepaper.daemon.clock import Clock, SystemClock
from tracepaper.daemon.config.loading import Config
from tracepaper.daemon.config.sections import ExchangeSection
from tracepaper.daemon.feed.client import Cooldown, MarketDataClient, RestartBudget, is_loopback
from tracepaper.replay.archive.candle_file import CandleFile, file_name
from tracepaper.replay.archive.candles import Span
from tracepaper.replay.archive.recordings import DepthWriter, RecordingHeader
from tracepaper.strategies.errors import ConfigInvalid, FeedLost, FeedStale, Recoverable
from tracepaper.strategies.months import (
    MONTH_MS,
    interval_end,
    intervals_between,
    month_of,
    month_start,
)
from tracepaper.strategies.types.market import Bar, Category, Instrument
from tracepaper.strategies.units import interval_start

Times = NDArray[np.int64]
"""Ascending open times of candles."""


async def fetch(
    client: MarketDataClient,
    instrument: Instrument,
    interval_ms: int,
    times: Times,
    *,
    keep: Callable[[Sequence[Bar]], None],
    progress: Callable[[int], None] = lambda _candles: None,
) -> tuple[int, Times]:
    """Request the candles that open at *times*, and pass each page to *keep*.

    Returns the number of candles, and the times that the answers lacked. *times* are those missing
    in the file, so an interrupted fetch can be repeated. *progress* is called with the number of
    times of each page. Errors of *client* are raised.
    """
    fetched: list[int] = []
    for first, until in runs(times, interval_ms, most=client.candles_max):
        last = interval_start(until - 1, interval_ms)
        page = await client.candles(instrument, interval_ms, first, last)
        if page:
            keep(page)
        fetched += [bar.open_time_ms for bar in page]
        progress(intervals_between(first, until, interval_ms))
    return len(fetched), np.setdiff1d(times, np.array(fetched, dtype=np.int64))


def runs(times: Times, interval_ms: int, *, most: int | None = None) -> list[Span]:
    """Split ascending *times* into spans without holes, of at most so many candles each."""
    places = times // interval_ms
    if interval_ms == MONTH_MS:
        places = times.astype("datetime64[ms]").astype("datetime64[M]").astype(np.int64)
    parts = np.split(times, np.flatnonzero(np.diff(places) != 1) + 1)
    return [
        (int(part[0]), interval_end(int(part[-1]), interval_ms))
        for whole in parts
        if whole.size
        for part in np.split(whole, range(most or whole.size, whole.size, most or whole.size))
    ]


FAILURES_MAX: Final = 5
FAILURES_WINDOW_S: Final = 300.0
"""Within so many seconds a limit of failed requests ends the fetch, which can be repeated."""


@dataclass(frozen=True)
class FetchRequest:
    """A fetch, in UTC milliseconds; ``until_ms`` None is now, ``from_ms`` None continues."""

    folder: Path
    category: Category
    symbols: tuple[str, ...]
    interval_ms: int
    from_ms: int | None
    until_ms: int | None


@dataclass(frozen=True)
class FetchResult:
    """The result of one symbol's fetch."""

    instrument: str
    interval_ms: int
    file: str
    bars: int
    absent: tuple[Span, ...]  # missing in two answers


async def fetch_order(config: Config, request: FetchRequest, *, quiet: bool) -> list[FetchResult]:
    """Fetch the symbols of *request* one by one; progress goes to stderr unless *quiet*.

    Raises ``ConfigInvalid`` for an unknown symbol or interval, and ``FeedLost`` if the exchange
    cannot be reached; candles received before are kept.
    """
    interval_name(request.interval_ms)
    exchange = config.exchange
    clock = SystemClock()
    budget = RestartBudget(limit=FAILURES_MAX, window_s=FAILURES_WINDOW_S)
    jitter = random.Random(request.interval_ms)  # noqa: S311 (waits, not secrets)
    async with BybitClient(exchange, clock=clock, rng=jitter, budget=budget) as client:
        now_ms = await client.server_time_ms()
        until_ms = now_ms - exchange.final_after_ms
        if request.until_ms is not None:
            until_ms = min(until_ms, request.until_ms)
        request = replace(request, until_ms=until_ms)
        return await fetch_symbols(
            client, clock, request, certain_s=exchange.certain_s, quiet=quiet
        )


async def fetch_symbols(
    client: MarketDataClient,
    clock: Clock,
    request: FetchRequest,
    *,
    certain_s: float,
    quiet: bool,
) -> list[FetchResult]:
    """Fetch the candles missing in the file of each symbol.

    Candles missing in an answer are requested again at least *certain_s* (network time) later, as
    in the daemon's repair of gaps: a single answer is no proof.
    """
    instruments = [await client.instrument(request.category, name) for name in request.symbols]
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with (
        ExitStack() as stack,
        Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet) as bar,
    ):
        paths = [request.folder / file_name(item, request.interval_ms) for item in instruments]
        files = {
            item.id: stack.enter_context(CandleFile(path))
            for item, path in zip(instruments, paths, strict=True)
        }
        wanted = [(item, wanted_times(request, files[item.id].times, item)) for item in instruments]

        async def fetched(instrument: Instrument, times: Times) -> tuple[int, Times]:
            task = bar.add_task(instrument.id, total=times.size)
            return await fetch(
                client,
                instrument,
                request.interval_ms,
                times,
                keep=partial(files[instrument.id].add, instrument),
                progress=lambda candles: bar.advance(task, candles),
            )

        first = [(instrument, *await fetched(instrument, times)) for instrument, times in wanted]
        if any(absent.size for _, _, absent in first):
            await clock.sleep(certain_s)
        outcomes = []
        for path, (instrument, bars, lacking) in zip(paths, first, strict=True):
            more, absent = await fetched(instrument, lacking) if lacking.size else (0, lacking)
            spans = tuple(runs(absent, request.interval_ms))
            count = bars + more
            outcomes.append(
                FetchResult(instrument.id, request.interval_ms, str(path), count, spans)
            )
        return outcomes


def wanted_times(request: FetchRequest, stored: Times, instrument: Instrument) -> Times:
    """Return the open times of the candles within the two times that are not *stored*.

    Without a first time they start at the first stored candle. Raises ``ConfigInvalid`` if nothing
    is stored then, or if no whole candle lies between the times.
    """
    interval_ms, from_ms = request.interval_ms, request.from_ms
    assert request.until_ms is not None
    if from_ms is None:
        if not stored.size:
            raise ConfigInvalid(
                f"{request.folder} holds no candle of {instrument.id} yet: say with --from where "
                "to start, such as --from 2025-01-01."
            )
        from_ms = int(stored[0])
    if interval_ms == MONTH_MS:
        months = range(month_of(from_ms - 1) + 1, month_of(request.until_ms))
        whole = np.array([*map(month_start, months)], dtype=np.int64)
    else:
        start = interval_start(from_ms + interval_ms - 1, interval_ms)
        whole = np.arange(start, request.until_ms - interval_ms + 1, interval_ms, dtype=np.int64)
    if not whole.size:
        raise ConfigInvalid(
            "No candle closed between the two times: choose an earlier --from or a later --to."
        )
    return np.setdiff1d(whole, stored)


def sample_frames(
    frames: Iterable[tuple[float, bytes]],
    item: dict[str, object],
    request: DepthRequest,
    out: Path,
    *,
    topic: str,
    ahead_ms: int,
) -> str:
    """Record recorded *frames* to *out* as *request* says; return the writer's sentence.

    Frames come with the UTC milliseconds of their receipt; the book is that of *topic*. *item* is
    the instrument as the exchange lists it. A frame dated more than *ahead_ms* after its receipt is
    rejected. Raises ``ConfigInvalid`` and ``DataInvalid`` like ``DepthWriter``.
    """
    instrument = instrument_from(msgspec.convert(item, InstrumentInfo), request.category)
    received_ms = 0.0  # of the current frame

    def accepts(server_ms: int) -> bool:
        return server_ms <= received_ms + ahead_ms

    with DepthWriter(out, _header(request, instrument, "frames")) as writer:
        sampler = DepthSampler(instrument, request, writer.add, topic=topic, accepts=accepts)
        for received_ms, body in frames:  # noqa: B007 - `accepts` reads it
            sampler.receive(body)
    return writer.says


def _header(request: DepthRequest, instrument: Instrument, source: str) -> RecordingHeader:
    return RecordingHeader(
        instrument=instrument, source=source, levels=request.levels, every_ms=request.every_ms
    )


def source_of(stream_url: str) -> str:
    """Return the ``source`` of a depth file: ``exchange``, or ``loopback`` for the embedded one.

    The real exchange uses TLS on another machine.
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
    """Record *request* from the exchange to the file *out* until *done*.

    At the end it records what the exchange sent before; it raises ``FeedLost`` if the exchange does
    not answer. Returns the writer's sentence. Raises ``ConfigInvalid`` for an unknown symbol.
    Raises ``FeedLost`` if the exchange cannot be reached at the start. Later losses become gaps,
    and it reconnects forever.
    """
    jitter = random.Random(request.every_ms)  # noqa: S311 (waits)
    budget = RestartBudget(limit=FAILURES_MAX, window_s=FAILURES_WINDOW_S)
    async with BybitClient(exchange, clock=clock, rng=jitter, budget=budget) as client:
        clock.synchronise(await client.server_time_ms())
        instrument = await client.instrument(request.category, request.symbol)

    def accepts(server_ms: int) -> bool:
        if server_ms > clock.market_ms() + exchange.ahead_ms:
            return False
        clock.observe(server_ms)
        return True

    header = _header(request, instrument, source_of(exchange.stream_url))
    with DepthWriter(out, header) as writer:
        sampler = DepthSampler(instrument, request, writer.add, accepts=accepts)
        await _until_done(_stream_of(sampler, request, exchange, clock=clock, rng=jitter), done)
    return writer.says


def _stream_of(
    sampler: DepthSampler,
    request: DepthRequest,
    exchange: ExchangeSection,
    *,
    clock: Clock,
    rng: random.Random,
) -> PublicStream:
    """Return the connection that feeds *sampler*."""

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
        rng=rng,
        cooldown=Cooldown(clock=clock),
    )
    return stream


async def _until_done(stream: PublicStream, done: asyncio.Future[None]) -> None:
    """Listen until *done*, then read all earlier frames; raise an error that ends the stream."""
    listening = asyncio.ensure_future(stream.run())
    try:
        ended, _ = await asyncio.wait((listening, done), return_when=asyncio.FIRST_COMPLETED)
        if listening in ended:
            await listening
        try:
            await stream.unsubscribe()
        except FeedLost:
            raise FeedLost(
                "The recording ended before it had read the last frames, since the exchange did "
                "not answer; check the network."
            ) from None
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
