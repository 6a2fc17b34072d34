"""The [exits] of the configuration: with a signal's own exits, by age and by forecast."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from builders import MINUTE, instrument
from exit_cases import entered, fills, flat_bars, held, long, machine, path, short, steps_of
from fakes import FixedForecaster
from msgspec import structs
from programs import ROOT

import tracepaper
from tracepaper.daemon.broker.execution import MeanRange
from tracepaper.daemon.broker.exit_plans import Exits, ExpectedReturn, Plan, Planner
from tracepaper.daemon.config.loading import load, restore
from tracepaper.daemon.engine.restart import Restart
from tracepaper.daemon.session.build import warmup_bars
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.run_views import RunViews
from tracepaper.strategies.api.context import Percent
from tracepaper.strategies.errors import ConfigInvalid

CANDLES = ROOT / "replay" / "samples" / "binance_um_BTCUSDT_1m_2025-05-26.csv.gz"
FORECASTER = FixedForecaster(lambda _bars: None)


def test_a_held_position_beyond_its_configured_stop_is_closed_at_the_next_price() -> None:
    events = [
        *flat_bars(2),
        path(2, 9_500, 9_500, 9_500, 9_500),
        path(3, 9_490, 9_490, 9_490, 9_490),
    ]
    before = machine({0: long()})
    steps_of(before, events[:3])
    after = machine({2: long()}, exits={"stop_loss": "2%"})
    Restart(after).restore(before.state(), next_sequence=2)
    steps = steps_of(after, events[2:])
    assert [(fill.price, fill.reason) for fill in fills(steps)] == [(9_490, "exits.stop_loss 2 %")]


def test_a_start_knows_the_day_of_bars_in_whose_ranges_exits_count() -> None:
    assert machine({}, exits={"trailing": "2%"}).bars_before < 1_440
    assert machine({}, exits={"trailing": "2 atr"}).bars_before == 1_441
    of_hours = load(None, {"market": {"interval": "60"}, "exits": {"take_profit": "2 atr"}})
    assert warmup_bars({}, of_hours) == 25


@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize(
    ("level", "number", "fault"),
    [
        ("stop", -0.02, "not above zero"),
        ("target", 0.0, "not above zero"),
        ("stop", 9.99, "a price of less than a tenth of the close"),
        ("target", 1_000.1, "a price of more than ten times the close"),
        ("trailing", -20.0, "not above zero"),
        ("trailing", 0.02, "less than a tick"),
        ("trailing", 50.1, "a distance of more than half of the close"),
        ("trailing", 49.9, ""),
        ("trailing", 0.1, ""),
    ],
)
def test_a_share_that_stands_for_a_price_is_refused_with_percent_written_out(
    level: str, number: float, fault: str, side: int
) -> None:
    signal = structs.replace(long() if side > 0 else short(), **{level: number})
    plan = Planner(instrument()).plan(signal, 10_000, 10_000, 0, MeanRange.of_day(MINUTE))
    assert isinstance(plan, str) is bool(fault)
    if isinstance(plan, str):
        assert plan.endswith(f" is {fault}; Percent(2) is 2 % of the entry price")


@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize("size", [1e308, 1e3, 700.0, 300.0, -1e308, -1e3, -700.0])
@pytest.mark.parametrize("text", ["q0.1", "2 volatility"])
def test_a_level_by_a_forecast_of_any_finite_number_is_a_price_or_a_sentence(
    text: str, size: float, side: int
) -> None:
    """A model service may answer so: no power overflows, every stored number fits in 64 bits."""
    section = {"stop_loss": text, "take_profit": "2 volatility", "trailing": text}
    exits = Exits.of(load(None, {"exits": section}).exits.model_dump(), FORECASTER)
    planner, day = Planner(instrument(), exits), MeanRange.of_day(MINUTE)
    signal = long() if side > 0 else short()
    for expected in (
        ExpectedReturn(size, 1e-320, abs(size)),
        ExpectedReturn(0.0, abs(size), 5e-324),
        ExpectedReturn(-size, abs(size), abs(size)),
    ):
        plan = planner.plan(signal, 10_000, 10_000, 0, day, expected=expected)
        if isinstance(plan, str):
            assert len(plan) < 80
            continue
        for level in (plan.stop, plan.target, plan.trailing):
            assert level is not None
            assert abs(level.value) < 2**63
            assert 0 < level.at(10_000, 1) < 2**63


@pytest.mark.parametrize("number", [1e308, -1e308])
def test_a_level_of_any_finite_number_is_refused_in_a_sentence(number: float) -> None:
    planner, day = Planner(instrument()), MeanRange.of_day(MINUTE)
    for away in (number, Percent(number), Percent(-number)):
        for key in ("stop", "target", "trailing"):
            plan = planner.plan(long(**{key: away}), 10_000, 10_000, 0, day)
            if isinstance(plan, Plan):  # far on the right side, and kept within 64 bits
                level = getattr(plan, key)
                assert abs(level.value) < 2**63
            else:
                assert plan.startswith(("stop", "target", "trailing stop"))


@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize(
    ("levels", "configured", "distance"),
    [
        ({"stop": Percent(2)}, {}, 200),
        ({"stop": 3.0}, {}, 300),
        ({"stop": 3.0, "trailing": 1.5}, {}, 150),
        ({"stop": -3.0}, {}, 0),  # it loses nothing there
        ({"target": 3.0}, {}, 0),
        ({}, {"stop_loss": "4%"}, 400),
        ({"stop": 3.0}, {"stop_loss": "1%"}, 100),
    ],
)
def test_a_size_by_its_stop_counts_the_nearest_stop_of_either_side(
    levels: dict[str, Any], configured: dict[str, str], distance: int, side: int
) -> None:
    given = {
        key: 100 - side * level if key == "stop" and not isinstance(level, Percent) else level
        for key, level in levels.items()
    }
    exits = Exits.of(load(None, {"exits": configured}).exits.model_dump(), FORECASTER)
    planner, day = Planner(instrument(), exits), MeanRange.of_day(MINUTE)
    signal = long(**given) if side > 0 else short(**given)
    assert planner.distance(signal, 10_000, day) == distance


@pytest.mark.parametrize("exits", [{}, {"stop_loss": "9%"}])
def test_a_repeated_signal_stores_no_state(exits: dict[str, str]) -> None:
    signals = dict.fromkeys(range(4), long(stop=98.0))
    _, _, *repeated = steps_of(machine(signals, exits=exits), flat_bars(4))
    assert [step.state for step in repeated] == [None, None]


# ---------------------------------------------------------------- by forecast and by size


def test_a_model_that_lacks_what_exits_follow_is_refused() -> None:
    poor = FixedForecaster(lambda _bars: None)
    poor.measures = frozenset({"mean_return"})
    for key, text, forecaster, missing in (
        ("stop_loss", "2 volatility", poor, "volatility"),
        ("take_profit", "q0.9", None, "mean_return and stdev_return"),
    ):
        section = load(None, {"exits": {key: text}}).exits.model_dump()
        with pytest.raises(ConfigInvalid, match=f"gets no {missing} of a model"):
            Exits.of(section, forecaster)


def test_a_size_by_risk_follows_the_configured_stop() -> None:
    sizing = {"mode": "risk", "risk": "0.01"}
    steps = entered(long(), sizing=sizing, exits={"stop_loss": "2%"})
    assert held(steps[1]) == 1_000_000 * 0.01 / 2 * 1_000, "loses 1 % of equity 2 under 100"
    nearer = entered(long(stop=99.0), sizing=sizing, exits={"stop_loss": "2%"})
    assert held(nearer[1]) == 2 * held(steps[1])


# ---------------------------------------------------------------- a whole run


def test_a_run_under_exits_is_verified_and_its_reasons_are_reported(tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "market": {"interval": "5"},
        "exits": {"stop_loss": "0.5%", "minimal_roi": {"0": "1%", "120": "0.2%"}, "reenter": True},
    }
    database = tmp_path / "run.db"
    with tracepaper.backtest("sma_cross", CANDLES, config=config, db=database) as run:
        assert run.verify().passes
        reasons = set(run.trades["exit_reason"])
    assert reasons == {
        "exits.stop_loss 0.5 %",
        "exits.minimal_roi 1 %",
        "exits.minimal_roi 0.2 % after 2h",
        "fast average not above slow",
    }
    with Reader.open(database) as reader:
        kept = restore(RunViews(reader.connection, run.run_id).run()["config"])
    assert kept.exits == load(None, {"exits": config["exits"]}).exits
