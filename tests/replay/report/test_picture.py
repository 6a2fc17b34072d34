"""The chart of a run: its trades, their stops, and the strategy's notes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tracepaper.daemon.cli import invoke

ROOT = Path(__file__).parents[3]
CANDLES = ROOT / "replay/samples/binance_um_BTCUSDT_1m_2025-05-26.csv.gz"
RSI = ROOT / "strategies/examples/rsi_reversion.toml"
STOP = "stroke-dasharray: 1"  # of a dotted line


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    database = tmp_path_factory.mktemp("chart") / "run.db"
    given = ["--data", str(CANDLES), "--to", "2025-05-27", "--db", str(database)]
    assert invoke(["replay", "-c", str(RSI), *given]) == 0
    return database


def drawn(run: Path, name: str, *more: str) -> str:
    file = run.parent / name
    assert invoke(["report", "last", "--db", str(run), "--chart", str(file), *more]) == 0
    return file.read_text("utf-8")


def test_a_chart_shows_trades_stops_and_notes_and_is_the_same_again(run: Path) -> None:
    first = drawn(run, "first.svg")
    assert "linear:BTCUSDT: RsiReversion" in first
    assert STOP in first
    assert ">stop<" in first
    assert ">rsi<" in first
    assert ">streak<" in first
    assert first == drawn(run, "second.svg")


def test_a_run_without_notes_has_one_panel(tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text('[strategy]\nname = "sma_cross"\nfast = 3\nslow = 7\n')
    database = tmp_path / "run.db"
    given = ["--data", str(CANDLES), "--to", "2025-05-26T10:00", "--db", str(database)]
    assert invoke(["replay", "-c", str(config), *given]) == 0
    text = drawn(database, "plain.svg")
    assert ">noted<" not in text
    assert ">stop<" not in text
