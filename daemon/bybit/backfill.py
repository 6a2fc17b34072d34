"""Fill holes from REST at a start: warm a ring, catch up after downtime."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from typing import Final, NamedTuple, TypeVar

from msgspec import Struct, structs

from tracepaper.daemon.bybit.feed_state import (
    REQUEST_WAIT_MAX_S,
    BarRange,
    FeedState,
    MissingRanges,
    bar_ranges,
)
from tracepaper.daemon.bybit.rest import CANDLES_MAX, RestClient
from tracepaper.daemon.engine.ports import Clock
from tracepaper.strategies.types import BY_REST, Bar, Gap, GapCause

T = TypeVar("T")

FIRST_WAIT_S: Final = 0.5
LISTING_WAIT_S_MAX: Final = 1.0
"""Between two answers that agree on an instrument's first candle; before it nothing is missing."""


class Hole(Struct, frozen=True):
    """What is missing of one instrument, from its sequence's next bar until ``until_ms``.

    What REST lacks at the end may still come and stays the sequence's next bar. ``cause`` is None
    where nothing went wrong: the first warm-up of a run.
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


async def _wait(seconds: float, rest: RestClient) -> None:
    """Wait for another answer."""
    await rest.cooldown.pause("a hole in the candles", seconds)


async def fill(
    holes: Sequence[Hole],
    *,
    rest: RestClient,
    clock: Clock,
    certain_s: float,
    patience_s: float | None = None,
    unanswered: set[str] | None = None,
    count_left: Callable[[int], None] = lambda _left: None,
) -> AsyncIterator[Gap | Bar]:
    """Yield the missing bars of all *holes*, merged in open-time order, each hole as a gap.

    A ``Gap`` repaired by ``rest`` comes before its bars, a thousand at most at a time; one that
    is repaired by nothing is what REST lacked twice, *certain_s* apart. Each bar is accepted by
    its sequence as it is yielded. An instrument that is not answered within *patience_s* of network
    time after another one was stays open, and is added to *unanswered*: it holds up no other.
    *count_left* is told before each event how many of the same answer follow it.
    """
    holes = [one for one in holes if one.is_open]
    patience = Patience(patience_s, set() if unanswered is None else unanswered)
    async for left, event in _filled(holes, rest, clock, certain_s, patience):
        count_left(left)
        yield event
    holes = [one for one in holes if one.state.instrument.id not in patience.unanswered]
    # An instrument without any candle is as rare as an answer that wrongly says so.
    if unknown := [one for one in holes if one.is_new]:
        await _wait(min(LISTING_WAIT_S_MAX, certain_s), rest)
        async for left, event in _filled(unknown, rest, clock, certain_s, patience):
            count_left(left)
            yield event


class Patience(NamedTuple):
    """How long the last of several answers is waited for after the first; None: without end."""

    seconds: float | None
    unanswered: set[str]  # instruments that were given up

    async def answers(self, asked: Mapping[str, Coroutine[None, None, T]]) -> dict[str, T]:
        """Return what each of *asked* answers, by instrument; those given up are left out."""
        tasks = {key: asyncio.ensure_future(one) for key, one in asked.items()}
        try:
            if tasks and self.seconds is not None:
                await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_COMPLETED)
                await asyncio.wait(tasks.values(), timeout=self.seconds)
                late = {key for key, task in tasks.items() if not task.done()}
                self.unanswered.update(late)
                return {key: await task for key, task in tasks.items() if key not in late}
            return dict(zip(tasks, await asyncio.gather(*tasks.values()), strict=True))
        finally:
            for task in tasks.values():
                task.cancel()


async def _filled(
    holes: Sequence[Hole], rest: RestClient, clock: Clock, certain_s: float, patience: Patience
) -> AsyncIterator[tuple[int, Gap | Bar]]:
    """Yield each event with the number of those that follow it without another request."""
    if not holes:
        return
    window_ms = CANDLES_MAX * holes[0].state.sequence.interval_ms
    first_ms = min(one.state.sequence.next_open_ms for one in holes)
    last_ms = max(one.until_ms for one in holes)
    for start_ms in range(first_ms, last_ms, window_ms):
        windows = {
            one.state.instrument.id: _HoleReader(one, rest, clock, certain_s).window(
                start_ms, start_ms + window_ms
            )
            for one in holes
            if one.state.instrument.id not in patience.unanswered
        }
        answers = await patience.answers(windows)
        found = [
            (when_ms, place, event)
            for place, one in enumerate(holes)
            for when_ms, event in answers.get(one.state.instrument.id, ())
        ]
        # Sorting is stable: at one time a gap stays before its bars, and symbols in their order.
        ordered = sorted(found, key=lambda entry: entry[:2])
        for left, (_, place, event) in zip(reversed(range(len(ordered))), ordered, strict=True):
            sequence = holes[place].state.sequence
            now_ms = clock.market_ms()
            if isinstance(event, Bar):
                holes[place].state.accept(event)
                yield left, structs.replace(event, seen_ms=now_ms)
            else:
                if not event.repaired_by:
                    sequence.skip(event.until_ms)
                yield left, structs.replace(event, market_ms=now_ms, seen_ms=now_ms)


class _HoleReader:
    """Reads what REST has of one hole."""

    def __init__(self, hole: Hole, rest: RestClient, clock: Clock, certain_s: float) -> None:
        self._hole = hole
        self._rest = rest
        self._clock = clock
        self._certain_s = certain_s

    async def window(self, start_ms: int, end_ms: int) -> list[tuple[int, Gap | Bar]]:
        """Return what [*start_ms*, *end_ms*) brings, with the times to sort by."""
        hole = self._hole
        sequence = hole.state.sequence
        interval_ms = sequence.interval_ms
        from_ms = sequence.next_open_ms
        until_ms = min(end_ms, hole.until_ms)
        request_ms = max(from_ms, start_ms)
        if request_ms >= until_ms or not (bars := await self._request(request_ms, until_ms)):
            return []
        if hole.is_new:
            bars = await self._from_listing(bars, from_ms)
            from_ms = bars[0].open_time_ms
        bars = await self._verified(await self._close_inner_holes(bars, from_ms))
        events: list[tuple[int, Gap | Bar]] = []
        for run in bar_ranges(
            bars, from_ms=from_ms, until_ms=bars[-1].close_time_ms, interval_ms=interval_ms
        ):
            if hole.cause is not None or not run.bars:
                events.append((run.from_ms + interval_ms, gap(hole.state, run, hole.cause)))
            events.extend((bar.close_time_ms, bar) for bar in run.bars)
        return events

    async def _request(self, from_ms: int, until_ms: int) -> list[Bar]:
        state = self._hole.state
        return await self._rest.klines(
            state.instrument, state.sequence.interval_ms, from_ms, until_ms - 1
        )

    async def _wait(self, seconds: float) -> None:
        await _wait(seconds, self._rest)

    async def _from_listing(self, bars: list[Bar], from_ms: int) -> list[Bar]:
        """Return *bars* and those before them that a second answer has: from the listing on."""
        while (first_ms := bars[0].open_time_ms) > from_ms:
            await self._wait(min(LISTING_WAIT_S_MAX, self._certain_s))
            again = await self._request(from_ms, bars[0].close_time_ms)
            if not again or again[-1].open_time_ms < first_ms:
                continue  # it lacks the bar that we have: it says nothing of those before
            if again[0].open_time_ms == first_ms:
                break
            bars = again[:-1] + bars
        return bars

    async def _verified(self, bars: list[Bar]) -> list[Bar]:
        """Return *bars*, each implausible close as two answers in a row have it."""
        verified: dict[int, Bar] = {}
        wait_s = FIRST_WAIT_S
        while unverified := self._hole.state.implausible(
            bars, lambda bar: verified.get(bar.open_time_ms) == bar
        ):
            again = await self._request(unverified[0].open_time_ms, unverified[-1].close_time_ms)
            repeated = {bar.open_time_ms: bar for bar in again}
            latest = {bar.open_time_ms: repeated.get(bar.open_time_ms, bar) for bar in unverified}
            agreed = [bar for bar in unverified if repeated.get(bar.open_time_ms) == bar]
            verified.update((bar.open_time_ms, bar) for bar in agreed)
            bars = [latest.get(bar.open_time_ms, bar) for bar in bars]
            if len(agreed) < len(unverified):
                await self._wait(wait_s)
                wait_s = min(2 * wait_s, REQUEST_WAIT_MAX_S)
        return bars

    async def _close_inner_holes(self, bars: list[Bar], from_ms: int) -> list[Bar]:
        """Return *bars* with what later answers have of the holes between them."""
        interval_ms = self._hole.state.sequence.interval_ms
        missing = MissingRanges(self._certain_s)
        known = {bar.open_time_ms: bar for bar in bars}
        wait_s = FIRST_WAIT_S
        while True:
            bars = [known[open_ms] for open_ms in sorted(known)]
            ranges = missing_ranges(bars, from_ms, interval_ms)
            now_s = self._clock.network_s()
            missing.update(ranges, from_ms=from_ms, until_ms=bars[-1].close_time_ms, now_s=now_s)
            if missing.due_s() == float("inf"):
                return bars
            await self._wait(min(wait_s, max(0.0, missing.due_s() - now_s)))
            wait_s = min(2 * wait_s, REQUEST_WAIT_MAX_S)
            past_ms = ranges[-1][1]
            again: list[Bar] = []
            while not again or again[-1].open_time_ms < past_ms:
                again = await self._request(ranges[0][0], past_ms + interval_ms)
                if not again or again[-1].open_time_ms < past_ms:
                    await self._wait(wait_s)
                known = {**{bar.open_time_ms: bar for bar in again}, **known}


def missing_ranges(bars: Sequence[Bar], from_ms: int, interval_ms: int) -> list[tuple[int, int]]:
    """Return the stretches without a bar between *from_ms* and the last of the sorted *bars*."""
    if not bars:
        return []
    until_ms = bars[-1].close_time_ms
    found = bar_ranges(bars, from_ms=from_ms, until_ms=until_ms, interval_ms=interval_ms)
    return [(run.from_ms, run.until_ms) for run in found if not run.bars]


def gap(state: FeedState, run: BarRange, cause: GapCause | None) -> Gap:
    """Return the gap that *run* is; its times seen are set as it is delivered."""
    return Gap(
        instrument=state.instrument.id,
        from_ms=run.from_ms,
        until_ms=run.until_ms,
        cause=GapCause.ARCHIVE if cause is None else cause,
        repaired_by=BY_REST if run.bars else "",
        market_ms=0,
        seen_ms=0,
    )
