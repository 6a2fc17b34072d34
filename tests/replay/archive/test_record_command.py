"""``tracepaper data record`` and what ``data check`` says of its files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from depth_cases import FIRST_MS, frame, walk, write
from programs import ROOT
from typer.testing import CliRunner

from tracepaper.daemon.cli import invoke
from tracepaper.replay.archive.order_book import depth_quality
from tracepaper.replay.commands.data import app

DATA = ROOT / "tests" / "data" / "exchange"
LINEAR = str(ROOT / "replay" / "samples" / "linear_session_2026-08-09_short.jsonl.gz")
SPOT = str(DATA / "spot_orderbook1_2025-06-13_short.txt.gz")


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


def test_a_session_of_spot_and_plain_frames_are_read_as_well(tmp_path: Path) -> None:
    out = str(tmp_path / "spot.depth")
    arguments = ("record", "OPUSDC", "--depth", "1", "--every", "10", "--from", SPOT, "--out", out)
    assert "spot:OPUSDC, 1 levels a side each 10 ms" in run(*arguments)
    lines = [
        frame("snapshot", [["1.0", "1"]], [["1.1", "1"]], ts=FIRST_MS, u=4),
        frame("delta", [["1.0", "2"]], [], ts=FIRST_MS + 5_000, u=5),
    ]
    (tmp_path / "plain.jsonl.gz").write_bytes(gzip.compress(b"\n".join(lines)))
    plain = str(tmp_path / "plain.jsonl.gz")
    run("record", "BTCUSDT", "--from", plain, "--out", str(tmp_path / "plain.depth"))
    assert depth_quality(tmp_path / "plain.depth").books == 5


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


def test_wrong_usage_is_one_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.depth"
    zoneless = tmp_path / "zoneless.jsonl"
    body = frame("snapshot", [["1.0", "1"]], [["1.1", "1"]], ts=FIRST_MS, u=4).decode()
    entry = {"t": "recv", "ts": "2025-01-01T00:00:00", "data": body}
    zoneless.write_text(json.dumps(entry) + "\n", encoding="utf-8")
    wrong = {
        (
            "--from",
            LINEAR,
            "--depth",
            "500",
        ): "holds 200 levels of BTCUSDT; give --depth 200",
        ("--from", SPOT): "holds no order book of BTCUSDT; its symbols are ",
        ("--from", LINEAR, "--url", "http://127.0.0.1:1"): "leave out --url and --for",
        ("--from", str(zoneless)): "line 1: not a recorded frame",
        ("--from", str(tmp_path / "none")): "cannot be read",
        ("--from", LINEAR, "--depth", "0"): "--depth is 0: give 1 to 1000",
        ("--from", LINEAR, "--every", "0"): "--every is 0: give 10 to 3,600,000",
        ("--url", "127.0.0.1:1"): "write it as http://127.0.0.1:8080",
        ("--for", "soon"): "write a time such as 30s, 10m or 8h",
        ("--for", "0s"): "write a time such as 30s, 10m or 8h",
    }
    for arguments, sentence in wrong.items():
        assert invoke(["data", "record", "BTCUSDT", "--out", str(out), *arguments]) in (1, 2)
        error = capfd.readouterr().err.strip()
        assert sentence in error, arguments
        assert "\n" not in error, arguments
    assert not out.exists()
