"""Candle intervals by the exchange's names, and the buckets of time that they cut.

Days begin at 00:00 UTC, weeks on Monday, months on their first day.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]

MINUTE_MS: Final = 60_000
HOUR_MS: Final = 60 * MINUTE_MS
DAY_MS: Final = 24 * HOUR_MS
WEEK_MS: Final = 7 * DAY_MS
MONTH: Final = "M"
MONDAY_MS: Final = 4 * DAY_MS
"""The first Monday of the epoch, which began on a Thursday."""

LENGTHS: Final[dict[str, int]] = {
    **{str(n): n * MINUTE_MS for n in (1, 3, 5, 15, 30, 60, 120, 240, 360, 720)},
    "D": DAY_MS,
    "W": WEEK_MS,
}
"""Every interval of fixed length; ``M`` is the one without."""


def is_name(name: str) -> bool:
    """Return whether the exchange knows an interval *name*."""
    return name == MONTH or name in LENGTHS


def name_of(length_ms: int) -> str | None:
    """Return the name of an interval of *length_ms*, or None where the exchange has none."""
    return next((name for name, length in LENGTHS.items() if length == length_ms), None)


def is_coarser(name: str, base_ms: int) -> bool:
    """Return whether candles of *base_ms* aggregate exactly to the interval *name*."""
    length = DAY_MS if name == MONTH else LENGTHS[name]
    return length % base_ms == 0


def bucket_starts(times_ms: IntArray, name: str) -> IntArray:
    """Return the start of the candle of interval *name* that covers each time."""
    if name == MONTH:
        months = times_ms.astype("datetime64[ms]").astype("datetime64[M]")
        return months.astype("datetime64[ms]").astype(np.int64)
    length = LENGTHS[name]
    phase = MONDAY_MS if name == "W" else 0
    return (times_ms - phase) // length * length + phase


def bucket_start(time_ms: int, name: str) -> int:
    """Return the start of the candle of interval *name* that covers *time_ms*."""
    if name == MONTH:
        return int(bucket_starts(np.array([time_ms], dtype=np.int64), name)[0])
    length = LENGTHS[name]
    phase = MONDAY_MS if name == "W" else 0
    return (time_ms - phase) // length * length + phase


def bucket_end(start_ms: int, name: str) -> int:
    """Return the first millisecond after the candle that starts at *start_ms*."""
    if name == MONTH:
        return bucket_start(start_ms + 32 * DAY_MS, name)
    return start_ms + LENGTHS[name]
