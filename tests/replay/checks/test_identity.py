"""What identifies a decision, and what only time and account explain."""

from __future__ import annotations

from math import inf, nan
from typing import Any

import builders
import storage_cases as cases
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tracepaper.replay.checks.compare import decision_differences
from tracepaper.replay.checks.identity import DecisionIdentity, decision_identity
from tracepaper.strategies.gates.gate import gate_order
from tracepaper.strategies.types.decisions import (
    Action,
    Decision,
    DecisionOutcome,
    Forecast,
    GateSet,
    Position,
    PredictionTimeout,
    Regime,
)
from tracepaper.strategies.types.market import Bar, Instrument, Source

BAR = builders.bar(1_000_010, volume=12_340)
ANSWER = cases.model_forecast(3)
DECISION = cases.model_decision(3, ANSWER)


def identity(
    bar: Bar = BAR,
    prediction: Forecast | PredictionTimeout | None = ANSWER,
    decision: Decision = DECISION,
    instrument: Instrument = cases.BTC,
) -> DecisionIdentity:
    step = cases.decided(
        0, bar, prediction=prediction, decision=decision, position=Position(), account=cases.ACCOUNT
    )
    return decision_identity(step, instrument)


def other(value: Any) -> Any:
    """Return another value of the same kind: of a number the next one."""
    match value:
        case Source():
            return next(source for source in Source if source is not value)
        case tuple():
            return (*value[:-1], other(value[-1]))
        case bytes() | str():
            return value * 2
        case float():
            return value + 1e-15
        case _:
            return 5 if value is None else value + 1


LEFT_OUT = {
    Bar: {"instrument", "interval_ms", "turnover", "market_ms", "seen_ms", "source"},
    Forecast: {"model_id", "auxiliary", "heads"},
}
"""Fields of a bar and of a forecast that do not identify a decision."""


def test_a_decision_covers_every_value_of_bar_and_forecast_but_those_left_out() -> None:
    for field in Bar.__struct_fields__:
        changed = replace(BAR, **{field: other(getattr(BAR, field))})
        assert (identity(changed) == identity()) is (field in LEFT_OUT[Bar]), field
    explanation = ANSWER.explanation
    assert explanation is not None
    for field in Forecast.__struct_fields__:
        value = None if field == "explanation" else other(getattr(ANSWER, field))
        same = identity(prediction=replace(ANSWER, **{field: value})) == identity()
        assert same is (field in LEFT_OUT[Forecast]), field
    for field in explanation.__struct_fields__:
        explained = replace(explanation, **{field: other(getattr(explanation, field))})
        assert identity(prediction=replace(ANSWER, explanation=explained)) != identity(), field


def test_measures_and_verdicts_of_gates_count_but_for_timing_and_risk() -> None:
    for place, gate in enumerate(gate_order()):
        measures = list(DECISION.measures)
        measures[place] = 123.5
        flipped = DECISION.passed ^ (1 << place)
        left_out = gate in {"late", "stale", "tradable", "deadline"} or gate.startswith("risk.")
        for changed in ({"measures": tuple(measures)}, {"passed": flipped}):
            same = identity(decision=builders.altered(DECISION, **changed)) == identity()
            assert same is left_out, (gate, changed)


def test_equal_numbers_of_other_decimals_have_the_same_identity() -> None:
    """65114.20 with two decimals equals 65114.2 with one, and a target of 1.000 equals 1."""
    two = replace(cases.BTC, price_decimals=2, volume_decimals=3, quantity_decimals=3)
    item = replace(cases.BTC, price_decimals=1, volume_decimals=2, quantity_decimals=0)
    bar = Bar("x", 0, 60_000, 6511420, 6511430, 6511410, 6511420, 1230, None, 1, 1, Source.REST)
    coarse = replace(bar, open=651142, high=651143, low=651141, close=651142, volume=123)
    wanted = builders.altered(DECISION, target_quantity=1_000)
    assert identity(bar, None, wanted, two) == identity(
        coarse, None, replace(wanted, target_quantity=1), item
    )


def test_late_none_and_a_forecast_differ_but_the_deadline_does_not_count() -> None:
    decision_identities = {
        identity(prediction=prediction)
        for prediction in (None, ANSWER, PredictionTimeout(1), PredictionTimeout(2))
    }
    assert len(decision_identities) == 3


def test_gates_that_do_not_count_may_be_declared_or_not() -> None:
    """Live declares ``stale``, a replay without quotes does not: the decision is the same."""
    small = GateSet(("operator", "warm", "gap"), (1.0, 100.0, 0.0))
    large = GateSet(
        ("operator", "warm", "late", "gap", "stale", "risk.notional"),
        (1.0, 100.0, 60_000.0, 0.0, 60_000.0, 5.0),
    )
    outcome = DecisionOutcome(Action.LONG, "", True, None, small, 0b111, Regime.UNKNOWN)
    decision = Decision(outcome, 5, (1.0, 120.0, 0.0))
    same = builders.altered(
        decision,
        gate_set=large,
        measures=(1.0, 120.0, 3.0, 0.0, 17.0, 1.0),
        passed=0b111111,
        refused_by="risk.notional",
        allowed=False,
        reason="another",
    )
    assert identity(decision=decision) == identity(decision=same)


def test_thresholds_action_and_target_count() -> None:
    moved = GateSet(DECISION.gate_set.gates, tuple(t + 1 for t in DECISION.gate_set.thresholds))
    changes: tuple[dict[str, Any], ...] = (
        {},
        {"gate_set": moved},
        {"action": Action.FLAT},
        {"target_quantity": -1},
        {"target_quantity": 1},
    )
    different = {identity(decision=builders.altered(DECISION, **each)) for each in changes}
    assert len(different) == len(changes)


def test_minus_zero_is_zero_and_what_is_not_finite_is_null() -> None:
    def of(number: float) -> DecisionIdentity:
        return identity(prediction=replace(ANSWER, mean_return=(number, 0.0)))

    assert of(-0.0) == of(0.0)
    assert of(nan) == of(inf) == of(-inf)
    assert of(nan) != of(0.0)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**12), st.integers(0, 7), st.integers(0, 7))
def test_the_canonical_number_depends_on_its_value_alone(
    units: int, decimals: int, more: int
) -> None:
    coarse = replace(cases.BTC, price_decimals=decimals, volume_decimals=decimals)
    fine = replace(cases.BTC, price_decimals=decimals + more, volume_decimals=decimals + more)
    bar = replace(BAR, open=units, high=units, low=units, close=units, volume=units)
    finer = units * 10**more
    same = replace(BAR, open=finer, high=finer, low=finer, close=finer, volume=finer)
    assert identity(bar, instrument=coarse).bar == identity(same, instrument=fine).bar


def test_what_differs_of_a_decision_is_named() -> None:
    gate, first = DECISION.gate_set.gates[0], (DECISION.measures[0] or 0.0) + 1.0
    changes: dict[str, dict[str, Any]] = {
        "reason": {"reason": "another"},
        "target_quantity": {"target_quantity": 7},
        "size_factor": {"size_factor": 0.5},
        "note mood": {"note": {**(DECISION.note or {}), "mood": 1.0}},
        f"gate {gate}": {"measures": (first, *DECISION.measures[1:])},
    }
    for name, changed in changes.items():
        other_decision = builders.altered(DECISION, **changed)
        assert [found for found, *_ in decision_differences(DECISION, other_decision)] == [name]
