"""The system clock: the only file of the project that reads the machine's time.

The rules are docs/time.md, T7 to T9.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import itertools
import time
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any


class SystemClock:
    """Market time by server time and elapsed time x ``time_scale``; implements ``ports.Clock``.

    Until the first ``observe`` or ``synchronise`` market time is the machine's UTC time.
    """

    def __init__(self, time_scale: float = 1.0) -> None:
        self._time_scale = time_scale
        self._server_ms = float(self.wall_ms())
        self._read_s = time.monotonic()

    def market_ms(self) -> int:
        """Return market time: last server time + elapsed x ``time_scale``."""
        return int(self._now_ms())

    def _now_ms(self) -> float:
        """Return market time with its fraction."""
        return self._server_ms + (time.monotonic() - self._read_s) * 1000.0 * self._time_scale

    def network_s(self) -> float:
        """Return monotonic seconds, which no time scale touches."""
        return time.monotonic()

    def wall_ms(self) -> int:
        """Return the machine's UTC time in milliseconds."""
        return time.time_ns() // 1_000_000

    def observe(self, server_ms: int) -> None:
        """Learn that server time is at least *server_ms*; a late frame never turns it back."""
        if server_ms > self._now_ms():
            self.synchronise(server_ms)

    def synchronise(self, server_ms: int) -> None:
        """Set server time to *server_ms*, forwards or backwards."""
        self._read_s = time.monotonic()
        self._server_ms = float(server_ms)

    def set_time_scale(self, time_scale: float) -> None:
        """Let market time pass at another pace from now on; what has passed stays."""
        self.synchronise(self.market_ms())
        self._time_scale = time_scale

    async def sleep(self, seconds: float) -> None:
        """Wait *seconds* of network time."""
        await asyncio.sleep(max(0.0, seconds))


JUMP_S = 7_123_457.891
"""More than 82 days: the hour, the day of the week and of the month, the month are all others."""

JUMPS = 997
"""Jumps before it starts anew: far fewer years than a date can hold."""


def jump_clocks() -> None:
    """Let every clock that Python code of this process reads jump ahead at each reading.

    A class whose decisions depend on the machine's time then decides otherwise. What native code
    reads (``numpy.datetime64('now')``, say) does not jump.
    """
    readings = itertools.count(1)

    def ahead() -> float:
        return next(readings) % JUMPS * JUMP_S

    for name in ("time", "monotonic", "perf_counter", "clock_gettime"):
        _replace(time, name, lambda read, *given: read(*given) + ahead())
        _replace(time, f"{name}_ns", lambda read, *given: read(*given) + int(ahead() * 1e9))
    for name in ("localtime", "gmtime", "ctime"):
        _replace(time, name, lambda read, seconds=None: read(_or_now(seconds)))
    _replace(time, "asctime", lambda read, given=None: read(given or time.localtime()))
    _replace(time, "strftime", lambda read, form, t=None: read(form, t or time.localtime()))
    setattr(dt, "date", _leaping(dt.date))  # noqa: B010 - a type may not be assigned to
    setattr(dt, "datetime", _leaping(dt.datetime))  # noqa: B010 - likewise


def _or_now(seconds: float | None) -> float:
    return time.time() if seconds is None else seconds


def _replace(module: ModuleType, name: str, by: Callable[..., object]) -> None:
    setattr(module, name, partial(by, getattr(module, name)))


def _leaping(known: type) -> type:
    """Return a subclass of *known* that asks ``time.time``; every *known* value is one of it."""

    class Kind(type(known)):  # type: ignore[misc]
        def __instancecheck__(cls, value: object) -> bool:
            return isinstance(value, known)

        def __subclasscheck__(cls, other: type) -> bool:
            return issubclass(other, known)

    def now(cls: Any, tz: Any = None) -> Any:  # noqa: ANN401 - as the library's own
        return cls.fromtimestamp(time.time(), tz)

    def utcnow(cls: Any) -> Any:  # noqa: ANN401 - likewise
        return now(cls, dt.UTC).replace(tzinfo=None)

    def today(cls: Any) -> Any:  # noqa: ANN401 - likewise
        return cls.fromtimestamp(time.time())

    methods = {"now": now, "utcnow": utcnow, "today": today}
    own = {name: classmethod(method) for name, method in methods.items() if hasattr(known, name)}
    return Kind(known.__name__, (known,), own)
