"""A start on an exchange that has too few bars of the past: held, and until when is said."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest
from bybit_server import START_MS, ScriptedServer
from daemon_under_test import daemon
from programs import BIN, Program, pointing_at

from tracepaper.daemon.config.loading import load
from tracepaper.daemon.http.client import ask
from tracepaper.daemon.session.daemon import _shorter_windows as shorter_windows
from tracepaper.daemon.terminal import console as log_lines
from tracepaper.replay.samples import DEMO_CANDLES
from tracepaper.strategies.units import minute_text

HOUR = 3_600_000


async def test_a_listing_without_a_past_is_held_until_a_time_that_is_said(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log_lines.configure(output="json")
    database = tmp_path / "run.db"
    given = {"strategy": {"name": "trend"}, "model": {"checkpoint": "none"}}
    async with ScriptedServer() as server, daemon(server, database, **given) as running:
        await running.close_bars(2)
        status = await asyncio.to_thread(ask, database, "/status")
        refused = {step.decision.refused_by for step in running.decisions() if step.decision}
    # Of the hour that has begun a part is missing; 64 days from the next one on.
    until = minute_text(START_MS // HOUR * HOUR + (1 + 64 * 24) * HOUR)
    assert status["not_ready"] == [f"linear:BTCUSDT is warming up until {until}"]
    assert refused == {"warm"}
    [line] = [
        line for line in capfd.readouterr().err.splitlines() if '"event": "warming up"' in line
    ]
    assert f'"until": "{until}"' in line
    assert "trend_windows" not in line  # nothing is known that any would suffice for


@pytest.mark.slow
def test_windows_for_which_the_past_of_an_exchange_suffices_are_named_and_trade(
    tmp_path: Path,
) -> None:
    """The bundled days are five at the exchange's start, and a trend looks back on sixty-four."""
    served = ("exchange", "--data", str(DEMO_CANDLES), "--speed", "600")
    programs = [Program((str(BIN / "tracepaper"), *served), tmp_path, name="exchange")]
    exchange = programs[0]
    try:
        exchange.wait_until(lambda: "\n" in exchange.out)
        extra = pointing_at(exchange.out)
        programs.append(held := started(tmp_path, "held", extra))
        held.wait_until(lambda: '"event": "decision"' in held.err)
        assert held.stop().code == 0
        [advice] = re.findall(r'"warming up".*it suffices for.*trend_windows = (\[.*?\])', held.err)
        windows = json.loads(advice.replace("\\", ""))
        assert windows == ["6h", "12h", "1d", "2d"]
        chosen = {"TRACEPAPER_STRATEGY__TREND_WINDOWS": json.dumps(windows)}
        programs.append(trading := started(tmp_path, "trading", extra | chosen))
        trading.wait_until(lambda: '"refused_by": null' in trading.err)
        assert trading.stop().code == 0
        assert "warming up" not in trading.err
    finally:
        for program in programs:
            program.kill()


def test_of_several_strategies_each_trend_has_windows_of_its_own() -> None:
    def of(name: str, **keys: object) -> dict[str, object]:
        return {"name": name, "share": "0.3", **keys}

    month, trends = (
        30 * 24 * HOUR,
        {"long": of("trend"), "short": of("trend", trend_windows=["6h"])},
    )
    several = load(None, {"strategies": {**trends, "cross": of("sma_cross")}})
    sentence = shorter_windows(several, 64 * 24 * HOUR - month)
    windows = '["1d", "2d", "4d", "8d"]'
    assert sentence == f"; it suffices for [strategies.long] trend_windows = {windows}"
    alone = load(None, {"strategy": {"name": "trend"}})
    expected = f"; it suffices for [strategy] trend_windows = {windows}"
    assert shorter_windows(alone, 64 * 24 * HOUR - month) == expected
    crosses = load(None, {"strategies": {"a": of("sma_cross"), "b": of("sma_cross")}})
    assert shorter_windows(crosses, month) == ""


def started(folder: Path, name: str, settings: dict[str, str]) -> Program:
    return Program(
        (str(BIN / "tracepaper"), "run", "--db", f"{name}.db"), folder, name=name, extra=settings
    )


async def test_a_start_with_all_bars_says_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log_lines.configure(output="json")
    async with ScriptedServer() as server, daemon(server, tmp_path / "run.db") as running:
        for minute in range(-20, 0):
            server.add_candle(START_MS + minute * 60_000)
        await running.close_bars(2)
    assert "warming up" not in capfd.readouterr().err
