"""A daemon ships its steps to a real PostgreSQL, and trades on if that fails."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any, cast

import pytest
from bybit_server import ScriptedServer
from daemon_under_test import RunningDaemon, daemon
from fleet_cases import assert_same
from postgres_server import Cluster
from waiting import until

from tracepaper.daemon.cli import invoke
from tracepaper.daemon.http.client import ask
from tracepaper.daemon.session import background
from tracepaper.storage.fleet.overview import overview
from tracepaper.storage.fleet.pull import pull

pytestmark = pytest.mark.sockets

KEYS = {"steps", "lag_steps", "lag_s", "errors", "error", "holes"}


async def shipper_of(database: Path) -> dict[str, Any]:
    status = await asyncio.to_thread(ask, database, "/status")
    return cast("dict[str, Any]", status["shipping"])


async def until_told(running: RunningDaemon, database: Path, condition: Any) -> dict[str, Any]:
    while True:
        if running.task.done():
            running.task.result()
            raise AssertionError("the daemon ended by itself")
        state = await shipper_of(database)
        if condition(state):
            return state
        await asyncio.sleep(0.05)


async def test_a_daemon_ships_every_step_and_its_end(
    tmp_path: Path, postgres: Cluster, fleet_url: str
) -> None:
    path, back = tmp_path / "run.db", tmp_path / "back.db"
    async with (
        ScriptedServer() as server,
        daemon(server, path, storage={"ship_to": fleet_url}) as running,
    ):
        await running.close_bars(12)
        state = await until_told(
            running, path, lambda state: state["steps"] >= len(running.steps) and not state["error"]
        )
        assert set(state) == KEYS
        await until(
            lambda: [run.health for run in overview(fleet_url)] in (["running"], ["not ready"]),
            poll_s=0.1,
        )
        (run,) = overview(fleet_url)
        assert (run.host, run.file) == (socket.gethostname(), str(path))
        assert run.equity is not None
        assert run.last_decision is not None
        assert "linear:BTCUSDT" in run.last_decision
    # The process outlives the daemon until the run's end has arrived there.
    ended = "SELECT count(*) FROM v_runs WHERE ended_ms IS NOT NULL"
    await until(lambda: postgres.sql(fleet_url, ended) == [(1,)], poll_s=0.1)
    pull(fleet_url, back)
    assert_same(path, back)
    (run,) = overview(fleet_url)
    assert (run.health, run.alarms) == ("ended", ())


async def test_a_shipper_that_is_killed_is_begun_again(
    tmp_path: Path, fleet_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "PAUSE_S", (0.01, 0.1))
    path, back = tmp_path / "run.db", tmp_path / "back.db"
    begun: list[int] = []
    popen: Any = subprocess.Popen

    def remembered(*words: Any, **options: Any) -> Any:
        process = popen(*words, **options)
        begun.append(process.pid)
        return process

    monkeypatch.setattr(subprocess, "Popen", remembered)
    async with (
        ScriptedServer() as server,
        daemon(server, path, storage={"ship_to": fleet_url}) as running,
    ):
        await running.close_bars(3)
        await until_told(running, path, lambda state: state["steps"] >= 3)
        os.kill(begun[0], signal.SIGKILL)
        await running.close_bars(3)
        document = await until_told(
            running,
            path,
            lambda state: len(begun) > 1 and state["errors"] and not state["lag_steps"]
            and not state["error"] and state["steps"] >= len(running.steps),
        )  # fmt: skip
        assert document["errors"] >= 1
        await running.until(lambda: True)
    await until(lambda: [run.health for run in overview(fleet_url)] == ["ended"], poll_s=0.1)
    pull(fleet_url, back)
    assert_same(path, back)


async def test_without_a_server_the_daemon_decides_as_ever(
    tmp_path: Path, postgres: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.db"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    async with (
        ScriptedServer() as server,
        daemon(server, path, storage={"ship_to": postgres.url("fleet", port=port)}) as running,
    ):
        await running.close_bars(5)
        document = await until_told(running, path, lambda state: state["error"])
        assert "does not take the connection" in document["error"]
        assert document["errors"] >= 1
        await until_told(running, path, lambda state: state["lag_steps"] >= 5)
        status = await asyncio.to_thread(ask, path, "/status")
        assert running.decided() == 5
        code = await asyncio.to_thread(invoke, ["status", "--db", str(path)])
        assert code == 1  # it warms up
        assert "shipping: The fleet's server at" in " ".join(capsys.readouterr().out.split())
        assert "is warming up until" in str(status["not_ready"])
