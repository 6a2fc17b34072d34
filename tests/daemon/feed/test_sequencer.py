"""Late answers of REST are merged in order with the bars of the stream."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from builders import MINUTE, START_MS, bar, bars, instrument, quote
from bybit_feed import sequencer_of
from bybit_server import SteppedClock, exchange_section

from tracepaper.daemon.bybit.client import BybitClient
from tracepaper.daemon.feed.client import BackfillPage, EventQueue
from tracepaper.daemon.feed.funding import FundingSchedule
from tracepaper.daemon.feed.sequencer import BarSequencer
from tracepaper.daemon.feed.state import PENDING_MAX, BarSequence, CloseFilter, FeedState
from tracepaper.strategies.types.market import (
    Bar,
    Event,
    Funding,
    Gap,
    GapCause,
    Instrument,
    Quote,
    Source,
)


class SilentClient(BybitClient):
    """A client that counts requests for settlements and never answers them."""

    def __init__(self, clock: SteppedClock) -> None:
        super().__init__(exchange_section(), clock=clock, rng=random.Random(1))
        self.asked_until: list[int] = []

    async def funding(self, instrument: Instrument, start_ms: int, end_ms: int) -> list[Funding]:
        self.asked_until.append(end_ms)
        raise TimeoutError


def without_rest(state: FeedState, clock: SteppedClock) -> BarSequencer:
    """Return a sequencer of *state* whose REST never answers."""
    return sequencer_of(
        clock, BybitClient(exchange_section(), clock=clock, rng=random.Random(1)), state
    )


def state_of(cause: GapCause | None = GapCause.MISSED) -> FeedState:
    """Return an instrument without funding whose next bar opens at the start."""
    return FeedState(
        instrument(),
        sequence=BarSequence(interval_ms=MINUTE, next_open_ms=START_MS),
        funding=FundingSchedule(interval_minutes=0, settled_ms=0),
        cause=cause,
    )


def bars_from(first: int, count: int, source: Source = Source.STREAM) -> list[Bar]:
    return [bar(index=first + index, source=source) for index in range(count)]


async def opens(events: AsyncIterator[Event]) -> list[int]:
    """Return the open times of the delivered bars, in minutes from the start."""
    stream = [event async for event in events]
    return [(event.open_time_ms - START_MS) // MINUTE for event in stream if isinstance(event, Bar)]


async def test_an_answer_behind_a_hole_keeps_no_more_bars_waiting_than_the_bound() -> None:
    clock = SteppedClock(START_MS)
    state = state_of()
    sequencer = without_rest(state, clock)
    assert await opens(sequencer.bar(bar(index=0))) == [0]
    for first in (2, 2 + PENDING_MAX // 2):
        answered = tuple(bars_from(first, PENDING_MAX // 2 + 3, Source.REST))
        page = BackfillPage(state.instrument.id, answered, clock.network_s())
        assert await opens(sequencer.page(page)) == []
    assert len(state.pending) == PENDING_MAX
    assert await opens(sequencer.bar(bar(index=1))) == list(range(1, PENDING_MAX + 1))


async def test_the_newest_quote_comes_before_the_last_bar_also_where_a_hole_follows_it() -> None:
    clock, state = SteppedClock(START_MS), state_of()
    usual = CloseFilter(20.0, bars(50))
    state._close_filter = usual  # noqa: SLF001 - as a run's settings make it
    sequencer, close = without_rest(state, clock), bars(50)[-1].close
    candles = [bar(close, index=index, source=Source.REST) for index in range(3)]
    far = bar(2 * close, index=3, source=Source.REST)
    delivered: list[Event] = []
    for wait_s, answer in ((0, candles[:1]), (0, [far]), (31, [candles[1], far])):
        clock.advance(network_s=wait_s)
        if wait_s:
            state.keep(quote(at_ms=START_MS), matters=False)
        page = BackfillPage(state.instrument.id, tuple(answer), clock.network_s())
        delivered += [event async for event in sequencer.page(page)]
    kinds = [type(event) for event in delivered]
    assert kinds == [Gap, Bar, Gap, Quote, Bar, Gap]


@pytest.mark.parametrize(
    ("answers", "first", "wait_s"),
    [
        ([[], []], 5, 30.0),  # REST does not know the stream's first bar
        ([[5], [5]], 5, 1.0),
        ([[], [5], [5]], 5, 1.0),  # nor did it at first
        ([[3, 4], [3, 4]], 3, 1.0),
        ([[4], [3, 4], [3, 4]], 3, 1.0),  # an answer that lacks bars of a later one
        ([[3, 4], [4], [3, 4]], 3, 1.0),  # or of an earlier one
    ],
)
async def test_a_new_instrument_begins_once_two_answers_agree(
    answers: list[list[int]], first: int, wait_s: float
) -> None:
    clock, state = SteppedClock(START_MS), state_of(cause=None)
    sequencer = without_rest(state, clock)
    delivered = await opens(sequencer.bar(bar(index=5)))
    for answer in answers:
        assert delivered == []
        candles = tuple(bar(index=index, source=Source.REST) for index in answer)
        page = BackfillPage(state.instrument.id, candles, clock.network_s())
        delivered = await opens(sequencer.page(page))
        clock.advance(network_s=wait_s if answer == answers[-1] else 0.0)
    assert delivered[0] == first


async def test_the_bars_of_one_close_share_one_wait_for_settlements() -> None:
    """Two hundred symbols that settle at the same time do not wait one after the other."""
    clock = SteppedClock(START_MS)

    class Slow(SilentClient):
        async def funding(
            self, instrument: Instrument, start_ms: int, end_ms: int
        ) -> list[Funding]:
            clock.advance(network_s=0.3)
            return await super().funding(instrument, start_ms, end_ms)

    client = Slow(clock)
    states = {}
    for number in range(5):
        item = instrument(f"M{number}USDT")
        funding = FundingSchedule(interval_minutes=1, settled_ms=START_MS)
        sequence = BarSequence(interval_ms=MINUTE, next_open_ms=START_MS)
        states[item.id] = FeedState(item, sequence=sequence, funding=funding)
    sequencer = sequencer_of(clock, client, *states.values())
    for minute in range(2):
        for key in states:
            delivered = await opens(sequencer.bar(bar(index=minute, instrument_id=key)))
            assert delivered == [minute]
    assert len(client.asked_until) == 4  # two of each close; background tasks request the others
    assert sorted(set(client.asked_until)) == [START_MS + MINUTE, START_MS + 2 * MINUTE]


@pytest.mark.parametrize("queued_ms", [START_MS, START_MS + 2 * MINUTE])
async def test_a_settlement_follows_those_in_the_queue_that_are_older(queued_ms: int) -> None:
    """The engine ignores a settlement that is older than the last: it would never be paid."""
    clock = SteppedClock(START_MS)
    older, newer = (Funding("linear:BTCUSDT", 100, at, at) for at in (START_MS, START_MS + MINUTE))

    class Answering(SilentClient):
        async def funding(
            self, instrument: Instrument, start_ms: int, end_ms: int
        ) -> list[Funding]:
            return [each for each in (older, newer) if start_ms <= each.market_ms <= end_ms]

    state, queue = state_of(), EventQueue[Any](10)
    state.funding = FundingSchedule(interval_minutes=1, settled_ms=START_MS - MINUTE)
    state.funding.settle([older])
    state.funding.queued_ms.add(queued_ms)
    sequencer = sequencer_of(clock, Answering(clock), state, queue=queue)
    *delivered, last = [event async for event in sequencer.bar(bar(index=0))]
    assert isinstance(last, Bar)
    if queued_ms < newer.market_ms:
        delivered = [await queue.get()]
    assert [each.market_ms for each in delivered] == [newer.market_ms]
