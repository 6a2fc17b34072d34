"""A hole is requested until it is certain; later bars wait, other instruments continue."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from aiohttp import web
from bybit_feed import BITCOIN, Live, live
from bybit_server import MINUTE, START_MS, ScriptedServer, kline
from msgspec import structs
from waiting import until

from tracepaper.daemon.feed.client import FeedStart
from tracepaper.daemon.feed.state import PENDING_MAX
from tracepaper.strategies.types.market import Bar, Funding, Gap, GapCause, Source

HOUR = 3_600_000
FUNDED = structs.replace(BITCOIN, funding_interval_minutes=480)


def page(server: ScriptedServer, *indices: int) -> web.Response:
    """Return an answer with only the candles of these minutes."""
    rows = server.rows["BTCUSDT"]
    listed = [[str(cell) for cell in rows[START_MS + i * MINUTE]] for i in sorted(indices)[::-1]]
    return server.reply({"category": "linear", "symbol": "BTCUSDT", "list": listed})


def broken_row(server: ScriptedServer) -> web.Response:
    """Return an answer whose row of minute 1 is malformed."""
    row = [str(cell) for cell in server.rows["BTCUSDT"][START_MS + MINUTE]]
    listed = [[row[0], "NaN", *row[2:]]]
    return server.reply({"category": "linear", "symbol": "BTCUSDT", "list": listed})


WAYS: dict[str, Callable[[ScriptedServer], web.Response]] = {
    "empty": page,
    "short": lambda server: page(server, 2),
    "a broken row": broken_row,
    "asked again by the client": lambda _: web.Response(status=500),
}
"""First answers of REST to a hole at minute 1, after which 2 and 3 closed."""


async def begin(run: Live) -> None:
    """Deliver minute 0, so that minute 1 can be missing."""
    await run.close_bar(0)
    await until(run.bars)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("times", [1, 3])
async def test_a_lost_closing_frame_comes_although_rest_is_wrong_at_first(
    way: str, times: int
) -> None:
    async with ScriptedServer() as server, live(server) as run:
        run.client.prove()
        await begin(run)
        await run.close_bar(1, stream=False)
        server.add_candle(START_MS + 2 * MINUTE)
        server.answer_next("kline", *(WAYS[way](server) for _ in range(times)))
        await run.close_bar(2)
        run.move_to(START_MS + 3 * MINUTE + 2_000)
        await run.expect(lambda: len(run.bars()) == 3)
        assert run.opens() == [0, 1, 2]
        assert [bar.source for bar in run.bars()] == [Source.STREAM, Source.REST, Source.STREAM]
        assert run.gaps() == [(1, 2, GapCause.MISSED, "rest")]
        assert not server.answers["kline"]


async def test_a_hole_is_not_given_up_while_no_answer_reaches_past_it() -> None:
    async with ScriptedServer() as server, live(server) as run:
        await begin(run)
        await run.close_bar(1, stream=False, rest=False)
        for index in range(2, 5):
            await run.close_bar(index, rest=False)
        begun_s = run.clock.network_s()
        await run.expect(lambda: run.clock.network_s() > begun_s + 300)
        assert run.opens() == [0]
        assert not run.gaps()
        count = len(server.queries("kline"))
        await run.expect(lambda: run.clock.network_s() > begun_s + 600)
        assert 5 <= len(server.queries("kline")) - count <= 30  # with backoff
        for index in range(1, 5):
            server.add_candle(START_MS + index * MINUTE)
        await run.expect(lambda: len(run.bars()) == 5)
        assert run.opens() == [0, 1, 2, 3, 4]


async def test_what_waits_behind_a_hole_is_bounded_and_none_of_it_is_lost() -> None:
    async with ScriptedServer() as server, live(server, queue_limit=5_000) as run:
        run.client.prove()
        await begin(run)
        server.answer_next("kline", *(web.Response(status=404) for _ in range(10_000)))
        last = PENDING_MAX + 50
        run.move_to(START_MS + (last + 1) * MINUTE + 2_500)
        for index in range(1, last + 1):
            server.add_candle(START_MS + index * MINUTE)
        await server.send(*(kline(START_MS + index * MINUTE) for index in range(2, last + 1)))
        await until(lambda: run.feed.counters["overflow_bars"] == last - 1 - PENDING_MAX)
        server.answers["kline"].clear()
        await run.expect(lambda: len(run.bars()) == last + 1)
        assert run.opens() == list(range(last + 1))
        assert run.gaps()[0] == (1, 2, GapCause.MISSED, "rest")


async def test_a_settlement_that_nobody_answers_holds_up_no_bar() -> None:
    eight = START_MS - START_MS % (8 * HOUR) + 8 * HOUR
    first = (eight - START_MS) // MINUTE - 1
    async with ScriptedServer() as server:
        server.server_ms = eight - MINUTE
        start = FeedStart(interval_ms=MINUTE, period_start_ms=eight - MINUTE, warmup_bars=0)
        async with live(server, start=start, instruments=(FUNDED,)) as run:
            run.client.prove()
            server.answer_next(
                "funding/history", *(web.Response(status=451) for _ in range(10_000))
            )
            for index in range(first, first + 3):
                await run.close_bar(index)
            await until(lambda: len(run.bars()) == 3)
            server.answers["funding/history"].clear()
            assert not any(isinstance(event, Funding) for event in run.events)
            server.funding.append((eight, "0.0001"))
            await run.expect(lambda: len(run.events) == 4)
            last = run.events[-1]
            assert isinstance(last, Funding)
            assert (last.market_ms, last.rate) == (eight, 10**6)
            assert run.opens() == [first, first + 1, first + 2]
            assert run.gaps() == []


# ---------------------------------------------------------------- the exchange's time


async def test_a_machine_that_slept_goes_on_with_all_that_it_missed() -> None:
    async with ScriptedServer() as server, live(server) as run:
        await begin(run)
        for index in range(1, 120):
            server.add_candle(START_MS + index * MINUTE)
        server.server_ms = START_MS + 120 * MINUTE + 300  # our clock is unchanged
        await server.send(kline(START_MS + 119 * MINUTE))
        await run.expect(lambda: run.feed.counters["jumps"])
        assert run.clock.market_ms() == server.server_ms
        await run.expect(lambda: len(run.bars()) >= 119)
        server.server_ms += 10_000
        run.clock.synchronise(server.server_ms)
        await run.expect(lambda: len(run.bars()) == 120)
        await run.close_bar(120)
        await until(lambda: len(run.bars()) == 121)
        assert run.opens() == list(range(121))
        clock, *holes = [event for event in run.events if isinstance(event, Gap)]
        assert (clock.cause, clock.repaired_by) == (GapCause.JUMPED, "clock")
        assert clock.from_ms == START_MS + MINUTE + 300
        assert clock.until_ms == START_MS + 120 * MINUTE + 300
        assert {(hole.cause, hole.repaired_by) for hole in holes} == {(GapCause.JUMPED, "rest")}


TIME = {"timeSecond": "1", "timeNano": "2"}


async def test_a_time_that_is_none_is_never_taken() -> None:
    async with ScriptedServer() as server, live(server) as run:
        await begin(run)
        right_ms = server.server_ms
        for time in (2**62, 0, -1, 10**9, 2**70):
            server.server_ms = time
            server.answer_next("time", *(server.reply(TIME) for _ in range(3)))
        server.server_ms = right_ms
        resyncs = run.feed.counters["resyncs"]
        await run.expect(lambda: run.feed.counters["resyncs"] > resyncs)
        assert run.clock.market_ms() == right_ms
        assert not server.answers["time"]


@pytest.mark.parametrize("years", [1, -1, 50])
async def test_a_time_said_three_times_is_believed_and_what_follows_is_decided(years: int) -> None:
    async with ScriptedServer() as server, live(server) as run:
        await begin(run)
        right_ms = server.server_ms
        server.server_ms = right_ms + years * 365 * 24 * HOUR
        await run.expect(lambda: run.feed.counters["jumps"] == 1)
        assert run.clock.market_ms() == server.server_ms
        server.server_ms = right_ms  # and the time is right again
        server.add_candle(START_MS + MINUTE)
        server.server_ms = START_MS + 2 * MINUTE + 300
        await server.send(kline(START_MS + MINUTE))
        await run.expect(lambda: run.feed.counters["jumps"] == 2)
        run.move_to(START_MS + 2 * MINUTE + 6_000)
        await run.expect(lambda: len(run.bars()) == 2)
        for index in range(2, 5):
            await run.close_bar(index)
            await until(partial(run.has_bars, index + 1))
        assert run.opens() == [0, 1, 2, 3, 4]
        jumps = [
            event for event in run.events if isinstance(event, Gap) and event.repaired_by == "clock"
        ]
        assert len(jumps) == 2
        assert all(gap.from_ms < gap.until_ms for gap in jumps)
        assert all(not isinstance(event, Bar) or event.close > 0 for event in run.events)
