"""A class that names no warm-up gets one by what it reads; the run keeps it (U7)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from programs import ROOT

import tracepaper
from tracepaper.daemon.session.default_warmup import default_warmup
from tracepaper.strategies.api.context import BarContext, Signal
from tracepaper.strategies.api.strategy import PortfolioStrategy, Strategy
from tracepaper.strategies.types.decisions import Action
from tracepaper.strategies.types.market import Bar
from tracepaper.strategies.units import DAY_MS, HOUR_MS

CANDLES = ROOT / "replay" / "samples" / "binance_um_BTCUSDT_1m_2025-05-26.csv.gz"


def mean_of(context: BarContext) -> float:
    return float(context.history.close.mean())


class Bare(Strategy):
    def decide(self, context: BarContext) -> Signal:
        return Signal(Action.LONG if context.close > context.open else Action.FLAT, "bar")


class Reads(Strategy):
    def decide(self, context: BarContext) -> Signal:
        return Signal(Action.LONG if context.close > self._mean(context) else Action.FLAT, "mean")

    def _mean(self, context: BarContext) -> float:
        return max(value for value in [context.history.close.mean()])


class ByHelper(Strategy):
    def decide(self, context: BarContext) -> Signal:
        return Signal(Action.LONG if context.close > mean_of(context) else Action.FLAT, "mean")


class Observes(Bare):
    def observe(self, bar: Bar) -> None:
        self.newest = bar


class Framed(Bare):
    frames = ("240", "D")


class Columns(Bare):
    def columns(self, bars: Any) -> dict[str, Any]:
        return {"close": bars.close}


class Portfolio(PortfolioStrategy):
    def decide(self, contexts: Any) -> Any:
        return {symbol: Signal(Action.HOLD, str(each.history)) for symbol, each in contexts.items()}


class Named(Reads):
    warmup = 7


class Made(Reads):
    def __init__(self, bars: int = 3) -> None:
        self.warmup = bars


@pytest.mark.parametrize(
    ("cls", "days", "bars"),
    [
        (Bare, 40, 1),
        (Reads, 0, 1),
        (Reads, 1, 6),
        (Reads, 40, 240),
        (Reads, 400, 256),
        (Reads, None, 256),
        (ByHelper, 4, 24),
        (Observes, 4, 24),
        (Columns, 4, 24),
        (Portfolio, 4, 24),
        (Named, 4, None),
        (Made, 4, None),
    ],
)
def test_a_class_gets_the_bars_that_it_may_read(
    cls: type, days: int | None, bars: int | None
) -> None:
    usual = default_warmup(cls, HOUR_MS, None if days is None else days * DAY_MS)
    assert (usual and usual.bars) == bars


def test_timeframes_get_sixty_four_bars_or_a_quarter_of_theirs() -> None:
    for days, frames in ((20, {"240": 30, "D": 5}), (None, {"240": 64, "D": 64})):
        usual = default_warmup(Framed, HOUR_MS, None if days is None else days * DAY_MS)
        assert usual is not None
        assert usual.frames == frames


def test_a_run_says_its_choice_and_every_check_uses_it(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    chosen: dict[str, dict[str, Any]] = {"sizing": {"mode": "equity"}}
    with tracepaper.backtest(
        Reads, CANDLES, db=path, config=chosen, end="2025-05-26T10:32:00"
    ) as run:
        (first, *_) = str(run).splitlines()
        assert "; history of 45 bars, since the class names no warmup; " in first
        assert first.endswith("10 % of equity, since [sizing] names no fraction")
        assert json.loads(run.row["config"])["strategy"]["warmup"] == 45
        refused = run.decisions["refused_by"].to_list()
        assert refused[:45] == ["warm"] * 44 + [None]
        assert run.verify().exact
    named: dict[str, dict[str, Any]] = {
        "strategy": {"warmup": 20},
        "sizing": {"mode": "equity", "fraction": "0.2"},
    }
    with tracepaper.backtest(Reads, CANDLES, config=named, end="2025-05-26T10:32:00") as run:
        assert "history of 20 bars" in str(run)
        assert "names no fraction" not in str(run)
