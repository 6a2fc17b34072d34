"""The live feed: streams and REST joined into one line of events, each bar exactly once."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from types import TracebackType
from typing import Final, Self, assert_never

from msgspec import structs

from tracepaper.daemon.bybit.backfill import Hole
from tracepaper.daemon.bybit.connection import Connection
from tracepaper.daemon.bybit.feed_types import Blame, FeedStart, Item, Page, Stop, Submitted
from tracepaper.daemon.bybit.funding import FundingSchedule
from tracepaper.daemon.bybit.handon import HandOn
from tracepaper.daemon.bybit.intervals import floor_open_ms, interval_name
from tracepaper.daemon.bybit.line import Line
from tracepaper.daemon.bybit.market import Market
from tracepaper.daemon.bybit.rest import Rest
from tracepaper.daemon.bybit.sequence import BarSequence, Closes
from tracepaper.daemon.bybit.stream import FeedSettings, first_cause
from tracepaper.daemon.bybit.upkeep import Upkeep
from tracepaper.daemon.ports import Clock
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.types import (
    Bar,
    Event,
    GapCause,
    Instrument,
    Mark,
    Quote,
)

BEHIND_WAIT_S: Final = 5.0
"""Between two looks at a server whose time lies behind what it told this run before."""


class LiveFeed:
    """Implements ``ports.Feed``; an async context manager that owns the connections.

    ::

        async with LiveFeed(...) as feed:
            async for event in feed: ...

    ``quote_from_ms`` tells for an instrument the market time from which quotes matter, None while
    no order rests. ``counters`` says what happened, for /metrics. Raises ``ConfigInvalid`` where
    the exchange and the run do not belong together; everything recoverable is waited out.
    """

    def __init__(
        self,
        *,
        rest: Rest,
        clock: Clock,
        rng: random.Random,
        instruments: Sequence[Instrument],
        settings: FeedSettings,
        start: FeedStart,
        quote_from_ms: Callable[[str], int | None],
    ) -> None:
        interval_name(settings.interval_ms)
        self.counters: Counter[str] = Counter()
        self._clock = clock
        self._silence = rest.silence
        self._settings = settings
        self._quote_from_ms = quote_from_ms
        self._line: Line[Item] = Line(settings.queue_limit)
        self._markets = {one.id: _market(one, settings, start) for one in instruments}
        self._start = start
        self._resumed = {one for one, open_ms in start.known.items() if open_ms is not None}
        self._upkeep = Upkeep(
            rest=rest,
            clock=clock,
            settings=settings,
            markets=self._markets,
            line=self._line,
            counters=self.counters,
            spawn=self._spawn,
        )
        rest.latest_ms = clock.market_ms
        self._hand_on = HandOn(
            rest=rest,
            clock=clock,
            markets=self._markets,
            upkeep=self._upkeep,
            counters=self.counters,
            is_up=self._is_up,
            certain_s=settings.certain_s,
        )
        self._group = asyncio.TaskGroup()
        self._tasks: set[asyncio.Task[None]] = set()
        self._connections = [
            Connection(
                category=category,
                instruments=[one for one in instruments if one.category is category],
                settings=settings,
                owner=self,
                clock=clock,
                rng=rng,
                silence=rest.silence,
            )
            for category in dict.fromkeys(one.category for one in instruments)
        ]

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for task in tuple(self._tasks):
            task.cancel()
        # The group may have cancelled us for a task's failure; only then is it told of it.
        is_cancelled = isinstance(error, asyncio.CancelledError)
        ours = (kind, error, traceback) if is_cancelled else (None, None, None)
        try:
            await self._group.__aexit__(*ours)
        except BaseExceptionGroup as failures:
            raise first_cause(failures) from None

    def __aiter__(self) -> AsyncIterator[Event]:
        """Yield events until ``stop``."""
        return self._events()

    async def submit(self, event: Event) -> None:
        """Put *event* in line: an operator's command, a timer."""
        self._line.insist(Submitted(event))

    def stop(self) -> None:
        """End the feed after the events that are already in line."""
        self._line.insist(Stop())

    # ------------------------------------------------------------ what is newest

    def frame_s(self) -> float | None:
        """Return the network time of the newest frame; None before the first."""
        return max((s for one in self._connections if (s := one.stream.frame_s)), default=None)

    def quote_ms(self, instrument: str) -> int | None:
        """Return the market time of the newest quote of *instrument*."""
        return self._markets[instrument].quote_ms

    # ------------------------------------------------------------ what connections bring

    def observe(self, server_ms: int) -> bool:
        """Learn the time of a frame; False where it cannot be believed."""
        return self._upkeep.observe(server_ms)

    def doubt_time(self) -> None:
        """Have the exchange's time read anew."""
        self._upkeep.doubt_time()

    def enqueue(self, item: Bar | Quote | Mark) -> None:
        """Put what a stream brought in line; a bar that finds no place is repaired by REST."""
        if not isinstance(item, Bar):
            if not self._line.offer(item, share=0.5):
                self.counters["overflow_quotes"] += 1
        elif not self._line.offer(item):
            self.counters["overflow_bars"] += 1
            self._blame(item.instrument, GapCause.OVERFLOW)

    def announce_funding(self, instrument: str, next_ms: int) -> None:
        """Learn a ticker's ``nextFundingTime``."""
        self._markets[instrument].funding.announce(next_ms)

    def lost(self, instruments: Iterable[Instrument], cause: GapCause) -> None:
        """Learn that the connection of *instruments* was lost: their next hole has this cause."""
        for one in instruments:
            self._blame(one.id, cause)

    def _blame(self, instrument: str, cause: GapCause) -> None:
        """Put in line that bars may be missing from here on; the first cause in line stands."""
        market = self._markets[instrument]
        if not market.is_blamed:
            market.is_blamed = True
            self._line.insist(Blame(instrument, cause))

    # ------------------------------------------------------------ the line of events

    async def _events(self) -> AsyncIterator[Event]:
        """Hand on the warm-up, subscribe, catch up, then hand on what comes."""
        for event in self._start.first:
            yield event
        async for event in self._warm_up():
            yield event
        if self._start.started is not None:
            yield self._start.started()
        self._listen()
        async for event in self._catch_up():
            yield event
        self._upkeep.is_live = True
        while not isinstance(item := await self._line.get(), Stop):
            async for event in self._on_item(item):
                yield event

    async def _on_item(
        self, item: Bar | Quote | Mark | Page | Blame | Submitted
    ) -> AsyncIterator[Event]:
        """Hand on what one item of the line causes."""
        match item:
            case Bar():
                async for event in self._hand_on.bar(item):
                    yield event
            case Quote():
                market = self._markets[item.instrument]
                if market.learn_quote(item, self._quote_from_ms(item.instrument)):
                    yield structs.replace(item, seen_ms=self._clock.market_ms())
            case Mark():
                self._markets[item.instrument].learn_mark(item)
            case Page():
                async for event in self._hand_on.page(item):
                    yield event
            case Blame():
                self._markets[item.instrument].blame(item.cause)
            case Submitted():
                yield item.event
            case _:
                assert_never(item)

    async def _warm_up(self) -> AsyncIterator[Event]:
        """Fetch the bars before the period by REST, as far as they are final already."""
        until_ms = floor_open_ms(self._start.period_start_ms, self._settings.interval_ms)
        holes = [
            Hole(market, until_ms, cause=market.cause)
            for market in self._markets.values()
            if market.sequence.next_open_ms < until_ms
        ]
        if holes:
            async for event in self._hand_on.fill(holes):
                yield event

    def _listen(self) -> None:
        """Begin to keep connections, time and filters up."""
        for work in (
            *(connection.stream.run() for connection in self._connections),
            self._upkeep.run_time(),
            self._upkeep.run_questions(),
            # Each market has its own: one that the exchange does not answer holds up no other.
            *(self._upkeep.run_settlements(market) for market in self._markets.values()),
            *(self._upkeep.run_filters(market) for market in self._markets.values()),
        ):
            self._spawn(work)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        """Let *work* run beside the line until the feed ends."""
        task = self._group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _catch_up(self) -> AsyncIterator[Event]:
        """Wait for the subscriptions, then fetch by REST what closed before them."""
        for connection in self._connections:
            # Without a stream REST alone goes on, so this wait has an end.
            await connection.answered(self._settings.stream.connect_timeout_s)
        await self._upkeep.synchronise()
        while (behind := self._behind()) is not None:
            if not self._start.is_served:
                raise behind
            self._silence.complaints.say("time", behind, BEHIND_WAIT_S)
            self._silence.waiting("time", BEHIND_WAIT_S)
            await self._clock.sleep(BEHIND_WAIT_S)
            await self._upkeep.synchronise()
        reached: dict[str, int] = {}
        while True:
            until_ms = floor_open_ms(self._clock.market_ms(), self._settings.interval_ms)
            before = dict(reached)
            holes = [
                Hole(market, until_ms, cause=market.cause) for market in self._markets.values()
            ]
            async for event in self._hand_on.fill(holes):
                yield event
            reached = {one: market.sequence.next_open_ms for one, market in self._markets.items()}
            if reached == before or min(reached.values()) >= until_ms:
                return

    def _behind(self) -> ConfigInvalid | None:
        """Return what is wrong with a server whose time lies behind what the run already holds."""
        now_ms = self._clock.market_ms()
        for market in self._markets.values():
            held_ms = market.sequence.next_open_ms
            if market.instrument.id in self._resumed and now_ms < held_ms:
                return ConfigInvalid(
                    f"The exchange's time is {held_ms - now_ms} ms behind the last bar of "
                    f"{market.instrument.id} in the database; choose another database with --db "
                    "or storage.url."
                )
        return None

    def _is_up(self, market: Market) -> bool:
        """Return whether the connection of *market* stands."""
        category = market.instrument.category
        return any(one.is_connected for one in self._connections if one.category is category)


def _market(instrument: Instrument, settings: FeedSettings, start: FeedStart) -> Market:
    """Return the state of *instrument* as the run left it, or as a new run begins."""
    interval_ms = settings.interval_ms
    known_ms = start.known.get(instrument.id)
    if known_ms is None:
        first_ms = floor_open_ms(start.period_start_ms, interval_ms)
        next_open_ms = first_ms - start.warmup_bars * interval_ms
        settled_ms = start.period_start_ms
    else:
        next_open_ms = settled_ms = known_ms + interval_ms
    return Market(
        instrument,
        cause=None if known_ms is None else GapCause.DOWN,
        sequence=BarSequence(interval_ms=interval_ms, next_open_ms=next_open_ms),
        funding=FundingSchedule(
            interval_minutes=instrument.funding_interval_minutes,
            settled_ms=start.known_funding.get(instrument.id, settled_ms),
        ),
        grace_s=settings.grace_s,
        certain_s=settings.certain_s,
        closes=Closes(settings.plausible, start.recent.get(instrument.id, ())),
    )
