"""The chart of a run: its trades, their stops, and the strategy's notes."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import present
from command_line import Cli
from records import rows

from tracepaper.daemon.cli import invoke
from tracepaper.replay.document.charts import BarLayer, MarkLayer
from tracepaper.replay.report.report import build_report
from tracepaper.replay.report.run_charts import PICTURES, trades_chart
from tracepaper.replay.run import open_run
from tracepaper.storage.database.reader import Reader

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


@pytest.mark.parametrize("name", PICTURES)
def test_each_picture_is_drawn_by_command_and_from_python_alike(
    run: Path, tmp_path: Path, name: str
) -> None:
    of_command = drawn(run, f"{name}.svg", "--picture", name)
    with Reader.open(run) as reader:
        run_id = reader.find("last")
    open_run(run_id, run).report(chart=tmp_path / "python.svg", picture=name)
    assert (tmp_path / "python.svg").read_text("utf-8") == of_command


def test_what_a_notebook_shows_is_saved_elsewhere(run: Path, tmp_path: Path) -> None:
    opened = open_run("last", run)
    for shown, name, begin in (
        (opened.plot(), "run.png", b"\x89PNG"),
        (opened.show(), "run.html", b"<!doctype html>"),
    ):
        assert f".save({name!r})" in repr(shown)
        shown.save(tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(begin)


def test_each_closed_trade_is_a_dot_and_in_one_bar_of_its_sign(run: Path) -> None:
    with Reader.open(run) as reader:
        run_id = reader.find("last")
    dots, histogram = present(trades_chart(build_report(run, run_id))).panels
    profits = [
        profit for (profit,) in rows(run, "SELECT profit FROM v_trades WHERE closed_ms IS NOT NULL")
    ]
    gains = sum(profit > 0 for profit in profits)
    marks = {mark.name: mark for mark in dots.layers if isinstance(mark, MarkLayer)}
    assert {name: len(mark.x) for name, mark in marks.items()} == {
        "gain": gains, "loss": len(profits) - gains,
    }  # fmt: skip
    (bars,) = (layer for layer in histogram.layers if isinstance(layer, BarLayer))
    counts: dict[str, float] = dict.fromkeys(bars.roles, 0.0)
    for role, count in zip(bars.roles, bars.y, strict=True):
        counts[role] += count or 0.0
    assert counts == {"gain": gains, "loss": len(profits) - gains}


def test_a_run_without_trades_and_events_has_no_such_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.toml"
    config.write_text('[strategy]\nname = "sma_cross"\nfast = 3\nslow = 7\n')
    database = tmp_path / "run.db"
    given = ["--data", str(CANDLES), "--to", "2025-05-26T07:36", "--db", str(database)]
    assert invoke(["replay", "-c", str(config), *given]) == 0
    cli, report = Cli(capsys), ("report", "last", "--db", database)
    for picture, sentence in (
        ("trades", "closed no trade; draw its price or equity instead"),
        ("events", "has no event that would send a notice; draw its price"),
        ("equities", "'equities' is no picture; write price, equity, trades or events"),
    ):
        answer = cli(*report, "--chart", tmp_path / "none.svg", "--picture", picture)
        assert answer.code == (2 if picture == "equities" else 1)
        assert sentence in answer.err
