"""Candle and trade topics: the roll, the confirm, and sums that agree."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from exchange_client import FIRST_MS, MINUTE, Message, candles, serving, walk_rows

from tracepaper.replay.exchange.channels import FramePace
from tracepaper.strategies.types.market import EXCHANGE_CATEGORIES, Category

ROWS = walk_rows(60, seed=3)
START = 10


def closed(frames: list[Message]) -> list[Any]:
    return [each for frame in frames for each in frame["data"] if each.get("confirm")]


def candle_row(element: Message) -> list[str]:
    names = ("open", "high", "low", "close", "volume", "turnover")
    return [str(element["start"]), *(element[name] for name in names)]


async def test_linear_rolls_in_one_frame_of_two_candles() -> None:
    async with serving(candles(ROWS), start=START) as (exchange, client), client.stream() as stream:
        await stream.subscribe("kline.1.BTCUSDT")
        await exchange.advance(3 * MINUTE)
        frames = await stream.drain()
        rolls = [frame for frame in frames if any(each["confirm"] for each in frame["data"])]
        assert len(rolls) == 3
        for frame in rolls:
            old, new = frame["data"]
            assert (old["confirm"], new["confirm"]) == (True, False)
            assert new["start"] == old["end"] + 1
            assert new["open"] == new["high"] == new["low"] == new["close"]
            assert (new["volume"], new["turnover"]) == ("0", "0")


async def test_spot_rolls_in_two_frames_of_one_moment() -> None:
    spot = candles(ROWS, category=Category.SPOT)
    async with serving(spot, start=START) as (exchange, client), client.stream("spot") as stream:
        await stream.subscribe("kline.1.BTCUSDT")
        await exchange.advance(2 * MINUTE)
        frames = await stream.drain()
        assert all(len(frame["data"]) == 1 for frame in frames)
        place = next(at for at, frame in enumerate(frames) if frame["data"][0]["confirm"])
        assert frames[place + 1]["ts"] == frames[place]["ts"]
        assert frames[place + 1]["data"][0]["start"] == frames[place]["data"][0]["end"] + 1


async def test_every_closed_candle_is_the_data_and_what_rest_says() -> None:
    async with serving(candles(ROWS), start=START) as (exchange, client), client.stream() as stream:
        await stream.subscribe("kline.1.BTCUSDT", "kline.5.BTCUSDT")
        await exchange.advance(30 * MINUTE)
        done = closed(await stream.drain())
        for interval, length in (("1", MINUTE), ("5", 5 * MINUTE)):
            mine = [candle_row(each) for each in done if each["interval"] == interval]
            result = await client.result("kline", symbol="BTCUSDT", interval=interval, limit=200)
            rows = {row[0]: row for row in result["list"]}
            assert len(mine) == 30 * MINUTE // length
            assert all(rows[row[0]] == row for row in mine)
        minutes = [each for each in done if each["interval"] == "1"]
        for place, element in enumerate(minutes, START):
            opened, high, low, close, volume = ROWS[place]
            assert element["start"] == FIRST_MS + place * MINUTE
            figures = [Decimal(element[name]) for name in ("open", "high", "low", "close")]
            assert figures == [Decimal(price) / 10 for price in (opened, high, low, close)]
            assert Decimal(element["volume"]) == Decimal(volume) / 1000


@pytest.mark.parametrize("category", EXCHANGE_CATEGORIES)
@pytest.mark.parametrize("speed", [1.0, 2_000.0])
async def test_streamed_trades_of_each_bar_aggregate_to_its_candle(
    category: Category, speed: float
) -> None:
    data = candles(ROWS, category=category)
    async with (
        serving(data, start=START, speed=speed) as (exchange, client),
        client.stream(category.value) as stream,
    ):
        await stream.subscribe("kline.1.BTCUSDT", "publicTrade.BTCUSDT")
        await exchange.advance(25 * MINUTE)
        frames = await stream.drain()
        trades = [each for f in frames if f["topic"].startswith("public") for each in f["data"]]
        candle_frames = [frame for frame in frames if frame["topic"].startswith("kline")]
        bars = closed(candle_frames)[1:]  # the first bar's first seconds lie before the start
        assert len({each["i"] for each in trades}) == len(trades)
        for bar in bars:
            inside = [each for each in trades if bar["start"] <= each["T"] <= bar["end"]]
            prices = [Decimal(each["p"]) for each in inside]
            assert sum(Decimal(each["v"]) for each in inside) == Decimal(bar["volume"])
            if inside:
                summary = (prices[0], max(prices), min(prices), prices[-1])
                names = ("open", "high", "low", "close")
                assert summary == tuple(Decimal(bar[name]) for name in names)
        assert [each["T"] for each in trades] == sorted(each["T"] for each in trades)


async def test_pushes_come_on_a_second_grid_and_only_after_a_change() -> None:
    async with serving(candles(ROWS), start=START) as (exchange, client), client.stream() as stream:
        await stream.subscribe("kline.1.BTCUSDT")
        await stream.drain()
        await exchange.advance(10 * MINUTE)
        pushes = [f for f in await stream.drain() if not any(e["confirm"] for e in f["data"])]
        assert len({frame["ts"] % 1000 for frame in pushes}) == 1
        contents = [
            tuple(value for name, value in frame["data"][0].items() if name != "timestamp")
            for frame in pushes
        ]
        assert len(set(contents)) == len(contents)


async def test_a_coarse_candle_without_its_last_minutes_is_not_closed_by_the_data_end() -> None:
    async with serving(candles(ROWS[:58]), start=START) as (exchange, client):
        async with client.stream() as stream:
            await stream.subscribe("kline.5.BTCUSDT")
            await exchange.advance(100 * MINUTE)
            starts = [each["start"] for each in closed(await stream.drain())]
        assert max(starts) == FIRST_MS + 50 * MINUTE


@pytest.mark.parametrize(("symbols", "least_ms"), [(1, 2_500), (10, 2_500), (20, 5_000)])
def test_more_than_ten_symbols_share_the_frames_of_a_wall_second(
    symbols: int, least_ms: int
) -> None:
    pacing = FramePace(100.0, symbols)
    assert pacing.book_gap_ms(MINUTE) == least_ms
    assert pacing.ticker_gap_ms(MINUTE) == 2 * least_ms
    assert pacing.book_gap_ms(4 * 1_000) == 800, "a candle has five all the same"
    assert FramePace(1.0, symbols).book_gap_ms(MINUTE) == 100
