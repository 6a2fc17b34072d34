"""No silent flat: an allowed bar ends in a position, an order or a reason, and shadows alike."""

from __future__ import annotations

from typing import Any

import pytest
from builders import MINUTE, START_MS, bar, instrument, present, quote
from engines import engine_of

from tracepaper import backtest
from tracepaper.daemon.config.loading import load
from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.engine.state import decode_state
from tracepaper.replay.checks.identity import decision_identity
from tracepaper.strategies.api.context import BarContext, Signal
from tracepaper.strategies.api.strategy import Strategy
from tracepaper.strategies.types.decisions import Action, FillModel, OrderStatus, Step
from tracepaper.strategies.types.market import Category, Command, CommandKind, InstrumentChange
from tracepaper.strategies.units import DAY_MS


class Wants(Strategy):
    """Signals the given actions, one a bar, and then the last one for ever."""

    shadows = ("ungated",)

    def __init__(self, options: dict[str, Any]) -> None:
        self._actions = [Action(name) for name in options["actions"]]

    def decide(self, context: BarContext) -> Signal:
        action = self._actions.pop(0) if len(self._actions) > 1 else self._actions[0]
        return Signal(action, f"wants {action.value}")


def engine(*actions: str, by: FillModel = FillModel.NEXT_OPEN, **sections: Any) -> Engine:
    given: dict[str, dict[str, Any]] = {
        "market": {"category": "spot"},
        "strategy": {"name": f"{__name__}:Wants", "options": {"actions": actions}},
        "sizing": {"mode": "fixed", "quantity": "1"},
        "account": {"cash": "100"},
        **sections,
    }
    return engine_of(given, [instrument(category=Category.SPOT)], execution=by)


def closes(machine: Engine, *prices: int) -> list[Step]:
    return [
        machine.step(bar(price, index=index, instrument_id="spot:BTCUSDT"), None)
        for index, price in enumerate(prices)
    ]


def unfilled(steps: list[Step]) -> list[str | None]:
    return [step.decision.unfilled_reason for step in steps if step.decision]


CASH = "cash does not cover it"


def test_an_order_is_cut_to_what_cash_covers_and_the_rest_waits_for_no_better_price() -> None:
    got = closes(engine("LONG", "HOLD"), 10_100, 10_090, 9_900, 5_000)
    assert unfilled(got) == [CASH] * 4
    assert [[fill.quantity for fill in step.fills] for step in got] == [[], [990], [], []]
    assert [bool(shadow.fills) for step in got for shadow in step.shadows] == [
        step.fills != () for step in got
    ]


def test_hold_does_not_ask_for_what_was_refused() -> None:
    small = instrument(category=Category.SPOT, min_notional=100 * 10**8)
    machine = engine("LONG", "HOLD")
    machine.step(InstrumentChange(small, START_MS, START_MS), None)
    got = closes(machine, 9_900, 10_100)
    assert unfilled(got) == ["notional below 100"] * 2
    assert not any(step.orders for step in got)


CATEGORIES = {
    "spot": ("spot", {}),
    "shares": ("stock", {}),
    "no margin": ("linear", {}),
    "isolated 1": ("linear", {"margin": "isolated", "leverage": "1"}),
    "isolated 5": ("linear", {"margin": "isolated", "leverage": "5"}),
    "cross 1": ("linear", {"margin": "cross", "leverage": "1"}),
}
SIZES: dict[str, dict[str, Any]] = {
    "all of equity": {"mode": "equity", "fraction": "1"},
    "part of equity": {"mode": "equity", "fraction": "0.5"},
    "notional": {"mode": "notional", "notional": "1000"},
    "fixed": {"mode": "fixed", "quantity": "10"},
    "risk": {"mode": "risk", "risk": "0.1"},
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", CATEGORIES)
def test_an_allowed_entry_of_any_size_is_filled_at_the_next_bar(kind: str, size: str) -> None:
    """Also if that bar opens higher; a later fall in price fills nothing more."""
    category, account = CATEGORIES[kind]
    opens = [100.0] * 8 + [103.0, 103.0, 99.0, 95.0]
    prices = dict.fromkeys(("open", "high", "low", "close"), opens)
    times = [START_MS // DAY_MS * DAY_MS + DAY_MS * at for at in range(len(opens))]
    columns = {"open_time": times, **prices, "volume": [10.0] * len(opens)}
    fills = backtest(
        Enters,
        {"BTCUSDT": columns},
        config={
            "market": {"category": category},
            "sizing": SIZES[size],
            "account": {"cash": "1000", **account},
        },
        frames="numpy",
        progress=False,
    ).fills
    assert fills["filled_ms"][0] == times[8]
    assert len(set(fills["order_id"])) == 1, "what was not covered is not bought later"


class Enters(Strategy):
    """Goes long at the eighth bar, and holds."""

    warmup = 1

    def decide(self, context: BarContext) -> Signal:
        if (context.time - START_MS) // DAY_MS != 7:
            return Signal(Action.HOLD, "waits")
        return Signal(Action.LONG, "enters", stop=context.close * 0.9)


def test_a_bar_that_a_gate_holds_sends_nothing_that_was_refused_before() -> None:
    machine = engine("LONG", gate={"late_ms": 0}, account={"cash": "0.01"})
    (first,) = closes(machine, 10_100)
    late = bar(9_900, index=1, late_ms=5, instrument_id="spot:BTCUSDT")
    step = machine.step(late, None)
    assert unfilled([first, step]) == [CASH, None]
    assert (present(step.decision).refused_by, step.orders) == ("late", ())


def test_a_size_below_the_step_is_said() -> None:
    machine = engine("LONG", sizing={"mode": "notional", "notional": "0.01"})
    assert unfilled(closes(machine, 10_100, 10_100)) == ["size below the step 0.001"] * 2


def test_what_the_filters_refuse_is_tried_again_when_the_filters_change() -> None:
    machine = engine("LONG", account={"cash": "1000"})
    strict = instrument(category=Category.SPOT, min_notional=500 * 10**8)
    machine.step(InstrumentChange(strict, START_MS, START_MS), None)
    first = closes(machine, 10_100)
    machine.step(InstrumentChange(instrument(category=Category.SPOT), START_MS, START_MS), None)
    second = machine.step(bar(10_100, index=1, instrument_id="spot:BTCUSDT"), None)
    assert unfilled([*first, second]) == ["notional below 500", None]
    assert second.orders[0].status is OrderStatus.ACCEPTED


def test_another_reason_is_stored_with_its_step() -> None:
    machine = engine("LONG", account={"cash": "1000"})
    steps = []
    for index, least in enumerate((500, 600)):
        strict = instrument(category=Category.SPOT, min_notional=least * 10**8)
        steps.append(machine.step(InstrumentChange(strict, START_MS, START_MS), None))
        steps.append(machine.step(bar(10_100, index=index, instrument_id="spot:BTCUSDT"), None))
    assert unfilled(steps) == ["notional below 500", "notional below 600"]
    assert steps[-1].state is not None
    assert decode_state(steps[-1].state) == machine.state()


def test_a_refusal_is_part_of_no_identity_that_parity_compares() -> None:
    poor, rich = engine("LONG"), engine("LONG", account={"cash": "1000"})
    pairs = zip(closes(poor, 10_100, 10_090), closes(rich, 10_100, 10_090), strict=True)
    of = instrument(category=Category.SPOT)
    assert all(decision_identity(a, of) == decision_identity(b, of) for a, b in pairs)


def test_a_refusal_is_no_trade_for_any_limit_and_a_fill_is_one() -> None:
    for cash, refusals in (("0.05", [None] * 4), ("100", [None, None, *["risk.daily_trades"] * 2])):
        limited: dict[str, Any] = {"risk": {"max_daily_trades": 1}, "account": {"cash": cash}}
        got = closes(engine("LONG", "FLAT", "LONG", **limited), *[9_900] * 4)
        assert [step.decision.refused_by for step in got if step.decision] == refusals


def test_an_order_that_is_filled_in_parts_is_one_trade() -> None:
    machine = by_quotes("LONG", "FLAT", risk={"max_daily_trades": 1})
    (decided,) = closes(machine, 10_000)
    at_ms = decided.event.market_ms + 200
    for part in range(3):
        thin = quote(size=200, at_ms=at_ms + part, instrument_id="spot:BTCUSDT")
        assert machine.step(thin, None).fills
    assert machine.state().risk.day_trades == 1


def by_quotes(*actions: str, **sections: Any) -> Engine:
    machine = engine(
        *actions, by=FillModel.QUOTE, account={"cash": "1000"}, gate={"stale_ms": 10**9}, **sections
    )
    machine.step(quote(at_ms=START_MS, instrument_id="spot:BTCUSDT"), None)
    return machine


LATE = "no quote filled it within 10,000 ms"


def test_an_order_without_a_quote_in_time_is_canceled_and_the_next_bar_sends_another() -> None:
    got = closes(by_quotes("LONG"), 10_000, 10_000)
    assert [(order.order_id, order.status) for step in got for order in step.orders] == [
        ("1-0", OrderStatus.ACCEPTED),
        ("1-0", OrderStatus.CANCELED),
        ("2-0", OrderStatus.ACCEPTED),
    ]
    assert got[1].orders[0].reason == LATE


@pytest.mark.parametrize(("after_ms", "fills"), [(10_100, True), (10_101, False)])
def test_a_quote_fills_up_to_the_last_millisecond_and_cancels_from_the_next(
    after_ms: int, fills: bool
) -> None:
    machine = by_quotes("LONG")
    (decided,) = closes(machine, 10_000)
    at_ms = decided.event.market_ms + after_ms
    step = machine.step(quote(at_ms=at_ms, instrument_id="spot:BTCUSDT"), None)
    assert bool(step.fills) is fills
    (order,) = step.orders
    assert order.status is (OrderStatus.FILLED if fills else OrderStatus.CANCELED)
    level = quote(instrument_id="spot:BTCUSDT")
    assert machine.broker.quote_from_ms(level) is None  # nor does the shadow's order rest


def test_the_wait_for_a_quote_is_wall_time_at_the_markets_pace() -> None:
    rules: dict[str, dict[str, Any]] = {
        "exchange": {"time_scale": 60.0},
        "execution": {"fill_within_ms": 500},
    }
    machine = by_quotes("LONG", **rules)
    (decided,) = closes(machine, 10_000)
    at_ms = decided.event.market_ms + 100 + 30_000
    step = machine.step(quote(at_ms=at_ms, instrument_id="spot:BTCUSDT"), None)
    assert step.fills
    slow, fast = (load(None, {"exchange": {"time_scale": pace}}) for pace in (1.0, 60.0))
    assert slow.sha256() != fast.sha256()


def test_the_operators_order_waits_and_a_refused_one_stands_rejected() -> None:
    machine = by_quotes("LONG")
    closes(machine, 10_000)
    at_ms = START_MS + MINUTE + 200
    assert machine.step(quote(at_ms=at_ms, instrument_id="spot:BTCUSDT"), None).fills
    machine.step(Command(CommandKind.FLATTEN, "", at_ms, at_ms), None)
    late = quote(at_ms=at_ms + 10**8, instrument_id="spot:BTCUSDT")
    (sold,) = machine.step(late, None).fills
    assert sold.reason == "FLATTEN"

    machine = by_quotes("LONG")
    closes(machine, 10_000)
    machine.step(quote(at_ms=at_ms, instrument_id="spot:BTCUSDT"), None)
    huge = instrument(category=Category.SPOT, min_quantity=10**6)
    machine.step(InstrumentChange(huge, at_ms, at_ms), None)
    (order,) = machine.step(Command(CommandKind.FLATTEN, "", at_ms, at_ms), None).orders
    assert (order.status, order.reason) == (OrderStatus.REJECTED, "quantity below 1000")
