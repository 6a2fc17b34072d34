"""How far a close lies from the last one: exact, of finite memory, mild where little is known."""

from __future__ import annotations

import random
from statistics import median

import pytest
from builders import bar, bars

from tracepaper.strategies.api.strategy import CORE_GATES, Persistence, SmaCross, remembered
from tracepaper.strategies.gates.evaluator import YARDSTICK_BARS, YARDSTICK_LEAST, Plausibility
from tracepaper.strategies.types.market import Bar

TICK = 10


def measured(history: list[Bar], tick: int = TICK) -> list[float]:
    seen = Plausibility()
    return [seen.add(one, tick) for one in history]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_yardstick_is_the_median_range_of_the_last_sixty_bars(seed: int) -> None:
    history = bars(300, seed=seed)
    for place, found in enumerate(measured(history)):
        known = history[max(place - YARDSTICK_BARS + 1, 0) : place + 1]
        if len(known) < YARDSTICK_LEAST:
            assert found == 0
            continue
        usual = median(one.high - one.low for one in known)
        assert found == abs(history[place].close - history[place - 1].close) / max(usual, TICK)


def test_what_a_copy_is_shown_the_original_does_not_know() -> None:
    history = bars(100, seed=2)
    seen = Plausibility()
    for one in history[:80]:
        seen.add(one, TICK)
    tried = seen.copy()
    for place, one in enumerate(history[80:], 80):
        tried.add(history[place - 20], TICK)
        assert seen.add(one, TICK) == measured(history[: place + 1])[-1]


def test_sixty_bars_are_remembered_and_no_more() -> None:
    history = bars(200, seed=5)
    assert measured(history)[-1] == measured(history[-YARDSTICK_BARS:])[-1]
    assert measured(history)[-1] != measured(history[-YARDSTICK_BARS + 30 :])[-1]


def test_a_still_market_is_measured_in_ticks() -> None:
    still = [bar(10_000, index=index) for index in range(20)]
    assert measured([*still, bar(10_020, index=20)])[-1] == pytest.approx(2.0)
    assert measured(still)[-1] == 0


def test_ten_bars_are_the_least_that_say_what_is_usual() -> None:
    jump = [
        *(bar(10_000, index=index) for index in range(YARDSTICK_LEAST - 2)),
        bar(99_000, index=YARDSTICK_LEAST - 2),
    ]
    assert measured(jump)[-1] == 0
    assert measured([*jump, bar(10_000, index=YARDSTICK_LEAST)])[-1] == 8_900


def test_a_strategy_remembers_what_the_gate_needs_where_it_has_the_gate() -> None:
    class Bare(Persistence):
        gates = CORE_GATES - {"plausible"}

    assert remembered(Persistence()) == YARDSTICK_BARS
    assert remembered(SmaCross(fast=20, slow=100, long_only=True)) == 100
    assert remembered(Bare()) == Bare.warmup


def test_the_order_of_ranges_does_not_matter() -> None:
    rng = random.Random(3)
    spreads = [rng.randint(0, 5) for _ in range(YARDSTICK_BARS)]
    for _ in range(3):
        rng.shuffle(spreads)
        history = [
            bar(1_000, index=index, high=1_000 + spread)
            for index, spread in enumerate([*spreads[:-1], 4])
        ]
        history[-1] = bar(1_030, index=YARDSTICK_BARS, open_=1_030, high=1_034)
        usual = median([*spreads[:-1], 4])
        assert measured(history, tick=1)[-1] == 30 / max(usual, 1)
