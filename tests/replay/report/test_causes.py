"""Reasons of the engine are counted as causes; rejected orders are shown."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, ClassVar

import pytest
from builders import instrument
from command_line import Cli
from programs import ROOT
from rich.console import Console

import tracepaper
from tracepaper import Action, BarContext, Model, Orders, Percent, Signal, Strategy, buy
from tracepaper.daemon.broker.exit_orders import waits_after
from tracepaper.daemon.broker.rules import NO_CASH, below_step
from tracepaper.replay.document.terminal import show_document
from tracepaper.replay.document.values import Paragraph, Table
from tracepaper.replay.report.terminal import summary_document
from tracepaper.replay.report.trades import largest_causes
from tracepaper.strategies.api.model import Answer, ModelInput
from tracepaper.strategies.types.calibration import Calibration
from tracepaper.strategies.types.decisions import OrderRole

CANDLES = ROOT / "replay" / "samples" / "binance_um_BTCUSDT_1m_2025-05-26.csv.gz"


class OfEveryKind(Strategy):
    """Enters with levels of every kind at changing prices, some of them invalid."""

    warmup = 1

    def decide(self, context: BarContext) -> Signal:
        away = (1.002 if context.time // 60_000 % 7 == 0 else 0.999) * context.close
        return Signal(Action.LONG, "up", stop=away, target=context.close * 1.001, reenter=True)


def test_no_reason_of_the_engine_holds_a_number_that_another_bar_changes() -> None:
    config = {"exits": {"trailing": "0.05%"}, "sizing": {"mode": "fixed", "quantity": "0.1"}}
    with tracepaper.backtest(OfEveryKind, CANDLES, config=config, end="2025-05-27") as run:
        protective = {
            reason
            for reason, role in zip(run.orders["reason"], run.orders["role"], strict=True)
            if role in {"STOP", "TARGET", "TRAILING"}
        }
        assert {"stop", "target", "exits.trailing 0.05 %"} <= protective
        assert set(run.decisions["unfilled_reason"]) - {None} == {"stop is not below the close"}
        assert set(run.trades["exit_reason"]) <= {"stop", "target", "exits.trailing 0.05 %"}


class OffStep(Strategy):
    """Orders a quantity that is no multiple of the step."""

    def decide(self, context: BarContext) -> Orders:
        return Orders((buy(0.1 + context.time % 7 / 1e5 + 1e-5),), "off the step")


def test_the_end_of_a_replay_tells_what_the_venue_refused(tmp_path: Path) -> None:
    """Public reports: freqtrade#6079, vectorbt#426, profit-trailer#1898, enhancements#287."""
    database = tmp_path / "run.db"
    with tracepaper.backtest(OffStep, CANDLES, db=database, end="2025-05-26T08:32:00") as run:
        first, *parts = summary_document(database, run.run_id).parts
    assert isinstance(first, Paragraph)
    assert ", 0 fills" in first.text
    (table,) = (part for part in parts if isinstance(part, Table) and part.key == "rejected")
    assert table.rows == (("quantity is no multiple of the step 0.001; to_step rounds it", 60),)
    assert table.title.startswith("Rejected orders")


class OffTick(Strategy):
    """Orders a limit at a price that is a multiple of the tick in one minute of three."""

    def decide(self, context: BarContext) -> Orders:
        off = 0.03 * (context.time // 60_000 % 3)
        return Orders([buy(0.1, limit=context.close + off, tag="bid")], "off the tick")


def test_a_run_with_fills_tells_how_many_orders_were_rejected(tmp_path: Path) -> None:
    database = tmp_path / "run.db"
    with tracepaper.backtest(OffTick, CANDLES, db=database, end="2025-05-26T10:32:00") as run:
        rejected = int((run.orders["status"] == "REJECTED").sum())
        assert (rejected, len(run.fills) > 20) == (120, True)
        sentence = f"{rejected} of {len(run.orders)} orders were rejected"
        assert str(run).startswith(sentence)
        of_command = summary_document(database, run.run_id).parts
        assert any(isinstance(part, Paragraph) and sentence in part.text for part in of_command)


class Once(Strategy):
    """Enters once with a stop, and signals LONG at every later bar."""

    def decide(self, context: BarContext) -> Signal:
        return Signal(Action.LONG, "always", stop=context.close * 0.999)


def test_a_run_that_looks_idle_names_its_largest_cause(tmp_path: Path) -> None:
    database = tmp_path / "run.db"
    with tracepaper.backtest(Once, CANDLES, db=database, end="2025-05-26T12:00:00") as run:
        printed = str(run)
        (idle,) = (line for line in printed.splitlines() if line.startswith("most unfilled"))
        assert "closed by its stop; it enters again after another signal, first at 20" in idle
        assert "Z: signal FLAT" in idle
        assert "set reenter in the signal or in [exits] (docs/protection.md, E15)" in idle
        console = Console(file=io.StringIO(), width=300)
        show_document(console, summary_document(database, run.run_id), blank_lines=False)
        assert isinstance(console.file, io.StringIO)
        assert f"M{idle[1:]}." in console.file.getvalue().splitlines()


class Held(Strategy):
    """Holds with the exits of ``terms``; a table of candles is indexed by their opens."""

    warmup = 1
    terms: ClassVar[dict[str, Any]] = {}

    def decide(self, context: BarContext) -> Signal:
        assert context.open_time == context.time - 60_000
        return Signal(Action.LONG, "always", **self.terms)


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        ({"stop": 40_000.0}, "stop 40000 is -63."),
        ({"target": 300_000.0}, "target 300000 is +1"),
        ({"stop": Percent(0.02)}, "stop 0.02 % is 0.02 in a hundred"),
        ({"trailing": Percent(0.02)}, "trailing stop 0.02 % is 0.02 in a hundred"),
        ({"stop": 60_000.0, "target": Percent(2), "trailing": Percent(0.1)}, ""),
    ],
)
def test_exits_at_distances_that_are_probably_mistakes_are_said_once(
    terms: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Public reports: backtesting.py#158, #304 and #1274, freqtrade#866 and #894, vectorbt#31."""
    monkeypatch.setattr(Held, "terms", terms)
    database = tmp_path / "run.db"
    with tracepaper.backtest(Held, CANDLES, db=database, end="2025-05-26T08:32:00") as run:
        assert str(run).count("Look at the exits") == bool(said)
        quantity, worth = run.positions["quantity"][-1], float(run.bars["close"][-1])
        held = f"still open, in the result and in no closed trade: long {quantity:g} BTCUSDT worth "
        assert (held + f"{quantity * worth:,.2f} (" in str(run)) is (quantity > 0)
        assert ("still open" in str(run)) is (quantity > 0)
        assert said in str(run)
        of_command = summary_document(database, run.run_id).parts
        assert any("Look at the" in getattr(part, "text", "") for part in of_command) is bool(said)


class Slopeless(Model):
    """Forecasts that its calibration found to mean nothing."""

    measures = ("mean_return", "stdev_return")
    calibration = Calibration({}, {30: 0.0}, 0.0)

    def predict(self, inputs: ModelInput) -> Answer:
        return {"mean_return": 0.01, "stdev_return": 0.01}


@pytest.mark.parametrize("mode", ["tanh", "kelly"])
def test_a_size_by_a_slope_of_zero_is_said_at_the_start_and_by_its_remedy(
    mode: str, tmp_path: Path, cli: Cli
) -> None:
    name = f"{__name__}:Slopeless"
    config: dict[str, dict[str, Any]] = {
        "strategy": {"name": "attention"},
        "model": {"class": name},
        "sizing": {"mode": mode},
        "gate": {"drop": ["edge"]},
    }
    said = f"Warning: every size is 0, since sizing.mode {mode} multiplies the mean return by"
    with tracepaper.backtest(None, CANDLES, config=config, end="2025-05-26T11:00:00") as run:
        assert len(run.fills) == 0
        assert said in str(run)
        assert "the slope of the model's card is 0" in str(run)
    (tmp_path / "own.toml").write_text(
        f'[strategy]\nname = "attention"\n[model]\nclass = "{name}"\n[sizing]\nmode = "{mode}"\n'
    )
    assert said in cli.out("config", "check", tmp_path / "own.toml")


def test_the_largest_causes_are_those_with_most_bars() -> None:
    refused = [("warm", 50), ("stale", 30), ("confidence_margin", 40)]
    item = instrument()
    reasons = [("stop is not below the close", 10), (below_step(item), 9)]
    first, second = largest_causes(100, refused, reasons, [item])
    assert str(first) == (
        "most refused: 40 of 100 bars (40.0 %), confidence_margin: its threshold is [gate] "
        "confidence"
    )
    assert (second.name, second.bars, second.remedy) == ("stop is not below the close", 10, "")
    (only,) = largest_causes(100, [("gap", 3), ("warm", 5)], [])
    assert str(only) == "most refused: 3 of 100 bars (3.0 %), gap"
    assert not list(largest_causes(1_000, [("gap", 9)], reasons[1:], [item]))
    for reason in (below_step(item), waits_after(OrderRole.TRAILING), NO_CASH):
        (only,) = largest_causes(10, [], [(reason, 9)], [item])
        assert only.remedy
    (only,) = largest_causes(10, [], [("my size below the step", 9)], [item])
    assert not only.remedy  # the words of a strategy are no cause of the broker's
