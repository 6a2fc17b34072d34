"""Sessions are plain numbers: they come back as they were stored, and count bars exactly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.sessions import Anchor, Calendar, Sessions, unpacked

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
        rows.append((day, day * 1_440 - offset + start, day * 1_440 - offset + end, offset))
    rows = [
        row
        for row, two in zip(rows, [*rows[1:], None], strict=True)
        if two is None or row[2] <= two[1]
    ]
    days, opens, closes, offsets = (tuple(column) for column in zip(*rows, strict=True))
    anchor = draw(st.sampled_from(list(Anchor)))
    return Sessions("MADE", "1.0", anchor, 250.5, days, opens, closes, offsets)


def slowly(sessions: Sessions, interval_ms: int) -> list[tuple[int, int]]:
    """Return every bar shorter than a day, minute by minute."""
    spans: list[tuple[int, int]] = []
    rows = zip(sessions.opens, sessions.closes, sessions.offsets, strict=True)
    for opened, closed, offset in rows:
        start = opened * MINUTE_MS
        for minute in range(opened + 1, closed + 1):
            at = minute * MINUTE_MS
            since = at + offset * MINUTE_MS
            if sessions.anchor is Anchor.SESSION:
                since = at - opened * MINUTE_MS
            if since % interval_ms == 0 or minute == closed:
                spans.append((start, at))
                start = at
    return spans


@settings(max_examples=25)
@given(drawn(), st.sampled_from([1, 5, 15, 30, 60, 120, 240, 720]))
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
@given(drawn(), st.data())
def test_places_are_counted_in_any_order(sessions: Sessions, data: st.DataObject) -> None:
    calendar = Calendar(sessions, HOUR_MS)
    opens = calendar.opens.tolist()
    for at in data.draw(st.lists(st.integers(0, len(opens) - 1), max_size=20)):
        assert calendar.place(opens[at]) == at
        assert calendar.place(opens[at] + 1) == at


@settings(max_examples=25)
@given(drawn())
def test_stored_sessions_come_back_and_their_hash_covers_all_of_them(sessions: Sessions) -> None:
    assert unpacked(sessions.packed()) == sessions
    assert unpacked(sessions.packed()).sha256 == sessions.sha256
    others = [
        replace(sessions, name="OTHER"),
        replace(sessions, version="1.1"),
        replace(sessions, closes=(*sessions.closes[:-1], sessions.closes[-1] + 1)),
        replace(sessions, days=(*sessions.days[:-1], sessions.days[-1] + 1)),
        replace(sessions, opens=(*sessions.opens[:-1], sessions.opens[-1] + 1)),
    ]
    assert len({sessions.sha256, *(other.sha256 for other in others)}) == 1 + len(others)


def test_what_is_no_sessions_is_refused() -> None:
    for stored in (
        b"",
        b"nothing",
        Sessions("A", "1", Anchor.CLOCK, 1.0, (1,), (2_000,), (2_400,), (0,)).packed()[:-2],
    ):
        with pytest.raises(DataInvalid, match="stored sessions cannot be read"):
            unpacked(stored)


def test_a_close_is_of_its_own_day_where_the_next_session_opens_with_it() -> None:
    days, opens = (5, 6), (5 * 1_440, 6 * 1_440)
    sessions = Sessions(
        "MADE", "1.0", Anchor.CLOCK, 250.0, days, opens, (opens[1], 7 * 1_440), (0, 0)
    )
    calendar = Calendar(sessions, HOUR_MS)
    midnight = opens[1] * MINUTE_MS
    assert calendar.days_at(np.array([midnight, midnight + HOUR_MS])).tolist() == [5, 6]
    assert [calendar.day_at(at) for at in (midnight - 1, midnight)] == [5, 6]
    assert calendar.day_at(0) == 5  # before the first there is no other


def test_days_and_weeks_go_from_the_first_open_to_the_last_close() -> None:
    # Thursday and Friday, then Monday with a break at noon.
    days = (4, 4 + 1, 4 + 4, 4 + 4)
    hours = ((9, 16), (9, 13), (9, 12), (13, 16))
    sessions = Sessions(
        "MADE",
        "1.0",
        Anchor.CLOCK,
        250.0,
        tuple(day + 3 for day in days),
        tuple((day + 3) * 1_440 + start * 60 for day, (start, _) in zip(days, hours, strict=True)),
        tuple((day + 3) * 1_440 + end * 60 for day, (_, end) in zip(days, hours, strict=True)),
        (0, 0, 0, 0),
    )
    by_day = Calendar(sessions, DAY_MS)
    assert [open_ms // HOUR_MS % 24 for open_ms in by_day.opens.tolist()] == [9, 9, 9]
    assert [close_ms // HOUR_MS % 24 for close_ms in by_day.closes.tolist()] == [16, 13, 16]
    by_week = Calendar(sessions, 7 * DAY_MS)
    assert by_week.opens.tolist() == by_day.opens[[0, 2]].tolist()
    assert by_week.closes.tolist() == by_day.closes[[1, 2]].tolist()
