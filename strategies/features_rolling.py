"""Sums and maxima over the last 2ᵏ rows, equal bit for bit in a batch and row by row.

A running total never forgets its rounding errors, so its memory is endless. Here a window of
2m rows is the sum of two windows of m rows, the older one added to the newer one: every value
depends on exactly 2m rows, in one fixed order of additions, however the rows arrive. Equal rows
sum without any rounding, so a flat market has a variance of exactly zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Combine = Callable[[Array, Array], Array]

LONGEST: Final = 256
"""The longest window, in rows; also what a ring must hold to look back less than that."""


def add(newer: Array, older: Array) -> Array:
    """Return the sum of two adjacent windows."""
    return np.add(newer, older)


def larger(newer: Array, older: Array) -> Array:
    """Return the maximum of two adjacent windows."""
    return np.maximum(newer, older)


def lagged(rows: Array, lag: int) -> Array:
    """Return [.., time] *rows* as they were *lag* rows before; NaN where there was none."""
    out = np.full_like(rows, np.nan)
    if lag < rows.shape[-1]:
        out[..., lag:] = rows[..., : rows.shape[-1] - lag]
    return out


def windows(rows: Array, combine: Combine, wanted: Iterable[int]) -> dict[int, Array]:
    """Return {window: combined rows} of [quantity, time] *rows* for the *wanted* powers of two.

    The first ``window - 1`` entries of each are NaN.
    """
    sizes = set(wanted)
    found: dict[int, Array] = {}
    size, level = 1, rows
    while True:
        if size in sizes:
            found[size] = level
        if size >= max(sizes):
            return found
        level = combine(level, lagged(level, size))
        size *= 2


class Windows:
    """The same windows, row by row: one ring for each power of two up to *longest*."""

    def __init__(self, quantities: int, combine: Combine, longest: int) -> None:
        self._combine = combine
        self._count = 0
        sizes = longest.bit_length()
        self._rings = [np.full((LONGEST, quantities), np.nan) for _ in range(sizes)]

    def step(self, row: Array) -> list[Array]:
        """Take in one [quantity] *row*; return its windows: entry k covers 2ᵏ rows, as [quantity].

        The arrays are views that stay true until the next step.
        """
        at = self._count % LONGEST
        level = row
        out = []
        size = 1
        for ring in self._rings:
            ring[at] = level
            out.append(ring[at])
            level = self._combine(level, ring[(self._count - size) % LONGEST])
            size *= 2
        self._count += 1
        return out

    def past(self, lag: int, quantity: int) -> float:
        """Return *quantity* of the row that was taken in *lag* (< 256) rows before the last."""
        return float(self._rings[0][(self._count - 1 - lag) % LONGEST, quantity])
