"""Gates: every one on both sides of its threshold."""

import math
import struct

import pytest
from builders import explanation, forecast
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace

from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.gates.evaluator import (
    GateEvaluator,
    is_finite_forecast,
    threshold_key,
    threshold_of,
)
from tracepaper.strategies.gates.gate import GATES, GateInputs, gate_order, verdict
from tracepaper.strategies.types.calibration import Calibration, FittedConfidence, LinearScore
from tracepaper.strategies.types.decisions import Action, Forecast, HeadForecasts, Regime
from tracepaper.strategies.types.forecast_columns import columns_of

WITH_HEADS = replace(
    forecast(),
    heads=HeadForecasts(
        tails=struct.pack("<8f", 0.0625, 0.125, 0.03125, 0.0625, 0.25, 0.5, 0.125, 0.25),
        drawdown=struct.pack("<2f", 0.0625, 0.125),
        regimes=struct.pack("<6f", 0.25, 0.001, 0.5, 0.002, 0.25, 0.004),
    ),
)


def spread_over(spread: float) -> Forecast:
    """Return a forecast whose mean spreads so far over passes with dropout; its σ is 2**-10."""
    plain = forecast()
    heads = HeadForecasts(dropout_spread=struct.pack("<f", spread))
    return replace(plain, stdev_return=(0.0009765625,) * len(plain.horizons), heads=heads)


LOST = -100 * math.expm1(-(0.0625 + 0.0625 * math.log(2) / math.log(5)))
"""Of 100 held long: the expected shortfall between those of 5 and of 1 %."""
CALIBRATION = Calibration(
    {"confidence_entropy": tuple(index / 100 for index in range(1, 100))}, {30: 0.5}, 0.0
)

FITTED = FittedConfidence(
    horizon=30,
    chosen="calibrated",
    strict=True,
    sign=LinearScore(("mean_over_stdev",), (0.5,), (0.5,), (1.0,), 0.0),
    volatility=LinearScore((), (), (), (), 0.0),
    edges=(),
    spread=(1.0,),
)


def judged(gate: str, threshold: float, gate_inputs: GateInputs) -> tuple[float | None, bool]:
    evaluator = GateEvaluator(frozenset({gate}), {gate: threshold})
    measures, passed = evaluator.judge(gate_inputs)
    assert (evaluator.first_failed(passed) is None) is (passed == 1)
    return measures[0], passed == 1


PASSES = {
    "operator": (1, GateInputs(running=True), GateInputs(running=False)),
    "warm": (5, GateInputs(bars=5), GateInputs(bars=4)),
    "late": (60_000, GateInputs(late_ms=60_000), GateInputs(late_ms=60_001)),
    "gap": (0, GateInputs(missing_bars=0), GateInputs(missing_bars=1)),
    "plausible": (100, GateInputs(plausible=100.0), GateInputs(plausible=100.1)),
    "stale": (9, GateInputs(quote_age_ms=9), GateInputs(quote_age_ms=10)),
    "deadline": (1, GateInputs(answered=True), GateInputs(answered=False)),
    "finite": (1, GateInputs(finite=True), GateInputs(finite=False)),
    "confidence_entropy": (
        0.2,
        GateInputs(explanation=explanation(confidence_entropy=0.2)),
        GateInputs(explanation=explanation(confidence_entropy=0.19)),
    ),
    "confidence_calibrated": (
        0.5,
        GateInputs(forecast=forecast(0.004), fitted=FITTED),
        GateInputs(forecast=forecast(0.001), fitted=FITTED),
    ),
    "confidence_margin": (
        0.4,
        GateInputs(forecast=forecast(p_up=0.6, p_down=0.2)),
        GateInputs(forecast=forecast(p_up=0.4, p_down=0.3)),
    ),
    "collapsed": (
        0.1,
        GateInputs(explanation=explanation(confidence_entropy=0.5, content_free=0.25)),
        GateInputs(explanation=explanation(confidence_entropy=0.3, content_free=0.25)),
    ),
    "shifted": (
        0.1,
        GateInputs(explanation=explanation(shift=0.1)),
        GateInputs(explanation=explanation(shift=0.11)),
    ),
    "regime": (
        1,
        GateInputs(
            explanation=explanation(), regime=Regime.MIXED, regimes=frozenset({Regime.MIXED})
        ),
        GateInputs(
            explanation=explanation(), regime=Regime.MOMENTUM, regimes=frozenset({Regime.MIXED})
        ),
    ),
    "learned_regime": (
        1,
        GateInputs(forecast=WITH_HEADS, learned_regimes=frozenset({1, 2})),
        GateInputs(forecast=WITH_HEADS, learned_regimes=frozenset({1, 3})),
    ),
    "risk.tail": (
        LOST,
        GateInputs(forecast=WITH_HEADS, notional=100 * 10**8),
        GateInputs(forecast=WITH_HEADS, notional=101 * 10**8),
    ),
    "risk.tail_share": (
        LOST / 1_000 + 1e-12,
        GateInputs(forecast=WITH_HEADS, notional=100 * 10**8, equity=1_000 * 10**8),
        GateInputs(forecast=WITH_HEADS, notional=100 * 10**8, equity=999 * 10**8),
    ),
    "risk.expected_drawdown": (
        -math.expm1(-0.0625) / 10 + 1e-12,
        GateInputs(forecast=WITH_HEADS, notional=100 * 10**8, equity=1_000 * 10**8),
        GateInputs(forecast=WITH_HEADS, notional=100 * 10**8, equity=999 * 10**8),
    ),
    "dropout_spread": (
        0.5,
        GateInputs(forecast=spread_over(2**-11)),
        GateInputs(forecast=spread_over(2**-11 * 1.001)),
    ),
    "direction": (
        0.6,
        GateInputs(forecast=forecast(p_up=0.6, p_down=0.2)),
        GateInputs(forecast=forecast(p_up=0.4, p_down=0.39)),
    ),
    "edge": (
        1,
        GateInputs(forecast=forecast(0.004), slope=0.5, round_trip_cost=0.0011),
        GateInputs(forecast=forecast(0.002), slope=0.5, round_trip_cost=0.0011),
    ),
    "risk.notional": (100, GateInputs(notional=100 * 10**8), GateInputs(notional=101 * 10**8)),
    "risk.drawdown": (0.1, GateInputs(drawdown=0.1), GateInputs(drawdown=0.2)),
    "risk.daily_loss": (0.1, GateInputs(daily_loss=0.1), GateInputs(daily_loss=0.2)),
    "risk.daily_trades": (3, GateInputs(daily_trades=3), GateInputs(daily_trades=4)),
    "tradable": (1, GateInputs(is_tradable=True), GateInputs(is_tradable=False)),
    "risk.halt": (0, GateInputs(is_breached=False), GateInputs(is_breached=True)),
    "risk.exposure": (100, GateInputs(gross=100 * 10**8), GateInputs(gross=101 * 10**8)),
    "risk.leverage": (2, GateInputs(gross=20, equity=10), GateInputs(gross=21, equity=10)),
    "risk.cooldown": (3, GateInputs(since_stop=3), GateInputs(since_stop=2)),
    "risk.losing_streak": (3, GateInputs(losing_streak=2), GateInputs(losing_streak=3)),
    "risk.hourly_orders": (3, GateInputs(hourly_orders=3), GateInputs(hourly_orders=4)),
    "risk.spread": (5, GateInputs(spread_bp=5), GateInputs(spread_bp=5.1)),
    "risk.volatility": (50, GateInputs(range_bp=50), GateInputs(range_bp=51)),
    "risk.book_shortfall": (
        0.05,
        GateInputs(book_shortfall=50, equity=1_000),
        GateInputs(book_shortfall=51, equity=1_000),
    ),
}


def is_of_what_may_be_absent(gate_inputs: GateInputs) -> bool:
    """Return whether *seen* holds a forecast, its explanation, its check, a quote or a range."""
    answered = (
        gate_inputs.forecast,
        gate_inputs.explanation,
        gate_inputs.finite,
        gate_inputs.quote_age_ms,
        gate_inputs.spread_bp,
        gate_inputs.range_bp,
        gate_inputs.book_shortfall,
    )
    return any(value is not None for value in answered)


@pytest.mark.parametrize("gate", gate_order())
def test_every_gate_says_what_it_measures_and_has_a_case_here(gate: str) -> None:
    assert GATES[gate].meaning, f"give the function of {gate} a docstring: what it measures"
    assert GATES[gate].unit, f"give {gate} a unit, or YES_OR_NO"
    if gate not in PASSES:
        pytest.fail(
            "add to PASSES, in tests/strategies/gates/test_gates.py: "
            f'"{gate}": (a threshold, GateInputs(that pass at it), GateInputs(that fail)),'
        )


@pytest.mark.parametrize("gate", PASSES)
def test_gate_passes_at_its_threshold_and_fails_beyond(gate: str) -> None:
    threshold, good, bad = PASSES[gate]
    assert judged(gate, threshold, good)[1]
    assert not judged(gate, threshold, bad)[1]


@pytest.mark.parametrize(
    "gate", [gate for gate, (_, good, _) in PASSES.items() if is_of_what_may_be_absent(good)]
)
def test_a_measure_that_cannot_be_computed_is_null_and_fails(gate: str) -> None:
    assert judged(gate, 0.0, GateInputs()) == (None, False)


@pytest.mark.parametrize("gate", [gate for gate in PASSES if gate.startswith("risk.")])
def test_a_risk_limit_never_stands_in_the_way_of_less_risk(gate: str) -> None:
    threshold, _, bad = PASSES[gate]
    assert not judged(gate, threshold, bad)[1]
    measure, passes = judged(gate, threshold, replace(bad, reduces=True))
    if not GATES[gate].is_lasting:
        assert (measure, passes) == (threshold if GATES[gate].at_least else 0.0, True)
    evaluator = GateEvaluator(frozenset({gate}), {gate: threshold})
    assert evaluator.first_failed(int(passes), reduces=True) is None


def test_all_gates_are_evaluated_and_the_first_in_order_names_the_refusal() -> None:
    gates = frozenset({"gap", "operator", "late"})
    evaluator = GateEvaluator(gates, {"operator": 1, "late": 10, "gap": 0})
    measures, passed = evaluator.judge(GateInputs(running=True, late_ms=11, missing_bars=2))
    assert evaluator.gate_set.gates == ("operator", "late", "gap")
    assert measures == (1.0, 11.0, 2.0)
    assert passed == 0b001
    assert evaluator.first_failed(passed) == "late"


@pytest.mark.parametrize("first", [1.0, 101.0])
def test_bars_that_look_alike_are_still_judged_by_how_far_each_close_jumped(first: float) -> None:
    gates = frozenset({"operator", "gap", "plausible"})
    evaluator = GateEvaluator(gates, {"operator": 1, "gap": 0, "plausible": 100})
    gate_inputs = GateInputs()
    for jump in (first, 1.0, 101.0, 100.0, 101.0):
        passed = 0b111 if jump <= 100 else 0b011
        gate_inputs.plausible = jump
        assert evaluator.judge(gate_inputs) == ((1.0, 0.0, jump), passed)


def test_bars_that_look_alike_but_for_one_measure_are_judged_by_it() -> None:
    names = ("operator", "warm", "late", "gap")
    evaluator = GateEvaluator(frozenset(names), {"operator": 1, "warm": 5, "late": 10, "gap": 0})
    for changed in ({}, {"missing_bars": 1}, {"late_ms": 11}, {"bars": 4}, {"running": False}):
        gate_inputs = replace(GateInputs(bars=5), **changed)
        evaluator.judge(GateInputs(bars=5))
        anew = GateEvaluator(frozenset(names), {"operator": 1, "warm": 5, "late": 10, "gap": 0})
        assert evaluator.judge(gate_inputs) == anew.judge(gate_inputs), changed


def test_a_measure_that_is_not_finite_is_null_and_fails() -> None:
    gate_inputs = GateInputs(explanation=explanation(confidence_entropy=math.nan))
    assert judged("confidence_entropy", 0.1, gate_inputs) == (None, False)
    endless = GateInputs(explanation=explanation(confidence_entropy=math.inf))
    assert judged("confidence_entropy", 0.1, endless) == (None, False)


def test_a_measure_of_minus_zero_is_zero() -> None:
    gate_inputs = GateInputs(explanation=explanation(confidence_entropy=-0.0))
    assert str(judged("confidence_entropy", 0.0, gate_inputs)[0]) == "0.0"


@given(st.floats(0.01, 0.99))
@example(0.01)
@example(0.99)
def test_a_quantile_is_interpolated_between_percentiles(share: float) -> None:
    threshold = threshold_of(f"q{share}", "confidence_entropy", CALIBRATION, key="gate.confidence")
    assert threshold == pytest.approx(share)


def test_without_equity_no_leverage_is_known() -> None:
    for equity in (0, -10):
        assert judged("risk.leverage", 2, GateInputs(gross=20, equity=equity)) == (None, False)


@pytest.mark.parametrize("text", ["q", "q2", "q0", "nan", "high", "q0.5.1"])
def test_a_threshold_that_is_neither_number_nor_quantile_is_refused(text: str) -> None:
    with pytest.raises(ConfigInvalid, match=rf"gate\.collapse = '{text}' is no .*write"):
        threshold_of(text, "collapsed", CALIBRATION, key=threshold_key(GATES["collapsed"]))


def test_a_quantile_that_the_card_lacks_is_refused() -> None:
    with pytest.raises(ConfigInvalid, match=r"gate\.shift = 'q0.5' .* no quantiles of shift"):
        threshold_of("q0.5", "shift", CALIBRATION, key=threshold_key(GATES["shifted"]))


def test_a_forecast_with_one_bad_number_is_not_finite_alone_or_as_a_row_of_columns() -> None:
    usual = forecast()
    bad = [
        *map(forecast, (math.nan, math.inf)),
        *(forecast(p_up=up, p_down=down) for up, down in ((1.4, 0.0), (0.0, -0.4))),
        *(replace(usual, **{name: (0.0,)}) for name in ("stdev_return", "volatility")),
        *(
            replace(usual, explanation=replace(explanation(), **{name: math.nan}))
            for name in (
                "confidence_entropy",
                "content_free",
                "recent_mass",
                "event_focus",
                "shift",
            )
        ),
    ]
    columns = columns_of([*bad, usual, edge := forecast(p_up=1.0, p_down=0.0)])
    assert columns is not None
    assert columns.rows == {id(usual): len(bad), id(edge): len(bad) + 1}
    assert [*map(is_finite_forecast, columns.forecasts)] == [False] * len(bad) + [True] * 2


def test_the_verdict_says_whether_a_refusal_held_anything_up() -> None:
    assert verdict(Action.LONG, None, "trend up") == "allowed"
    assert verdict(Action.HOLD, "edge", "refused by edge") == "refused by edge"
    assert verdict(Action.FLAT, "edge", "refused by edge") == "since edge refused"
    assert verdict(Action.FLAT, "edge", "no trend up") == "edge refused; the exit is executed"
    assert verdict(Action.FLAT, "edge", "horizon") == "edge refused; the exit is executed"
