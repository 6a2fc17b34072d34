"""Segments end at every gap; a night between sessions of a share is no gap."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import stock_files
from learning import learnable

from tracepaper.replay.archive import Candles
from tracepaper.replay.learning.dataset import read_files
from tracepaper.replay.learning.splits import segments_of
from tracepaper.strategies.features.rows import schema
from tracepaper.strategies.sessions import opens_later

SCHEMA = schema("v2-1m")
HALF_HOUR = 30 * 60_000


def test_a_hole_ends_a_segment_and_no_feature_looks_over_it() -> None:
    whole = learnable(2_000)
    rows = np.delete(np.arange(2_000), [900])
    first, second = segments_of(whole[rows], SCHEMA)
    assert (len(first), len(second)) == (900, 1_099)
    alone = segments_of(whole[901:2_000], SCHEMA)[0]
    assert second.values.tobytes() == alone.values.tobytes()
    assert np.isnan(second.values[: SCHEMA.lookback - 1]).all()


def test_a_part_too_short_for_a_row_is_left_out() -> None:
    rows = np.delete(np.arange(1_200), [479])
    segments = segments_of(learnable(1_200)[rows], SCHEMA)
    assert [len(segment) for segment in segments] == [720]


def test_a_night_between_sessions_is_no_hole_and_a_missing_bar_is(tmp_path: Path) -> None:
    times = stock_files.opens("2015-03-02", "2015-04-30", HALF_HOUR)
    [whole] = shares(stock_files.write(tmp_path / "nasdaq_AAA_30m.csv", times))
    [segment] = segments_of(whole, schema("v2-30m"))
    assert len(segment) == len(times)
    assert segment.bars_a_day == 13
    closes = segment.close_time_ms
    assert closes[12] - segment.open_time_ms[0] == 13 * HALF_HOUR
    night = int(segment.open_time_ms[13] - closes[12])
    assert night > 15 * HALF_HOUR
    del times[300]
    [holed] = shares(stock_files.write(tmp_path / "nasdaq_BBB_30m.csv", times))
    assert [len(part) for part in segments_of(holed, schema("v2-30m"))] == [300, len(times) - 300]


def test_hours_of_sessions_are_made_of_their_bars(tmp_path: Path) -> None:
    times = stock_files.opens("2015-03-02", "2015-03-31", HALF_HOUR)
    path = str(stock_files.write(tmp_path / "nasdaq_AAA_30m.csv", times))
    [hours] = read_files([f"AAA={path}"], (2 * HALF_HOUR,), asset="stock").candles[2 * HALF_HOUR]
    assert hours.missing == 0
    assert len(hours) == 7 * len(times) // 13
    # The last hour of a session is half a one; what a model is calibrated on closes as in a run.
    bars = hours.bars()[:8]
    lengths = [bar.closed_ms - bar.open_time_ms for bar in bars]
    assert lengths == [*[2 * HALF_HOUR] * 6, HALF_HOUR, 2 * HALF_HOUR]
    assert [bar.seen_ms for bar in bars] == hours.closes_ms[:8].tolist()
    later = opens_later(hours.open_time_ms[:1], 7, hours.interval_ms, hours.calendar)
    assert later.tolist() == [bars[7].open_time_ms]  # seven bars on: the next session


def shares(path: Path) -> list[Candles]:
    return read_files([f"AAA={path}"], asset="stock").candles[HALF_HOUR]
