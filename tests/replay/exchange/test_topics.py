"""The rarer topics have the documented form, and all of pybit's can be subscribed."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pybit.unified_trading
import pytest
from exchange_client import FIRST_MS, MINUTE, candles, serving, walk_rows

from tracepaper.replay.exchange.market import SimulatedMarket
from tracepaper.replay.exchange.risk import liquidations
from tracepaper.strategies.types import Category

TOPIC_ROWS = walk_rows(200, seed=5)
START = 100

FORMS = {
    "priceLimit.BTCUSDT": ({"topic", "data", "ts"}, {"symbol", "buyLmt", "sellLmt"}),
    "insurance.USDT": (
        {"topic", "type", "ts", "data"},
        {"coin", "symbols", "balance", "updateTime"},
    ),
    "adlAlert.USDT": (
        {"topic", "type", "ts", "data"},
        {"c", "s", "b", "mb", "i_pr", "pr", "adl_tt", "adl_sr"},
    ),
    "allLiquidation.BTCUSDT": ({"topic", "type", "ts", "data"}, {"T", "s", "S", "v", "p"}),
    "orderbook.rpi.BTCUSDT": (
        {"topic", "type", "ts", "data", "cts"},
        {"s", "b", "a", "u", "seq"},
    ),
}


@pytest.mark.parametrize("topic", FORMS)
async def test_a_topic_has_the_documented_form(topic: str) -> None:
    fields, item = FORMS[topic]
    async with (
        serving(candles(TOPIC_ROWS), start=START) as (exchange, client),
        client.stream() as stream,
    ):
        assert (await stream.subscribe(topic))["success"] is True
        await exchange.advance((2 if topic.startswith("orderbook") else 10) * MINUTE)
        frames = await stream.drain()
    assert len(frames) > 2
    for frame in frames:
        assert set(frame) == fields
        elements = frame["data"] if isinstance(frame["data"], list) else [frame["data"]]
        assert all(set(element) == item for element in elements)
    assert [frame["ts"] for frame in frames] == sorted(frame["ts"] for frame in frames)
    if topic.startswith("orderbook"):
        levels = [level for frame in frames for level in frame["data"]["b"]]
        assert {len(level) for level in levels} == {3}


def topics_of_pybit() -> list[str]:
    """Return every public topic that pybit's methods name, for BTCUSDT."""
    source = inspect.getsource(pybit.unified_trading.WebSocket)
    named = [
        "".join(parts) for parts in re.findall(r'topic = f?"([^"]+)"(?: \+ "([^"]+)")?', source)
    ]
    filled = {"{symbol}": "BTCUSDT", "{interval}": "1", "{depth}": "50"}
    found = []
    for topic in named:
        for hole, text in filled.items():
            topic = topic.replace(hole, text)  # noqa: PLW2901
        if "." in topic and "BTCUSDT" in topic:
            found.append(topic.replace("insurance.BTCUSDT", "insurance.USDT"))
    return found


GONE = {"liquidation.BTCUSDT"}
LEVERAGED = re.compile(r"\w*lt\.")
"""Withdrawn by the exchange, which answers with the same refusal."""


async def test_every_public_topic_of_pybit_is_accepted_but_the_withdrawn() -> None:
    topics = topics_of_pybit()
    assert {"kline.1.BTCUSDT", "allLiquidation.BTCUSDT", "priceLimit.BTCUSDT"} <= set(topics)
    async with serving(candles(TOPIC_ROWS)) as (_, client), client.stream() as stream:
        for topic in topics:
            answer = await stream.subscribe(topic)
            assert answer["success"] is not (topic in GONE or LEVERAGED.match(topic) is not None)


def liquidated(market: SimulatedMarket, row: int) -> list[tuple[str, int]]:
    return [
        (side, market.path(row).trades[place].price) for place, side in liquidations(market, row)
    ]


def test_a_bar_that_runs_far_liquidates_at_its_extremes_alone() -> None:
    rows = [
        (1_000_000, 1_000_499, 999_501, 1_000_000, 5_000),
        (1_000_000, 1_000_100, 998_000, 999_000, 5_000),
        (1_000_000, 1_002_000, 999_900, 1_001_000, 5_000),
        (1_000_000, 1_002_000, 998_000, 1_001_000, 0),
    ]
    market = SimulatedMarket(candles(rows, price_decimals=2), seed=1)
    found = [liquidated(market, row) for row in range(4)]
    assert found == [[], [("Buy", 998_000)], [("Sell", 1_002_000)], []]


async def test_nobody_is_liquidated_on_spot() -> None:
    data = candles(TOPIC_ROWS, category=Category.SPOT)
    async with serving(data) as (_, client), client.stream("spot") as stream:
        for topic in ("allLiquidation.BTCUSDT", "insurance.USDT", "adlAlert.USDT"):
            answer = await stream.subscribe(topic)
            assert "handler not found" in answer["ret_msg"]
        assert (await stream.subscribe("priceLimit.BTCUSDT"))["success"] is True


async def test_a_paced_topic_leaps_over_a_hole_with_the_others() -> None:
    times = [FIRST_MS + place * MINUTE for place in range(100)]
    times += [times[-1] + 50_000 * MINUTE + place * MINUTE for place in range(100)]
    data = candles(TOPIC_ROWS, times_ms=times)
    async with serving(data, start=98) as (exchange, client), client.stream() as stream:
        await stream.subscribe("priceLimit.BTCUSDT")
        await exchange.advance(3 * MINUTE)
        await exchange.advance(MINUTE)
        frames: list[dict[str, Any]] = await stream.drain()
    assert len(frames) < 1_000
    assert frames[-1]["ts"] > times[100]
