"""The pace of a demo follows the plan where the machine keeps up, and the machine where not."""

from __future__ import annotations

import pytest

from tracepaper.replay.demo.playback import FIRST_SPEED, SLOW_MOTION, SPEED_MIN, MarketPast, Pacer

QUARTER = 900_000
MONTH = 2_000 * QUARTER
TICK_S = 0.1


def played(lag_intervals: float, *, seconds: float = 90.0, bars_until_s: float = 1e9) -> Pacer:
    """Return a pacer after a race whose bars are stored so many intervals late, until a moment."""
    pacer = Pacer(MONTH, seconds, QUARTER)
    now_s, now_ms, speed = 1_000.0, 0.0, FIRST_SPEED
    while now_ms < MONTH and now_s < 1_000 + 4 * seconds:
        if now_s < 1_000 + bars_until_s:
            pacer.observe(lag_intervals * QUARTER / 1_000 / speed, now_s=now_s)
        speed = pacer.choose(speed, now_ms=int(now_ms), now_s=now_s)
        now_s, now_ms = now_s + TICK_S, now_ms + TICK_S * speed * 1_000
    pacer.seconds = now_s - 1_000  # how long it took
    return pacer


def test_a_machine_that_keeps_up_reaches_the_end_when_it_should() -> None:
    assert 85 < played(0.1).seconds < 95


def test_a_machine_that_does_not_keep_up_is_given_time() -> None:
    pacer = played(50.0)
    assert pacer.seconds >= 4 * 90
    assert pacer.ceiling < FIRST_SPEED


def test_silence_slows_market_time_before_a_late_bar_can() -> None:
    pacer = Pacer(MONTH, 90.0, QUARTER)
    pacer.observe(0.0, now_s=10.0)
    assert pacer.choose(FIRST_SPEED, now_ms=0, now_s=10.1) > SPEED_MIN
    assert pacer.choose(FIRST_SPEED, now_ms=0, now_s=20.0) == SPEED_MIN
    pacer.expects_silence = True
    assert pacer.choose(FIRST_SPEED, now_ms=0, now_s=30.0) > SPEED_MIN


def test_it_falls_behind_once_however_long_it_lasts() -> None:
    pacer = Pacer(MONTH, 90.0, QUARTER)
    for tick in range(5):
        pacer.observe(30.0, now_s=float(tick))
        assert pacer.choose(SPEED_MIN, now_ms=0, now_s=float(tick)) == SPEED_MIN
    once = pacer.ceiling
    assert SPEED_MIN < once < FIRST_SPEED
    assert pacer.slowest_s == 30.0


def test_an_incident_is_shown_in_slow_motion() -> None:
    pacer = Pacer(MONTH, 90.0, QUARTER)
    pacer.observe(0.1, now_s=0.0)
    usual = pacer.choose(FIRST_SPEED, now_ms=0, now_s=0.0)
    pacer.waits_ms = MONTH
    pacer.observe(0.1, now_s=0.1)
    assert pacer.choose(FIRST_SPEED, now_ms=0, now_s=0.1) < usual * SLOW_MOTION * 1.2


@pytest.mark.parametrize("lag_intervals", [0.1, 50.0])
@pytest.mark.parametrize("followed_after_s", [0.0, 1.0])
def test_market_time_waits_for_an_incident_however_long_it_takes(
    lag_intervals: float, followed_after_s: float
) -> None:
    waits_ms = 200 * QUARTER
    pacer = Pacer(MONTH, 90.0, QUARTER, waits_ms=waits_ms)
    now_s, now_ms, speed = 0.0, 0.0, FIRST_SPEED
    while now_s < 600:  # at the usual pace more than the month
        pacer.observe(lag_intervals * QUARTER / 1_000 / speed, now_s=now_s)
        chosen = pacer.choose(speed, now_ms=int(now_ms), now_s=now_s)
        waited_s = followed_after_s if chosen < speed else 0.0  # by the exchange, for the daemon
        now_ms += (waited_s * speed + TICK_S * chosen) * 1_000
        now_s, speed = now_s + waited_s + TICK_S, chosen
    assert waits_ms - QUARTER < now_ms < waits_ms + QUARTER
    pacer.waits_ms = None
    pacer.observe(0.0, now_s=now_s)
    pacer.choose(speed, now_ms=int(now_ms), now_s=now_s)
    assert pacer.choose(speed, now_ms=int(now_ms), now_s=now_s) > SPEED_MIN


def test_a_span_of_market_time_is_told_in_seconds_of_the_machine() -> None:
    past = MarketPast()
    assert past.seconds_since(5_000, now_s=3.0) == past.market_ms(now_s=3.0) == 0
    past.change(10.0, now_ms=0, now_s=100.0)
    past.change(1.0, now_ms=20_000, now_s=102.0)
    assert past.market_ms(now_s=103.0) == 21_000
    assert past.seconds_since(20_000, now_s=103.0) == 1.0
    assert past.seconds_since(10_000, now_s=103.0) == 2.0  # one second at each pace
    assert past.seconds_since(20_500, now_s=103.0) == 0.5
    assert past.seconds_since(90_000, now_s=103.0) == 0  # a clock that is ahead
    assert past.seconds_since(-1, now_s=103.0) == 3.0  # no further than is known
