"""From the wishes of several owners of an account to its targets and orders.

The owners' targets are netted into one position. What opposes each other crosses at once; the rest
is one order, whose fills are shared. At every step the shares add up to the account.

The rules are docs/one_account.md, J12 to J23.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

from tracepaper.daemon.broker.account import Intent, part_of
from tracepaper.daemon.broker.book import requests_of
from tracepaper.daemon.broker.line import Line
from tracepaper.strategies.api.context import Orders
from tracepaper.strategies.apportion import crossed
from tracepaper.strategies.types.decisions import (
    Fill,
    FillModel,
    Liquidity,
    Order,
    OrderStatus,
    PositionSide,
)
from tracepaper.strategies.types.market import Side

Ask = Callable[[Line, Intent | Orders], str | None]
"""Asks a line for what was decided; returns why it cannot be reached."""


class Wishes(NamedTuple):
    """What the owners ask for at a bar's close, and at what price opposing shares cross."""

    intents: Mapping[str, Intent | Orders]  # of those that no gate holds, by name
    targets: Mapping[PositionSide | None, int]  # all of them together, of each position
    price: int

    def closed(self, closing: Intent, owners: Iterable[str]) -> Wishes:
        """Return the wishes of *owners* that are all *closing*."""
        return Wishes(dict.fromkeys(owners, closing), dict.fromkeys(self.targets, 0), self.price)

    def reach(self, position: Line) -> int:
        """Return the largest *position*, unsigned, to which the target and lists could lead."""
        side = position.book.side
        most = least = self.targets[side]
        for share in position.shares:
            wish = self.intents.get(share.owner)
            requests = requests_of(wish, side) if isinstance(wish, Orders) else ()
            bought, sold, _ = share.orders.opens(requests)
            most, least = most + bought, least - sold
        return max(abs(most), abs(least))


NO_WISHES: Final = Wishes({}, {}, 0)


class RouteResult(NamedTuple):
    """What the wishes of several owners came to: why they are not reached, if so."""

    refusal: str | None  # of the account
    refusals: Mapping[str, str | None]  # of each owner that was asked


def route(
    position: Line, intent: Intent | Orders | None, wishes: Wishes, ask: Ask, at_ms: int
) -> RouteResult:
    """Ask each share of *position* for its wish, and the position for the net *intent* of all.

    Where the account's gates hold that, opposing shares cross all the same.
    """
    refusals: dict[str, str | None] = {}
    side = position.book.side
    for share in position.shares:
        whole = wishes.intents.get(share.owner)
        wish = None if whole is None else part_of(whole, side)
        if wish is not None:
            refusals[share.owner] = ask(share, wish)
    cross(position, wishes.price, at_ms)
    return RouteResult(None if intent is None else ask(position, intent), refusals)


def cross(position: Line, price: int, at_ms: int) -> None:
    """Let shares of *position* that oppose each other cross at *price*, without fee."""
    wanted = [share.orders.target - share.held for share in position.shares]
    for share, signed in zip(position.shares, crossed(wanted), strict=True):
        if not signed:
            continue
        orders = share.orders
        side, quantity = (Side.BUY, signed) if signed > 0 else (Side.SELL, -signed)
        order = Order(
            orders.next_id(), share.key, side, quantity, quantity,
            OrderStatus.FILLED, orders.reason, at_ms, at_ms, position_side=share.book.side,
        )  # fmt: skip
        fill = Fill(
            order.order_id, share.key, side, quantity, price, price,
            share.notional(price, quantity), 0, 0, Liquidity.MAKER, FillModel.CROSSED,
            orders.reason, at_ms, position_side=share.book.side,
        )  # fmt: skip
        share.take_part(fill)
        orders.resize(share.held)
        share.protector.after([order], price, at_ms)
