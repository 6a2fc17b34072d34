"""Rings of what a stream of bars leaves behind: keys and values to attend, history to explain."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from tracepaper.strategies.errors import AttentionInvalid


class TailRing:
    """One buffer of ``TailRings``: [stream, …] with time among the further dimensions."""

    def __init__(self, rows: Tensor, dim: int) -> None:
        self.rows = rows
        self.dim = dim  # of time, counted from the last dimension

    def move(self, stream: int, count: int, *, start: int, to: int) -> None:
        """Copy *count* rows of one stream from *start* on, which may overlap, to *to*."""
        own = self.rows[stream]
        own.narrow(self.dim, to, count).copy_(own.narrow(self.dim, start, count).clone())


class TailRings:
    """The newest rows of some streams in several buffers, each stream one stretch of time.

    The buffers move on together: a stream has one end in all of them. Rows are written behind the
    newest; where there is no room left, the *kept* newest move to the front. With a *slack* of
    rows between two moves a row costs one write and, on average, ``kept / slack`` copies; reading
    costs nothing. Before its first row a stream has *kept* rows of zeros, so that a view of fixed
    shape exists from the start. Raises ``AttentionInvalid`` for sizes that hold nothing.
    """

    def __init__(
        self, *, kept: int, slack: int, streams: int = 1, device: torch.device | str = "cpu"
    ) -> None:
        if kept < 0 or slack < 1:
            raise AttentionInvalid(
                f"A ring that keeps {kept} rows with room for {slack} holds nothing; enlarge it."
            )
        self.ends = [kept] * streams
        """Where in the buffers the newest counted row of each stream ends."""
        self._kept = kept
        self._length = kept + slack
        self._device = device
        self._rings: list[TailRing] = []

    def ring(
        self, shape: tuple[int, ...], *, dim: int, dtype: torch.dtype = torch.float32
    ) -> TailRing:
        """Return a further buffer [stream, *shape], time inserted at *dim* of *shape*."""
        full = (len(self.ends), *shape[:dim], self._length, *shape[dim:])
        rows = torch.zeros(full, dtype=dtype, device=self._device)
        self._rings.append(TailRing(rows, dim - len(shape) - 1))
        return self._rings[-1]

    def extend(self, streams: int) -> None:
        """Make room for so many further *streams*: one copy of all rows."""
        for ring in self._rings:
            more = ring.rows.new_zeros(streams, *ring.rows.shape[1:])
            ring.rows = torch.cat((ring.rows, more))
        self.ends += [self._kept] * streams

    def settle(self, streams: slice, count: int) -> int:
        """Bring adjacent *streams* to one end with room for *count* rows behind it; return it.

        Those that missed rows follow those that did not: in step with all, nothing moves.
        """
        ends = self.ends[streams]
        end = ends[0]
        if ends.count(end) < len(ends):
            [(end, _)] = Counter(ends).most_common(1)
        if end + count > self._length:
            end = self._kept
        for stream, own in enumerate(ends, streams.start):
            if own != end:
                for ring in self._rings:
                    ring.move(stream, self._kept, start=own - self._kept, to=end - self._kept)
                self.ends[stream] = end
        return end

    def advance(self, stream: int, count: int) -> None:
        """Count the first *count* of the rows just written; those after them are padding."""
        self.ends[stream] += count

    def clear(self, stream: int) -> None:
        """Forget every row of *stream*."""
        for ring in self._rings:
            ring.rows[stream].zero_()
        self.ends[stream] = self._kept


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
        self.rows = torch.zeros((capacity, *shape), dtype=dtype, device=device)
        self._written = 0

    def __len__(self) -> int:
        """Return how many rows it holds."""
        return min(self._written, self.rows.shape[0])

    def push(self, rows: Tensor) -> None:
        """Append *rows* [count, …]; the oldest leave."""
        capacity = self.rows.shape[0]
        # Rows that others of the same push would overwrite count, and are not written.
        self._written += max(0, len(rows) - capacity)
        rows = rows[-capacity:]
        slot = self._written % capacity
        first = min(len(rows), capacity - slot)
        self.rows[slot : slot + first] = rows[:first]
        if first < len(rows):
            self.rows[: len(rows) - first] = rows[first:]
        self._written += len(rows)

    def unrolled(self) -> Tensor:
        """Return a copy of the rows held, oldest first."""
        capacity = self.rows.shape[0]
        if self._written <= capacity:
            return self.rows[: self._written].clone()
        slot = self._written % capacity
        return torch.cat((self.rows[slot:], self.rows[:slot]))

    def clear(self) -> None:
        """Forget every row."""
        self._written = 0
