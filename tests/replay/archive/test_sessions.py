"""The sessions of a share are the dates and hours of its file, however it writes their times."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stock_files import (
    HOUR_MS,
    Writes,
    date_alone,
    in_utc,
    local_midnight,
    moment,
    opens,
    with_offset,
    without_zone,
    write,
)

from tracepaper.replay.archive import Candles, merge_candles, read_candles
from tracepaper.replay.archive.series import quality
from tracepaper.replay.archive.sessions import own_sessions
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.sessions import Calendar
from tracepaper.strategies.units import DAY_MS, WEEK_MS

HALF_HOUR_MS = HOUR_MS // 2


def read(path: Path) -> Candles:
    return read_candles(f"ACME={path}", category="stock")


def closes_at(candles: Candles, when: str) -> int:
    row = int(np.flatnonzero(candles.open_time_ms == moment(when))[0])
    return int(candles.closes_ms[row])


def dates(candles: Candles) -> list[str]:
    assert candles.calendar is not None
    days = candles.calendar.days[candles.calendar.places(candles.open_time_ms)]
    return [str(day) for day in days.astype("datetime64[D]")]


@st.composite
def bars(draw: st.DrawFn) -> tuple[list[int], int]:
    """Draw the opens of the bars of an exchange: any days of the week, hours and short ends."""
    interval_ms = draw(st.sampled_from([5, 15, 30, 60, 120])) * 60_000
    day, times = 16_000, list[int]()
    start = draw(st.integers(0, 20)) * HALF_HOUR_MS
    is_short = draw(st.booleans())
    for _ in range(draw(st.integers(1, 30))):
        opened = day * DAY_MS + start
        second = opened + (interval_ms // 5 if is_short else interval_ms)
        length = draw(st.sampled_from([6 * HOUR_MS, 6 * HOUR_MS, 3 * HOUR_MS]))
        times += [opened, *range(second, opened + length, interval_ms)]
        day += draw(st.integers(1, 5))
    return times, interval_ms


@settings(max_examples=60)
@given(bars())
def test_a_file_without_a_hole_in_its_sessions_has_no_gap(file: tuple[list[int], int]) -> None:
    times, interval_ms = np.array(file[0]), file[1]
    calendar = Calendar(own_sessions(times, interval_ms), interval_ms)
    places = calendar.places(times)
    assert np.array_equal(calendar.opens[places], times)
    assert (np.diff(places) == 1).all()
    assert (calendar.closes_of(times)[:-1] <= times[1:]).all()


def test_hours_over_a_change_of_clocks_and_a_half_session_have_no_hole(tmp_path: Path) -> None:
    times = opens("2014-10-27", "2014-12-01", HOUR_MS)
    candles = read(write(tmp_path / "a.csv", times))
    assert candles.open_time_ms.tolist() == times
    assert candles.instrument == "stock:ACME"
    assert (candles.gaps, candles.missing) == ([], 0)
    assert candles.notes == ("1 day between others without a candle, the first 2014-11-27",)
    # 24 whole sessions of seven bars, and one that closes at 13:00 after four.
    assert len(candles) == 24 * 7 + 4
    assert closes_at(candles, "2014-10-31T09:30") == moment("2014-10-31T10:00")
    assert closes_at(candles, "2014-10-31T15:00") == moment("2014-10-31T16:00")
    assert closes_at(candles, "2014-11-28T12:00") == moment("2014-11-28T13:00")
    # The clocks went back on 2 November: the same bar opens an hour later in UTC.
    assert moment("2014-11-03T09:30") - moment("2014-10-31T09:30") == 3 * DAY_MS + HOUR_MS
    assert quality(candles).sessions == 25


def test_a_day_that_the_file_lacks_is_counted_and_no_hole(tmp_path: Path) -> None:
    for name, interval_ms in (("hours", HOUR_MS), ("days", DAY_MS)):
        times = opens("2014-10-27", "2014-12-05", interval_ms)
        kept = [at for at in times if date_alone(at) not in {"2014-11-05", "2014-11-18"}]
        candles = read(write(tmp_path / f"{name}.csv", kept))
        assert (candles.gaps, candles.missing) == ([], 0)
        assert candles.notes == ("3 days between others without a candle, the first 2014-11-05",)


def test_a_break_of_months_is_a_hole_of_its_weekdays(tmp_path: Path) -> None:
    times = [*opens("2014-01-06", "2014-01-31"), *opens("2014-04-14", "2014-04-25")]
    candles = read(write(tmp_path / "a.csv", times, date_alone))
    (hole,) = candles.gaps
    assert [in_utc(at)[:10] for at in hole] == ["2014-02-03", "2014-04-14"]
    assert candles.missing == 10 * 5


def test_a_missing_bar_within_a_session_is_a_hole(tmp_path: Path) -> None:
    times = opens("2014-11-03", "2014-11-14", HOUR_MS)
    times.remove(gone := moment("2014-11-05T12:00"))
    assert read(write(tmp_path / "a.csv", times)).gaps == [(gone, gone + HOUR_MS)]


def test_bars_may_be_counted_from_the_open(tmp_path: Path) -> None:
    times = opens("2014-11-03", "2014-11-26", HOUR_MS, by_clock=False)
    candles = read(write(tmp_path / "a.csv", times))
    assert candles.open_time_ms.tolist() == times
    assert times[1] == moment("2014-11-03T10:30")
    assert candles.gaps == []


def test_a_break_at_noon_is_no_hole(tmp_path: Path) -> None:
    hours = (("09:00", "11:30"), ("12:30", "15:00"))
    times = opens(
        "2015-03-02", "2015-03-13", HALF_HOUR_MS, hours=hours, zone=ZoneInfo("Asia/Tokyo")
    )
    candles = read(write(tmp_path / "a.csv", times, in_utc))
    assert candles.open_time_ms.tolist() == times
    assert candles.gaps == []
    assert quality(candles).sessions == 10
    whole = candles.resampled(DAY_MS)
    assert (len(whole), whole.gaps) == (10, [])
    assert int(whole.closes_ms[0] - whole.open_time_ms[0]) == 6 * HOUR_MS
    times.remove(times[3])
    assert read(write(tmp_path / "b.csv", times, in_utc)).missing == 1


# ---------------------------------------------------------------- dates


@pytest.mark.parametrize(
    "writes", [date_alone, local_midnight, with_offset, in_utc], ids=lambda writes: writes.__name__
)
def test_a_day_opens_at_midnight_of_its_date(tmp_path: Path, writes: Writes) -> None:
    times = opens("2014-03-03", "2014-12-05")
    candles = read(write(tmp_path / "a.csv", times, writes))
    assert candles.open_time_ms.tolist() == [moment(f"{date_alone(at)}T00:00Z") for at in times]
    assert candles.gaps == []
    assert "zone" not in " ".join(candles.notes)
    assert (candles.closes_ms - candles.open_time_ms == DAY_MS).all()


@pytest.mark.parametrize(
    "zone", ["Asia/Tokyo", "Australia/Sydney", "Europe/London", "America/Lima"]
)
@pytest.mark.parametrize("interval_ms", [HOUR_MS, DAY_MS], ids=["hours", "days"])
def test_a_date_is_that_of_the_exchange(tmp_path: Path, zone: str, interval_ms: int) -> None:
    begin = "00:00" if interval_ms == DAY_MS else "10:00"
    place = ZoneInfo(zone)
    times = opens("2014-03-03", "2014-11-14", interval_ms, hours=((begin, "16:00"),), zone=place)
    candles = read(write(tmp_path / "a.csv", times, in_utc))
    assert dates(candles) == [str(datetime.fromtimestamp(at / 1000, place).date()) for at in times]
    assert candles.gaps == []


def test_weeks_and_months_open_on_their_first_day(tmp_path: Path) -> None:
    weeks = [at for at in opens("2014-11-03", "2015-02-27") if f"{moment_of(at):%a}" == "Mon"]
    candles = read(write(tmp_path / "ACME_1w.csv", weeks, local_midnight))
    assert (candles.interval_ms, candles.gaps) == (WEEK_MS, [])
    assert {f"{moment_of(at):%a %H}" for at in candles.open_time_ms.tolist()} == {"Mon 00"}
    # Martin Luther King's and Presidents' Day are Mondays, so two weeks of the file are missing.
    assert candles.notes == ("2 weeks between others without a candle",)


def moment_of(time_ms: int) -> datetime:
    return datetime.fromtimestamp(time_ms / 1000, UTC)


def test_hours_without_a_zone_are_read_as_utc(tmp_path: Path) -> None:
    times = opens("2014-11-03", "2014-11-26", HOUR_MS)
    candles = read(write(tmp_path / "a.csv", times, without_zone))
    assert candles.notes == ("times are text without a zone, read as UTC",)
    assert (candles.gaps, dates(candles)) == ([], [date_alone(at) for at in times])


def test_two_candles_of_one_date_and_bars_of_seconds_are_refused(tmp_path: Path) -> None:
    days = opens("2014-11-03", "2014-11-14")
    with pytest.raises(DataInvalid, match="have one date; remove one of them"):
        read(write(tmp_path / "a_1d.csv", sorted([*days, days[3] - HOUR_MS])))
    seconds = [moment("2014-11-03T09:30") + row * 10_000 for row in range(50)]
    with pytest.raises(DataInvalid, match="open at whole minutes"):
        read(write(tmp_path / "b.csv", seconds, in_utc))


# ---------------------------------------------------------------- coarser bars, several files


def test_coarser_bars_are_made_of_whole_sessions(tmp_path: Path) -> None:
    times = opens("2014-11-03", "2014-12-05", HOUR_MS)
    candles = read(write(tmp_path / "a.csv", times))
    for interval_ms, count in ((4 * HOUR_MS, 47), (DAY_MS, 24), (WEEK_MS, 5)):
        coarse = candles.resampled(interval_ms)
        assert (len(coarse), coarse.gaps) == (count, [])
        assert int(coarse.volume.sum()) == int(candles.volume.sum())
        assert int(coarse.close[-1]) == int(candles.close[-1])
    days = candles.resampled(DAY_MS)
    assert days.open_time_ms.tolist() == opens("2014-11-03", "2014-12-05")
    fours = candles.resampled(4 * HOUR_MS)
    assert fours.open_time_ms[:2].tolist() == [
        moment("2014-11-03T09:30"), moment("2014-11-03T13:00"),
    ]  # fmt: skip


def test_a_week_that_the_file_begins_or_ends_in_is_not_whole(tmp_path: Path) -> None:
    days = read(write(tmp_path / "a.csv", opens("2014-11-05", "2014-12-03")))
    weeks = days.resampled(WEEK_MS)
    assert [in_utc(at)[:10] for at in weeks.open_time_ms.tolist()] == [
        "2014-11-10", "2014-11-17", "2014-11-24",
    ]  # fmt: skip
    assert "2 coarse candles not whole, dropped" in weeks.notes[-1]


def test_a_coarse_bar_with_a_hole_is_not_handed_on(tmp_path: Path) -> None:
    times = opens("2014-11-03", "2014-11-14", HOUR_MS)
    times.remove(moment("2014-11-05T12:00"))
    days = read(write(tmp_path / "a.csv", times)).resampled(DAY_MS)
    assert days.gaps == [(moment("2014-11-05T09:30"), moment("2014-11-06T09:30"))]
    assert "1 coarse candle not whole, dropped" in days.notes[-1]


def test_files_of_several_years_are_one_file(tmp_path: Path) -> None:
    old = read(write(tmp_path / "a.csv", opens("2014-12-22", "2014-12-31"), date_alone))
    new = read(write(tmp_path / "b.csv", opens("2015-01-02", "2015-01-16"), date_alone))
    (joined,) = merge_candles([old, new])
    assert joined.gaps == []
    whole = read(write(tmp_path / "c.csv", opens("2014-12-22", "2015-01-16"), date_alone))
    assert joined.calendar is not None
    assert whole.calendar is not None
    assert joined.calendar.sessions == whole.calendar.sessions
