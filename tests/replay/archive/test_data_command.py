"""``tracepaper data``, as it is typed: candles and recorded books."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from depth_cases import FIRST_MS as FIRST_BOOK_MS
from depth_cases import walk, write
from exchange_client import FIRST_MS, MINUTE, candles
from programs import ROOT
from typer.testing import CliRunner
from waiting import deadline

from tracepaper.replay.archive import read_candles
from tracepaper.replay.commands.data import app
from tracepaper.replay.exchange.server import EmbeddedExchange, ExchangeSettings
from tracepaper.strategies.units import iso

SAMPLES = Path(__file__).parents[2] / "data" / "candles"
BTC = str(SAMPLES / "binance_um_BTCUSDT_1m_2025-05.csv.gz")
LINEAR = str(ROOT / "replay" / "samples" / "linear_session_2026-08-09_short.jsonl.gz")
SPOT = str(SAMPLES / "binance_spot_BTCUSDT_1h_2017-2018.csv.gz")


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.stdout


def test_check_reports_each_file_and_fails_for_a_bad_one(tmp_path: Path) -> None:
    text = run("check", BTC, SPOT)
    assert "linear:BTCUSDT, 1m, 1,500 candles that open from 2025-05-04T15:33:00Z" in text
    assert "prices to 0.1, volume to 0.001, turnover missing" in text
    assert "43 candles off the grid dropped" in text
    bad = tmp_path / "BTCUSDT.csv"
    bad.write_text("time,open\n1,2\n")
    text = run("check", str(bad), BTC, code=1)
    assert f"✗ {bad} has no column high, low, close, volume" in text
    assert "✓" in text


async def fetched(tmp_path: Path, *arguments: str) -> tuple[int, list[int]]:
    """Fetch from an exchange of 300 minutes in a process of its own; return bars and times."""
    import asyncio
    import sys

    served = candles([(1_000, 1_010, 990, 1_005, 7)] * 300)
    settings = ExchangeSettings(candles=(served,), manual=True, start=250)
    async with EmbeddedExchange(settings) as exchange:
        (tmp_path / "tracepaper.toml").write_text(
            f'[exchange]\nrest_url = "{exchange.rest_url}"\nrequests_per_s = 50.0\n'
        )
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "from tracepaper.replay.commands.data import app; app()",
            "fetch", "BTCUSDT", "--json", *arguments,
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        async with deadline():
            output, _ = await process.communicate()
    assert process.returncode == 0
    (row,) = json.loads(output)["series"]
    return row["bars"], read_candles(tmp_path / row["file"]).open_time_ms.tolist()


@pytest.mark.sockets
async def test_fetch_fills_a_file_and_goes_on_where_it_ended(tmp_path: Path) -> None:
    middle = iso(FIRST_MS + 100 * MINUTE)
    bars, times = await fetched(tmp_path, "--from", iso(FIRST_MS), "--to", middle)
    assert bars == 100
    bars, times = await fetched(tmp_path)
    assert bars == 150
    assert times == [FIRST_MS + i * MINUTE for i in range(250)]


def test_recorded_frames_become_a_file_that_check_reads(tmp_path: Path) -> None:
    out = str(tmp_path / "btc.depth")
    text = run("record", "BTCUSDT", "--from", LINEAR, "--every", "50", "--out", out)
    assert "linear:BTCUSDT, 50 levels a side each 50 ms, from frames" in text
    assert "0 gaps" in text
    assert run("check", out) == text
    (file,) = json.loads(run("check", out, "--json"))["files"]
    assert (file["valid"], file["instrument"], file["gaps"]) == (True, "linear:BTCUSDT", [])
    assert file["books"] * 50 == file["recorded_ms"] > 1_000
    assert json.loads(run("record", "BTCUSDT", "--from", LINEAR, "--out", out + "1", "--json"))


def test_check_says_gaps_and_a_torn_end(tmp_path: Path) -> None:
    path = tmp_path / "a.depth"
    write(path, walk(70))
    for number in range(1, 8):
        write(path, walk(1, first_ms=FIRST_BOOK_MS + number * 1_000_000), cause="stopped")
    with path.open("ab") as file:
        file.write(b"\x1f\x8b\x08\x00TP")
    text = run("check", str(path))
    assert "7 gaps: 2025-01-01T00:01:09Z to 2025-01-01T00:16:40Z (stopped); " in text
    assert "and 2 more" in text
    assert "The last 6 bytes of" in text
