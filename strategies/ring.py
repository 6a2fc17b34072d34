"""``Ring``: preallocated last-N rows, always readable as one contiguous view."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tracepaper.strategies.errors import ConfigInvalid


class Ring:
    """The newest *capacity* rows of *width* floats.

    Each row is written twice, *capacity* rows apart, so that the newest rows are one contiguous
    view at any moment: no copy when reading, two small ones when writing.
    """

    def __init__(self, *, capacity: int, width: int) -> None:
        if capacity < 1 or width < 1:
            raise ConfigInvalid(f"A ring of {capacity} rows of {width} holds nothing; enlarge it.")
        self._rows: NDArray[np.float64] = np.zeros((2 * capacity, width))
        self._capacity = capacity
        self._written = 0

    @property
    def capacity(self) -> int:
        """How many rows it can hold."""
        return self._capacity

    def __len__(self) -> int:
        """Return how many rows it holds."""
        return min(self._written, self._capacity)

    def push(self, row: NDArray[np.float64]) -> None:
        """Append *row* of shape [width]; the oldest row leaves once the ring is full."""
        slot = self._written % self._capacity
        self._rows[slot] = row
        self._rows[slot + self._capacity] = row
        self._written += 1

    def view(self) -> NDArray[np.float64]:
        """Return the rows held, oldest first, as a read-only view of shape [len, width]."""
        end = (self._written - 1) % self._capacity + 1 + self._capacity if self._written else 0
        rows = self._rows[end - len(self) : end]
        rows.flags.writeable = False
        return rows
