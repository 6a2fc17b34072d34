"""A split that was not adjusted is suspected: a jump between sessions at the usual turnover.

A share that is divided by seven opens at a seventh of the close before it, and seven times as many
are traded: their money stays what it was. After a crash far more money changes hands, and the jump
is no simple ratio.

The rules are docs/stocks.md, K13 to K15.
"""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import Final, NamedTuple

RATIOS: Final = ((3, 2), (2, 1), (3, 1), (4, 1), (5, 1), (7, 1), (10, 1), (20, 1))
"""New shares for old ones; reverse splits are the other way round."""
TOLERANCE: Final = 0.03
"""How far the open may be from the ratio, as a fraction: a night moves prices as well."""
TURNOVER_FACTOR: Final = 2.0
"""The money of the session's first bar is at least the usual one by this, and at most times it."""
SESSIONS: Final = 5
"""Sessions before, the median of whose first bars is the usual turnover."""
SESSIONS_LEAST: Final = 3
WATCHED_SESSIONS: Final = SESSIONS + 2
"""So many sessions decide: of the oldest the beginning may be missing, the newest is judged."""


class SuspectedSplit(NamedTuple):
    """A split that was suspected: so many *new* shares for so many *old* ones."""

    open_time_ms: int
    new: int
    old: int


class SplitWatch:
    """Looks at the first bar of each session of one share; it depends on seven sessions alone."""

    def __init__(self) -> None:
        self._day: int | None = None
        self._close = 0
        self._usual: deque[int] = deque(maxlen=SESSIONS)

    def add(
        self, day: int, open_time_ms: int, prices: tuple[int, int], volume: int
    ) -> SuspectedSplit | None:
        """Take in a bar of *day* by its open and close; return the split that it shows, if any.

        The first day is one of which the beginning may not be known: it says nothing.
        """
        open_, close = prices
        before, self._close = self._close, close
        if day == self._day:
            return None
        is_first, self._day = self._day is None, day
        if is_first:
            return None
        turnover = close * volume
        found = self._found(open_time_ms, before / open_, turnover)
        self._usual.append(turnover)
        return found

    def _found(self, open_time_ms: int, fall: float, turnover: int) -> SuspectedSplit | None:
        if 0.7 < fall < 1.4 or len(self._usual) < SESSIONS_LEAST:
            return None
        share = turnover / max(median(self._usual), 1)
        if not 1 / TURNOVER_FACTOR <= share <= TURNOVER_FACTOR:
            return None
        for more, fewer in RATIOS:
            for new, old in ((more, fewer), (fewer, more)):
                if abs(fall * old / new - 1) <= TOLERANCE:
                    return SuspectedSplit(open_time_ms, new, old)
        return None
