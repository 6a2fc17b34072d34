"""An open position in words, with the orders that protect it: for page, card, status, notices."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from tracepaper.strategies.types.decisions import Order, OrderRole, OrderStatus, Position
from tracepaper.strategies.types.market import Instrument
from tracepaper.strategies.units import MONEY_SCALE, percent, unscaled, without_zeros

FLAT: Final = "flat"
OPEN: Final = frozenset({OrderStatus.NEW, OrderStatus.ACCEPTED, OrderStatus.PARTIALLY_FILLED})
_PROTECTIVE: Final = (OrderRole.STOP, OrderRole.TRAILING, OrderRole.TARGET)
ORDERS_MOST: Final = 4
"""Orders that are named; a grid may have hundreds."""


def position_text(
    item: Instrument, quantity: str, entry: float, profit: float | None, orders: Iterable[Order]
) -> str:
    """Return an open position in words.

    ``long 0.096 BTC from 103,634.6, stop 103,323.7, target 104,049, +0.21 %``. *quantity* is a
    signed decimal, *entry* the mean entry price, and *profit* the unrealized profit as a share of
    the entry's notional. *orders* are those of its instrument and side.
    """
    if not float(quantity):
        return FLAT
    side = "short" if quantity.startswith("-") else "long"
    size = without_zeros(quantity.lstrip("-"))
    protections = list(_protections(item, orders))
    named = protections[:ORDERS_MOST]
    if more := len(protections) - len(named):
        named.append(f"{more} more orders that close it")
    text = f"{side} {size} {item.base_coin} from {_price(item, entry)}"
    share = "" if profit is None else percent(profit, signed=True)
    return ", ".join(filter(None, (text, *named, share)))


def stored_position_text(item: Instrument, position: Position, orders: Iterable[Order]) -> str:
    """Return *position* in words, like :func:`position_text`."""
    if not position.quantity:
        return FLAT
    quantity = unscaled(position.quantity, item.quantity_decimals)
    notional = abs(position.entry_notional)
    return position_text(
        item,
        quantity,
        notional / MONEY_SCALE / abs(float(quantity)),
        position.unrealized_pnl / notional if notional else None,
        orders,
    )


def _protections(item: Instrument, orders: Iterable[Order]) -> Iterator[str]:
    """Yield each order that rests to close the position, with its price: stops first."""
    closing = [
        order
        for order in orders
        if order.status in OPEN
        and (order.role in _PROTECTIVE or order.reduce_only)
        and (order.trigger, order.price) != (None, None)
    ]
    for order in sorted(closing, key=lambda order: order.trigger is None):
        level = order.price if order.trigger is None else order.trigger
        assert level is not None
        name = "target" if order.trigger is None else "stop"
        if order.role is OrderRole.TRAILING:
            name = order.role.label
        yield f"{name} {_price(item, level / 10**item.price_decimals)}"


def _price(item: Instrument, price: float) -> str:
    return without_zeros(f"{price:,.{item.price_decimals}f}")
