"""REST answers: windows, order, the open candle, pages, and refusals inside HTTP 200."""

from __future__ import annotations

from decimal import Decimal

import pytest
from exchange_client import FIRST_MS, MINUTE, Client, candles, serving, walk_rows
from hypothesis import given
from hypothesis import strategies as st

from tracepaper.daemon.bybit.messages import ExchangeError
from tracepaper.replay.exchange.answers import kline
from tracepaper.replay.exchange.market import SimulatedMarket, Venue

ROWS = walk_rows(300, seed=6)
START = 250


def starts(result: dict[str, list[list[str]]]) -> list[int]:
    return [(int(row[0]) - FIRST_MS) // MINUTE for row in result["list"]]


async def klines(client: Client, **query: str | int) -> list[int]:
    return starts(await client.result("kline", symbol="BTCUSDT", interval="1", **query))


async def test_the_newest_candle_comes_first_and_may_be_open() -> None:
    async with serving(candles(ROWS), start=START) as (exchange, client):
        await exchange.advance(20_000)
        result = await client.result("kline", symbol="BTCUSDT", interval="1")
        assert list(result) == ["symbol", "category", "list"]
        assert starts(result) == list(range(START, START - 200, -1))
        assert all(isinstance(text, str) for row in result["list"] for text in row)
        assert {len(row) for row in result["list"]} == {7}
        trades = await client.result("recent-trade", category="linear", symbol="BTCUSDT")
        now = [e for e in trades["list"] if int(e["time"]) >= FIRST_MS + START * MINUTE]
        assert Decimal(result["list"][0][5]) == sum(Decimal(each["size"]) for each in now)
        assert result["list"][0][4] == Decimal(now[0]["price"]).normalize().to_eng_string()


VENUE = Venue([SimulatedMarket(candles(ROWS), seed=0)])


@given(
    st.one_of(st.none(), st.integers(-5 * MINUTE, 320 * MINUTE)),
    st.one_of(st.none(), st.integers(-5 * MINUTE, 320 * MINUTE)),
    st.integers(1, 1000),
    st.integers(0, 300 * MINUTE),
)
def test_any_window_holds_what_a_plain_filter_holds(
    start: int | None, end: int | None, limit: int, now: int
) -> None:
    query = {"symbol": "BTCUSDT", "interval": "1", "limit": str(limit)}
    if start is not None:
        query["start"] = str(FIRST_MS + start)
    if end is not None:
        query["end"] = str(FIRST_MS + end)
    answer = kline(VENUE, query, FIRST_MS + now)
    if start is not None and end is not None and end < start:
        assert isinstance(answer, ExchangeError)
        return
    assert isinstance(answer, dict)
    newest_ms = now if end is None else min(now, end)
    wanted = [
        row
        for row in range(len(ROWS))
        if row * MINUTE <= newest_ms and (start is None or (row + 1) * MINUTE > start)
    ]
    forward = start is not None and end is None
    assert starts(answer)[::-1] == (wanted[:limit] if forward else wanted[-limit:])


async def test_coarser_intervals_are_exact_aggregates() -> None:
    async with serving(candles(ROWS), start=START) as (_, client):
        minutes = await client.result("kline", symbol="BTCUSDT", interval="1", limit=1000)
        by_start = {int(row[0]): row for row in minutes["list"]}
        for interval, length in (("15", 15), ("60", 60), ("D", 1440)):
            result = await client.result("kline", symbol="BTCUSDT", interval=interval)
            for row in result["list"]:
                span = range(int(row[0]), int(row[0]) + length * MINUTE, MINUTE)
                parts = [by_start[at] for at in span if at in by_start]
                assert row[1] == parts[0][1]
                assert Decimal(row[2]) == max(Decimal(part[2]) for part in parts)
                assert Decimal(row[3]) == min(Decimal(part[3]) for part in parts)
                assert row[4] == parts[-1][4]
                assert Decimal(row[5]) == sum(Decimal(part[5]) for part in parts)
                assert Decimal(row[6]) == sum(Decimal(part[6]) for part in parts)


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("kline", {"symbol": "ETHUSDT", "interval": "1"}),
        ("kline", {"symbol": "BTCUSDT", "interval": "2"}),
        ("kline", {"symbol": "BTCUSDT", "interval": "1", "category": "futures"}),
        ("kline", {"symbol": "BTCUSDT", "interval": "1", "limit": "0"}),
        ("kline", {"symbol": "BTCUSDT", "interval": "1", "start": "yesterday"}),
        ("tickers", {}),
        ("tickers", {"category": "linear", "symbol": "ETHUSDT"}),
        ("orderbook", {"symbol": "BTCUSDT"}),
        ("recent-trade", {"category": "spot", "symbol": "BTCUSDT"}),
        ("instruments-info", {}),
        ("risk-limit", {"category": "spot"}),
        ("mark-price-kline", {"category": "spot", "symbol": "BTCUSDT", "interval": "1"}),
        ("funding/history", {"category": "linear", "symbol": "BTCUSDT", "startTime": "1"}),
    ],
)
async def test_bad_parameters_are_an_error_inside_http_200(
    path: str, query: dict[str, str]
) -> None:
    async with serving(candles(ROWS)) as (exchange, client):
        body = await client.get(path, **query)
        assert body["retCode"] == 10001
        assert body["result"] == {}
        assert list(body) == ["retCode", "retMsg", "result", "retExtInfo", "time"]
        assert body["time"] == exchange.clock.now_ms()


async def test_data_of_five_minutes_has_no_candles_of_one() -> None:
    async with serving(candles(ROWS, interval_ms=5 * MINUTE)) as (_, client):
        body = await client.get("kline", symbol="BTCUSDT", interval="1")
        assert body["retCode"] == 10001
        assert "finer" in body["retMsg"]
        assert (await client.get("kline", symbol="BTCUSDT", interval="15"))["retCode"] == 0


async def test_instruments_are_paged_by_a_cursor_that_ends() -> None:
    symbols = ["BTCUSDT", "ETHUSDT", "SOLUSDT"]
    async with serving(*(candles(ROWS, symbol=symbol) for symbol in symbols)) as (_, client):
        listed, cursor = [], ""
        for _ in range(3):
            result = await client.result(
                "instruments-info", category="linear", limit=1, cursor=cursor
            )
            listed += [item["symbol"] for item in result["list"]]
            cursor = result["nextPageCursor"]
        assert (listed, cursor) == (symbols, "")


async def test_funding_settles_on_the_interval_and_matches_the_ticker() -> None:
    async with serving(candles(ROWS * 5), start=1400) as (exchange, client):
        where = {"category": "linear", "symbol": "BTCUSDT"}
        ticker = (await client.result("tickers", **where))["list"][0]
        items = (await client.result("funding/history", **where))["list"]
        times = [int(item["fundingRateTimestamp"]) for item in items]
        assert times == sorted(times, reverse=True)
        assert all(at % (480 * MINUTE) == 0 for at in times)
        assert times[0] <= exchange.clock.now_ms()
        coming = int(ticker["nextFundingTime"])
        await exchange.advance_to(coming)
        newest = (await client.result("funding/history", **where, limit=1))["list"]
        assert newest == [
            {
                "symbol": "BTCUSDT",
                "fundingRate": ticker["fundingRate"],
                "fundingRateTimestamp": str(coming),
            }
        ]
        window = await client.result(
            "funding/history", **where, startTime=times[-1], endTime=times[0]
        )
        assert [int(item["fundingRateTimestamp"]) for item in window["list"]] == times


async def test_recent_trades_are_newest_first_and_those_of_the_stream() -> None:
    async with serving(candles(ROWS), start=START) as (exchange, client), client.stream() as stream:
        await stream.subscribe("publicTrade.BTCUSDT")
        await exchange.advance(3 * MINUTE)
        streamed = [each for frame in await stream.drain() for each in frame["data"]]
        result = await client.result("recent-trade", category="linear", symbol="BTCUSDT", limit=9)
        assert [each["execId"] for each in result["list"]] == [e["i"] for e in streamed[:-10:-1]]
        assert result["list"][0]["price"] == streamed[-1]["p"]
        assert result["list"][0]["seq"] == str(streamed[-1]["seq"])


async def test_server_time_is_market_time_in_every_form() -> None:
    async with serving(candles(ROWS), start=START) as (exchange, client):
        body = await client.get("time")
        now_ms = exchange.clock.now_ms()
        assert body["time"] == now_ms == FIRST_MS + START * MINUTE + 5_000
        assert body["result"] == {
            "timeSecond": str(now_ms // 1000),
            "timeNano": str(now_ms * 1_000_000),
        }
