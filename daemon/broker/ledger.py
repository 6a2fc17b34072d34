"""The money of an account and of each of its books, and what a step changed in the account.

The rules are docs/money.md, M6 to M21 and M90 to M102.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from tracepaper.daemon.broker.settings import BrokerSettings
from tracepaper.strategies.types.decisions import (
    Account,
    Fill,
    LedgerEntry,
    LedgerKind,
    Order,
    Position,
    PositionSide,
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
    other_fills: Mapping[str, tuple[Fill, ...]] = {}  # by shadow account or side
    entries: Sequence[FillEntry] = ()  # of the fills


class StepNumber:
    """The number of the step that acts on the accounts of a broker now; new orders get it."""

    __slots__ = ("number",)

    def __init__(self) -> None:
        self.number = 0


class Ledger:
    """The cash of an account, its order ids, and what changed since the last :meth:`take`."""

    def __init__(self, cash: int, step: StepNumber, *, keeps_entries: bool) -> None:
        self.cash, self.step = cash, step
        self.bound = 0  # cash that the margins of positions bind
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
        other_fills: dict[str, tuple[Fill, ...]] = {}
        fills = tuple([entry.fill for entry in self.fills])
        for fill in fills:
            if (side := fill.position_side) is not None:
                other_fills[side] = (*other_fills.get(side, ()), fill)
        filled = FilledEvent(fills, tuple(self.orders.values()), other_fills, self.fills)
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


class Totals:
    """The cash and the sums of the lines of one book, which lines update with each change.

    So the cost of a step does not grow with the number of instruments.
    """

    def __init__(
        self, settings: BrokerSettings, ledger: Ledger, *, side: PositionSide | None = None
    ) -> None:
        """Begin with the cash of *settings*; the book is of one *side* in hedge mode."""
        self.settings, self.ledger, self.side = settings, ledger, side
        self.sign = {None: 0, PositionSide.LONG: 1, PositionSide.SHORT: -1}[side]
        self.cash = settings.cash
        self.realized = self.unrealized = self.fees = self.funding = 0
        self.paid_entries = 0  # entry notional of its positions in spot and shares
        self.fills: dict[str, list[Fill]] = {}
        """Fills since the last decision, by instrument, if its strategy sees fills."""
        self.valued: Account | None = None  # the newest balance; None after a change
