"""An account kept by itself, in decimals: what a run's account is held to.

Nothing of it is the engine's: it books fills and settlements as the rules of docs/money.md say,
M3, M16 to M19, M24 and M28 to M33, from their numbers as people write them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Context, Decimal

UNIT = Decimal("1e-8")
_EXACT = Context(prec=80)


def money(amount: Decimal, rounding: str = ROUND_HALF_EVEN) -> Decimal:
    """Return *amount* in whole units of 10⁻⁸."""
    return amount.quantize(UNIT, rounding=rounding, context=_EXACT)


def share_of(amount: Decimal, part: Decimal, whole: Decimal) -> Decimal:
    """Return *amount* x *part* / *whole*, with far more digits than any money has."""
    return _EXACT.divide(_EXACT.multiply(amount, part), whole)


@dataclass
class LedgerPosition:
    """One position."""

    quantity: Decimal = Decimal(0)
    entry: Decimal = Decimal(0)  # notional, signed as the quantity
    margin: Decimal = Decimal(0)


@dataclass
class ReferenceLedger:
    """Cash and positions; *leverage* None is an account without margin."""

    cash: Decimal
    fee_rate: Decimal = Decimal("0.00055")
    leverage: Decimal | None = None
    held: dict[str, LedgerPosition] = field(default_factory=dict)
    movements: list[tuple[str, Decimal]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.movements.append(("opened", self.cash))

    def of(self, symbol: str) -> LedgerPosition:
        """Return the position in *symbol*."""
        return self.held.setdefault(symbol, LedgerPosition())

    def _move(self, kind: str, amount: Decimal) -> None:
        if amount:
            self.movements.append((kind, amount))
            self.cash += amount

    def linear(
        self, symbol: str, signed: Decimal, price: Decimal, fee: Decimal, *, is_forced: bool = False
    ) -> None:
        """Book a fill of *signed* at *price*; *is_forced* says that it was a liquidation."""
        held = self.of(symbol)
        notional = money(signed * price)
        opened, realized = signed, Decimal(0)
        if held.quantity * signed < 0:
            whole = abs(held.quantity)
            closed = min(abs(signed), whole)
            share = money(share_of(notional, closed, abs(signed)))
            entry = money(share_of(held.entry, closed, whole))
            held.margin = money(share_of(held.margin, whole - closed, whole), ROUND_FLOOR)
            realized = -share - entry
            held.quantity += closed.copy_sign(signed)
            held.entry -= entry
            opened = signed - closed.copy_sign(signed)
            notional -= share
        if opened:
            held.quantity += opened
            held.entry += notional
            if self.leverage is not None:
                held.margin += self.required(notional)
        self._move("realized", realized)
        self._move("liquidation_fee" if is_forced else "fee", -fee)

    def required(self, entry: Decimal) -> Decimal:
        """Return what a position entered for *entry* (signed) binds."""
        assert self.leverage is not None
        initial = money(share_of(abs(entry), Decimal(1), self.leverage), ROUND_CEILING)
        lost_at = abs(entry) - initial if entry > 0 else abs(entry) + initial
        return initial + money(lost_at * self.fee_rate, ROUND_CEILING)

    def bought(self, symbol: str, quantity: Decimal, price: Decimal, fee_base: Decimal) -> None:
        """Book a buy on spot, whose fee is kept back in base."""
        held, notional = self.of(symbol), money(quantity * price)
        held.quantity += quantity - fee_base
        held.entry += notional - money(share_of(notional, fee_base, quantity))
        self._move("bought", -notional)

    def sold(self, symbol: str, quantity: Decimal, price: Decimal, fee: Decimal) -> None:
        """Book a sale on spot."""
        held, notional = self.of(symbol), money(quantity * price)
        held.entry -= money(share_of(held.entry, quantity, held.quantity))
        held.quantity -= quantity
        self._move("sold", notional)
        self._move("fee", -fee)

    def funding(
        self, symbol: str, mark: Decimal, rate: Decimal, quantity: Decimal | None = None
    ) -> None:
        """Book a settlement at *rate* of the value at *mark* of *quantity*, or of all."""
        held = self.of(symbol)
        quantity = held.quantity if quantity is None else quantity
        if not quantity:
            return
        paid = money(money(quantity * mark) * rate)
        if self.leverage is not None:
            free = max(self.available, Decimal(0))
            paid = min(paid, free + held.margin)
            held.margin -= max(paid - free, Decimal(0))
        self._move("funding", -paid)

    @property
    def available(self) -> Decimal:
        """Cash that no position binds."""
        return self.cash - sum((position.margin for position in self.held.values()), Decimal(0))

    def equity(self, marks: dict[str, Decimal]) -> Decimal:
        """Return cash and the profit of what is held on credit, at the *marks*."""
        profits = (
            money(position.quantity * marks[name]) - position.entry
            for name, position in self.held.items()
            if position.quantity
        )
        return self.cash + sum(profits, Decimal(0))
