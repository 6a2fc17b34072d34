"""The money of an account, and what a step changed in it.

The rules are docs/money.md, M6 to M21.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from tracepaper.strategies.types.decisions import (
    Account,
    Fill,
    LedgerEntry,
    LedgerKind,
    Order,
    Position,
)


class FillEntry(NamedTuple):
    """A fill of a position, with its order after the fill, and the position before and after."""

    fill: Fill
    order: Order
    before: Position
    after: Position


class FilledEvent(NamedTuple):
    """The fills of an event, and the orders of the account that it changed."""

    fills: tuple[Fill, ...] = ()
    orders: tuple[Order, ...] = ()
    shadow_fills: Mapping[str, tuple[Fill, ...]] = {}  # by shadow account
    entries: Sequence[FillEntry] = ()  # of the fills


class StepNumber:
    """The number of the step that acts on the accounts of a broker now; new orders get it."""

    __slots__ = ("number",)

    def __init__(self) -> None:
        self.number = 0


class Ledger:
    """The money of an account, its order ids, and what changed since the last :meth:`take`.

    Lines update its sums with each change, so the cost of a step does not grow with the number of
    instruments.
    """

    def __init__(
        self, cash: int, step: StepNumber, *, keeps_entries: bool, reports_fills: Iterable[str]
    ) -> None:
        self.cash, self.step = cash, step
        self.realized = self.unrealized = self.fees = self.funding = 0
        self.paid_entries = 0  # entry notional of the positions in spot and shares
        self.bound = 0  # cash that the margins of positions bind
        self.valued: Account | None = None  # the newest balance; None after a change
        self.unseen: dict[str, list[Fill]] = {key: [] for key in reports_fills}
        """Fills since the last decision, by instrument, if its strategy sees fills."""
        # Cash movements that no step holds yet; a shadow account keeps none.
        self.entries: list[LedgerEntry] | None = None
        if keeps_entries:
            self.entries = [LedgerEntry(LedgerKind.OPENED, cash, cash)]
        self.counts: dict[int, int] = {}  # of orders, by step
        self.clear()

    def clear(self) -> None:
        """Forget what changed."""
        self.fills: list[FillEntry] = []
        self.orders: dict[str, Order] = {}  # the newest state of each order that changed
        self.has_changes = False  # whether the account's stored state has changed

    def take(self) -> FilledEvent:
        """Return what changed since the last call."""
        fills = tuple([entry.fill for entry in self.fills])
        filled = FilledEvent(fills, tuple(self.orders.values()), entries=self.fills)
        self.clear()
        return filled

    @property
    def available(self) -> int:
        """Cash that no position binds."""
        return self.cash - self.bound

    def mark_while_down(self) -> None:
        """Mark all fills as made while the daemon was down."""
        self.fills = [
            entry._replace(fill=replace(entry.fill, while_down=True)) for entry in self.fills
        ]
