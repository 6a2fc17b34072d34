"""Delivers bars exactly once and in order; REST fills holes, settlements precede their bars.

The rules are docs/time.md, T3 and T16 to T18.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping, Sequence
from functools import partial
from itertools import chain, groupby
from typing import Final, TypeVar, assert_never

from msgspec import structs

from tracepaper.daemon.clock import Clock
from tracepaper.daemon.feed.client import BackfillPage, MarketDataClient
from tracepaper.daemon.feed.maintenance import FeedMaintenance
from tracepaper.daemon.feed.state import PENDING_MAX, REQUEST_WAIT_MAX_S, FeedState, Place, Price
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

FIRST_WAIT_S: Final = 0.5


async def finish_requests(
    requests: Mapping[str, Coroutine[None, None, None]],
    patience_s: float | None,
    unanswered: set[str],
) -> None:
    """Run *requests*, by instrument; cancel late ones and add their keys to *unanswered*.

    A request is late if it is not finished *patience_s* after the first one, or after twice that
    time if none is. None waits for ever.
    """
    tasks = {key: asyncio.ensure_future(request) for key, request in requests.items()}
    late = set[str]()
    try:
        if tasks and patience_s is not None:
            first = asyncio.FIRST_COMPLETED
            await asyncio.wait(tasks.values(), timeout=patience_s, return_when=first)
            await asyncio.wait(tasks.values(), timeout=patience_s)
            late = {key for key, task in tasks.items() if not task.done()}
            unanswered.update(late)
        await asyncio.gather(*(task for key, task in tasks.items() if key not in late))
    finally:
        for task in tasks.values():
            task.cancel()


def gap(state: FeedState, from_ms: int, until_ms: int, cause: GapCause, *, by: str = "") -> Gap:
    """Return a gap, repaired *by* REST or permanent; its dates are set on delivery."""
    return Gap(state.instrument.id, from_ms, until_ms, cause, by, market_ms=0, seen_ms=0)


def _part(state: FeedState, bar: Bar) -> tuple[Source, bool]:
    """Return the source of *bar*, which is one of *state*, and whether it only warms up."""
    return bar.source, bar.open_time_ms < state.first_ms


def missing_bars(bars: Sequence[Bar], from_ms: int, interval_ms: int) -> list[int]:
    """Return the open times from *from_ms* to the last of the sorted *bars* that they lack."""
    present = {bar.open_time_ms for bar in bars}
    until_ms = bars[-1].open_time_ms
    return [at_ms for at_ms in range(from_ms, until_ms, interval_ms) if at_ms not in present]


FUNDING_WAIT_S: Final = 0.5
"""Network time that the bars of one close wait for the settlements due before them."""

log = Logger("bybit.feed")

Delivered = TypeVar("Delivered", bound=Bar | Gap | Price | Depths)


class BarSequencer:
    """Orders the events around bars: settlements, newest quote and mark, then the bar.

    ``fill`` requests all bars up to a time from REST. ``bar`` takes in a bar of a stream, ``page``
    an answer of REST to a background request. A bar ahead of the sequence waits until the bars
    before it have arrived, or are certain never to arrive; other instruments continue meanwhile.
    """

    def __init__(
        self,
        *,
        client: MarketDataClient,
        clock: Clock,
        states: Mapping[str, FeedState],
        maintenance: FeedMaintenance,
        is_up: Callable[[FeedState], bool],
    ) -> None:
        self._client = client
        self._clock = clock
        self._states = states
        self._maintenance = maintenance
        self._counters = client.counters
        self._is_up = is_up
        self._interval_ms = next(iter(states.values())).sequence.interval_ms
        self.left = 0  # bars and gaps that follow the event just yielded at once
        # Causes of missing bars that closed before the stream; None for a new instrument.
        self._causes = {key: state.cause for key, state in states.items()}
        self._held: dict[str, list[Bar]] = {}  # the stream's bars while past bars are requested
        self._waited = -1, 0.0  # the newest close that waited for settlements, and until when

    async def bar(self, bar: Bar) -> AsyncIterator[Event]:
        """Take in a bar of the stream; deliver it exactly once, in its place."""
        if (held := self._held.get(bar.instrument)) is not None:
            if len(held) < PENDING_MAX:
                held.append(bar)
            else:  # REST will bring it
                self._counters["overflow_bars"] += 1
            return
        state = self._states[bar.instrument]
        match place := state.sequence.place(bar):
            case Place.REPEATED | Place.OLD | Place.REVISED:
                for revision in self._revision(state, bar, place):
                    yield revision
                return
            case Place.NEXT | Place.AHEAD:
                if not state.pending.add(bar):
                    self._counters["overflow_bars"] += 1
            case _:
                assert_never(place)
        async for event in self._drain(state):
            yield event
        if len(state.pending):
            self._maintenance.request_bars(state)

    async def page(self, page: BackfillPage) -> AsyncIterator[Event]:
        """Take in an answer of REST: bars that fill a hole, or evidence that there are none."""
        state = self._states[page.instrument]
        state.end_request()
        self._take(state, page.bars, page.answered_s)
        async for event in self._drain(state):
            yield event
        state.pending.trim()
        if (due_s := state.evidence_due_s()) > page.answered_s:
            state.request_by(due_s)

    def _take(self, state: FeedState, bars: Sequence[Bar], answered_s: float) -> None:
        """Take in *bars*, an answer of REST to a request that began at the next bar."""
        sequence = state.sequence
        state.pending.add_missing(filter(sequence.is_new, bars))
        if self._is_new(state) and not self._begins(state, bars, answered_s):
            return
        if bars:
            state.missing.update(
                missing_bars(bars, sequence.next_open_ms, sequence.interval_ms),
                from_ms=sequence.next_open_ms,
                until_ms=bars[-1].close_time_ms,
                now_s=answered_s,
            )

    def hold(self, instrument: str) -> None:
        """Hold the stream's bars of *instrument* until ``release``; its warm-up asks REST."""
        self._held[instrument] = []
        self._maintenance.waiting.add(instrument)
        self._states[instrument].claim_request()

    @property
    def held(self) -> Collection[str]:
        """The instruments whose stream is held."""
        return self._held.keys()

    async def release(self, instrument: str) -> AsyncIterator[Event]:
        """Deliver the held bars of *instrument*."""
        self._states[instrument].end_request()
        self._maintenance.waiting.discard(instrument)
        for bar in self._held.pop(instrument):
            async for event in self.bar(bar):
                yield event

    async def answers(self, state: FeedState, until_ms: int) -> AsyncIterator[list[Event]]:
        """Fill *state* until *until_ms* in the background; yield the events of each answer."""
        events: list[Event] = []
        async for left, event in self._filled([state], until_ms, None, set()):
            events.append(event)
            if not left and isinstance(event, Bar | Gap):
                yield events
                events = []

    async def fill(
        self,
        states: Sequence[FeedState],
        until_ms: int | None,
        *,
        patience_s: float | None,
        unanswered: set[str],
    ) -> AsyncIterator[Event]:
        """Request the bars of *states* that open before *until_ms*; yield them in time order.

        None stands for each state's first bar, before which bars warm up.

        Each bar follows the settlements due before it. The bars of a hole follow a ``Gap`` repaired
        by ``rest``; an unrepaired ``Gap`` covers lost bars. Bars that REST lacks at the end may
        still arrive. A late instrument is added to *unanswered* and delays no other
        (``finish_requests``).
        """
        async for left, event in self._filled(states, until_ms, patience_s, unanswered):
            self.left = left
            yield event

    async def _filled(
        self,
        states: Sequence[FeedState],
        until_ms: int | None,
        patience_s: float | None,
        unanswered: set[str],
        *,
        is_again: bool = False,
    ) -> AsyncIterator[tuple[int, Event]]:
        """Yield each event with the number of events of the same answer that follow it.

        Requests are made window by window, and the instruments are merged by time.
        """
        ends = {
            state.instrument.id: state.first_ms if until_ms is None else until_ms
            for state in states
        }
        lacking = [state for state in states if state.sequence.lacks(ends[state.instrument.id])]
        window_ms = self._client.candles_max * self._interval_ms
        last_ms = max(ends.values(), default=0)
        first_ms = min((state.sequence.next_open_ms for state in lacking), default=last_ms)
        for start_ms in range(first_ms, last_ms, window_ms):
            answers, windows = list[list[Gap | Bar]](), {}
            for state in lacking:
                if (key := state.instrument.id) not in unanswered:
                    answers.append([])
                    end_ms = min(start_ms + window_ms, ends[key])
                    windows[key] = self._window(state, start_ms, end_ms, answers[-1])
            await finish_requests(windows, patience_s, unanswered)
            # The sort is stable: a gap stays before its bars, and symbols keep their order.
            events = sorted(
                chain.from_iterable(answers),
                key=lambda event: (
                    event.close_time_ms
                    if isinstance(event, Bar)
                    else event.from_ms + self._interval_ms
                ),
            )
            for left, event in zip(reversed(range(len(events))), events, strict=True):
                if isinstance(event, Bar):
                    state = self._states[event.instrument]
                    async for before in self._settlements_before(state, event.close_time_ms):
                        yield left, before
                yield left, self._seen_now(event)
        # An instrument without any candle is as rare as a wrong empty answer: ask twice.
        empty = [state for state in lacking if self._is_new(state)]
        if empty and not is_again:
            await self._wait(empty[0].listing.wait_s)
            again = self._filled(empty, until_ms, patience_s, unanswered, is_again=True)
            async for numbered in again:
                yield numbered

    async def _window(
        self, state: FeedState, start_ms: int, end_ms: int, events: list[Gap | Bar]
    ) -> None:
        """Request the bars of [*start_ms*, *end_ms*) until no hole before the last one is open.

        Appends the bars and gaps of each answer to *events*.
        """
        sequence, key = state.sequence, state.instrument.id
        request_ms = max(sequence.next_open_ms, start_ms)
        if request_ms >= end_ms or not (bars := await self._request(state, request_ms, end_ms)):
            return
        wait_s = FIRST_WAIT_S
        while True:
            now_s = self._clock.network_s()
            self._take(state, bars, now_s)
            ready, is_held = self._drained(state, lambda: self._causes[key])
            events += ready
            if not is_held and not len(state.pending):
                return
            due_s = state.evidence_due_s() - now_s  # negative if answers do not cover the hole
            await self._wait(min(wait_s, due_s) if due_s > 0 else wait_s)
            wait_s = min(2 * wait_s, REQUEST_WAIT_MAX_S)
            bars = await self._request(state, sequence.next_open_ms, end_ms)

    async def _request(self, state: FeedState, from_ms: int, until_ms: int) -> list[Bar]:
        return await self._client.candles(
            state.instrument, state.sequence.interval_ms, from_ms, until_ms - 1
        )

    async def _wait(self, seconds: float) -> None:
        await self._client.cooldown.pause("a hole in the candles", seconds)

    def _is_new(self, state: FeedState) -> bool:
        """Return whether no candle of *state* is known, so that its listing date is unknown."""
        is_known = self._causes[state.instrument.id] is not None
        warms_up = state.sequence.lacks(state.first_ms)
        return not state.sequence.is_begun and (warms_up or not is_known)

    def _begins(self, state: FeedState, bars: Sequence[Bar], answered_s: float) -> bool:
        """Let a new instrument begin at its first bar; return False if that is not certain yet.

        The stream's first bar is no evidence: bars before it may be in the next answer of REST.
        """
        first_ms = state.pending.first_open_ms()
        if first_ms is None or not state.sequence.lacks(first_ms):
            return True
        is_held = bool(bars) and bars[0].open_time_ms == first_ms
        if not state.listing.is_certain(first_ms, is_held=is_held, answered_s=answered_s):
            return False
        state.sequence.skip(first_ms)
        if not is_held:
            log.warning(
                "unknown to REST",
                instrument=state.instrument.id,
                advice="it begins with the stream's first bar, and no lost bar can be repaired",
            )
        return True

    def _revision(self, state: FeedState, bar: Bar, place: Place) -> list[Bar]:
        """Return *bar* if it revises a delivered one; nothing if it repeats one or is too old."""
        if place is not Place.REVISED:
            self._counters[f"{place.value}_bars"] += 1
            return []
        self._counters["revised_bars"] += 1
        state.sequence.accept(bar)
        return [structs.replace(bar, seen_ms=self._clock.market_ms())]

    async def _drain(self, state: FeedState) -> AsyncIterator[Event]:
        """Deliver the pending bars up to the first hole that may still be filled.

        The newest quote and mark precede only the last of them.
        """
        ready, _ = self._drained(state, lambda: self._cause(state))
        bars_left = sum(not isinstance(event, Gap) for event in ready)
        for left, event in zip(reversed(range(len(ready))), ready, strict=True):
            self.left = left
            if isinstance(event, Gap):
                yield self._seen_now(event)
                continue
            bars_left -= 1
            wait_s = self._remaining_wait_s(event)
            async for before in self._settlements_before(state, event.close_time_ms, wait_s):
                yield before
            for newest in () if bars_left else state.undelivered():
                yield self._seen_now(newest)
            yield self._seen_now(event)

    def _drained(
        self, state: FeedState, cause: Callable[[], GapCause | None]
    ) -> tuple[list[Gap | Bar], bool]:
        """Remove the deliverable bars, count them as delivered, and return them with their gaps.

        *cause* returns why bars are missing. The second value tells whether an implausible close
        waits for another answer.
        """
        sequence, events = state.sequence, list[Gap | Bar]()
        while True:
            ready, is_held = self._take_plausible(state)
            for (source, warms_up), group in groupby(ready, key=partial(_part, state)):
                stretch = list(group)
                for bar in stretch:
                    state.accept(bar)
                if source is not Source.REST:
                    self._counters["bars"] += len(stretch)
                    events += stretch
                    state.clear_gap_cause()
                    continue
                self._counters["rest_bars"] += len(stretch)
                reason = None if warms_up else cause()  # None: nothing failed
                if reason is not None:
                    self._counters["repairs"] += 1
                    from_ms, until_ms = stretch[0].open_time_ms, stretch[-1].close_time_ms
                    events.append(gap(state, from_ms, until_ms, reason, by=BY_REST))
                events += stretch
            first_ms = state.pending.first_open_ms()
            certain_ms = state.missing.certain_until(sequence.next_open_ms)
            if is_held or first_ms is None or not sequence.lacks(certain_ms):
                break
            from_ms, until_ms = sequence.next_open_ms, min(certain_ms, first_ms)
            sequence.skip(until_ms)
            self._counters["holes"] += 1
            reason = None if until_ms <= state.first_ms else cause()
            events.append(gap(state, from_ms, until_ms, reason or GapCause.ARCHIVE))
        state.missing.forget(sequence.next_open_ms)
        return events, is_held

    def _take_plausible(self, state: FeedState) -> tuple[list[Bar], bool]:
        """Remove and return the next bars up to an implausible close, and whether there was one.

        An implausible bar is dropped and leaves a hole: REST is asked for it, and it is accepted if
        REST repeats it. The bars after it wait.
        """
        ready = state.pending.pop_from(state.sequence.next_open_ms)
        unverified = state.unverified(ready)
        if not unverified:
            return ready, False
        first = ready.index(unverified[0])
        state.pending.put_back(bar for bar in ready[first:] if bar not in unverified)
        self._counters["implausible_bars"] += len(unverified)
        earliest = unverified[0]
        log.warning(
            "implausible",
            instrument=earliest.instrument,
            open_time_ms=earliest.open_time_ms,
            source=earliest.source.value,
            advice="REST is asked again; the gate plausible holds what it repeats",
        )
        if earliest.source is not Source.REST:  # an overdue bar is requested again anyway
            state.cause = GapCause.IMPLAUSIBLE
            self._maintenance.request_bars(state)
        return ready[:first], True

    def _seen_now(self, event: Delivered) -> Delivered:
        """Return *event* with the present as ``seen_ms``, and a gap also as ``market_ms``."""
        now_ms = self._clock.market_ms()
        if not isinstance(event, Gap):
            return structs.replace(event, seen_ms=now_ms)
        event = structs.replace(event, market_ms=now_ms, seen_ms=now_ms)
        if (word := event.word(self._interval_ms)) is not None:
            tell = log.warning if word == "absent" else log.info
            tell(
                f"bars {word}",
                instrument=event.instrument,
                from_ms=event.from_ms,
                until_ms=event.until_ms,
                cause=event.cause.value,
            )
        return event

    def _cause(self, state: FeedState) -> GapCause:
        """Return why bars are missing; a new run's stream may have brought none yet."""
        if state.cause is not None:
            return state.cause
        return GapCause.MISSED if self._is_up(state) else GapCause.DISCONNECTED

    def _remaining_wait_s(self, bar: Bar) -> float:
        """Return how long the stream's *bar* may wait for settlements.

        All bars of one close share one wait: two hundred symbols that settle at the same time must
        not wait one after the other.
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
        """Yield the settlements due before a bar that closed at *close_ms*.

        If they take longer than *wait_s*, the bar is delivered without them, and the background
        tasks request them. If older ones still wait in the queue, they follow those.
        """
        if close_ms <= state.first_ms or not state.funding.is_due_by(close_ms):
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
            due_ms = funding.from_ms if isinstance(funding, Gap) else funding.market_ms
            # The engine ignores one that is older than the last; a newer one may be queued while
            # these are taken.
            if any(queued_ms < due_ms for queued_ms in state.funding.queued_ms):
                self._maintenance.queue_settlement(state, funding)
            else:
                yield funding
