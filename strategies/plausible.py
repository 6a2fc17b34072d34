"""How far a close lies from the last one, counted in the usual range of a bar; of finite memory."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from typing import Final

from tracepaper.strategies.types import Bar

YARDSTICK_BARS: Final = 60
"""Bars whose ranges are the yardstick, the one that is judged among them."""
YARDSTICK_LEAST: Final = 10
"""Under so many bars there is no yardstick, and every close counts as plausible."""


class Plausibility:
    """Measures each bar of one instrument against the bars before it.

    The yardstick is the median of high - low over the last 60 bars, at least one tick. All of it
    is integers until the one division, so that equal bars give equal bits on every path.
    """

    def __init__(self) -> None:
        self._ranges: deque[int] = deque()
        self._sorted: list[int] = []
        self._last: int | None = None

    def copy(self) -> Plausibility:
        """Return a second one that knows the same bars."""
        other = Plausibility()
        other._ranges, other._sorted, other._last = self._ranges.copy(), self._sorted[:], self._last
        return other

    def add(self, bar: Bar, tick: int) -> float:
        """Take in *bar* and return abs(close - last close) in yardsticks; 0 under ten bars."""
        ordered, ranges = self._sorted, self._ranges
        if len(ranges) == YARDSTICK_BARS:
            del ordered[bisect_left(ordered, ranges.popleft())]
        spread = bar.high - bar.low
        ranges.append(spread)
        insort(ordered, spread)
        last, self._last = self._last, bar.close
        count = len(ordered)
        if count < YARDSTICK_LEAST or last is None:
            return 0.0
        middle = count >> 1
        doubled = ordered[middle] + ordered[middle if count & 1 else middle - 1]
        return 2 * abs(bar.close - last) / max(doubled, 2 * tick)
