"""The answer to "was it any good?" of runs whose answer is known."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from tracepaper import Action, Signal, Strategy
from tracepaper.replay.api import backtest
from tracepaper.strategies.api.context import BarContext
from tracepaper.strategies.units import DAY_MS, HOUR_MS

START_MS = 1_700_006_400_000  # midnight


def tide(days: int, drift: float = 0.0) -> pl.DataFrame:
    """Return candles that rise every morning and fall every afternoon, with seeded noise.

    The *drift* is added to the return of each hour.
    """
    times = START_MS + HOUR_MS * np.arange(24 * days)
    moves = np.where(times % DAY_MS < DAY_MS // 2, 0.002, -0.002)
    moves = moves + drift + np.random.default_rng(5).normal(0.0, 0.004, times.size)
    closes = 20_000.0 * np.exp(np.cumsum(moves))
    opens = np.concatenate(([20_000.0], closes[:-1]))
    prices = np.stack((opens, closes)).round(1)
    return pl.DataFrame(
        {
            "open_time": times,
            "open": prices[0],
            "high": prices.max(axis=0),
            "low": prices.min(axis=0),
            "close": prices[1],
            "volume": np.full(times.size, 10.0),
        }
    )


class Daily(Strategy):
    """Long from *begin* to *end* o'clock of every *every*-th day."""

    def __init__(self, begin: int = 0, end: int = 12, every: int = 1) -> None:
        self.begin, self.end, self.every = begin, end, every

    def decide(self, context: BarContext) -> Signal:
        day, rest = divmod(context.time, DAY_MS)  # of the next bar's open
        is_long = self.begin <= rest // HOUR_MS < self.end and day % self.every == 0
        return Signal(Action.LONG if is_long else Action.FLAT, "the clock")


class Never(Strategy):
    """Without a position."""

    def decide(self, context: BarContext) -> Signal:
        del context
        return Signal(Action.HOLD, "nothing")


@pytest.mark.parametrize(
    ("candles", "params", "result", "verdict"),
    [
        (tide(60), {}, "made", "luck seldom makes such a difference"),
        (tide(60), {"begin": 12, "end": 24}, "lost", "bad luck seldom makes such a difference"),
        (tide(60), {"begin": 6, "end": 18}, "", "luck alone makes such a difference"),
        # All that rises makes money, and holding as much makes as much.
        (tide(60, 0.0004), {"begin": 6, "end": 18}, "made", "luck alone makes such a difference"),
        (tide(60), {"every": 20}, "", "these are too few trades to tell skill from luck"),
        (tide(20), {}, "made", "these are too few days to tell skill from luck"),
    ],
)
def test_the_verdict_is_that_of_the_known_answer(
    candles: pl.DataFrame, params: dict[str, int], result: str, verdict: str
) -> None:
    with backtest(Daily, {"BTCUSDT": candles}, params=params) as run:
        (sentence,) = (line for line in repr(run).splitlines() if "any good" in line)
        figures = run.summary
    assert sentence.startswith(f"Was it any good? It {result}")
    assert sentence.endswith(f": {verdict}.")
    assert f" in {figures['trades']:,.0f} trades of " in sentence
    for key in ("return", "held_return"):
        assert f" {100 * abs(figures[key] or 0.0):.2f} %" in sentence
    assert " USDT in the median (10.0 % of the account)" in sentence


def test_what_never_traded_is_not_judged() -> None:
    with backtest(Never, {"BTCUSDT": tide(40)}) as run:
        assert "Was it any good? It never traded, so there is nothing to judge." in repr(run)


def test_report_and_python_print_one_sentence() -> None:
    with backtest(Daily, {"BTCUSDT": tide(40)}) as run:
        (sentence,) = (line for line in repr(run).splitlines() if "any good" in line)
        report = run.report()
        assert sentence in " ".join(str(report).split())
        assert report.document["judgement"] == sentence
