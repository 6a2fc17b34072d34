"""Resting orders of one instrument in one account: the order state table, netting, filters."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec
from msgspec import Struct

from tracepaper.daemon.fills import Terms
from tracepaper.strategies.errors import InvariantBroken
from tracepaper.strategies.exact import Notional, unscaled
from tracepaper.strategies.types import (
    MONEY_DECIMALS,
    MONEY_LIMIT,
    MONEY_SCALE,
    Category,
    Fill,
    Instrument,
    Order,
    OrderStatus,
    Side,
)

NOTIONAL_MOST: Final = MONEY_LIMIT // 4 // MONEY_SCALE * MONEY_SCALE
"""Of one order: money is an integer of 64 bits, and prices may still rise."""


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


class BrokerState(Struct, frozen=True):
    """What a broker carries from step to step."""

    wanted: int = 0
    rejected: int | None = None
    renewed_ms: int = 0
    order: Order | None = None


class Broker:
    """At most one resting order: a new wish nets with it and replaces it in the same step."""

    def __init__(self, instrument: Instrument, terms: Terms, *, latency_ms: int) -> None:
        self._instrument = instrument
        self._notional = Notional.of(instrument)
        self._spot = instrument.category is Category.SPOT
        self._fee = terms.taker_fee
        self._latency_ms = latency_ms
        self.order: Order | None = None
        self.wanted = 0  # the target last decided, whether or not it could be reached
        self.renewed_ms = 0  # open time of the bar whose decision was last allowed
        self._rejected: int | None = None  # a target refused by the filters is not sent again

    def change(self, instrument: Instrument) -> None:
        """Take the exchange's new filters; what rests was accepted under the old ones."""
        self._instrument = instrument

    def state(self) -> BrokerState:
        """Return what must survive a restart."""
        return BrokerState(self.wanted, self._rejected, self.renewed_ms, self.order)

    def restore(self, state: BrokerState) -> None:
        """Take over what survived a restart."""
        self.wanted, self._rejected = state.wanted, state.rejected
        self.renewed_ms, self.order = state.renewed_ms, state.order

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
    ) -> tuple[Order, ...]:
        """Make position plus resting order reach *target*; return every order that changed.

        *held* is the position, *price* the newest close (for what depends on the notional),
        *at_ms* market time of the decision, *cash* what a spot buy can be paid from. A reversal
        is one order.
        """
        resting_leads_there = self.order is not None and target == self.wanted
        self.wanted = target
        if resting_leads_there:
            return ()
        # The fee of a spot buy is paid in base, so a target within one step is reached.
        near = self._instrument.quantity_step if self._spot else 0
        needed = target - held
        changed: list[Order] = []
        if (order := self.order) is not None:
            status = advance(order.status, OrderEvent.CANCEL)
            changed.append(msgspec.structs.replace(order, status=status))
            self.order = None
        if abs(needed) > near and target != self._rejected:
            placed = self._placed(needed, order_id, reason, at_ms)
            changed.append(self._sent(placed, target, price=price, cash=cash))
        return tuple(changed)

    def _placed(self, needed: int, order_id: str, reason: str, at_ms: int) -> Order:
        """Return the new order for *needed* (signed), before the exchange has seen it."""
        quantity = abs(needed)
        if self._spot and needed > 0:
            quantity = self._grossed_up(quantity)
        return Order(
            order_id,
            self._instrument.id,
            Side.BUY if needed > 0 else Side.SELL,
            quantity,
            0,
            OrderStatus.NEW,
            reason,
            at_ms,
            at_ms + self._latency_ms,
        )

    def _sent(self, order: Order, target: int, *, price: int, cash: int) -> Order:
        """Return *order* as the exchange answers it; it rests if it was accepted."""
        refusal = self._refusal(order.quantity, price, reduces=target == 0)
        buys_spot = self._spot and order.side is Side.BUY
        if refusal is None and buys_spot and self._notional(price, order.quantity) > cash:
            refusal = "cash does not cover it"
        event = OrderEvent.ACCEPT if refusal is None else OrderEvent.REJECT
        answered = msgspec.structs.replace(
            order, status=advance(order.status, event), reason=refusal or order.reason
        )
        self._rejected = None if refusal is None else target
        self.order = answered if refusal is None else None
        return answered

    def _grossed_up(self, quantity: int) -> int:
        """Return what to buy so that *quantity* is left after the fee, which is paid in base."""
        step = self._instrument.quantity_step
        gross = -(-quantity * MONEY_SCALE // (MONEY_SCALE - self._fee))
        return -(-gross // step) * step

    def _refusal(self, quantity: int, price: int, *, reduces: bool) -> str | None:
        """Return why the exchange would refuse such an order, or None."""
        item = self._instrument
        if quantity % item.quantity_step:
            return "quantity is no multiple of the step"
        if quantity < item.min_quantity:
            return f"quantity below {unscaled(item.min_quantity, item.quantity_decimals)}"
        if item.max_quantity and quantity > item.max_quantity:
            return f"quantity above {unscaled(item.max_quantity, item.quantity_decimals)}"
        return None if reduces else self._notional_refusal(self._notional(price, quantity))

    def _notional_refusal(self, notional: int) -> str | None:
        least = self._instrument.min_notional
        if notional < least:
            return f"notional below {unscaled(least, MONEY_DECIMALS)}"
        if notional > NOTIONAL_MOST:
            return f"notional above {unscaled(NOTIONAL_MOST, MONEY_DECIMALS)}"
        return None
