"""Laws of every source of data: cut, falsified, or replaced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from depth_cases import FIRST_MS, header, in_memory, walk
from exchange_client import candles as made_candles
from exchange_client import walk_rows

from tracepaper.replay.archive import FundingRates
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.strategies.order_book import books_of
from tracepaper.strategies.units import MINUTE_MS

BARS = 60
AT = 40
"""The bar that is decided."""


@pytest.fixture(scope="module")
def data() -> MarketData:
    start_ms = FIRST_MS - FIRST_MS % (5 * MINUTE_MS)
    candles = made_candles(walk_rows(BARS, seed=1), symbol="BTCUSDT", interval_ms=MINUTE_MS)
    candles = replace(candles, open_time_ms=start_ms + np.arange(BARS) * MINUTE_MS)
    times = candles.open_time_ms[5::10]
    of = header()
    books = books_of(list(walk(60 * BARS, first_ms=start_ms)), of.levels)
    return MarketData(
        (candles,),
        funding=(FundingRates("rates", "BTCUSDT", times, np.arange(times.size)),),
        frames=(candles.resampled(5 * MINUTE_MS),),
        depth=(in_memory(of, books),),
    )


def times_of(data: MarketData) -> list[Sequence[int]]:
    """Return the times of all that is known by itself: bars by their opens."""
    return [
        data.candles[0].open_time_ms.tolist(),
        data.funding[0].time_ms.tolist(),
        data.frames[0].closes_ms.tolist(),
        data.depth[0].times.tolist(),
    ]


def test_what_is_cut_holds_nothing_later_and_all_that_was_known(data: MarketData) -> None:
    at_ms = int(data.candles[0].open_time_ms[AT])
    close_ms = at_ms + MINUTE_MS
    cut, whole = data.until(at_ms, cut=True), times_of(data)
    limits = (at_ms, close_ms, close_ms, close_ms)
    assert times_of(cut) == [
        [time for time in times if time <= limit]
        for times, limit in zip(whole, limits, strict=True)
    ]
    assert all(len(kept) < len(times) for kept, times in zip(times_of(cut), whole, strict=True))


def test_nonsense_stands_in_place_of_later_bars_and_books_alone(data: MarketData) -> None:
    at_ms = int(data.candles[0].open_time_ms[AT])
    other = data.until(at_ms, cut=False)
    same = other.candles[0].close == data.candles[0].close
    assert np.flatnonzero(~same).tolist() == list(range(AT + 1, BARS))
    first, second = (market_data.depth[0].read_all().price for market_data in (data, other))
    is_other = (first != second).any(axis=(1, 2))
    assert is_other.tolist() == (data.depth[0].times > at_ms + MINUTE_MS).tolist()


@pytest.mark.parametrize("field", ["candles", "funding", "frames", "depth"])
def test_each_source_has_a_hash_of_its_own(data: MarketData, field: str) -> None:
    cut = data.until(int(data.candles[0].open_time_ms[AT]), cut=True)
    changed: dict[str, Any] = {field: getattr(cut, field)}
    first, second = data.sha256(), replace(data, **changed).sha256()
    assert [name for name in first if first[name] != second[name]] == [field]
    left_out: dict[str, Any] = {field: ()}
    assert field not in replace(data, **left_out).sha256()
