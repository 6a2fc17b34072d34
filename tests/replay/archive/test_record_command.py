"""``tracepaper data record`` and what ``data check`` says of its files."""

from __future__ import annotations

import json
from pathlib import Path

from depth_cases import FIRST_MS, walk, write
from programs import ROOT
from typer.testing import CliRunner

from tracepaper.replay.commands.data import app

LINEAR = str(ROOT / "replay" / "samples" / "linear_session_2026-08-09_short.jsonl.gz")


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.stdout


def test_recorded_frames_become_a_file_that_check_reads(tmp_path: Path) -> None:
    out = str(tmp_path / "btc.depth")
    text = run("record", "BTCUSDT", "--from", LINEAR, "--every", "50", "--out", out)
    assert "linear:BTCUSDT, 50 levels a side each 50 ms, from frames" in text
    assert "0 gaps" in text
    assert run("check", out) == text
    (found,) = json.loads(run("check", out, "--json"))["files"]
    assert (found["valid"], found["instrument"], found["gaps"]) == (True, "linear:BTCUSDT", [])
    assert found["books"] * 50 == found["recorded_ms"] > 1_000
    assert json.loads(run("record", "BTCUSDT", "--from", LINEAR, "--out", out + "1", "--json"))


def test_check_says_gaps_and_a_torn_end(tmp_path: Path) -> None:
    path = tmp_path / "a.depth"
    write(path, walk(70))
    for number in range(1, 8):
        write(path, walk(1, first_ms=FIRST_MS + number * 1_000_000), cause="stopped")
    with path.open("ab") as file:
        file.write(b"\x1f\x8b\x08\x00TP")
    text = run("check", str(path))
    assert "7 gaps: 2025-01-01T00:01:09Z to 2025-01-01T00:16:40Z (stopped); " in text
    assert "and 2 more" in text
    assert "The last 6 bytes of" in text
