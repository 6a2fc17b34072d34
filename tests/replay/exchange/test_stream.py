"""Operations, acknowledgements and pongs have the form of their category."""

from __future__ import annotations

import itertools
import json

import pytest
from exchange_client import FIRST_MS, MINUTE, StreamClient, candles, serving, walk_rows
from waiting import deadline_s

from tracepaper.strategies.types.market import Category

ROWS = walk_rows(40)


async def raw_answer(client: StreamClient, request: str) -> str:
    await client.socket.send_str(request)
    return str((await client.socket.receive(deadline_s())).data)


async def test_linear_sends_data_before_the_acknowledgement_and_spot_after() -> None:
    both = (candles(ROWS), candles(ROWS, category=Category.SPOT))
    async with serving(*both) as (_, client):
        for category, data_first in (("linear", True), ("spot", False)):
            async with client.stream(category) as stream:
                await stream.socket.send_str(
                    '{"op":"subscribe","args":["tickers.BTCUSDT"],"req_id":"1"}'
                )
                kinds = [
                    "topic" in json.loads((await stream.socket.receive(deadline_s())).data)
                    for _ in range(2)
                ]
                assert kinds == [data_first, not data_first]


async def test_a_pong_has_the_form_of_its_category() -> None:
    async with serving(candles(ROWS)) as (_, client):
        async with client.stream("linear") as stream:
            answer = json.loads(await raw_answer(stream, '{"op":"ping"}'))
            assert (answer["ret_msg"], answer["op"], answer["req_id"]) == ("pong", "ping", "")
        async with client.stream("spot") as stream:
            answer = json.loads(await raw_answer(stream, '{"op":"ping"}'))
            assert (answer["ret_msg"], answer["op"]) == ("pong", "ping")
            assert "req_id" not in answer


@pytest.mark.parametrize(
    "topic",
    ["kline.2.BTCUSDT", "kline.1.ETHUSDT", "orderbook.2.BTCUSDT", "tickers.x.BTCUSDT", "kline", ""],
)
async def test_unknown_intervals_symbols_and_depths_are_no_topics(topic: str) -> None:
    async with serving(candles(ROWS)) as (_, client), client.stream() as stream:
        assert (await stream.subscribe(topic))["success"] is False


async def test_spot_takes_ten_topics_a_request_and_linear_more() -> None:
    topics = [f"kline.{name}.BTCUSDT" for name in ("1", "3", "5", "15", "30", "60", "120")]
    topics += ["kline.240.BTCUSDT", "kline.360.BTCUSDT", "kline.720.BTCUSDT", "tickers.BTCUSDT"]
    both = (candles(ROWS), candles(ROWS, category=Category.SPOT))
    async with serving(*both) as (_, client):
        async with client.stream("spot") as stream:
            answer = await stream.subscribe(*topics)
            assert (answer["success"], answer["ret_msg"]) == (False, "args size >10")
            assert (await stream.subscribe(*topics[:10]))["success"] is True
        async with client.stream("linear") as stream:
            assert (await stream.subscribe(*topics))["success"] is True


@pytest.mark.parametrize(
    "request_text", ["not json", "[" * 60_000, "[]", '{"op":"dance"}', '{"args":["a"]}']
)
async def test_nonsense_is_refused_and_the_connection_lives(request_text: str) -> None:
    async with serving(candles(ROWS)) as (_, client), client.stream() as stream:
        assert json.loads(await raw_answer(stream, request_text))["success"] is False
        assert (await stream.ask("ping"))["success"] is True


async def test_an_unsubscribed_topic_is_silent() -> None:
    async with serving(candles(ROWS)) as (exchange, client), client.stream() as stream:
        await stream.subscribe("kline.1.BTCUSDT", "tickers.BTCUSDT")
        assert (await stream.ask("unsubscribe", ["tickers.BTCUSDT"]))["success"] is True
        await stream.drain()
        await exchange.advance(3 * MINUTE)
        assert {frame["topic"] for frame in await stream.drain()} == {"kline.1.BTCUSDT"}


async def test_update_ids_do_not_go_back_when_a_topic_is_taken_again() -> None:
    async with serving(candles(ROWS)) as (exchange, client), client.stream() as stream:
        ids = []
        for _ in range(3):
            await stream.subscribe("orderbook.50.BTCUSDT")
            await exchange.advance(15_000)
            await stream.ask("unsubscribe", ["orderbook.50.BTCUSDT"])
            frames = await stream.drain()
            assert [frame["type"] for frame in frames[:2]] == ["snapshot", "delta"]
            ids += [frame["data"]["u"] for frame in frames]
        assert all(after > before for before, after in itertools.pairwise(ids))


async def test_the_first_frames_are_older_than_the_subscription() -> None:
    async with serving(candles(ROWS)) as (exchange, client), client.stream() as stream:
        await exchange.advance(20_000)
        await stream.subscribe("kline.1.BTCUSDT", "tickers.BTCUSDT", "orderbook.1.BTCUSDT")
        frames = await stream.drain()
        assert len(frames) == 3
        assert all(frame["ts"] < exchange.clock.now_ms() for frame in frames)
        assert all(frame["ts"] > FIRST_MS for frame in frames)
