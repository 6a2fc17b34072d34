"""Runs a service until an orderly stop; handles signals and systemd's watchdog.

The rules are docs/operations.md, O3 and O4.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Final

from tracepaper.daemon.clock import Clock
from tracepaper.daemon.log import Logger
from tracepaper.daemon.session.background import background_task
from tracepaper.daemon.session.shutdown import signals_call

MICROSECONDS: Final = 1_000_000
STOP_WITHIN_S: Final = 18.0
"""Wall seconds from the first signal until the process is ended, even if something hangs."""
LOGGED_FRAMES: Final = 4
"""Innermost functions of a hanging task or thread that are logged."""

Service = Callable[[], Awaitable[None]]

log = Logger("supervisor")


@dataclass(frozen=True, slots=True)
class Notifier:
    """Tells systemd that the process is ready, alive or stopping (sd_notify(3)).

    Without an *address* it does nothing.
    """

    address: str = ""
    watchdog_s: float | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Notifier:
        """Read ``NOTIFY_SOCKET``, ``WATCHDOG_USEC`` and ``WATCHDOG_PID``."""
        microseconds = environment.get("WATCHDOG_USEC", "")
        is_for_us = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        is_watched = is_for_us and microseconds.isdecimal() and int(microseconds) > 0
        return cls(
            environment.get("NOTIFY_SOCKET", ""),
            int(microseconds) / MICROSECONDS if is_watched else None,
        )

    def send(self, *assignments: str) -> bool:
        """Send *assignments* such as ``READY=1``; return whether they were delivered."""
        if not self.address:
            return False
        # A leading @ means the zero byte of an abstract socket's name.
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        message = "\n".join(assignments).encode()
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
                channel.sendto(message, socket.MSG_DONTWAIT, address)
        except OSError:
            # No listener, a full queue or no descriptor: the daemon continues, and systemd's
            # watchdog decides.
            return False
        return True


class Supervisor:
    """Runs a service until it ends, fails or the process receives a signal.

    *pulse* returns a value that changes while work is done (frames read, steps stored). systemd's
    watchdog is fed only if that value changed or a wait was declared.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        notifier: Notifier | None = None,
        pulse: Callable[[], object] = object,
        stop_within_s: float = STOP_WITHIN_S,
        end_process: Callable[[int], object] = os._exit,
    ) -> None:
        self.stopping = asyncio.Event()
        self._clock = clock
        self._notifier = notifier or Notifier.from_environment()
        self._pulse = pulse
        self._stop_within_s = stop_within_s
        self._end_process = end_process
        self._waiting_until_s = 0.0
        self._is_ready = False
        self._has_begun_to_stop = threading.Event()
        self._has_ended = threading.Event()
        self._task: asyncio.Task[Any] | None = None
        self._failure: BaseException | None = None

    def stop(self) -> None:
        """Begin an orderly stop: the service is cancelled, its ``finally`` blocks run.

        Nothing here may fail, not even without threads or descriptors: a second signal would see
        that the stop has begun and do nothing.
        """
        if self.stopping.is_set():
            return
        self.stopping.set()
        if self._task is not None:
            self._task.cancel()
        self._has_begun_to_stop.set()
        self._notifier.send("STOPPING=1")

    def ready(self) -> None:
        """Tell systemd, once, that the daemon has started: its run is open, its model warm."""
        if not self._is_ready:
            self._is_ready = True
            self._notifier.send("READY=1")

    def keep_failure(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: object
    ) -> None:
        """Keep the *error* that ends the service: a stop during its clean-up must not hide it.

        This is the exit callback of a context stack.
        """
        if error is not None and not isinstance(error, asyncio.CancelledError):
            self._failure = error

    def declare(self, name: str, seconds: float) -> None:
        """Declare that *name* waits deliberately for *seconds*; the wait counts as progress."""
        log.debug("waiting", what=name, wait_s=round(seconds, 3))
        self._waiting_until_s = max(self._waiting_until_s, self._clock.network_s() + seconds)

    async def run(self, service: Service) -> None:
        """Run *service* in this task until it returns or a signal arrives.

        Raises the error of a service that failed.
        """
        if self.stopping.is_set():
            return
        # In a thread, because a hanging loop runs no timers; started now, because at the stop the
        # machine may be unable to start one.
        threading.Thread(target=self._limit_stop, name="deadline", daemon=True).start()
        self._task = asyncio.current_task()
        assert self._task is not None
        interval_s = self._notifier.watchdog_s
        try:
            with signals_call(self.stop):
                async with (
                    background_task(self._feed_watchdog(interval_s), "watchdog", self.stop)
                    if interval_s
                    else nullcontext()
                ):
                    await service()
        except asyncio.CancelledError:
            if not self.stopping.is_set():
                raise
            self._task.uncancel()
            if self._failure is not None:
                raise self._failure from None
        finally:
            self._task = None
            self.stop()
            self._has_ended.set()

    async def _feed_watchdog(self, interval_s: float) -> None:
        """Feed systemd's watchdog while there is progress."""
        last: object = None
        while True:
            pulse = self._pulse()
            if pulse != last or self._clock.network_s() < self._waiting_until_s:
                self._notifier.send("WATCHDOG=1")
            else:
                log.error("no progress", watchdog_s=interval_s)
            last = pulse
            await self._clock.sleep(interval_s / 3)

    def _limit_stop(self) -> None:
        """End the process if its stop takes too long; every acknowledged step is on the disk."""
        self._has_begun_to_stop.wait()
        task = self._task
        if self._has_ended.wait(self._stop_within_s):
            return
        main = sys._current_frames().get(threading.main_thread().ident or 0)  # noqa: SLF001 - no public API
        stack = traceback.extract_stack(main)[-LOGGED_FRAMES:]
        log.error(
            "stop took too long",
            hanging=[] if task is None else _waits_in(task),
            running=[f"{frame.name}:{frame.lineno}" for frame in stack],
            limit_s=self._stop_within_s,
        )
        self._end_process(1)


def _waits_in(task: asyncio.Task[Any]) -> list[str]:
    """Return the innermost functions in which *task* waits, with their lines, outermost first."""
    functions: list[str] = []
    waiting: Any = task.get_coro()
    while waiting is not None:
        for kind in ("cr", "ag", "gi"):
            if (frame := getattr(waiting, f"{kind}_frame", None)) is not None:
                functions.append(f"{frame.f_code.co_qualname}:{frame.f_lineno}")
                waiting = getattr(waiting, f"{kind}_await", None)
                break
        else:
            break
    return functions[-LOGGED_FRAMES:]
