"""What a price means for a resting order: whether it triggers, fills or moves the order.

The rules are docs/money.md, M11 to M14, and docs/orders.md, B2 to B4.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from tracepaper.strategies.types.decisions import Order, OrderKind, OrderRole, OrderStatus
from tracepaper.strategies.types.market import Bar, Quote, Side

DECIDED: Final = frozenset({OrderRole.SIGNAL, OrderRole.LIST})
"""Roles of the orders that decisions send."""


def is_waiting_stop(order: Order) -> bool:
    """Return whether *order* is a stop that has not triggered."""
    return order.trigger is not None and not order.triggered


def crosses(order: Order, far: int) -> bool:
    """Return whether the limit *order* could take with the far side at *far*."""
    if order.price is None or is_waiting_stop(order):
        return False
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


def is_younger(order: Order, bar: Bar, *, delayed: bool = False) -> bool:
    """Return whether *order* began to rest inside *bar*, because of a quote's fill or a command.

    An order by a decision belongs to the close before, even if that bar was observed late. If
    orders are *delayed* by bars, it begins to rest when it reaches the exchange.
    """
    if order.role in DECIDED:
        return delayed and order.eligible_ms > bar.open_time_ms
    return order.created_ms > bar.open_time_ms


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
