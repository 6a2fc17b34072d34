"""The end of a run: what a fill that only changed a size is told by, and how long a bar is."""

from __future__ import annotations

import io
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from exchange_client import candles as made_candles
from exchange_client import walk_rows
from report_cases import SAMPLE
from rich.console import Console

from tracepaper.daemon.config.loading import load
from tracepaper.replay.api import backtest
from tracepaper.replay.backtest.build import build
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.replay.backtest.run import Tally, run_replay
from tracepaper.replay.report.figures import tables
from tracepaper.replay.report.report import build_report
from tracepaper.replay.report.terminal import FILLS_SHOWN, Summary, show_summary, summarise
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.run_views import Row, RunViews

PARAMS = {"trend_sized_by": "ewma", "trend_windows": ["12h", "1d", "2d"]}


@pytest.fixture(scope="module")
def sized(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Replay the trend, sized by the volatility of its closes."""
    path = tmp_path_factory.mktemp("sized") / "run.db"
    config = {"sizing": {"rebalance": "0.25"}}
    made = backtest("trend", str(SAMPLE), params=PARAMS, config=config, db=path)
    return path, made.run_id


def rows(path: Path, run_id: str, view: str) -> list[Row]:
    with Reader.open(path) as reader:
        return RunViews(reader.connection, run_id).rows(view)


def test_a_fill_that_changed_a_size_says_what_changed_it(sized: tuple[Path, str]) -> None:
    path, run_id = sized
    fills = rows(path, run_id, "v_fills")
    noted: dict[int, dict[str, float]] = {}
    for row in rows(path, run_id, "v_notes"):
        noted.setdefault(row["sequence"], {})[row["name"]] = row["number"]
    told = summarise(path, run_id).fills
    assert len(told) == FILLS_SHOWN < len(fills)
    assert {row["reason"] for row in fills[-FILLS_SHOWN:]} == {"trend up"}
    before, *shown = fills[-FILLS_SHOWN - 1 :]
    for fill, said in zip(shown, told, strict=True):
        now, then = (noted[int(of["order_id"].partition("-")[0])] for of in (fill, before))
        change, _, cause = said["reason"].partition(": ")
        assert change == ("more" if fill["side"] == "BUY" else "less")
        moved_by = {
            "trend": now["trend"] / then["trend"],
            "volatility": (now["size"] / now["trend"]) / (then["size"] / then["trend"]),
        }
        pick = max if change == "more" else min
        assert cause.startswith(pick(moved_by, key=moved_by.__getitem__))
        before = fill
    assert {said["reason"] for said in told} >= {"less: trend weaker", "more: trend stronger"}


def test_the_bar_of_what_hardly_ever_happened_is_not_full(sized: tuple[Path, str]) -> None:
    summary = summarise(*sized)
    rare = replace(summary, unfilled=(("size below the step", 1),), decisions=12_000)
    (line,) = [one for one in shown(rare).splitlines() if "below the step" in one]
    assert "0.0 %" in line
    assert "█" not in line


def test_a_run_s_ratios_are_over_the_configured_risk_free_rate() -> None:
    opens = [1_735_689_600_000 + place * 14_400_000 for place in range(6 * 45)]
    closes = [100.0 + place % 40 + place / 10 for place in range(len(opens))]
    columns = dict.fromkeys(("open", "high", "low", "close"), closes)
    data = {"BTCUSDT": {"open_time": opens, **columns, "volume": [1.0] * len(opens)}}
    base = {"market": {"interval": "240"}, "execution": {"model": "next_open"}}
    runs = []
    for report in ({}, {"risk_free": "0"}, {"risk_free": "0.05"}):
        config = base | {"report": report}
        with backtest("sma_cross", data, params={"fast": 5, "slow": 20}, config=config) as run:
            told = " ".join(str(run.report()).split())
            summary: dict[str, Any] = dict(run.summary)
            runs.append((summary, told, run.frames.run))
    (plain, said, row), (zero, _, _), (rated, told, other) = runs
    assert plain == zero
    assert "no risk-free rate" in said
    assert rated["sharpe"] < plain["sharpe"]
    assert rated["sortino"] < plain["sortino"]
    assert "a risk-free rate of 5.00%" in told
    assert rated["return"] == plain["return"]
    assert row["config_sha256"] == other["config_sha256"]  # it decides nothing


def shown(summary: Summary) -> str:
    console = Console(file=io.StringIO(), width=100)
    show_summary(console, summary)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(("share", "reserve"), [("0.3", "10,000.00"), ("0.4", None)])
def test_what_no_strategy_has_a_share_of_has_a_row(
    tmp_path: Path, share: str, reserve: str | None
) -> None:
    cross = {"name": "sma_cross", "fast": 5, "slow": 20}
    config = {"strategies": {"a": {"share": share, **cross}, "b": {"share": "0.6", **cross}}}
    path, candles = tmp_path / "run.db", made_candles(walk_rows(200))
    audit = SqlAuditLog.open(path)
    try:
        replay = build(load(None, config), MarketData([candles]), started_at_ms=0)
        run_replay(replay, audit, Tally())
    finally:
        audit.close()
    summary = summarise(path, replay.run.run_id)
    equity = {row["account"]: Decimal(str(row["equity"])) for row in summary.accounts}
    own = equity.pop("this run")
    assert sum(equity.values()) == pytest.approx(own)
    assert ("in reserve" in equity) is (reserve is not None)
    made = tables(build_report(path, replay.run.run_id))
    notes = [note for each in made.values() for note in each.notes]
    report = " ".join(map(str, notes))
    said = "The reserve, of which no strategy has a share, is"
    assert (f"{said} {reserve} in cash." in report) if reserve else said not in report


def test_a_run_that_never_left_its_warm_up_says_how_many_bars_it_needs(tmp_path: Path) -> None:
    data, path = made_candles(walk_rows(30)), tmp_path / "run.db"
    for slow, said in ((40, True), (20, False)):
        run = backtest("sma_cross", data, params={"fast": 5, "slow": slow}, db=path)
        words = " ".join(shown(summarise(path, run.run_id)).split())
        assert ("No bar left the warm-up, which had 30 of 40 bars: give" in words) is said
