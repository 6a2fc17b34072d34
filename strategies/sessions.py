"""Sessions of shares as plain numbers.

``replay/archive/sessions.py`` derives the sessions from a file, and they are stored with the run,
so that ``verify`` uses the same ones. The rules are docs/shares.md, K1 to K9.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.months import MONTH_MS
from tracepaper.strategies.units import DAY_MS, MINUTE_MS, WEEK_MS, interval_start

Times = npt.NDArray[np.int64]


class Sessions(Struct, frozen=True):
    """The sessions of a share, oldest first; all tuples have equal length.

    A session with a break is two rows with the same day. Days are counted from 1970-01-01; starts,
    opens and closes are UTC minutes since then. The bars of a row are counted from its start, which
    is before its open if its first bar is shorter than the others.
    """

    a_year: float  # mean number of sessions per year
    days: tuple[int, ...]
    starts: tuple[int, ...]
    opens: tuple[int, ...]
    closes: tuple[int, ...]

    def day_at(self, at_ms: int) -> int:
        """Return the day of the last session that opened at or before *at_ms*.

        So a session lasts until the next one opens.
        """
        return self.days[max(bisect_right(self.opens, at_ms // MINUTE_MS) - 1, 0)]


_Packed = tuple[
    tuple[int, ...],
    tuple[tuple[float, tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]], ...],
]


def packed(each: Iterable[Sessions]) -> bytes:
    """Pack the sessions of each instrument for :func:`unpacked`; equal ones are stored once."""
    every = tuple(each)
    kinds = tuple(dict.fromkeys(every))
    which = {sessions: place for place, sessions in enumerate(kinds)}
    day_minutes = DAY_MS // MINUTE_MS
    columns = [
        (
            kind.a_year,
            np.diff(kind.days, prepend=0).tolist(),
            np.subtract(kind.starts, np.multiply(kind.days, day_minutes)).tolist(),
            np.subtract(kind.opens, kind.starts).tolist(),
            np.subtract(kind.closes, kind.opens).tolist(),
        )
        for kind in kinds
    ]
    content = [which[sessions] for sessions in every], columns
    return zlib.compress(msgspec.msgpack.encode(content), 9)


def unpacked(stored: bytes, count: int) -> tuple[Sessions, ...]:
    """Return the *count* sessions of :func:`packed`; raise ``DataInvalid`` for anything else."""
    try:
        which, columns = msgspec.msgpack.decode(zlib.decompress(stored), type=_Packed)
        kinds = []
        for a_year, steps, *lengths in columns:
            days = np.cumsum(steps, dtype=np.int64)
            times = np.cumsum(np.vstack((days * (DAY_MS // MINUTE_MS), *lengths)), axis=0)[1:]
            kinds.append(Sessions(a_year, *(tuple(each.tolist()) for each in (days, *times))))
        if len(which) != count:
            raise ValueError(f"{len(which)} for {count} instruments")  # noqa: TRY301 - one remedy
        return tuple(kinds[place] for place in which)
    except (zlib.error, msgspec.MsgspecError, ValueError, IndexError) as error:
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
            first = np.array(sessions.starts, dtype=np.int64) * MINUTE_MS
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

    def opens_at(self, places: Times) -> Times:
        """Return when the bars at *places* open; beyond the sessions every interval is a bar."""
        inside = places.clip(0, len(self) - 1)
        return self.opens[inside] + (places - inside) * self.interval_ms

    def open_at(self, place: int) -> int:
        """Return when the bar at *place* opens; beyond the sessions every interval is a bar."""
        return int(self.opens_at(np.array(place)))

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

    def days_at(self, closes_ms: Times) -> Times:
        """Return the exchange's day of the bar that closes at each of *closes_ms*."""
        return self.days[np.searchsorted(self.opens, closes_ms, side="left") - 1]


NO_SESSIONS: Final[Mapping[str, Sessions]] = MappingProxyType({})
"""Of markets that never close."""


def calendars_of(sessions: Mapping[str, Sessions], interval_ms: int) -> dict[str, Calendar]:
    """Return the calendar of each instrument; equal sessions share one."""
    made = {each: Calendar(each, interval_ms) for each in set(sessions.values())}
    return {key: made[each] for key, each in sessions.items()}


def joint(sessions: Iterable[Sessions]) -> Sessions | None:
    """Return the sessions of an account: its days are those of any share, from open to last close.

    None without any. Raises ``DataInvalid`` if the hours of two days overlap.
    """
    each = list(dict.fromkeys(sessions))
    if len(each) <= 1:
        return each[0] if each else None
    days, starts, opens, closes = (
        np.concatenate([getattr(part, name) for part in each])
        for name in ("days", "starts", "opens", "closes")
    )
    order = np.lexsort((opens, days))
    every, first = np.unique(days[order], return_index=True)
    first_starts, first_opens = (
        np.minimum.reduceat(column[order], first) for column in (starts, opens)
    )
    last_closes = np.maximum.reduceat(closes[order], first)
    if (first_opens[1:] < last_closes[:-1]).any():
        raise DataInvalid(
            "The shares trade at hours of which one day's end overlaps the next day's begin; "
            "replay those of each part of the world apart."
        )
    columns = every, first_starts, first_opens, last_closes
    return Sessions(max(part.a_year for part in each), *(tuple(c.tolist()) for c in columns))


def closes_of(opens_ms: Times, interval_ms: int, calendar: Calendar | None) -> Times:
    """Return when the bars that open at *opens_ms* close.

    Without a *calendar* every interval is a bar.
    """
    return opens_ms + interval_ms if calendar is None else calendar.closes_of(opens_ms)


def opens_later(opens_ms: Times, bars: int, interval_ms: int, calendar: Calendar | None) -> Times:
    """Return the open of the bar that is *bars* after each of *opens_ms* (before, if negative)."""
    if calendar is None:
        return opens_ms + bars * interval_ms
    return calendar.opens_at(calendar.places(opens_ms) + bars)


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


def first_days(days: Times, interval_ms: int) -> Times:
    """Return the first day of the day, week (from Monday) or month of each of *days*."""
    groups = groups_of_days(days, interval_ms)
    if interval_ms == MONTH_MS:
        return groups.astype("datetime64[M]").astype("datetime64[D]").astype(np.int64)
    return groups * (interval_ms // DAY_MS) + interval_start(0, interval_ms) // DAY_MS


_DAYS: Final = range(47_847)
"""1970-01-01 to 2100-12-31."""


@lru_cache(maxsize=1)
def month_calendar() -> Calendar:
    """Return the months of UTC from 1970 to 2100, as the bars of a calendar that never closes."""
    day_minutes = DAY_MS // MINUTE_MS
    opens = tuple(day * day_minutes for day in _DAYS)
    closes = tuple((day + 1) * day_minutes for day in _DAYS)
    return Calendar(Sessions(len(_DAYS) / 131, tuple(_DAYS), opens, opens, closes), MONTH_MS)
