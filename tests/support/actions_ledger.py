"""An account of one share kept by itself, in fractions: what splits and dividends are held to.

Nothing of it is the engine's: the rules are docs/stocks.md, K16 to K19, as people write them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

UNIT = 10**8


def money(amount: Fraction) -> Fraction:
    """Round *amount* to 10⁻⁸, half to even."""
    return Fraction(round(amount * UNIT), UNIT)


@dataclass
class ReferenceAccount:
    """Cash and what is held of one share; quantities in whole shares or parts of them."""

    cash: Fraction
    step: Fraction
    quantity: Fraction = Fraction(0)
    entry: Fraction = Fraction(0)
    realized: Fraction = Fraction(0)
    fees: Fraction = Fraction(0)
    moves: list[tuple[str, Fraction]] = field(default_factory=list)

    def _move(self, kind: str, amount: Fraction) -> None:
        if amount:
            self.cash += amount
            self.moves.append((kind, amount))

    def buy(self, quantity: Fraction, price: Fraction, fee: Fraction) -> None:
        """Pay for *quantity* and its fee."""
        self.quantity += quantity
        self.entry += quantity * price
        self.fees += fee
        self._move("bought", -quantity * price)
        self._move("fee", -fee)

    def sell(self, quantity: Fraction, price: Fraction, fee: Fraction) -> None:
        """Sell *quantity* of what is held."""
        entry = money(self.entry * quantity / self.quantity)
        self.quantity -= quantity
        self.entry -= entry
        self.realized += quantity * price - entry
        self.fees += fee
        self._move("sold", quantity * price)
        self._move("fee", -fee)

    def dividend(self, amount: Fraction) -> None:
        """Receive *amount* for each share that is held."""
        paid = money(self.quantity * amount)
        self.realized += paid
        self._move("dividend", paid)

    def split(self, ratio: Fraction, close: Fraction) -> None:
        """Hold *ratio* times as many; a fraction of a step is paid at *close* by the ratio."""
        shares = self.quantity * ratio
        left = shares // self.step * self.step
        paid, entry = money((shares - left) * close / ratio), Fraction(0)
        if shares > left:
            entry = money(self.entry * (shares - left) / shares)
        self.quantity, self.entry = left, self.entry - entry
        self.realized += paid - entry
        self._move("cash_in_lieu", paid)

    def equity(self, price: Fraction) -> Fraction:
        """Return the worth of all at *price*."""
        return self.cash + self.quantity * price
