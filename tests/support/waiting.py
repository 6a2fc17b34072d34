"""Waits of the tests: on conditions, with a deadline that grows with the machine's load."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from world.loop import VirtualLoop

PATIENCE_S = 60.0
"""Wall time that a wait is given on a machine where every process has a processor."""


def deadline_s(seconds: float = PATIENCE_S) -> float:
    """Return *seconds*, multiplied by the processes that share a processor just now.

    On a loop with virtual time the machine's load is nothing to the wait.
    """
    if isinstance(asyncio._get_running_loop(), VirtualLoop):  # noqa: SLF001 - None without one
        return seconds
    return seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


@asynccontextmanager
async def deadline(seconds: float = PATIENCE_S) -> AsyncIterator[None]:
    """End the block in a ``TimeoutError`` where it takes longer than the load explains.

    The load is read again whenever the deadline comes: it may have grown since the start.
    """
    loop = asyncio.get_running_loop()
    begun_s = loop.time()
    timer: asyncio.TimerHandle

    def check() -> None:
        nonlocal timer
        ends_s = begun_s + deadline_s(seconds)
        if loop.time() < ends_s:
            timer = loop.call_at(ends_s, check)
        else:
            limit.reschedule(loop.time())

    async with asyncio.timeout(None) as limit:
        timer = loop.call_later(deadline_s(seconds), check)
        try:
            yield
        finally:
            timer.cancel()


def pass_time(seconds: float) -> None:
    """Let *seconds* of the running loop's time pass at once: limits that run now are exceeded."""
    loop = asyncio.get_running_loop()
    if isinstance(loop, VirtualLoop):
        loop.now_s += seconds
        return
    before = loop.time
    loop.time = lambda: before() + seconds  # type: ignore[method-assign]


async def until(condition: Callable[[], object], *, poll_s: float = 0.0) -> None:
    """Let the loop run until *condition* holds, asking every *poll_s*."""
    async with deadline():
        while True:
            if condition():
                return
            await asyncio.sleep(poll_s)
