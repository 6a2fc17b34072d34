"""Candles of shares lie on the sessions of their exchange, however a file writes their times."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
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
from tracepaper.replay.archive.sessions import on_common_sessions, sessions_named
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.sessions import Anchor
from tracepaper.strategies.units import DAY_MS, WEEK_MS

XNAS = sessions_named("XNAS")


def read(path: Path, calendar: str = "XNAS") -> Candles:
    return read_candles(f"ACME={path}", category="stock", sessions_for=sessions_named(calendar))


def closes_at(candles: Candles, when: str) -> int:
    row = int(np.flatnonzero(candles.open_time_ms == moment(when))[0])
    return int(candles.closes_ms[row])


def test_hours_over_a_change_of_clocks_and_a_half_session_have_no_hole(tmp_path: Path) -> None:
    times = opens("2014-10-27", "2014-12-01", HOUR_MS)
    candles = read(write(tmp_path / "a.csv", times))
    assert candles.open_time_ms.tolist() == times
    assert candles.instrument == "stock:ACME"
    assert (candles.gaps, candles.missing, candles.notes) == ([], 0, ())
    # 24 whole sessions of seven bars, and one that closes at 13:00 after four.
    assert len(candles) == 24 * 7 + 4
    assert closes_at(candles, "2014-10-31T09:30") == moment("2014-10-31T10:00")
    assert closes_at(candles, "2014-10-31T15:00") == moment("2014-10-31T16:00")
    assert closes_at(candles, "2014-11-28T12:00") == moment("2014-11-28T13:00")
    # The clocks went back on 2 November: the same bar opens an hour later in UTC.
    assert moment("2014-11-03T09:30") - moment("2014-10-31T09:30") == 3 * DAY_MS + HOUR_MS
    assert quality(candles).sessions == 25


def test_hours_named_by_their_closes_are_rejected(tmp_path: Path) -> None:
    times = opens("2014-10-27", "2014-12-01", HOUR_MS)
    closes = read(write(tmp_path / "a.csv", times)).closes_ms.tolist()
    with pytest.raises(DataInvalid, match="its times are those of closes, as sessions of XNAS end"):
        read(write(tmp_path / "b.csv", closes))
    later = [at + HOUR_MS for at in closes if at not in times]  # trading goes on after the session
    assert read(write(tmp_path / "c.csv", sorted({*closes, *later}))).notes


@pytest.mark.parametrize(
    ("day", "bars"), [("2014-11-05", 7), ("2014-11-28", 4)], ids=["whole", "half"]
)
def test_a_missing_session_is_one_hole_of_all_its_bars(tmp_path: Path, day: str, bars: int) -> None:
    times = opens("2014-10-27", "2014-12-05", HOUR_MS)
    kept = [at for at in times if date_alone(at) != day]
    assert len(times) - len(kept) == bars
    candles = read(write(tmp_path / "a.csv", kept))
    after = next(at for at in times if date_alone(at) > day)
    assert candles.gaps == [(moment(f"{day}T09:30"), after)]
    assert (candles.missing, quality(candles).missing) == (bars, bars)


def test_a_missing_bar_within_a_session_is_a_hole(tmp_path: Path) -> None:
    times = opens("2014-11-03", "2014-11-14", HOUR_MS)
    times.remove(gone := moment("2014-11-05T12:00"))
    assert read(write(tmp_path / "a.csv", times)).gaps == [(gone, gone + HOUR_MS)]


def test_bars_may_be_counted_from_the_open(tmp_path: Path) -> None:
    times = opens("2014-11-03", "2014-11-28", HOUR_MS, anchor=Anchor.SESSION)
    candles = read(write(tmp_path / "a.csv", times))
    assert candles.open_time_ms.tolist() == times
    assert times[1] == moment("2014-11-03T10:30")
    assert candles.gaps == []
    assert closes_at(candles, "2014-11-03T15:30") == moment("2014-11-03T16:00")
    assert candles.calendar is not None
    assert candles.calendar.sessions.anchor is Anchor.SESSION


@pytest.mark.parametrize("writes", [without_zone, in_utc])
def test_times_without_a_zone_are_read_as_more_bars_fit(tmp_path: Path, writes: Writes) -> None:
    times = opens("2014-10-27", "2014-11-28", HOUR_MS)
    candles = read(write(tmp_path / "a.csv", times, writes))
    assert candles.open_time_ms.tolist() == times
    read_as = "those of XNAS" if writes is without_zone else "UTC"
    assert candles.notes == (f"times are text without a zone, read as {read_as}",)


@pytest.mark.parametrize(
    "writes", [date_alone, local_midnight, with_offset, in_utc], ids=lambda writes: writes.__name__
)
def test_a_day_is_found_by_its_date_and_opens_with_its_session(
    tmp_path: Path, writes: Writes
) -> None:
    times = opens("2014-03-03", "2014-12-05")
    candles = read(write(tmp_path / "a.csv", times, writes))
    assert candles.open_time_ms.tolist() == times
    assert (candles.gaps, candles.notes) == ([], ())
    assert closes_at(candles, "2014-11-28T09:30") == moment("2014-11-28T13:00")


def test_a_missing_day_is_a_hole_and_a_holiday_is_none(tmp_path: Path) -> None:
    times = opens("2014-11-03", "2014-12-05")
    times.remove(gone := moment("2014-11-19T09:30"))
    candles = read(write(tmp_path / "a.csv", times, date_alone))
    assert candles.gaps == [(gone, moment("2014-11-20T09:30"))]
    assert moment("2014-11-27T09:30") not in times  # Thanksgiving


def test_what_lies_outside_the_sessions_is_dropped_and_said(tmp_path: Path) -> None:
    times = opens("2014-11-03", "2014-11-14", HOUR_MS)
    early = moment("2014-11-04T08:00")
    candles = read(write(tmp_path / "a.csv", sorted([*times, early, early + HOUR_MS])))
    assert candles.open_time_ms.tolist() == times
    assert candles.notes == (
        "2 candles outside the sessions of XNAS dropped: 2014-11-04T13:00:00Z first",
    )
    days = opens("2014-11-03", "2014-11-14")
    candles = read(
        write(tmp_path / "b.csv", sorted([*days, moment("2014-11-08T09:30")]), date_alone)
    )
    assert candles.open_time_ms.tolist() == days
    assert candles.notes == ("1 candle outside the sessions of XNAS dropped: 2014-11-08T00:00:00Z",)


def test_what_fits_no_session_or_one_twice_is_refused(tmp_path: Path) -> None:
    night = [moment("2014-11-04T00:00") + hour * HOUR_MS for hour in range(6)]
    with pytest.raises(DataInvalid, match="no candle opens with a bar of XNAS"):
        read(write(tmp_path / "a.csv", night))
    days = opens("2014-11-03", "2014-11-14")
    twice = sorted([*days, days[3] - HOUR_MS])
    with pytest.raises(DataInvalid, match="are of one bar of XNAS; remove one of them"):
        read(write(tmp_path / "b.csv", twice))


def test_without_a_calendar_hours_of_sessions_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", opens("2014-11-03", "2014-11-14", HOUR_MS))
    with pytest.raises(DataInvalid, match=r"off the file's grid.*calendar"):
        read_candles(f"ACME={path}", category="stock")


def test_a_calendar_that_does_not_exist_is_named() -> None:
    with pytest.raises(ConfigInvalid, match="'XNASDAQ' is no calendar; write one by its ISO"):
        sessions_named("XNASDAQ")


def test_a_calendar_that_does_not_reach_back_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", [DAY_MS * 9_000 + day * DAY_MS for day in range(9)], in_utc)
    with pytest.raises(DataInvalid, match="XTKS does not reach to the data"):
        read(path, "XTKS")


def test_a_break_at_noon_divides_a_session(tmp_path: Path) -> None:
    times = opens("2015-01-05", "2015-01-16", HOUR_MS, calendar="XHKG")
    candles = read(write(tmp_path / "a.csv", times), "XHKG")
    assert candles.open_time_ms.tolist() == times
    assert candles.gaps == []
    assert quality(candles).sessions == 10
    whole = candles.resampled(DAY_MS)
    assert (len(whole), whole.gaps) == (10, [])
    assert int(whole.closes_ms[0] - whole.open_time_ms[0]) == round(6.5 * HOUR_MS)


def test_coarser_bars_are_made_of_whole_sessions(tmp_path: Path) -> None:
    times = opens("2014-11-03", "2014-12-05", HOUR_MS)
    candles = read(write(tmp_path / "a.csv", times))
    for interval_ms in (4 * HOUR_MS, DAY_MS, WEEK_MS):
        coarse = candles.resampled(interval_ms)
        assert coarse.open_time_ms.tolist() == opens("2014-11-03", "2014-12-05", interval_ms)
        assert coarse.gaps == []
        assert int(coarse.volume.sum()) == int(candles.volume.sum())
        assert int(coarse.close[-1]) == int(candles.close[-1])
    fours = candles.resampled(4 * HOUR_MS)
    assert fours.open_time_ms[:2].tolist() == [
        moment("2014-11-03T09:30"), moment("2014-11-03T12:00"),
    ]  # fmt: skip


def test_a_coarse_bar_with_a_hole_is_not_handed_on(tmp_path: Path) -> None:
    times = opens("2014-11-03", "2014-11-14", HOUR_MS)
    times.remove(moment("2014-11-05T12:00"))
    days = read(write(tmp_path / "a.csv", times)).resampled(DAY_MS)
    assert days.gaps == [(moment("2014-11-05T09:30"), moment("2014-11-06T09:30"))]
    assert "1 coarse candle not whole, dropped" in days.notes[-1]


def test_files_of_several_years_are_joined_on_common_sessions(tmp_path: Path) -> None:
    old = write(tmp_path / "a.csv", opens("2014-12-22", "2014-12-31"), date_alone)
    new = write(tmp_path / "b.csv", opens("2015-01-05", "2015-01-16"), date_alone)
    (joined,) = merge_candles(on_common_sessions([read(old), read(new)], XNAS))
    assert joined.gaps == [(moment("2015-01-02T09:30"), moment("2015-01-05T09:30"))]
