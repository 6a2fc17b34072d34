"""Rings of what a stream of bars leaves behind: keys and values to attend, history to explain."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import torch
from torch import Tensor

from tracepaper.strategies.errors import AttentionInvalid


class TailRing:
    """The newest rows of a stream along one dimension, always one contiguous stretch of time.

    Rows are written behind one another; when the buffer is full, the *kept* newest move to its
    front. With a *slack* of rows between two moves a row costs one write and, on average,
    ``kept / slack`` copies; reading costs nothing. Before the first row there are *kept* rows
    of zeros, so that a view of fixed shape exists from the start.
    """

    def __init__(
        self,
        *,
        kept: int,
        slack: int,
        shape: tuple[int, ...],
        dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """Make a ring on *device* over rows of *shape* with time inserted at *dim*."""
        if kept < 0 or slack < 1:
            raise AttentionInvalid(
                f"A ring that keeps {kept} rows with room for {slack} holds nothing; enlarge it."
            )
        full = (*shape[:dim], kept + slack, *shape[dim:])
        self._rows = torch.zeros(full, dtype=dtype, device=device)
        self._dim = dim - len(full)  # counted from the last dimension
        self._kept = kept
        self._end = kept

    def write(self, rows: Tensor) -> None:
        """Put *rows* behind the newest without counting them; ``advance`` counts them.

        Rows written and not counted are padding: the next write covers them.
        """
        count = rows.shape[self._dim]
        if self._end + count > self._rows.shape[self._dim]:
            kept = self._rows.narrow(self._dim, self._end - self._kept, self._kept)
            self._rows.narrow(self._dim, 0, self._kept).copy_(kept.clone())
            self._end = self._kept
        self._rows.narrow(self._dim, self._end, count).copy_(rows)

    def advance(self, count: int) -> None:
        """Count the first *count* of the rows just written."""
        self._end += count

    @property
    def end(self) -> int:
        """Where in the buffer the newest row counted ends."""
        return self._end

    @classmethod
    def stacked(cls, rings: Sequence[TailRing]) -> TailRing:
        """Return a ring with one more dimension in front that holds the rows of all *rings*.

        Each of *rings* lives on in its slice. Where they stand at one ``end``, the stack writes
        and reads for all of them at once; ``follow`` then moves each of them on.
        """
        whole = rings[0].over(torch.stack([ring.everything() for ring in rings]))
        for ring, rows in zip(rings, whole.everything(), strict=True):
            ring.settle(rows)
        return whole

    def over(self, rows: Tensor) -> TailRing:
        """Return a ring that stands where this one does, over *rows* as its buffer."""
        made = copy(self)
        made.settle(rows)
        return made

    def settle(self, rows: Tensor) -> None:
        """Live on in the buffer *rows*, which holds what this ring's own does."""
        self._rows = rows

    def move(self, end: int) -> None:
        """Move the *kept* newest rows within the buffer, so that they end at *end*."""
        if end != self._end:
            newest = self._rows.narrow(self._dim, self._end - self._kept, self._kept)
            self._rows.narrow(self._dim, end - self._kept, self._kept).copy_(newest.clone())
            self._end = end

    def follow(self, other: TailRing) -> None:
        """Stand where *other* stands, which wrote this ring's rows as well."""
        self._end = other.end

    def view(self, start: int, stop: int) -> Tensor:
        """Return rows *start* … *stop* - 1, counted from the end of the rows counted so far.

        ``view(-3, 0)`` are the newest three, ``view(-3, 2)`` has two written rows as well.
        """
        return self._rows.narrow(self._dim, self._end + start, stop - start)

    def everything(self) -> Tensor:
        """Return the whole buffer, for a change of all rows at once."""
        return self._rows

    def clear(self) -> None:
        """Forget every row."""
        self._rows.zero_()
        self._end = self._kept


class WrapRing:
    """The newest *capacity* rows, written in place; unrolled only when someone asks.

    For history that every bar writes and few read: no moves, no spike.
    """

    def __init__(
        self,
        *,
        capacity: int,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        if capacity < 1:
            raise AttentionInvalid(f"A ring of {capacity} rows holds nothing; enlarge it.")
        self._rows = torch.zeros((capacity, *shape), dtype=dtype, device=device)
        self._written = 0

    def __len__(self) -> int:
        """Return how many rows it holds."""
        return min(self._written, self._rows.shape[0])

    def push(self, rows: Tensor) -> None:
        """Append *rows* [count, …]; the oldest leave."""
        capacity = self._rows.shape[0]
        self._written += max(0, len(rows) - capacity)
        rows = rows[-capacity:]
        slot = self._written % capacity
        first = min(len(rows), capacity - slot)
        self._rows[slot : slot + first] = rows[:first]
        self._rows[: len(rows) - first] = rows[first:]
        self._written += len(rows)

    def everything(self) -> Tensor:
        """Return the whole buffer, in the order in which it was written."""
        return self._rows

    def unrolled(self) -> Tensor:
        """Return a copy of the rows held, oldest first."""
        capacity = self._rows.shape[0]
        if self._written <= capacity:
            return self._rows[: self._written].clone()
        slot = self._written % capacity
        return torch.cat((self._rows[slot:], self._rows[:slot]))

    def clear(self) -> None:
        """Forget every row."""
        self._written = 0
