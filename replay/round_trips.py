"""Closed trades out of fills, exactly: from flat to flat, or to the other side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class RoundTrip:
    """One closed trade of one instrument.

    ``first`` and ``last`` are places in the fills that were given; ``quantity`` is the largest
    position it held, signed; ``profit`` is money after fees (10⁻¹⁰, like the fills').
    """

    first: int
    last: int
    quantity: int
    profit: int
    fees: int


def round_trips(
    quantities: Sequence[int], notionals: Sequence[int], fees: Sequence[int]
) -> list[RoundTrip]:
    """Return the closed trades of one instrument's fills, oldest first.

    *quantities* are signed (buys positive), *notionals* and *fees* are money and not negative.
    From flat to flat the profit is what came in less what went out, so nothing is rounded; a
    fill that turns the position is shared between the two trades by quantity, half-even. A
    trade that is still open is not returned.
    """
    trips: list[RoundTrip] = []
    held = first = peak = cash = paid = 0
    for place, (quantity, notional, fee) in enumerate(
        zip(quantities, notionals, fees, strict=True)
    ):
        if quantity == 0:
            continue
        if held == 0:
            first, peak, cash, paid = place, 0, 0, 0
        sign = 1 if quantity > 0 else -1
        turned = held * quantity < 0 and abs(quantity) > abs(held)
        share = abs(held) if turned else abs(quantity)
        closing_notional = _share(notional, share, abs(quantity))
        closing_fee = _share(fee, share, abs(quantity))
        cash -= sign * closing_notional
        paid += closing_fee
        held += quantity
        if held == 0 or turned:
            trips.append(RoundTrip(first, place, peak, cash - paid, paid))
            cash, paid = -sign * (notional - closing_notional), fee - closing_fee
            first, peak = place, held
        elif abs(held) > abs(peak):
            peak = held
    return trips


def _share(amount: int, part: int, whole: int) -> int:
    """Return *amount* x *part* / *whole*, rounded half-even."""
    quotient, rest = divmod(amount * part, whole)
    twice = 2 * rest
    return quotient + (twice > whole or (twice == whole and quotient % 2 == 1))
