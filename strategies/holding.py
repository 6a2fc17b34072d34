"""``Holding``: one instrument's position and the effects of fills.

Numbers are exact integers. The rules are docs/money.md, M5 to M8.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from tracepaper.strategies.types.decisions import LedgerKind
from tracepaper.strategies.units import divide_half_even

if TYPE_CHECKING:
    from collections.abc import Callable

Movement = tuple[LedgerKind, int]
"""A movement of cash: kind and amount."""


class Holding(Struct, gc=False, array_like=True):
    """A book's position in one instrument; mutable, owned by its line."""

    quantity: int = 0
    entry_notional: int = 0
    realized_pnl: int = 0
    fees_paid: int = 0
    funding_paid: int = 0
    opened_ms: int = 0  # market time of the opening fill; 0 without a position
    margin: int = 0  # cash bound by an isolated position

    def fill(
        self,
        signed: int,
        notional: int,
        fee: int,
        fee_base: int,
        *,
        is_cash: bool,
        is_liquidation: bool = False,
        required: Callable[[int], int] | None = None,
    ) -> tuple[Movement, Movement]:
        """Apply a fill of *signed* quantity; return the cash movements of the trade and of its fee.

        *required* returns the margin that a notional binds; None without margin.
        """
        if not is_cash:
            realized = self.trade(signed, notional, required)
            self.realized_pnl += realized
            moved = LedgerKind.REALIZED, realized
        elif signed > 0:
            # A spot buy pays its fee in base, so that share of the notional is an immediate cost.
            # For stocks the fee is in quote currency.
            base_fee = divide_half_even(notional * fee_base, signed)
            self.quantity += signed - fee_base
            self.entry_notional += notional - base_fee
            self.fees_paid += base_fee
            moved = LedgerKind.BOUGHT, -notional
        else:
            if self.quantity > 0:  # always, unless the record was tampered with
                self.realized_pnl += self.close(-signed, notional)
            moved = LedgerKind.SOLD, notional
        self.fees_paid += fee
        return moved, (LedgerKind.LIQUIDATION_FEE if is_liquidation else LedgerKind.FEE, -fee)

    def trade(self, signed: int, notional: int, required: Callable[[int], int] | None) -> int:
        """Trade *signed* of a derivative for *notional*; return the realised profit."""
        sign = 1 if signed > 0 else -1
        realized = 0
        opened, opened_notional = signed, sign * notional
        if self.quantity * signed < 0:
            closed = min(abs(signed), abs(self.quantity))
            share = divide_half_even(notional * closed, abs(signed))
            self.margin = self.margin * (abs(self.quantity) - closed) // abs(self.quantity)
            realized = self.close(closed, -sign * share)
            opened = sign * (abs(signed) - closed)
            opened_notional = sign * (notional - share)
        self.quantity += opened
        self.entry_notional += opened_notional
        if required is not None and opened_notional:
            self.margin += required(opened_notional)
        return realized

    def close(self, closed: int, proceeds: int) -> int:
        """Reduce the position by *closed* (unsigned); return the profit on *proceeds* (signed)."""
        entry = divide_half_even(self.entry_notional * closed, abs(self.quantity))
        self.quantity -= closed if self.quantity > 0 else -closed
        self.entry_notional -= entry
        return proceeds - entry
