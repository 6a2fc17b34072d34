"""The [exits] of the configuration: with a signal's own exits, by age and by forecast."""

from __future__ import annotations

from math import exp
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest
from builders import MINUTE, START_MS, bar, bars, forecast, instrument, present
from engines import engine_of
from exit_cases import (
    FLAT,
    KEY,
    at_quotes,
    entered,
    fills,
    flat_bars,
    held,
    long,
    machine,
    of_role,
    others,
    path,
    quoted,
    short,
    steps_of,
)
from fakes import FixedForecaster
from programs import ROOT

import tracepaper
from tracepaper.daemon.broker.execution import MeanRange
from tracepaper.daemon.broker.exit_orders import due_from_ms
from tracepaper.daemon.broker.exit_plans import (
    Exits,
    ExpectedReturn,
    HeldPosition,
    Plan,
    Planner,
    ProtectionState,
)
from tracepaper.daemon.config.loading import load, restore
from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.engine.restart import Restart
from tracepaper.daemon.engine.state import decode_state
from tracepaper.daemon.session.build import warmup_bars
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.run_views import RunViews
from tracepaper.strategies.api.context import BarContext, Percent, Signal, Volatility
from tracepaper.strategies.api.strategy import Strategy
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.types.calibration import Calibration
from tracepaper.strategies.types.decisions import (
    Action,
    Forecast,
    Liquidity,
    Order,
    OrderRole,
    OrderStatus,
    Step,
)
from tracepaper.strategies.types.market import Quote

CANDLES = ROOT / "replay" / "samples" / "binance_um_BTCUSDT_1m_2025-05-26.csv.gz"
FORECASTER = FixedForecaster(lambda _bars: None)
ROI = {"0": "4%", "3": "2%", "5": "1%"}


def placed(steps: list[Step], role: OrderRole) -> Order:
    (order,) = of_role(steps, role)
    return order


@pytest.mark.parametrize(("signal", "trigger"), [(long(), 9_800), (short(), 10_200)])
def test_a_signal_without_a_stop_gets_the_configured_one(signal: Signal, trigger: int) -> None:
    against = path(2, 10_000, 10_300, 9_700, 10_000)
    steps = entered(signal, against, exits={"stop_loss": "2%"})
    stop = placed(steps[:2], OrderRole.STOP)
    assert (stop.trigger, stop.reason) == (trigger, "exits.stop_loss 2 %")
    assert [(fill.price, fill.reason) for fill in steps[2].fills] == [
        (trigger, "exits.stop_loss 2 %")
    ]
    assert held(steps[2]) == 0


@pytest.mark.parametrize(
    ("side", "levels", "keys", "role", "price"),
    [
        (long, {"stop": 99.0}, {"stop_loss": "2%"}, OrderRole.STOP, 9_900),
        (long, {"stop": 97.0}, {"stop_loss": "2%"}, OrderRole.STOP, 9_800),
        (short, {"stop": Percent(1)}, {"stop_loss": "2%"}, OrderRole.STOP, 10_100),
        (short, {"stop": Percent(3)}, {"stop_loss": "2%"}, OrderRole.STOP, 10_200),
        (long, {"target": 101.0}, {"take_profit": "2%"}, OrderRole.TARGET, 10_100),
        (long, {"target": 103.0}, {"take_profit": "2%"}, OrderRole.TARGET, 10_200),
        (short, {"target": 97.0}, {"minimal_roi": {"0": 0.02}}, OrderRole.TARGET, 9_800),
        (short, {"target": 99.0}, {"minimal_roi": {"0": 0.02}}, OrderRole.TARGET, 9_900),
        (long, {"trailing": 1.0}, {"trailing": "2%"}, OrderRole.TRAILING, 9_900),
        (long, {"trailing": 3.0}, {"trailing": "2%"}, OrderRole.TRAILING, 9_800),
    ],
)
def test_of_a_signal_s_level_and_a_configured_one_the_nearer_stands(
    side: Any, levels: dict[str, Any], keys: dict[str, Any], role: OrderRole, price: int
) -> None:
    order = placed(entered(side(**levels), exits=keys), role)
    assert (order.trigger or order.price) == price
    assert order.reason.startswith("exits.") is (price in {9_800, 10_200})


def test_the_same_signal_waits_after_a_configured_stop_unless_it_may_reenter() -> None:
    signals = dict.fromkeys(range(5), long())
    events = [*flat_bars(2), path(2, 10_000, 10_000, 9_700, 10_000), *flat_bars(5)[3:]]
    steps = steps_of(machine(signals, exits={"stop_loss": "2%"}), events)
    assert present(steps[2].decision).unfilled_reason == (
        "closed by its stop; it enters again after another signal"
    )
    assert [held(step) for step in steps] == [0, 1_000, 0, 0, 0]
    steps = steps_of(machine(signals, exits={"stop_loss": "2%", "reenter": True}), events)
    assert [held(step) for step in steps] == [0, 1_000, 0, 1_000, 1_000]


def test_a_configured_level_stays_where_its_entry_set_it_while_a_signal_s_own_moves() -> None:
    history = bars(1_500, seed=4)  # a day has 1,440
    signals = dict.fromkeys(range(1_450, 1_500), long())
    steps = steps_of(
        machine(signals, exits={"stop_loss": "20 atr", "take_profit": "30 atr"}), history
    )
    stop = placed(steps, OrderRole.STOP)
    assert stop.status is not OrderStatus.FILLED
    assert stop.reason.startswith("exits.stop_loss 20 x ATR(1d)")
    changes = [order for step in steps[1_452:] for order in step.orders]
    assert changes == [], "neither moved nor amended"
    assert not any(step.state for step in steps[1_452:]), "nothing to store"
    moving = dict.fromkeys(signals, long(stop=Volatility(20)))
    moved = steps_of(machine(moving), history)
    assert len({order.trigger for step in moved for order in step.orders} - {None}) > 5


def test_a_configured_level_comes_back_where_the_signal_no_longer_names_a_nearer_one() -> None:
    signals = {0: long(stop=99.0), 2: long()}
    steps = steps_of(machine(signals, exits={"stop_loss": "2%"}), flat_bars(4))
    assert [order.trigger for step in steps for order in step.orders if order.trigger] == [
        9_900,
        9_800,
    ]


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


def test_a_level_of_the_other_side_s_plan_is_no_reason_to_keep_it() -> None:
    exits = Exits.of(load(None, {"exits": {"stop_loss": "q0.1"}}).exits.model_dump(), FORECASTER)
    planner, expected = Planner(instrument(), exits), ExpectedReturn(0.001, 0.01, 0.01)
    day = MeanRange.of_day(MINUTE)

    def plan(side: Signal, held: HeldPosition | None) -> Plan:
        plan = planner.plan(side, 10_000, 10_000, 0, day, expected=expected, held=held)
        assert isinstance(plan, Plan)
        return plan

    of_short = plan(short(), None)
    assert plan(short(), HeldPosition(of_short, 0)) == of_short
    assert plan(long(), HeldPosition(of_short, 0)) == plan(long(), None)
    assert plan(long(), None).stop != of_short.stop


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


def test_a_repeated_signal_without_exits_stores_the_state_as_ever() -> None:
    signals = dict.fromkeys(range(4), long(stop=98.0))
    assert steps_of(machine(signals), flat_bars(4))[-1].state is not None
    assert steps_of(machine(signals, exits={"stop_loss": "9%"}), flat_bars(4))[-1].state is None


def test_a_signal_that_takes_its_exit_back_keeps_the_exits() -> None:
    """No quote fills the FLAT; the next LONG repeats the plan, so no next plan remains."""
    signals = {0: long(), 2: FLAT, 3: long()}
    events = [*flat_bars(1), quoted(10_000, 1), *flat_bars(4)[1:]]
    engine, _ = at_quotes(signals, events, exits={"stop_loss": "2%"})
    assert engine.broker.account.line(KEY).protection.next_plan is None
    assert [order.role for order in others(engine)] == [OrderRole.STOP]


# ---------------------------------------------------------------- by age


@pytest.mark.parametrize("side", [1, -1])
def test_the_target_of_minimal_roi_comes_nearer_with_age(side: int) -> None:
    def mirrored(index: int, *prices: int) -> Any:
        open_, high, low, close = (10_000 + side * (price - 10_000) for price in prices)
        return path(index, open_, max(high, low), min(high, low), close)

    signal = long() if side > 0 else short()
    steps = entered(
        signal,
        mirrored(2, 10_000, 10_250, 10_000, 10_100),  # 1 minute old: 4 %
        mirrored(3, 10_100, 10_150, 10_100, 10_100),
        mirrored(4, 10_100, 10_190, 10_100, 10_100),  # 3 minutes old: 2 %
        mirrored(5, 10_100, 10_210, 10_100, 10_100),
        exits={"minimal_roi": ROI},
    )
    targets = [
        order.price for step in steps for order in step.orders if order.role is OrderRole.TARGET
    ]
    assert targets[:2] == [10_000 + side * 400, 10_000 + side * 200]
    assert steps[4].orders[0].reason == "exits.minimal_roi 2 % after 3m"
    (fill,) = steps[5].fills
    assert (fill.price, fill.reason, fill.liquidity) == (
        10_000 + side * 200, "exits.minimal_roi 2 % after 3m", Liquidity.MAKER,
    )  # fmt: skip


def test_a_position_that_has_its_return_when_the_table_falls_is_closed_at_that_open() -> None:
    steps = entered(
        long(),
        path(2, 10_300, 10_300, 10_300, 10_300),
        path(3, 10_300, 10_300, 10_300, 10_300),
        path(4, 10_290, 10_310, 10_290, 10_300),
        exits={"minimal_roi": ROI},
    )
    (fill,) = steps[4].fills
    assert (fill.price, fill.liquidity, fill.filled_ms) == (
        10_290, Liquidity.TAKER, START_MS + 4 * MINUTE,
    )  # fmt: skip


def test_a_table_without_a_first_minute_has_no_target_until_its_first_step() -> None:
    steps = steps_of(machine({0: long()}, exits={"minimal_roi": {"3": "0%"}}), [
        *flat_bars(2), path(2, 10_000, 10_500, 10_000, 10_000), bar(9_990, index=3),
        path(4, 9_990, 10_010, 9_990, 9_990),
    ])  # fmt: skip
    assert [(fill.price, fill.reason) for fill in fills(steps)[1:]] == [
        (10_000, "exits.minimal_roi 0 % after 3m")
    ]


def test_a_repeated_signal_leaves_the_target_of_its_age() -> None:
    signals = dict.fromkeys(range(9), long())
    steps = steps_of(machine(signals, exits={"minimal_roi": ROI}), flat_bars(9))
    prices = [order.price for step in steps for order in step.orders if order.price]
    assert prices == [10_400, 10_200, 10_100]


def test_a_time_limit_closes_at_the_first_open_of_that_age() -> None:
    steps = steps_of(machine({0: long()}, exits={"time_limit": "3m"}), flat_bars(6))
    assert [held(step) for step in steps] == [0, 1_000, 1_000, 1_000, 0, 0]
    (fill,) = steps[4].fills
    assert (fill.reason, fill.filled_ms) == ("exits.time_limit 3m", START_MS + 4 * MINUTE)
    assert placed(steps, OrderRole.UNTIL).reason == "exits.time_limit 3m"
    # The signal's own time comes first where it is earlier.
    timed = {0: long(until=START_MS + 2 * MINUTE)}
    steps = steps_of(machine(timed, exits={"time_limit": "3m"}), flat_bars(6))
    assert [fill.reason for fill in fills(steps)] == ["up", "until"]
    both = {0: long(until=START_MS + 4 * MINUTE)}
    steps = steps_of(machine(both, exits={"time_limit": "3m"}), flat_bars(6))
    assert [fill.reason for fill in fills(steps)] == ["up", "until"]


def test_a_reversal_starts_its_own_age() -> None:
    signals = {0: long(), 2: short()}
    steps = steps_of(machine(signals, exits={"time_limit": "3m"}), flat_bars(9))
    assert [held(step) for step in steps] == [0, 1_000, 1_000, -1_000, -1_000, -1_000, 0, 0, 0]
    engine = machine({0: long(), 1: FLAT}, exits={"time_limit": "3m"})
    flat = steps_of(engine, flat_bars(6))
    assert [held(step) for step in flat] == [0, 1_000, 0, 0, 0, 0]
    assert engine.broker.account.line(KEY).protection == ProtectionState()


def test_quotes_are_asked_for_from_the_time_at_which_the_target_or_the_position_changes() -> None:
    keys = {"minimal_roi": {"0": "4%", "1": "1%"}, "time_limit": "2m"}
    engine, _ = at_quotes({0: long()}, [*flat_bars(1), quoted(9_990, 0)], exits=keys)
    opened_ms = START_MS + MINUTE
    assert engine.broker.quote_from_ms(quoted(10_050, 59)) is None
    at_a_minute = quoted(10_095, 60)  # its ask is beyond the new target, its bid is not
    assert engine.broker.quote_from_ms(at_a_minute) == opened_ms + MINUTE
    step = engine.step(at_a_minute, None)
    assert [(order.price, order.reason, order.status) for order in step.orders] == [
        (10_100, "exits.minimal_roi 1 % after 1m", OrderStatus.ACCEPTED)
    ]
    assert engine.broker.quote_from_ms(quoted(10_060, 61)) is None
    after = quoted(10_060, 120)
    assert engine.broker.quote_from_ms(after) == opened_ms + 2 * MINUTE
    assert [fill.reason for fill in engine.step(after, None).fills] == ["exits.time_limit 2m"]
    assert others(engine) == ()


def test_a_time_limit_that_waits_for_a_quote_grows_with_what_its_entry_still_fills() -> None:
    at_ms = START_MS + 2 * MINUTE + 1_000
    no_bid = Quote(KEY, 9_990, 0, 10_000, 600, at_ms, at_ms)
    events: list[Any] = [*flat_bars(1), quoted(9_990, 0, size=400), no_bid]
    patient = {"time_scale": 20.0}  # an entry waits ten seconds of the wall's
    engine, _ = at_quotes({0: long()}, events, exits={"time_limit": "1m"}, exchange=patient)
    (closing,) = others(engine)
    assert (closing.role, closing.quantity) == (OrderRole.UNTIL, 1_000)
    assert closing.reason == "exits.time_limit 1m"


def test_an_entry_that_no_quote_filled_has_no_age() -> None:
    events: list[Any] = [*flat_bars(1), bar(10_000, index=1)]
    engine, steps = at_quotes({0: long()}, events, exits={"time_limit": "1m"})
    assert steps[1].orders[0].status is OrderStatus.CANCELED
    assert engine.broker.account.line(KEY).protection.plan is not None
    assert due_from_ms(engine.broker.account.line(KEY), quoted(10_000, 90)) is None


def test_exits_survive_a_restart_at_any_bar() -> None:
    history = bars(60, seed=11)
    keys = {"stop_loss": "3%", "trailing": "2%", "minimal_roi": {"0": "3%", "4": "1%", "9": "0%"},
            "time_limit": "12m"}  # fmt: skip
    signals = {0: long(), 14: FLAT, 15: short(), 30: long(), 44: short()}
    expected = steps_of(machine(signals, exits=keys), history)
    reasons = {fill.reason.partition(" ")[0] for fill in fills(expected)}
    assert len(reasons & {"exits.minimal_roi", "exits.trailing", "exits.time_limit"}) >= 2
    for cut in range(1, 60, 2):
        after = machine(signals, exits=keys)
        state = next(step.state for step in reversed(expected[:cut]) if step.state is not None)
        Restart(after).restore(decode_state(state), next_sequence=cut)
        for candle in history[:cut]:
            Restart(after).recall(candle)
        again = steps_of(after, history[cut:])
        assert [step.fills for step in again] == [step.fills for step in expected[cut:]]
        assert [step.orders for step in again] == [step.orders for step in expected[cut:]]


# ---------------------------------------------------------------- by forecast and by size


class ForecastEntries(Strategy):
    """Enters at given bars, with a model that forecasts given numbers."""

    gates = frozenset({"operator"})
    needs_forecast = True

    def __init__(self, action: Action) -> None:
        self._signal = Signal(action, "as told")

    def decide(self, context: BarContext) -> Signal:
        return self._signal


def forecasting(
    action: Action, measures: frozenset[str] | None = None, slope: float = 1.0, **exits: Any
) -> Engine:
    calibration = Calibration({}, {30: slope}, 0.0)
    forecaster = FixedForecaster(lambda _bars: None, calibration=calibration)
    if measures is not None:
        forecaster.measures = measures
    given = {
        "sizing": {"mode": "fixed", "quantity": "1"},
        "execution": {"taker_fee": "0", "model": "next_open"},
        "exits": exits,
    }
    return engine_of(given, forecaster=forecaster, strategy=ForecastEntries(action))


@pytest.mark.parametrize("sign", [1, -1])
def test_the_levels_of_a_forecast_are_those_of_its_law(sign: int) -> None:
    action = Action.LONG if sign > 0 else Action.SHORT
    engine = forecasting(
        action, slope=0.5, stop_loss="q0.05", take_profit="q0.9", trailing="10 volatility"
    )
    answer: Forecast = forecast(sign * 0.004)  # deviation 0.004, volatility 0.005
    steps = [engine.step(candle, answer) for candle in flat_bars(3)]
    law = NormalDist(0.002, 0.004)

    def at_tick(log_return: float) -> int:
        return round(1_000 * exp(log_return)) * 10

    stop, target = placed(steps, OrderRole.STOP), placed(steps, OrderRole.TARGET)
    assert stop.trigger == at_tick(sign * law.inv_cdf(0.05))
    assert target.price == at_tick(sign * law.inv_cdf(0.9))
    assert placed(steps, OrderRole.TRAILING).trigger == at_tick(-sign * 10 * 0.005)
    assert stop.reason == "exits.stop_loss q0.05"


def test_without_a_forecast_nothing_is_entered_that_could_not_be_protected() -> None:
    engine = forecasting(Action.LONG, stop_loss="2 volatility")
    first, second = engine.step(bar(10_000), None), engine.step(bar(10_000, index=1), forecast())
    assert (
        present(first.decision).unfilled_reason == "no forecast from which to place exits.stop_loss"
    )
    assert present(second.decision).unfilled_reason is None
    assert not fills([first, second])


def test_a_level_that_the_forecast_does_not_reach_refuses_the_entry() -> None:
    engine = forecasting(Action.LONG, take_profit="q0.2")
    step = engine.step(bar(10_000), forecast(0.002))
    assert present(step.decision).unfilled_reason == (
        "exits.take_profit q0.2 is not above the close"
    )


def test_a_model_that_lacks_what_exits_follow_is_refused() -> None:
    with pytest.raises(ConfigInvalid, match="gets no volatility of a model"):
        forecasting(Action.LONG, frozenset({"mean_return"}), stop_loss="2 volatility")
    with pytest.raises(ConfigInvalid, match="gets no mean_return and stdev_return of a model"):
        machine({}, exits={"take_profit": "q0.9"})


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
