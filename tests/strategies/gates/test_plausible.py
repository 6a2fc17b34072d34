"""How far a close lies from the last one: exact, of finite memory, mild where little is known."""

from __future__ import annotations

import random
from itertools import pairwise
from statistics import median

import numpy as np
import pytest
from builders import bar, bars
from msgspec.structs import replace

from tracepaper.strategies.api.strategy import CORE_GATES, Persistence, SmaCross, decision_bars
from tracepaper.strategies.gates.evaluator import YARDSTICK_MEMORY, YARDSTICK_MIN, Plausibility
from tracepaper.strategies.types.market import Bar, BarColumns

TICK = 10
PRICES = ("open", "high", "low", "close")


def measured(history: list[Bar], tick: int = TICK) -> list[float]:
    plausibility = Plausibility()
    return [plausibility.add(candle, tick) for candle in history]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_yardstick_is_the_median_true_range_of_the_last_sixty_bars(seed: int) -> None:
    history = bars(300, seed=seed)
    draw = random.Random(seed)
    for place in range(1, 300):
        if draw.random() < 0.4:  # a bar without trades
            still = history[place - 1].close
            history[place] = bar(still, index=place, open_=still, high=still, low=still)
    ranges = [history[0].high - history[0].low]
    for last, this in pairwise(history):
        ranges.append(max(this.high, last.close) - min(this.low, last.close))
    for count in (1, 30, 170):  # of which nothing is asked
        skipped = Plausibility()
        skipped.skip(history[:count])
        skipped.skip(history[count:200])
        assert skipped.add(history[200], TICK) == measured(history)[200]
    for place, measure in enumerate(measured(history)):
        widths = [width for width in ranges[max(place - 59, 0) : place + 1] if width]
        if len(widths) < YARDSTICK_MIN:
            assert measure == 0
            continue
        moved = abs(history[place].close - history[place - 1].close)
        assert measure == moved / max(median(widths), TICK)


@pytest.mark.parametrize("factor", [1, 10**12 + 39])
@pytest.mark.parametrize("seed", [1, 2])
def test_expected_bars_have_the_measures_that_each_has_by_itself(seed: int, factor: int) -> None:
    history = bars(5_000, seed=seed)
    draw = random.Random(seed)
    for place in range(5_000):
        if draw.random() < 0.5 or 900 < place < 1_000:  # without trades, even for an hour
            still = history[max(place - 1, 0)].close
            history[place] = bar(still, index=place, open_=still, high=still, low=still)
    history = [
        replace(each, **{name: getattr(each, name) * factor for name in PRICES}) for each in history
    ]
    fields = {
        name: np.array([getattr(each, name) for each in history])
        for name in BarColumns._fields
        if name != "turnover"
    }
    columns = BarColumns(**fields, turnover=None)
    del history[4_500 : 4_500 + seed]  # expected, and missing
    alone, expecting = Plausibility(), Plausibility()
    expecting.expect(columns)
    for place, each in enumerate(history):
        tick = 10**9 * factor if place > 4_000 else TICK  # another tick size
        assert expecting.add(each, tick) == alone.add(each, tick)
        if draw.random() < 0.01:
            assert expecting.range_bp() == alone.range_bp()
    expecting.skip(history[-10:])
    alone.skip(history[-10:])
    assert expecting.add(history[-1], TICK) == alone.add(history[-1], TICK)


def test_what_a_copy_is_shown_the_original_does_not_know() -> None:
    history = bars(100, seed=2)
    plausibility = Plausibility()
    for candle in history[:80]:
        plausibility.add(candle, TICK)
    tried = plausibility.copy()
    for place, candle in enumerate(history[80:], 80):
        tried.add(history[place - 20], TICK)
        assert plausibility.add(candle, TICK) == measured(history[: place + 1])[-1]


def test_the_bars_of_sixty_true_ranges_are_remembered_and_no_more() -> None:
    history = bars(200, seed=5)
    assert measured(history)[-1] == measured(history[-YARDSTICK_MEMORY:])[-1]
    assert measured(history)[-1] != measured(history[-YARDSTICK_MEMORY + 30 :])[-1]


def test_one_price_a_bar_is_a_scale_of_its_own_and_a_still_market_has_none() -> None:
    closes = [10_000 + 10 * (index % 2) for index in range(20)]
    points = [
        bar(close, index=at, open_=close, high=close, low=close) for at, close in enumerate(closes)
    ]
    assert measured(points)[-1] == 1.0
    far = bar(99_000, index=20, open_=99_000, high=99_000, low=99_000)
    assert measured([*points, far])[-1] == (99_000 - closes[-1]) / TICK
    still = [bar(10_000, index=index, open_=10_000, high=10_000, low=10_000) for index in range(20)]
    assert measured([*still, far])[-1] == 0


def test_ten_bars_are_the_least_that_say_what_is_usual() -> None:
    steps = [
        bar(10_000 + 10 * (index % 2), index=index, high=10_010, low=10_000)
        for index in range(YARDSTICK_MIN - 1)
    ]
    assert measured(steps)[-1] == 0
    assert measured([*steps, bar(99_000, index=YARDSTICK_MIN)])[-1] == 8_900


def test_a_strategy_remembers_what_the_gate_needs_where_it_has_the_gate() -> None:
    class Bare(Persistence):
        gates = CORE_GATES - {"plausible"}

    assert decision_bars(Persistence()) == YARDSTICK_MEMORY
    assert decision_bars(SmaCross(fast=20, slow=100, long_only=True)) == 100
    assert decision_bars(Bare()) == Bare.warmup
