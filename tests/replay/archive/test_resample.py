from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import present
from hypothesis import given
from hypothesis import strategies as st

from tracepaper.replay.archive import Candles, read_candles
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.units import iso

SAMPLES = Path(__file__).parents[2] / "data" / "candles"
HOUR = 3_600_000
DAY = 24 * HOUR


def hours() -> Candles:
    return read_candles(SAMPLES / "binance_um_BTCUSDT_1h_2019.csv.gz")


@pytest.mark.parametrize(("interval_ms", "name"), [(4 * HOUR, "4h"), (DAY, "1d")])
def test_hours_aggregate_to_the_venue_s_own_coarser_candles(interval_ms: int, name: str) -> None:
    """All but two are equal: on those days the venue's own hours and days disagree."""
    coarse = hours().resampled(interval_ms)
    venue = read_candles(SAMPLES / f"binance_um_BTCUSDT_{name}_2019.csv.gz")
    assert (coarse.price_decimals, coarse.volume_decimals) == (2, 3)
    assert (venue.price_decimals, venue.volume_decimals) == (2, 3)
    times, mine, theirs = np.intersect1d(
        coarse.open_time_ms, venue.open_time_ms, return_indices=True
    )
    assert times.size > 60
    differ = {
        iso(int(time))[:10]
        for column in ("open", "high", "low", "close", "volume")
        for time in times[getattr(coarse, column)[mine] != getattr(venue, column)[theirs]]
    }
    assert differ == {"2019-09-09", "2019-09-24"}


def test_days_start_at_midnight_and_weeks_on_monday() -> None:
    assert all(t % DAY == 0 for t in hours().resampled(DAY).open_time_ms.tolist())
    weeks = hours().resampled(7 * DAY)
    starts = [iso(t) for t in weeks.open_time_ms.tolist()]
    assert starts[0] == "2019-09-09T00:00:00Z"  # a Monday
    assert len(starts) == 8


def test_incomplete_ends_are_dropped_and_said() -> None:
    days = hours().resampled(DAY)
    assert iso(int(days.open_time_ms[0])) == "2019-09-09T00:00:00Z"
    assert days.notes[-1].startswith("2 coarse candles not whole, dropped: 2019-09-08T00:00:00Z … ")


@given(st.sets(st.integers(0, 199), min_size=1, max_size=199), st.integers(2, 9))
def test_only_whole_candles_are_made_and_each_is_the_plain_loop_s(
    missing: set[int], factor: int
) -> None:
    kept = np.array([i for i in range(200) if i not in missing], dtype=np.int64)
    part = hours()[kept]
    buckets: dict[int, list[int]] = {}
    for row, time in enumerate(part.open_time_ms.tolist()):
        buckets.setdefault(time // (factor * HOUR) * factor * HOUR, []).append(row)
    whole = {start: rows for start, rows in buckets.items() if len(rows) == factor}
    if not whole:
        with pytest.raises(DataInvalid, match="covers no whole candle"):
            part.resampled(factor * HOUR)
        return
    coarse = part.resampled(factor * HOUR)
    assert coarse.open_time_ms.tolist() == list(whole)
    for place, rows in enumerate(whole.values()):
        assert coarse.open[place] == part.open[rows[0]]
        assert coarse.high[place] == max(part.high[rows])
        assert coarse.low[place] == min(part.low[rows])
        assert coarse.close[place] == part.close[rows[-1]]
        assert coarse.volume[place] == sum(part.volume[rows].tolist())
        assert present(coarse.turnover)[place] == sum(present(part.turnover)[rows].tolist())


def test_an_interval_that_does_not_divide_is_refused() -> None:
    for interval in (HOUR // 2, HOUR + 60_000):
        with pytest.raises(ConfigInvalid, match="choose a multiple"):
            hours().resampled(interval)


def test_a_sum_beyond_64_bits_is_refused() -> None:
    part = hours()
    huge = part[:]
    huge.volume[:] = 2**62
    with pytest.raises(DataInvalid, match="more than 64 bits"):
        huge.resampled(DAY)
    with pytest.raises(DataInvalid, match="no whole candle"):
        huge[:23].resampled(DAY)


def test_a_turnover_beyond_64_bits_is_left_out_and_noted() -> None:
    part = hours()
    huge = replace(part, turnover=np.full(len(part), 2**62))
    days = huge.resampled(DAY)
    assert days.turnover is None
    assert "turnover left out" in days.notes[-1]
    assert days.volume.tolist() == part.resampled(DAY).volume.tolist()
