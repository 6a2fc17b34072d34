"""The future, cut off or corrupted, moves no earlier step: for every shipped strategy."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from builders import bars, instrument
from hypothesis import given, settings
from hypothesis import strategies as st

from tracepaper.daemon.config.loading import load
from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.session.build import build_engine
from tracepaper.strategies.api.context import BarContext, Signal
from tracepaper.strategies.api.strategy import Strategy
from tracepaper.strategies.types.decisions import Action, FillModel, Step
from tracepaper.strategies.types.market import Bar


class Leaky(Strategy):
    """A strategy that was handed the whole file: what the check must catch."""

    warmup = 2
    future: tuple[Bar, ...] = ()

    def __init__(self, options: dict[str, object]) -> None:
        self._options = options

    def decide(self, context: BarContext) -> Signal:
        later = [b for b in type(self).future if b.open_time_ms > context.exact.open_time_ms]
        if later and later[0].close > context.exact.close:
            return Signal(Action.LONG, "it will rise")
        return Signal(Action.FLAT, "it will not")


def engine(strategy: dict[str, Any]) -> Engine:
    config = load(None, {"strategy": strategy, "sizing": {"mode": "fixed", "quantity": "1"}})
    return build_engine(
        config,
        [instrument()],
        execution=FillModel.NEXT_OPEN,
        period_start_ms=0,
        forecaster=None,
    )


def steps(strategy: dict[str, Any], history: list[Bar]) -> list[Step]:
    Leaky.future = tuple(history)
    machine = engine(strategy)
    return [machine.step(item, None) for item in history]


def corrupted(history: list[Bar], cut: int) -> list[Bar]:
    """Return *history* with everything from *cut* on turned into nonsense."""
    return [
        item
        if place < cut
        else msgspec.structs.replace(item, open=1, high=10**9, low=1, close=10**8 + place, volume=0)
        for place, item in enumerate(history)
    ]


pytestmark = pytest.mark.slow

SHIPPED = [
    {"name": "sma_cross", "fast": 3, "slow": 7, "long_only": False},
    {"name": "sma_cross", "fast": 2, "slow": 30},
    {"name": "persistence"},
]


@pytest.mark.parametrize("strategy", SHIPPED)
@settings(max_examples=30, deadline=None)
@given(cut=st.integers(1, 79), seed=st.integers(1, 50))
def test_no_earlier_step_moves(strategy: dict[str, Any], cut: int, seed: int) -> None:
    history = bars(80, seed=seed)
    whole = steps(strategy, history)
    assert steps(strategy, history[:cut]) == whole[:cut]
    assert steps(strategy, corrupted(history, cut))[:cut] == whole[:cut]


def test_a_strategy_that_peeks_is_caught() -> None:
    leaky = {"name": f"{__name__}:Leaky"}
    history = bars(80)
    whole = steps(leaky, history)
    moved = [
        cut
        for cut in range(1, 80)
        if [s.decision for s in steps(leaky, corrupted(history, cut))[:cut]]
        != [s.decision for s in whole[:cut]]
    ]
    assert len(moved) > 10
