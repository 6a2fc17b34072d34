"""The command announces itself in one line and ends in good order."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import pytest
from aiohttp import ClientSession

from tracepaper.daemon.clock import SystemClock

DATA = Path(__file__).parents[2] / "data" / "candles" / "bybit_linear_BTCUSDT_1m_2022-12-13.csv.gz"
RUN = "import typer; from tracepaper.replay.commands.exchange import exchange; typer.run(exchange)"
START_WITHIN_S = 30.0


async def start(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", RUN, *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_announces_its_addresses_and_ends_with_zero(number: signal.Signals) -> None:
    async with asyncio.timeout(START_WITHIN_S):
        process = await start("--data", str(DATA), "--speed", "50", "--fault-every", "5")
        assert process.stdout is not None
        ready = json.loads(await process.stdout.readline())
        assert (ready["symbols"], ready["interval"], ready["speed"]) == (["BTCUSDT"], "1", 50.0)
        async with ClientSession() as session:
            async with session.get(f"{ready['rest_url']}/v5/market/time") as response:
                assert (await response.json())["retCode"] == 0
            async with session.get(f"{ready['control_url']}/faults") as response:
                assert response.status == 200
            async with session.ws_connect(f"{ready['stream_url']}/v5/public/linear") as socket:
                await socket.send_str('{"op":"subscribe","args":["kline.1.BTCUSDT"]}')
                assert json.loads((await socket.receive(5)).data)["topic"] == "kline.1.BTCUSDT"
                process.send_signal(number)
                output, errors = await process.communicate()
    assert process.returncode == 0
    assert output == b""
    assert b"Traceback" not in errors


async def test_time_runs_by_itself_and_says_where_the_data_ends() -> None:
    async with asyncio.timeout(START_WITHIN_S):
        process = await start("--data", str(DATA), "--speed", "60000", "--start", "700")
        assert process.stdout is not None
        assert process.stderr is not None
        ready = json.loads(await process.stdout.readline())
        assert b"data ends" in await process.stderr.readline()
        async with ClientSession() as session:
            url = f"{ready['rest_url']}/v5/market/kline?symbol=BTCUSDT&interval=1&limit=1"
            async with session.get(url) as response:
                row = (await response.json())["result"]["list"][0]
        assert int(row[0]) == ready["end_ms"] - 60_000
        process.terminate()
        assert await process.wait() == 0


@pytest.mark.parametrize("way", ["null", "file", "pipe", "closed"])
async def test_it_ends_when_standard_input_ends_whatever_that_is(way: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not read\n")
    ends = {"null": Path(os.devnull), "file": tmp_path / "text"}
    reader, writer = os.pipe()
    descriptor = os.open(ends[way], os.O_RDONLY) if way in ends else reader
    command = [sys.executable, "-c", RUN, "--data", str(DATA), "--until-eof"]
    if way == "closed":
        command = ["sh", "-c", 'exec "$@" <&-', "sh", *command]
    try:
        async with asyncio.timeout(START_WITHIN_S):
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=descriptor,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            assert process.stdout is not None
            assert process.stderr is not None
            assert json.loads(await process.stdout.readline())["symbols"] == ["BTCUSDT"]
            if way == "pipe":
                assert process.returncode is None
                os.close(writer)
            assert await process.stderr.read() == b""
            assert await process.wait() == 0
    finally:
        for number in {descriptor, reader, *([] if way == "pipe" else [writer])}:
            os.close(number)


async def test_now_is_the_wall_clock() -> None:
    async with asyncio.timeout(START_WITHIN_S):
        process = await start("--data", str(DATA), "--now")
        assert process.stdout is not None
        ready = json.loads(await process.stdout.readline())
        async with ClientSession() as session:
            url = f"{ready['rest_url']}/v5/market/kline?symbol=BTCUSDT&interval=1&limit=2"
            async with session.get(url) as response:
                body = await response.json()
        wall_ms = SystemClock().wall_ms()
        assert 0 <= wall_ms - body["time"] < 5_000
        assert int(body["result"]["list"][0][0]) == body["time"] // 60_000 * 60_000
        process.terminate()
        assert await process.wait() == 0
