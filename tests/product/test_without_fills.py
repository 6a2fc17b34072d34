"""A run without a fill says which of three causes it has: never asked, refused, or unfilled."""

from __future__ import annotations

import io
import sqlite3
from abc import ABC
from pathlib import Path

import pytest
from command_line import Cli
from programs import ROOT
from rich.console import Console

import tracepaper
from tracepaper import Action, BarContext, PortfolioStrategy, Signal, Strategy
from tracepaper.replay.document.terminal import show_document
from tracepaper.replay.page import runs
from tracepaper.replay.page.databases import Databases
from tracepaper.replay.report.terminal import summary_document
from tracepaper.strategies.indicators import crossover, ema, sma, zscore

CANDLES = ROOT / "replay" / "samples" / "binance_um_BTCUSDT_1m_2025-05-26.csv.gz"
HOUR = {"start": "2025-05-26T07:32:00", "end": "2025-05-26T08:32:00"}


def _cross(context: BarContext, below: Action) -> Signal:
    fast, slow = ema(context.history.close, 9), ema(context.history.close, 21)
    if fast[-1] > slow[-1]:
        return Signal(Action.LONG, "fast above slow")
    return Signal(below, "fast not above slow")


class OneBar(Strategy):
    """A crossover copied from Pine."""

    warmup = 1

    def decide(self, context: BarContext) -> Signal:
        return _cross(context, Action.HOLD)


class ShortWarmup(Strategy):
    warmup = 30

    def decide(self, context: BarContext) -> Signal:
        is_above = context.close > sma(context.history.close, 50)[-1]
        return Signal(Action.LONG if is_above else Action.HOLD, "above the mean")


class OneRowShort(Strategy):
    """Compares the last two values of averages of which only the newest has a value."""

    warmup = 21

    def decide(self, context: BarContext) -> Signal:
        close = context.history.close
        is_crossed = crossover(ema(close, 9), ema(close, 21))[-1]
        return Signal(Action.LONG if is_crossed else Action.HOLD, "no cross")


class AverageOfAverage(Strategy):
    warmup = 9

    def decide(self, context: BarContext) -> Signal:
        smooth = ema(ema(context.history.close, 9), 21)
        return Signal(Action.LONG if context.close > smooth[-1] else Action.HOLD, "below")


class HigherFrame(Strategy):
    """Averages fewer bars of an hour than the average needs."""

    frames = ("5",)
    frames_warmup = {"5": 4}  # noqa: RUF012 - a user writes it so

    def decide(self, context: BarContext) -> Signal:
        slow = sma(context.timeframe("5").close, 7)
        return Signal(Action.LONG if slow.size and context.close > slow[-1] else Action.HOLD, "low")


class OneBarOfAll(PortfolioStrategy):
    warmup = 1

    def decide(self, contexts: dict[str, BarContext]) -> dict[str, Signal]:  # type: ignore[override]
        return {name: _cross(context, Action.HOLD) for name, context in contexts.items()}


class Never(Strategy):
    """Holds on purpose."""

    def decide(self, context: BarContext) -> Signal:
        assert context.close
        return Signal(Action.HOLD, "waiting for the weekend")


class WrongSide(Strategy):
    def decide(self, context: BarContext) -> Signal:
        return Signal(Action.LONG, "up", stop=context.close * 1.01)


class TooLongWarmup(Strategy):
    warmup = 5_000

    def decide(self, context: BarContext) -> Signal:
        raise AssertionError(context)


ASKED_NONE = "The strategy asked for no position on 60 of 60 bars. Its reason on 60: "
CAUSES = {
    OneBar: f"{ASKED_NONE}fast not above slow; ema(…, 21) has no value with 1 bar of history: "
    "set warmup = 94 or more.",
    OneBarOfAll: f"{ASKED_NONE}fast not above slow; ema(…, 21) has no value with 1 bar of "
    "history: set warmup = 94 or more.",
    ShortWarmup: "The strategy asked for no position on 31 of 60 bars. Its reason on 31: above "
    "the mean; sma(…, 50) has no value with 30 bars of history: set warmup = 50 or more.",
    OneRowShort: "The strategy asked for no position on 40 of 60 bars. Its reason on 40: no "
    "cross; crossover(…) has no value with 21 bars of history: set warmup = 95 or more.",
    AverageOfAverage: "The strategy asked for no position on 52 of 60 bars. Its reason on 52: "
    "below; ema(…, 21) has no value with 9 bars of history: set warmup = 133 or more.",
    HigherFrame: "The strategy asked for no position on 38 of 60 bars. Its reason on 38: low; "
    'sma(…, 7) has no value with 4 bars of history: set frames_warmup = {"5": 7} or more.',
    Never: f"{ASKED_NONE}waiting for the weekend.",
    WrongSide: "The strategy asked for a position on 60 bars, and nothing filled. Most often: "
    "stop is not below the close (60, first at 2025-05-26T07:32Z).",
    TooLongWarmup: "No bar left the warm-up, which had 60 of 5,000 bars: give earlier candles, "
    "or let the strategy and its model look back on fewer.",
}


@pytest.mark.parametrize("cls", CAUSES, ids=lambda cls: cls.__name__)
def test_a_run_without_a_fill_has_one_cause_in_words_everywhere(
    cls: type[ABC], tmp_path: Path
) -> None:
    database = tmp_path / "run.db"
    with tracepaper.backtest(cls, CANDLES, db=database, **HOUR) as run:  # type: ignore[arg-type]
        cause, run_id = CAUSES[cls], run.run_id
        assert str(run).splitlines()[0] == cause
        assert cause in " ".join(str(run.report()).split())
        explained = " ".join(str(run.explain()).split())
        with sqlite3.connect(database) as record:
            ((reason,),) = record.execute(
                "SELECT reason FROM v_decisions ORDER BY sequence DESC LIMIT 1"
            )
    assert reason in explained
    console = Console(file=io.StringIO(), width=400)
    show_document(console, summary_document(database, run_id), blank_lines=False)
    assert isinstance(console.file, io.StringIO)
    assert cause in console.file.getvalue().splitlines()
    assert runs.run(Databases([database]).find(run_id)).without_fills == cause


def test_a_run_that_gates_refused_names_the_gate_that_refused_most(tmp_path: Path) -> None:
    class Wild(Strategy):
        def decide(self, context: BarContext) -> Signal:
            return Signal(Action.LONG if context.close else Action.HOLD, "always")

    config = {"risk": {"max_notional": "1"}}
    with tracepaper.backtest(Wild, CANDLES, config=config, db=tmp_path / "r.db", **HOUR) as run:  # type: ignore[arg-type]
        first = str(run).splitlines()[0]
    assert first == "Gates refused all 60 bars, most by risk.notional (60)."


class SometimesNothing(Strategy):
    """A score that has no value while the volume stands still."""

    warmup = 20

    def decide(self, context: BarContext) -> Signal:
        score = zscore(context.history.volume, 20)[-1]
        return Signal(Action.LONG if score > 0 else Action.FLAT, "by the volume")


def test_a_value_that_is_missing_at_some_bars_is_named_at_these_bars(tmp_path: Path) -> None:
    times = [1_735_689_600_000 + 60_000 * row for row in range(80)]
    volume = [5.0 if 20 <= row < 60 else 5.0 + row % 7 for row in range(80)]
    frame = {"open_time": times, "volume": volume}
    frame |= {name: [100.0 + row % 5 for row in range(80)] for name in ("open", "close")}
    frame |= {"high": [106.0] * 80, "low": [99.0] * 80}
    with tracepaper.backtest(SometimesNothing, {"BTCUSDT": frame}, db=tmp_path / "r.db") as run:
        reasons = run.decisions["reason"]
        opened = run.decisions["open_time_ms"]
    named = {
        int(at) for at, reason in zip(opened, reasons, strict=True) if "has no value" in reason
    }
    assert named == set(times[39:60])
    assert "by the volume; zscore(…, 20) has no value at this bar" in set(reasons)


def test_a_sweep_names_the_cause(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "pine_cross.py").write_text(
        "import tracepaper as tp\n"
        "from tracepaper.strategies.indicators import ema\n\n\n"
        "class Cross(tp.Strategy):\n"
        "    warmup = 1\n\n"
        "    def __init__(self, slow=21):\n"
        "        self.slow = slow\n\n"
        "    def decide(self, context):\n"
        "        close = context.history.close\n"
        "        up = ema(close, 9)[-1] > ema(close, self.slow)[-1]\n"
        "        return tp.Signal(tp.Action.LONG if up else tp.Action.FLAT, 'cross')\n"
    )
    given = ("--set", "strategy.name=pine_cross:Cross", "--data", CANDLES)
    bars = ("--from", HOUR["start"], "--to", HOUR["end"])
    advice = "ema(…, 21) has no value with 1 bar of history: set warmup = 94 or more"
    swept = cli.out(
        "sweep", *given, *bars, "--space", "slow=21,30", "--objective", "return", "--jobs", 1
    )
    assert "2 of 2 runs filled nothing, first slow = 21: The strategy asked for no" in " ".join(
        swept.split()
    )
    assert advice in " ".join(swept.split())
