"""The live feed: streams and REST as one sequence of events, each bar exactly once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from types import TracebackType
from typing import Final, Self, assert_never

import structlog
from msgspec import structs

from tracepaper.daemon.clock import Clock, PriceJudge
from tracepaper.daemon.config.sections import ExchangeSection
from tracepaper.daemon.feed.client import (
    BackfillPage,
    CloseTimeout,
    EventQueue,
    FeedStart,
    GapCauseNotice,
    Item,
    MarketData,
    MarketDataClient,
    OrderBookSample,
    Stop,
    StreamRequest,
    Submitted,
    first_cause,
)
from tracepaper.daemon.feed.funding import FundingSchedule
from tracepaper.daemon.feed.maintenance import FeedMaintenance
from tracepaper.daemon.feed.sequencer import BarSequencer, CloseGatherer, Hole
from tracepaper.daemon.feed.state import BarSequence, CloseFilter, DepthHolder, FeedState
from tracepaper.strategies.api.timeframes import frame_bar_of
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.types.market import (
    Bar,
    Event,
    FrameBar,
    Funding,
    GapCause,
    Instrument,
    Mark,
    Quote,
    Trade,
)
from tracepaper.strategies.units import interval_start

QUEUE_LIMIT: Final = 10_000
GATHER_INTERVALS_MOST: Final = 0.5
"""Of market time: where the exchange's time is quick, `market.gather_ms` would be many bars."""
log = structlog.get_logger("bybit.feed")

CANCEL_AGAIN_S: Final = 2.0
"""Wall time until a task that has not ended is cancelled again; one that closes takes a second."""

BEHIND_WAIT_S: Final = 5.0
"""Between two looks at a server whose time lies behind what this run holds."""


class LiveFeed:
    """Implements ``ports.Feed``; an async context manager that owns the connections.

    ::

        async with LiveFeed(...) as feed:
            async for event in feed: ...

    ``quote_from_ms`` tells for a quote the market time from which quotes such as it matter, None
    while it can change no order; ``liquidates`` whether a mark price takes a position away, and is
    an event at once; ``judge`` what belongs to a price that jumps (M36). ``counters`` says what
    happened, for /metrics. Raises
    ``ConfigInvalid`` where the exchange and the run do not belong together; everything recoverable
    is waited out.
    """

    def __init__(  # noqa: PLR0913 - what a feed is joined of
        self,
        *,
        client: MarketDataClient,
        clock: Clock,
        instruments: Sequence[Instrument],
        exchange: ExchangeSection,
        start: FeedStart,
        quote_from_ms: Callable[[Quote], int | None],
        liquidates: Callable[[Mark], bool] = lambda _: False,
        judge: PriceJudge | None = None,
        queue_limit: int = QUEUE_LIMIT,
    ) -> None:
        self.counters = client.counters  # of streams and REST together
        self._clock = clock
        self._client = client
        self._cooldown = client.cooldown
        self._exchange = exchange
        self._quote_from_ms = quote_from_ms
        self._liquidates = liquidates
        self._judge = judge
        self._queue: EventQueue[Item] = EventQueue(queue_limit)
        self._states = {one.id: _feed_state(one, exchange, start) for one in instruments}
        self._start = start
        self._unanswered: set[str] = set()
        self._resumed = {one for one, open_ms in start.known.items() if open_ms is not None}
        self._maintenance = FeedMaintenance(
            client=client,
            clock=clock,
            exchange=exchange,
            states=self._states,
            queue=self._queue,
            counters=self.counters,
            spawn=self._spawn,
            doubts=(lambda _: False) if judge is None else judge.doubts,
        )
        self._sequencer = BarSequencer(
            client=client,
            clock=clock,
            states=self._states,
            maintenance=self._maintenance,
            counters=self.counters,
            is_up=self._is_up,
            certain_s=exchange.certain_s,
        )
        self._is_live = False
        self._has_promised = False
        self._group = asyncio.TaskGroup()
        self._tasks: set[asyncio.Task[None]] = set()
        self._streams = client.streams(
            StreamRequest(
                instruments=tuple(instruments),
                interval_ms=start.interval_ms,
                trades=exchange.trades,
                depth=start.depth,
                depth_every_ms=start.depth_every_ms,
            ),
            self,
        )

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # The group may have cancelled us for a task's failure; only then is it passed to it.
        is_cancelled = isinstance(error, asyncio.CancelledError)
        ours = (kind, error, traceback) if is_cancelled else (None, None, None)
        try:
            try:
                await self._end_tasks()
            finally:
                await self._group.__aexit__(*ours)
        except BaseExceptionGroup as failures:
            raise first_cause(failures) from None

    async def _end_tasks(self) -> None:
        """Cancel what runs in the background, until all of it has ended.

        Before Python 3.13 a connection that fails as it is cancelled forgets that it was, and would
        be opened again.
        """
        while self._tasks:
            for task in tuple(self._tasks):
                task.cancel()
            await asyncio.wait(tuple(self._tasks), timeout=CANCEL_AGAIN_S)

    def __aiter__(self) -> AsyncIterator[Event | None]:
        """Yield events until ``stop``; None keeps the promise of ``is_behind``."""
        return self._taken()

    async def _taken(self) -> AsyncIterator[Event | None]:
        """Yield events; whoever asks for the next one has taken in the one before."""
        async for event in self._events():
            yield event
            if isinstance(event, Funding) and self._judge is not None:
                is_booked = self._judge.settled_ms(event.instrument) >= event.market_ms
                self._states[event.instrument].funding.learn(event, is_booked=is_booked)

    def is_behind(self) -> bool:
        """Return whether another event is at hand, or None where it turns out to be none."""
        is_behind = self._sequencer.left > 0 or (self._is_live and len(self._queue) > 0)
        self._has_promised = is_behind
        return is_behind

    async def submit(self, event: Event) -> None:
        """Queue *event*: an operator's command, a timer."""
        self._queue.put(Submitted(event))

    def stop(self) -> None:
        """End the feed after the events that are already in the queue."""
        self._queue.put(Stop())

    # ------------------------------------------------------------ what is newest

    def frame_s(self) -> float | None:
        """Return the network time of the newest frame; None before the first."""
        return max((s for one in self._streams if (s := one.frame_s)), default=None)

    def quote_ms(self, instrument: str) -> int | None:
        """Return the market time of the newest quote of *instrument*."""
        return self._states[instrument].quote_ms

    # ------------------------------------------------------------ what connections bring

    def on_server_time(self, server_ms: int) -> bool:
        """Learn the date of a frame; False where it is not believed."""
        return self._maintenance.observe(server_ms)

    def on_future_date(self) -> None:
        """Have the exchange's time read anew."""
        self._maintenance.request_resync()

    def on_data(self, item: MarketData) -> None:
        """Queue what a stream brought.

        A bar that finds no place is repaired by REST; after an order book that finds none, the
        next one stands after a gap.
        """
        if not isinstance(item, Bar):
            if not self._queue.try_put(item, share=0.5):
                is_book = isinstance(item, OrderBookSample)
                self.counters["overflow_books" if is_book else "overflow_quotes"] += 1
        elif not self._queue.try_put(item):
            self.counters["overflow_bars"] += 1
            self._queue_gap_cause(item.instrument, GapCause.OVERFLOW)

    def on_funding_time(self, instrument: str, next_ms: int) -> None:
        """Learn when the exchange settles the funding of *instrument* next."""
        self._states[instrument].funding.announce(next_ms)

    def on_lost(self, instruments: Iterable[Instrument], cause: GapCause) -> None:
        """Learn that the connection of *instruments* was lost: their next hole has this cause."""
        for one in instruments:
            self._queue_gap_cause(one.id, cause)

    def _queue_gap_cause(self, instrument: str, cause: GapCause) -> None:
        """Queue that bars may be missing from here on; the first cause in the queue stands."""
        if self._states[instrument].claim_gap_cause():
            self._queue.put(GapCauseNotice(instrument, cause))

    # ------------------------------------------------------------ events

    async def _events(self) -> AsyncIterator[Event | None]:
        """Yield the warm-up, subscribe, catch up, then yield what comes."""
        for event in self._start.first:
            yield event
        async for event in self._warm_up():
            yield event
        async for frame_bar in self._frames():
            yield frame_bar
        if self._start.started is not None:
            yield self._start.started()
        self._listen()
        async for event in self._catch_up():
            yield event
        self._maintenance.start()
        async for come in self._live():
            yield come

    async def _live(self) -> AsyncIterator[Event | None]:
        """Hand on what comes until the end, the bars of one close together."""
        self._is_live = True
        gatherer = CloseGatherer(
            self._states,
            clock=self._clock,
            is_up=self._is_up,
            remind=lambda open_ms: self._spawn(self._end_wait(open_ms)),
        )
        gathers = self._start.gather_ms > 0 and len(self._states) > 1
        while True:
            if self._has_promised and not len(self._queue):
                self._has_promised = False
                yield None
            if isinstance(item := await self._queue.get(), Stop):
                break
            if isinstance(item, CloseTimeout):
                for event in gatherer.expire(item.open_time_ms):
                    yield event
                continue
            async for come in self._on_item(item):
                for event in gatherer.push(come) if gathers else (come,):
                    yield event
        for event in gatherer.flush():
            yield event

    async def _end_wait(self, open_ms: int) -> None:
        interval_s = self._start.interval_ms / 1000 / self._exchange.time_scale
        wait_s = min(self._start.gather_ms / 1000, interval_s * GATHER_INTERVALS_MOST)
        await self._clock.sleep(wait_s)
        self._queue.put(CloseTimeout(open_ms))

    async def _on_item(  # noqa: C901 - one case an item
        self,
        item: MarketData | BackfillPage | GapCauseNotice | Submitted,
    ) -> AsyncIterator[Event]:
        """Yield what one item of the queue causes."""
        match item:
            case Bar():
                async for event in self._sequencer.bar(item):
                    yield event
            case Quote() | Mark() | Trade():
                if self._is_event(item):
                    for price in self._with_others(item):
                        yield structs.replace(price, seen_ms=self._clock.market_ms())
            case OrderBookSample():
                for block in self._states[item.depth.instrument].take_book(item):
                    yield structs.replace(block, seen_ms=self._clock.market_ms())
            case BackfillPage():
                async for event in self._sequencer.page(item):
                    yield event
            case GapCauseNotice():
                self._states[item.instrument].set_gap_cause(item.cause)
            case Submitted():
                yield item.event
            case _:
                assert_never(item)

    def _is_event(self, item: Quote | Mark | Trade) -> bool:
        """Keep *item*; return whether it is an event at once, and not before the next bar alone."""
        state, judge = self._states[item.instrument], self._judge
        is_evidence = judge is not None and judge.is_evidence(item)
        if isinstance(item, Trade):
            return state.update_trade(item, is_evidence=is_evidence)
        repeats = judge is not None and judge.repeats(item)
        if isinstance(item, Mark):
            matters = is_evidence or (not repeats and self._liquidates(item))
            return state.update_mark(item, matters=matters)
        from_ms = None if repeats else self._quote_from_ms(item)
        again = judge is not None and judge.holds_quote(item.instrument)
        return state.update_quote(item, from_ms, is_evidence=is_evidence, again=again)

    def _with_others(self, item: Quote | Mark | Trade) -> list[Quote | Mark | Trade]:
        """Return *item*, and before it what the other sources show now where that matters.

        It does where *item* is doubted, and where it shows a price that was not believed: of that
        source the newest counts.
        """
        if (judge := self._judge) is None:
            return [item]
        is_doubted = not isinstance(item, Trade) and judge.doubts(item)
        self.counters["doubted_prices"] += is_doubted
        if not is_doubted and not judge.is_evidence(item):
            return [item]
        return [*self._states[item.instrument].beside(item), item]

    async def _warm_up(self) -> AsyncIterator[Event]:
        """Fetch the bars before the period by REST, as far as they are final already."""
        until_ms = interval_start(self._start.period_start_ms, self._start.interval_ms)
        async for event in self._filled(until_ms):
            yield event

    def _holes(self, until_ms: int) -> list[Hole]:
        """Return what is missing until *until_ms* of the instruments that REST answers."""
        return [
            Hole(state, until_ms, cause=state.cause)
            for key, state in self._states.items()
            if key not in self._unanswered
        ]

    async def _filled(self, until_ms: int) -> AsyncIterator[Event]:
        """Fill what is missing until *until_ms*, as far as REST answers.

        Once this exchange served a run, an instrument that it does not answer for holds up no
        other: the background goes on asking.
        """
        is_patient = not self._start.is_served
        exchange = self._exchange
        known = len(self._unanswered)
        events = self._sequencer.fill(
            self._holes(until_ms),
            patience_s=None if is_patient else exchange.certain_s + exchange.connect_timeout_s,
            unanswered=self._unanswered,
        )
        async for event in events:
            yield event
        if len(self._unanswered) > known:
            log.warning(
                "unanswered",
                instruments=sorted(self._unanswered),
                advice="REST does not answer for them; other symbols go on",
            )

    async def _frames(self) -> AsyncIterator[FrameBar]:
        """Fetch the closed candles of higher frames that the warm-up bars do not reach."""
        lacking = self._start.lacking_frames
        ranges = [
            one
            for key in self._states
            for one in lacking(self._next_ms(key))
            if one.instrument == key
        ]
        for wanted in ranges:
            if wanted.instrument in self._unanswered:
                continue
            instrument = self._states[wanted.instrument].instrument
            found = await self._client.candles(
                instrument, wanted.interval_ms, wanted.from_ms, wanted.until_ms - 1
            )
            now_ms = self._clock.market_ms()
            self.counters["frame_bars"] += len(found)
            for bar in found:
                yield frame_bar_of(bar, seen_ms=now_ms)

    def _next_ms(self, instrument: str) -> int:
        """Return when the bar opens that *instrument* is decided on next.

        Long after the period began, where a run goes on: a prune may have dropped what was before.
        """
        known_ms = self._start.known.get(instrument)
        next_ms = 0 if known_ms is None else known_ms + self._start.interval_ms
        return max(next_ms, self._start.period_start_ms)

    def _listen(self) -> None:
        """Begin to keep connections, time and filters up."""
        for work in (
            *(stream.run() for stream in self._streams),
            self._maintenance.run_time(),
            self._maintenance.run_overdue(),
            # Each instrument has its own: one that the exchange does not answer holds up no other.
            *(self._maintenance.run_settlements(state) for state in self._states.values()),
            *(self._maintenance.run_filters(state) for state in self._states.values()),
        ):
            self._spawn(work)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        """Let *work* run in the background until the feed ends."""
        task = self._group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _catch_up(self) -> AsyncIterator[Event]:
        """Wait for the subscriptions, then fetch by REST what closed before them."""
        for stream in self._streams:
            # Without a stream REST alone goes on, so this wait has an end.
            await stream.subscribed(self._exchange.connect_timeout_s)
        await self._maintenance.synchronise()
        while (behind := self._behind()) is not None:
            if not self._start.is_served:
                raise behind
            self._cooldown.retry_log.failed("time", behind, BEHIND_WAIT_S)
            await self._cooldown.pause("time", BEHIND_WAIT_S)
            await self._maintenance.synchronise()
        reached: dict[str, int] = {}
        while True:
            until_ms = interval_start(self._clock.market_ms(), self._start.interval_ms)
            before = dict(reached)
            async for event in self._filled(until_ms):
                yield event
            holes = self._holes(until_ms)
            reached = {one: state.sequence.next_open_ms for one, state in self._states.items()}
            if reached == before or not any(hole.is_open for hole in holes):
                return

    def _behind(self) -> ConfigInvalid | None:
        """Return what is wrong with a server whose time lies behind what the run already holds."""
        now_ms = self._clock.market_ms()
        for state in self._states.values():
            held_ms = state.sequence.next_open_ms
            if state.instrument.id in self._resumed and now_ms < held_ms:
                return ConfigInvalid(
                    f"The exchange's time is {held_ms - now_ms} ms behind the last bar of "
                    f"{state.instrument.id} in the database; choose another database with --db "
                    "or storage.url."
                )
        return None

    def _is_up(self, state: FeedState) -> bool:
        """Return whether the connection of the instrument stands."""
        return any(one.is_connected(state.instrument.id) for one in self._streams)


def _feed_state(instrument: Instrument, exchange: ExchangeSection, start: FeedStart) -> FeedState:
    """Return the state of *instrument* as the run left it, or as a new run begins."""
    interval_ms = start.interval_ms
    known_ms = start.known.get(instrument.id)
    if known_ms is None:
        first_ms = interval_start(start.period_start_ms, interval_ms)
        next_open_ms = first_ms - start.warmup_bars * interval_ms
        settled_ms = start.period_start_ms
    else:
        next_open_ms = settled_ms = known_ms + interval_ms
    return FeedState(
        instrument,
        cause=None if known_ms is None else GapCause.DOWN,
        sequence=BarSequence(interval_ms=interval_ms, next_open_ms=next_open_ms),
        funding=FundingSchedule(
            interval_minutes=instrument.funding_interval_minutes,
            settled_ms=start.known_funding.get(instrument.id, settled_ms),
        ),
        certain_s=exchange.certain_s,
        close_filter=CloseFilter(start.plausible, start.recent.get(instrument.id, ())),
        books=DepthHolder(instrument.id, start.depth, start.depth_every_ms)
        if start.depth
        else None,
    )
