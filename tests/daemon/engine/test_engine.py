"""The engine: from an event to its step."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal
from itertools import pairwise
from typing import Any

import pytest
from builders import START_MS, bar, bars, explanation, forecast, instrument, present, quote
from engines import engine_of
from fakes import FixedForecaster
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from tracepaper.daemon.engine import engine as engine_module
from tracepaper.daemon.engine.engine import Engine
from tracepaper.strategies.api.context import BarContext, Signal
from tracepaper.strategies.api.strategy import SmaCross
from tracepaper.strategies.types.calibration import Calibration
from tracepaper.strategies.types.decisions import Action, FillModel, PredictionTimeout, Regime, Step
from tracepaper.strategies.types.market import (
    Command,
    CommandKind,
    Event,
    Instrument,
    InstrumentChange,
)

SMA: dict[str, dict[str, Any]] = {
    "strategy": {"name": "sma_cross", "fast": 3, "slow": 7},
    "sizing": {"mode": "fixed", "quantity": "1"},
    "account": {"cash": "1000000"},
}
QUANTILES = {
    name: tuple(index / 100 for index in range(1, 100))
    for name in ("confidence_entropy", "collapsed", "shift", "recent_mass", "direction", "edge")
}
CALIBRATION = Calibration(QUANTILES, {30: 1.0}, 0.0)


def engine(
    *,
    execution: FillModel = FillModel.NEXT_OPEN,
    item: Instrument | None = None,
    period_start_ms: int = 0,
    forecaster: FixedForecaster | None = None,
    **sections: dict[str, Any],
) -> Engine:
    return engine_of(
        {**SMA, **sections},
        [item or instrument()],
        execution=execution,
        period_start_ms=period_start_ms,
        forecaster=forecaster,
    )


def steps_of(machine: Engine, events: list[Event]) -> list[Step]:
    return [machine.step(event, None) for event in events]


def attention(**gate: Any) -> Engine:
    """Return an engine whose gates pass an ordinary forecast."""
    rules = {"confidence": "0.1", "collapse": "0.0", "shift": "0.5", "direction": "0.5", **gate}
    return engine_of(
        {
            **SMA,
            "strategy": {"name": "attention"},
            "gate": rules,
            "regime": {"momentum": "0.7", "mean_reversion": "0.3"},
        },
        forecaster=FixedForecaster(lambda _bars: None, calibration=CALIBRATION),
    )


def answered(machine: Engine, answers: list[Any]) -> list[Step]:
    closes = [1_000_000 + 100 * index for index in range(len(answers))]
    return [
        machine.step(bar(close, index=index), prediction)
        for index, (close, prediction) in enumerate(zip(closes, answers, strict=True))
    ]


# ---------------------------------------------------------------- what repeats is reused


class NewSignals(SmaCross):
    """Signals as ``sma_cross`` does, each time by a new object, so that no bar is a repetition."""

    def decide(self, context: BarContext) -> Signal:
        signal = super().decide(context)
        return Signal(signal.action, signal.reason, signal.strength)


def disturbed(seed: int, places: list[tuple[int, int]]) -> list[Event]:
    """Return bars with a disturbance at each (kind, index) of *places*."""
    events: list[Event] = []
    kinds = {index: kind for kind, index in places}
    for index, row in enumerate(bars(120, seed=seed)):
        kind, at_ms = kinds.get(index), row.open_time_ms
        match kind:
            case 0:
                continue  # a hole
            case 1 | 2 | 3:
                order = (CommandKind.HALT, CommandKind.RESUME, CommandKind.FLATTEN)[kind - 1]
                events.append(Command(order, "", at_ms, at_ms))
            case 4 | 5:
                finer = instrument(quantity_step=3 if kind == 4 else 1)
                events.append(InstrumentChange(finer, at_ms, at_ms))
            case 6:
                events.append(structs.replace(row, close=row.close * 3, high=row.close * 3))
                continue  # an implausible close
            case 7:
                events.append(structs.replace(row, seen_ms=row.seen_ms + 10 * 60_000))
                continue  # a late bar
        events.append(row)
    return events


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 9),
    st.lists(st.tuples(st.integers(0, 7), st.integers(5, 119)), max_size=8),
    st.booleans(),
)
def test_a_bar_that_repeats_the_last_decision_gives_the_step_that_deciding_anew_gives(
    seed: int, places: list[tuple[int, int]], long_only: bool
) -> None:
    engines = [
        engine_of(
            SMA,
            period_start_ms=START_MS + 3 * 60_000,
            strategy=kind(fast=3, slow=7, long_only=long_only),
        )
        for kind in (SmaCross, NewSignals)
    ]
    events = disturbed(seed, places)
    assert steps_of(engines[0], events) == steps_of(engines[1], events)


def test_decisions_that_repeat_share_one_outcome() -> None:
    decisions = [step.decision for step in steps_of(engine(), list(bars(60))) if step.decision]
    pairs = list(pairwise(decisions))
    alike = [pair for pair in pairs if pair[0].outcome == pair[1].outcome]
    assert len(alike) > 30
    assert all(first.outcome is other.outcome for first, other in alike)


class Reasons(SmaCross):
    """Holds with a new reason at each bar, except for one that repeats."""

    def decide(self, context: BarContext) -> Signal:
        number = (context.exact.open_time_ms - START_MS) // 60_000
        return Signal(Action.HOLD, f"bar {number}" if 10 < number < 110 else f"turn {number % 2}")


def test_an_outcome_that_comes_again_is_the_same_and_few_are_remembered() -> None:
    trend = engine_of(
        SMA, period_start_ms=START_MS, strategy=Reasons(fast=3, slow=7, long_only=True)
    )
    outcomes = [step.decision.outcome for step in steps_of(trend, list(bars(120))) if step.decision]
    assert [signal.reason for signal in outcomes[8:12]] == ["turn 0", "turn 1", "turn 0", "bar 11"]
    assert outcomes[8] is outcomes[10]
    assert outcomes[8] == outcomes[110] is outcomes[112]
    assert outcomes[110] is not outcomes[8], "forgotten among so many"


def test_an_outcome_comes_again_only_where_the_same_gates_passed() -> None:
    candles = list(bars(60))
    late = structs.replace(candles[41], seen_ms=candles[41].seen_ms + 10 * 60_000)
    at_ms = candles[40].open_time_ms
    halt = Command(CommandKind.HALT, "", at_ms, at_ms)
    steps = steps_of(engine(), [*candles[:40], halt, candles[40], late, candles[42]])
    on_time, too_late, again = (step.decision.outcome for step in steps[-3:] if step.decision)
    assert on_time.reason == too_late.reason == again.reason == "refused by operator"
    assert on_time.passed != too_late.passed
    assert on_time is again


# ---------------------------------------------------------------- against an independent account


@pytest.mark.parametrize("long_only", [True, False])
@pytest.mark.parametrize("seed", [1, 2])
def test_sma_cross_equals_an_independent_computation_to_the_last_tick(
    long_only: bool, seed: int
) -> None:
    fast, slow, history = 20, 100, bars(1_500, seed=seed)
    machine = engine(
        strategy={"name": "sma_cross", "fast": 20, "slow": 100, "long_only": long_only}
    )
    got = steps_of(machine, list(history))

    prices = [(Decimal(b.open).scaleb(-2), Decimal(b.close).scaleb(-2)) for b in history]
    closes = [close for _, close in prices]
    cash, held, trades = Decimal(1_000_000), Decimal(0), 0
    target = Decimal(0)
    for index, (open_, close) in enumerate(prices):
        if (change := target - held) != 0:
            fee = (abs(change) * open_ * Decimal("0.00055")).quantize(
                Decimal("1e-8"), rounding=ROUND_HALF_EVEN
            )
            cash -= change * open_ + fee
            held = target
            trades += 1
        equity = cash + held * close
        assert Decimal(got[index].account.equity).scaleb(-8) == equity
        if index >= slow - 1:
            quick = sum(closes[index - fast + 1 : index + 1]) * slow
            calm = sum(closes[index - slow + 1 : index + 1]) * fast
            target = Decimal(1) if quick > calm else Decimal(0 if long_only else -1)
    assert sum(len(step.fills) for step in got) == trades > 10


# ---------------------------------------------------------------- bars


def test_a_close_that_no_market_gives_is_held_and_the_next_one_is_not_judged_by_it() -> None:
    history = bars(100, seed=4)
    forged = history[70].close * 1_000
    history[70] = bar(forged, index=70, open_=history[70].open, low=history[70].low)
    got = [step.decision for step in steps_of(engine(), list(history))]
    assert [decision.refused_by for decision in got[69:73] if decision] == [
        None,
        "plausible",
        "plausible",
        None,
    ]
    assert got[70] is not None
    assert got[70].action is Action.HOLD
    measured = present(
        dict(zip(got[70].gate_set.gates, got[70].measures, strict=True))["plausible"]
    )
    assert measured > 100_000
    allowed = steps_of(engine(gate={"plausible": "1000000"}), list(history))
    assert all(step.decision.refused_by != "plausible" for step in allowed if step.decision)


def test_a_bar_before_the_period_has_no_decision() -> None:
    got = steps_of(engine(period_start_ms=START_MS + 10 * 60_000), list(bars(12)))
    assert [step.decision is None for step in got] == [True] * 10 + [False] * 2


def test_bars_before_the_strategy_is_warm_are_held_and_refused_by_warm() -> None:
    got = steps_of(engine(), list(bars(8)))
    verdicts = [(step.decision.action, step.decision.refused_by) for step in got if step.decision]
    assert verdicts[:6] == [(Action.HOLD, "warm")] * 6
    assert verdicts[6][1] is None


def test_the_bar_after_a_hole_is_refused_by_gap() -> None:
    history = bars(12)
    got = steps_of(engine(), [*history[:9], *history[10:]])
    assert [step.decision.refused_by for step in got[9:] if step.decision] == ["gap", None]


def test_a_revision_is_kept_as_evidence_and_changes_nothing() -> None:
    history = bars(12)
    revised = bar(history[5].close + 777, index=5)
    plain = steps_of(engine(), list(history))
    machine = engine()
    got = steps_of(machine, [*history[:8], revised, *history[8:]])
    assert not got[8].accepted
    assert got[8].decision is None
    assert [s.decision for s in got if s.accepted] == [s.decision for s in plain]


# ---------------------------------------------------------------- quotes and commands


def test_without_a_quote_the_stale_gate_is_null_and_refuses() -> None:
    step = steps_of(engine(execution=FillModel.QUOTE), list(bars(8)))[-1]
    assert present(step.decision).refused_by == "stale"


@pytest.mark.parametrize(
    ("dated_ms", "passes"), [(0, True), (-1, True), (1, False), (10**6, False)]
)
def test_a_quote_dated_after_the_bar_has_no_age_and_refuses(dated_ms: int, *, passes: bool) -> None:
    machine = engine(execution=FillModel.QUOTE)
    history = list(bars(8))
    steps_of(machine, list(history[:7]))
    machine.step(quote(at_ms=history[7].seen_ms + dated_ms), None)
    decision = present(machine.step(history[7], None).decision)
    stale = decision.gate_set.gates.index("stale")
    assert decision.measures[stale] == (-dated_ms if passes else None)
    assert (decision.refused_by == "stale") == (not passes)


def command(kind: CommandKind) -> Command:
    return Command(kind, "", START_MS, START_MS)


# ---------------------------------------------------------------- the model


def test_an_allowed_forecast_is_traded_and_every_gate_is_recorded() -> None:
    step = answered(attention(), [None, None, forecast(0.01)])[-1]
    decision = present(step.decision)
    assert (decision.action, decision.allowed, decision.regime) == (Action.LONG, True, Regime.MIXED)
    assert len(decision.measures) == len(decision.gate_set.gates)
    assert None not in decision.measures


def test_a_late_model_is_refused_by_deadline() -> None:
    decision = present(answered(attention(), [None, None, PredictionTimeout(1_000)])[-1].decision)
    assert (decision.action, decision.refused_by) == (Action.HOLD, "deadline")


def test_a_forecast_that_is_not_finite_is_refused_and_not_stored() -> None:
    step = answered(attention(), [None, None, forecast(float("nan"))])[-1]
    assert present(step.decision).refused_by == "finite"
    assert step.prediction is None


def test_a_refusal_by_judgement_holds_or_closes_as_configured() -> None:
    unsure = forecast(0.01, explained=explanation(confidence_entropy=0.01))
    for on_refusal, action in (("hold", Action.HOLD), ("flat", Action.FLAT)):
        got = answered(attention(on_refusal=on_refusal), [None, None, forecast(0.01), unsure])
        decision = present(got[-1].decision)
        assert (decision.refused_by, decision.action) == ("confidence_entropy", action)


def test_edge_compares_the_calibrated_mean_with_the_round_trip_cost() -> None:
    small, large = forecast(0.0010), forecast(0.0012)
    verdicts = [
        step.decision.refused_by
        for step in answered(attention(), [None, None, small, large])
        if step.decision
    ]
    assert verdicts[2:] == ["edge", None]


def test_what_only_the_steps_say_is_stored_now_and_then_and_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine_module, "STATE_EVERY_STEPS", 4)
    machine = engine()
    steps = [machine.step(bar(10_000 + 10 * at, index=at), None) for at in range(40)]
    settled = max(step.sequence for step in steps if step.orders) + 4
    confirmed = [step for step in steps if step.sequence > settled]
    stored = [step.sequence for step in confirmed if step.state is not None]
    assert stored == [step.sequence for step in confirmed if not step.sequence % 4] != []
    again = [machine.step(steps[-1].event, None) for _ in range(12)]  # bars that confirm nothing
    assert sum(step.state is not None for step in again) == 1
