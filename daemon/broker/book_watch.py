"""``BookWatch``: what of an order book can change an order of some account.

The rules are docs/money.md, M61 to M77.
"""

from __future__ import annotations

from collections.abc import Iterable

from tracepaper.daemon.broker.book_fills import (
    Move,
    QueuePlace,
    QueueRules,
    after_change,
    after_trade,
    reaches,
)
from tracepaper.daemon.broker.book_matching import acts, rests_as_limit
from tracepaper.daemon.broker.line import Line
from tracepaper.strategies.types.decisions import Order, OrderRole, OrderStatus
from tracepaper.strategies.types.market import Quote, Side


class BookWatch:
    """What of an order book can change an order of some account: a feed asks it at every frame.

    It follows the places of resting limits by itself, by the rules by which the broker will. It
    holds until the next step: whoever hands on an event asks for another.
    """

    def __init__(self, lines: Iterable[Line]) -> None:
        """Watch for the positions in one instrument, of all accounts."""
        self._lines = [line for line in lines if line.waits]
        self.rests: bool = bool(self._lines)
        """Whether anything rests."""
        self.queued: dict[tuple[Side, int], list[tuple[QueuePlace, QueueRules]]] = {}
        """The places of the limits that rest in a queue, by side and price."""
        self.has_strangers = False
        """Whether a limit rests whose place in the queue is not known: another model took it in."""
        self._others: list[tuple[Order, int]] = []
        arriving: list[int] = []
        for line in self._lines:
            resting, queues = line.orders, line.positions.queues
            assert queues is not None
            for order in resting.orders:
                place = queues.places.get(order.order_id)
                if place is not None and order.price is not None:
                    at = (order.side, order.price)
                    self.queued.setdefault(at, []).append((place, queues.rules))
                else:
                    self.has_strangers |= rests_as_limit(order)
                if order.status is OrderStatus.NEW and order.role is not OrderRole.LIQUIDATION:
                    arriving.append(order.eligible_ms)
                self._others.append((order, resting.trail))
        self.arrives_ms: int | None = min(arriving, default=None)
        """When the next order reaches the exchange; None where none is on its way."""

    def acts(self, quote: Quote) -> bool:
        """Whether a book whose best levels are *quote* changes an order by itself."""
        if any(acts(order, quote, trail) for order, trail in self._others):
            return True
        due = (line.due_from(quote) for line in self._lines)
        return any(from_ms is not None and quote.market_ms >= from_ms for from_ms in due)

    def concerns(self, side: Side, price: int) -> bool:
        """Whether a limit of *side* rests that a trade at *price* may fill or move forward."""
        return any(of is side and reaches(side, at, price) for of, at in self.queued)

    def take(self, move: Move) -> bool:
        """Follow *move*; return whether it fills an order."""
        if not move.is_trade:
            at = (move.side, move.price)
            if waiting := self.queued.get(at):
                self.queued[at] = [
                    (after_change(place, move.size, rules), rules) for place, rules in waiting
                ]
            return False
        fills = False
        for (side, price), waiting in self.queued.items():
            if side is move.side or not reaches(side, price, move.price):
                continue
            if price != move.price:
                fills = True
                continue
            for number, (place, rules) in enumerate(waiting):
                moved, reached = after_trade(place, move.size)
                waiting[number] = moved, rules
                fills = fills or reached > 0
        return fills
