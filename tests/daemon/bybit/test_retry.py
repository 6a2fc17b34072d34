"""A declared silence lasts, is told to whoever watches, and is one for all."""

from __future__ import annotations

import asyncio

import pytest
from bybit_server import SteppedClock

from tracepaper.daemon.bybit.retry import Cooldown, is_loopback


async def test_silence_lasts_until_its_end_and_is_told() -> None:
    clock = SteppedClock()
    heard: list[tuple[str, float]] = []
    cooldown = Cooldown(clock=clock, waiting=lambda name, seconds: heard.append((name, seconds)))
    await cooldown.over()
    cooldown.declare(600, "HTTP 403")
    waiter = asyncio.create_task(cooldown.over())
    await clock.run(lambda: heard)
    assert heard[0][0] == "ban silence"
    await clock.run(lambda: clock.network_s() > cooldown.until_s - 1, step_s=1)
    assert not waiter.done()
    await clock.run(waiter.done)
    assert clock.network_s() >= cooldown.until_s


async def test_a_shorter_silence_does_not_cut_a_longer_one() -> None:
    cooldown = Cooldown(clock=SteppedClock())
    cooldown.declare(600, "first")
    until_s = cooldown.until_s
    cooldown.declare(5, "second")
    assert cooldown.until_s == until_s


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
