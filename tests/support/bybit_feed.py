"""A live feed run against the scripted exchange, with all that it handed on."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any

from builders import instrument
from bybit_server import MINUTE, START_MS, ScriptedServer, SteppedClock, exchange_section, kline

from tracepaper.daemon.bybit.client import BybitClient
from tracepaper.daemon.engine.price_checks import AcceptedPrices
from tracepaper.daemon.feed.client import EventQueue, FeedStart
from tracepaper.daemon.feed.feed import LiveFeed
from tracepaper.daemon.feed.maintenance import FeedMaintenance
from tracepaper.daemon.feed.sequencer import BarSequencer
from tracepaper.daemon.feed.state import FeedState
from tracepaper.strategies.types.market import Bar, Event, Gap, GapCause, Instrument, Mark, Quote

BITCOIN = instrument(price_decimals=1, tick_size=1)


def sequencer_of(
    clock: SteppedClock,
    client: BybitClient,
    *states: FeedState,
    queue: EventQueue[Any] | None = None,
) -> BarSequencer:
    """Return the part of a feed that orders the bars of *states*, without its background."""
    by_id, section = {state.instrument.id: state for state in states}, exchange_section()
    return BarSequencer(
        client=client,
        clock=clock,
        states=by_id,
        maintenance=FeedMaintenance(
            client=client,
            clock=clock,
            exchange=section,
            states=by_id,
            queue=EventQueue(10) if queue is None else queue,
            spawn=lambda work: work.close(),
        ),
        is_up=lambda _: True,
    )


def gaps_in(events: Iterable[object]) -> list[tuple[int, int, GapCause, str]]:
    """Return of each gap its minutes since the start, its cause and who repaired it."""
    return [
        (
            (gap.from_ms - START_MS) // MINUTE,
            (gap.until_ms - START_MS) // MINUTE,
            gap.cause,
            gap.repaired_by,
        )
        for gap in events
        if isinstance(gap, Gap)
    ]


class Live:
    """A running feed, its exchange, its clock, and everything it handed on."""

    def __init__(
        self, server: ScriptedServer, clock: SteppedClock, feed: LiveFeed, client: BybitClient
    ) -> None:
        self.server = server
        self.clock = clock
        self.feed = feed
        self.client = client
        self.events: list[Event] = []
        self.quotes_from: int | None = None
        self.quote_from_ms: Callable[[Quote], int | None] = lambda _: self.quotes_from
        self.is_ended = False
        self.take: Callable[[Event], object] = lambda _event: None  # an engine's step, say
        self.is_asked = False  # after each event, whether the next one is at hand
        self.behind: list[bool] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def consume(self) -> None:
        async for event in self.feed:
            self.events.append(event)
            self.take(event)
            await self.gate.wait()  # an engine that is busy while the gate is shut
            if self.is_asked:
                self.behind.append(self.feed.is_behind())
        self.is_ended = True

    def bars(self) -> list[Bar]:
        return [event for event in self.events if isinstance(event, Bar)]

    def is_idle(self) -> bool:
        """Return whether all that came was handed on."""
        return not self.feed._queue.qsize()  # noqa: SLF001 - it says so nowhere else

    def has_bars(self, count: int) -> bool:
        return len(self.bars()) == count

    def has_counted(self, name: str, count: int) -> bool:
        """Return whether the feed's counter *name* has reached *count*."""
        return self.feed.counters[name] >= count

    def opens(self) -> list[int]:
        """Return the open times handed on, in minutes since the start."""
        return [(bar.open_time_ms - START_MS) // MINUTE for bar in self.bars()]

    def gaps(self) -> list[tuple[int, int, GapCause, str]]:
        return gaps_in(self.events)

    async def close_bar(
        self, index: int, *, stream: bool = True, rest: bool = True, low: str | None = None
    ) -> None:
        """Let minute *index* close: market time moves on, REST and the stream learn of it."""
        open_ms = START_MS + index * MINUTE
        self.move_to(open_ms + MINUTE + 300)
        if rest:
            self.server.add_candle(open_ms, low=low)
        if stream:
            await self.server.send(kline(open_ms, low=low))

    def move_to(self, market_ms: int) -> None:
        """Move market time, the exchange's and ours."""
        self.server.server_ms = market_ms
        self.clock.synchronise(market_ms)

    async def expect(self, condition: Callable[[], object]) -> None:
        """Let network time pass until *condition* holds."""
        await self.clock.run(condition)


@asynccontextmanager
async def live(
    server: ScriptedServer,
    *,
    start: FeedStart | None = None,
    instruments: tuple[Instrument, ...] = (BITCOIN,),
    queue_limit: int = 1_000,
    time_scale: float = 1.0,
    accepted_prices: Mapping[str, AcceptedPrices] = MappingProxyType({}),
    liquidates: Callable[[Mark], bool] = lambda _: False,
    marks_together: bool = False,
    clock: SteppedClock | None = None,
    **exchange: float,
) -> AsyncIterator[Live]:
    """Run a feed whose period starts at minute 0, as soon as it caught up."""
    clock = clock or SteppedClock(server.server_ms)
    rng = random.Random(1)
    section = exchange_section(
        rest_url=server.rest_url,
        stream_url=server.stream_url,
        time_scale=time_scale,
        **({"connect_timeout_s": 2.0} | exchange),
    )
    holder: list[Live] = []

    def quote_from_ms(quote: Quote) -> int | None:
        return holder[0].quote_from_ms(quote)

    async with (
        BybitClient(section, clock=clock, rng=rng, latest_ms=clock.market_ms) as client,
        LiveFeed(
            client=client,
            clock=clock,
            instruments=instruments,
            exchange=section,
            queue_limit=queue_limit,
            start=start or FeedStart(interval_ms=MINUTE, period_start_ms=START_MS, warmup_bars=0),
            quote_from_ms=quote_from_ms,
            accepted_prices=accepted_prices,
            liquidates=liquidates,
            marks_together=marks_together,
        ) as feed,
    ):
        running = Live(server, clock, feed, client)
        holder.append(running)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(running.consume())
            await clock.run(lambda: feed.counters["resyncs"])
            yield running
            task.cancel()
