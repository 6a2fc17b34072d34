"""REST reads pages, order, finality, error codes and bans of a scripted server."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from builders import instrument
from bybit_server import FILTERS, MINUTE, START_MS, ScriptedServer, SteppedClock, exchange_section
from waiting import until

from tracepaper.daemon.bybit.client import BybitClient
from tracepaper.daemon.feed.client import RestartBudget
from tracepaper.strategies.errors import ConfigInvalid, FeedLost, MessageMalformed
from tracepaper.strategies.types.market import Category

HOUR = 3_600_000


@asynccontextmanager
async def asking(
    server: ScriptedServer, *, tries: int | None = 0, clock: SteppedClock | None = None
) -> AsyncIterator[BybitClient]:
    """Yield a client that gives up after *tries* failures (None: never)."""
    settings = exchange_section(rest_url=server.rest_url, request_timeout_s=5)
    budget = None if tries is None else RestartBudget(limit=tries, window_s=1e9)
    async with BybitClient(
        settings, clock=clock or SteppedClock(), rng=random.Random(1), budget=budget
    ) as rest:
        yield rest


async def test_server_time_is_the_envelopes() -> None:
    async with ScriptedServer() as server, asking(server) as rest:
        assert await rest.server_time_ms() == START_MS


async def test_candles_come_oldest_first_over_several_pages() -> None:
    async with ScriptedServer() as server, asking(server) as rest:
        opens = [START_MS + index * MINUTE for index in range(2_345)]
        for open_ms in opens:
            server.add_candle(open_ms)
        server.server_ms = opens[-1] + 2 * MINUTE
        bars = await rest.candles(instrument(), MINUTE, opens[0], opens[-1])
        assert [bar.open_time_ms for bar in bars] == opens
        assert len(server.queries("kline")) == 3
        assert {query["limit"] for query in server.queries("kline")} == {"1000"}


async def test_a_candle_is_final_only_some_time_after_its_close() -> None:
    async with ScriptedServer() as server, asking(server) as rest:
        server.add_candle(START_MS)
        server.server_ms = START_MS + MINUTE + 1_999
        assert await rest.candles(instrument(), MINUTE, START_MS, START_MS) == []
        server.server_ms += 1
        assert len(await rest.candles(instrument(), MINUTE, START_MS, START_MS)) == 1


async def test_rows_outside_the_window_are_dropped() -> None:
    async with ScriptedServer() as server, asking(server) as rest:
        for index in range(5):
            server.add_candle(START_MS + index * MINUTE)
        server.server_ms = START_MS + 10 * MINUTE
        bars = await rest.candles(
            instrument(), MINUTE, START_MS + MINUTE + 1, START_MS + 3 * MINUTE
        )
        assert [bar.open_time_ms for bar in bars] == [START_MS + 2 * MINUTE, START_MS + 3 * MINUTE]


async def test_a_row_that_cannot_be_read_is_left_out_and_counted() -> None:
    async with ScriptedServer() as server, asking(server) as rest:
        server.add_candle(START_MS)
        server.add_candle(START_MS + MINUTE, close="NaN")
        server.server_ms = START_MS + 10 * MINUTE
        bars = await rest.candles(instrument(), MINUTE, START_MS, START_MS + MINUTE)
        assert [bar.open_time_ms for bar in bars] == [START_MS]
        assert rest.counters["malformed_rows"] == 1


def page_of(symbol: str, cursor: str) -> dict[str, Any]:
    listed = [{**FILTERS, "symbol": symbol}]
    return {"category": "linear", "list": listed, "nextPageCursor": cursor}


async def test_instruments_are_read_page_by_page_until_the_cursor_ends() -> None:
    async with ScriptedServer() as server, asking(server) as rest:
        pages = page_of("AUSDT", "second"), page_of("BUSDT", "")
        server.answer_next("instruments-info", *(server.reply(page) for page in pages))
        instruments = await rest.instruments(Category.LINEAR)
        assert [item.symbol for item in instruments] == ["AUSDT", "BUSDT"]
        assert [query.get("cursor") for query in server.queries("instruments-info")] == [
            None,
            "second",
        ]


async def test_a_cursor_that_repeats_does_not_loop() -> None:
    async with ScriptedServer() as server, asking(server) as rest:
        page = page_of("AUSDT", "again")
        server.answer_next("instruments-info", *(server.reply(page) for _ in range(5)))
        await rest.instruments(Category.LINEAR)
        assert len(server.queries("instruments-info")) == 2


async def test_an_unknown_symbol_is_a_mistake_of_the_configuration() -> None:
    async with ScriptedServer() as server, asking(server) as rest:
        assert (await rest.instrument(Category.LINEAR, "BTCUSDT")).price_decimals == 1
        with pytest.raises(ConfigInvalid, match="NOSUCH"):
            await rest.instrument(Category.LINEAR, "NOSUCH")


async def test_funding_history_is_paged_backwards_and_returned_oldest_first() -> None:
    async with ScriptedServer() as server, asking(server) as rest:
        times = [START_MS + index * HOUR for index in range(450)]
        server.funding = [(at, f"-0.000{index:03}") for index, at in enumerate(times)]
        settlements = await rest.funding(instrument(), times[3], times[-1])
        assert [clock.market_ms for clock in settlements] == times[3:]
        assert settlements[0].rate == -30_000
        assert len(server.queries("funding/history")) == 3
        assert all("startTime" in query for query in server.queries("funding/history"))


async def test_a_budget_ends_the_patience() -> None:
    clock = SteppedClock()
    async with ScriptedServer() as server, asking(server, tries=1, clock=clock) as rest:
        server.answer_next("time", *(web.Response(status=502) for _ in range(3)))
        task = asyncio.create_task(rest.server_time_ms())
        await clock.run(task.done)
        with pytest.raises(FeedLost, match="HTTP 502"):
            await task
        assert len(server.queries("time")) == 2
        server.answer_next("time", web.Response(text="no json"))
        with pytest.raises((FeedLost, MessageMalformed)):
            await rest.server_time_ms()


@pytest.mark.parametrize(
    ("code", "words"),
    [(10009, "regional host"), (10024, "regional host"), (10001, "market.symbols")],
)
async def test_codes_that_stay_stop_with_advice(code: int, words: str) -> None:
    async with ScriptedServer() as server, asking(server, tries=None) as rest:
        server.answer_next("time", server.reply({}, code=code, message="no"))
        with pytest.raises(ConfigInvalid, match=words):
            await rest.server_time_ms()


async def test_a_ban_silences_every_request_for_its_whole_time() -> None:
    clock = SteppedClock()
    async with ScriptedServer() as server, asking(server, tries=None, clock=clock) as rest:
        server.answer_next("time", web.Response(status=403, text="<html>denied</html>"))
        first = asyncio.create_task(rest.server_time_ms())
        await until(lambda: rest.cooldown.ends_s > 0)
        assert rest.cooldown.ends_s == clock.network_s() + 600
        second = asyncio.create_task(rest.candles(instrument(), MINUTE, START_MS, START_MS))
        banned_until_s = rest.cooldown.ends_s
        await clock.run(lambda: clock.network_s() >= banned_until_s - 1, step_s=1)
        assert len(server.requests) == 1
        await clock.run(lambda: first.done() and second.done(), step_s=1)
        assert clock.network_s() >= banned_until_s
        assert await first == START_MS


async def test_a_refused_connection_is_a_recoverable_error_with_advice() -> None:
    async with ScriptedServer() as server:
        closed = server.rest_url
    settings = exchange_section(rest_url=closed)
    budget = RestartBudget(limit=0, window_s=1e9)
    clock = SteppedClock()
    async with BybitClient(settings, clock=clock, rng=random.Random(1), budget=budget) as rest:
        with pytest.raises(FeedLost, match="check the network"):
            await rest.server_time_ms()
