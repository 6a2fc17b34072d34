"""Strategies: what they wish for, and that their memory is as short as they say."""

import pytest
from builders import bar, bars, forecast, instrument
from hypothesis import given
from hypothesis import strategies as st

from tracepaper.strategies.api.context import BarContext, Signal
from tracepaper.strategies.api.strategy import (
    CORE_GATES,
    AttentionStrategy,
    Persistence,
    SmaCross,
    Strategy,
    declared_gates,
)
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.types.decisions import Action, Regime
from tracepaper.strategies.types.market import Bar


def wish(strategy: Strategy, history: list[Bar]) -> Action:
    for item in history:
        strategy.observe(item)
    answer = strategy.decide(BarContext.of(history, instrument()))
    assert isinstance(answer, Signal)
    return answer.action


@given(st.lists(st.integers(1, 1_000), min_size=5, max_size=40))
def test_sma_cross_compares_exact_averages_strictly(closes: list[int]) -> None:
    history = [bar(close, index=index) for index, close in enumerate(closes)]
    above = sum(closes[-2:]) * 5 > sum(closes[-5:]) * 2
    strategy = SmaCross(fast=2, slow=5, long_only=False)
    assert wish(strategy, history) is (Action.LONG if above else Action.SHORT)


def test_sma_cross_has_no_wish_before_its_slow_average_is_known() -> None:
    history = bars(5)
    assert wish(SmaCross(fast=2, slow=5, long_only=True), history[:4]) is Action.HOLD
    assert wish(SmaCross(fast=2, slow=5, long_only=True), history) is not Action.HOLD


@given(st.integers(10, 60), st.integers(1, 5))
def test_a_strategy_rebuilt_from_its_warmup_wishes_the_same(count: int, seed: int) -> None:
    history = bars(count, seed=seed)
    for make in (lambda: SmaCross(fast=3, slow=7, long_only=False), Persistence):
        strategy: Strategy = make()
        assert wish(make(), history) is wish(make(), history[-strategy.warmup :])


def test_sma_cross_refuses_a_fast_average_that_is_not_faster() -> None:
    with pytest.raises(ConfigInvalid, match=r"strategy\.fast"):
        SmaCross(fast=7, slow=7, long_only=True)


def test_persistence_follows_the_last_change() -> None:
    for closes, expected in (([5, 6], Action.LONG), ([6, 5], Action.SHORT), ([5, 5], Action.HOLD)):
        history = [bar(close, index=index) for index, close in enumerate(closes)]
        assert wish(Persistence(), history) is expected


@pytest.mark.parametrize(
    ("mean", "p_up", "p_down", "expected"),
    [
        (0.01, 0.5, 0.2, Action.LONG),
        (-0.01, 0.2, 0.5, Action.SHORT),
        (0.01, 0.2, 0.5, Action.HOLD),
        (0.0, 0.4, 0.4, Action.HOLD),
    ],
)
def test_attention_trades_where_mean_and_probabilities_agree(
    mean: float, p_up: float, p_down: float, expected: Action
) -> None:
    strategy = AttentionStrategy(context=3, horizon=30, horizon_index=0)
    answer = forecast(mean, p_up=p_up, p_down=p_down)
    assert (
        strategy.decide(
            BarContext.of([bar()], instrument(), forecast=answer, regime=Regime.MIXED)
        ).action
        is expected
    )


def test_stale_is_a_gate_only_where_quotes_fill_and_risk_only_where_configured() -> None:
    strategy = SmaCross(fast=2, slow=5, long_only=True)
    assert "stale" not in declared_gates(strategy, by_quotes=False, risk={})
    gates = declared_gates(strategy, by_quotes=True, risk={"risk.drawdown": 0.1})
    assert gates == CORE_GATES | {"risk.drawdown"}
    assert {"operator", "warm", "late", "gap", "plausible", "stale"} <= CORE_GATES
    assert CORE_GATES.isdisjoint(
        {"deadline", "finite", "confidence_entropy", "edge", "risk.drawdown"}
    )
