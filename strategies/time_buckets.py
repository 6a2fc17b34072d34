"""A rollout row summed into buckets of absolute time, and its statistics by age.

A row has the newest blocks of time and one column for everything older. A block has 64 bars, or one
where the model sees at most 64. The newest block has 1 to 64 bars, so a block's age changes with
every bar. Recent mass and shift therefore use cells of fixed age, each interpolated from the two
blocks that it overlaps.

The rules are docs/attention.md, A12 and A13.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tracepaper.strategies.types.decisions import BLOCK_BARS, WEIGHT_UNITS

OLDER: Final = 0
"""The column for everything before the oldest bucket."""
_FREE: Final = np.iinfo(np.int64).min

_LANES: Final = 16  # float32 per vector register; products of other widths take twice as long

Ids = NDArray[np.int64]


def bucket_bars(context: int) -> int:
    """Return the bars of one bucket for a model that sees *context* bars: 1 up to 64, else 64."""
    return 1 if context <= BLOCK_BARS else BLOCK_BARS


def bucket_count(context: int) -> int:
    """Return the number of blocks that *context* bars can overlap."""
    bars = bucket_bars(context)
    return context if bars == 1 else -(-context // bars) + 1


class BlockColumns:
    """Assigns a column of the rollout row to each block that has a bar.

    A row reports the *buckets* newest contiguous blocks, including empty ones in gaps. The column
    of an older block is added to ``OLDER`` and reused; *spare* more blocks fit before that.
    """

    def __init__(self, *, buckets: int, spare: int) -> None:
        self.buckets = buckets
        width = 1 + buckets + spare
        # The block of each column; ``OLDER`` has none.
        self.block_of = np.full(width + -width % _LANES, _FREE, dtype=np.int64)
        self._newest: tuple[int, int] | None = None  # the last block, and its column
        self._expired_at: int | None = None

    @property
    def width(self) -> int:
        """The number of columns, ``OLDER`` included."""
        return len(self.block_of)

    def clear(self) -> None:
        """Forget every block."""
        self.block_of[:] = _FREE
        self._newest = self._expired_at = None

    def expired(self, block: int) -> list[int]:
        """Free and return the columns of blocks that a bar in *block* no longer reports."""
        if block == self._expired_at:
            return []
        self._expired_at = block
        gone = (self.block_of != _FREE) & (self.block_of <= block - self.buckets)
        self.block_of[gone] = _FREE
        return [int(column) for column in np.flatnonzero(gone)]

    def take(self, blocks: Ids) -> Ids:
        """Return the columns of the leading *blocks* (ascending), as many as fit."""
        if self._newest is not None and blocks[0] == blocks[-1] == self._newest[0]:
            return np.full(len(blocks), self._newest[1], dtype=np.int64)
        columns = np.empty(len(blocks), dtype=np.int64)
        starts = [0, *(np.flatnonzero(np.diff(blocks)) + 1).tolist(), len(blocks)]
        for start, stop in pairwise(starts):
            matching = np.flatnonzero(self.block_of == blocks[start])
            if not len(matching):
                matching = np.flatnonzero(self.block_of[OLDER + 1 :] == _FREE) + OLDER + 1
                if not len(matching):
                    return columns[:start]
                self.block_of[matching[0]] = blocks[start]
            columns[start:stop] = matching[0]
            self._newest = int(blocks[start]), int(matching[0])
        return columns


def rows_by_age(
    rows: NDArray[np.float32], blocks: Ids, columns: Sequence[BlockColumns]
) -> NDArray[np.float32]:
    """Return *rows* [stream, bar, width] as [stream, bar, buckets + 1]: newest first, older last.

    *blocks* [stream, bar] is the block of each row's own bar; *columns* has one entry per stream,
    all with the same number of buckets.
    """
    buckets = columns[0].buckets
    block_of = np.array([each.block_of for each in columns])[:, None]  # [stream, 1, width]
    ages = blocks[..., None] - block_of
    # As unsigned numbers the negative ages of free columns are larger than any bucket.
    reported = ages.view(np.uint64) < buckets
    by_age = np.zeros((*blocks.shape, buckets + 1), dtype=np.float32)
    first = np.arange(0, by_age.size, buckets + 1).reshape(*blocks.shape, 1)
    by_age.reshape(-1)[first + np.where(reported, ages, buckets)] = rows
    by_age[..., -1] = np.where(reported, 0.0, rows).sum(axis=-1)
    return by_age


def buckets_of(weights: NDArray[np.float64], positions: Ids) -> NDArray[np.float32]:
    """Return *weights* [bar] over absolute blocks, newest first, "older" the last entry."""
    count = bucket_count(len(positions))
    block = positions // bucket_bars(len(positions))
    # With gaps in time some bars lie beyond the last block that an explanation names.
    at = np.minimum(block[-1] - block, count)
    return np.bincount(at, weights=weights, minlength=count + 1).astype(np.float32)


def units_of(rows: NDArray[np.floating]) -> list[bytes]:
    """Return each of *rows* [bar, bucket] as ``Explanation.buckets``.

    The running sum is rounded, so that a weight is off by at most one unit and their sum by half.
    """
    sums = np.rint(np.cumsum(rows, axis=1, dtype=np.float64) * WEIGHT_UNITS)
    finite = np.isfinite(sums[:, -1])  # a sum carries what is not finite to its end
    units = np.diff(np.where(finite[:, None], sums, 0.0), axis=1, prepend=0.0).astype("<i4")
    return [row.tobytes() if known else b"" for row, known in zip(units, finite, strict=True)]


def weights_of(buckets: bytes) -> NDArray[np.float64]:
    """Return the weights [bucket] of ``Explanation.buckets``."""
    return np.frombuffer(buckets, "<i4") / WEIGHT_UNITS


# --- figures by age

Floats = NDArray[np.float64]


@lru_cache(maxsize=16)
def uniform_rollout(layers: int, window: int, residual_weight: float = 0.5) -> Floats:
    """Return the rollout row of uniform window attention: float64 [age].

    A reference for tests and reports: ``layers`` convolutions of the same kernel.
    """
    row = np.ones(1)
    for _ in range(layers):
        total = np.concatenate(([0.0], np.cumsum(row), np.full(window - 1, row.sum())))
        shared = total[1:] - np.concatenate((np.zeros(window), total[1:-window]))
        shared *= (1.0 - residual_weight) / window
        shared[: len(row)] += residual_weight * row
        row = shared
    row.flags.writeable = False
    return row


def content_share(
    weights: Floats,
    position: int,
    *,
    bars: int,
    layers: int,
    window: int,
    residual_weight: float = 0.5,
) -> float:
    """Return the total variation, 0 to 1, of a stored row from that of uniform window attention.

    *weights* [buckets + 1] are the blocks of *bars* of the bar *position* (``open_time_ms //
    interval_ms``), newest first and "older" last. The rest is what a network with uniform attention
    shows too.
    """
    uniform = uniform_rollout(layers, window, residual_weight)
    blocks = position // bars - (position - np.arange(len(uniform))) // bars
    expected = np.bincount(np.minimum(blocks, len(weights) - 1), uniform, minlength=len(weights))
    return float(0.5 * np.abs(weights - expected).sum())


RECENT_SHARE: Final = 0.25


def cells_by_age(rollout: NDArray[np.float32], positions: NDArray[np.int64], bars: int) -> Floats:
    """Return *rollout* [bar, buckets + 1] resampled to cells of *bars* of age; "older" is last.

    *positions* [bar] is ``open_time_ms // interval_ms``, *bars* are those of a bucket. Cell i
    covers the ages ``bars * i`` … ``bars * (i + 1) - 1``.
    """
    filled = ((positions % bars + 1) / bars)[:, None]  # share of the open block
    buckets = rollout[:, :-1].astype(np.float64)
    by_age = np.empty(rollout.shape)
    by_age[:, :-2] = filled * buckets[:, :-1] + (1.0 - filled) * buckets[:, 1:]
    by_age[:, 0] += (1.0 - filled[:, 0]) * buckets[:, 0]  # the open block lies entirely in cell 0
    by_age[:, -2] = filled[:, 0] * buckets[:, -1]
    by_age[:, -1] = rollout[:, -1]
    return by_age


def _recent_cells(context: int) -> int:
    return max(1, round(context * RECENT_SHARE / bucket_bars(context)))


def recent_mass(by_age: Floats, context: int) -> Floats:
    """Return the mass [bar] of the newest quarter of *context* bars, in whole cells."""
    return by_age[:, : _recent_cells(context)].sum(axis=1)


def event_focus(by_age: Floats, context: int) -> Floats:
    """Return the mass [bar] of the heaviest two neighbouring cells before the newest quarter.

    A block overlaps two cells, so a bar that keeps its weight while it ages keeps its share.
    """
    distant = by_age[:, _recent_cells(context) : -1]
    pairs = distant[:, 1:] + distant[:, :-1] if distant.shape[1] > 1 else distant
    return pairs.max(axis=1, initial=0.0)


def row_entropy(by_age: Floats) -> Floats:
    """Return the entropy [bar] of rows over their cells as a share of the most, 0 to 1."""
    return _relative_entropy(by_age, np.ones_like(by_age)) / -np.log2(by_age.shape[1])


def shift(before: Floats, after: Floats) -> Floats:
    """Return the Jensen–Shannon distance [bar] between the rows of two tables, in [0, 1].

    The square root of the divergence to base 2 (Endres and Schindelin, 2003).
    """
    middle = 0.5 * (before + after)
    divergence = 0.5 * (_relative_entropy(before, middle) + _relative_entropy(after, middle))
    return np.sqrt(np.clip(divergence, 0.0, None))


def _relative_entropy(row: Floats, other: Floats) -> Floats:
    """Return the relative entropy [bar] in bits; terms with a zero or underflowing number are 0."""
    ratio = np.divide(row, other, out=np.ones_like(row), where=(row > 0.0) & (other > 0.0))
    return (row * np.log2(ratio)).sum(axis=1)
