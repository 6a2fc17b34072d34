"""Interval names and the grid of open times."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracepaper.daemon.bybit.instruments import INTERVALS, floor_open_ms, interval_name
from tracepaper.strategies.errors import ConfigInvalid


@pytest.mark.parametrize(("name", "interval_ms"), list(INTERVALS.items()))
def test_names_and_lengths_are_one_to_one(name: str, interval_ms: int) -> None:
    assert interval_name(interval_ms) == name


def test_an_interval_the_exchange_has_not_is_refused() -> None:
    with pytest.raises(ConfigInvalid, match=r"market\.interval"):
        interval_name(120_001)


@given(market_ms=st.integers(0, 4 * 10**12), name=st.sampled_from(sorted(INTERVALS)))
def test_the_open_candle_contains_the_moment(market_ms: int, name: str) -> None:
    open_ms = floor_open_ms(market_ms, INTERVALS[name])
    assert open_ms <= market_ms < open_ms + INTERVALS[name]
    opened = datetime.fromtimestamp(open_ms // 1000, UTC)
    if name == "W":
        assert opened.weekday() == 0
    if name in "DW":
        assert (opened.hour, opened.minute) == (0, 0)
