"""Shadow accounts that depend on the run, such as random_gate and held."""

from __future__ import annotations

import itertools
import random
import struct
from hashlib import sha256
from typing import Any, get_args

import pytest
from builders import bars, forecast, instrument
from engines import engine_of
from fakes import FixedForecaster
from msgspec.structs import replace

from tracepaper.daemon.config.loading import load
from tracepaper.daemon.config.values import SHADOW_NAMES, RegimeName
from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.engine.restart import Restart
from tracepaper.daemon.engine.shadows import shadow_signal
from tracepaper.daemon.engine.state import SHADOWS, WITHOUT, ShadowBasis, decode_state
from tracepaper.daemon.session.build import build_engine, coverage_warnings
from tracepaper.strategies.api.context import Signal
from tracepaper.strategies.gates.gate import HEAD_MEASURES, MEASURES
from tracepaper.strategies.types.calibration import Calibration, GateCoverage
from tracepaper.strategies.types.decisions import Action, FillModel, Forecast, HeadForecasts, Step
from tracepaper.strategies.types.market import Bar, Category, Command, CommandKind

CALIBRATION = Calibration(
    {
        name: tuple(index / 100 for index in range(1, 100))
        for name in ("confidence_entropy", "collapsed", "shift", "recent_mass", "direction", "edge")
    },
    {30: 1.0},
    0.0,
)
CASH = 1_000_000 * 10**8
BARS = bars(600, seed=4)


def attention(
    shadows: list[str],
    on_refusal: str = "hold",
    *,
    calibration: Calibration = CALIBRATION,
    measures: frozenset[str] = MEASURES,
    **sections: dict[str, Any],
) -> Engine:
    """Return an engine whose gate ``direction`` alone refuses what :func:`said` answers."""
    gates = {"confidence": "0.1", "collapse": "0.0", "shift": "0.5", "direction": "0.7"}
    given: dict[str, dict[str, Any]] = {
        "strategy": {"name": "attention", "shadows": shadows},
        "regime": {"momentum": "0.7", "mean_reversion": "0.3"},
        "sizing": {"mode": "notional", "notional": "200000"},
        "account": {"cash": "1000000"},
        **sections,
        "gate": {**gates, "edge": "0.0001", "on_refusal": on_refusal, **sections.get("gate", {})},
    }
    forecaster = FixedForecaster(lambda _bars: None, calibration=calibration)
    forecaster.measures = measures
    config = load(None, given)
    traded = instrument(category=Category(config.market.category))
    return engine_of(config, [traded], forecaster=forecaster)


def forecasts() -> list[Forecast]:
    """Return an answer for each bar: up or down, and sure enough in four of ten."""
    rng = random.Random(2)
    answers = []
    for _ in BARS:
        likely = 0.6 if rng.random() < 0.4 else 0.4
        up = rng.random() < 0.5
        odds = (likely, 0.2) if up else (0.2, likely)
        answers.append(forecast(0.002 if up else -0.002, p_up=odds[0], p_down=odds[1]))
    return answers


def stepped(machine: Engine, first: int = 0, until: int = len(BARS)) -> list[Step]:
    pairs = list(zip(BARS, forecasts(), strict=True))[first:until]
    return [machine.step(bar, answer) for bar, answer in pairs]


def quantity(step: Step, name: str) -> int:
    return next(of.position.quantity for of in step.shadows if of.shadow == name)


def drawn(bar: Bar) -> float:
    text = f"1:{bar.instrument}:{bar.open_time_ms}:0"
    return int.from_bytes(sha256(text.encode()).digest()[:8], "big") / 2**64


@pytest.mark.parametrize("on_refusal", ["hold", "flat"])
def test_the_gate_by_chance_lets_through_as_often_as_the_run_s_gates_did(on_refusal: str) -> None:
    steps = stepped(attention(["ungated", "random_gate"], on_refusal))
    judged = passed = let_through = followed = 0
    for step, after in itertools.pairwise(steps):
        assert isinstance(step.event, Bar)
        assert step.decision is not None
        if step.decision.refused_by == "warm":
            continue
        passes = judged == 0 or drawn(step.event) * judged < passed
        judged += 1
        passed += step.decision.refused_by is None
        let_through += passes
        wanted = quantity(after, "ungated")  # filled at the next open, whatever was decided
        if passes:
            assert (quantity(after, "random_gate") > 0) is (wanted > 0)
            followed += quantity(after, "random_gate") != quantity(step, "random_gate")
        elif on_refusal == "flat":
            assert quantity(after, "random_gate") == 0
        elif quantity(after, "random_gate") != quantity(step, "random_gate"):
            assert quantity(after, "random_gate") == 0  # it outlived its horizon
    assert 0.3 < passed / judged < 0.5
    assert let_through / judged == pytest.approx(passed / judged, abs=0.05)
    assert followed > 50
    assert {step.decision.action for step in steps if step.decision} >= {Action.LONG, Action.SHORT}


def test_buy_and_hold_holds_what_the_run_held_so_far_in_the_mean() -> None:
    steps = stepped(attention(["held"]))
    exposures, sides = list[float](), set[bool]()
    standing = trades = 0
    for step, after in itertools.pairwise(steps):
        assert isinstance(step.event, Bar)
        assert step.decision is not None
        assert step.position is not None
        if step.decision.refused_by != "warm":
            mean = sum(exposures) / len(exposures) if exposures else 0.0
            size = CASH * int(abs(mean) * 10**9) // 10**9 // (step.event.close * 10**3)
            size = size if mean > 0 else -size
            moved = abs(size - standing)
            if moved and (size * standing <= 0 or moved > abs(standing) // 4):
                trades += 1
                standing = size
                sides.add(size > 0)
        assert quantity(after, "held") == standing
        value = step.position.quantity * step.event.close * 10**3
        if step.decision.refused_by != "warm":
            exposures.append(value / step.account.equity)
    assert 1 < trades < len(steps) / 3  # a band of a quarter is narrow where the mean is near 0
    assert sides == {True, False}


@pytest.mark.parametrize("cut", [40, 333, 590])
def test_a_restart_counts_what_came_after_the_stored_state(cut: int) -> None:
    shadows = ["random_gate", "held"]
    whole = stepped(attention(shadows))
    before = whole[:cut]
    stored = max(place for place, step in enumerate(before) if step.state is not None)
    again = attention(shadows)
    state = before[stored].state
    assert state is not None
    Restart(again).restore(decode_state(state), next_sequence=cut)
    for candle in BARS[max(cut - 60, 0) : cut]:
        Restart(again).recall(candle)
    for step in before[stored:]:
        again.count(step)
    machine = attention(shadows)
    steps = stepped(machine, until=cut)
    assert again.state().bases == machine.state().bases
    could = sum(step.decision is not None and step.decision.refused_by != "warm" for step in steps)
    assert machine.state().bases["linear:BTCUSDT"].bars == could


def test_a_bar_that_cannot_be_believed_is_counted_and_not_judged() -> None:
    machine = attention(["random_gate"])
    stepped(machine, until=40)
    before = machine.state().bases["linear:BTCUSDT"]
    late = replace(BARS[40], seen_ms=BARS[40].seen_ms + 10 * 60_000)
    step = machine.step(late, forecasts()[40])
    assert step.decision is not None
    assert step.decision.refused_by == "late"
    after = machine.state().bases["linear:BTCUSDT"]
    assert (after.bars, after.judged, after.passed) == (
        before.bars + 1, before.judged, before.passed,
    )  # fmt: skip


def test_what_outlived_its_horizon_is_not_closed_over_the_operator_s_halt() -> None:
    machine = attention([])
    likely = forecast(0.002, p_up=0.9, p_down=0.05)
    steps = [machine.step(candle, likely) for candle in BARS[:10]]
    assert steps[-1].position is not None
    assert (held := steps[-1].position.quantity) > 0
    at_ms = BARS[10].open_time_ms
    machine.step(Command(CommandKind.HALT, "", at_ms, at_ms), None)
    halted = [machine.step(candle, likely) for candle in BARS[10:60]]
    assert {step.position.quantity for step in halted if step.position} == {held}
    machine.step(Command(CommandKind.RESUME, "", BARS[60].open_time_ms, 0), None)
    unsure = forecast(0.002, p_up=0.4, p_down=0.35)
    *_, last = (machine.step(candle, unsure) for candle in BARS[60:63])
    assert last.position is not None
    assert last.position.quantity == 0


def test_nothing_is_counted_unless_a_shadow_depends_on_it() -> None:
    machine = attention(["ungated"])
    assert not machine.shadows.counts
    stepped(machine, until=50)
    assert machine.state().bases == {}


def test_chance_is_a_function_of_the_bar_alone() -> None:
    half = ShadowBasis(100, 100, 50)
    passes = [half.passes("linear:BTCUSDT", 60_000 * minute) for minute in range(4_000)]
    assert sum(passes) == pytest.approx(2_000, abs=130)
    unbelieved = ShadowBasis(200, 100, 50)
    assert passes == [unbelieved.passes("linear:BTCUSDT", 60_000 * at) for at in range(4_000)]
    assert passes != [half.passes("linear:ETHUSDT", 60_000 * minute) for minute in range(4_000)]
    assert all(ShadowBasis(9, 9, 9).passes("linear:BTCUSDT", minute) for minute in range(100))
    assert not any(ShadowBasis(9, 9, 0).passes("linear:BTCUSDT", minute) for minute in range(100))
    assert all(ShadowBasis(9).passes("linear:BTCUSDT", minute) for minute in range(100))


def test_the_gate_by_chance_passes_with_the_coverage_that_the_card_counted() -> None:
    gates = {
        "confidence_entropy": 0.1, "collapsed": 0.0, "shifted": 0.5, "regime": 1.0,
        "direction": 0.7, "edge": 0.0001,
    }  # fmt: skip
    counted = GateCoverage(0.25, gates, get_args(RegimeName))
    basis = ShadowBasis(judged=9, passed=9)
    passed = [basis.passes(bar.instrument, bar.open_time_ms, 0.25) for bar in BARS]
    assert passed == [drawn(bar) < 0.25 for bar in BARS]
    calibration = replace(CALIBRATION, coverage=(counted,))
    other = attention(["random_gate"], calibration=calibration)
    assert other.shadows.random_shares == []  # its regimes have thresholds of their own
    usual = attention(["random_gate"], calibration=calibration, regime={})
    assert usual.shadows.random_shares == [0.25]
    assert coverage_warnings(usual) == (
        "random_gate lets 25.00 % of the bars through: the calibration slice's coverage",
    )
    assert coverage_warnings(attention(["random_gate"])) == ()


# ---------------------------------------------------------------- shadows that leave one thing out


def heads(rng: random.Random) -> HeadForecasts:
    """Return tails, drawdown, odds of two regimes, an allocation and a spread, of wide ranges."""
    loss, calm = rng.uniform(0.002, 0.05), rng.random()
    losses = (2 * loss, 3 * loss, loss, 1.5 * loss)
    return HeadForecasts(
        tails=struct.pack("<8f", *losses, *losses),
        drawdown=struct.pack("<2f", loss, 2 * loss),
        regimes=struct.pack("<4f", calm, 0.001, 1 - calm, 0.004),
        allocation=struct.pack("<f", rng.uniform(-1, 1)),
        dropout_spread=struct.pack("<f", 1.0 if rng.random() < 0.3 else 0.0),
    )


def with_heads(shadows: list[str], *, on_refusal: str = "hold", **sections: Any) -> list[Step]:
    """Return the steps of a run whose forecasts have heads, by gates that refuse a part each."""
    machine = attention(shadows, on_refusal, measures=MEASURES | HEAD_MEASURES, **sections)
    rng = random.Random(7)
    answers = [replace(answer, heads=heads(rng)) for answer in forecasts()]
    key = next(iter(machine.deciders))
    every = bars(600, seed=4, instrument_id=key)
    return [machine.step(candle, answer) for candle, answer in zip(every, answers, strict=True)]


def run_account(steps: list[Step]) -> list[tuple[int, int]]:
    """Return position and equity of the run's own account after each step."""
    return [(step.position.quantity, step.account.equity) for step in steps if step.position]


def shadow(steps: list[Step], name: str) -> list[tuple[int, int]]:
    every = (shadow for step in steps for shadow in step.shadows if shadow.shadow == name)
    return [(shadow.position.quantity, shadow.account.equity) for shadow in every]


LEFT_OUT: dict[str, tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]] = {
    "no_direction": ({}, {"gate": {"direction": "0.5"}}),
    "no_dropout_spread": ({}, {"gate": {"max_dropout_spread": "1000000"}}),
    "no_learned_regime": ({"gate": {"learned_regimes": [1]}}, {}),
    "no_tail": ({"risk": {"max_tail": "3000"}}, {}),
    "no_tail_share": ({"risk": {"max_tail_share": "0.003"}}, {}),
    "no_expected_drawdown": ({"risk": {"max_expected_drawdown": "0.005"}}, {}),
}
"""By shadow: what configures its gate, and what a run without it has in the place of that."""


@pytest.mark.parametrize("on_refusal", ["hold", "flat"])
@pytest.mark.parametrize("name", LEFT_OUT)
def test_a_shadow_without_a_gate_is_a_run_without_it(name: str, on_refusal: str) -> None:
    configured, without = LEFT_OUT[name]
    steps = with_heads([name], on_refusal=on_refusal, **configured)
    gate = WITHOUT[name]
    refused = [step.decision.refused_by for step in steps if step.decision]
    assert refused.count(gate) > 50
    if name != "no_direction":
        assert refused.count("direction") > 50, "another gate goes on refusing"
    assert shadow(steps, name) == run_account(with_heads([], on_refusal=on_refusal, **without))
    assert shadow(steps, name) != run_account(steps)


def test_a_shadow_asks_for_what_it_could_not_pay_when_its_run_would() -> None:
    """A target refused for lack of cash is requested again, except where a gate refuses."""
    market, sizing = {"category": "spot"}, {"mode": "notional", "notional": "1001000"}
    gate = {"learned_regimes": [1]}
    steps = with_heads(["no_learned_regime"], gate=gate, market=market, sizing=sizing)
    plain = with_heads([], market=market, sizing=sizing)
    reasons = [step.decision.outcome.unfilled_reason for step in plain if step.decision]
    assert len(set(reasons)) > 1
    assert any(quantity for quantity, _ in run_account(plain))
    assert shadow(steps, "no_learned_regime") == run_account(plain)


FULL: dict[str, dict[str, Any]] = {
    "expected_shortfall": {"mode": "equity", "fraction": "0.4"},
    "network_allocation": {"mode": "equity", "fraction": "0.4"},
    "kelly": {"mode": "equity", "fraction": "0.4"},
    "tanh": {"mode": "notional", "notional": "150000"},
    "volatility": {"mode": "notional", "notional": "150000"},
}


@pytest.mark.parametrize("mode", FULL)
def test_a_shadow_of_full_size_is_a_run_by_the_usual_size(mode: str) -> None:
    own_keys = {"kelly": {"kelly": "0.001"}, "volatility": {"target_volatility": "0.002"}}
    sizing = {**FULL[mode], "mode": mode, **own_keys.get(mode, {})}
    steps = with_heads(["full_size"], sizing=sizing)
    assert shadow(steps, "full_size") == run_account(with_heads([], sizing=FULL[mode]))
    assert shadow(steps, "full_size") != run_account(steps)
    assert any(quantity for quantity, _ in run_account(steps))


def test_the_configuration_names_every_shadow_account() -> None:
    assert set(SHADOW_NAMES) == set(SHADOWS)


def test_a_shadow_is_closed_by_the_breach_that_closes_the_run() -> None:
    risk = {"max_drawdown": "0.0005", "on_breach": "flatten", "max_tail": "3000"}
    steps = with_heads(["no_tail", "ungated"], risk=risk)
    (breached, *_) = [
        at for at, step in enumerate(steps)
        if step.decision and step.decision.reason == "halted by risk.drawdown"
    ]  # fmt: skip
    assert any(held for held, _ in shadow(steps, "no_tail")[:breached])
    assert not any(held for held, _ in shadow(steps, "no_tail")[breached + 2 :])
    assert any(held for held, _ in shadow(steps, "ungated")[breached + 2 :])


def test_a_limit_that_refuses_the_run_does_not_hold_up_less_of_a_shadow() -> None:
    """A gate of edge keeps the run flat; then a limit refuses what would be less for the shadow."""
    gates = {"confidence": "0.1", "collapse": "0.0", "shift": "0.5", "direction": "0.5"}
    forecaster = FixedForecaster(lambda _bars: None, calibration=CALIBRATION)
    forecaster.measures = MEASURES | HEAD_MEASURES
    machine = build_engine(
        load(
            None,
            {
                "strategy": {"name": "attention", "shadows": ["no_edge"]},
                "gate": {**gates, "edge": "2"},
                "regime": {"momentum": "0.7", "mean_reversion": "0.3"},
                "account": {"cash": "1000000"},
                "sizing": {"mode": "tanh", "notional": "200000"},
                "risk": {"max_tail": "3000"},
            },
        ),
        [instrument()],
        execution=FillModel.NEXT_OPEN,
        period_start_ms=0,
        forecaster=forecaster,
    )

    def answered(mean: float, stdev: float, loss: float) -> Forecast:
        tails = struct.pack("<8f", *(2 * loss, 3 * loss, loss, 1.5 * loss) * 2)
        plain = forecast(mean, p_up=0.6, p_down=0.2)
        return replace(
            plain, stdev_return=(stdev,), heads=HeadForecasts(tails=tails, dropout_spread=bytes(4))
        )

    likely, wide = answered(0.002, 0.001, 0.001), answered(0.009, 0.02, 0.3)
    steps = [machine.step(candle, likely) for candle in BARS[:10]]
    assert {step.decision.refused_by for step in steps[4:] if step.decision} == {"edge"}
    before = quantity(steps[-1], "no_edge")
    steps = [machine.step(candle, wide) for candle in BARS[10:13]]
    assert {step.decision.refused_by for step in steps if step.decision} == {"risk.tail"}
    assert 0 < quantity(steps[-1], "no_edge") < before / 2
    more = answered(0.02, 0.001, 0.3)
    held = quantity(machine.step(BARS[13], more), "no_edge")
    assert quantity(machine.step(BARS[14], more), "no_edge") == held, "more of it is refused"
    short = replace(answered(-0.004, 0.02, 0.3), p_up=(0.2,), p_down=(0.6,))
    for candle in BARS[15:17]:
        step = machine.step(candle, short)
        assert step.decision
        assert step.decision.refused_by == "risk.tail"
    assert quantity(step, "no_edge") == held, "the other side, however small, is refused"


def test_a_shadow_signal_differs_from_the_runs_in_what_its_name_says() -> None:
    """A band scales with the target to the power of two thirds."""
    for seed in range(200):
        rng = random.Random(seed)
        given = {
            key: rng.choice((None, rng.uniform(0.1, 0.9)))
            for key in ("band", "by_forecast", "uncorrelated")
        }
        strength = rng.choice((0.0, rng.uniform(0.1, 0.9)))
        signal = Signal(Action.LONG, "why", strength, **given)  # type: ignore[arg-type]
        band, by_forecast, uncorrelated = given.values()
        due = dict.fromkeys(("ungated", "fixed_band", "sized_by_forecast", "uncorrelated"), signal)
        due["fixed_band"] = replace(signal, band=None)
        if by_forecast is not None and strength:
            scaled = None if band is None else band * (by_forecast / strength) ** (2 / 3)
            due["sized_by_forecast"] = replace(signal, strength=by_forecast, band=scaled)
        if uncorrelated is not None:
            due["uncorrelated"] = replace(signal, strength=uncorrelated)
        for name, wanted in due.items():
            got = shadow_signal(name, signal)
            assert got.band == (None if wanted.band is None else pytest.approx(wanted.band))
            assert replace(got, band=None) == replace(wanted, band=None)
    flat = Signal(Action.LONG, "why", 1.0, uncorrelated=0.0)
    assert shadow_signal("uncorrelated", flat).action is Action.FLAT
