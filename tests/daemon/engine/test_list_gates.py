"""Lists of orders: gates, the operator's commands, and the quotes that a feed passes on."""

from typing import Any

import pytest
from builders import MINUTE, bar, present, quote
from engines import Says, engine_of
from msgspec.structs import replace

from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.engine.restart import Restart
from tracepaper.strategies.api.context import Cancel, OrderRequest, Orders, Signal, buy, sell
from tracepaper.strategies.api.strategy import Strategy
from tracepaper.strategies.types.decisions import Action, FillModel, OrderRole, OrderStatus, Step
from tracepaper.strategies.types.market import Command, CommandKind, Gap, GapCause

DAY = 1440
KEY = "linear:BTCUSDT"


def engine(
    *answers: Orders | Signal,
    execution: FillModel = FillModel.NEXT_OPEN,
    gates: frozenset[str] = Strategy.gates,
    shadows: tuple[str, ...] = ("ungated",),
    **sections: dict[str, Any],
) -> Engine:
    strategy = Says(*answers)
    strategy.gates, strategy.shadows = gates, shadows
    return engine_of(
        {"strategy": {"name": "sma_cross"}, **sections}, execution=execution, strategy=strategy
    )


def step(machine: Engine, index: int, close: int = 10_000, **more: Any) -> Step:
    return machine.step(bar(close, index=index, **more), None)


def listed(*requests: OrderRequest | Cancel) -> Orders:
    return Orders(requests, "listed")


def held_by(machine: Engine) -> int:
    position = machine.step(bar(10_000, index=10_000), None).position
    assert position is not None
    return position.quantity


def test_a_list_that_passes_is_an_orders_decision_without_a_target() -> None:
    machine = engine(listed(buy(1), sell(1, limit=101)))
    decided = step(machine, 0)
    assert decided.decision is not None
    assert (decided.decision.action, decided.decision.target_quantity) == (Action.ORDERS, None)
    assert [order.order_id for order in decided.orders] == ["0-0", "0-1"]
    met = step(machine, 1)
    assert [fill.model for fill in met.fills] == [FillModel.NEXT_OPEN]
    assert met.decision is not None
    assert (met.decision.action, met.decision.target_quantity) == (Action.HOLD, 1_000)
    assert step(machine, 2).orders == ()  # HOLD leaves what the list reached


def test_judgement_refuses_entries_and_lets_through_what_only_reduces() -> None:
    """Without a forecast the gate direction fails; requests that only reduce skip judgement."""
    gates = Strategy.gates | {"direction"}
    entries = listed(buy(1))
    machine = engine(entries, listed(buy(1), sell(1, reduce_only=True), Cancel("a")), gates=gates)
    first = step(machine, 0)
    assert first.decision is not None
    assert (first.decision.action, first.decision.refused_by) == (Action.HOLD, "direction")
    assert first.orders == ()
    _plant(machine, buy(1, limit=99, tag="a"))
    second = step(machine, 1)
    assert second.decision is not None
    assert (second.decision.action, second.decision.allowed) == (Action.ORDERS, False)
    assert second.decision.reason == "refused by direction"
    assert [order.status for order in second.orders] == [
        OrderStatus.CANCELED,
        OrderStatus.REJECTED,  # there is no position to reduce; the entry is not even asked for
    ]


def _plant(machine: Engine, request: OrderRequest) -> None:
    """Let the order of *request* rest in *machine*, as a run that was taken over left it."""
    (order,) = step(engine(listed(request)), 0).orders
    state = machine.state()
    line = state.account.lines[KEY]
    lines = {KEY: replace(line, orders=replace(line.orders, others=(order,)))}
    Restart(machine).restore(
        replace(state, account=replace(state.account, lines=lines)), next_sequence=machine.sequence
    )


def test_the_shadow_sends_the_whole_list_whatever_judgement_says() -> None:
    machine = engine(listed(buy(1)), gates=Strategy.gates | {"direction"})
    step(machine, 0)
    (shadow,) = step(machine, 1).shadows
    assert [fill.quantity for fill in shadow.fills] == [1_000]
    assert shadow.position.quantity == 1_000


@pytest.mark.parametrize(("extra", "bought"), [(set(), 1_000), ({"edge"}, 0)])
def test_a_shadow_without_a_gate_sends_the_list_that_no_other_gate_refuses(
    extra: set[str], bought: int
) -> None:
    gates = Strategy.gates | {"direction"} | extra
    machine = engine(listed(buy(1)), gates=gates, shadows=("no_direction",))
    step(machine, 0)
    (shadow,) = step(machine, 1).shadows
    assert shadow.position.quantity == bought


def test_integrity_refuses_the_whole_list() -> None:
    machine = engine(listed(buy(1)), listed(), listed(sell(1, reduce_only=True)))
    step(machine, 0)
    step(machine, 1)
    machine.step(Command(CommandKind.HALT, "", 0, 0), None)
    halted = step(machine, 2)
    assert halted.decision is not None
    assert (halted.decision.action, halted.decision.refused_by) == (Action.HOLD, "operator")
    assert halted.orders == ()


def test_a_limit_of_risk_counts_all_that_rests_and_is_asked_for() -> None:
    rich = listed(buy(6, limit=99, tag="a"), buy(6, limit=98, tag="b"))
    machine = engine(
        listed(buy(6, limit=99, tag="a")), rich, listed(sell(1, reduce_only=True)),
        risk={"max_notional": "1000"},
    )  # fmt: skip
    assert len(step(machine, 0).orders) == 1
    second = step(machine, 1)
    assert second.decision is not None
    assert second.decision.refused_by == "risk.notional"
    assert len(step(machine, 2).orders) == 1  # it only reduces: it is asked for, and refused


def test_each_order_of_a_list_counts_among_those_of_the_hour() -> None:
    two = listed(buy(1, limit=99), buy(1, limit=98))
    machine = engine(two, two, risk={"max_hourly_orders": 2})
    assert len(step(machine, 0).orders) == 2
    second = step(machine, 1)
    assert second.decision is not None
    assert second.decision.refused_by == "risk.hourly_orders"


def test_a_request_that_replaces_is_not_counted_twice() -> None:
    same = listed(buy(6, limit=99, tag="a"))
    machine = engine(same, listed(buy(6, limit=98, tag="a")), risk={"max_notional": "1000"})
    step(machine, 0)
    second = step(machine, 1)
    assert second.decision is not None
    assert second.decision.allowed


def test_halt_takes_back_what_could_open_and_flatten_takes_back_all() -> None:
    machine = engine(listed(buy(1)), listed(buy(1, limit=99), sell(1, limit=101, reduce_only=True)))
    step(machine, 0)
    step(machine, 1)
    (opening,) = machine.step(Command(CommandKind.HALT, "", 0, 0), None).orders
    assert (opening.price, opening.status, opening.reason) == (
        9_900, OrderStatus.CANCELED, "HALT",
    )  # fmt: skip
    reducing, closing = machine.step(Command(CommandKind.FLATTEN, "", 0, 0), None).orders
    assert (reducing.status, closing.role) == (OrderStatus.CANCELED, OrderRole.COMMAND)
    assert held_by(machine) == 0


def test_a_breach_that_flattens_takes_back_what_could_open_whatever_is_listed_on() -> None:
    more, breach = (
        listed(buy(1), buy(6, limit=80)),
        {"max_drawdown": "0.001", "on_breach": "flatten"},
    )
    machine = engine(more, more, more, more, account={"cash": "100"}, risk=breach)
    for index, close in enumerate((10_000, 10_000, 9_000, 9_000)):
        last = step(machine, index, close)
    assert last.decision is not None
    assert last.decision.reason == "halted by risk.drawdown"
    assert held_by(machine) == len(machine.broker.account.lines[KEY].orders) == 0


def test_a_breach_refuses_what_could_open_and_no_bar_that_asks_for_less() -> None:
    """On the next day the bars have one action, one reason and one set of passed gates."""
    more, nothing = listed(buy(1)), Signal(Action.FLAT, "leave")
    breach = {"max_daily_loss": "5", "on_breach": "flatten"}
    answers = more, more, more, more, nothing, more, nothing
    machine = engine(*answers, account={"cash": "100"}, risk=breach)
    closes = (0, 10_000), (1, 10_000), (2, 9_000), *((DAY + index, 9_000) for index in range(4))
    decisions = [present(step(machine, *close).decision) for close in closes][4:]
    refused = [decision.refused_by for decision in decisions]
    assert refused == [None, "risk.halt", None]
    assert {decision.reason for decision in decisions} == {"halted by risk.daily_loss"}


# ---------------------------------------------------------------- what a feed has to hand on


def test_only_quotes_that_can_change_a_resting_limit_or_stop_are_events() -> None:
    machine = engine(
        listed(buy(1, limit=99), sell(1, stop=98, until=3 * MINUTE + bar().open_time_ms)),
        execution=FillModel.QUOTE,
        gate={"stale_ms": 10**9},
    )
    close = bar().close_time_ms
    machine.step(quote(9_990, 10_000, at_ms=close - 1), None)
    step(machine, 0)
    arrives = quote(9_990, 10_000, at_ms=close + 100)
    assert machine.broker.quote_from_ms(arrives) == close + 100
    assert {order.status for order in machine.step(arrives, None).orders} == {OrderStatus.ACCEPTED}

    def matters(bid: int, ask: int, after_ms: int = 200) -> bool:
        return machine.broker.quote_from_ms(quote(bid, ask, at_ms=close + after_ms)) is not None

    assert not matters(9_990, 10_000)
    assert not matters(9_890, 9_900)  # at the limit, not through it
    assert matters(9_880, 9_890)
    assert matters(9_800, 9_900)  # the bid touches the stop
    assert not matters(9_810, 9_900)
    assert matters(9_990, 10_000, after_ms=2 * MINUTE)  # the stop's time is over


@pytest.mark.parametrize(
    "exit_", [Signal(Action.FLAT, "out"), Orders((sell(1, reduce_only=True),), "out")]
)
@pytest.mark.parametrize(
    ("index", "close", "gate", "open_"),
    [(15, 10_000, "gap", 16), (13, 100, "plausible", 14), (13, 10_000, "late", 15)],
)
def test_a_hole_a_crash_or_lateness_holds_up_no_exit(
    exit_: Signal | Orders, index: int, close: int, gate: str, open_: int
) -> None:
    """The run and its shadow account leave at the next open that is no past one; turns wait."""
    turns = Signal(Action.SHORT, "down")
    for answer, leaves in ((exit_, True), (turns, False)):
        machine = engine(*[Signal(Action.LONG, "up")] * 13, answer)
        for before in range(13):
            held = present(step(machine, before, 10_000 + before % 3).position).quantity
        judged = step(machine, index, close, late_ms=60_001 * (gate == "late"))
        assert (held > 0, present(judged.decision).refused_by) == (True, gate)
        for after in (index + 1, index + 2):
            met, is_met = step(machine, after, close), leaves and after == open_
            assert (len(met.fills), len(met.shadows[0].fills)) == (is_met, is_met)


def test_a_late_exit_waits_for_a_quote_and_no_bar_of_the_backlog_fills_it() -> None:
    leaves = Orders((sell(1, reduce_only=True), sell(1, limit=99, reduce_only=True)), "out")
    machine = engine(Signal(Action.LONG, "up"), leaves, execution=FillModel.QUOTE, shadows=())
    seen = bar(index=60).close_time_ms
    machine.step(quote(9_990, 10_000, at_ms=bar().close_time_ms - 1), None)
    step(machine, 0)
    entered = machine.step(quote(9_990, 10_000, at_ms=bar().close_time_ms + 1_000), None)
    assert present(entered.position).quantity > 0
    until = bar(index=60).open_time_ms
    machine.step(
        Gap(KEY, bar(index=1).open_time_ms, until, GapCause.DOWN, "rest", seen, seen), None
    )
    for index in range(1, 60):
        backlog = step(machine, index, late_ms=seen - bar(index=index).close_time_ms)
        assert backlog.fills == ()
    met = machine.step(quote(9_990, 10_000, at_ms=seen + 1_000), None)
    assert {fill.order_id.partition("-")[0] for fill in met.fills} == {"4"}
