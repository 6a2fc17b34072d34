"""Work beside a run, in tasks of its loop: no decision waits for it, and its faults end no run."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import ClassVar, Final

from tracepaper.daemon.clock import Clock
from tracepaper.strategies.types.decisions import Step

PAUSE_S: Final = (1.0, 300.0)
"""The first and the longest pause after a fault; each fault doubles the pause."""
HEALTHY_S: Final = 60.0
"""A fault after this many seconds of work is followed by the first pause again."""


async def repeat(
    work: Callable[[], Awaitable[None]],
    clock: Clock,
    failed: Callable[[Exception, float], None],
) -> None:
    """Do *work* again and again; after an error call *failed* with it and the coming pause."""
    first_s, longest_s = PAUSE_S
    pause_s = first_s
    while True:
        started_s = clock.network_s()
        try:
            await work()
        except Exception as error:  # noqa: BLE001 - an error in work beside a run never ends it
            if clock.network_s() - started_s >= HEALTHY_S:
                pause_s = first_s
            failed(error, pause_s)
            await clock.sleep(pause_s)
            pause_s = min(2 * pause_s, longest_s)
        else:
            pause_s = first_s


@asynccontextmanager
async def background_task(
    work: Coroutine[None, None, None], name: str, failed: Callable[[], object]
) -> AsyncIterator[None]:
    """Do *work* as a task while the block runs; call *failed* if an error ends it.

    That error is raised when the block ends; *failed* may have cancelled the block.
    """

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            failed()

    task = asyncio.create_task(work, name=name)
    task.add_done_callback(ended)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error


class Companion(ABC):
    """Work beside a run, done while the block of ``in_background`` runs.

    ``key`` is the key of its ``status`` in the daemon's status; empty if it has none.
    """

    key: ClassVar[str] = ""

    def status(self) -> Mapping[str, object]:
        """Return the state of the work as plain values."""
        return {}

    def observe(self, step: Step) -> None:  # noqa: B027 - most companions need no steps
        """Take in *step*, which was just stored."""

    @abstractmethod
    async def _work(self) -> None: ...

    def in_background(self, failed: Callable[[], object]) -> AbstractAsyncContextManager[None]:
        """Work while the block runs; call *failed* if an error ends the work."""
        return background_task(self._work(), type(self).__name__, failed)
