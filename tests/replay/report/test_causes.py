"""Reasons with a price of the engine's are counted by cause; refused orders are told."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from programs import ROOT
from rich.console import Console

import tracepaper
from tracepaper import Action, BarContext, Orders, Signal, Strategy, buy
from tracepaper.replay.report.terminal import show_summary, summarise, summary_tables
from tracepaper.replay.report.trades import by_cause, cause, largest_causes

CANDLES = ROOT / "replay" / "samples" / "binance_um_BTCUSDT_1m_2025-05-26.csv.gz"


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("stop at 109293.4", "stop"),
        ("target at 109293", "target"),
        ("trailing stop by 35", "trailing stop"),
        ("stop 2 x ATR(1d) 35.2", "stop 2 x ATR(1d)"),
        ("stop 0.5 %", "stop 0.5 %"),
        ("exits.stop_loss 2 %", "exits.stop_loss 2 %"),
        ("exits.stop_loss 2 x ATR(1d) 35.2", "exits.stop_loss 2 x ATR(1d)"),
        ("exits.take_profit q0.9 (0.34 %)", "exits.take_profit q0.9"),
        ("exits.trailing 2 volatility (1.20 %)", "exits.trailing 2 volatility"),
        (
            "exits.take_profit q0.2 (-0.14 %) is not above the close 100",
            "exits.take_profit q0.2 is not above the close",
        ),
        (
            "closed by its exits.stop_loss q0.1 (0.30 %); it enters again after another signal",
            "closed by its exits.stop_loss q0.1; it enters again after another signal",
        ),
        ("stop at 110393 is not below the close 109300", "stop is not below the close"),
        ("stop 2 x ATR(1d) 35 is not above the close 1", "stop 2 x ATR(1d) is not above the close"),
        (
            "quantity 0.12345 is no multiple of the step 0.001",
            "quantity is no multiple of the step 0.001",
        ),
        ("stop at 3 bars of gain", "stop at 3 bars of gain"),
        ("RSI 14 is below 30", "RSI 14 is below 30"),
    ],
)
def test_a_cause_is_the_reason_without_the_engines_numbers(reason: str, told: str) -> None:
    assert cause(reason) == told


def test_causes_are_counted_together() -> None:
    counts = [("stop at 1", 2), ("cross", 4), ("stop at 2", 3)]
    assert by_cause(counts) == [("stop", 5), ("cross", 4)]


class OffStep(Strategy):
    """Orders what no step divides."""

    def decide(self, context: BarContext) -> Orders:
        return Orders((buy(0.1 + context.time % 7 / 1e5 + 1e-5),), "off the step")


class Stopped(Strategy):
    """Turns on every fall, under a stop at a price."""

    def decide(self, context: BarContext) -> Signal:
        if context.close >= context.open:
            return Signal(Action.HOLD, "it rose")
        return Signal(Action.LONG, "it fell", stop=context.close * 0.9995, reenter=True)


def test_the_end_of_a_replay_tells_what_the_venue_refused(tmp_path: Path) -> None:
    database = tmp_path / "run.db"
    with tracepaper.backtest(OffStep, CANDLES, db=database, end="2025-05-26T08:32:00") as run:
        told = summarise(database, run.run_id)
    assert told.fill_count == 0
    assert told.rejected == (("quantity is no multiple of the step 0.001", 60),)
    (made,) = (made for made in summary_tables(told) if made.key == "rejected")
    assert made.title.startswith("Rejected orders")


def test_trades_are_grouped_by_what_ended_them(tmp_path: Path) -> None:
    with tracepaper.backtest(Stopped, CANDLES, end="2025-05-26T12:00:00") as run:
        assert len(set(run.trades["exit_reason"])) > 2
        document = run.report().document
    names = [group["trades_of"] for group in document["trade_groups"]]
    assert names == ["all", "long", "short", "left: stop"]


class Once(Strategy):
    """Enters once under a stop, and says LONG ever after."""

    def decide(self, context: BarContext) -> Signal:
        return Signal(Action.LONG, "always", stop=context.close * 0.999)


def test_a_run_that_looks_idle_names_its_largest_cause(tmp_path: Path) -> None:
    database = tmp_path / "run.db"
    with tracepaper.backtest(Once, CANDLES, db=database, end="2025-05-26T12:00:00") as run:
        printed = str(run)
        (idle,) = (line for line in printed.splitlines() if line.startswith("most unfilled"))
        assert "closed by its stop; it enters again after another signal: signal FLAT" in idle
        assert "set reenter in the signal or in [exits] (docs/protection.md, E15)" in idle
        console = Console(file=io.StringIO(), width=300)
        show_summary(console, summarise(database, run.run_id))
        assert isinstance(console.file, io.StringIO)
        assert f"M{idle[1:]}." in console.file.getvalue().splitlines()


def test_the_largest_causes_are_those_with_most_bars() -> None:
    refused = [("warm", 50), ("stale", 30), ("confidence_margin", 40)]
    unfilled = [
        ("stop at 1 is not below the close 2", 5),
        ("stop at 3 is not below the close 2", 5),
    ]
    first, second = largest_causes(100, refused, [*unfilled, ("size below the step 0.1", 9)])
    assert str(first) == (
        "most refused: 40 of 100 bars (40.0 %), confidence_margin: its threshold is [gate] "
        "confidence"
    )
    assert (second.name, second.bars, second.remedy) == ("stop is not below the close", 10, "")
    (only,) = largest_causes(100, [("gap", 3), ("warm", 5)], [])
    assert str(only) == "most refused: 3 of 100 bars (3.0 %), gap"
    assert not list(largest_causes(1_000, [("gap", 9)], [("size below the step 0.1", 9)]))
