"""The system clock, the only reader of the machine's time, and the engine's interfaces.

The rules are docs/time.md, T7 and T8.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import itertools
import time
from collections.abc import AsyncIterable, Awaitable, Callable, Sequence
from functools import partial
from types import ModuleType
from typing import Any, Protocol

from tracepaper.strategies.types.decisions import Prediction
from tracepaper.strategies.types.market import Event, Unit


class SystemClock:
    """Market time from server time plus elapsed time x ``time_scale``; implements ``Clock``.

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
        """Return market time with fractions of a millisecond."""
        return self._server_ms + self.scaled_ms(time.monotonic() - self._read_s)

    def network_s(self) -> float:
        """Return monotonic seconds, which are never scaled."""
        return time.monotonic()

    def scaled_ms(self, seconds: float) -> float:
        """Return the market milliseconds that pass in *seconds* of network time."""
        return seconds * 1000.0 * self._time_scale

    def wall_ms(self) -> int:
        """Return the machine's UTC time in milliseconds."""
        return time.time_ns() // 1_000_000

    def observe(self, server_ms: int) -> None:
        """Advance server time to at least *server_ms*; a late frame never sets it back."""
        if server_ms > self._now_ms():
            self.synchronise(server_ms)

    def synchronise(self, server_ms: int) -> None:
        """Set server time to *server_ms*, forwards or backwards."""
        self._read_s = time.monotonic()
        self._server_ms = float(server_ms)

    async def sleep(self, seconds: float) -> None:
        """Wait *seconds* of network time."""
        await asyncio.sleep(max(0.0, seconds))


JUMP_S = 7_123_457.891
"""More than 82 days, so that hour, day of the week, day of the month and month all change."""

JUMPS = 997
"""Jumps before the offset restarts at 0, so that a date never overflows."""


def jump_clocks() -> None:
    """Make every clock that Python code of this process reads jump ahead at each reading.

    The decisions of a class that depends on the machine's time then change. Clocks that native code
    reads, such as ``numpy.datetime64('now')``, do not jump.
    """
    readings = itertools.count(1)

    def ahead() -> float:
        return next(readings) % JUMPS * JUMP_S

    for name in ("time", "monotonic", "perf_counter", "clock_gettime"):
        _replace(time, name, lambda read, *given: read(*given) + ahead())
        _replace(time, f"{name}_ns", lambda read, *given: read(*given) + int(ahead() * 1e9))
    for name in ("localtime", "gmtime", "ctime"):
        _replace(time, name, lambda read, s=None: read(time.time() if s is None else s))
    _replace(time, "asctime", lambda read, given=None: read(given or time.localtime()))
    _replace(time, "strftime", lambda read, form, t=None: read(form, t or time.localtime()))
    setattr(dt, "date", _jumping(dt.date))  # noqa: B010 - a type may not be assigned to
    setattr(dt, "datetime", _jumping(dt.datetime))  # noqa: B010 - likewise


def _replace(module: ModuleType, name: str, by: Callable[..., object]) -> None:
    setattr(module, name, partial(by, getattr(module, name)))


def _jumping(original: type) -> type:
    """Return a subclass of *original* that reads ``time.time``; ``isinstance`` accepts both."""

    class Kind(type(original)):  # type: ignore[misc]
        def __instancecheck__(cls, value: object) -> bool:
            return isinstance(value, original)

        def __subclasscheck__(cls, subclass: type) -> bool:
            return issubclass(subclass, original)

    def now(cls: Any, tz: Any = None) -> Any:  # noqa: ANN401 - as the library's own
        return cls.fromtimestamp(time.time(), tz)

    def utcnow(cls: Any) -> Any:  # noqa: ANN401 - likewise
        return now(cls, dt.UTC).replace(tzinfo=None)

    def today(cls: Any) -> Any:  # noqa: ANN401 - likewise
        return cls.fromtimestamp(time.time())

    methods = {"now": now, "utcnow": utcnow, "today": today}
    replaced = {
        name: classmethod(method) for name, method in methods.items() if hasattr(original, name)
    }
    return Kind(original.__name__, (original,), replaced)


class Clock(Protocol):
    """Market time is the exchange's; network time is monotonic and never scaled."""

    def market_ms(self) -> int:
        """Return market time: last server time + elapsed x ``exchange.time_scale``."""
        ...

    def network_s(self) -> float:
        """Return monotonic seconds, for pings, watchdogs, backoff and deadlines."""
        ...

    def scaled_ms(self, seconds: float) -> float:
        """Return the market milliseconds that pass in *seconds* of network time."""
        ...

    def wall_ms(self) -> int:
        """Return the machine's UTC time in milliseconds, for ``started_ms`` and the like."""
        ...

    def observe(self, server_ms: int) -> None:
        """Advance server time to at least *server_ms* (the ``ts`` of a frame)."""
        ...

    def synchronise(self, server_ms: int) -> None:
        """Set server time to *server_ms* (a REST answer just read), forwards or backwards."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait *seconds* of network time."""
        ...


Feed = AsyncIterable[Event]
"""Events in the order in which the engine must see them."""
Predict = Callable[[Unit], Awaitable[Sequence[Prediction]]]
"""Runs the model, possibly in another thread: per event the forecast, a timeout, or None if the
event needs no forecast."""
Append = Callable[..., Awaitable[object]]
"""Stores steps in one transaction; on ``AuditUnwritable`` the caller must not act on them."""
