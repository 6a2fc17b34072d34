"""A split that was not adjusted is suspected: a jump between sessions at the usual turnover.

A share that is divided by seven opens at a seventh of the close before it, and seven times as many
are traded: their money stays what it was. After a crash far more money changes hands, and the jump
is no simple ratio.

The rules are docs/stocks.md, K13 to K15.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable
from datetime import UTC, datetime
from statistics import median
from typing import Final, NamedTuple

RATIOS: Final = ((3, 2), (2, 1), (3, 1), (4, 1), (5, 1), (7, 1), (10, 1), (20, 1))
"""New shares for old ones; reverse splits are the other way round."""
TOLERANCE: Final = 0.03
"""How far the open may be from the ratio, as a fraction: a night moves prices as well."""
CLOSE_TOLERANCE: Final = 0.2
"""How far that bar, and the one before it, may move between open and close, as a fraction.

A single false open or close is gone at the other end of its bar; a split stays.
"""
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

    def sentence(self, symbol: str) -> str:
        """Name it, as the warnings of a run do; :func:`named_splits` reads it back."""
        day = datetime.fromtimestamp(self.open_time_ms / 1000, UTC).date()
        return (
            f"{symbol}: a split of {self.new} for {self.old} on {day} is suspected that was not "
            "adjusted; give adjusted candles"
        )


_NAMED: Final = re.compile(r"(\S+): a split of (\d+) for (\d+) on (\d{4}-\d\d-\d\d) is suspected")


def named_splits(sentences: Iterable[str]) -> dict[str, list[SuspectedSplit]]:
    """Read the splits that *sentences* name, by symbol; each from midnight UTC of its day on."""
    found: dict[str, list[SuspectedSplit]] = {}
    for sentence in sentences:
        if named := _NAMED.match(sentence):
            symbol, new, old, day = named.groups()
            midnight = datetime.fromisoformat(day).replace(tzinfo=UTC)
            split = SuspectedSplit(int(midnight.timestamp() * 1000), int(new), int(old))
            found.setdefault(symbol, []).append(split)
    return found


class SplitWatch:
    """Looks at the first bar of each session of one share; it depends on seven sessions alone."""

    def __init__(self) -> None:
        self._day: int | None = None
        self._bar = (0, 0)  # open and close of the one before
        self._usual: deque[int] = deque(maxlen=SESSIONS)

    def add(
        self, day: int, open_time_ms: int, prices: tuple[int, int], volume: int
    ) -> SuspectedSplit | None:
        """Take in a bar of *day* by its open and close; return the split that it shows, if any.

        The first day is one of which the beginning may not be known: it says nothing.
        """
        before, self._bar = self._bar, prices
        if day == self._day:
            return None
        is_first, self._day = self._day is None, day
        if is_first:
            return None
        turnover = prices[1] * volume
        found = self._found(open_time_ms, before, prices, turnover)
        self._usual.append(turnover)
        return found

    def _found(
        self, open_time_ms: int, before: tuple[int, int], prices: tuple[int, int], turnover: int
    ) -> SuspectedSplit | None:
        fall = before[1] / prices[0]
        if 0.7 < fall < 1.4 or len(self._usual) < SESSIONS_LEAST:
            return None
        share = turnover / max(median(self._usual), 1)
        if not 1 / TURNOVER_FACTOR <= share <= TURNOVER_FACTOR:
            return None
        if any(abs(close / open_ - 1) > CLOSE_TOLERANCE for open_, close in (before, prices)):
            return None
        for more, fewer in RATIOS:
            for new, old in ((more, fewer), (fewer, more)):
                if abs(fall * old / new - 1) <= TOLERANCE:
                    return SuspectedSplit(open_time_ms, new, old)
        return None
