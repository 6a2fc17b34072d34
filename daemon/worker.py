"""``Worker``: one thread that does work in order, and that nobody has to wait for at the end.

A pool's threads are joined when the interpreter ends, so a forecast under way would hold up an
orderly stop; this thread is a daemon, and its unfinished work is simply not answered.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import TypeVar

T = TypeVar("T")

Job = Callable[[], None]


class Worker:
    """Runs jobs one after the other in a thread of its own."""

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._waiting = 0
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    @property
    def is_busy(self) -> bool:
        """Whether a job is under way or in line."""
        return self._waiting > 0

    def submit(self, work: Callable[..., T], *arguments: object) -> asyncio.Future[T]:
        """Put *work* in line; return the future of its result in the running loop."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._waiting += 1

        def job() -> None:
            try:
                result = work(*arguments)
            except BaseException as error:  # noqa: BLE001 - handed to whoever awaits it
                _answer(loop, partial(_fail, future, error))
            else:
                _answer(loop, partial(_resolve, future, result))
            finally:
                self._waiting -= 1

        self._jobs.put(job)
        return future

    def _work(self) -> None:
        while True:
            self._jobs.get()()


def _answer(loop: asyncio.AbstractEventLoop, call: Job) -> None:
    """Run *call* in *loop*, unless the loop has ended meanwhile."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(call)


def _resolve(future: asyncio.Future[T], result: T) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[T], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
