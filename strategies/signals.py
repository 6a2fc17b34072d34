"""What a strategy says: a signal with its protection, or a list of orders of its own.

Prices and quantities are in the units that people write (a price in quote currency, a quantity in
base), times are UTC milliseconds of market time. The engine turns them into exact integers.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import TypedDict, Unpack

from msgspec import Struct

from tracepaper.strategies.types import Action, OrderKind, Side


class Percent(Struct, frozen=True):
    """A distance as a share of the entry price: ``Percent(2)`` is 2 % of it."""

    value: float


class Volatility(Struct, frozen=True):
    """A distance in multiples of the engine's average true range over a day."""

    multiple: float


Distance = float | Percent | Volatility
"""Of a stop or a target a price; of a trailing stop a distance in price."""
Note = Mapping[str, float | str | None]
"""Named numbers and texts kept with a decision, at most 16; None is a number that was none."""


class Signal(Struct, frozen=True, gc=False):
    """What a strategy asks for, before gates and sizing; ``strength`` in [0, 1] scales the size."""

    action: Action
    reason: str
    strength: float = 1.0
    stop: Distance | None = None
    target: Distance | None = None
    trailing: Distance | None = None
    until: int | None = None  # market time at which the position is closed
    reenter: bool = False  # after an exit by protection the same signal may enter again
    note: Note | None = None


def is_protected(signal: Signal) -> bool:
    """Return whether *signal* asks for any protection."""
    return not (
        signal.stop is None
        and signal.target is None
        and signal.trailing is None
        and signal.until is None
    )


class OrderRequest(Struct, frozen=True, kw_only=True):
    """One order of a list, as the strategy writes it."""

    side: Side
    quantity: float | Decimal
    kind: OrderKind = OrderKind.MARKET
    price: float | None = None  # of LIMIT and STOP_LIMIT
    trigger: float | None = None  # of STOP and STOP_LIMIT
    post_only: bool = False
    reduce_only: bool = False
    until: int | None = None  # good till that market time; None: until it is canceled
    tag: str = ""  # a request with the tag of a resting order replaces it
    reason: str = ""


class Cancel(Struct, frozen=True):
    """Take back the resting order with this tag; an empty tag takes back all orders by list."""

    tag: str = ""


class Orders(Struct, frozen=True):
    """A list of orders instead of a signal; what rests and is not named goes on resting."""

    requests: tuple[OrderRequest | Cancel, ...]
    reason: str
    note: Note | None = None


class OrderTerms(TypedDict, total=False):
    """What else an order may say than its quantity and its prices; see ``OrderRequest``."""

    post_only: bool
    reduce_only: bool
    until: int | None
    tag: str
    reason: str


def buy(
    quantity: float | Decimal,
    limit: float | None = None,
    stop: float | None = None,
    **terms: Unpack[OrderTerms],
) -> OrderRequest:
    """Return the request to buy *quantity*: at the market, or as *limit* and *stop* say."""
    return _requested(Side.BUY, quantity, limit, stop, terms)


def sell(
    quantity: float | Decimal,
    limit: float | None = None,
    stop: float | None = None,
    **terms: Unpack[OrderTerms],
) -> OrderRequest:
    """Return the request to sell *quantity*: at the market, or as *limit* and *stop* say."""
    return _requested(Side.SELL, quantity, limit, stop, terms)


def _requested(
    side: Side,
    quantity: float | Decimal,
    limit: float | None,
    stop: float | None,
    terms: OrderTerms,
) -> OrderRequest:
    return OrderRequest(
        side=side, quantity=quantity, kind=_kind(limit, stop), price=limit, trigger=stop, **terms
    )


def _kind(limit: float | None, stop: float | None) -> OrderKind:
    """Return which kind of order has that *limit* and that *stop*."""
    if limit is None:
        return OrderKind.MARKET if stop is None else OrderKind.STOP
    return OrderKind.LIMIT if stop is None else OrderKind.STOP_LIMIT
