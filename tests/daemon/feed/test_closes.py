"""The bars of one close form one group in the run's order, and are never held for ever."""

from __future__ import annotations

import pytest
from builders import bar, instrument
from bybit_feed import BITCOIN, Live, live
from bybit_server import MINUTE, START_MS, ScriptedServer, kline
from fakes import ManualClock
from waiting import until

from tracepaper.daemon.feed.client import FeedStart
from tracepaper.daemon.feed.closes import CloseGatherer
from tracepaper.daemon.feed.funding import FundingSchedule
from tracepaper.daemon.feed.state import BarSequence, FeedState
from tracepaper.strategies.types.market import Bar, CloseStart, Event, Gap, Instrument

ETHER = instrument("ETHUSDT", price_decimals=1, tick_size=1)
SOLANA = instrument("SOLUSDT", price_decimals=1, tick_size=1)
ALL = (BITCOIN, ETHER, SOLANA)
START = FeedStart(interval_ms=MINUTE, period_start_ms=START_MS, warmup_bars=0, gather_ms=250)


async def close(run: Live, minute: int, *symbols: str) -> None:
    """Let *minute* close for *symbols* by the stream, and for all by REST."""
    open_ms = START_MS + minute * MINUTE
    run.move_to(open_ms + MINUTE + 300)
    for item in ALL:
        run.server.add_candle(open_ms, symbol=item.symbol)
    await run.server.send(*(kline(open_ms, symbol=symbol) for symbol in symbols))


def texts(events: list[Event]) -> list[object]:
    """Return the closes and bars of *events*: a close's size and its absent, a bar's symbol."""
    return [
        (event.bars, [name[7:10] for name in event.absent])
        if isinstance(event, CloseStart)
        else event.instrument[7:10]
        for event in events
        if isinstance(event, CloseStart | Bar)
    ]


async def test_bars_of_one_close_go_on_together_in_the_order_of_the_run() -> None:
    async with ScriptedServer() as server, live(server, start=START, instruments=ALL) as run:
        await close(run, 0, "SOLUSDT", "BTCUSDT")
        await until(lambda: run.feed.counters["bars"] == 2)
        assert not run.bars()  # one bar is still expected
        await close(run, 0, "ETHUSDT")
        await until(lambda: len(run.bars()) == 3)
        assert texts(run.events) == [(3, []), "BTC", "ETH", "SOL"]
        [closed] = [event for event in run.events if isinstance(event, CloseStart)]
        assert closed.open_time_ms == START_MS
        assert {bar.seen_ms for bar in run.bars()} == {closed.seen_ms}


@pytest.mark.parametrize(
    ("time_scale", "least_s", "most_s"),
    [(1, 0.25, 1), (1_200, 0.025, 0.2)],  # an interval takes 0.05 s at the fast time
)
async def test_who_does_not_come_in_half_an_interval_is_absent_and_goes_on_alone_later(
    time_scale: float, least_s: float, most_s: float
) -> None:
    async with (
        ScriptedServer() as server,
        live(server, start=START, instruments=ALL, time_scale=time_scale) as run,
    ):
        await close(run, 0, "ETHUSDT", "BTCUSDT")
        begun_s = run.clock.network_s()
        await run.expect(lambda: len(run.bars()) == 2)
        assert least_s <= run.clock.network_s() - begun_s < most_s
        await server.send(kline(START_MS, symbol="SOLUSDT"))
        await until(lambda: len(run.bars()) == 3)
        assert texts(run.events) == [(2, ["SOL"]), "BTC", "ETH", "SOL"]


async def test_an_instrument_with_a_hole_is_not_waited_for() -> None:
    async with ScriptedServer() as server, live(server, start=START, instruments=ALL) as run:
        await close(run, 0, "BTCUSDT", "ETHUSDT", "SOLUSDT")
        await until(lambda: len(run.bars()) == 3)
        await close(run, 1)
        await close(run, 2, "SOLUSDT")  # no stream brought minute 1
        await close(run, 2, "BTCUSDT", "ETHUSDT")
        await run.expect(lambda: len(run.bars()) == 9)
        assert sorted(bar.open_time_ms for bar in run.bars()) == [
            START_MS + minute * MINUTE for minute in (0, 0, 0, 1, 1, 1, 2, 2, 2)
        ]
        for item in ALL:  # each instrument's bars stay in order, its gap before them
            events = [
                event
                for event in run.events
                if isinstance(event, Bar | Gap) and event.instrument == item.id
            ]
            assert [type(event).__name__ for event in events] == ["Bar", "Gap", "Bar", "Bar"]


def gatherer(*states: FeedState) -> CloseGatherer:
    return CloseGatherer(
        {state.instrument.id: state for state in states},
        clock=ManualClock(),
        is_up=lambda _: True,
        remind=lambda _: None,
    )


def waiting(item: Instrument, next_ms: int = START_MS) -> FeedState:
    return FeedState(
        item,
        sequence=BarSequence(interval_ms=MINUTE, next_open_ms=next_ms),
        funding=FundingSchedule(interval_minutes=0, settled_ms=0),
    )


def test_the_end_of_an_earlier_wait_ends_no_later_one() -> None:
    states = waiting(BITCOIN), waiting(ETHER)
    gathered = gatherer(*states)
    for state in states:
        state.sequence.skip(START_MS + MINUTE)
    assert list(gathered.push(bar(index=1, instrument_id=BITCOIN.id))) == []
    assert list(gathered.expire(START_MS)) == []
    assert texts(list(gathered.expire(START_MS + MINUTE))) == [(1, ["ETH"]), "BTC"]


def test_an_instrument_whose_bars_wait_behind_a_hole_is_not_waited_for() -> None:
    states = waiting(BITCOIN), waiting(ETHER)
    states[1].pending.add(bar(index=1, instrument_id=ETHER.id))
    events = list(gatherer(*states).push(bar(index=0, instrument_id=BITCOIN.id)))
    assert texts(events) == [(1, ["ETH"]), "BTC"]


async def test_the_next_close_ends_the_wait_for_this_one() -> None:
    async with ScriptedServer() as server, live(server, start=START, instruments=ALL) as run:
        await close(run, 0, "BTCUSDT")
        await until(lambda: run.feed.counters["bars"] == 1)
        await close(run, 1, "BTCUSDT")
        await until(run.bars)
        assert texts(run.events)[:2] == [(1, ["ETH", "SOL"]), "BTC"]
