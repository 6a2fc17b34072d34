"""``Journal``: what a step did in one account."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from msgspec.structs import replace

from tracepaper.strategies.types.decisions import Fill, Order, Position

if TYPE_CHECKING:
    from tracepaper.daemon.broker.matching import Funds


class FillEntry(NamedTuple):
    """A fill, its order after it, and the position before and after it."""

    fill: Fill
    order: Order
    before: Position
    after: Position


class PartFill(NamedTuple):
    """What the fill of an *order* moved in the share of one owner."""

    share: Funds
    fill: Fill
    order: Order  # as the fill left it


class Journal:
    """What was done in an account: fills, and every order that changed, as it stands."""

    __slots__ = ("_orders", "entries", "has_changes", "parts")

    def __init__(self) -> None:
        self.entries: list[FillEntry] = []
        self.parts: list[PartFill] = []  # of each fill, by share
        self.has_changes = False  # of anything that the account carries
        self._orders: dict[str, Order] = {}

    @property
    def fills(self) -> list[Fill]:
        """The fills, oldest first."""
        return [entry.fill for entry in self.entries]

    @property
    def orders(self) -> tuple[Order, ...]:
        """Every order that changed, as it stands now."""
        return tuple(self._orders.values())

    def begin(self) -> tuple[int, int]:
        """Return where the entries and the parts of a pass begin: see ``Line.protect_fills``."""
        return len(self.entries), len(self.parts)

    def __contains__(self, order: Order) -> bool:
        """Return whether that order has changed."""
        return order.order_id in self._orders

    def note(self, *changed: Order) -> None:
        """Learn that orders *changed*."""
        for order in changed:
            self.has_changes = True
            self._orders[order.order_id] = order

    def mark_down(self) -> None:
        """Mark all fills as of a time at which nobody looked."""
        self.entries = [
            entry._replace(fill=replace(entry.fill, while_down=True)) for entry in self.entries
        ]
        self.parts = [
            part._replace(fill=replace(part.fill, while_down=True)) for part in self.parts
        ]
