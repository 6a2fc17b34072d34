"""``Journal``: what a step did in one account, and the names of its orders."""

from __future__ import annotations

from typing import Final, NamedTuple

from msgspec.structs import replace

from tracepaper.strategies.types.decisions import Fill, Order, Position


class FillEntry(NamedTuple):
    """A fill of a position, its order after it, and the position before and after it."""

    fill: Fill
    order: Order
    before: Position
    after: Position


_DONE: Final = ("_orders", "entries", "has_changes", "parts")
_STEPS_COUNTED: Final = 4_096
"""More steps than a close has bars: one for each symbol of a venue."""


class Journal:
    """The news of an account: fills, and every order that changed, in its newest state.

    Orders are named by the number of their step, and a count within it. Counts are kept by step,
    since the steps of a close interleave: every bar of it fills orders before the first is decided.
    """

    __slots__ = (*_DONE, "_counts", "sequence")

    def __init__(self) -> None:
        self.sequence = 0  # of the step that acts on the account now
        self._counts: dict[int, int] = {}
        self.entries: list[FillEntry] = []
        # What fills and crossings moved in the shares of owners, by their names.
        self.parts: list[tuple[str, Fill]] = []
        self.has_changes = False  # of anything that the account carries
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
        """Return where the entries and the parts of a pass begin: see ``Line.protect_fills``."""
        return len(self.entries), len(self.parts)

    def __contains__(self, order: Order) -> bool:
        """Return whether that order has changed."""
        return order.order_id in self._orders

    def order_of(self, fill: Fill) -> Order:
        """Return the order of *fill* in its newest state."""
        return self._orders[fill.order_id]

    def note(self, order: Order) -> Order:
        """Learn that *order* changed, and return it."""
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
        """Exchange what is here for what is in *other*."""
        for name in _DONE:
            mine = getattr(self, name)
            setattr(self, name, getattr(other, name))
            setattr(other, name, mine)

    def mark_down(self) -> None:
        """Mark all fills as of a time at which nobody looked."""
        self.entries = [
            entry._replace(fill=replace(entry.fill, while_down=True)) for entry in self.entries
        ]
        self.parts = [(owner, replace(fill, while_down=True)) for owner, fill in self.parts]
