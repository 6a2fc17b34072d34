"""A class whose history is too short hears the ``warmup`` with which it settles (U7)."""

from __future__ import annotations

import ast
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from command_line import Cli
from msgspec import Struct
from programs import ROOT
from public_cases import columns

import tracepaper
from tracepaper import Action, PortfolioStrategy, Signal, Strategy, StrategyFailed
from tracepaper.strategies.indicators import ema, sma

SAMPLE = ROOT / "replay" / "samples" / "binance_um_BTCUSDT_1m_2025-05-26.csv.gz"
BARS = 1_500
WALK = 100 * np.exp(np.cumsum(np.random.default_rng(4).normal(0, 0.002, (BARS, 2)), axis=0))
DATA = {
    name: columns(WALK[:, at].round(2).tolist()) for at, name in enumerate(("BTCUSDT", "ETHUSDT"))
}


def side(is_long: object) -> Signal:
    return Signal(Action.LONG if is_long else Action.FLAT, "rule")


class Slice(Strategy):
    warmup = 10

    def decide(self, context: Any) -> Signal:
        return side(context.close > context.history.close[-50:].mean())


class Rolling(Strategy):
    warmup = 10

    def decide(self, context: Any) -> Signal:
        return side(context.close > pd.Series(context.history.close).rolling(25).mean().iloc[-1])


class Index(Strategy):
    warmup = 10

    def decide(self, context: Any) -> Signal:
        return side(context.close > context.history.close[-30])


class Before(Strategy):
    """Its maximum is that of nothing."""

    warmup = 1

    def decide(self, context: Any) -> Signal:
        return side(context.close > context.history.high[-21:-1].max())


class Unnamed(Strategy):
    """Reads more than a class gets that names no warm-up."""

    bars = 430

    def decide(self, context: Any) -> Signal:
        return side(context.close > context.history.close[-self.bars :].mean())


class Framed(Strategy):
    warmup = 2
    frames = ("5", "15")
    frames_warmup = {"5": 4, "15": 3}  # noqa: RUF012 - as a user writes it

    def decide(self, context: Any) -> Signal:
        return side(context.close > sma(context.timeframe("5").close, 12)[-1])


class Several(PortfolioStrategy):
    warmup = 3

    def decide(self, contexts: Any) -> dict[str, Signal]:
        return {
            symbol: side(each.close > each.history.close[-20:].mean())
            for symbol, each in contexts.items()
        }


class Cross(Strategy):
    warmup = 21

    def decide(self, context: Any) -> Signal:
        close = context.history.close
        return side(ema(close, 9)[-1] > ema(close, 21)[-1])


REMEDY = re.compile(r"set (?:frames_)?warmup = (\d+|\{.*?\}) or more")


@pytest.mark.parametrize(
    ("cls", "bars"),
    [
        (Slice, 50),
        (Rolling, 25),
        (Index, 30),
        (Before, 21),
        (Unnamed, 430),
        (Framed, {"5": 12, "15": 3}),
        (Several, 20),
        (Cross, 94),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_warmup_that_is_advised_decides_as_twice_as_many_bars_do(
    cls: type, bars: int | dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Public reports: backtesting.py#151 and #1187, freqtrade#5468 and #6441, vectorbt#156."""
    data = DATA if cls is Several else {"BTCUSDT": DATA["BTCUSDT"]}

    def decided(bars: int | dict[str, int]) -> tuple[list[str], str]:
        name = "frames_warmup" if isinstance(bars, dict) else "warmup"
        monkeypatch.setattr(cls, name, bars, raising=False)
        with tracepaper.backtest(cls, data, frames="numpy", progress=False) as run:
            return run.decisions["action"].tolist(), str(run)

    try:
        with tracepaper.backtest(cls, data, progress=False) as run:
            said = str(run)
            assert (found := REMEDY.search(" ".join(str(run.report()).split())))
    except StrategyFailed as error:
        said = str(error)
        found = REMEDY.search(said)
    assert found is not None
    assert found[0] in said
    assert ast.literal_eval(found[1]) == bars
    twice = {name: 2 * n for name, n in bars.items()} if isinstance(bars, dict) else 2 * bars
    (first, said), (second, _) = decided(bars), decided(twice)
    assert not REMEDY.search(said)
    assert first[1_000:] == second[1_000:]
    assert {*first[1_000:]} == {"LONG", "FLAT"}


class Whole(Strategy):
    """Depends on all of its history, however long."""

    warmup = 100
    unused = 300

    def decide(self, context: Any) -> Signal:
        return side(context.close > context.history.close.mean())


class Remembers(Slice):
    class State(Struct):
        bars: int = 0


class SeesAccount(Slice):
    sees_account = True


class Draws(Strategy):
    warmup = 10

    def decide(self, context: Any) -> Signal:
        return side(context.history.close[-50:].mean() > 0 and random.random() < 0.5)


@pytest.mark.parametrize("cls", [Whole, Remembers, SeesAccount, Draws])
def test_a_class_that_decides_by_more_than_its_history_hears_nothing(cls: type) -> None:
    state = random.getstate()
    with tracepaper.backtest(cls, {"BTCUSDT": DATA["BTCUSDT"]}, progress=False) as run:
        assert not REMEDY.search(str(run))
    assert cls is Draws or random.getstate() == state


def test_recursive_names_the_share_and_the_history_that_suffices(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, bars in (("short", 21), ("settled", 94)):
        (tmp_path / f"{name}.py").write_text(
            "import tracepaper as tp\nfrom tracepaper.strategies.indicators import ema\n\n\n"
            f"class Cross(tp.Strategy):\n    warmup = {bars}\n\n"
            "    def decide(self, context):\n        close = context.history.close\n"
            "        up = ema(close, 9)[-1] > ema(close, 21)[-1]\n"
            "        return tp.Signal(tp.Action.LONG if up else tp.Action.FLAT, 'cross')\n"
        )
    given = ("--data", SAMPLE, "--bars", 900, "--probes", 1)
    told = cli("recursive", "--set", "strategy.name=short:Cross", *given)
    found = re.search(r"at (\d+) of (\d+) decisions tried, since ema\(…, 21\) settles", told.out)
    assert found is not None
    assert told.code == 1
    assert 0.05 < int(found[1]) / int(found[2]) < 0.2
    assert "it had 21 bars of history; set warmup = 94 or more" in told.out
    told = cli("recursive", "--set", "strategy.name=settled:Cross", *given)
    assert told.code == 0
    found = re.search(r"; with twice the history (\d+) of 713 differ", told.out)
    assert found is not None
    assert int(found[1]) <= 3
