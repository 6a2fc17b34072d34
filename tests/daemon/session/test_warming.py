"""A start whose exchange has too few past bars holds the symbol and reports until when."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from bybit_server import START_MS, ScriptedServer
from daemon_under_test import daemon

from tracepaper.daemon.http.client import ask
from tracepaper.daemon.terminal import console as log_lines
from tracepaper.strategies.units import minute_text

HOUR = 3_600_000


async def test_a_listing_without_a_past_is_held_until_a_time_that_is_said(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log_lines.configure(output="json")
    database = tmp_path / "run.db"
    given: dict[str, Any] = {"strategy": {"name": "trend"}, "model": {"checkpoint": "none"}}
    async with ScriptedServer() as server, daemon(server, database, **given) as running:
        await running.close_bars(2)
        status = await asyncio.to_thread(ask, database, "/status")
        refused = {step.decision.refused_by for step in running.decisions() if step.decision}
    # The current hour is incomplete, so the 64 days begin with the next one.
    until = minute_text(START_MS // HOUR * HOUR + (1 + 64 * 24) * HOUR)
    holds = "it has 0 of 1,536 hours"
    assert status["not_ready"] == [f"linear:BTCUSDT is warming up until {until}; {holds}"]
    assert refused == {"warm"}
    [line] = [
        line for line in capfd.readouterr().err.splitlines() if '"event": "warming up"' in line
    ]
    assert f'"until": "{until}"' in line


async def test_a_start_with_all_bars_says_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log_lines.configure(output="json")
    async with ScriptedServer() as server, daemon(server, tmp_path / "run.db") as running:
        for minute in range(-20, 0):
            server.add_candle(START_MS + minute * 60_000)
        await running.close_bars(2)
    assert "warming up" not in capfd.readouterr().err
