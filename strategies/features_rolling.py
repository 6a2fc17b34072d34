"""Sums and maxima over the last 2ᵏ rows, equal bit for bit in a batch and row by row.

A running total never forgets its rounding errors, so its memory is endless. Here a window of
2m rows is the sum of two windows of m rows, the older one added to the newer one: every value
depends on exactly 2m rows, in one fixed order of additions, however the rows arrive. Equal rows
sum without any rounding, so a flat market has a variance of exactly zero.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Ids = NDArray[np.int64]

LONGEST: Final = 256
"""The longest window, in rows; also what a ring must hold to look back less than that."""


def lagged(rows: Array, lag: int) -> Array:
    """Return [.., time] *rows* as they were *lag* rows before; NaN where there was none."""
    out = np.full_like(rows, np.nan)
    if lag < rows.shape[-1]:
        out[..., lag:] = rows[..., : rows.shape[-1] - lag]
    return out


def windows(rows: Array, combine: np.ufunc, wanted: Iterable[int]) -> dict[int, Array]:
    """Return {window: combined rows} of [quantity, time] *rows* for the *wanted* powers of two.

    *combine* is ``np.add`` or ``np.maximum``; the newer of two adjacent windows comes first. The
    first ``window - 1`` entries of each are NaN.
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
    """The same windows, row by row, of one or more streams of rows that each go on by themselves.

    The newest 256 rows of a stream are kept with their windows of 1, 2, 4 … *longest* rows side by
    side, so that a step reads all that it adds up at once and writes at once.
    """

    def __init__(
        self, quantities: int, combine: np.ufunc, longest: int, *, streams: int = 1
    ) -> None:
        self._combine = combine
        self._sizes = 2 ** np.arange(longest.bit_length())
        self._shape = (LONGEST, len(self._sizes), quantities)
        self._kept = np.full((streams, *self._shape), np.nan)
        self._counts = np.zeros(streams, dtype=np.int64)
        self._shorter = np.arange(len(self._sizes) - 1)  # the windows that longer ones are made of

    def extend(self, streams: int) -> None:
        """Make room for so many further *streams*: one copy of all."""
        self._kept = np.concatenate([self._kept, np.full((streams, *self._shape), np.nan)])
        self._counts = np.concatenate([self._counts, np.zeros(streams, dtype=np.int64)])

    def warm(self, stream: int, rows: Array) -> None:
        """Forget *stream*, then take in [quantity, time] *rows* (oldest first) at once."""
        count = rows.shape[-1]
        self._kept[stream] = np.nan
        self._counts[stream] = count
        if count:
            found = windows(rows, self._combine, self._sizes.tolist())
            newest = np.arange(max(0, count - LONGEST), count)
            levels = np.stack(list(found.values()))[..., newest]  # [window, quantity, time]
            self._kept[stream, newest % LONGEST] = levels.transpose(2, 0, 1)

    def step(self, streams: Ids, rows: Array) -> Array:
        """Take in [quantity, stream] *rows*, one of each of *streams*; return their windows.

        These are [window, quantity, stream]; entry k covers 2ᵏ rows.
        """
        counts = self._counts[streams]
        # A window of 2m rows is the one of m rows now, and the one of m rows that was m rows ago.
        slots = (counts[:, None] - self._sizes[:-1]) % LONGEST
        older = self._kept[streams[:, None], slots, self._shorter]  # [stream, window, quantity]
        older = np.ascontiguousarray(older.transpose(1, 2, 0))
        levels = np.empty((len(self._sizes), *rows.shape))
        levels[0] = rows
        for place in range(len(older)):
            self._combine(levels[place], older[place], out=levels[place + 1])
        self._kept[streams, counts % LONGEST] = levels.transpose(2, 0, 1)
        self._counts[streams] = counts + 1
        return levels

    def past(self, streams: Ids, lags: Ids, quantity: int) -> Array:
        """Return *quantity* [lag, stream] as it was *lags* (< 256) rows before the last."""
        slots = (self._counts[streams] - 1 - lags[:, None]) % LONGEST
        found: Array = self._kept[streams, slots, 0, quantity]
        return found
