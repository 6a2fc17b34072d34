"""Buckets begin where the exchange's candles begin."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracepaper.replay.exchange.candles import (
    MONTH,
    bucket_end,
    bucket_start,
    bucket_starts,
)
from tracepaper.strategies.units import INTERVALS


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


@pytest.mark.parametrize(
    ("interval", "start", "end"),
    [
        ("5", "2025-02-27 13:35", "2025-02-27 13:40"),
        ("720", "2025-02-27 12:00", "2025-02-28 00:00"),
        ("D", "2025-02-27 00:00", "2025-02-28 00:00"),
        ("W", "2025-02-24 00:00", "2025-03-03 00:00"),
        ("M", "2025-02-01 00:00", "2025-03-01 00:00"),
    ],
)
def test_bucket_covers_its_calendar_span(interval: str, start: str, end: str) -> None:
    inside = ms("2025-02-27 13:37:11")
    assert bucket_start(inside, interval) == ms(start)
    assert bucket_end(ms(start), interval) == ms(end)


@given(st.integers(ms("2001-01-01"), ms("2040-01-01")), st.sampled_from([*INTERVALS, MONTH]))
def test_every_time_lies_in_its_bucket(time_ms: int, interval: str) -> None:
    start = bucket_start(time_ms, interval)
    assert start <= time_ms < bucket_end(start, interval)
    assert bucket_start(start, interval) == start
    assert bucket_starts(np.array([time_ms]), interval).tolist() == [start]
