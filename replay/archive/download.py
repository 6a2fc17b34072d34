"""Downloads candles and records order books; resumable.

The rules are docs/orderbook.md, D1 to D3.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tracepaper.daemon.bybit.client import BybitClient
from tracepaper.daemon.bybit.instruments import instrument_from, interval_name
from tracepaper.daemon.bybit.messages import InstrumentInfo, topic_of
from tracepaper.daemon.bybit.order_book import DepthRequest, DepthSampler
from tracepaper.daemon.bybit.websocket import (
    SYMBOLS_PER_CONNECTION,
    PublicStream,
    StreamCallbacks,
)
from tracepaper.daemon.bybit.wire import Received
from tracepaper.daemon.clock import Clock, SystemClock
from tracepaper.daemon.config.loading import Config
from tracepaper.daemon.config.sections import ExchangeSection
from tracepaper.daemon.feed.client import Cooldown, MarketDataClient, RestartBudget, is_loopback
from tracepaper.replay.archive.book_events import EventRecorder, EventsHeader, EventsWriter
from tracepaper.replay.archive.candles import Span
from tracepaper.replay.archive.order_book import DepthHeader, DepthWriter
from tracepaper.storage.candles import History, HistoryWriter
from tracepaper.strategies.errors import ConfigInvalid, FeedStale, Recoverable
from tracepaper.strategies.types.market import Bar, Category, Instrument
from tracepaper.strategies.units import interval_phase


@dataclass(frozen=True)
class FetchResult:
    """The result of one pass: how many bars were kept, and the spans that the answers lacked."""

    bars: int
    absent: tuple[Span, ...]


async def fetch(
    client: MarketDataClient,
    instrument: Instrument,
    interval_ms: int,
    spans: Sequence[Span],
    *,
    keep: Callable[[Sequence[Bar]], None],
    progress: Callable[[int], None] = lambda _candles: None,
) -> FetchResult:
    """Ask for every candle of *spans* and hand each page to *keep* as it comes.

    *spans* are what the archive lacks, so a fetch that was broken off goes on where it ended.
    *progress* is called with the number of candle times of each page. Errors of *client* pass.
    """
    bars = 0
    absent: list[Span] = []
    for start, until in spans:
        for first, last in pages(start, until, interval_ms, client.candles_max):
            page = await client.candles(instrument, interval_ms, first, last)
            if page:
                keep(page)
            bars += len(page)
            absent += holes([bar.open_time_ms for bar in page], first, last, interval_ms)
            progress((last - first) // interval_ms + 1)
    return FetchResult(bars, tuple(joined(absent)))


def pages(start: int, until: int, interval_ms: int, candles_max: int) -> list[Span]:
    """Return the first and last open time of each request for [*start*, *until*)."""
    step = candles_max * interval_ms
    return [(first, min(first + step, until) - interval_ms) for first in range(start, until, step)]


def holes(times: Sequence[int], first: int, last: int, interval_ms: int) -> list[Span]:
    """Return the spans of [*first*, *last*] that the rising *times* leave out."""
    spans: list[Span] = []
    expected = first
    for time in (*times, last + interval_ms):
        if time > expected:
            spans.append((expected, time))
        expected = time + interval_ms
    return spans


def joined(spans: Sequence[Span]) -> list[Span]:
    """Return rising *spans*, those that touch merged into one."""
    merged: list[Span] = []
    for start, until in spans:
        if merged and merged[-1][1] == start:
            merged[-1] = (merged[-1][0], until)
        else:
            merged.append((start, until))
    return merged


def lacking(stored: Sequence[Span], wanted: Span) -> list[Span]:
    """Return the parts of *wanted* that the rising, separate *stored* spans do not cover."""
    start, until = wanted
    spans: list[Span] = []
    for first, after in stored:
        if first > start:
            spans.append((start, min(first, until)))
        start = max(start, after)
        if start >= until:
            break
    if start < until:
        spans.append((start, until))
    return [(a, b) for a, b in spans if a < b]


def whole_span(from_ms: int, until_ms: int, interval_ms: int, *, phase_ms: int = 0) -> Span:
    """Return the candles that lie wholly in [*from_ms*, *until_ms*).

    *phase_ms* is where the grid starts (a Monday for weeks). Raises ``ConfigInvalid`` where
    there is none.
    """
    start = -(-(from_ms - phase_ms) // interval_ms) * interval_ms + phase_ms
    until = (until_ms - phase_ms) // interval_ms * interval_ms + phase_ms
    if start >= until:
        raise ConfigInvalid(
            "No candle closed between the two times: choose an earlier --from or a later --to."
        )
    return start, until


FAILURES_MAX: Final = 5
FAILURES_WINDOW_S: Final = 300.0
STILL_READINGS: Final = 3
STILL_READING_S: Final = 0.05
"""So many failed requests in so many seconds end a fetch, which can be started again."""


@dataclass(frozen=True)
class FetchRequest:
    """What to fetch: UTC milliseconds, ``until_ms`` None for now, ``from_ms`` None to go on."""

    archive: Path
    category: Category
    symbols: tuple[str, ...]
    interval_ms: int
    from_ms: int | None
    until_ms: int | None


@dataclass(frozen=True)
class Outcome:
    """The result of one symbol's fetch."""

    instrument: str
    interval_ms: int
    bars: int
    absent: tuple[Span, ...]  # two answers lacked these


async def fetch_order(config: Config, request: FetchRequest, *, quiet: bool) -> list[Outcome]:
    """Carry *request* out, one symbol after the other; progress goes to stderr unless *quiet*.

    Raises ``ConfigInvalid`` for a symbol or interval that the exchange lacks, ``FeedLost``
    where it cannot be reached; what came before is kept.
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
        return await fetch_symbols(
            client, clock, request, until_ms=until_ms, certain_s=exchange.certain_s, quiet=quiet
        )


async def fetch_symbols(
    client: MarketDataClient,
    clock: Clock,
    request: FetchRequest,
    *,
    until_ms: int,
    certain_s: float,
    quiet: bool,
) -> list[Outcome]:
    """Fetch what the archive lacks of each symbol; what an answer lacks is requested twice.

    One answer proves nothing: the second request comes at least *certain_s* (network time) after
    the first, as when a daemon repairs a gap.
    """
    first: list[tuple[Instrument, FetchResult]] = []
    for symbol in request.symbols:
        instrument = await client.instrument(request.category, symbol)
        spans = wanted_spans(
            request.archive,
            instrument,
            request.interval_ms,
            from_ms=request.from_ms,
            until_ms=until_ms,
        )
        first.append(
            (instrument, await _fetch_shown(client, request, instrument, spans, quiet=quiet))
        )
    if any(fetched.absent for _, fetched in first):
        await clock.sleep(certain_s)
    outcomes = []
    for instrument, fetched in first:
        bars, absent = fetched.bars, fetched.absent
        if absent:
            again = await _fetch_shown(client, request, instrument, absent, quiet=quiet)
            bars, absent = bars + again.bars, again.absent
        outcomes.append(Outcome(instrument.id, request.interval_ms, bars, absent))
    return outcomes


async def _fetch_shown(
    client: MarketDataClient,
    request: FetchRequest,
    instrument: Instrument,
    spans: Sequence[Span],
    *,
    quiet: bool,
) -> FetchResult:
    """Fetch *spans* into the archive under a progress bar."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    total = sum(until - start for start, until in spans) // request.interval_ms
    with (
        HistoryWriter(request.archive) as writer,
        Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet) as bar,
    ):
        task = bar.add_task(instrument.id, total=total)

        def keep(page: Sequence[Bar]) -> None:
            # Each page is committed before the next.
            writer.write(instrument, request.interval_ms, page)

        return await fetch(
            client,
            instrument,
            request.interval_ms,
            spans,
            keep=keep,
            progress=lambda candles: bar.advance(task, candles),
        )


def wanted_spans(
    archive: Path,
    instrument: Instrument,
    interval_ms: int,
    *,
    from_ms: int | None,
    until_ms: int,
) -> list[Span]:
    """Return the spans of candles that *archive* lacks in [*from_ms*, *until_ms*).

    Without *from_ms* they start with the archive's first candle. Raises ``ConfigInvalid`` where
    it has none.
    """
    stored: list[Span] = []
    if archive.is_file():
        with History.open(archive) as history:
            series_ids = {(series.instrument.id, series.interval_ms) for series in history.series()}
            if (instrument.id, interval_ms) in series_ids:
                stored = history.spans(instrument.id, interval_ms)
    if from_ms is None:
        if not stored:
            raise ConfigInvalid(
                f"{archive} holds no candle of {instrument.id} yet: say with --from where to "
                "start, such as --from 2025-01-01."
            )
        from_ms = stored[0][0]
    phase_ms = interval_phase(interval_ms)
    return lacking(stored, whole_span(from_ms, until_ms, interval_ms, phase_ms=phase_ms))


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
    """One received frame, and the UTC milliseconds at which it was received."""

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
    """Write what *request* asks for of recorded *frames* to *out*; return what a writer says.

    The book is that of *topic*.

    *item* is the instrument as the exchange lists it. A frame dated more than *ahead_ms* after its
    receipt is not believed. Raises ``ConfigInvalid`` and ``DataInvalid`` as ``DepthWriter`` does.
    """
    instrument = instrument_from(msgspec.convert(item, InstrumentInfo), request.category)
    received_ms = [0.0]  # of the frame at hand
    with _recording(
        request,
        instrument,
        "frames",
        out,
        topic=topic,
        accepts=lambda server_ms: server_ms <= received_ms[0] + ahead_ms,
        ahead_ms=ahead_ms,
        now_ms=lambda: received_ms[0],
    ) as (recorder, writer):
        for frame in frames:
            received_ms[0] = frame.received_ms
            recorder.receive(frame.body)
    return writer.says


@contextmanager
def _recording(
    request: DepthRequest,
    instrument: Instrument,
    source: str,
    out: Path,
    *,
    topic: str,
    accepts: Callable[[int], bool],
    ahead_ms: int,
    now_ms: Callable[[], float],
) -> Iterator[tuple[DepthSampler | EventRecorder, DepthWriter | EventsWriter]]:
    """Make what reads the frames that *request* asks for, and what writes them to *out*."""
    if request.events:
        topics = (topic, f"publicTrade.{request.symbol}")
        header = EventsHeader(
            instrument=instrument, topics=topics, source=source, ahead_ms=ahead_ms
        )
        with EventsWriter(out, header) as events:
            yield (
                EventRecorder(instrument, topics, events, accepts=accepts, now_ms=now_ms),
                events,
            )
        return
    with DepthWriter(out, header_of(request, instrument, source)) as books:
        sampler = DepthSampler(instrument, request, books.add, topic=topic, accepts=accepts)
        yield sampler, books


def source_of(stream_url: str) -> str:
    """Return the ``source`` of a depth file: ``exchange``, or ``loopback`` of the embedded one.

    The exchange itself speaks TLS and is not on this machine.
    """
    is_real = stream_url.startswith("wss://") and not is_loopback(stream_url)
    return "exchange" if is_real else "loopback"


async def record_live(
    exchange: ExchangeSection,
    requests: Mapping[Path, DepthRequest],
    *,
    clock: Clock,
    done: asyncio.Future[None],
    skips: Callable[[str], None] | None = None,
    warns: Callable[[str], None] | None = None,
) -> str:
    """Record what each of *requests*, of one category, asks of the exchange to its file.

    Goes on until *done*, and returns what the writers say. Raises ``ConfigInvalid`` for a symbol
    that the exchange lacks (with *skips* that is told why, and the others are recorded),
    ``FeedLost`` where it cannot be asked at the start; later losses are marked as gaps and tried
    again without end. *warns* is told where the exchange's time stands still.
    """
    jitter = random.Random(min(wanted.every_ms for wanted in requests.values()))  # noqa: S311 (waits)
    budget = RestartBudget(limit=FAILURES_MAX, window_s=FAILURES_WINDOW_S)
    items: dict[Path, Instrument] = {}
    async with BybitClient(exchange, clock=clock, rng=jitter, budget=budget) as client:
        clock.synchronise(await client.server_time_ms())
        for out, request in requests.items():
            try:
                items[out] = await client.instrument(request.category, request.symbol)
            except ConfigInvalid as error:
                if skips is None:
                    raise
                skips(str(error))
        if warns is not None and await _stands_still(client):
            warns(
                "The exchange's time stands still, so nothing comes to be recorded: `tracepaper "
                "exchange --hold` waits for a client of candles; start it without --hold, or begin "
                "the daemon."
            )

    def accepts(server_ms: int) -> bool:
        if server_ms > clock.market_ms() + exchange.ahead_ms:
            return False
        clock.observe(server_ms)
        return True

    cooldown = Cooldown(clock=clock)
    with ExitStack() as stack:
        recordings = [
            stack.enter_context(
                _recording(
                    requests[out],
                    item,
                    source_of(exchange.stream_url),
                    out,
                    topic=requests[out].topic,
                    accepts=accepts,
                    ahead_ms=exchange.ahead_ms,
                    now_ms=clock.market_ms,
                )
            )
            for out, item in items.items()
        ]
        streams = [
            _stream_of(
                [recorder for recorder, _ in recordings[first : first + SYMBOLS_PER_CONNECTION]],
                next(iter(requests.values())).category,
                exchange,
                clock=clock,
                rng=jitter,
                cooldown=cooldown,
            )
            for first in range(0, len(recordings), SYMBOLS_PER_CONNECTION)
        ]
        await _until_done(streams, done)
    return " ".join(writer.says for _, writer in recordings if writer.says)


async def _stands_still(client: BybitClient) -> bool:
    """Return whether the exchange gives the same time for a while."""
    first_ms = await client.server_time_ms()
    for _ in range(STILL_READINGS):
        await asyncio.sleep(STILL_READING_S)
        if await client.server_time_ms() != first_ms:
            return False
    return True


def _stream_of(
    recorders: Sequence[DepthSampler | EventRecorder],
    category: Category,
    exchange: ExchangeSection,
    *,
    clock: Clock,
    rng: random.Random,
    cooldown: Cooldown,
) -> PublicStream:
    """Make the connection that feeds *recorders*."""
    by_topic = {topic: recorder for recorder in recorders for topic in recorder.topics}

    def receive(frame: bytes) -> Received | None:
        # Answers, and what cannot be read: that may have been a frame of any of them.
        named = by_topic.get(topic_of(frame)) if len(recorders) > 1 else None
        readers = recorders if named is None else (named,)
        received = [reader.receive(frame) for reader in readers]
        for reader in readers:
            if stale := reader.pop_stale_topics():
                stream.resubscribe(stale)
        return received[0]

    def lost(cause: Recoverable) -> None:
        for recorder in recorders:
            recorder.lost("stale" if isinstance(cause, FeedStale) else "disconnected")

    stream = PublicStream(
        category=category,
        topics=list(by_topic),
        exchange=exchange,
        handler=StreamCallbacks(receive, lambda: None, lost),
        clock=clock,
        rng=rng,
        cooldown=cooldown,
    )
    return stream


async def _until_done(streams: Sequence[PublicStream], done: asyncio.Future[None]) -> None:
    """Listen until *done*; raise the error that ends a stream for good before that."""
    listening = [asyncio.ensure_future(stream.run()) for stream in streams]
    try:
        ended, _ = await asyncio.wait((*listening, done), return_when=asyncio.FIRST_COMPLETED)
        for task in ended - {done}:
            await task
    finally:
        for task in listening:
            task.cancel()
        await asyncio.gather(*listening, return_exceptions=True)
