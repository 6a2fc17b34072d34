"""Monthly bars: from the first of a month, 00:00 UTC, to the first of the next.

Months differ in length, so the ``interval_ms`` of monthly bars is the marker ``MONTH_MS``, which no
other interval equals. Use these functions, or a ``Calendar``, to compute opens and closes. The
rules are docs/time.md, T24 to T26.
"""

from __future__ import annotations

from datetime import date
from typing import Final

_DAY_MS: Final = 24 * 60 * 60_000
MONTH_MS: Final = 31 * _DAY_MS
"""Marks the interval of a month; its bars are as long, or up to three days shorter."""
_EPOCH: Final = date(1970, 1, 1).toordinal()


def month_of(time_ms: int) -> int:
    """Return the month of a time in UTC milliseconds, counted from January 1970."""
    day = date.fromordinal(_EPOCH + time_ms // _DAY_MS)
    return (day.year - 1970) * 12 + day.month - 1


def month_start(month: int) -> int:
    """Return the start of *month*, counted from January 1970, in UTC milliseconds."""
    years, months = divmod(month, 12)
    return (date(1970 + years, months + 1, 1).toordinal() - _EPOCH) * _DAY_MS


def interval_end(open_ms: int, interval_ms: int) -> int:
    """Return the first millisecond after the bar of *interval_ms* that opens at *open_ms*."""
    if interval_ms == MONTH_MS:
        return month_start(month_of(open_ms) + 1)
    return open_ms + interval_ms


def intervals_between(first_ms: int, second_ms: int, interval_ms: int) -> int:
    """Return the number of whole intervals from *first_ms* to *second_ms*, which is not earlier."""
    if interval_ms != MONTH_MS:
        return (second_ms - first_ms) // interval_ms
    first, second = month_of(first_ms), month_of(second_ms)
    is_partial = second_ms - month_start(second) < first_ms - month_start(first)
    return second - first - is_partial


def place_of(open_ms: int, interval_ms: int) -> int:
    """Return the number of the interval that contains *open_ms*, counted from 1970."""
    return month_of(open_ms) if interval_ms == MONTH_MS else open_ms // interval_ms
