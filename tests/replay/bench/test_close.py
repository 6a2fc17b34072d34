"""A close is timed from its delivery until its last decision is stored, both ways in one run."""

from __future__ import annotations

import asyncio
import time

import models

from tracepaper.replay.bench.live import (
    WARM_UP_CLOSES,
    Spent,
    TimedFeed,
    closes_of,
    compare,
    gathered,
    live_config,
    measure_live_closes,
)
from tracepaper.strategies.types.market import Bar, Closed, RunEnd

MEASURES = ("collapsed", "confidence", "direction", "recent_mass", "shift")
QUANTILES = {name: [0.01 * place for place in range(1, 100)] for name in MEASURES}


def test_a_close_holds_a_bar_of_each_instrument_at_one_time() -> None:
    closes = closes_of(3, 5)
    assert len(closes) == 5
    for close in closes:
        assert len({bar.instrument for bar in close}) == 3
        assert len({bar.open_time_ms for bar in close}) == 1
        assert len({bar.close for bar in close}) > 1
    times = [close[0].open_time_ms for close in closes]
    assert times == sorted(set(times))


def test_a_gathered_close_is_announced_with_its_count_and_time() -> None:
    [close] = closes_of(3, 1)
    closed, *bars = gathered(close)
    assert isinstance(closed, Closed)
    assert (closed.open_time_ms, closed.bars, closed.absent) == (close[0].open_time_ms, 3, ())
    assert bars == close


def test_figures_are_medians_and_their_ratios_gathered_over_one_by_one() -> None:
    config = live_config("attention", ["BENCH0USDT", "BENCH1USDT"])
    figures = compare(config, models.forecaster(quantiles=QUANTILES), rounds=1)
    single, batched = figures["one_by_one_ms"], figures["gathered_ms"]
    assert min(*single.values(), *batched.values()) > 0
    assert figures["wall_ratio"] == batched["wall"] / single["wall"]
    assert figures["cpu_ratio"] == batched["cpu"] / single["cpu"]
    alone = figures["model_alone_cpu_ms"]
    assert figures["model_alone_cpu_ratio"] == alone["gathered"] / alone["one_by_one"]


def test_a_close_of_several_symbols_is_timed_to_its_last_commit() -> None:
    figures = measure_live_closes(3, 10, model=False)
    assert (figures["symbols"], figures["closes"], figures["reach_ms"]) == (3, 10, 500.0)
    times = figures["without_model_ms"]
    assert 0 < times["median"] <= times["longest"]
    assert times["median"] <= times["p99"]
    one = figures["without_model_a_symbol"]
    assert min(one["cpu_ms"], one["memory_mb"]) > 0
    assert 100 < one["bytes_a_decision"] < 10_000  # of a bar and its quote, in pages


def test_a_close_takes_as_long_as_until_the_event_behind_it_is_asked_for() -> None:
    """The loop asks for it once the last decision is committed."""
    closes = closes_of(2, 1 + WARM_UP_CLOSES + 4)
    start = RunEnd(0, market_ms=0, seen_ms=0)
    feed = TimedFeed(closes[:1], lambda: start, closes[1:], lambda _: None)
    timed_from_ms = closes[1 + WARM_UP_CLOSES][0].open_time_ms

    async def consume() -> list[str]:
        kinds = []
        async for event in feed:
            kinds.append(type(event).__name__)
            is_timed = isinstance(event, Bar) and event.open_time_ms >= timed_from_ms
            until = time.process_time() + (2e-3 if is_timed else 0)
            while time.process_time() < until:  # as if it were decided and stored
                pass
        return kinds

    kinds = asyncio.run(consume())
    one_by_one, together = (
        ["Quote", "Quote", "Bar", "Bar"],
        ["Quote", "Quote", "Closed", "Bar", "Bar"],
    )
    assert kinds == [
        "Closed",
        "Bar",
        "Bar",
        "RunEnd",
        *(one_by_one + together) * (WARM_UP_CLOSES // 2 + 2),
    ]
    for spent in feed.spent.values():
        assert len(spent.wall_ms) == len(spent.cpu_ms) == 2
        assert min(*spent.wall_ms, *spent.cpu_ms) >= 4.0  # two bars of 2 ms


def test_the_time_of_several_closes_is_their_median() -> None:
    assert Spent([1.0, 9.0, 2.0], [0.5, 0.1, 0.2]).medians() == {"wall": 2.0, "cpu": 0.2}
