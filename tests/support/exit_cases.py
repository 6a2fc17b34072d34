"""Runs in which a strategy says what it is told, and what became of its exit orders."""

from __future__ import annotations

from typing import Any

from builders import MINUTE, START_MS, bar, instrument, present, quote
from engines import engine_of

from tracepaper.daemon.engine.engine import Engine
from tracepaper.strategies.api.context import BarContext, Signal
from tracepaper.strategies.api.strategy import Strategy
from tracepaper.strategies.types.decisions import Action, Fill, FillModel, Order, OrderRole, Step
from tracepaper.strategies.types.market import Bar, Category, Event

KEY = "linear:BTCUSDT"
HOLD = Signal(Action.HOLD, "nothing")
COSTLESS: dict[str, Any] = {"taker_fee": "0", "slippage_bp": "0", "spread_bp": "0"}


class Says(Strategy):
    """Says what it is told at the bars that it is told, and holds at the others."""

    gates = frozenset({"operator"})

    def __init__(self, signals: dict[int, Signal], shadows: tuple[str, ...] = ()) -> None:
        self.signals = signals
        self.shadows = shadows

    def decide(self, context: BarContext) -> Signal:
        return self.signals.get((context.exact.open_time_ms - START_MS) // MINUTE, HOLD)


def machine(
    signals: dict[int, Signal],
    *,
    execution: FillModel = FillModel.NEXT_OPEN,
    category: Category = Category.LINEAR,
    shadows: tuple[str, ...] = (),
    **sections: dict[str, Any],
) -> Engine:
    given = {
        "sizing": {"mode": "fixed", "quantity": "1"},
        "account": {"cash": "1000000"},
        "execution": {**COSTLESS, "model": execution.value, "latency_ms": 0},
        **sections,
    }
    return engine_of(
        given, [instrument(category=category)], execution=execution, strategy=Says(signals, shadows)
    )


def long(**fields: Any) -> Signal:
    return Signal(Action.LONG, "up", **fields)


def short(**fields: Any) -> Signal:
    return Signal(Action.SHORT, "down", **fields)


FLAT = Signal(Action.FLAT, "out")


def flat_bars(count: int, price: int = 10_000) -> list[Bar]:
    return [bar(price, index=index) for index in range(count)]


def path(index: int, open_: int, high: int, low: int, close: int) -> Bar:
    return bar(close, index=index, open_=open_, high=high, low=low)


def steps_of(engine: Engine, events: list[Any]) -> list[Step]:
    return [engine.step(event, None) for event in events]


def fills(steps: list[Step]) -> list[Fill]:
    return [fill for step in steps for fill in step.fills]


def latest(steps: list[Step]) -> dict[str, Order]:
    return {order.order_id: order for step in steps for order in step.orders}


def of_role(steps: list[Step], role: OrderRole) -> list[Order]:
    return [order for order in latest(steps).values() if order.role is role]


def held(step: Step) -> int:
    return present(step.position).quantity


def entered(signal: Signal, *after: Bar, **sections: Any) -> list[Step]:
    """Signal at bar 0, enter at the open of bar 1 at 100.00, and go on."""
    return steps_of(machine({0: signal}, **sections), [*flat_bars(2), *after])


def at_quotes(
    signals: dict[int, Signal], events: list[Event], **more: Any
) -> tuple[Engine, list[Step]]:
    engine = machine(signals, execution=FillModel.QUOTE, **more)
    return engine, steps_of(engine, events)


def quoted(bid: int, second: float, *, size: int = 10**9) -> Any:
    return quote(bid, bid + 10, at_ms=START_MS + MINUTE + int(second * 1_000), size=size)


def others(engine: Engine) -> tuple[Order, ...]:
    return engine.state().account.lines[KEY].orders.others
