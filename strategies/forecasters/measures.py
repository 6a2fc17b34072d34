"""Figures of a bucketed rollout row by age: recent mass and shift, free of the bucket's phase.

Buckets are absolute 64-bar blocks, so the newest holds 1 to 64 bars and a bucket's age moves on
with every bar. Both figures are therefore taken over cells of fixed age, each made of its share
of the two buckets that it overlaps.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from tracepaper.strategies.types import BLOCK_BARS

Floats = NDArray[np.float64]
_RECENT_SHARE: Final = 0.25


def by_age(rollout: NDArray[np.float32], positions: NDArray[np.int64]) -> Floats:
    """Return *rollout* [bar, buckets + 1] over cells of 64 bars of age, the last one "older".

    *positions* [bar] is ``open_time_ms // interval_ms``. Cell i covers the ages 64 i … 64 i + 63.
    """
    held = ((positions % BLOCK_BARS + 1) / BLOCK_BARS)[:, None]  # share of the open block
    buckets = rollout[:, :-1].astype(np.float64)
    aged = np.empty(rollout.shape)
    aged[:, :-2] = held * buckets[:, :-1] + (1.0 - held) * buckets[:, 1:]
    aged[:, 0] += (1.0 - held[:, 0]) * buckets[:, 0]  # the open block is young as a whole
    aged[:, -2] = held[:, 0] * buckets[:, -1]
    aged[:, -1] = rollout[:, -1]
    return aged


def recent_mass(aged: Floats, context: int) -> Floats:
    """Return the mass [bar] of the newest quarter of *context* bars, in whole cells."""
    cells = max(1, round(context * _RECENT_SHARE / BLOCK_BARS))
    mass: Floats = aged[:, :cells].sum(axis=1)
    return mass


def shift(before: Floats, after: Floats) -> Floats:
    """Return the Jensen–Shannon distance [bar] of the rows of two tables by age, in [0, 1].

    The square root of the divergence to base 2 (Endres and Schindelin, 2003).
    """
    middle = 0.5 * (before + after)
    divergence = 0.5 * (_relative_entropy(before, middle) + _relative_entropy(after, middle))
    distance: Floats = np.sqrt(np.clip(divergence, 0.0, None))
    return distance


def _relative_entropy(row: Floats, other: Floats) -> Floats:
    """Return the relative entropy [bar] in bits; 0 log 0 is 0."""
    ratio = np.divide(row, other, out=np.ones_like(row), where=row > 0.0)
    bits: Floats = (row * np.log2(ratio)).sum(axis=1)
    return bits
