"""Resting orders of one instrument in one account: the order state table, netting, filters.

The rules are docs/money.md, M6 to M9.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple

import msgspec
from msgspec import Struct

from tracepaper.daemon.engine.execution import ExecutionCosts
from tracepaper.strategies.errors import InvariantBroken
from tracepaper.strategies.market import Notional, unscaled
from tracepaper.strategies.types import (
    MONEY_DECIMALS,
    MONEY_LIMIT,
    MONEY_SCALE,
    Category,
    CommandKind,
    Fill,
    Instrument,
    Order,
    OrderStatus,
    Side,
)

NOTIONAL_MOST: Final = MONEY_LIMIT // 4 // MONEY_SCALE * MONEY_SCALE
"""Of one order: money is an integer of 64 bits, and prices may still rise."""
FILL_WITHIN_MS: Final = 10_000
FLATTEN: Final = CommandKind.FLATTEN.value
"""The reason of an order by the operator's command: it waits for a quote as long as it takes."""


class OrderEvent(StrEnum):
    """What can happen to an order."""

    ACCEPT = "accept"
    REJECT = "reject"
    FILL_PART = "fill_part"
    FILL_REST = "fill_rest"
    CANCEL = "cancel"


NEXT: Final = {
    (OrderStatus.NEW, OrderEvent.ACCEPT): OrderStatus.ACCEPTED,
    (OrderStatus.NEW, OrderEvent.REJECT): OrderStatus.REJECTED,
    (OrderStatus.ACCEPTED, OrderEvent.FILL_PART): OrderStatus.PARTIALLY_FILLED,
    (OrderStatus.ACCEPTED, OrderEvent.FILL_REST): OrderStatus.FILLED,
    (OrderStatus.ACCEPTED, OrderEvent.CANCEL): OrderStatus.CANCELED,
    (OrderStatus.PARTIALLY_FILLED, OrderEvent.FILL_PART): OrderStatus.PARTIALLY_FILLED,
    (OrderStatus.PARTIALLY_FILLED, OrderEvent.FILL_REST): OrderStatus.FILLED,
    (OrderStatus.PARTIALLY_FILLED, OrderEvent.CANCEL): OrderStatus.CANCELED,
}


def advance(status: OrderStatus, event: OrderEvent) -> OrderStatus:
    """Return the status after *event*; an unlisted pair is a bug, not a case."""
    if (after := NEXT.get((status, event))) is None:
        raise InvariantBroken(f"an order that is {status} cannot {event}")
    return after


class BrokerState(Struct, frozen=True, array_like=True):
    """What a broker carries from step to step."""

    target: int = 0
    reason: str = ""
    confirmed_ms: int = 0
    order: Order | None = None


class Sent(NamedTuple):
    """What a target came to: orders that changed, and why none could be sent where one should.

    A refusal is computed anew each time that the target is repeated: it is no order and no trade.
    """

    orders: tuple[Order, ...]
    refusal: str | None


UNCHANGED: Final = Sent((), None)


class Broker:
    """At most one resting order: a new target nets with it and replaces it in the same step."""

    def __init__(
        self,
        instrument: Instrument,
        costs: ExecutionCosts,
        *,
        latency_ms: int,
        fill_within_ms: int = FILL_WITHIN_MS,
    ) -> None:
        self._instrument = instrument
        self._notional = Notional.of(instrument)
        self._spot = instrument.category is Category.SPOT
        self._fee = costs.taker_fee
        self._latency_ms = latency_ms
        self._fill_within_ms = fill_within_ms
        self.order: Order | None = None
        self.target = 0  # the target last decided, whether or not it could be reached
        self.reason = ""  # of the target
        self.confirmed_ms = 0  # open time of the bar whose decision was last allowed

    def change(self, instrument: Instrument) -> None:
        """Use the exchange's new filters; what rests was accepted under the old ones."""
        self._instrument = instrument

    def state(self) -> BrokerState:
        """Return what must survive a restart."""
        return BrokerState(self.target, self.reason, self.confirmed_ms, self.order)

    def restore(self, state: BrokerState) -> None:
        """Take over what survived a restart."""
        self.target, self.reason = state.target, state.reason
        self.confirmed_ms, self.order = state.confirmed_ms, state.order

    def fill(self, fill: Fill) -> Order:
        """Book *fill* on the resting order and return it as it stands."""
        order = self.order
        if order is None or fill.order_id != order.order_id:
            raise InvariantBroken(f"a fill of {fill.order_id}, which does not rest")
        filled = order.filled + fill.quantity
        whole = filled == order.quantity
        event = OrderEvent.FILL_REST if whole else OrderEvent.FILL_PART
        after = msgspec.structs.replace(order, filled=filled, status=advance(order.status, event))
        self.order = None if whole else after
        return after

    def expire(self, market_ms: int) -> Order | None:
        """Return the resting order as CANCELED where no quote filled it in time, else None."""
        order = self.order
        if order is None or market_ms - order.eligible_ms <= self._fill_within_ms:
            return None
        if order.reason == FLATTEN:
            return None
        return self._canceled(order, f"no quote filled it within {self._fill_within_ms:,} ms")

    def _canceled(self, order: Order, reason: str) -> Order:
        self.order = None
        status = advance(order.status, OrderEvent.CANCEL)
        return msgspec.structs.replace(order, status=status, reason=reason)

    def submit(
        self,
        target: int,
        held: int,
        *,
        order_id: str,
        price: int,
        reason: str,
        at_ms: int,
        cash: int = MONEY_LIMIT,
        by_command: bool = False,
    ) -> Sent:
        """Make position plus resting order reach *target*, where the exchange would take an order.

        *held* is the position, *price* the newest close (for what depends on the notional),
        *at_ms* market time of the decision, *cash* what a spot buy can be paid from. A reversal
        is one order. What is refused *by_command* has no decision to say so: its order is kept,
        REJECTED.
        """
        resting_leads_there = self.order is not None and target == self.target
        if target != self.target:
            self.target, self.reason = target, reason
        if resting_leads_there:
            return UNCHANGED
        changed: tuple[Order, ...] = ()
        if (order := self.order) is not None:
            changed = (self._canceled(order, order.reason),)
        needed = target - held
        # The fee of a spot buy is paid in base, so a target within one step is reached.
        near = self._instrument.quantity_step if self._spot else 0
        if abs(needed) <= near:
            return Sent(changed, None)
        placed = self._placed(needed, order_id, reason, at_ms)
        refusal = self._refusal(placed, price, reduces=target == 0, cash=cash)
        if refusal is None:
            self.order = msgspec.structs.replace(
                placed, status=advance(placed.status, OrderEvent.ACCEPT)
            )
            return Sent((*changed, self.order), None)
        if by_command:
            status = advance(placed.status, OrderEvent.REJECT)
            changed += (msgspec.structs.replace(placed, status=status, reason=refusal),)
        return Sent(changed, refusal)

    def _placed(self, needed: int, order_id: str, reason: str, at_ms: int) -> Order:
        """Return the new order for *needed* (signed), before the exchange has seen it."""
        quantity = abs(needed)
        if self._spot and needed > 0:
            quantity = self._grossed_up(quantity)
        return Order(
            order_id,
            self._instrument.id,
            Side.BUY if needed > 0 else Side.SELL,
            quantity - quantity % self._instrument.quantity_step,
            0,
            OrderStatus.NEW,
            reason,
            at_ms,
            at_ms + self._latency_ms,
        )

    def _grossed_up(self, quantity: int) -> int:
        """Return what to buy so that *quantity* is left after the fee, which is paid in base."""
        step = self._instrument.quantity_step
        gross = -(-quantity * MONEY_SCALE // (MONEY_SCALE - self._fee))
        return -(-gross // step) * step

    def _refusal(self, order: Order, price: int, *, reduces: bool, cash: int) -> str | None:
        """Return why the exchange would refuse *order*, or None."""
        item, quantity = self._instrument, order.quantity
        if quantity == 0:
            return f"what is missing is less than the step {self._text(item.quantity_step)}"
        if quantity < item.min_quantity:
            return f"quantity below {self._text(item.min_quantity)}"
        if item.max_quantity and quantity > item.max_quantity:
            return f"quantity above {self._text(item.max_quantity)}"
        notional = self._notional(price, quantity)
        if not reduces and (refusal := self._notional_refusal(notional)) is not None:
            return refusal
        if self._spot and order.side is Side.BUY and notional > cash:
            return "cash does not cover it"
        return None

    def _text(self, quantity: int) -> str:
        return unscaled(quantity, self._instrument.quantity_decimals)

    def _notional_refusal(self, notional: int) -> str | None:
        least = self._instrument.min_notional
        if notional < least:
            return f"notional below {unscaled(least, MONEY_DECIMALS)}"
        if notional > NOTIONAL_MOST:
            return f"notional above {unscaled(NOTIONAL_MOST, MONEY_DECIMALS)}"
        return None
