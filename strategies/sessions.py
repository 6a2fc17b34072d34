"""Exchange sessions as plain numbers, and suspected stock splits between them.

``replay/archive/sessions.py`` gets the sessions from a package, and they are stored with the run,
so that a restart and ``verify`` use the same ones. The rules are docs/stocks.md, K1 to K9.

After a split of seven for one, a share opens at a seventh of the previous close, and its turnover
in money stays the same. After a crash the turnover is far larger, and the ratio is not a simple
one. The rules are docs/stocks.md, K13 to K15.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable
from datetime import UTC, datetime
from enum import StrEnum
from functools import cached_property, lru_cache
from statistics import median
from typing import Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.months import MONTH_MS
from tracepaper.strategies.units import DAY_MS, MINUTE_MS, WEEK_MS, interval_start

Times = npt.NDArray[np.int64]


class Anchor(StrEnum):
    """The alignment of bars within a session."""

    CLOCK = "clock"  # 9:30, 10:00, 11:00: by the exchange's clock, the first bar shorter
    SESSION = "session"  # 9:30, 10:30, 11:30: counted from the session's open


class Sessions(Struct, frozen=True):
    """The sessions of an exchange over whole years, oldest first; all tuples have equal length.

    A session with a break is two rows with the same day. Days are the exchange's, counted from
    1970-01-01; opens and closes are UTC minutes since then; offsets are the exchange's minutes
    ahead of UTC at the open.
    """

    name: str
    version: str  # of the package that computed them
    anchor: Anchor
    a_year: float  # mean number of sessions per year
    days: tuple[int, ...]
    opens: tuple[int, ...]
    closes: tuple[int, ...]
    offsets: tuple[int, ...]

    def packed(self) -> bytes:
        """Pack the sessions for :func:`unpacked`; one session takes a byte or two."""
        before = (0, *self.days[:-1])
        steps = [day - last for day, last in zip(self.days, before, strict=True)]
        day_minutes = DAY_MS // MINUTE_MS
        starts = [at - day * day_minutes for at, day in zip(self.opens, self.days, strict=True)]
        lengths = [end - at for end, at in zip(self.closes, self.opens, strict=True)]
        parts = (self.name, self.version, self.anchor, self.a_year)
        return zlib.compress(
            msgspec.msgpack.encode((*parts, steps, starts, lengths, self.offsets)), 9
        )

    @property
    def sha256(self) -> str:
        """The SHA-256 of all fields, hexadecimal."""
        return hashlib.sha256(msgspec.msgpack.encode(self)).hexdigest()


_Packed = tuple[
    str, str, Anchor, float, tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]
]


def unpacked(stored: bytes) -> Sessions:
    """Return the sessions of :meth:`Sessions.packed`; raise ``DataInvalid`` for anything else."""
    try:
        name, version, anchor, a_year, steps, starts, lengths, offsets = msgspec.msgpack.decode(
            zlib.decompress(stored), type=_Packed
        )
        days = np.cumsum(steps, dtype=np.int64).tolist()
        day_minutes = DAY_MS // MINUTE_MS
        opens = tuple(start + day * day_minutes for start, day in zip(starts, days, strict=True))
        closes = tuple(at + length for at, length in zip(opens, lengths, strict=True))
        return Sessions(name, version, anchor, a_year, tuple(days), opens, closes, offsets)
    except (zlib.error, msgspec.MsgspecError, ValueError) as error:
        raise DataInvalid(
            f"The stored sessions cannot be read ({error}); restore a backup."
        ) from None


class Calendar:
    """The session bars of one interval: when each opens and closes, and on which day.

    A daily bar lasts from the session's open to its close, a weekly or monthly one from its first
    session's open to its last close. Shorter bars restart in each session and end at its close, so
    the first and the last may be shorter than the interval.
    """

    def __init__(self, sessions: Sessions, interval_ms: int) -> None:
        self.sessions = sessions
        self.interval_ms = interval_ms
        days = np.array(sessions.days, dtype=np.int64)
        opens = np.array(sessions.opens, dtype=np.int64) * MINUTE_MS
        closes = np.array(sessions.closes, dtype=np.int64) * MINUTE_MS
        if interval_ms < DAY_MS:
            offsets = np.array(sessions.offsets, dtype=np.int64) * MINUTE_MS
            by_clock = sessions.anchor is Anchor.CLOCK
            local = opens + offsets
            first = local - local % interval_ms - offsets if by_clock else opens
            counts = -(-(closes - first) // interval_ms)
            part = np.repeat(np.arange(days.size), counts)
            nth = np.arange(part.size) - np.repeat(counts.cumsum() - counts, counts)
            start = first[part] + nth * interval_ms
            self.days = days[part]
            self.opens = np.maximum(start, opens[part])
            self.closes = np.minimum(start + interval_ms, closes[part])
        else:
            group = groups_of_days(days, interval_ms)
            at = np.flatnonzero(np.diff(group, prepend=group[:1] - 1))
            self.days = days[at]
            self.opens = opens[at]
            self.closes = closes[np.append(at[1:], days.size) - 1]
        self._last = (-1, 0)  # the last argument of ``place``, and its result

    def __len__(self) -> int:
        return int(self.opens.size)

    def place(self, open_ms: int) -> int:
        """Return the index of the bar that opens at *open_ms*, or else of the last one before.

        It is -1 before the first bar.
        """
        last, at = self._last
        if open_ms == last:
            return at
        if at + 1 < self.opens.size and self.opens[at + 1] == open_ms:
            at += 1
        else:
            at = int(np.searchsorted(self.opens, open_ms, side="right")) - 1
        self._last = open_ms, at
        return at

    def between(self, first_ms: int, second_ms: int) -> int:
        """Return the number of session bars from the open *first_ms* to the open *second_ms*."""
        return self.place(second_ms) - self.place(first_ms)

    def closes_of(self, opens_ms: Times) -> Times:
        """Return when the bars that open at *opens_ms* close."""
        return self.closes[self.places(opens_ms)]

    def places(self, opens_ms: Times) -> Times:
        """Return the index of the bar that opens at, or last before, each of *opens_ms*."""
        return np.searchsorted(self.opens, opens_ms, side="right") - 1

    @cached_property
    def bars_a_day(self) -> int:
        """Maximum number of bars in a day."""
        return int(np.unique(self.days, return_counts=True)[1].max())

    def day_of(self, open_ms: int) -> int:
        """Return the exchange's day of the bar that opens at *open_ms*."""
        return int(self.days[self.place(open_ms)])

    def day_at(self, at_ms: int) -> int:
        """Return the exchange's day of the last session that opened at or before *at_ms*.

        So a session lasts until the next one opens.
        """
        sessions = self.sessions
        return sessions.days[max(bisect_right(sessions.opens, at_ms // MINUTE_MS) - 1, 0)]

    def days_at(self, closes_ms: Times) -> Times:
        """Return the exchange's day of the bar that closes at each of *closes_ms*."""
        return self.days[np.searchsorted(self.opens, closes_ms, side="left") - 1]


def closes_of(opens_ms: Times, interval_ms: int, calendar: Calendar | None) -> Times:
    """Return when the bars that open at *opens_ms* close.

    Without a *calendar* every interval is a bar.
    """
    return opens_ms + interval_ms if calendar is None else calendar.closes_of(opens_ms)


def opens_later(opens_ms: Times, bars: int, interval_ms: int, calendar: Calendar | None) -> Times:
    """Return the open of the bar that is *bars* after each of *opens_ms* (before, if negative).

    Beyond the calendar it is the open of its last or first bar.
    """
    if calendar is None:
        return opens_ms + bars * interval_ms
    return calendar.opens[(calendar.places(opens_ms) + bars).clip(0, len(calendar) - 1)]


def is_whole_days(interval_ms: int) -> bool:
    """Return whether bars of *interval_ms* are whole days, which are identified by their date."""
    return interval_ms in (DAY_MS, WEEK_MS, MONTH_MS)


def groups_of_days(days: Times, interval_ms: int) -> Times:
    """Return the day, week (from Monday) or month of each of *days*, counted from 1970."""
    if interval_ms == MONTH_MS:
        return days.astype("datetime64[D]").astype("datetime64[M]").astype(np.int64)
    step = interval_ms // DAY_MS
    phase = interval_start(0, interval_ms) // DAY_MS
    return (days - phase) // step


MONTHS_OF: Final = "UTC"
"""The name of the sessions that count months for a market that never closes."""
_DAYS: Final = range(47_847)
"""1970-01-01 to 2100-12-31."""


@lru_cache(maxsize=1)
def month_calendar() -> Calendar:
    """Return the months of UTC from 1970 to 2100, as the bars of a calendar that never closes."""
    day_minutes = DAY_MS // MINUTE_MS
    sessions = Sessions(
        name=MONTHS_OF,
        version="1",
        anchor=Anchor.CLOCK,
        a_year=len(_DAYS) / 131,
        days=tuple(_DAYS),
        opens=tuple(day * day_minutes for day in _DAYS),
        closes=tuple((day + 1) * day_minutes for day in _DAYS),
        offsets=(0,) * len(_DAYS),
    )
    return Calendar(sessions, MONTH_MS)


RATIOS: Final = ((3, 2), (2, 1), (3, 1), (4, 1), (5, 1), (7, 1), (10, 1), (20, 1))
"""(new, old) shares of usual splits; reverse splits swap them."""
TOLERANCE: Final = 0.03
"""Allowed distance of the open from the ratio, as a fraction, for the overnight move."""
CLOSE_TOLERANCE: Final = 0.2
"""Allowed move of that bar and the previous one from open to close, as a fraction.

It excludes a single false open or close, which disappears within the bar.
"""
TURNOVER_FACTOR: Final = 2.0
"""Allowed factor, up or down, between a first bar's turnover and the usual one."""
SESSIONS: Final = 5
"""The usual turnover is the median over the first bars of this many previous sessions."""
MIN_SESSIONS: Final = 3
WATCHED_SESSIONS: Final = SESSIONS + 2
"""Sessions that a result depends on: the oldest may be incomplete, the newest is checked."""


class SuspectedSplit(NamedTuple):
    """A suspected split of *new* shares for *old* ones."""

    open_time_ms: int
    new: int
    old: int

    def sentence(self, symbol: str) -> str:
        """Return the warning of a run, which :func:`named_splits` can parse."""
        day = datetime.fromtimestamp(self.open_time_ms / 1000, UTC).date()
        return (
            f"{symbol}: the split of {self.new} for {self.old} suspected on {day} is not adjusted; "
            "give adjusted candles"
        )


_NAMED: Final = re.compile(r"(\S+): the split of (\d+) for (\d+) suspected on (\d{4}-\d\d-\d\d) ")


def named_splits(sentences: Iterable[str]) -> dict[str, list[SuspectedSplit]]:
    """Parse the splits in *sentences*, by symbol; each takes effect at midnight UTC."""
    splits: dict[str, list[SuspectedSplit]] = {}
    for sentence in sentences:
        if named := _NAMED.match(sentence):
            symbol, new, old, day = named.groups()
            midnight = datetime.fromisoformat(day).replace(tzinfo=UTC)
            split = SuspectedSplit(int(midnight.timestamp() * 1000), int(new), int(old))
            splits.setdefault(symbol, []).append(split)
    return splits


class SplitWatch:
    """Detects splits of one share from the first bar of each session; depends on seven sessions."""

    def __init__(self) -> None:
        self._day: int | None = None
        self._bar = (0, 0)  # open and close of the previous bar
        self._turnovers: deque[int] = deque(maxlen=SESSIONS)

    def add(
        self, day: int, open_time_ms: int, prices: tuple[int, int], volume: int
    ) -> SuspectedSplit | None:
        """Add a bar of *day* with its (open, close) *prices*; return a suspected split, if any.

        The first day is skipped, since its first bar may be missing.
        """
        before, self._bar = self._bar, prices
        if day == self._day:
            return None
        is_first, self._day = self._day is None, day
        if is_first:
            return None
        turnover = prices[1] * volume
        split = self._suspected(open_time_ms, before, prices, turnover)
        self._turnovers.append(turnover)
        return split

    def _suspected(
        self, open_time_ms: int, before: tuple[int, int], prices: tuple[int, int], turnover: int
    ) -> SuspectedSplit | None:
        fall = before[1] / prices[0]
        if 0.7 < fall < 1.4 or len(self._turnovers) < MIN_SESSIONS:
            return None
        share = turnover / max(median(self._turnovers), 1)
        if not 1 / TURNOVER_FACTOR <= share <= TURNOVER_FACTOR:
            return None
        if any(abs(close / open_ - 1) > CLOSE_TOLERANCE for open_, close in (before, prices)):
            return None
        for more, fewer in RATIOS:
            for new, old in ((more, fewer), (fewer, more)):
                if abs(fall * old / new - 1) <= TOLERANCE:
                    return SuspectedSplit(open_time_ms, new, old)
        return None
