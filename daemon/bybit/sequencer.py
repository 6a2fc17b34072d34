"""Deliver bars exactly once and in order, each after what belongs before it.

The rules are docs/time.md, T3 and T16 to T18.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from itertools import groupby
from typing import Final, TypeVar, assert_never

import structlog
from msgspec import structs

from tracepaper.daemon.bybit.backfill import Hole, fill, gap, missing_ranges
from tracepaper.daemon.bybit.feed_state import BarRange, FeedState, Place
from tracepaper.daemon.bybit.maintenance import FeedMaintenance
from tracepaper.daemon.bybit.queue import BackfillPage
from tracepaper.daemon.bybit.rest import RestClient
from tracepaper.daemon.engine.ports import Clock
from tracepaper.strategies.types import (
    Bar,
    Depths,
    Event,
    Funding,
    Gap,
    GapCause,
    Mark,
    Quote,
    Source,
)

FUNDING_WAIT_S: Final = 0.5
"""How long, network time, a bar waits for a settlement that belongs before it."""

log = structlog.get_logger("bybit.feed")

T = TypeVar("T", Bar, Gap, Quote | Mark | Depths)


class BarSequencer:
    """The order of events around bars: settlements, newest quote and mark, then the bar.

    ``bar`` takes what a stream brought, ``page`` what REST answered in the background, ``fill``
    what REST has of given holes. A bar ahead of the sequence waits until what is missing before
    it came, or is certain never to come; other instruments go on meanwhile.
    """

    def __init__(
        self,
        *,
        rest: RestClient,
        clock: Clock,
        states: Mapping[str, FeedState],
        maintenance: FeedMaintenance,
        counters: Counter[str],
        is_up: Callable[[FeedState], bool],
        certain_s: float,
    ) -> None:
        self._rest = rest
        self._clock = clock
        self._states = states
        self._maintenance = maintenance
        self._counters = counters
        self._is_up = is_up
        self._certain_s = certain_s
        self.left = 0  # bars of an answer, or of what waited for it, that follow the one in hand

    async def bar(self, bar: Bar) -> AsyncIterator[Event]:
        """Take a bar of the stream: deliver it exactly once, in its place."""
        state = self._states[bar.instrument]
        match place := state.sequence.place(bar):
            case Place.REPEATED | Place.OLD | Place.REVISED:
                for revision in self._revision(state, bar, place):
                    yield revision
                return
            case Place.NEXT | Place.AHEAD:
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
        """Take what REST answered: what closes a hole, or lacks it for certain."""
        state = self._states[page.instrument]
        state.end_request()
        sequence = state.sequence
        if page.bars:
            self._begin_at(state, page.bars[0])
            state.missing.update(
                missing_ranges(page.bars, page.from_ms, sequence.interval_ms),
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

    async def fill(
        self, holes: Sequence[Hole], *, patience_s: float | None, unanswered: set[str]
    ) -> AsyncIterator[Event]:
        """Fill *holes* from REST, each bar preceded by the settlements that belong before it.

        An instrument that is not answered in time is added to *unanswered*.
        """
        events = fill(
            holes,
            rest=self._rest,
            clock=self._clock,
            certain_s=self._certain_s,
            patience_s=patience_s,
            unanswered=unanswered,
            count_left=self._count_left,
        )
        async for event in events:
            if isinstance(event, Bar):
                state = self._states[event.instrument]
                async for before in self._settlements_before(state, event.close_time_ms):
                    yield before
                self._counters["rest_bars"] += 1
            else:
                self._counters["repairs" if event.repaired_by else "holes"] += 1
            yield event

    def _count_left(self, left: int) -> None:
        self.left = left

    def _begin_at(self, state: FeedState, bar: Bar) -> None:
        """Let a new run begin with *bar* where REST had nothing: before a listing nothing is."""
        if not state.sequence.is_begun and state.cause is None:
            first_ms = state.pending.first_open_ms()
            state.sequence.skip(min(bar.open_time_ms, first_ms or bar.open_time_ms))

    def _revision(self, state: FeedState, bar: Bar, place: Place) -> list[Bar]:
        """Return *bar* where it revises one that was delivered; nothing where it repeats it."""
        if place is not Place.REVISED:
            self._counters[f"{place.value}_bars"] += 1
            return []
        self._counters["revised_bars"] += 1
        state.sequence.accept(bar)
        return [structs.replace(bar, seen_ms=self._clock.market_ms())]

    async def _drain(self, state: FeedState) -> AsyncIterator[Event]:
        """Deliver what waits, as far as nothing is missing before it or ever will come."""
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
            run = BarRange(sequence.next_open_ms, min(certain_ms, first_ms), ())
            sequence.skip(run.until_ms)
            self._counters["holes"] += 1
            yield self._seen_now(gap(state, run, self._cause(state)))
        state.missing.forget(sequence.next_open_ms)

    def _take_plausible(self, state: FeedState) -> tuple[list[list[Bar]], bool]:
        """Take out what comes next as far as it is plausible; say whether a close was not.

        A close too far from the last one leaves a hole that REST is asked about; what REST repeats
        is accepted, and what comes after it waits.
        """
        ready = state.pending.pop_from(state.sequence.next_open_ms)
        unverified = state.unverified(versions[0] for versions in ready)
        if not unverified:
            return ready, False
        opens = {bar.open_time_ms for bar in unverified}
        first = next(place for place, one in enumerate(ready) if one[0].open_time_ms in opens)
        state.pending.put_back(one for one in ready[first:] if one[0].open_time_ms not in opens)
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
            state.reject_close()
            self._maintenance.request_bars(state)
        return ready[:first], True

    def _repair_gap(self, state: FeedState, stretch: list[list[Bar]]) -> Gap:
        """Return the gap that the bars of REST close which follow."""
        bars = tuple(versions[0] for versions in stretch)
        run = BarRange(bars[0].open_time_ms, bars[-1].close_time_ms, bars)
        self._counters["repairs"] += 1
        self._counters["rest_bars"] += len(bars)
        return self._seen_now(gap(state, run, self._cause(state)))

    async def _bars(
        self, state: FeedState, stretch: list[list[Bar]], *, is_last: bool
    ) -> AsyncIterator[Event]:
        """Deliver bars that follow one another; the newest quote belongs before the last alone."""
        for place, versions in enumerate(stretch):
            bar, *revisions = versions
            async for before in self._settlements_before(state, bar.close_time_ms):
                yield before
            if is_last and versions is stretch[-1]:
                for newest in state.undelivered():
                    yield self._seen_now(newest)
            state.accept(bar)
            if bar.source is not Source.REST:
                self._counters["bars"] += 1
            self.left = len(stretch) - place - 1
            yield self._seen_now(bar)
            for other in revisions:
                for revision in self._revision(state, other, state.sequence.place(other)):
                    yield revision

    def _seen_now(self, event: T) -> T:
        """Return *event* as seen now; a gap is also dated now."""
        now_ms = self._clock.market_ms()
        if isinstance(event, Gap):
            return structs.replace(event, market_ms=now_ms, seen_ms=now_ms)
        return structs.replace(event, seen_ms=now_ms)

    def _cause(self, state: FeedState) -> GapCause:
        """Return why bars are missing; of a new run nothing came from its stream yet."""
        if state.cause is not None:
            return state.cause
        return GapCause.MISSED if self._is_up(state) else GapCause.DISCONNECTED

    async def _settlements_before(
        self, state: FeedState, close_ms: int
    ) -> AsyncIterator[Funding | Gap]:
        """Yield the settlements that belong before a bar that closed at *close_ms*.

        One that does not come soon is asked for in the background: no bar waits for it longer.
        """
        if not state.funding.is_due_by(close_ms):
            return
        state.funding.asked(close_ms)
        try:
            async with asyncio.timeout(FUNDING_WAIT_S):
                settled = await self._maintenance.settlements(state, close_ms)
        except TimeoutError:
            return
        for funding in settled:
            yield funding
