"""The pace of a demo follows the plan where the machine keeps up, and the machine where not."""

from __future__ import annotations

from tracepaper.replay.demo.race import SPEED_MIN, MarketPace, planned_speed

QUARTER = 900_000
MONTH = 2_000 * QUARTER
TICK_S = 0.1
PLANNED = planned_speed(MONTH, 90.0)


def seconds_of(bars_a_second: float) -> float:
    """Return how long a month takes where the machine stores at most so many bars a second."""
    pace, now_s, stored = MarketPace(PLANNED, QUARTER), 1_000.0, 0.0
    pace.set(PLANNED, now_ms=0, now_s=now_s)
    while stored < MONTH // QUARTER and now_s < 1_000 + 1_000:
        now_s += TICK_S
        closed = min(pace.market_ms(now_s), MONTH) // QUARTER
        stored = min(float(closed), stored + bars_a_second * TICK_S)
        speed = pace.choose(int(stored) * QUARTER, now_s=now_s)
        assert SPEED_MIN <= speed <= PLANNED
        assert pace.market_ms(now_s) - stored * QUARTER < 40 * QUARTER  # few bars ever wait
        pace.set(speed, now_ms=pace.market_ms(now_s), now_s=now_s)
    return now_s - 1_000


def test_a_machine_that_keeps_up_reaches_the_end_when_it_should() -> None:
    assert 80 < seconds_of(1e9) < 90


def test_a_machine_that_does_not_keep_up_is_given_time() -> None:
    assert 195 < seconds_of(10.0) < 400  # 2,000 bars at ten a second


def test_silence_slows_market_time_before_a_late_bar_can() -> None:
    pace = MarketPace(PLANNED, QUARTER)
    pace.set(PLANNED, now_ms=0, now_s=10.0)
    assert pace.choose(0, now_s=10.1) == PLANNED
    assert pace.choose(0, now_s=11.0) == SPEED_MIN
    assert pace.choose(0, now_s=12.0) == SPEED_MIN
    assert SPEED_MIN < pace.choose(12_000_000_000, now_s=12.1) < PLANNED  # it learnt


def test_market_time_passes_at_the_newest_speed() -> None:
    pace = MarketPace(PLANNED, QUARTER)
    assert pace.market_ms(99.0) == 0
    pace.set(10.0, now_ms=0, now_s=100.0)
    pace.set(1.0, now_ms=20_000, now_s=102.0)
    assert pace.market_ms(103.0) == 21_000
