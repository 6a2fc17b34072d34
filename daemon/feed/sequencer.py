"""Bars exactly once and in order: holes filled by REST, settlements before their bars.

The rules are docs/time.md, T3 and T16 to T18.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping, Sequence
from itertools import groupby
from typing import Final, NamedTuple, TypeVar, assert_never

from msgspec import Struct, structs

from tracepaper.daemon.clock import Clock
from tracepaper.daemon.feed.client import BackfillPage, MarketDataClient
from tracepaper.daemon.feed.maintenance import FeedMaintenance
from tracepaper.daemon.feed.state import (
    PENDING_MAX,
    REQUEST_WAIT_MAX_S,
    FeedState,
    MissingBars,
    Place,
    Price,
    stretches,
)
from tracepaper.daemon.log import Logger
from tracepaper.strategies.types.market import (
    BY_REST,
    Bar,
    Depths,
    Event,
    Funding,
    Gap,
    GapCause,
    Source,
)

T = TypeVar("T")

FIRST_WAIT_S: Final = 0.5
LISTING_WAIT_S_MAX: Final = 1.0
"""Between two answers that agree on an instrument's first candle; before it nothing is missing."""


class Hole(Struct, frozen=True):
    """The missing bars of one instrument, from its sequence's next bar until ``until_ms``.

    Bars that REST lacks at the end may still come: they stay the sequence's next ones. ``cause`` is
    None where nothing went wrong: the first warm-up of a run.
    """

    state: FeedState
    until_ms: int  # exclusive
    cause: GapCause | None

    @property
    def is_open(self) -> bool:
        """Whether anything is missing."""
        return self.state.sequence.lacks(self.until_ms)

    @property
    def is_new(self) -> bool:
        """Whether no candle of the instrument is known: it may have been listed at any time."""
        return self.cause is None and not self.state.sequence.is_begun


class Patience(NamedTuple):
    """How long to wait for a first answer, and behind it for the last; None: without end."""

    seconds: float | None
    unanswered: set[str]  # instruments that were given up

    async def answers(self, requests: Mapping[str, Coroutine[None, None, T]]) -> dict[str, T]:
        """Return the answers to *requests* by instrument; those given up are left out."""
        tasks = {key: asyncio.ensure_future(request) for key, request in requests.items()}
        try:
            if tasks and self.seconds is not None:
                first = asyncio.FIRST_COMPLETED  # the only one may be one that never comes
                await asyncio.wait(tasks.values(), timeout=self.seconds, return_when=first)
                await asyncio.wait(tasks.values(), timeout=self.seconds)
                late = {key for key, task in tasks.items() if not task.done()}
                self.unanswered.update(late)
                return {key: await task for key, task in tasks.items() if key not in late}
            return dict(zip(tasks, await asyncio.gather(*tasks.values()), strict=True))
        finally:
            for task in tasks.values():
                task.cancel()


class Backfill:
    """Fills holes from REST; what it lacks twice, *certain_s* apart, is lost for good."""

    def __init__(self, client: MarketDataClient, clock: Clock, certain_s: float) -> None:
        self._client = client
        self._clock = clock
        self._certain_s = certain_s

    async def fill(
        self,
        holes: Sequence[Hole],
        *,
        patience_s: float | None = None,
        unanswered: set[str] | None = None,
    ) -> AsyncIterator[tuple[int, Gap | Bar]]:
        """Yield the missing bars of all *holes*, merged in open-time order, each hole as a gap.

        Before each stands the number of events of the same answer behind it.

        A ``Gap`` repaired by ``rest`` comes before its bars, at most a thousand at a time; an
        unrepaired one covers bars that are lost. Each bar is accepted by its sequence as it is
        yielded. An instrument without an answer within *patience_s* of network time after the first
        answer, or without a first one as long, stays open, and is added to *unanswered*: it holds
        up no other.
        """
        holes = [hole for hole in holes if hole.is_open]
        patience = Patience(patience_s, set() if unanswered is None else unanswered)
        async for counted in self._filled(holes, patience):
            yield counted
        holes = [hole for hole in holes if hole.state.instrument.id not in patience.unanswered]
        # An instrument without any candle is as rare as an answer that wrongly says so: ask twice.
        if unknown := [hole for hole in holes if hole.is_new]:
            await self._wait(min(LISTING_WAIT_S_MAX, self._certain_s))
            async for counted in self._filled(unknown, patience):
                yield counted

    async def _wait(self, seconds: float) -> None:
        await self._client.cooldown.pause("a hole in the candles", seconds)

    async def _filled(
        self, holes: Sequence[Hole], patience: Patience
    ) -> AsyncIterator[tuple[int, Gap | Bar]]:
        """Yield each event with the number of those that follow it without another request."""
        if not holes:
            return
        window_ms = self._client.candles_max * holes[0].state.sequence.interval_ms
        first_ms = min(hole.state.sequence.next_open_ms for hole in holes)
        last_ms = max(hole.until_ms for hole in holes)
        for start_ms in range(first_ms, last_ms, window_ms):
            windows = {
                hole.state.instrument.id: self._window(hole, start_ms, start_ms + window_ms)
                for hole in holes
                if hole.state.instrument.id not in patience.unanswered
            }
            answers = await patience.answers(windows)
            events = [
                (when_ms, place, event)
                for place, hole in enumerate(holes)
                for when_ms, event in answers.get(hole.state.instrument.id, ())
            ]
            # Sorting is stable: a gap stays before its bars, and symbols in their order.
            ordered = sorted(events, key=lambda entry: entry[:2])
            for left, (_, place, event) in zip(reversed(range(len(ordered))), ordered, strict=True):
                state, now_ms = holes[place].state, self._clock.market_ms()
                if isinstance(event, Bar):
                    state.accept(event)
                    yield left, structs.replace(event, seen_ms=now_ms)
                else:
                    if not event.repaired_by:
                        state.sequence.skip(event.until_ms)
                    yield left, structs.replace(event, market_ms=now_ms, seen_ms=now_ms)

    async def _window(self, hole: Hole, start_ms: int, end_ms: int) -> list[tuple[int, Gap | Bar]]:
        """Return the bars and gaps of [*start_ms*, *end_ms*), with the times to sort by."""
        sequence = hole.state.sequence
        interval_ms = sequence.interval_ms
        from_ms = sequence.next_open_ms
        until_ms = min(end_ms, hole.until_ms)
        request_ms = max(from_ms, start_ms)
        if request_ms >= until_ms or not (bars := await self._request(hole, request_ms, until_ms)):
            return []
        if hole.is_new:
            bars = await self._from_listing(hole, bars, from_ms)
            from_ms = bars[0].open_time_ms
        bars = await self._close_inner_holes(hole, bars, from_ms)
        bars = await self._verified(hole, bars)
        events: list[tuple[int, Gap | Bar]] = []
        for stretch in stretches(bars):
            first_ms, last_ms = stretch[0].open_time_ms, stretch[-1].close_time_ms
            if from_ms < first_ms:
                lost = gap(hole.state, from_ms, first_ms, hole.cause)
                events.append((from_ms + interval_ms, lost))
            if hole.cause is not None:
                repaired = gap(hole.state, first_ms, last_ms, hole.cause, by=BY_REST)
                events.append((first_ms + interval_ms, repaired))
            events.extend((bar.close_time_ms, bar) for bar in stretch)
            from_ms = last_ms
        return events

    async def _request(self, hole: Hole, from_ms: int, until_ms: int) -> list[Bar]:
        state = hole.state
        return await self._client.candles(
            state.instrument, state.sequence.interval_ms, from_ms, until_ms - 1
        )

    async def _from_listing(self, hole: Hole, bars: list[Bar], from_ms: int) -> list[Bar]:
        """Return *bars* and those before them that a second answer has, back to the listing."""
        while (first_ms := bars[0].open_time_ms) > from_ms:
            await self._wait(min(LISTING_WAIT_S_MAX, self._certain_s))
            again = await self._request(hole, from_ms, bars[0].close_time_ms)
            if not again or again[-1].open_time_ms < first_ms:
                continue  # it lacks a bar of the first answer, so it cannot be trusted before it
            if again[0].open_time_ms == first_ms:
                break
            bars = again[:-1] + bars
        return bars

    async def _verified(self, hole: Hole, bars: list[Bar]) -> list[Bar]:
        """Return *bars* once two answers in a row agree on each implausible close."""
        verified: dict[int, Bar] = {}
        wait_s = FIRST_WAIT_S
        while unverified := hole.state.implausible(
            bars, lambda bar: verified.get(bar.open_time_ms) == bar
        ):
            again = await self._request(
                hole, unverified[0].open_time_ms, unverified[-1].close_time_ms
            )
            repeated = {bar.open_time_ms: bar for bar in again}
            latest = {bar.open_time_ms: repeated.get(bar.open_time_ms, bar) for bar in unverified}
            agreed = [bar for bar in unverified if repeated.get(bar.open_time_ms) == bar]
            verified.update((bar.open_time_ms, bar) for bar in agreed)
            bars = [latest.get(bar.open_time_ms, bar) for bar in bars]
            if len(agreed) < len(unverified):
                await self._wait(wait_s)
                wait_s = min(2 * wait_s, REQUEST_WAIT_MAX_S)
        return bars

    async def _close_inner_holes(self, hole: Hole, bars: list[Bar], from_ms: int) -> list[Bar]:
        """Return *bars* with those that later answers have between them."""
        interval_ms = hole.state.sequence.interval_ms
        missing = MissingBars(self._certain_s, interval_ms)
        by_time = {bar.open_time_ms: bar for bar in bars}
        wait_s = FIRST_WAIT_S
        while True:
            bars = [by_time[open_ms] for open_ms in sorted(by_time)]
            times = missing_bars(bars, from_ms, interval_ms)
            now_s = self._clock.network_s()
            missing.update(times, from_ms=from_ms, until_ms=bars[-1].close_time_ms, now_s=now_s)
            if missing.due_s() == float("inf"):
                return bars
            await self._wait(min(wait_s, max(0.0, missing.due_s() - now_s)))
            wait_s = min(2 * wait_s, REQUEST_WAIT_MAX_S)
            past_ms = times[-1] + interval_ms
            again: list[Bar] = []
            while not again or again[-1].open_time_ms < past_ms:
                again = await self._request(hole, times[0], past_ms + interval_ms)
                if not again or again[-1].open_time_ms < past_ms:
                    await self._wait(wait_s)
                by_time = {**{bar.open_time_ms: bar for bar in again}, **by_time}


def missing_bars(bars: Sequence[Bar], from_ms: int, interval_ms: int) -> list[int]:
    """Return the open times from *from_ms* on that the sorted *bars* lack before their last."""
    held = {bar.open_time_ms for bar in bars}
    until_ms = bars[-1].open_time_ms
    return [at_ms for at_ms in range(from_ms, until_ms, interval_ms) if at_ms not in held]


def gap(
    state: FeedState, from_ms: int, until_ms: int, cause: GapCause | None, *, by: str = ""
) -> Gap:
    """Return a gap that is repaired *by* something or for good; it is dated when delivered."""
    cause = GapCause.ARCHIVE if cause is None else cause
    return Gap(state.instrument.id, from_ms, until_ms, cause, by, market_ms=0, seen_ms=0)


FUNDING_WAIT_S: Final = 0.5
"""How long, network time, the bars of one close wait for settlements that belong before them."""

log = Logger("bybit.feed")

Delivered = TypeVar("Delivered", Bar, Gap, Price | Depths)


class BarSequencer:
    """The order of events around bars: settlements, newest quote and mark, then the bar.

    ``bar`` takes a bar of a stream, ``page`` an answer of REST in the background, ``fill`` closes
    given holes from REST. A bar ahead of the sequence waits until the bars before it came, or are
    certain never to come; other instruments go on meanwhile.
    """

    def __init__(
        self,
        *,
        client: MarketDataClient,
        clock: Clock,
        states: Mapping[str, FeedState],
        maintenance: FeedMaintenance,
        is_up: Callable[[FeedState], bool],
        certain_s: float,
    ) -> None:
        self._backfill = Backfill(client, clock, certain_s)
        self._clock = clock
        self._states = states
        self._maintenance = maintenance
        self._counters = client.counters
        self._is_up = is_up
        self.left = 0  # bars at hand that follow the one just yielded
        self._new = {key for key, state in states.items() if state.cause is None}  # to this run
        self._held: dict[str, list[Bar]] = {}  # of the stream, while their past is asked for
        self._waited = -1, 0.0  # the newest close that settlements were asked for, and until when

    async def bar(self, bar: Bar) -> AsyncIterator[Event]:
        """Take a bar of the stream: deliver it exactly once, in its place."""
        if (held := self._held.get(bar.instrument)) is not None:
            if len(held) < PENDING_MAX:
                held.append(bar)
            else:  # REST has it
                self._counters["overflow_bars"] += 1
            return
        state = self._states[bar.instrument]
        match place := state.sequence.place(bar):
            case Place.REPEATED | Place.OLD | Place.REVISED:
                for revision in self._revision(state, bar, place):
                    yield revision
                return
            case Place.NEXT | Place.AHEAD:
                if state.cause is None:  # the stream has brought all since REST had nothing
                    self._begin_at(state, bar)
                if not state.pending.add(bar):
                    self._counters["overflow_bars"] += 1
            case _:
                assert_never(place)
        async for event in self._drain(state):
            yield event
        if len(state.pending):
            self._maintenance.request_bars(state)

    async def page(self, page: BackfillPage) -> AsyncIterator[Event]:
        """Take an answer of REST: bars that close a hole, or the certainty that there are none."""
        state = self._states[page.instrument]
        state.end_request()
        sequence = state.sequence
        if page.bars:
            self._begin_at(state, page.bars[0])
            state.missing.update(
                missing_bars(page.bars, page.from_ms, sequence.interval_ms),
                from_ms=page.from_ms,
                until_ms=page.bars[-1].close_time_ms,
                now_s=page.answered_s,
            )
        state.pending.add_missing(filter(sequence.is_new, page.bars))
        async for event in self._drain(state):
            yield event
        state.pending.trim()
        if (due_s := state.missing.due_s()) > page.answered_s:
            state.request_by(due_s)

    def hold(self, instrument: str) -> None:
        """Keep the stream of *instrument* waiting until it is released; REST is asked elsewhere."""
        self._held[instrument] = []
        self._maintenance.waiting.add(instrument)
        self._states[instrument].claim_request()

    @property
    def held(self) -> Collection[str]:
        """The instruments whose stream waits."""
        return self._held.keys()

    def holds(self, instrument: str) -> bool:
        """Return whether the stream of *instrument* waits."""
        return instrument in self._held

    async def release(self, instrument: str) -> AsyncIterator[Event]:
        """Deliver what the stream of *instrument* brought while it waited."""
        self._states[instrument].end_request()
        self._maintenance.waiting.discard(instrument)
        for bar in self._held.pop(instrument):
            async for event in self.bar(bar):
                yield event

    async def answers(self, hole: Hole) -> AsyncIterator[list[Event]]:
        """Fill *hole* from REST beside the stream: yield the events of each answer."""
        events: list[Event] = []
        async for left, event in self._filled([hole], None, set()):
            events.append(event)
            if not left and isinstance(event, Bar | Gap):
                yield events
                events = []

    async def fill(
        self, holes: Sequence[Hole], *, patience_s: float | None, unanswered: set[str]
    ) -> AsyncIterator[Event]:
        """Fill *holes* from REST, each bar preceded by the settlements that belong before it.

        An instrument that is not answered in time is added to *unanswered*.
        """
        async for left, event in self._filled(holes, patience_s, unanswered):
            self.left = left
            yield event

    async def _filled(
        self, holes: Sequence[Hole], patience_s: float | None, unanswered: set[str]
    ) -> AsyncIterator[tuple[int, Event]]:
        """Yield each event behind the number of those of the same answer that follow it."""
        counted = self._backfill.fill(holes, patience_s=patience_s, unanswered=unanswered)
        async for left, event in counted:
            if isinstance(event, Bar):
                state = self._states[event.instrument]
                async for before in self._settlements_before(state, event.close_time_ms):
                    yield left, before
                self._counters["rest_bars"] += 1
            else:
                self._counters["repairs" if event.repaired_by else "holes"] += 1
            yield left, event

    def _begin_at(self, state: FeedState, bar: Bar) -> None:
        """Begin a new run at *bar* where REST had nothing: the instrument was just listed."""
        if not state.sequence.is_begun and state.instrument.id in self._new:
            first_ms = state.pending.first_open_ms()
            state.sequence.skip(min(bar.open_time_ms, first_ms or bar.open_time_ms))

    def _revision(self, state: FeedState, bar: Bar, place: Place) -> list[Bar]:
        """Return *bar* where it revises a delivered one; nothing where it repeats that."""
        if place is not Place.REVISED:
            self._counters[f"{place.value}_bars"] += 1
            return []
        self._counters["revised_bars"] += 1
        state.sequence.accept(bar)
        return [structs.replace(bar, seen_ms=self._clock.market_ms())]

    async def _drain(self, state: FeedState) -> AsyncIterator[Event]:
        """Deliver the waiting bars up to the first one before which a bar may still come."""
        sequence = state.sequence
        while True:
            ready, is_held = self._take_plausible(state)
            for source, group in groupby(ready, key=lambda versions: versions[0].source):
                stretch = list(group)
                if source is Source.REST:
                    yield self._repair_gap(state, stretch)
                async for event in self._bars(state, stretch, is_last=stretch[-1] is ready[-1]):
                    yield event
                if source is not Source.REST:
                    state.clear_gap_cause()
            if is_held:
                break
            first_ms = state.pending.first_open_ms()
            certain_ms = state.missing.certain_until(sequence.next_open_ms)
            if first_ms is None or not sequence.lacks(certain_ms):
                break
            from_ms, until_ms = sequence.next_open_ms, min(certain_ms, first_ms)
            sequence.skip(until_ms)
            self._counters["holes"] += 1
            yield self._seen_now(gap(state, from_ms, until_ms, self._cause(state)))
        state.missing.forget(sequence.next_open_ms)

    def _take_plausible(self, state: FeedState) -> tuple[list[list[Bar]], bool]:
        """Take out the next bars up to an implausible close; return whether there was one.

        A close too far from the last one leaves a hole: REST is asked for it, and its bar is
        accepted if REST repeats it. The bars after it wait.
        """
        ready = state.pending.pop_from(state.sequence.next_open_ms)
        unverified = state.unverified(versions[0] for versions in ready)
        if not unverified:
            return ready, False
        opens = {bar.open_time_ms for bar in unverified}
        first = next(
            place for place, versions in enumerate(ready) if versions[0].open_time_ms in opens
        )
        state.pending.put_back(
            versions for versions in ready[first:] if versions[0].open_time_ms not in opens
        )
        self._counters["implausible_bars"] += len(unverified)
        earliest = unverified[0]
        log.warning(
            "implausible",
            instrument=earliest.instrument,
            open_time_ms=earliest.open_time_ms,
            source=earliest.source.value,
            advice="REST is asked again; the gate plausible holds what it repeats",
        )
        if earliest.source is not Source.REST:  # else it is overdue, and asked for again as such
            state.cause = GapCause.IMPLAUSIBLE
            self._maintenance.request_bars(state)
        return ready[:first], True

    def _repair_gap(self, state: FeedState, stretch: list[list[Bar]]) -> Gap:
        """Return the gap that the bars of *stretch*, from REST, close."""
        from_ms, until_ms = stretch[0][0].open_time_ms, stretch[-1][0].close_time_ms
        self._counters["repairs"] += 1
        self._counters["rest_bars"] += len(stretch)
        repaired = gap(state, from_ms, until_ms, self._cause(state), by=BY_REST)
        return self._seen_now(repaired)

    async def _bars(
        self, state: FeedState, stretch: list[list[Bar]], *, is_last: bool
    ) -> AsyncIterator[Event]:
        """Deliver consecutive bars; the newest quote and mark come before the last one alone."""
        for place, versions in enumerate(stretch):
            bar, *revisions = versions
            wait_s = self._wait_of(bar)
            async for before in self._settlements_before(state, bar.close_time_ms, wait_s):
                yield before
            if is_last and versions is stretch[-1]:
                for newest in state.undelivered():
                    yield self._seen_now(newest)
            state.accept(bar)
            if bar.source is not Source.REST:
                self._counters["bars"] += 1
            self.left = len(stretch) - place - 1
            yield self._seen_now(bar)
            for repeated in revisions:
                for revision in self._revision(state, repeated, state.sequence.place(repeated)):
                    yield revision

    def _seen_now(self, event: Delivered) -> Delivered:
        """Return *event* as seen now; a gap is also dated now."""
        now_ms = self._clock.market_ms()
        if isinstance(event, Gap):
            return structs.replace(event, market_ms=now_ms, seen_ms=now_ms)
        return structs.replace(event, seen_ms=now_ms)

    def _cause(self, state: FeedState) -> GapCause:
        """Return why bars are missing; the stream of a new run has brought none yet."""
        if state.cause is not None:
            return state.cause
        return GapCause.MISSED if self._is_up(state) else GapCause.DISCONNECTED

    def _wait_of(self, bar: Bar) -> float:
        """Return how long *bar* of the stream waits: what the other bars of its close left of it.

        Otherwise two hundred symbols that are settled at once would wait one after the other.
        """
        now_s = self._clock.network_s()
        if bar.close_time_ms > self._waited[0]:
            self._waited = bar.close_time_ms, now_s + FUNDING_WAIT_S
        if bar.close_time_ms < self._waited[0]:
            return FUNDING_WAIT_S
        return self._waited[1] - now_s

    async def _settlements_before(
        self, state: FeedState, close_ms: int, wait_s: float = FUNDING_WAIT_S
    ) -> AsyncIterator[Funding | Gap]:
        """Yield the settlements that belong before a bar that closed at *close_ms*.

        After *wait_s* the bar goes on, and they are asked for in the background.
        """
        if not state.funding.is_due_by(close_ms):
            return
        state.funding.note_request(close_ms)
        if wait_s <= 0:
            return
        try:
            async with asyncio.timeout(wait_s):
                settled = await self._maintenance.settlements(state, close_ms)
        except TimeoutError:
            return
        for funding in settled:
            yield funding
