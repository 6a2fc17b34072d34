"""An asyncio loop with virtual time: nothing waits, and one seed gives one history.

When no callback is ready, the loop's time moves to the next timer. Work for threads is done by the
loop itself a drawn time later, and signal handlers are only kept. ``guard`` refuses every real
process, thread and socket.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import random
import selectors
import socket
import subprocess
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from world.network import Address, Network, Server, Transport

START_S: Final = 1_000.0
"""Virtual time of a history's beginning."""
TICK_S: Final = 1e-6
"""Virtual seconds of a round of callbacks."""
TICKS_MOST: Final = 5_000_000
KERNEL_BYTES: Final = 4 * 1024 * 1024
"""What a real connection on loopback takes before its writer has to wait."""
BUSY_S: Final = (0.2, 3.0)
"""Seconds that a call in an executor takes while the machine is busy."""
WORK_S: Final = (0.0002, 0.004)
"""The least and the greatest virtual seconds of what a thread would do."""


T = TypeVar("T")


class Stuck(RuntimeError):
    """No callback is ready and no timer is set: the program would wait for ever."""


class WorldEscaped(RuntimeError):
    """A life asked for a real process, thread or socket, which no seed determines."""


class _Selector(selectors.BaseSelector):
    """Waits for nothing: moves the loop's time instead."""

    def __init__(self) -> None:
        self._keys: dict[Any, selectors.SelectorKey] = {}
        self.loop: VirtualLoop

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        descriptor = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        self._keys[fileobj] = key = selectors.SelectorKey(fileobj, descriptor, events, data)
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys.pop(fileobj)

    def get_map(self) -> dict[Any, selectors.SelectorKey]:
        return self._keys

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Stuck("no callback is ready and no timer is set")
        self.loop.now_s += max(0.0, timeout)
        return []


class _NumberedTask(asyncio.Task[Any]):
    """A task whose place in a set follows its number: asyncio cancels and awaits sets of tasks."""

    def __init__(self, number: int, coroutine: Coroutine[Any, Any, Any], **options: Any) -> None:
        self._number = number
        super().__init__(coroutine, **options)

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


class _NumberedFuture(asyncio.Future[Any]):
    """A future whose place in a set follows its number."""

    def __init__(self, number: int, loop: asyncio.AbstractEventLoop) -> None:
        self._number = number
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


class _Thread:
    """What a thread of *executor* does for *future*."""

    def __init__(
        self,
        executor: concurrent.futures.Executor | None,
        future: asyncio.Future[Any],
        work: Callable[[], Any],
    ) -> None:
        self.executor = executor
        self._future, self._work = future, work

    def __repr__(self) -> str:
        return f"a thread of {getattr(self.executor, '_thread_name_prefix', '')}"

    @property
    def is_left(self) -> bool:
        """Whether nobody waits for it any more."""
        return self._future.cancelled()

    def __call__(self) -> None:
        try:
            result = self._work()
        except BaseException as error:  # noqa: BLE001 - given to whoever awaits it
            if not self._future.done():
                self._future.set_exception(error)
        else:
            if not self._future.done():
                self._future.set_result(result)


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop that starts at *start_s* and draws all that a machine would vary from *seed*.

    *on_tick* is called before each round of ready callbacks; ``signals`` holds the handlers.
    """

    def __init__(self, seed: str, *, start_s: float = START_S) -> None:
        selector = _Selector()
        selector.loop = self
        self.now_s = start_s
        self.ticks = 0
        self.on_tick: Callable[[], object] = lambda: None
        self.network = Network(self, seed)
        self.signals: dict[int, Callable[[], object]] = {}
        self.work_s = WORK_S
        self.busy_until_s = 0.0
        self._work_rng = random.Random(f"{seed}:work")
        self._free_s: dict[object, float] = {}  # by executor: when its only thread is free
        self._numbers = 0
        super().__init__(selector)
        self._clock_resolution = 1e-9  # a timer is due at its time, not a clock's grain earlier
        self.set_task_factory(self._task)

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers

    def _task(
        self,
        loop: asyncio.AbstractEventLoop,
        coroutine: Any,
        **options: Any,
    ) -> _NumberedTask:
        return _NumberedTask(self._number(), coroutine, loop=loop, **options)

    def create_future(self) -> asyncio.Future[Any]:
        return _NumberedFuture(self._number(), self)

    def time(self) -> float:
        return self.now_s

    def _run_once(self) -> None:
        self.ticks += 1
        if self.ticks > TICKS_MOST:
            raise Stuck(f"{TICKS_MOST:,} ticks: the callbacks go on for ever")
        self.now_s += TICK_S  # a timer that comes too early by rounding would come for ever
        self.on_tick()
        super()._run_once()  # type: ignore[misc]  # private

    def next_callback(self) -> str:
        """Return the name of the first ready callback, for a trace; empty where none is ready."""
        ready = self._ready  # type: ignore[attr-defined]  # private
        if not ready:
            return ""
        callback = ready[0]._callback
        owner = getattr(callback, "__self__", None)
        if isinstance(owner, asyncio.Task):
            callback = owner.get_coro()
        return str(getattr(callback, "__qualname__", type(callback).__name__))

    def pending_timers(self) -> list[str]:
        """Return the callbacks of timers that are set and not cancelled.

        What a thread does for nobody any more is none: a thread cannot be cancelled.
        """
        return [
            getattr(each._callback, "__qualname__", repr(each._callback))
            for each in self._scheduled  # type: ignore[attr-defined]  # private
            if not each.cancelled() and not getattr(each._callback, "is_left", False)
        ]

    # ------------------------------------------------------------ threads

    def run_in_executor(  # type: ignore[override]  # likewise
        self,
        executor: concurrent.futures.Executor | None,
        func: Callable[..., Any],
        *args: Any,
    ) -> asyncio.Future[Any]:
        """Call *func* a drawn time later; the calls of one executor follow each other."""
        future = self.create_future()
        begin_s = self.now_s
        if executor is not None:
            begin_s = max(begin_s, self._free_s.get(executor, 0.0))
        is_busy = begin_s < self.busy_until_s
        end_s = begin_s + self._work_rng.uniform(*(BUSY_S if is_busy else self.work_s))
        if executor is not None:
            self._free_s[executor] = end_s
        thread = _Thread(executor, future, lambda: func(*args))
        timer = self.call_at(end_s, thread)

        def leave(_future: asyncio.Future[Any]) -> None:
            if future.cancelled() and self.now_s <= begin_s:
                timer.cancel()  # it never begins

        future.add_done_callback(leave)
        return future

    def finish(self, executor: concurrent.futures.Executor) -> None:
        """Do what waits in *executor*, in its order, while the loop waits: time goes on."""
        waiting = [
            each
            for each in self._scheduled  # type: ignore[attr-defined]  # private
            if isinstance(each._callback, _Thread)
            and each._callback.executor is executor
            and not each.cancelled()
        ]
        for timer in sorted(waiting, key=lambda each: each.when()):
            thread = timer._callback
            timer.cancel()
            self.now_s = max(self.now_s, timer.when())
            thread()

    def drive(self, work: Coroutine[Any, Any, T]) -> T:
        """Let the loop go on until *work* is done, from a callback that stands for a thread."""
        waiting: int = len(self._ready)  # type: ignore[attr-defined]  # private
        task = self.create_task(work)
        while not task.done():
            self._run_once()
        while len(self._ready) < waiting:  # type: ignore[attr-defined]  # the round counted them
            self.call_soon(lambda: None)
        return task.result()

    # ------------------------------------------------------------ signals

    def add_signal_handler(  # type: ignore[override]  # likewise
        self, sig: int, callback: Callable[..., object], *args: Any
    ) -> None:
        self.signals[int(sig)] = lambda: callback(*args)

    def remove_signal_handler(self, sig: int) -> bool:
        return self.signals.pop(int(sig), None) is not None

    # ------------------------------------------------------------ network

    async def getaddrinfo(self, host: Any, port: Any, *, type: int = 0, **_options: Any) -> Any:  # noqa: A002 - asyncio's name
        """Resolve in memory."""
        return await self.network.resolve(port, type)

    async def sock_connect(self, sock: socket.socket, address: Any) -> None:
        """Connect in memory; ``create_connection`` then takes the socket's place."""
        await self.network.dial_socket(sock, address)

    async def create_connection(
        self,
        protocol_factory: Callable[[], Any],
        host: str | None = None,
        port: int | None = None,
        *,
        sock: socket.socket | None = None,
        **_options: Any,
    ) -> tuple[Transport, Any]:
        """Connect in memory."""
        address = None if sock is not None else Address(str(host), int(port or 0))
        return await self.network.connect(protocol_factory, address, sock)

    async def create_server(  # type: ignore[override]  # likewise
        self,
        protocol_factory: Callable[[], Any],
        host: str | None = None,
        port: int | None = None,
        **_options: Any,
    ) -> Server:
        """Listen in memory."""
        return self.network.listen(protocol_factory, Address(host or "127.0.0.1", port or 0))


def loop_without_delays() -> VirtualLoop:
    """Return a loop for a test with scripted servers: what is sent arrives at once and whole.

    Its time moves only where nothing is ready, so that the test's course cannot depend on the
    machine's load.
    """
    loop = VirtualLoop("test")
    loop.network.latency_s = loop.work_s = (0.0, 0.0)
    loop.network.split = 0.0
    loop.network.kernel_bytes = KERNEL_BYTES  # a test reads after all was sent
    return loop


class _Inline(concurrent.futures.Future[Any]):
    """The result of work that was done at once."""


def _finish(executor: concurrent.futures.Executor) -> None:
    loop = asyncio._get_running_loop()
    if isinstance(loop, VirtualLoop):
        loop.finish(executor)


def _submit(
    executor: concurrent.futures.Executor, work: Callable[..., Any], /, *args: Any, **named: Any
) -> _Inline:
    _finish(executor)
    future = _Inline()
    try:
        future.set_result(work(*args, **named))
    except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
        future.set_exception(error)
    return future


def _shut_down(
    executor: concurrent.futures.Executor, *, wait: bool = True, cancel_futures: bool = False
) -> None:
    del cancel_futures
    if wait:
        _finish(executor)


def _refuse(name: str) -> Callable[..., Any]:
    def escaped(*_args: object, **_named: object) -> Any:
        raise WorldEscaped(f"a life called {name}")

    return escaped


def _start(thread: threading.Thread) -> None:
    """Refuse a thread; the supervisor's deadline is a law of the history instead."""
    if thread.name != "deadline":
        raise WorldEscaped(f"a life started the thread {thread.name}")


def guard() -> None:
    """Refuse every process, thread and connection of the machine, from now on in this process.

    Executors work at once in the thread that asks, after what was queued before.
    """
    setattr(threading.Thread, "start", _start)  # noqa: B010 - a method may not be assigned to
    setattr(concurrent.futures.ThreadPoolExecutor, "submit", _submit)  # noqa: B010 - likewise
    setattr(concurrent.futures.ThreadPoolExecutor, "shutdown", _shut_down)  # noqa: B010 - likewise
    for owner, names in (
        (socket.socket, ("bind", "connect", "connect_ex", "listen", "sendto")),
        (subprocess, ("Popen",)),
        (os, ("fork", "forkpty", "posix_spawn", "execv", "execve")),
    ):
        for name in names:
            setattr(owner, name, _refuse(name))
