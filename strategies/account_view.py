"""``now.account``: what a strategy that declares ``sees_account`` may know of its account.

The rule is docs/strategies.md, U4.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from tracepaper.strategies.types import (
    MONEY_SCALE,
    Account,
    Fill,
    Instrument,
    Order,
    OrderKind,
    OrderRole,
    Position,
    Side,
)


class PositionView(Struct, frozen=True, gc=False):
    """What is held of the instrument; prices and money in quote currency, quantities in base."""

    quantity: float  # negative where short, 0 where nothing is held
    entry_price: float | None  # mean of the fills that it consists of; None where nothing is held
    opened_at: int | None  # market time of the fill that opened it, UTC ms; None as above
    bars_held: int  # closes since it was opened, this one included; 0 where nothing is held
    unrealised: float  # profit at the newest mark, before fees
    exact: Position


class OrderView(Struct, frozen=True, gc=False):
    """An order that rests."""

    side: Side
    kind: OrderKind
    role: OrderRole
    quantity: float  # not filled yet
    price: float | None
    trigger: float | None
    tag: str
    reason: str
    exact: Order


class FillView(Struct, frozen=True, gc=False):
    """An execution since the last decision on the instrument."""

    side: Side
    quantity: float
    price: float
    fee: float  # in quote currency; a spot buy pays in base
    time: int  # market time, UTC ms
    reason: str
    exact: Fill


class AccountView(Struct, frozen=True, gc=False):
    """The account at the close of the bar, before anything of this close is decided."""

    position: PositionView
    orders: tuple[OrderView, ...]  # of the instrument
    fills: tuple[FillView, ...]  # of the instrument
    equity: float  # of all instruments, at the newest marks
    cash: float
    exact: Account


def account_view(
    instrument: Instrument,
    *,
    position: Position,
    opened_ms: int,
    bars_held: int,
    orders: Sequence[Order],
    fills: Sequence[Fill],
    account: Account,
) -> AccountView:
    """Return what is seen of *account*; *position*, *orders* and *fills* are *instrument*'s.

    *opened_ms* is the market time of the fill that opened *position*, *bars_held* the closes since.
    """
    base, price = 10**instrument.quantity_decimals, 10**instrument.price_decimals
    held = position.quantity
    return AccountView(
        PositionView(
            held / base,
            position.entry_notional * base / (held * MONEY_SCALE) if held else None,
            opened_ms if held else None,
            bars_held if held else 0,
            position.unrealized_pnl / MONEY_SCALE,
            position,
        ),
        tuple(_order_view(order, base, price) for order in orders),
        tuple(_fill_view(fill, base, price) for fill in fills),
        account.equity / MONEY_SCALE,
        account.cash / MONEY_SCALE,
        account,
    )


def _order_view(order: Order, base: int, price: int) -> OrderView:
    return OrderView(
        order.side,
        order.kind,
        order.role,
        (order.quantity - order.filled) / base,
        None if order.price is None else order.price / price,
        None if order.trigger is None else order.trigger / price,
        order.tag,
        order.reason,
        order,
    )


def _fill_view(fill: Fill, base: int, price: int) -> FillView:
    return FillView(
        fill.side,
        fill.quantity / base,
        fill.price / price,
        fill.fee / MONEY_SCALE,
        fill.filled_ms,
        fill.reason,
        fill,
    )
