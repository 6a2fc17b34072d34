"""Fill holes from REST: warm a ring, catch up after downtime, repair a stream's hole."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from msgspec import Struct, structs

from tracepaper.daemon.bybit.market import Market
from tracepaper.daemon.bybit.rest import CANDLES_MAX, Rest
from tracepaper.daemon.bybit.sequence import Run, runs
from tracepaper.daemon.ports import Clock
from tracepaper.strategies.types import Bar, Gap, GapCause


class Hole(Struct, frozen=True):
    """What is missing of one instrument, from its sequence's next bar until ``until_ms``.

    ``is_certain`` says that a later bar was seen, so what REST does not have will never come.
    ``cause`` is None where nothing went wrong: the first warm-up of a run.
    """

    market: Market
    until_ms: int  # exclusive
    is_certain: bool
    cause: GapCause | None


async def fill(holes: Sequence[Hole], *, rest: Rest, clock: Clock) -> AsyncIterator[Gap | Bar]:
    """Yield the missing bars of all *holes*, merged in open-time order, each hole said as a gap.

    A ``Gap`` repaired by ``rest`` comes before its bars, a thousand at most at a time; one that
    is repaired by nothing says what REST does not have. Each bar is accepted by its sequence
    as it is yielded, so an uncertain hole at the end stays the sequence's next bar.
    """
    holes = [one for one in holes if one.market.sequence.next_open_ms < one.until_ms]
    if not holes:
        return
    window_ms = CANDLES_MAX * holes[0].market.sequence.interval_ms
    first_ms = min(one.market.sequence.next_open_ms for one in holes)
    last_ms = max(one.until_ms for one in holes)
    for start_ms in range(first_ms, last_ms, window_ms):
        found = [
            (when_ms, place, event)
            for place, one in enumerate(holes)
            for when_ms, event in await _window(one, start_ms, start_ms + window_ms, rest)
        ]
        # Sorting is stable: at one time a gap stays before its bars, and symbols in their order.
        for _, place, event in sorted(found, key=lambda entry: entry[:2]):
            sequence = holes[place].market.sequence
            now_ms = clock.market_ms()
            if isinstance(event, Bar):
                sequence.accept(event)
                yield structs.replace(event, seen_ms=now_ms)
            else:
                if not event.repaired_by:
                    sequence.skip(event.until_ms)
                yield structs.replace(event, market_ms=now_ms, seen_ms=now_ms)
    for hole in holes:
        sequence = hole.market.sequence
        if hole.is_certain and sequence.next_open_ms < hole.until_ms:
            run = Run(sequence.next_open_ms, hole.until_ms, ())
            sequence.skip(hole.until_ms)
            if hole.cause is None and not sequence.is_begun:
                continue  # before its listing nothing is missing
            now_ms = clock.market_ms()
            yield structs.replace(_gap(hole, run), market_ms=now_ms, seen_ms=now_ms)


async def _window(
    hole: Hole, start_ms: int, end_ms: int, rest: Rest
) -> list[tuple[int, Gap | Bar]]:
    """Return what [*start_ms*, *end_ms*) brings for one *hole*, with the times to sort by."""
    sequence = hole.market.sequence
    interval_ms = sequence.interval_ms
    from_ms = sequence.next_open_ms
    until_ms = min(end_ms, hole.until_ms)
    ask_ms = max(from_ms, start_ms)
    if ask_ms >= until_ms:
        return []
    bars = await rest.klines(hole.market.instrument, interval_ms, ask_ms, until_ms - 1)
    events: list[tuple[int, Gap | Bar]] = []
    if bars:
        if not sequence.is_begun and hole.cause is None:
            from_ms = bars[0].open_time_ms  # before its listing nothing is missing
        for run in runs(
            bars, from_ms=from_ms, until_ms=bars[-1].close_time_ms, interval_ms=interval_ms
        ):
            if hole.cause is not None or not run.bars:
                events.append((run.from_ms + interval_ms, _gap(hole, run)))
            events.extend((bar.close_time_ms, bar) for bar in run.bars)
    return events


def _gap(hole: Hole, run: Run) -> Gap:
    """Return the gap that *run* is; its times seen are set as it is handed on."""
    return Gap(
        instrument=hole.market.instrument.id,
        from_ms=run.from_ms,
        until_ms=run.until_ms,
        cause=GapCause.ARCHIVE if hole.cause is None else hole.cause,
        repaired_by="rest" if run.bars else "",
        market_ms=0,
        seen_ms=0,
    )
