"""Months: their opens are the calendar's, and whatever counts bars counts months."""

from __future__ import annotations

import calendar
import random
from datetime import UTC, datetime
from itertools import pairwise

import numpy as np
import pytest
from builders import bars as made_bars
from builders import instrument
from msgspec.structs import replace

from tracepaper.strategies.api.timeframes import (
    TimeframeAggregator,
    frame_bar_of,
    frames_reach,
    is_made_of,
    reject_frames,
)
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.months import (
    MONTH_MS,
    interval_end,
    intervals_between,
    month_of,
    month_start,
    place_of,
)
from tracepaper.strategies.sessions import month_calendar
from tracepaper.strategies.types.market import Source
from tracepaper.strategies.units import (
    DAY_MS,
    HOUR_MS,
    INTERVALS,
    WEEK_MS,
    bars_in,
    interval_start,
    interval_text,
)


def known_opens() -> list[int]:
    """Add up the lengths of the months from 1970 to 2100, as the standard library has them."""
    opens, at = [], 0
    for year in range(1970, 2101):
        for month in range(1, 13):
            opens.append(at)
            at += calendar.monthrange(year, month)[1] * DAY_MS
    return [*opens, at]


OPENS = known_opens()


def test_consecutive_opens_are_the_months_of_the_calendar() -> None:
    assert [month_start(month) for month in range(len(OPENS))] == OPENS
    for number, (opens, closes) in enumerate(pairwise(OPENS)):
        assert interval_end(opens, MONTH_MS) == closes
        assert interval_end(closes - 1, MONTH_MS) == closes
        assert interval_start(opens, MONTH_MS) == interval_start(closes - 1, MONTH_MS) == opens
        assert month_of(opens) == month_of(closes - 1) == place_of(opens, MONTH_MS) == number
    months = month_calendar()
    assert months.opens.tolist() == OPENS[:-1]
    assert months.closes.tolist() == OPENS[1:]
    assert months.places(np.array(OPENS[1:]) - 1).tolist() == list(range(len(months)))
    assert len(set(months.sessions.days)) / months.sessions.a_year == len(months) / 12


def drawn(count: int, seed: int) -> list[int]:
    """Draw times evenly; a property-based test would draw most of them from January 1970."""
    rng = random.Random(seed)
    return [rng.randrange(OPENS[-1]) for _ in range(count)]


def test_a_time_lies_in_the_month_that_a_date_says() -> None:
    for at_ms in drawn(3_000, 1):
        date = datetime.fromtimestamp(at_ms / 1000, UTC)
        assert month_of(at_ms) == (date.year - 1970) * 12 + date.month - 1
        start = interval_start(at_ms, MONTH_MS)
        assert start == round(datetime(date.year, date.month, 1, tzinfo=UTC).timestamp() * 1000)
        assert start <= at_ms < interval_end(start, MONTH_MS) <= start + MONTH_MS


def test_whole_months_between_two_times_are_counted_one_by_one() -> None:
    for smaller, two in zip(drawn(1_000, 2), drawn(1_000, 3), strict=True):
        first, second = min(smaller, two), max(smaller, two)
        into = first - interval_start(first, MONTH_MS)
        at, count = month_of(first), 0
        while month_start(at + 1) + into <= second:
            at, count = at + 1, count + 1
        assert intervals_between(first, second, MONTH_MS) == count
        assert intervals_between(first, second, DAY_MS) == (second - first) // DAY_MS


# ---------------------------------------------------------------- names


def test_a_month_is_named_and_no_time_is_a_number_of_months() -> None:
    assert interval_text(MONTH_MS) == "1M"
    assert interval_text(30 * DAY_MS) == "30d"
    assert bars_in("3", MONTH_MS, name="horizon") == 3
    for text in ("62d", "31d", "1d"):
        with pytest.raises(ConfigInvalid, match="months have no one length"):
            bars_in(text, MONTH_MS, name="horizon")


# ---------------------------------------------------------------- made of shorter bars


def test_days_make_months_and_weeks_do_not() -> None:
    able = {name for name, length in INTERVALS.items() if is_made_of(MONTH_MS, length)}
    assert able == set(INTERVALS) - {"W", "M"}
    assert not is_made_of(WEEK_MS, MONTH_MS)
    reject_frames("mine", ("M",), DAY_MS)
    for base in (WEEK_MS, MONTH_MS):
        with pytest.raises(ConfigInvalid, match="cannot make"):
            reject_frames("mine", ("M",), base)
    assert frames_reach({"M": 2}, DAY_MS) == 3 * 31


@pytest.mark.parametrize("base_ms", [DAY_MS, 6 * HOUR_MS])
def test_an_aggregated_month_is_whole_and_comes_with_its_last_bar(base_ms: int) -> None:
    item, a_day = instrument(), DAY_MS // base_ms
    start = month_start(month_of(1_700_000_000_000)) - 3 * DAY_MS
    count = 150 * a_day
    bars = [
        replace(bar, open_time_ms=start + place * base_ms, interval_ms=base_ms)
        for place, bar in enumerate(made_bars(count))
    ]
    lost = next(place for place, bar in enumerate(bars) if bar.open_time_ms > start + 70 * DAY_MS)
    del bars[lost]
    frame = TimeframeAggregator(item, "M", base_ms, 12)
    first_rows: dict[int, tuple[int, ...]] = {}
    for bar in bars:
        frame.add(bar)
        if (row := frame.bars.newest) is not None:
            assert row[2] <= bar.open_time_ms + base_ms
            first_rows.setdefault(row[1], row)
    due = {}
    for opens, closes in pairwise(OPENS):
        mine = [bar for bar in bars if opens <= bar.open_time_ms < closes]
        if len(mine) == (closes - opens) // base_ms:
            high, low = max(bar.high for bar in mine), min(bar.low for bar in mine)
            volume = sum(bar.volume for bar in mine)
            due[opens] = (closes, mine[0].open, high, low, mine[-1].close, volume)
    assert {at: row[2:] for at, row in first_rows.items()} == due
    assert len(due) == 3  # of four whole months, one of which lacks a bar


def test_a_month_as_an_event_closes_when_it_does() -> None:
    february = month_start(12 * 54 + 1)
    bar = replace(
        made_bars(1)[0], open_time_ms=february, interval_ms=MONTH_MS, source=Source.ARCHIVE,
        market_ms=february + 29 * DAY_MS, seen_ms=february + 29 * DAY_MS,
    )  # fmt: skip
    assert bar.close_time_ms == bar.closed_ms == february + 29 * DAY_MS
    event = frame_bar_of(bar, seen_ms=bar.seen_ms)
    assert (event.open_time_ms, event.market_ms) == (february, february + 29 * DAY_MS)
    frame = TimeframeAggregator(instrument(), "M", DAY_MS, 3)
    assert frame.take(event)
    assert not frame.take(replace(event, open_time_ms=february + DAY_MS))
