"""The market of candles: a bar while it runs, causality, and figures of the day."""

from __future__ import annotations

import numpy as np
import pytest
from exchange_client import MINUTE, candles, walk_rows
from hypothesis import given
from hypothesis import strategies as st

from tracepaper.replay.exchange.candles import TURNOVER_DECIMALS
from tracepaper.replay.exchange.market import SimulatedMarket
from tracepaper.replay.exchange.quotes import levels
from tracepaper.strategies.units import DAY_MS, rescaled


@pytest.mark.parametrize("volume", [1, 2, 3, 50, 5_000_000])
def test_a_running_bar_is_what_its_trades_so_far_make_of_it(volume: int) -> None:
    rows = [(*row[:4], volume) for row in walk_rows(6, seed=5)]
    market = SimulatedMarket(candles(rows), seed=2)
    scales = set()
    for row in range(6):
        path, start = market.path(row), market.open_ms(row)
        scales.add(path.size_scale)
        times = [trade.time_ms for trade in path.trades]
        for at_ms in [*range(start, start + MINUTE, 7_001), *times]:
            so_far = [trade for trade in path.trades if trade.time_ms <= at_ms]
            running = market.running(row, at_ms)
            assert running.volume == sum(trade.size for trade in so_far) // path.size_scale
            paid = sum(trade.price * trade.size for trade in so_far) // path.size_scale
            decimals = market.listing.price_decimals + market.listing.size_decimals
            assert running.turnover == rescaled(paid, decimals, market.turnover_decimals)
            prices = [market.base.candle(row).open, *(trade.price for trade in so_far)]
            assert (running.high, running.low, running.close) == (
                max(prices),
                min(prices),
                prices[-1],
            )
        assert market.running(row, start + MINUTE) == market.base.candle(row)
        assert market.running(row, start).volume == 0
    assert scales == ({10} if volume == 1 else {1} if volume > 3 else scales)


ROWS = walk_rows(40, seed=11)
MARKET = SimulatedMarket(candles(ROWS), seed=1)


@given(st.integers(0, 39), st.integers(0, MINUTE - 1))
def test_a_moment_is_the_same_in_any_order_of_asking(row: int, offset: int) -> None:
    at_ms = MARKET.open_ms(row) + offset
    fresh = SimulatedMarket(candles(ROWS), seed=1)
    assert fresh.running(row, at_ms) == MARKET.running(row, at_ms)
    assert fresh.touch(row, at_ms) == MARKET.touch(row, at_ms)
    assert levels(fresh, row, at_ms, 50) == levels(MARKET, row, at_ms, 50)


@given(st.integers(1, 30), st.integers(0, MINUTE - 1))
def test_a_moment_does_not_know_later_bars(row: int, offset: int) -> None:
    # Same listing and same bars up to this one; what comes after differs.
    other = SimulatedMarket(candles([*ROWS[: row + 1], *walk_rows(39 - row, seed=99)]), seed=1)
    at_ms = MARKET.open_ms(row) + offset
    assert other.running(row, at_ms) == MARKET.running(row, at_ms)
    assert other.touch(row, at_ms) == MARKET.touch(row, at_ms)
    assert other.day(row) == MARKET.day(row)
    for interval in ("5", "15", "60"):
        assert other.series.open_candle(interval, row, at_ms) == MARKET.series.open_candle(
            interval, row, at_ms
        )


@given(st.integers(0, 39), st.integers(0, MINUTE - 1))
def test_depth_one_is_the_top_of_the_deep_book(row: int, offset: int) -> None:
    at_ms = MARKET.open_ms(row) + offset
    bids, asks = levels(MARKET, row, at_ms, 50)
    assert levels(MARKET, row, at_ms, 1) == (bids[:1], asks[:1])
    assert all(size > 0 for _, size in [*bids, *asks])


def test_a_book_near_zero_has_no_negative_prices() -> None:
    market = SimulatedMarket(candles([(3, 4, 2, 3, 500)] * 5, symbol="TINYUSDT"), seed=1)
    bids, asks = levels(market, 1, market.open_ms(1) + 30_000, 50)
    assert bids[-1][0] > 0
    assert len(asks) == 50


def test_the_day_is_the_twenty_four_hours_before_the_bar() -> None:
    rows = walk_rows(3_000, seed=12)
    market = SimulatedMarket(candles(rows), seed=0)
    columns = np.array(rows[1_060:2_500]) * 10  # one decimal more than the data
    day = market.day(2_500)
    assert (day.high, day.low) == (columns[:, 1].max(), columns[:, 2].min())
    assert day.volume == sum(row[4] for row in rows[1_060:2_500])
    assert day.price_day_ago == rows[1_060][0] * 10
    assert day.price_hour_ago == rows[2_440][0] * 10
    assert market.open_ms(2_500) - market.open_ms(1_060) == DAY_MS


def test_a_turnover_that_the_data_lacks_is_volume_at_the_typical_price() -> None:
    market = SimulatedMarket(candles([(1_000, 1_200, 900, 1_100, 2_500)]), seed=0)
    assert market.turnover_decimals == TURNOVER_DECIMALS
    # (100 + 120 + 90 + 110) / 4 x 2.5
    assert market.base.candle(0).turnover == 262_5000
