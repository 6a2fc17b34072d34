"""Sessions are plain numbers: they come back as they were stored, and count bars exactly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.sessions import Calendar, Sessions, joint, packed, unpacked

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS


@st.composite
def drawn(draw: st.DrawFn) -> Sessions:
    """Draw sessions of a made-up exchange: any days, half an hour to a day long."""
    day, rows = draw(st.integers(15_000, 17_000)), []
    for _ in range(draw(st.integers(1, 30))):
        day += draw(st.integers(1, 4))
        offset = draw(st.sampled_from([-300, -240, 0, 330, 600]))
        start = draw(st.integers(0, 600))
        end = draw(st.integers(start + 30, 1_430))
        opened = day * 1_440 - offset + start
        rows.append((day, opened - draw(st.integers(0, 20)), opened, opened + end - start))
    rows = [
        row
        for row, two in zip(rows, [*rows[1:], None], strict=True)
        if two is None or row[3] <= two[2]
    ]
    return Sessions(250.5, *(tuple(column) for column in zip(*rows, strict=True)))


def slowly(sessions: Sessions, interval_ms: int) -> list[tuple[int, int]]:
    """Return every bar shorter than a day, minute by minute."""
    spans: list[tuple[int, int]] = []
    rows = zip(sessions.starts, sessions.opens, sessions.closes, strict=True)
    for counted, opened, closed in rows:
        start = opened * MINUTE_MS
        for minute in range(opened + 1, closed + 1):
            at = minute * MINUTE_MS
            if (at - counted * MINUTE_MS) % interval_ms == 0 or minute == closed:
                spans.append((start, at))
                start = at
    return spans


@settings(max_examples=25)
@given(drawn(), st.sampled_from([30, 60, 120, 240, 720]))
def test_bars_are_those_that_a_slow_reading_finds(sessions: Sessions, minutes: int) -> None:
    calendar = Calendar(sessions, minutes * MINUTE_MS)
    bars = list(zip(calendar.opens.tolist(), calendar.closes.tolist(), strict=True))
    assert bars == slowly(sessions, minutes * MINUTE_MS)
    for place, (opened, _) in enumerate(bars):
        assert calendar.place(opened) == place
        assert calendar.between(bars[0][0], opened) == place
    assert calendar.closes_of(calendar.opens).tolist() == calendar.closes.tolist()
    assert calendar.days_at(calendar.closes).tolist() == calendar.days.tolist()


@settings(max_examples=25)
@given(st.lists(drawn(), min_size=1, max_size=4))
def test_stored_sessions_come_back(each: list[Sessions]) -> None:
    assert unpacked(packed([*each, each[0]]), len(each) + 1) == (*each, each[0])


def test_what_is_no_sessions_is_refused() -> None:
    whole = packed([Sessions(1.0, (1,), (2_000,), (2_000,), (2_400,))])
    for stored, count in ((b"", 1), (b"nothing", 1), (whole[:-2], 1), (whole, 2)):
        with pytest.raises(DataInvalid, match="stored sessions cannot be read"):
            unpacked(stored, count)


def test_days_of_an_account_are_those_of_any_share() -> None:
    def traded(*days: int) -> Sessions:
        opens = tuple(day * 1_440 for day in days)
        return Sessions(len(days), days, opens, opens, tuple(at + 1_440 for at in opens))

    assert joint([]) is None
    assert joint([traded(1, 2, 4), traded(1, 3, 4)]) == replace(traded(1, 2, 3, 4), a_year=3)
    early = Sessions(250.0, (1, 2), (1_400, 2_840), (1_400, 2_840), (2_000, 3_000))
    late = Sessions(250.0, (1,), (2_700,), (2_700,), (3_000,))
    with pytest.raises(DataInvalid, match="replay those of each part of the world apart"):
        joint([early, late])


def test_a_close_is_of_its_own_day_where_the_next_session_opens_with_it() -> None:
    days, opens = (5, 6), (5 * 1_440, 6 * 1_440)
    sessions = Sessions(250.0, days, opens, opens, (opens[1], 7 * 1_440))
    calendar = Calendar(sessions, HOUR_MS)
    midnight = opens[1] * MINUTE_MS
    assert calendar.days_at(np.array([midnight, midnight + HOUR_MS])).tolist() == [5, 6]
    assert [sessions.day_at(at) for at in (midnight - 1, midnight)] == [5, 6]
    assert sessions.day_at(0) == 5  # before the first there is no other


def test_days_and_weeks_go_from_the_first_open_to_the_last_close() -> None:
    # Thursday and Friday, then Monday with a break at noon.
    days = (4, 4 + 1, 4 + 4, 4 + 4)
    hours = ((9, 16), (9, 13), (9, 12), (13, 16))
    opens, closes = (
        tuple((day + 3) * 1_440 + hour * 60 for day, hour in zip(days, each, strict=True))
        for each in zip(*hours, strict=True)
    )
    sessions = Sessions(250.0, tuple(day + 3 for day in days), opens, opens, closes)
    by_day = Calendar(sessions, DAY_MS)
    assert [open_ms // HOUR_MS % 24 for open_ms in by_day.opens.tolist()] == [9, 9, 9]
    assert [close_ms // HOUR_MS % 24 for close_ms in by_day.closes.tolist()] == [16, 13, 16]
    by_week = Calendar(sessions, 7 * DAY_MS)
    assert by_week.opens.tolist() == by_day.opens[[0, 2]].tolist()
    assert by_week.closes.tolist() == by_day.closes[[1, 2]].tolist()


def test_beyond_the_sessions_every_interval_is_a_bar() -> None:
    opens = (5 * 1_440, 8 * 1_440)
    calendar = Calendar(Sessions(250.0, (5, 8), opens, opens, (6 * 1_440, 9 * 1_440)), DAY_MS)
    assert (calendar.opens_at(np.arange(-1, 4)) // DAY_MS).tolist() == [4, 5, 8, 9, 10]
