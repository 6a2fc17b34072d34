"""Orders: the state table, the stored state, and what a price means for a resting order.

The rules are docs/money.md, M6 to M14, and docs/orders.md, B1 to B4.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from operator import attrgetter
from typing import Final, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from tracepaper.strategies.errors import InvariantBroken
from tracepaper.strategies.types.decisions import Order, OrderKind, OrderRole, OrderStatus
from tracepaper.strategies.types.market import Bar, CommandKind, Quote, Side

FLATTEN: Final = CommandKind.FLATTEN.value
"""The reason on an order by the operator's command, which never expires unfilled."""
PROTECTIVE: Final = frozenset(
    {OrderRole.STOP, OrderRole.TARGET, OrderRole.TRAILING, OrderRole.UNTIL}
)
DECIDED: Final = frozenset({OrderRole.SIGNAL, OrderRole.LIST})
"""Roles of the orders that decisions send; their market orders expire unfilled."""
ENDED: Final = frozenset({OrderStatus.FILLED, OrderStatus.CANCELED, OrderStatus.REJECTED})


def taken_over_id(order_id: str) -> str:
    """Return the id of a resting order in the run that takes it over.

    It begins with 0, the step of the takeover: the new run counts its steps anew, so an order of
    its own could have the old id too.
    """
    return f"0-{order_id}"


class OrderEvent(StrEnum):
    """The events in the life of an order."""

    ACCEPT = "accept"  # it reached the exchange and rests
    REJECT = "reject"
    REPLACE = "replace"  # amended in place
    TRIGGER = "trigger"  # a stop's price was touched
    FILL_PART = "fill_part"
    FILL_REST = "fill_rest"
    CANCEL = "cancel"
    EXPIRE = "expire"


NEXT: Final = {
    (OrderStatus.NEW, OrderEvent.ACCEPT): OrderStatus.ACCEPTED,
    (OrderStatus.NEW, OrderEvent.REJECT): OrderStatus.REJECTED,
    (OrderStatus.NEW, OrderEvent.REPLACE): OrderStatus.NEW,
    (OrderStatus.NEW, OrderEvent.CANCEL): OrderStatus.CANCELED,
    (OrderStatus.NEW, OrderEvent.EXPIRE): OrderStatus.CANCELED,
    (OrderStatus.ACCEPTED, OrderEvent.REPLACE): OrderStatus.ACCEPTED,
    (OrderStatus.ACCEPTED, OrderEvent.TRIGGER): OrderStatus.ACCEPTED,
    (OrderStatus.ACCEPTED, OrderEvent.FILL_PART): OrderStatus.PARTIALLY_FILLED,
    (OrderStatus.ACCEPTED, OrderEvent.FILL_REST): OrderStatus.FILLED,
    (OrderStatus.ACCEPTED, OrderEvent.CANCEL): OrderStatus.CANCELED,
    (OrderStatus.ACCEPTED, OrderEvent.EXPIRE): OrderStatus.CANCELED,
    (OrderStatus.PARTIALLY_FILLED, OrderEvent.REPLACE): OrderStatus.PARTIALLY_FILLED,
    # A liquidation order, at the next risk tier:
    (OrderStatus.PARTIALLY_FILLED, OrderEvent.TRIGGER): OrderStatus.PARTIALLY_FILLED,
    (OrderStatus.PARTIALLY_FILLED, OrderEvent.FILL_PART): OrderStatus.PARTIALLY_FILLED,
    (OrderStatus.PARTIALLY_FILLED, OrderEvent.FILL_REST): OrderStatus.FILLED,
    (OrderStatus.PARTIALLY_FILLED, OrderEvent.CANCEL): OrderStatus.CANCELED,
    (OrderStatus.PARTIALLY_FILLED, OrderEvent.EXPIRE): OrderStatus.CANCELED,
}


def after(order: Order, event: OrderEvent, **changed: object) -> Order:
    """Return *order* after *event*, with the *changed* fields.

    Raises ``InvariantBroken`` if its status and *event* are not in the table.
    """
    if (status := NEXT.get((order.status, event))) is None:
        raise InvariantBroken(f"an order that is {order.status} cannot {event}")
    return replace(order, status=status, **changed)


class FollowingTarget(Struct, frozen=True, array_like=True):
    """A target that was decided while a delayed order to another one was on its way."""

    follows: int  # the target before it
    target: int
    reason: str
    due_ms: int  # when its order reaches the exchange


class OrdersState(Struct, frozen=True, array_like=True):
    """The stored state of the resting orders of an instrument."""

    target: int = 0
    reason: str = ""
    confirmed_ms: int = 0
    order: Order | None = None
    others: tuple[Order, ...] = ()
    before_quotes: tuple[Order, ...] = ()
    shortfall: str = ""
    following: tuple[FollowingTarget, ...] = ()

    def taken_over(self) -> OrdersState:
        """Return the orders for a run that continues another one."""
        return replace(
            self,
            order=None if self.order is None else _taken_over(self.order),
            others=tuple(map(_taken_over, self.others)),
            before_quotes=tuple(map(_taken_over, self.before_quotes)),
        )


class OrderContext(NamedTuple):
    """The time of a decision, and the price and the cash at that time."""

    at_ms: int  # market time
    opened_ms: int  # open time of the deciding bar
    price: int  # the newest close, from which the notional is computed
    cash: int  # available for the order


def tighter(order: Order, other: Order) -> int:
    """Return the trigger that is met first, of *order* and *other*, two states of a stop."""
    assert order.trigger is not None
    assert other.trigger is not None
    tightest = max if order.side is Side.SELL else min
    return tightest(order.trigger, other.trigger)


def urgency(order: Order) -> int:
    """Return the rank in which *order* meets the market: 0 is first."""
    if order.role is OrderRole.TARGET:
        return 2
    return 0 if order.role in PROTECTIVE or order.role is OrderRole.LIQUIDATION else 1


def _taken_over(order: Order) -> Order:
    return replace(order, order_id=taken_over_id(order.order_id))


carried: Final = attrgetter(*OrdersState.__struct_fields__)
"""The fields of a line that are the stored state of its orders."""
terms_of: Final = attrgetter(
    "side", "kind", "quantity", "price", "trigger", "post_only", "reduce_only", "until_ms"
)
"""The fields in which a repeated request must equal the resting order to leave it unchanged."""


# ---------------------------------------------------------------- prices


def is_waiting_stop(order: Order) -> bool:
    """Return whether *order* is a stop that has not triggered."""
    return order.trigger is not None and not order.triggered


def crosses(order: Order, far: int) -> bool:
    """Return whether the limit *order* could take with the far side at *far*."""
    assert order.price is not None
    return order.price >= far if order.side is Side.BUY else order.price <= far


def is_through(order: Order, far: int) -> bool:
    """Return whether *far* is strictly through the price of the limit *order*."""
    if order.price is None:
        return False
    return far < order.price if order.side is Side.BUY else far > order.price


def touched(order: Order, far: int) -> bool:
    """Return whether *far* has reached the trigger of the stop *order*."""
    assert order.trigger is not None
    return far >= order.trigger if order.side is Side.BUY else far <= order.trigger


def waits_for_next_bar(order: Order, opened_ms: int) -> bool:
    """Return whether *order* is the target of a position that was entered inside the bar.

    Whether the bar reached that price before or after the entry is unknown.
    """
    return order.role is OrderRole.TARGET and order.created_ms > opened_ms


def trailed_to(order: Order, bid: int, ask: int, trail: int) -> int | None:
    """Return the new trigger of the trailing stop *order*; None if it does not move."""
    if order.role is not OrderRole.TRAILING or order.triggered or order.trigger is None:
        return None
    if order.side is Side.SELL:
        return bid - trail if bid - trail > order.trigger else None
    return ask + trail if ask + trail < order.trigger else None


def price_met(order: Order, start: int, end: int) -> int | None:
    """Return the price at which a move from *start* to *end* meets *order*, or None.

    A stop is met if its trigger is touched, a limit only if the move goes beyond its price.
    """
    if is_waiting_stop(order):
        at, reaches = order.trigger, touched(order, end)
    else:
        at, reaches = order.price, is_through(order, end)
    if at is None or not reaches:
        return None
    ahead = start <= at <= end if end >= start else end <= at <= start
    return at if ahead else None


def matters_from(order: Order, quote: Quote, trail: int = 0) -> int | None:
    """Return the market time from which a quote like *quote* can change the resting *order*.

    None if it cannot: it touches no stop, is not through a resting limit, and moves no trailing
    stop. *trail* is the distance of a trailing stop.
    """
    if order.role is OrderRole.LIQUIDATION:
        return None
    if order.until_ms is not None and quote.market_ms >= order.until_ms:
        return order.until_ms
    far = quote.ask if order.side is Side.BUY else quote.bid
    is_due = order.status is OrderStatus.NEW or (order.price is None and not is_waiting_stop(order))
    return order.eligible_ms if is_due or _is_met(order, far, far, trail) else None


def passes(orders: Iterable[Order], bar: Bar, trail: int) -> bool:
    """Return whether *bar* changes none of the resting *orders*, as most bars under a stop do.

    An order with a time limit may always change. *trail* is the distance of a trailing stop.
    """
    for order in orders:
        if order.kind is OrderKind.MARKET or order.until_ms is not None:
            return False
        if order.status is OrderStatus.NEW or (order.triggered and order.price is None):
            return False  # it arrives, or takes at once
        if _is_met(order, bar.low, bar.high, trail):
            return False
    return True


def _is_met(order: Order, low: int, high: int, trail: int) -> bool:
    """Return whether a market from *low* to *high* fills, triggers or moves *order*."""
    if trail and trailed_to(order, high, low, trail) is not None:
        return True
    is_stop = is_waiting_stop(order)
    best = high if (order.side is Side.BUY) is is_stop else low
    return touched(order, best) if is_stop else is_through(order, best)
