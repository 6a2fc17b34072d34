"""Settlements, marks, changes, commands and restarts: booked once, and saved where they count."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from builders import MINUTE, START_MS, bar, bars, explanation, forecast, instrument, present
from engines import Says, engine_of
from exit_cases import KEY, flat_bars, held, long, machine, steps_of
from fakes import FixedForecaster

from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.engine.restart import Restart
from tracepaper.daemon.engine.state import decode_state
from tracepaper.strategies.api.context import Signal
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.gates.gate import MEASURES
from tracepaper.strategies.types.calibration import Calibration, RegimeCells
from tracepaper.strategies.types.decisions import Action, Regime
from tracepaper.strategies.types.market import (
    Command,
    CommandKind,
    Event,
    Funding,
    InstrumentChange,
    Mark,
    ModelChange,
    Side,
)

AT = START_MS + 3 * MINUTE
SHA = "b" * 64


def test_a_restart_carries_the_settlements_that_wait_whichever_came_first() -> None:
    items = [instrument("AUSDT"), instrument("BUSDT")]
    given = {"market": {"symbols": ["AUSDT", "BUSDT"]}, "strategy": {"name": "sma_cross"}}
    engine, restored = (engine_of(given, items) for _ in range(2))
    for item in reversed(items):
        engine.step(Funding(item.id, 10**6, AT, AT), None)
    Restart(restored).restore(engine.state(), next_sequence=engine.sequence)
    assert restored.encoded_state() == engine.encoded_state()


@pytest.mark.parametrize("event", [
    InstrumentChange(instrument(), AT, AT),
    ModelChange("", "", "v", "", "", "", 0, ((KEY, START_MS),), AT, AT),
])  # fmt: skip
def test_what_a_restart_does_not_know_is_valued_at_the_close_from_there(event: Event) -> None:
    engine = machine({0: long()})
    closed = steps_of(engine, flat_bars(3))[-1].account.equity
    assert engine.step(Mark(KEY, 9_900, AT, AT), None).account.equity < closed
    assert engine.step(event, None).account.equity == closed


CELLS = RegimeCells(
    ("recent_mass", "confidence_entropy"),
    *((0.5, 0.2), (0.05, 0.02)),
    ((-1.0, 0.0), (1.0, 0.0)),
    *((0.5, 2.0), (0.1, 0.1)),
)


def by_cells_calibration() -> Calibration:
    quantiles = {
        name: tuple(index / 100 for index in range(1, 100))
        for name in ("confidence_entropy", "collapsed", "shift", "recent_mass", "direction", "edge")
    }
    return Calibration(quantiles, {30: 1.0}, 0.0, cells=CELLS)


def by_cells() -> Engine:
    return engine_of(
        {"strategy": {"name": "attention"}},
        forecaster=FixedForecaster(lambda _bars: None, calibration=by_cells_calibration()),
    )


def forecast_of(mass: float) -> Any:
    return forecast(explained=explanation(recent_mass=mass))


def test_a_start_goes_on_in_the_cell_of_its_record() -> None:
    engine, again = by_cells(), by_cells()
    steps = [engine.step(candle, forecast_of(0.6)) for candle in bars(20)]
    state = next(step.state for step in reversed(steps) if step.state is not None)
    assert engine.markets[KEY].regimes.cell == 2
    Restart(again).restore(decode_state(state), next_sequence=20)
    assert again.markets[KEY].regimes.cell == 2
    between = forecast_of(0.499)  # nearer to the other cell, and not by enough to leave this one
    for started in (engine, again):
        started.step(bar(10_100, index=20), between)
        assert started.markets[KEY].regimes.cell == 2


def test_the_regime_follows_the_event_focus_of_the_forecast() -> None:
    engine = engine_of(
        {"strategy": {"name": "attention"}, "regime": {
            "momentum": "0.5", "mean_reversion": "0.1", "event_focus": "0.4"
        }},
        forecaster=FixedForecaster(lambda _bars: None, calibration=by_cells_calibration()),
    )  # fmt: skip
    regimes = []
    for index, focus in enumerate((0.3, 0.45)):
        looks = explanation(recent_mass=0.6, event_focus=focus)
        engine.step(bar(10_000, index=index), forecast(explained=looks))
        regimes.append(engine.markets[KEY].regimes.regime)
    assert regimes == [Regime.MOMENTUM, Regime.MEAN_REVERSION]


def test_a_bound_of_event_focus_needs_a_model_that_gives_it() -> None:
    forecaster = FixedForecaster(lambda _bars: None, calibration=by_cells_calibration())
    sections = {"strategy": {"name": "attention"}, "regime": {"event_focus": "q0.9"}}
    with pytest.raises(ConfigInvalid, match="the model's card has no quantiles of event_focus"):
        engine_of(sections, forecaster=forecaster)
    forecaster.measures = MEASURES - {"event_focus"}
    with pytest.raises(ConfigInvalid, match=r"leave regime\.event_focus out"):
        engine_of(sections, forecaster=forecaster)
    engine_of({"strategy": {"name": "attention"}}, forecaster=forecaster)


def test_the_usual_range_is_the_median_of_an_even_number_of_bars() -> None:
    engine = machine({})
    for index in range(10):
        half = 5 if index % 2 else 15
        engine.step(bar(10_000, index=index, high=10_000 + half, low=10_000 - half), None)
    assert engine.markets[KEY].usual_range() == 40


def test_a_breach_closes_nothing_over_the_operator_s_halt() -> None:
    engine = machine({0: long()}, risk={"max_drawdown": "0.000001", "on_breach": "flatten"})
    steps = steps_of(engine, flat_bars(2))
    engine.step(Command(CommandKind.HALT, "", AT, AT), None)
    decision = engine.step(bar(9_900, index=2), None).decision
    assert held(steps[-1]) == 1_000
    assert engine.risk.breach == "risk.drawdown"
    assert decision is not None
    assert (decision.action, decision.refused_by) == (Action.HOLD, "operator")


@pytest.mark.parametrize("kind", [CommandKind.HALT, CommandKind.FLATTEN])
def test_the_operators_halt_outlasts_a_restart_until_resume(kind: CommandKind) -> None:
    signals = {index: long() for index in range(2, 6)}
    before, after = machine(signals), machine(signals)
    steps_of(before, flat_bars(2))
    stored = before.step(Command(kind, "", AT, AT), None).state
    assert stored is not None, "the step of the command stores what the next start reads"
    Restart(after).restore(decode_state(stored), next_sequence=before.sequence)
    *refused, word, resumed = steps_of(
        after,
        [*flat_bars(4)[2:], Command(CommandKind.RESUME, "", AT, AT), bar(10_000, index=4)],
    )
    outcomes = [present(step.decision).refused_by for step in (*refused, resumed)]
    assert outcomes == ["operator", "operator", None]
    assert present(word.state) != stored


def fills_of(said: str, delay: int, *, halted_at: int = -1) -> list[tuple[int, Side, int]]:
    given = {"strategy": {"name": "sma_cross"}, "execution": {"delay_bars": delay}}
    given |= {"sizing": {"mode": "fixed", "quantity": "1"}, "account": {"cash": "1000000"}}
    engine = engine_of(given, strategy=Says(*[Signal(Action(of), of) for of in said.split()]))
    steps = []
    for at in range(28):
        steps.append(engine.step(bar(10_000, index=at), None))
        if at == halted_at:
            at_ms = steps[-1].event.market_ms
            steps.append(engine.step(Command(CommandKind.HALT, "", at_ms, at_ms), None))
    return [(of.filled_ms, of.side, of.quantity) for step in steps for of in step.fills]


@pytest.mark.parametrize("late", [1, 2, 3])
@pytest.mark.parametrize("seed", range(20))
def test_every_change_of_side_is_filled_as_many_bars_late_as_orders_are(
    seed: int, late: int
) -> None:
    drawn = Random(seed)
    said = "LONG FLAT " + " ".join(drawn.choices(["LONG", "SHORT", "FLAT", "HOLD"], k=20))
    punctual = fills_of(said, 0)
    assert len(punctual) >= 3
    assert fills_of(said, late) == [(at_ms + late * MINUTE, *of) for at_ms, *of in punctual]


def test_a_halt_keeps_the_order_on_its_way_and_the_exit_that_follows_it() -> None:
    punctual = fills_of("LONG FLAT SHORT FLAT", 0)
    assert [side for _, side, _ in punctual] == [Side.BUY, Side.SELL, Side.SELL, Side.BUY]
    late = fills_of("LONG FLAT SHORT FLAT", 5, halted_at=4)
    assert late == [(at_ms + 5 * MINUTE, *of) for at_ms, *of in punctual[:2]]
