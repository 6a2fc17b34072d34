"""The world's loop does what a machine's threads do: in order, once begun to the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from world import loop as world
from world.loop import VirtualLoop


def played(course: Callable[[VirtualLoop], Coroutine[Any, Any, None]]) -> VirtualLoop:
    """Return a loop on which *course* ran."""
    loop = VirtualLoop("test")
    loop.run_until_complete(course(loop))
    return loop


async def cancelled(*futures: asyncio.Future[Any]) -> None:
    for future in futures:
        future.cancel()
    await asyncio.sleep(0)


def test_what_a_thread_began_is_no_timer_that_was_left_and_what_waits_never_begins() -> None:
    done: list[str] = []
    pool = ThreadPoolExecutor(1)

    async def course(loop: VirtualLoop) -> None:
        begun = loop.run_in_executor(pool, done.append, "begun")
        waits = loop.run_in_executor(pool, done.append, "waits")
        forgotten = loop.run_in_executor(None, done.append, "forgotten")
        await asyncio.sleep(loop.work_s[0] / 2)
        await cancelled(begun, waits)
        assert len(loop.pending_timers()) == 1  # the one that somebody may still await
        await forgotten
        await asyncio.sleep(1)

    assert not played(course).pending_timers()
    assert sorted(done) == ["begun", "forgotten"]


def test_a_submitted_call_and_a_shutdown_come_after_what_is_queued(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ThreadPoolExecutor, "submit", world._submit)
    monkeypatch.setattr(ThreadPoolExecutor, "shutdown", world._shut_down)
    done: list[str] = []
    pool = ThreadPoolExecutor(1)

    async def course(loop: VirtualLoop) -> None:
        begun_s = loop.now_s
        first = loop.run_in_executor(pool, done.append, "first")
        pool.submit(done.append, "second").result()
        assert loop.now_s >= begun_s + loop.work_s[0]
        loop.run_in_executor(pool, done.append, "third")
        pool.shutdown(wait=True)
        done.append("shut down")
        await first

    played(course)
    assert done == ["first", "second", "third", "shut down"]
