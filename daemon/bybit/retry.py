"""Failed requests are tried again with full jitter, and after a ban nothing is sent for a while.

The one ``except Recoverable`` stands here.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from typing import Final, TypeVar
from urllib.parse import urlsplit

import structlog

from tracepaper.daemon.engine.ports import Clock
from tracepaper.strategies.errors import Recoverable

FIRST_WAIT_S: Final = 0.5
"""Ceiling of the first full-jitter wait; it doubles with every failure in a row."""
LOG_EVERY_S: Final = 60.0
"""A network that fails for hours is worth one line a minute."""

T = TypeVar("T")
WaitObserver = Callable[[str, float], None]
"""Is called with the name and the seconds of each wait."""

log = structlog.get_logger("bybit")


def ignore_wait(_name: str, _seconds: float) -> None:
    """Ignore a wait."""


class RestartBudget:
    """At most *limit* failures in any *window_s* seconds of network time."""

    def __init__(self, *, limit: int, window_s: float) -> None:
        self._limit = limit
        self._window_s = window_s
        self._failures: deque[float] = deque(maxlen=limit + 1)

    def allows(self, now_s: float) -> bool:
        """Count a failure at *now_s*; return whether another attempt is allowed."""
        self._failures.append(now_s)
        recent = sum(now_s - failure < self._window_s for failure in self._failures)
        return recent <= self._limit


class RetryLog:
    """Logs what is tried again: the first failure at once, later ones together once a minute.

    There is one for everything that goes to one exchange: without a network all of it fails.
    """

    def __init__(self, *, clock: Clock, every_s: float = LOG_EVERY_S) -> None:
        self._clock = clock
        self._every_s = every_s
        self._logged_s = float("-inf")
        self._unlogged: Counter[str] = Counter()

    def failed(self, what: str, error: Exception, wait_s: float) -> None:
        """Log that *what* failed and is tried again after *wait_s*, or count it for the next."""
        self._unlogged[what] += 1
        now_s = self._clock.network_s()
        if now_s - self._logged_s < self._every_s:
            log.debug("retrying", what=what, error=str(error), wait_s=round(wait_s, 3))
            return
        failures = dict(self._unlogged)
        self._logged_s = now_s
        self._unlogged.clear()
        log.warning(
            "retrying", what=what, error=str(error), wait_s=round(wait_s, 3), failures=failures
        )


async def retry(
    attempt: Callable[[], Awaitable[T]],
    *,
    clock: Clock,
    rng: random.Random,
    name: str,
    ceiling_s: float,
    observer: WaitObserver = ignore_wait,
    budget: RestartBudget | None = None,
    retry_log: RetryLog | None = None,
) -> T:
    """Return what *attempt* returns; while it fails recoverably, wait and try again.

    Waits are full jitter: uniform between 0 and a ceiling that doubles up to *ceiling_s*, and
    begins anew after an attempt that lasted longer than *ceiling_s*. Without a *budget* there is
    no end to it; with one, the last error is raised once the budget is spent. *observer* is
    called with every wait, so that it counts as progress; *retry_log* may be shared, so that many
    that fail together are logged in one line a minute.
    """
    retry_log = retry_log or RetryLog(clock=clock)
    failures = 0
    while True:
        started_s = clock.network_s()
        try:
            return await attempt()
        except Recoverable as error:
            now_s = clock.network_s()
            if budget is not None and not budget.allows(now_s):
                raise
            failures = 1 if now_s - started_s > ceiling_s else failures + 1
            most_s = min(ceiling_s, FIRST_WAIT_S * 2 ** min(failures - 1, 32))
            wait_s = rng.uniform(0, most_s)
            retry_log.failed(name, error, wait_s)
            observer(name, wait_s)
            await clock.sleep(wait_s)


class Cooldown:
    """The time after a ban in which nothing is sent: one for all requests of this address.

    ``observer`` is called with every wait of the connection, backoffs too, so that the watchdog
    counts it as progress; ``retry_log`` says what fails.
    """

    def __init__(self, *, clock: Clock, observer: WaitObserver = ignore_wait) -> None:
        self._clock = clock
        self.observer = observer
        self.retry_log = RetryLog(clock=clock)
        self.ends_s = 0.0  # network time

    def start(self, seconds: float, reason: str) -> None:
        """Send nothing for *seconds* from now; a longer cooldown under way stays."""
        self.ends_s = max(self.ends_s, self._clock.network_s() + seconds)
        log.warning("cooldown", seconds=seconds, reason=reason)

    async def pause(self, name: str, seconds: float) -> None:
        """Wait for *seconds* on purpose."""
        self.observer(name, seconds)
        await self._clock.sleep(seconds)

    async def wait(self) -> None:
        """Return when the cooldown is over."""
        while (left_s := self.ends_s - self._clock.network_s()) > 0:
            await self.pause("ban cooldown", left_s)


def is_loopback(url: str) -> bool:
    """Return whether *url* names this machine, where no proxy belongs in between."""
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
