"""Failures are retried, within a budget or for ever; a cooldown applies to all requests."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Awaitable, Callable

import pytest
from bybit_server import SteppedClock
from fakes import JumpClock
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from tracepaper.daemon.feed.client import FIRST_WAIT_S, Cooldown, RestartBudget, is_loopback
from tracepaper.strategies.errors import FeedLost


def failing(
    clock: JumpClock, *, times: int, lasting_s: float = 0.0
) -> Callable[[], Awaitable[str]]:
    left = times

    async def attempt() -> str:
        nonlocal left
        clock.advance(network_s=lasting_s)
        if left:
            left -= 1
            raise FeedLost("The stream ended; it is opened again.")
        return "done"

    return attempt


@given(seed=st.integers(0, 2**32), times=st.integers(0, 40))
async def test_waits_are_full_jitter_below_a_doubling_ceiling(seed: int, times: int) -> None:
    clock = JumpClock()
    result = await Cooldown(clock=clock).retry(
        failing(clock, times=times),
        rng=random.Random(seed),
        name="stream",
        host="api.example.com",
        ceiling_s=30.0,
    )
    assert result == "done"
    assert len(clock.slept) == times
    for number, waited in enumerate(clock.slept):
        assert 0 <= waited <= min(30.0, FIRST_WAIT_S * 2**number)


async def test_a_long_healthy_attempt_begins_the_backoff_anew() -> None:
    clock = JumpClock()
    await Cooldown(clock=clock).retry(
        failing(clock, times=30, lasting_s=31.0),
        rng=random.Random(1),
        name="stream",
        host="api.example.com",
        ceiling_s=30.0,
    )
    assert max(clock.slept) <= FIRST_WAIT_S


async def test_failures_are_said_at_once_and_then_once_a_minute() -> None:
    clock = JumpClock()
    cooldown = Cooldown(clock=clock)
    with capture_logs() as lines:
        for name in ("time", "kline"):
            await cooldown.retry(
                failing(clock, times=100), rng=random.Random(1), name=name, host="h", ceiling_s=2.0
            )
    warnings = [line for line in lines if line["log_level"] == "warning"]
    waited_s = sum(clock.slept)
    assert waited_s / 60 <= len(warnings) <= waited_s / 60 + 1
    assert warnings[0]["failures"] == {"time": 1}
    assert sum(sum(line["failures"].values()) for line in warnings) > 150


async def test_a_spent_budget_raises_the_last_error() -> None:
    clock = JumpClock()
    with pytest.raises(FeedLost):
        await Cooldown(clock=clock).retry(
            failing(clock, times=99),
            rng=random.Random(1),
            name="http",
            host="api.example.com",
            ceiling_s=1.0,
            budget=RestartBudget(limit=3, window_s=600.0),
        )
    assert len(clock.slept) == 3


def test_failures_outside_the_window_are_forgiven() -> None:
    budget = RestartBudget(limit=2, window_s=60.0)
    assert [budget.allows(now) for now in (0.0, 1.0, 61.5, 62.0, 63.0)] == [
        True,
        True,
        True,
        True,
        False,
    ]


async def test_silence_lasts_until_its_end_and_is_told() -> None:
    clock = SteppedClock()
    heard: list[tuple[str, float]] = []
    cooldown = Cooldown(clock=clock, observer=lambda name, seconds: heard.append((name, seconds)))
    await cooldown.wait()
    cooldown.start(600, "HTTP 403")
    waiter = asyncio.create_task(cooldown.wait())
    await clock.run(lambda: heard)
    assert heard[0][0] == "ban cooldown"
    await clock.run(lambda: clock.network_s() > cooldown.ends_s - 1, step_s=1)
    assert not waiter.done()
    await clock.run(waiter.done)
    assert clock.network_s() >= cooldown.ends_s


async def test_a_shorter_silence_does_not_cut_a_longer_one() -> None:
    cooldown = Cooldown(clock=SteppedClock())
    cooldown.start(600, "first")
    ends_s = cooldown.ends_s
    cooldown.start(5, "second")
    assert cooldown.ends_s == ends_s


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8080", True),
        ("ws://localhost:1", True),
        ("ws://[::1]:1", True),
        ("https://api.bybit.com", False),
        ("https://127.example.com", False),
    ],
)
def test_only_this_machine_is_loopback(url: str, expected: bool) -> None:
    assert is_loopback(url) is expected


async def test_an_outage_names_the_host_how_long_it_lasts_and_the_next_try() -> None:
    clock = JumpClock()
    said: list[str | None] = []

    def listen(_name: str, _seconds: float) -> None:
        said.append(cooldown.outage())

    cooldown = Cooldown(clock=clock, observer=listen)
    assert cooldown.outage() is None
    await cooldown.retry(
        failing(clock, times=3, lasting_s=4.0),
        rng=random.Random(1),
        name="stream",
        host="stream.bybit.com",
        ceiling_s=60.0,
    )
    waits = [
        re.fullmatch(
            r"no answer from stream\.bybit\.com for (\d+) s; next try in (\d+) s", str(each)
        )
        for each in said
    ]
    lasted = [int(match[1]) for match in waits if match is not None]
    assert len(lasted) == 3
    assert lasted == sorted(lasted)
    assert lasted[-1] >= 8
    assert cooldown.outage() is None
