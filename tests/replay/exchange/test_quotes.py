"""Ticker and book topics: snapshots, deltas, repeats and the pace above speed 1."""

from __future__ import annotations

from decimal import Decimal
from itertools import pairwise

import pytest
from exchange_client import MINUTE, Message, candles, serving, walk_rows

from tracepaper.strategies.types.market import EXCHANGE_CATEGORIES, Category

ROWS = walk_rows(60, seed=4)
START = 10


async def test_linear_deltas_merge_to_what_rest_says() -> None:
    async with serving(candles(ROWS), start=START) as (exchange, client), client.stream() as stream:
        await stream.subscribe("tickers.BTCUSDT")
        await exchange.advance(3 * MINUTE + 50 - (exchange.clock.now_ms() % 100))
        frames = await stream.drain()
        assert [frame["type"] for frame in frames[:2]] == ["snapshot", "delta"]
        state: dict[str, str] = {}
        for frame in frames:
            if frame["type"] == "delta":
                fields = {name: text for name, text in frame["data"].items() if name != "symbol"}
                assert any(state[name] != text for name, text in fields.items())
                assert len(fields) < len(state)
            state |= frame["data"]
        listed = (await client.result("tickers", category="linear"))["list"][0]
        assert {name: listed[name] for name in state if name in listed} == {
            name: text for name, text in state.items() if name in listed
        }
        assert len(state) == 27


async def test_a_side_of_the_touch_comes_with_price_and_size() -> None:
    async with serving(candles(ROWS), start=START) as (exchange, client), client.stream() as stream:
        await stream.subscribe("tickers.BTCUSDT")
        await exchange.advance(MINUTE)
        for frame in await stream.drain():
            for side in ("bid1", "ask1"):
                assert (f"{side}Price" in frame["data"]) is (f"{side}Size" in frame["data"])


async def test_spot_tickers_are_whole_snapshots_without_a_touch() -> None:
    spot = candles(ROWS, category=Category.SPOT)
    async with serving(spot, start=START) as (exchange, client), client.stream("spot") as stream:
        await stream.subscribe("tickers.BTCUSDT")
        await exchange.advance(2 * MINUTE)
        frames = await stream.drain()
        assert len(frames) > 5
        assert {frame["type"] for frame in frames} == {"snapshot"}
        assert {tuple(frame["data"]) for frame in frames} == {
            (
                *("symbol", "lastPrice", "highPrice24h", "lowPrice24h", "prevPrice24h"),
                *("volume24h", "turnover24h", "price24hPcnt", "usdIndexPrice"),
            )
        }


def applied(book: dict[str, dict[Decimal, Decimal]], data: Message) -> None:
    for side in ("b", "a"):
        for price, size in data[side]:
            if Decimal(size):
                book[side][Decimal(price)] = Decimal(size)
            else:
                book[side].pop(Decimal(price), None)


@pytest.mark.parametrize("depth", [50, 200])
async def test_book_deltas_lead_to_the_snapshot_that_rest_gives(depth: int) -> None:
    async with serving(candles(ROWS), start=START) as (exchange, client), client.stream() as stream:
        await stream.subscribe(f"orderbook.{depth}.BTCUSDT")
        await exchange.advance(2 * MINUTE - exchange.clock.now_ms() % 100)
        first, *deltas = await stream.drain()
        book: dict[str, dict[Decimal, Decimal]] = {"b": {}, "a": {}}
        applied(book, first["data"])
        for before, frame in pairwise([first, *deltas]):
            assert frame["type"] == "delta"
            assert frame["data"]["u"] == before["data"]["u"] + 1
            assert frame["data"]["seq"] > before["data"]["seq"]
            applied(book, frame["data"])
        result = await client.result("orderbook", category="linear", symbol="BTCUSDT", limit=depth)
        for side in ("b", "a"):
            listed = [(Decimal(price), Decimal(size)) for price, size in result[side]]
            assert sorted(listed) == sorted(book[side].items())
            assert len(listed) == depth
            assert listed == sorted(listed, reverse=side == "b")


async def test_depth_one_repeats_an_unchanged_book_after_three_seconds_with_the_same_u() -> None:
    async with serving(candles(ROWS), start=START) as (exchange, client), client.stream() as stream:
        await stream.subscribe("orderbook.1.BTCUSDT")
        await exchange.advance(10 * MINUTE)
        frames = await stream.drain()
        assert {frame["type"] for frame in frames} == {"snapshot"}
        repeats = 0
        for before, after in pairwise(frames[1:]):
            same = all(before["data"][side] == after["data"][side] for side in ("b", "a"))
            assert same is (before["data"]["u"] == after["data"]["u"])
            assert after["ts"] - before["ts"] <= 3_100
            repeats += same
        assert repeats > 3


@pytest.mark.parametrize("category", EXCHANGE_CATEGORIES)
async def test_the_touch_is_never_crossed_and_trades_print_at_it(category: Category) -> None:
    data = candles([row for row in ROWS if row[4]], category=category)
    async with (
        serving(data, start=START) as (exchange, client),
        client.stream(category.value) as stream,
    ):
        await stream.subscribe("orderbook.1.BTCUSDT", "publicTrade.BTCUSDT")
        await exchange.advance(10 * MINUTE)
        last: Message | None = None
        matched = 0
        for frame in await stream.drain():
            if frame["topic"].startswith("public"):
                last = frame["data"][-1]
                continue
            (bid, _), (ask, _) = frame["data"]["b"][0], frame["data"]["a"][0]
            assert Decimal(bid) < Decimal(ask)
            if last is not None:
                assert Decimal(last["p"]) == Decimal(ask if last["S"] == "Buy" else bid)
                matched += 1
        assert matched > 50


@pytest.mark.parametrize("speed", [100.0, 2_000.0, 5_000.0])
async def test_paced_books_still_come_four_times_a_candle_and_right_after_each_confirm(
    speed: float,
) -> None:
    async with (
        serving(candles(ROWS), start=START, speed=speed) as (exchange, client),
        client.stream() as stream,
    ):
        await stream.subscribe("kline.1.BTCUSDT", "orderbook.1.BTCUSDT", "tickers.BTCUSDT")
        await exchange.advance(30 * MINUTE)
        frames = await stream.drain()
        books = [frame["ts"] for frame in frames if frame["topic"].startswith("order")]
        confirms = [
            frame["ts"]
            for frame in frames
            if frame["topic"].startswith("kline") and frame["data"][0]["confirm"]
        ]
        assert len(confirms) == 30
        for confirm_ms in confirms[:-1]:
            assert confirm_ms + 250 in books
            assert len([at for at in books if confirm_ms < at <= confirm_ms + MINUTE]) >= 4
        wall_s = 30 * MINUTE / 1000 / speed
        least = 5 * 30 + 30
        assert len(books) <= max(least, 41 * wall_s + 30) + 2
        tickers = [frame for frame in frames if frame["topic"].startswith("tickers")]
        assert len(tickers) <= max(31, 21 * wall_s) + 1
