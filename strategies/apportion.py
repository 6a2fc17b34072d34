"""Exact integer division of fills, fees, settlements and crossings among owners.

The rules are docs/one_account.md, J12 to J20.
"""

from __future__ import annotations

from collections.abc import Sequence

from tracepaper.strategies.units import RATE_SCALE


def apportion(total: int, weights: Sequence[int]) -> list[int]:
    """Split *total* by *weights* (0 or more, not all 0) into integers that sum to it.

    Each part is rounded down, and the remaining units go to the largest remainders, of equal ones
    to the first. If the total is at most the sum of the weights, no part exceeds its weight. A
    negative total is split like a positive one.
    """
    weight_sum, size = sum(weights), abs(total)
    parts = [size * weight // weight_sum for weight in weights]
    _distribute(parts, size - sum(parts), [size * weight % weight_sum for weight in weights])
    return parts if total >= 0 else [-part for part in parts]


def _distribute(parts: list[int], units: int, remainders: Sequence[int]) -> None:
    """Add one to each of the *units* parts with the largest *remainders*."""
    for at in sorted(range(len(parts)), key=lambda at: -remainders[at])[:units]:
        parts[at] += 1


def crossed(wanted: Sequence[int]) -> list[int]:
    """Return the part of each signed quantity *wanted* that is filled by the others; the sum is 0.

    The smaller side is filled completely, the larger one in proportion to its quantities.
    """
    buys = [max(quantity, 0) for quantity in wanted]
    sells = [max(-quantity, 0) for quantity in wanted]
    matched = min(sum(buys), sum(sells))
    if not matched:
        return [0] * len(wanted)
    bought, sold = apportion(matched, buys), apportion(matched, sells)
    return [buy - sell for buy, sell in zip(bought, sold, strict=True)]


def rounded_parts(total: int, due: Sequence[int], unit: int) -> list[int]:
    """Split *total*, the rounded sum of *due* ÷ *unit*, into integer parts of that sum.

    Each part is rounded down, and the rest goes to the largest remainders.
    """
    parts = [amount // unit for amount in due]
    _distribute(parts, total - sum(parts), [amount % unit for amount in due])
    return parts


def funding_parts(paid: int, due: Sequence[int]) -> list[int]:
    """Split *paid* funding by the signed amount *due* of each position, in 10⁻¹⁰ of money.

    If the account paid less than due, because its margin did not cover it, the unpaid amount is
    shared in proportion to the absolute amounts.
    """
    parts = [amount // RATE_SCALE for amount in due]
    unpaid = paid - sum(parts)
    if 0 <= unpaid <= len(parts):  # rounding only
        return rounded_parts(paid, due, RATE_SCALE)
    unpaid_parts = apportion(unpaid, [abs(amount) for amount in due])
    return [part + unpaid_part for part, unpaid_part in zip(parts, unpaid_parts, strict=True)]
