"""Exchange calendars, and candles aligned to their sessions.

Only this module calls the calendar package, once per file or run; the engine gets numbers.

The rules are docs/stocks.md, K1 to K9.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import Any, Final

import msgspec
import numpy as np

from tracepaper.replay.archive.candles import Candles
from tracepaper.replay.archive.columns import ZONELESS, IntArray
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.extras import missing_sentence
from tracepaper.strategies.sessions import (
    Anchor,
    Calendar,
    Sessions,
    groups_of_days,
    is_whole_days,
)
from tracepaper.strategies.units import DAY_MS, MINUTE_MS, iso

SessionsFor = Callable[[int, int], Sessions]
"""Returns the sessions of the whole years around two UTC times in milliseconds."""

MOST: Final = 0.9
"""The share of sessions that must fit before a file's candles count as aligned that way."""
NS_A_MINUTE: Final = 60_000_000_000


def sessions_named(name: str) -> SessionsFor:
    """Return a function that gives the sessions of the calendar *name*, such as ``XNAS``.

    Raises ``ConfigInvalid`` if the package is missing or has no such calendar.
    """
    _calendar_class(name)
    return partial(_sessions, name)


def _sessions(name: str, from_ms: int, until_ms: int) -> Sessions:
    return sessions_of_years(name, _year(from_ms), _year(until_ms))


def _year(time_ms: int) -> int:
    return datetime.fromtimestamp(time_ms / 1000, tz=UTC).year


def _calendar_class(name: str) -> Any:  # noqa: ANN401 - a module of an optional package
    """Return the package, after checking that it has the calendar *name*."""
    try:
        import exchange_calendars
    except ImportError:
        raise ConfigInvalid(
            missing_sentence("exchange_calendars", f"market.calendar {name!r}")
        ) from None
    names = exchange_calendars.get_calendar_names()
    if name not in names:
        raise ConfigInvalid(
            f"market.calendar {name!r} is no calendar; write one by its ISO 10383 code, such as "
            "XNAS or XNYS."
        )
    return exchange_calendars


def reaching(sessions: Sessions, from_ms: int, until_ms: int) -> Sessions:
    """Return *sessions*, of whole years, if they cover both times.

    Raises ``DataInvalid`` otherwise.
    """
    first, last = sessions.opens[0] * MINUTE_MS, sessions.closes[-1] * MINUTE_MS
    for at in (from_ms, until_ms):
        if not _year(first) <= _year(at) <= _year(last):
            raise DataInvalid(
                f"The data reach to {iso(at)}, beyond the sessions that the run was opened with; "
                "give the run's own data."
            )
    return sessions


@lru_cache(maxsize=8)
def sessions_of_years(name: str, first: int, last: int) -> Sessions:
    """Return the package's sessions of the years *first* to *last*."""
    package = _calendar_class(name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings of pandas concern the package
            calendar = package.get_calendar(name, start=f"{first}-01-01", end=f"{last}-12-31")
    except ValueError as error:
        raise DataInvalid(f"The calendar {name} does not reach to the data: {error}") from None
    rows: list[tuple[int, int, int, int]] = []
    columns = [
        getattr(calendar, column).to_numpy(dtype="datetime64[ns]").astype(np.int64).tolist()
        for column in ("opens", "break_starts", "break_ends", "closes")
    ]
    nothing = np.iinfo(np.int64).min  # marks a missing break
    labels = calendar.sessions.to_numpy(dtype="datetime64[D]").astype(np.int64).tolist()
    for day, opened, paused, resumed, closed in zip(labels, *columns, strict=True):
        offset = datetime.fromtimestamp(opened / 10**9, tz=calendar.tz).utcoffset()
        assert offset is not None
        ahead = int(offset.total_seconds()) // 60
        if paused == nothing:
            rows.append((day, opened, closed, ahead))
        else:
            rows += [(day, opened, paused, ahead), (day, resumed, closed, ahead)]
    days, opens, closes, offsets = (tuple(column) for column in zip(*rows, strict=True))
    return Sessions(
        name=name,
        version=str(package.__version__),
        anchor=Anchor.CLOCK,
        a_year=len(labels) / (last - first + 1),
        days=days,
        opens=tuple(at // NS_A_MINUTE for at in opens),
        closes=tuple(at // NS_A_MINUTE for at in closes),
        offsets=offsets,
    )


# ---------------------------------------------------------------- candles upon sessions


def in_sessions(candles: Candles, sessions_for: SessionsFor) -> Candles:
    """Return *candles* at the opens of their session bars; drop others, with a note.

    A day, week or month is matched by its date. A shorter candle must open with a bar of the
    session. Text without a zone is the exchange's local time if that fits more bars than UTC.

    Raises ``DataInvalid`` if no candle fits, or two fit the same bar.
    """
    times = candles.open_time_ms
    sessions = sessions_for(int(times[0]), int(times[-1]))
    remarks, notes = [], list(candles.notes)
    if is_whole_days(candles.interval_ms):
        calendar = Calendar(sessions, candles.interval_ms)
        places = _by_date(times, calendar)
        notes = [note for note in notes if note != ZONELESS]
    else:
        opens = times
        calendar, places = _by_open(times, sessions, candles.interval_ms)
        if ZONELESS in notes:
            local_opens = _from_local(times, sessions)
            local, local_places = _by_open(local_opens, sessions, candles.interval_ms)
            if np.count_nonzero(local_places >= 0) > np.count_nonzero(places >= 0):
                calendar, places, opens = local, local_places, local_opens
                notes.remove(ZONELESS)
                remarks.append(f"times are text without a zone, read as those of {sessions.name}")
        if _are_closes(opens, sessions):
            raise DataInvalid(
                f"{candles.path}: its times are those of closes, as sessions of {sessions.name} "
                "end with one of them and begin with none: give the open time of each candle."
            )
    kept = np.flatnonzero(places >= 0)
    if not kept.size:
        raise DataInvalid(
            f"{candles.path}: no candle opens with a bar of {sessions.name}; name the calendar of "
            "its exchange, or give the times with their offset from UTC."
        )
    again = np.flatnonzero(np.diff(places[kept]) <= 0)
    if again.size:
        earlier, later = (iso(int(times[kept[again[0] + more]])) for more in (0, 1))
        raise DataInvalid(
            f"{candles.path}: the candles of {earlier} and {later} are of one bar of "
            f"{sessions.name}; remove one of them."
        )
    lost = times.size - kept.size
    if lost:
        first = iso(int(times[np.flatnonzero(places < 0)[0]]))
        what = "candle" if lost == 1 else "candles"
        remarks.append(f"{lost} {what} outside the sessions of {sessions.name} dropped: {first}")
        if lost > 1:
            remarks[-1] += " first"
    return replace(
        candles[kept],
        open_time_ms=calendar.opens[places[kept]],
        calendar=calendar,
        notes=(*notes, *remarks),
    )


def _by_open(times: IntArray, sessions: Sessions, interval_ms: int) -> tuple[Calendar, IntArray]:
    """Return the calendar whose bars open at most of *times*, and the bar index of each time.

    A time without a bar gets -1. If both anchors fit equally, the clock is the anchor.
    """
    calendars = [
        Calendar(msgspec.structs.replace(sessions, anchor=anchor), interval_ms)
        for anchor in (Anchor.CLOCK, Anchor.SESSION)
    ]
    candidates = []
    for calendar in calendars:
        places = calendar.places(times)
        candidates.append(np.where(calendar.opens[places] == times, places, -1))
    counts = [np.count_nonzero(places >= 0) for places in candidates]
    chosen = 1 if counts[1] > counts[0] else 0
    return calendars[chosen], candidates[chosen]


def _are_closes(times: IntArray, sessions: Sessions) -> bool:
    """Return whether *times* are closes: they include ends of sessions and no opens.

    Sessions with trading before or after them are ignored.
    """
    begins, ends = (np.array(part) * MINUTE_MS for part in (sessions.opens, sessions.closes))
    over = (begins >= times[0] - DAY_MS // 2) & (ends <= times[-1])
    if not over.any() or (times > ends[np.searchsorted(begins, times, side="right") - 1]).any():
        return False
    ended, begun = (np.isin(part[over], times).mean() for part in (ends, begins))
    return bool(ended > MOST and begun < 1 - MOST)


def _from_local(times: IntArray, sessions: Sessions) -> IntArray:
    """Convert *times* from the exchange's local time to UTC."""
    days, offsets = np.array(sessions.days), np.array(sessions.offsets)
    at = np.searchsorted(days, times // DAY_MS).clip(max=days.size - 1)
    return times - offsets[at] * MINUTE_MS


def _by_date(times: IntArray, calendar: Calendar) -> IntArray:
    """Return the bar index in *calendar*, of days, weeks or months, for each of *times*, or -1.

    A time at which a bar opens belongs to that bar. Any other time names a date: in UTC if all
    times are midnights there, else in the exchange's local time.
    """
    at_open = calendar.places(times)
    days = times // DAY_MS
    if (times % DAY_MS).any():
        sessions = calendar.sessions
        opens = np.array(sessions.opens, dtype=np.int64) * MINUTE_MS
        # Use the offset of the next session, since midnight precedes the open.
        near = np.searchsorted(opens, times).clip(max=opens.size - 1)
        days = (times + np.array(sessions.offsets)[near] * MINUTE_MS) // DAY_MS
    bars = groups_of_days(calendar.days, calendar.interval_ms)
    wanted = groups_of_days(days, calendar.interval_ms)
    places = np.searchsorted(bars, wanted).clip(max=bars.size - 1)
    places = np.where(bars[places] == wanted, places, -1)
    return np.where(calendar.opens[at_open] == times, at_open, places)


def on_common_sessions(candles: Sequence[Candles], sessions_for: SessionsFor) -> list[Candles]:
    """Return *candles* on the common sessions of their calendars.

    Raises ``DataInvalid`` if their bars have different anchors, or one fits no common session.
    """
    anchors = [part.calendar.sessions.anchor for part in candles if part.calendar is not None]
    for part, anchor in zip(candles, anchors, strict=True):
        if anchor is not anchors[0]:
            raise DataInvalid(
                f"{candles[0].path} opens its bars by the {anchors[0]} and {part.path} by the "
                f"{anchor}; give files of one kind."
            )
    sessions = sessions_for(
        min(int(part.open_time_ms[0]) for part in candles),
        max(int(part.open_time_ms[-1]) for part in candles),
    )
    sessions = msgspec.structs.replace(sessions, anchor=anchors[0])
    counted = []
    for part in candles:
        calendar = Calendar(sessions, part.interval_ms)
        opens = calendar.opens[calendar.places(part.open_time_ms)]
        wrong = np.flatnonzero(opens != part.open_time_ms)
        if wrong.size:
            at = iso(int(part.open_time_ms[wrong[0]]))
            raise DataInvalid(
                f"{part.path}: no bar of {sessions.name} opens at {at} in the sessions that the "
                "run was opened with; give the run's own data."
            )
        counted.append(replace(part, calendar=calendar))
    return counted
