from __future__ import annotations

from tracepaper.replay.clock import ReplayClock


def test_market_time_comes_from_the_feed_and_never_goes_back() -> None:
    clock = ReplayClock(started_at_ms=5)
    clock.observe(1_000)
    clock.observe(400)
    assert (clock.market_ms(), clock.network_s(), clock.wall_ms()) == (1_000, 1.0, 5)
    clock.synchronise(700)
    assert clock.market_ms() == 700


async def test_sleeping_takes_no_time_of_any_kind() -> None:
    clock = ReplayClock(started_at_ms=5)
    clock.observe(1_000)
    await clock.sleep(3_600)
    assert (clock.market_ms(), clock.network_s(), clock.wall_ms()) == (1_000, 1.0, 5)
