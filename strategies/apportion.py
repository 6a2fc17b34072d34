"""How whole amounts are shared: fills, fees, settlements and crossings; pure, in exact integers.

The rules are docs/one_account.md, J12 to J20.
"""

from __future__ import annotations

from collections.abc import Sequence

from tracepaper.strategies.units import RATE_SCALE


def apportion(total: int, weights: Sequence[int]) -> list[int]:
    """Split *total* by *weights* (0 or more, not all 0) into integers that sum to it.

    Each gets the whole part of its share, and the units that are left go to the largest
    remainders, of equal ones to the first. No part of a total up to the sum of the weights is
    larger than its weight. A negative total is split as a positive one.
    """
    whole, size = sum(weights), abs(total)
    parts = [size * weight // whole for weight in weights]
    _give(parts, size - sum(parts), [size * weight % whole for weight in weights])
    return parts if total >= 0 else [-part for part in parts]


def _give(parts: list[int], units: int, remainders: Sequence[int]) -> None:
    """Add one to as many of *parts* as there are *units*, by the largest of *remainders*."""
    for at in sorted(range(len(parts)), key=lambda at: -remainders[at])[:units]:
        parts[at] += 1


def crossed(wanted: Sequence[int]) -> list[int]:
    """Return the part of each signed quantity *wanted* that the others meet: the parts sum to 0.

    The smaller side is met whole, the larger one by its quantities and the largest remainder.
    """
    buys = [max(quantity, 0) for quantity in wanted]
    sells = [max(-quantity, 0) for quantity in wanted]
    met = min(sum(buys), sum(sells))
    if not met:
        return [0] * len(wanted)
    bought, sold = apportion(met, buys), apportion(met, sells)
    return [buy - sell for buy, sell in zip(bought, sold, strict=True)]


def rounded_parts(total: int, due: Sequence[int], unit: int) -> list[int]:
    """Split *total*, which the sum of what is *due* was rounded to, in parts of a *unit* each.

    Each part is rounded down, and what is left goes to the largest remainders.
    """
    parts = [amount // unit for amount in due]
    _give(parts, total - sum(parts), [amount % unit for amount in due])
    return parts


def funding_parts(paid: int, due: Sequence[int]) -> list[int]:
    """Split *paid* by what is *due* of each position: signed, in 10⁻¹⁰ of a unit of money.

    Where the account paid less than is due, since its margin did not cover it, what it did not pay
    is shared by the absolute amounts.
    """
    parts = [amount // RATE_SCALE for amount in due]
    left = paid - sum(parts)
    if 0 <= left <= len(parts):
        return rounded_parts(paid, due, RATE_SCALE)
    spared = apportion(left, [abs(amount) for amount in due])
    return [part + spare for part, spare in zip(parts, spared, strict=True)]
