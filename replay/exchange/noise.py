"""Seeded noise: the same key gives the same numbers on any machine, in any order.

Everything that the embedded exchange invents (paths, sizes, delays, identifiers) is a function of
a key, never of a generator's state, so any moment can be computed without its past.
"""

from __future__ import annotations

import struct
from hashlib import blake2b, shake_128
from typing import Final

import numpy as np
from numpy.typing import NDArray

_MASK: Final = (1 << 64) - 1
_FIRST: Final = 0xBF58476D1CE4E5B9
_SECOND: Final = 0x94D049BB133111EB


def key(*parts: str | int) -> int:
    """Return the 64-bit key of *parts*."""
    text = "|".join(map(str, parts))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def draws(seed: int, count: int) -> tuple[int, ...]:
    """Return *count* uniform 32-bit integers of the 64-bit key *seed*."""
    digest = shake_128(seed.to_bytes(8, "little")).digest(4 * count)
    return struct.unpack(f"<{count}I", digest)


def mix(value: int) -> int:
    """Return 64 well-mixed bits of *value* (the finaliser of SplitMix64, Steele et al. 2014)."""
    value &= _MASK
    value = (value ^ (value >> 30)) * _FIRST & _MASK
    value = (value ^ (value >> 27)) * _SECOND & _MASK
    return value ^ (value >> 31)


def mix_array(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return ``mix`` of every element; 64-bit arithmetic wraps as the mask above does."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(_FIRST)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(_SECOND)
    return values ^ (values >> np.uint64(31))
