"""The sessions of a share, which are the dates and hours of its own file.

The rules are docs/shares.md, K1 to K9.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from tracepaper.replay.archive.columns import IntArray
from tracepaper.strategies.months import interval_end
from tracepaper.strategies.sessions import Sessions, groups_of_days
from tracepaper.strategies.units import DAY_MS, HOUR_MS, MINUTE_MS, WEEK_MS, count_of, iso

SATURDAY: Final = 5
WEEK_DAYS: Final = 7
YEAR_DAYS: Final = 365.25
CLOSED_MOST: Final = 21
"""The most days that an exchange stays closed; a longer break is a hole in the file."""
EDGE_DAYS: Final = 31
"""Days beyond the file on which its weekdays go on: they tell whether its last month is whole."""


def session_days(times: IntArray, interval_ms: int) -> IntArray:
    """Return the date of the session of each of *times*, in days since 1970.

    Midnights, UTC, are dates. Other times divide into sessions in the middle of the night: the
    longest part of a day in which no bar opens. The date is that at the exchange, which trades
    seldom on weekends. A week or a month has the date of the nearest midnight.
    """
    if not (times % DAY_MS).any():
        return times // DAY_MS
    if interval_ms > DAY_MS:
        return (times + DAY_MS // 2) // DAY_MS
    of_day = np.unique(times % DAY_MS)
    pauses = np.diff(of_day, append=of_day[0] + DAY_MS)
    night = int(pauses.argmax())
    middle = int(of_day[night] + pauses[night] // 2) % DAY_MS
    if interval_ms < DAY_MS and pauses[night] <= max(interval_ms, HOUR_MS):
        middle = 0  # bars open in the whole day
    days = (times - middle) // DAY_MS + (middle >= DAY_MS // 2)
    other = days + (1 if middle < DAY_MS // 2 else -1)
    on_weekend, other_on_weekend = (
        int((_weekdays(each) >= SATURDAY).sum()) for each in (days, other)
    )
    return other if on_weekend and other_on_weekend * 2 <= on_weekend else days


def own_sessions(times: IntArray, interval_ms: int) -> Sessions:
    """Return the sessions of bars that open at *times*, ascending.

    A session lasts from its first bar to the end of its last. A hole in it where most sessions
    have one is a break; other holes lack bars. In a break of more than ``CLOSED_MOST`` days, and
    for ``EDGE_DAYS`` before the first and after the last, the usual weekdays are sessions.
    """
    days = session_days(times, interval_ms)
    if interval_ms >= DAY_MS:
        rows = _whole_days(times, interval_ms)
    else:
        rows = _hours(times, days, interval_ms)
    if interval_ms <= DAY_MS:
        rows = _with_usual_days(rows)
    first, last = ((int(day) + 3) // WEEK_DAYS for day in days[[0, -1]])
    a_year = np.unique(days).size / ((last - first + 1) * WEEK_DAYS) * YEAR_DAYS
    return Sessions(a_year, *(tuple(column.tolist()) for column in rows))


def lacking_days(times: IntArray, interval_ms: int) -> str:
    """Return a sentence with the number of days (weeks, months) that the file lacks, or ""."""
    days, unit = np.unique(session_days(times, interval_ms)), "day"
    every = np.arange(days[0], days[-1] + 1)
    if interval_ms > DAY_MS:
        unit = "week" if interval_ms == WEEK_MS else "month"
        absent = np.setdiff1d(groups_of_days(every, interval_ms), groups_of_days(days, interval_ms))
    else:
        absent = np.setdiff1d(every[np.isin(_weekdays(every), _usual_weekdays(days))], days)
    if not absent.size:
        return ""
    sentence = f"{count_of(absent.size, unit)} between others without a candle"
    return (
        f"{sentence}, the first {iso(int(absent[0]) * DAY_MS)[:10]}" if unit == "day" else sentence
    )


def _whole_days(times: IntArray, interval_ms: int) -> IntArray:
    """Return days, starts, opens and closes of bars of whole days, which open at midnight."""
    ends = np.array([interval_end(at, interval_ms) for at in times.tolist()])
    ends[:-1] = np.minimum(ends[:-1], times[1:])
    opens = times // MINUTE_MS
    return np.stack((times // DAY_MS, opens, opens, ends // MINUTE_MS))


def _hours(times: IntArray, days: IntArray, interval_ms: int) -> IntArray:
    """Return days, starts, opens and closes of the sessions of bars shorter than a day."""
    steps, is_inside = np.diff(times), np.diff(days) == 0
    is_first = np.append(True, ~is_inside)[:-1]
    is_short = is_inside & is_first & (steps < interval_ms)  # 9:30, then 10:00
    kinds = np.stack((times[:-1] % DAY_MS, steps), axis=1)
    _, kind, counts = np.unique(kinds, axis=0, return_inverse=True, return_counts=True)
    is_usual = counts[kind.reshape(-1)] * 2 > max(np.unique(days).size, 2)
    is_hole = (steps > interval_ms) & (steps % interval_ms == 0) & ~is_usual
    goes_on = is_inside & (is_short | is_hole | (steps == interval_ms))
    firsts = np.flatnonzero(np.append(True, ~goes_on))
    lasts = np.append(firsts[1:] - 1, times.size - 1)
    opens, closes = times[firsts], times[lasts] + interval_ms
    closes[:-1] = np.minimum(closes[:-1], opens[1:])
    starts, short = opens.copy(), np.append(is_short, False)[firsts]
    starts[short] = times[firsts[short] + 1] - interval_ms
    return np.stack((days[firsts], starts // MINUTE_MS, opens // MINUTE_MS, closes // MINUTE_MS))


def _with_usual_days(rows: IntArray) -> IntArray:
    """Return *rows* with the usual weekdays beyond their ends, and in breaks that are holes.

    Such a day has the hours of the day before it, and before the first day those of that.
    """
    days = rows[0]
    usual, first, last = _usual_weekdays(days), int(days[0]), int(days[-1])
    parts = [_copies(rows[:, days == first], np.arange(first - EDGE_DAYS, first), usual)]
    start = 0
    for after in (*(np.flatnonzero(np.diff(days) > CLOSED_MOST) + 1).tolist(), days.size):
        day = int(days[after - 1])
        until = int(days[after]) if after < days.size else last + EDGE_DAYS + 1
        added = _copies(rows[:, days == day], np.arange(day + 1, until), usual)
        parts += [rows[:, start:after], added]
        start = after
    return np.concatenate(parts, axis=1)


def _copies(session: IntArray, days: IntArray, usual: IntArray) -> IntArray:
    """Return the rows of one *session* on those of *days* whose weekday is *usual*."""
    moved = days[np.isin(_weekdays(days), usual)] - session[0, 0]
    units = np.array([1, *3 * [DAY_MS // MINUTE_MS]])  # days, then minutes
    copies: IntArray = session[:, None, :] + units[:, None, None] * moved[None, :, None]
    return copies.reshape(len(session), -1)


def _usual_weekdays(days: IntArray) -> IntArray:
    """Return the weekdays on which at least half as many of *days* lie as on the most frequent."""
    counts = np.bincount(_weekdays(np.unique(days)), minlength=WEEK_DAYS)
    return np.flatnonzero(counts * 2 >= counts.max())


def _weekdays(days: IntArray) -> IntArray:
    """Return the weekday of each of *days* since 1970: 0 is Monday."""
    return (days + 3) % WEEK_DAYS
