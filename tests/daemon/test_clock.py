"""Market time follows the server; network time follows nobody."""

from __future__ import annotations

import asyncio

import pytest

from tracepaper.daemon.clock import SystemClock

SERVER = 1_700_000_000_000


def test_until_a_server_was_heard_market_time_is_the_machines() -> None:
    clock = SystemClock()
    assert abs(clock.market_ms() - clock.wall_ms()) < 1_000


def test_synchronise_sets_the_time_forwards_and_backwards() -> None:
    clock = SystemClock()
    for server_ms in (SERVER, SERVER - 86_400_000):
        clock.synchronise(server_ms)
        assert 0 <= clock.market_ms() - server_ms < 10_000


def test_a_late_frame_never_turns_market_time_back() -> None:
    clock = SystemClock()
    clock.synchronise(SERVER)
    clock.observe(SERVER - 60_000)
    assert clock.market_ms() >= SERVER
    clock.observe(SERVER + 60_000)
    assert clock.market_ms() >= SERVER + 60_000


@pytest.mark.sockets
async def test_market_time_is_scaled_and_network_time_is_not() -> None:
    clock = SystemClock(time_scale=10_000.0)
    clock.synchronise(SERVER)
    loop = asyncio.get_running_loop()
    begun_s = loop.time()
    before_s = clock.network_s()
    await clock.sleep(0.01)
    passed_s = clock.network_s() - before_s
    assert 0.009 < passed_s <= loop.time() - begun_s
    assert clock.market_ms() - SERVER >= 0.009 * 1000 * 10_000


async def test_a_negative_wait_is_none() -> None:
    turns: list[str] = []

    async def waits() -> None:
        await SystemClock().sleep(-1)
        turns.append("waited")

    waiting = asyncio.ensure_future(waits())
    for _ in range(3):  # turns of the loop: nothing of it is timed
        await asyncio.sleep(0)
    assert turns == ["waited"]
    await waiting
