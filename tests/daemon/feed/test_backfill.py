"""Holes are filled window by window and merged over symbols; unfilled ones stay open."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from builders import instrument
from bybit_feed import sequencer_of
from bybit_server import MINUTE, START_MS, ScriptedServer, SteppedClock, exchange_section

from tracepaper.daemon.bybit.client import BybitClient
from tracepaper.daemon.feed.funding import FundingSchedule
from tracepaper.daemon.feed.state import BarSequence, CloseFilter, FeedState
from tracepaper.strategies.types.market import Bar, Event, Gap, GapCause


def at(index: int) -> int:
    return START_MS + index * MINUTE


def market(
    symbol: str = "BTCUSDT", *, first: int = 0, cause: GapCause | None = GapCause.DOWN
) -> FeedState:
    return FeedState(
        instrument(symbol, price_decimals=1, tick_size=1),
        cause=cause,
        sequence=BarSequence(interval_ms=MINUTE, next_open_ms=at(first)),
        funding=FundingSchedule(interval_minutes=0, settled_ms=0),
    )


@asynccontextmanager
async def asking(server: ScriptedServer) -> AsyncIterator[tuple[BybitClient, SteppedClock]]:
    clock = SteppedClock(server.server_ms)
    settings = exchange_section(rest_url=server.rest_url)
    async with BybitClient(settings, clock=clock, rng=random.Random(1)) as client:
        yield client, clock


async def filled(
    server: ScriptedServer, until: int, *states: FeedState, waits_s: list[float] | None = None
) -> list[Event]:
    """Fill *states* up to a minute, in stepped time; append the time that took to *waits_s*."""

    async def collect() -> list[Event]:
        sequencer = sequencer_of(clock, client, *states)
        events = sequencer.fill(states, at(until), patience_s=None, unanswered=set())
        return [event async for event in events]

    async with asking(server) as (client, clock):
        begun_s = clock.network_s()
        task = asyncio.ensure_future(collect())
        await clock.run(task.done, step_s=0.25)
        if waits_s is not None:
            waits_s.append(clock.network_s() - begun_s)
        return await task


def texts(events: list[Event]) -> list[str]:
    """Write events as ``+from-until`` and ``-from-until`` for gaps, and a number for a bar."""
    return [
        str((event.open_time_ms - START_MS) // MINUTE)
        if isinstance(event, Bar)
        else f"{'+' if event.repaired_by else '-'}{(event.from_ms - START_MS) // MINUTE}"
        f"-{(event.until_ms - START_MS) // MINUTE}"
        for event in events
        if isinstance(event, Bar | Gap)
    ]


async def serving(*indices: int, symbol: str = "BTCUSDT") -> ScriptedServer:
    server = ScriptedServer()
    for index in indices:
        server.add_candle(at(index), symbol=symbol)
    server.server_ms = at(10_000)
    return server


PAGE = {"category": "linear", "symbol": "BTCUSDT"}


async def test_holes_are_closed_for_good_and_the_end_stays_the_next_bar() -> None:
    async with await serving(1, 2, 4) as server:
        state = market()
        waits_s: list[float] = []
        events = await filled(server, 6, state, waits_s=waits_s)
        assert texts(events) == ["-0-1", "+1-3", "1", "2", "-3-4", "+4-5", "4"]
        assert state.sequence.next_open_ms == at(5)
        assert 30 <= waits_s[0] < 32  # both holes in one request
        assert len(server.queries("kline")) >= 4


async def test_a_close_at_the_end_that_is_not_plausible_is_asked_for_until_it_is() -> None:
    async with await serving() as server:
        for index in range(40):
            server.add_candle(at(index), low="100.0")  # so that a usual range is known
        rows = [list(map(str, server.rows["BTCUSDT"][at(39 - i)])) for i in range(40)]
        rows[0][2] = rows[0][4] = str(10 * float(rows[0][4]))
        server.answer_next("kline", server.reply({**PAGE, "list": rows}))
        state = market()
        state._close_filter = CloseFilter(30.0)  # noqa: SLF001 - as a run's settings make it
        bars = [event for event in await filled(server, 40, state) if isinstance(event, Bar)]
        assert len({bar.close for bar in bars}) == 1
        assert len(bars) == 40


async def test_symbols_are_merged_by_time_each_with_its_own_gaps() -> None:
    async with await serving(0, 1, 2) as server:
        for index in (1, 2):
            server.add_candle(at(index), symbol="ETHUSDT")
        bitcoin, ether = market(), market("ETHUSDT", first=1)
        events = await filled(server, 3, bitcoin, ether)
        assert texts(events) == ["+0-3", "0", "1", "+1-3", "1", "2", "2"]
        bars = [event for event in events if isinstance(event, Bar)]
        assert [bar.instrument for bar in bars[1:3]] == ["linear:BTCUSDT", "linear:ETHUSDT"]
