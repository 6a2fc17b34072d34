"""The trades of any bar reproduce it exactly."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tracepaper.replay.exchange.candles import FIRST_TRADE_MS, Candle, mix, walk


def test_mix_is_the_published_splitmix64() -> None:
    # The first output of SplitMix64 for seed 0 mixes its first increment.
    assert mix(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF


MINUTE = 60_000


@st.composite
def bars(draw: st.DrawFn) -> tuple[Candle, int, int, int]:
    """Return a bar whose prices lie on its tick, its tick, step and a seed."""
    tick = draw(st.sampled_from([1, 5, 10]))
    step = draw(st.sampled_from([1, 10, 1000]))
    low = draw(st.integers(1, 10**7))
    span = draw(st.integers(0, 3000))
    place = st.integers(0, span)
    candle = Candle(
        start_ms=draw(st.integers(0, 10**9)) * MINUTE,
        open=(low + draw(place)) * tick,
        high=(low + span) * tick,
        low=low * tick,
        close=(low + draw(place)) * tick,
        volume=draw(st.one_of(st.integers(0, 40), st.integers(0, 10**12))),
        turnover=0,
    )
    return candle, tick, step, draw(st.integers(0, 2**64 - 1))


@given(bars())
def test_trades_of_any_bar_reproduce_it_exactly_in_order_with_sides_by_the_price(
    case: tuple[Candle, int, int, int],
) -> None:
    candle, tick, step, seed = case
    path = walk(candle, interval_ms=MINUTE, tick=tick, step=step, seed=seed, typical=1_000)
    prices = [trade.price for trade in path.trades]
    if candle.volume == 0:
        assert prices == []
        return
    summary = (prices[0], max(prices), min(prices), prices[-1])
    assert summary == (candle.open, candle.high, candle.low, candle.close)
    assert sum(trade.size for trade in path.trades) == candle.volume * path.size_scale
    assert all(trade.size > 0 for trade in path.trades)
    assert all(price % tick == 0 for price in prices)
    times = [trade.time_ms - candle.start_ms for trade in path.trades]
    assert times == sorted(times)
    assert all(FIRST_TRADE_MS <= time_ms < MINUTE for time_ms in times)
    for before, after in pairwise(path.trades):
        if before.price != after.price:
            assert after.is_buy is (after.price > before.price)


def test_sizes_are_whole_steps_but_for_one_remainder() -> None:
    candle = Candle(0, 100, 130, 90, 110, 1_000_003, 0)
    path = walk(candle, interval_ms=MINUTE, tick=1, step=100, seed=5, typical=1_000)
    odd = [trade.size for trade in path.trades if trade.size % 100]
    assert len(odd) == 1


def test_a_volume_of_one_unit_is_split_into_tenths_to_touch_four_prices() -> None:
    candle = Candle(0, 100, 130, 90, 110, 1, 0)
    path = walk(candle, interval_ms=MINUTE, tick=1, step=1, seed=5, typical=1_000)
    assert path.size_scale == 10
    assert sum(trade.size for trade in path.trades) == 10
