"""The live feed: streams and REST as one sequence of events, each bar exactly once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import Final, Self

from msgspec import structs

from tracepaper.daemon.clock import Clock
from tracepaper.daemon.config.sections import ExchangeSection
from tracepaper.daemon.engine.price_checks import AcceptedPrices
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
    StreamRequest,
    WarmUpAnswer,
    first_cause,
)
from tracepaper.daemon.feed.closes import CloseGatherer
from tracepaper.daemon.feed.funding import FundingSchedule
from tracepaper.daemon.feed.maintenance import FeedMaintenance
from tracepaper.daemon.feed.sequencer import BarSequencer
from tracepaper.daemon.feed.state import BarSequence, CloseFilter, DepthHolder, FeedState, Price
from tracepaper.daemon.feed.warming import WarmUpTurns
from tracepaper.daemon.log import Logger
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.types.market import (
    Bar,
    Event,
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
"""Longest wait for the bars of a close, in intervals: with a fast exchange time
``market.gather_ms`` could span many bars."""
log = Logger("bybit.feed")

CANCEL_AGAIN_S: Final = 2.0
"""Wall time after which a task is cancelled again; closing a connection takes a second."""

BEHIND_WAIT_S: Final = 5.0
"""Wait before a server time that is behind the run's bars is read again."""


class LiveFeed:
    """The ``Feed`` of a daemon; an async context manager that owns the connections.

    ::

        async with LiveFeed(...) as feed:
            async for event in feed: ...

    *quote_from_ms* returns the earliest market time at which a quote can change an order, None if
    it cannot. *liquidates* returns whether a mark price liquidates a position. Such a mark is an
    event at once, after the newest marks of all instruments if *marks_together* is set.
    *accepted_prices* judge prices that jump (M36). ``counters`` are for /metrics. Raises
    ``ConfigInvalid`` if the exchange does not fit the run; recoverable errors are waited out.
    """

    def __init__(  # noqa: PLR0913 - a feed connects many parts
        self,
        *,
        client: MarketDataClient,
        clock: Clock,
        instruments: Sequence[Instrument],
        exchange: ExchangeSection,
        start: FeedStart,
        quote_from_ms: Callable[[Quote], int | None],
        liquidates: Callable[[Mark], bool] = lambda _: False,
        marks_together: bool = False,
        accepted_prices: Mapping[str, AcceptedPrices] = MappingProxyType({}),
        queue_limit: int = QUEUE_LIMIT,
    ) -> None:
        self.counters = client.counters  # of streams and REST together
        self._clock = clock
        self._client = client
        self._cooldown = client.cooldown
        self._exchange = exchange
        self._quote_from_ms = quote_from_ms
        self._liquidates = liquidates
        self._marks_together = marks_together
        self._accepted_prices = accepted_prices
        self._queue: EventQueue[Item] = EventQueue(queue_limit)
        self._states = {item.id: _feed_state(item, exchange, start) for item in instruments}
        self._start = start
        self._unanswered: set[str] = set()
        self._resumed = {key for key, open_ms in start.last_open_ms.items() if open_ms is not None}
        self._maintenance = FeedMaintenance(
            client=client,
            clock=clock,
            exchange=exchange,
            states=self._states,
            queue=self._queue,
            spawn=self._spawn,
            doubts=self._doubts,
        )
        self._sequencer = BarSequencer(
            client=client,
            clock=clock,
            states=self._states,
            maintenance=self._maintenance,
            is_up=self._is_up,
        )
        self._warming = WarmUpTurns(
            client=client,
            clock=clock,
            exchange=exchange,
            sequencer=self._sequencer,
            states=self._states,
            queue=self._queue,
            spawn=self._spawn,
            start=start,
        )
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
        # Pass the group a cancellation only: it may have cancelled us because a task failed.
        is_cancelled = isinstance(error, asyncio.CancelledError)
        arguments = (kind, error, traceback) if is_cancelled else (None, None, None)
        try:
            try:
                # Before Python 3.13 a connection that fails while it is cancelled forgets the
                # cancellation and reconnects: so cancel until every task has ended.
                while self._tasks:
                    for task in tuple(self._tasks):
                        task.cancel()
                    await asyncio.wait(tuple(self._tasks), timeout=CANCEL_AGAIN_S)
            finally:
                await self._group.__aexit__(*arguments)
        except BaseExceptionGroup as failures:
            raise first_cause(failures) from None

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Yield events for ever."""
        async for event in self._events():
            yield event
            # When the next event is requested, the engine has taken in this one.
            if isinstance(event, Funding):
                self._states[event.instrument].funding.queued_ms.discard(event.market_ms)

    def is_behind(self) -> bool:
        """Return whether a bar follows at once that arrived with the event just yielded."""
        return self._sequencer.left > 0

    async def submit(self, event: Event) -> None:
        """Queue an *event* from outside, such as an operator's command."""
        self._queue.put_nowait(event)

    # ------------------------------------------------------------ the newest data

    def frame_s(self) -> float | None:
        """Return the network time of the newest frame; None before the first."""
        return max((s for stream in self._streams if (s := stream.frame_s)), default=None)

    def quote_ms(self, instrument: str) -> int | None:
        """Return the market time of the newest quote of *instrument*."""
        return self._states[instrument].quote_ms

    # ------------------------------------------------------------ calls by the connections

    def on_server_time(self, server_ms: int) -> bool:
        """Take in the date of a frame; return False to reject the frame."""
        return self._maintenance.observe(server_ms)

    def on_future_date(self) -> None:
        """Have the exchange's time read soon."""
        self._maintenance.request_resync()

    def on_data(self, item: MarketData) -> None:
        """Queue data of a stream, or drop them if the queue is full.

        REST repairs a dropped bar; a dropped order book leaves a gap before the next one.
        """
        if not isinstance(item, Bar):
            if not self._queue.try_put(item, share=0.5):
                is_book = isinstance(item, OrderBookSample)
                self.counters["overflow_books" if is_book else "overflow_quotes"] += 1
                self._maintenance.lag.warn("the queue of the feed is full, and quotes are dropped")
        elif not self._queue.try_put(item):
            self.counters["overflow_bars"] += 1
            self._queue_gap_cause(item.instrument, GapCause.OVERFLOW)

    def on_funding_time(self, instrument: str, next_ms: int) -> None:
        """Take in the time of the next settlement of *instrument*."""
        self._states[instrument].funding.announce(next_ms)

    def on_lost(self, instruments: Iterable[Instrument], cause: GapCause) -> None:
        """Note that the connection of *instruments* was lost, the cause of their next hole."""
        for instrument in instruments:
            self._queue_gap_cause(instrument.id, cause)

    def _queue_gap_cause(self, instrument: str, cause: GapCause) -> None:
        """Queue a notice that bars may be missing from here on, unless one is in the queue."""
        if self._states[instrument].claim_gap_cause():
            self._queue.put_nowait(GapCauseNotice(instrument, cause))

    # ------------------------------------------------------------ events

    async def _events(self) -> AsyncIterator[Event]:
        """Yield the warm-up, subscribe, catch up, then yield live events."""
        for event in self._start.first:
            yield event
        self._warming.plan()
        async for event in self._filled(None):  # the bars that warm up
            yield event
        self._warming.postpone(self._unanswered)
        for key in self._warming.first:
            for frame_bar in await self._warming.frames_of(key):
                yield frame_bar
        if self._start.started is not None:
            yield self._start.started(self._sequencer.held)
        self._listen()
        async for event in self._catch_up():
            yield event
        self._spawn(self._maintenance.run())
        async for live in self._live():
            yield live

    async def _live(self) -> AsyncIterator[Event]:
        """Yield the events of the queue, the bars of one close together."""
        gatherer = CloseGatherer(
            self._states,
            clock=self._clock,
            is_up=self._is_up,
            remind=lambda open_ms: self._spawn(self._end_wait(open_ms)),
        )
        is_gathered = self._start.gather_ms > 0 and len(self._states) > 1
        while True:
            if isinstance(item := await self._queue.get(), CloseTimeout):
                for event in gatherer.expire(item.open_time_ms):
                    yield event
                continue
            async for caused in self._on_item(item):
                for event in gatherer.push(caused) if is_gathered else (caused,):
                    yield event

    async def _end_wait(self, open_ms: int) -> None:
        interval_s = self._start.interval_ms / 1000 / self._exchange.time_scale
        wait_s = min(self._start.gather_ms / 1000, interval_s * GATHER_INTERVALS_MOST)
        await self._clock.sleep(wait_s)
        self._queue.put_nowait(CloseTimeout(open_ms))

    async def _on_item(  # noqa: C901, PLR0912 - one case for each kind of item
        self,
        item: MarketData | BackfillPage | WarmUpAnswer | GapCauseNotice | Event,
    ) -> AsyncIterator[Event]:
        """Yield the events that follow from one item of the queue."""
        match item:
            case Bar():
                async for event in self._sequencer.bar(item):
                    yield event
            case Quote() | Mark() | Trade():
                if self._is_event(item):
                    for price in (*self._other_marks(item), *self._with_other_sources(item)):
                        yield structs.replace(price, seen_ms=self._clock.market_ms())
            case OrderBookSample():
                if (books := self._states[item.depth.instrument].books) is not None:
                    for block in books.add(item.depth, item.cause):
                        yield structs.replace(block, seen_ms=self._clock.market_ms())
            case BackfillPage():
                async for event in self._sequencer.page(item):
                    yield event
            case WarmUpAnswer():
                async for event in self._on_warm_up(item):
                    yield event
            case GapCauseNotice():
                self._states[item.instrument].set_gap_cause(item.cause)
            case _:  # from outside, or from a background task
                yield item

    async def _on_warm_up(self, answer: WarmUpAnswer) -> AsyncIterator[Event]:
        """Yield the events of an answer; after the last one also those of the held stream."""
        now_ms = self._clock.market_ms()
        for left, event in zip(reversed(range(len(answer.events))), answer.events, strict=True):
            self._sequencer.left = left
            yield structs.replace(event, seen_ms=now_ms)
        if answer.is_last:
            async for event in self._sequencer.release(answer.instrument):
                yield event
        answer.taken_in.set()

    def _doubts(self, price: Quote | Mark | Funding) -> bool:
        prices = self._accepted_prices.get(price.instrument)
        return prices is not None and prices.doubts(price)

    def _is_event(self, item: Price) -> bool:
        """Keep *item*; return whether it is an event at once instead of before the next bar."""
        state, prices = self._states[item.instrument], self._accepted_prices.get(item.instrument)
        matters = prices is not None and prices.is_evidence(item)
        if not matters and not isinstance(item, Trade) and not (prices and prices.repeats(item)):
            if isinstance(item, Mark):
                matters = self._liquidates(item)
            elif (from_ms := self._quote_from_ms(item)) is not None:
                again = prices is not None and prices.holds_quote
                matters = state.may_fill(item, from_ms, again=again)
        return state.keep(item, matters=matters)

    def _other_marks(self, item: Price) -> list[Price]:
        """Return the newest marks of other instruments, if cross margin values them with *item*."""
        if not self._marks_together or not isinstance(item, Mark):
            return []
        others = [state for key, state in self._states.items() if key != item.instrument]
        return [mark for state in others for mark in state.deliver(Mark)]

    def _with_other_sources(self, item: Price) -> list[Price]:
        """Return *item*, after the newest prices of the other sources if these are needed.

        They are needed to judge a doubted *item*, or a doubted price that *item* may confirm.
        """
        if (prices := self._accepted_prices.get(item.instrument)) is None:
            return [item]
        is_doubted = not isinstance(item, Trade) and prices.doubts(item)
        self.counters["doubted_prices"] += is_doubted
        if not is_doubted and not prices.is_evidence(item):
            return [item]
        kinds = [kind for kind in (Quote, Mark, Trade) if not isinstance(item, kind)]
        return [*self._states[item.instrument].deliver(*kinds), item]

    def _answered(self) -> list[FeedState]:
        """Return the instruments that REST answers for and that wait for no later turn."""
        return [
            state
            for key, state in self._states.items()
            if key not in self._unanswered and key not in self._sequencer.held
        ]

    async def _filled(self, until_ms: int | None) -> AsyncIterator[Event]:
        """Fill the holes until *until_ms*, or those that warm up, as far as REST answers.

        An instrument without an answer delays no other, for the exchange may have taken it from its
        list; the background tasks continue to ask.
        """
        exchange = self._exchange
        unanswered_before = len(self._unanswered)
        events = self._sequencer.fill(
            self._answered(),
            until_ms,
            patience_s=exchange.certain_s + exchange.connect_timeout_s,
            unanswered=self._unanswered,
        )
        async for event in events:
            yield event
        if len(self._unanswered) > unanswered_before:
            log.warning(
                "unanswered",
                instruments=sorted(self._unanswered),
                advice="REST does not answer for them; other symbols continue",
            )

    def warm_at(self, instrument: str) -> int | None:
        """Return when REST will have sent all past bars of *instrument*; None if it has."""
        return self._warming.at_ms(instrument)

    def _listen(self) -> None:
        """Start the connections and the later turns of the warm-up."""
        for work in (*(stream.run() for stream in self._streams), self._warming.run()):
            self._spawn(work)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = self._group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _catch_up(self) -> AsyncIterator[Event]:
        """Wait for the subscriptions, then fetch by REST the bars that closed before them."""
        for stream in self._streams:
            # The wait is bounded: without a stream REST delivers the bars.
            await stream.subscribed(self._exchange.connect_timeout_s)
        await self._maintenance.synchronise()
        while (behind := self._behind()) is not None:
            if not self._start.is_served:
                raise behind
            await self._cooldown.back_off("time", behind, BEHIND_WAIT_S)
            await self._maintenance.synchronise()
        # The streams bring later closes; bars that REST still lacks are requested again later.
        until_ms = interval_start(self._clock.market_ms(), self._start.interval_ms)
        async for event in self._filled(until_ms):
            yield event

    def _behind(self) -> ConfigInvalid | None:
        """Return an error if the server's time is behind the newest bar of the run."""
        now_ms = self._clock.market_ms()
        for state in self._states.values():
            close_ms = state.sequence.next_open_ms
            if state.instrument.id in self._resumed and now_ms < close_ms:
                return ConfigInvalid(
                    f"The exchange's time is {close_ms - now_ms} ms behind the last bar of "
                    f"{state.instrument.id} in the database; choose another database with --db "
                    "or storage.url."
                )
        return None

    def _is_up(self, state: FeedState) -> bool:
        return any(stream.is_connected(state.instrument.id) for stream in self._streams)


def _feed_state(instrument: Instrument, exchange: ExchangeSection, start: FeedStart) -> FeedState:
    """Return the state of *instrument* at the run's last bar, or at the start of a new run."""
    interval_ms = start.interval_ms
    known_ms = start.last_open_ms.get(instrument.id)
    first_ms = start.first_ms.get(instrument.id, start.period_start_ms)
    first_ms = interval_start(first_ms, interval_ms)
    next_open_ms = first_ms - start.warmup_bars * interval_ms
    if known_ms is not None:
        next_open_ms = known_ms + interval_ms
        first_ms = max(first_ms, next_open_ms)
    return FeedState(
        instrument,
        cause=None if known_ms is None and not start.takes_over else GapCause.DOWN,
        first_ms=first_ms,
        sequence=BarSequence(interval_ms=interval_ms, next_open_ms=next_open_ms),
        funding=FundingSchedule(
            interval_minutes=instrument.funding_interval_minutes,
            settled_ms=start.known_funding.get(instrument.id, first_ms),
        ),
        certain_s=exchange.certain_s,
        close_filter=CloseFilter(start.plausible, start.recent.get(instrument.id, ())),
        books=DepthHolder(instrument.id, start.depth, start.depth_every_ms)
        if start.depth
        else None,
    )
