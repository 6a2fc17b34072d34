"""Where time starts, stands, jumps and ends."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import ClientSession
from builders import present
from exchange_client import (
    FIRST_MS,
    MINUTE,
    Client,
    Message,
    StreamClient,
    candles,
    serving,
    walk_rows,
)
from waiting import deadline, deadline_s

from tracepaper.daemon.clock import SystemClock
from tracepaper.replay.exchange.market import END_LINGER_MS, SETTLE_MS, WARM_UP_BARS
from tracepaper.replay.exchange.server import EmbeddedExchange, ExchangeSettings
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.types.market import Category

# ------------------------------------------------------------ the command

DATA = Path(__file__).parents[2] / "data" / "candles" / "bybit_linear_BTCUSDT_1m_2022-12-13.csv.gz"
RUN = "import typer; from tracepaper.replay.commands.replay import exchange; typer.run(exchange)"


async def start(*arguments: str) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    command = (sys.executable, "-c", RUN, *arguments)
    return await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)


@pytest.mark.sockets
async def test_it_announces_its_addresses_and_ends_with_zero() -> None:
    async with deadline():
        process = await start("--data", str(DATA), "--speed", "50", "--fault-every", "5")
        ready = json.loads(await present(process.stdout).readline())
        assert (ready["symbols"], ready["interval"], ready["speed"]) == (["BTCUSDT"], "1", 50.0)
        async with ClientSession() as session:
            async with session.get(f"{ready['rest_url']}/v5/market/time") as response:
                assert (await response.json())["retCode"] == 0
            async with session.get(f"{ready['control_url']}/faults") as response:
                assert response.status == 200
            async with session.ws_connect(f"{ready['stream_url']}/v5/public/linear") as socket:
                await socket.send_str('{"op":"subscribe","args":["kline.1.BTCUSDT"]}')
                assert (
                    json.loads((await socket.receive(deadline_s())).data)["topic"]
                    == "kline.1.BTCUSDT"
                )
                process.send_signal(signal.SIGINT)
                output, errors = await process.communicate()
    assert process.returncode == 0
    assert output == b""
    assert b"Traceback" not in errors


@pytest.mark.sockets
@pytest.mark.parametrize("way", ["null", "pipe", "closed"])
async def test_it_ends_when_standard_input_ends_whatever_that_is(way: str) -> None:
    reader, writer = os.pipe()
    descriptor = os.open(os.devnull, os.O_RDONLY) if way == "null" else reader
    command = [sys.executable, "-c", RUN, "--data", str(DATA), "--until-eof"]
    if way == "closed":
        command = ["sh", "-c", 'exec "$@" <&-', "sh", *command]
    try:
        async with deadline():
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=descriptor,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            assert json.loads(await present(process.stdout).readline())["symbols"] == ["BTCUSDT"]
            if way == "pipe":
                assert process.returncode is None
                os.close(writer)
            assert await present(process.stderr).read() == b""
            assert await process.wait() == 0
    finally:
        for number in {descriptor, reader, *([] if way == "pipe" else [writer])}:
            os.close(number)


@pytest.mark.sockets
async def test_now_is_the_wall_clock() -> None:
    async with deadline():
        process = await start("--data", str(DATA), "--now")
        ready = json.loads(await present(process.stdout).readline())
        async with ClientSession() as session:
            url = f"{ready['rest_url']}/v5/market/kline?symbol=BTCUSDT&interval=1&limit=2"
            asked_ms = SystemClock().wall_ms()
            async with session.get(url) as response:
                body = await response.json()
        assert asked_ms <= body["time"] <= SystemClock().wall_ms()
        assert int(body["result"]["list"][0][0]) == body["time"] // 60_000 * 60_000
        process.terminate()
        assert await process.wait() == 0


ROWS = walk_rows(60, seed=10)


@pytest.mark.parametrize(("length", "row"), [(60, 45), (2 * WARM_UP_BARS + 50, WARM_UP_BARS)])
async def test_time_starts_at_the_warm_up_or_half_of_shorter_data(length: int, row: int) -> None:
    async with serving(candles(walk_rows(length))) as (exchange, _):
        assert exchange.clock.now_ms() == FIRST_MS + row * MINUTE + SETTLE_MS


async def test_the_candle_before_the_start_is_final_by_rest() -> None:
    async with serving(candles(ROWS), start=20) as (exchange, client):
        rows = (await client.result("kline", symbol="BTCUSDT", interval="1"))["list"]
        closed_ms = int(rows[1][0]) + MINUTE
        assert exchange.clock.now_ms() - closed_ms >= 2_000


async def test_time_jumps_over_a_hole_that_all_symbols_share(
    caplog: pytest.LogCaptureFixture,
) -> None:
    times = [FIRST_MS + place * MINUTE for place in (*range(30), *range(500, 530))]
    data = candles(ROWS, times_ms=times)
    async with serving(data, start=20) as (exchange, client), client.stream() as stream:
        await stream.subscribe("kline.1.BTCUSDT", "publicTrade.BTCUSDT", "orderbook.1.BTCUSDT")
        with caplog.at_level(logging.WARNING):
            await exchange.advance_to(FIRST_MS + 30 * MINUTE + 2_000)
        assert exchange.clock.now_ms() == FIRST_MS + 500 * MINUTE
        assert "jumps over a hole" in caplog.text
        await exchange.advance(3 * MINUTE + 1_001)
        frames = await stream.drain()
        hole = range(FIRST_MS + 30 * MINUTE + 1_001, FIRST_MS + 500 * MINUTE)
        assert [frame["ts"] for frame in frames if frame["ts"] in hole] == []
        candle_frames = [f for f in frames if f["topic"].startswith("kline")]
        done = [e["start"] for f in candle_frames for e in f["data"] if e["confirm"]]
        assert done == [*times[20:30], *times[30:33]]
        last = next(
            f
            for f in candle_frames
            if f["data"][0]["start"] == times[29] and f["data"][0]["confirm"]
        )
        assert len(last["data"]) == 1  # no candle opens in the hole


async def test_a_hole_of_one_symbol_is_silence_on_it_and_no_jump() -> None:
    times = [FIRST_MS + place * MINUTE for place in (*range(25), *range(35, 70))]
    served = (candles(ROWS, times_ms=times), candles(walk_rows(70), symbol="ETHUSDT"))
    async with serving(*served, start=20) as (exchange, client), client.stream() as stream:
        await stream.subscribe("tickers.BTCUSDT", "kline.1.ETHUSDT")
        await exchange.advance(20 * MINUTE)
        assert exchange.clock.now_ms() == FIRST_MS + 40 * MINUTE + SETTLE_MS
        frames = await stream.drain()
        silent = range(FIRST_MS + 25 * MINUTE, FIRST_MS + 35 * MINUTE)
        assert [f for f in frames if f["topic"] == "tickers.BTCUSDT" and f["ts"] in silent] == []
        assert len([f for f in frames if f["topic"] == "kline.1.ETHUSDT"]) > 20


async def test_at_the_end_pushes_stop_and_rest_answers_on(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(candles(ROWS), start=50) as (exchange, client), client.stream() as stream:
        await stream.subscribe("kline.1.BTCUSDT", "tickers.BTCUSDT", "orderbook.1.BTCUSDT")
        with caplog.at_level(logging.WARNING):
            await exchange.advance(60 * MINUTE)
        frames = await stream.drain()
        end_ms = FIRST_MS + 60 * MINUTE
        assert max(frame["ts"] for frame in frames) <= end_ms + 1_000
        assert exchange.clock.now_ms() == end_ms + END_LINGER_MS
        assert exchange.clock.ended
        assert "data ends" in caplog.text
        await exchange.advance(MINUTE)
        assert await stream.drain() == []
        result = await client.result("kline", symbol="BTCUSDT", interval="1", limit=1)
        assert int(result["list"][0][0]) == end_ms - MINUTE
        await client.result("tickers", category="linear")
        assert (await stream.ask("ping"))["ret_msg"] == "pong"


async def test_held_time_stands_until_a_candle_topic_is_subscribed() -> None:
    settings = ExchangeSettings(candles=(candles(ROWS),), hold=True, speed=1_000.0, start=20)
    async with EmbeddedExchange(settings) as exchange, ClientSession() as session:
        client = Client(exchange, session)
        async with client.stream() as stream:
            await stream.subscribe("tickers.BTCUSDT")
            times = {(await client.get("time"))["time"] for _ in range(20)}
            assert times == {FIRST_MS + 20 * MINUTE + SETTLE_MS}
            await stream.subscribe("kline.1.BTCUSDT")
            async with deadline():
                while not any(f["data"][0]["confirm"] for f in await candle_frames(stream)):
                    pass
        assert not exchange.clock.held


async def candle_frames(stream: StreamClient) -> list[Message]:
    return [f for f in await stream.drain() if f["topic"].startswith("kline")]


async def test_control_calls_hold_time_and_set_its_speed() -> None:
    settings = ExchangeSettings(candles=(candles(ROWS),), speed=1_000.0, start=20)
    async with EmbeddedExchange(settings) as exchange, ClientSession() as session:
        url = exchange.control_url
        async with session.post(f"{url}/hold") as response:
            assert await response.json() == {"held": True}
        held_ms = exchange.clock.now_ms()
        async with session.post(f"{url}/speed", json={"speed": 60}) as response:
            assert await response.json() == {"speed": 60.0, "time": held_ms}
        clock = exchange.clock
        assert (clock.held, clock.speed, clock.now_ms()) == (True, 60.0, held_ms)
        for body in (b'{"speed": 0}', b'{"speed": 1e9}', b'{"pace": 60}', b"[]"):
            async with session.post(f"{url}/speed", data=body) as response:
                assert response.status == 400
                assert "give" in (await response.json())["error"]
        client = Client(exchange, session)
        async with client.stream() as stream:
            await stream.subscribe("kline.1.BTCUSDT")  # as a daemon that starts again
            assert not exchange.clock.held


async def test_a_port_in_use_is_one_sentence() -> None:
    async with serving(candles(ROWS)) as (exchange, _):
        port = int(exchange.rest_url.rpartition(":")[2])
        with pytest.raises(ConfigInvalid, match=f"Port {port} cannot be bound"):
            async with EmbeddedExchange(ExchangeSettings(candles=(candles(ROWS),), port=port)):
                pass


def test_settings_that_cannot_be_served_are_refused() -> None:
    with pytest.raises(ConfigInvalid, match="speed"):
        EmbeddedExchange(ExchangeSettings(candles=(candles(ROWS),), speed=0))
    with pytest.raises(ConfigInvalid, match="at least one --data"):
        EmbeddedExchange(ExchangeSettings())
    with pytest.raises(ConfigInvalid, match="each symbol"):
        EmbeddedExchange(ExchangeSettings(candles=(candles(ROWS), candles(ROWS))))
    with pytest.raises(DataInvalid, match="no interval of the exchange's data"):
        EmbeddedExchange(ExchangeSettings(candles=(candles(ROWS, interval_ms=2 * MINUTE),)))
    shares = replace(candles(ROWS), category=Category.STOCK)
    with pytest.raises(DataInvalid, match="which the exchange does not trade"):
        EmbeddedExchange(ExchangeSettings(candles=(shares,)))


async def test_two_exchanges_of_one_seed_send_the_same_bytes() -> None:
    streams = []
    for seed in (7, 7, 8):
        async with (
            serving(candles(ROWS), start=20, seed=seed) as (exchange, client),
            client.stream() as stream,
        ):
            await stream.subscribe("kline.1.BTCUSDT", "tickers.BTCUSDT", "orderbook.50.BTCUSDT")
            await exchange.advance(2 * MINUTE)
            await stream.ask("ping")
            streams.append(stream.texts)
    assert streams[0] == streams[1]
    assert streams[0] != streams[2]


# ---------------------------------------------------------------- the wall clock

WALL_MS = FIRST_MS + 500 * 24 * 60 * MINUTE + 12_345


@pytest.mark.parametrize("start", [None, 0, 50])
async def test_candles_are_shifted_by_whole_bars_to_the_wall_clock(start: int | None) -> None:
    served = (candles(ROWS), candles(ROWS, symbol="ETHUSDT"))
    settings = ExchangeSettings(candles=served, manual=True, start=start, wall_ms=lambda: WALL_MS)
    async with EmbeddedExchange(settings) as exchange:
        assert exchange.clock.now_ms() == WALL_MS
        for market in exchange.venue.markets.values():
            row = market.base.row_at(WALL_MS)
            assert row == (len(ROWS) * 3 // 4 if start is None else start)
            assert market.open_ms(row) == WALL_MS // MINUTE * MINUTE


async def test_the_wall_clock_runs_on_through_holes_and_past_the_data() -> None:
    times = [FIRST_MS + place * MINUTE * (1 if place < 55 else 3) for place in range(len(ROWS))]
    data = candles(ROWS, times_ms=times)
    settings = ExchangeSettings(candles=(data,), manual=True, start=50, wall_ms=lambda: WALL_MS)
    async with EmbeddedExchange(settings) as exchange:
        await exchange.advance(15 * MINUTE)
        assert exchange.clock.now_ms() == WALL_MS + 15 * MINUTE
        await exchange.advance(10_000 * MINUTE)
        assert exchange.clock.now_ms() == WALL_MS + 10_015 * MINUTE
