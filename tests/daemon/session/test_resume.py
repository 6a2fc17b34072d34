"""A start resumes the right run, rejects broken states, and knows whether its market was served."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import storage_cases as cases
from bybit_server import ScriptedServer
from daemon_under_test import daemon, settings
from msgspec.structs import replace

from tracepaper.daemon.config.loading import load
from tracepaper.daemon.http.client import ask
from tracepaper.daemon.session.daemon import Daemon
from tracepaper.daemon.session.resume import was_served
from tracepaper.strategies.errors import InvariantBroken
from tracepaper.strategies.types.market import RunKind

SERVED = load(None, {"market": {"symbols": ["BTCUSDT", "ETHUSDT"]}})


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({}, True),  # some of the traded symbols
        ({"symbols": ["SOLUSDT"]}, False),
        ({"category": "spot"}, False),
    ],
)
def test_a_market_that_was_traded_was_served(
    tmp_path: Path, sections: dict[str, object], expected: bool
) -> None:
    path = tmp_path / "run.db"
    served = replace(cases.run("served"), kind=RunKind.LIVE, config=SERVED.canonical_json())
    cases.write_run(path, cases.plain_steps(3), of=served)
    assert was_served(load(None, {"market": sections}), RunKind.LIVE, path) is expected


async def test_a_run_whose_account_is_gone_does_not_go_on(tmp_path: Path) -> None:
    database = tmp_path / "run.db"
    async with ScriptedServer() as server:
        async with daemon(server, database) as running:
            await running.close_bars(2)
        with closing(sqlite3.connect(database, isolation_level=None)) as db:
            db.execute("DELETE FROM states")
        service = Daemon(load(None, settings(server)), database, kind=RunKind.LIVE)
        with pytest.raises(InvariantBroken, match="steps store no account; run `tracepaper"):
            await service.run()


async def test_a_halt_is_seen_from_the_start_of_the_next_daemon_on(tmp_path: Path) -> None:
    database = tmp_path / "run.db"
    body: dict[str, object] = {"kind": "HALT", "note": "to see"}
    async with ScriptedServer() as server:
        async with daemon(server, database) as running:
            await running.close_bars(1)
            await asyncio.to_thread(ask, database, "/command", body)
        async with daemon(server, database) as running:
            await running.until(lambda: running.steps)
            status = await asyncio.to_thread(ask, database, "/status")
    assert status["state"] == "halted"
