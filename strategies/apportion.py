"""Exact integer division of cash."""

from __future__ import annotations

from collections.abc import Sequence


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
