"""The bars of a close differ by instrument and share their times; both ways are timed."""

from __future__ import annotations

from tracepaper.replay.bench.close import closes_of, measure


def test_a_close_holds_a_bar_of_each_instrument_at_one_time() -> None:
    closes = closes_of(3, 5)
    assert len(closes) == 5
    for close in closes:
        assert len({bar.instrument for bar in close}) == 3
        assert len({bar.open_time_ms for bar in close}) == 1
        assert len({bar.close for bar in close}) > 1
    times = [close[0].open_time_ms for close in closes]
    assert times == sorted(set(times))


def test_the_figure_is_the_batched_step_over_the_single_ones() -> None:
    figures = measure(2, 1)
    assert figures["symbols"] == 2
    assert figures["batched_ratio"] == figures["batched_step_ms"] / figures["single_steps_ms"]
    assert figures["batched_step_ms"] > 0
