"""What REST answers late is put in order with what the stream brought meanwhile."""

from __future__ import annotations

import random
from collections import Counter

from builders import MINUTE, START_MS, bar, instrument
from bybit_server import SteppedClock, exchange_section
from msgspec import structs

from tracepaper.daemon.bybit.client import BybitClient
from tracepaper.daemon.feed.client import BackfillPage, EventQueue
from tracepaper.daemon.feed.funding import FundingSchedule
from tracepaper.daemon.feed.maintenance import FeedMaintenance
from tracepaper.daemon.feed.sequencer import BarSequencer
from tracepaper.daemon.feed.state import BarSequence, FeedState
from tracepaper.strategies.types.market import Bar, Source


async def test_an_answer_of_bars_that_came_meanwhile_leaves_nothing_behind() -> None:
    clock = SteppedClock(START_MS)
    client = BybitClient(exchange_section(), clock=clock, rng=random.Random(1))
    state = FeedState(
        instrument(),
        sequence=BarSequence(interval_ms=MINUTE, next_open_ms=START_MS),
        funding=FundingSchedule(interval_minutes=0, settled_ms=0),
    )
    states = {state.instrument.id: state}
    sequencer = BarSequencer(
        client=client,
        clock=clock,
        states=states,
        maintenance=FeedMaintenance(
            client=client,
            clock=clock,
            exchange=exchange_section(),
            states=states,
            queue=EventQueue(10),
            counters=Counter(),
            spawn=lambda work: work.close(),
        ),
        counters=Counter(),
        is_up=lambda _: True,
        certain_s=30.0,
    )
    bars = [structs.replace(bar(), open_time_ms=START_MS + index * MINUTE) for index in range(4)]
    delivered = []
    for one in bars[:2]:
        delivered += [event async for event in sequencer.bar(one)]
    answered = tuple(structs.replace(one, source=Source.REST) for one in bars[:3])
    page = BackfillPage(state.instrument.id, START_MS, answered, clock.network_s())
    delivered += [event async for event in sequencer.page(page)]
    opens = [event.open_time_ms for event in delivered if isinstance(event, Bar)]
    assert opens == [one.open_time_ms for one in bars[:3]]
    assert not len(state.pending)
