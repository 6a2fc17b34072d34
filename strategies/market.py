"""Exact numbers of a market: decimals as integers of 10⁻ᵏ, and the money of price and quantity."""

from __future__ import annotations

from decimal import Decimal

from msgspec import Struct

from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.types import MONEY_DECIMALS, MONEY_LIMIT, Instrument


def divide_half_even(numerator: int, denominator: int) -> int:
    """Return *numerator* / *denominator* (positive), rounded half to even."""
    quotient, remainder = divmod(numerator, denominator)
    doubled = 2 * remainder
    if doubled > denominator or (doubled == denominator and quotient & 1):
        quotient += 1
    return quotient


def scaled(value: Decimal, decimals: int, *, name: str) -> int:
    """Return *value* as an integer of 10^-*decimals*; raise where it has more decimals."""
    shifted = value.scaleb(decimals)
    whole = int(shifted)
    if whole != shifted:
        raise ConfigInvalid(f"{name} {value} has more than {decimals} decimals; round it.")
    return whole


def unscaled(value: int, decimals: int) -> str:
    """Return the exact decimal text of *value* x 10^-*decimals*, without trailing zeros."""
    if decimals == 0:
        return str(value)
    sign = "-" if value < 0 else ""
    whole, fraction = divmod(abs(value), 10**decimals)
    text = f"{fraction:0{decimals}d}".rstrip("0")
    return f"{sign}{whole}.{text}" if text else f"{sign}{whole}"


class Notional(Struct, frozen=True, gc=False):
    """Turns price x quantity of one instrument into money, exactly where the scales allow it."""

    multiplier: int
    divisor: int

    @classmethod
    def of(cls, instrument: Instrument) -> Notional:
        """Return the converter of *instrument*'s scales."""
        spare = MONEY_DECIMALS - instrument.price_decimals - instrument.quantity_decimals
        return cls(10**spare, 1) if spare >= 0 else cls(1, 10**-spare)

    def __call__(self, price: int, quantity: int) -> int:
        """Return the money of *quantity* (signed) at *price*, rounded half to even if it must."""
        if self.divisor == 1:
            return price * quantity * self.multiplier
        return divide_half_even(price * quantity, self.divisor)

    def quantity(self, money: int, price: int) -> int:
        """Return the largest quantity whose notional at *price* is at most *money* (positive)."""
        return money * self.divisor // (price * self.multiplier)


def check_money(money: int, *, name: str) -> int:
    """Return *money* if 64 bits hold it; raise otherwise."""
    if not -MONEY_LIMIT <= money <= MONEY_LIMIT:
        raise ConfigInvalid(
            f"{name} {unscaled(money, MONEY_DECIMALS)} is beyond 922,337,203; use a smaller one."
        )
    return money
