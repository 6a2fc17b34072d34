"""``Journal``: the fills and changed orders of a step in one account, and its order ids."""

from __future__ import annotations

from typing import Final, NamedTuple

from msgspec.structs import replace

from tracepaper.strategies.types.decisions import Fill, Order, Position


class FillEntry(NamedTuple):
    """A fill of a position, with its order after the fill, and the position before and after."""

    fill: Fill
    order: Order
    before: Position
    after: Position


_ENTRY_FIELDS: Final = ("_orders", "entries", "has_changes", "share_fills")
_STEPS_COUNTED: Final = 4_096
"""More than the bars of a close, which has one for each symbol of a venue."""


def taken_over_id(order_id: str) -> str:
    """Return the id of a resting order in the run that takes it over.

    It begins with 0, the step of the takeover: the new run counts its steps anew, so an order of
    its own could have the old id too.
    """
    return f"0-{order_id}"


class Journal:
    """The fills of an account, and the newest state of every order that changed.

    The id of an order is the number of its step and a count within the step. Counts are kept by
    step, since the steps of a close interleave: each bar fills orders before the first is decided.
    """

    __slots__ = (*_ENTRY_FIELDS, "_counts", "sequence")

    def __init__(self) -> None:
        self.sequence = 0  # of the step that acts on the account now
        self._counts: dict[int, int] = {}
        self.entries: list[FillEntry] = []
        # The fills and crossings of owners' shares, each with the name of the owner.
        self.share_fills: list[tuple[str, Fill]] = []
        self.has_changes = False  # whether the account's stored state has changed
        self._orders: dict[str, Order] = {}

    @property
    def fills(self) -> list[Fill]:
        """The fills, oldest first."""
        return [entry.fill for entry in self.entries]

    @property
    def orders(self) -> tuple[Order, ...]:
        """Every order that changed, in its newest state."""
        return tuple(self._orders.values())

    def begin(self) -> tuple[int, int]:
        """Return the index of the next entry and of the next share fill.

        ``protect_fills`` takes them as the beginning of a pass.
        """
        return len(self.entries), len(self.share_fills)

    def __contains__(self, order: Order) -> bool:
        """Return whether that order has changed."""
        return order.order_id in self._orders

    def order_of(self, fill: Fill) -> Order:
        """Return the order of *fill* in its newest state."""
        return self._orders[fill.order_id]

    def note(self, order: Order) -> Order:
        """Record *order*, which changed, and return it."""
        self.has_changes = True
        self._orders[order.order_id] = order
        return order

    def next_id(self) -> str:
        """Return the id of the next order of the step."""
        sequence = self.sequence
        count = self._counts.get(sequence, 0)
        if not count and len(self._counts) >= _STEPS_COUNTED:
            del self._counts[next(iter(self._counts))]
        self._counts[sequence] = count + 1
        return f"{sequence}-{count}"

    def take(self) -> Journal:
        """Return the entries since the last call, and empty the journal."""
        taken = Journal()
        self.swap(taken)
        return taken

    def swap(self, other: Journal) -> None:
        """Exchange the entries with those of *other*."""
        for name in _ENTRY_FIELDS:
            value = getattr(self, name)
            setattr(self, name, getattr(other, name))
            setattr(other, name, value)

    def mark_while_down(self) -> None:
        """Mark all fills as made while the daemon was down."""
        self.entries = [
            entry._replace(fill=replace(entry.fill, while_down=True)) for entry in self.entries
        ]
        self.share_fills = [
            (owner, replace(fill, while_down=True)) for owner, fill in self.share_fills
        ]
