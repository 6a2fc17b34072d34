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
SAY_EVERY_S: Final = 60.0
"""A network that fails for hours is worth one line a minute."""

T = TypeVar("T")
Waiting = Callable[[str, float], None]
"""Hears the name and the seconds of a wait."""

log = structlog.get_logger("bybit")


def unheard(_name: str, _seconds: float) -> None:
    """Tell nobody of a wait."""


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


class Complaints:
    """Says what is being tried again: the first failure at once, later ones once a minute.

    One for everything that goes to one exchange: where the network is gone, all of it fails.
    """

    def __init__(self, *, clock: Clock, every_s: float = SAY_EVERY_S) -> None:
        self._clock = clock
        self._every_s = every_s
        self._said_s = float("-inf")
        self._unsaid: Counter[str] = Counter()

    def say(self, what: str, error: Exception, wait_s: float) -> None:
        """Log that *what* failed and is tried again after *wait_s*, or count it for the next."""
        self._unsaid[what] += 1
        now_s = self._clock.network_s()
        if now_s - self._said_s < self._every_s:
            log.debug("retrying", what=what, error=str(error), wait_s=round(wait_s, 3))
            return
        failures = dict(self._unsaid)
        self._said_s = now_s
        self._unsaid.clear()
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
    waiting: Waiting = unheard,
    budget: RestartBudget | None = None,
    complaints: Complaints | None = None,
) -> T:
    """Return what *attempt* returns; while it fails recoverably, wait and try again.

    Waits are full jitter: uniform between 0 and a ceiling that doubles up to *ceiling_s*, and
    begins anew after an attempt that lasted longer than *ceiling_s*. Without a *budget* there is
    no end to it; with one, the last error is raised once the budget is spent. *waiting* hears of
    every wait, so that it counts as progress; *complaints* may be shared, so that many that fail
    together say so in one line a minute.
    """
    complaints = complaints or Complaints(clock=clock)
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
            complaints.say(name, error, wait_s)
            waiting(name, wait_s)
            await clock.sleep(wait_s)


class Cooldown:
    """A declared wait: while it lasts nothing is sent, and the watchdog counts it as progress.

    ``waiting`` hears of every wait of the connection, backoffs too; ``complaints`` says what fails.
    """

    def __init__(self, *, clock: Clock, waiting: Waiting = unheard) -> None:
        self._clock = clock
        self.waiting = waiting
        self.complaints = Complaints(clock=clock)
        self.until_s = 0.0  # network time

    def declare(self, seconds: float, reason: str) -> None:
        """Be silent for *seconds* from now; a longer silence already declared stays."""
        self.until_s = max(self.until_s, self._clock.network_s() + seconds)
        log.warning("silent", seconds=seconds, reason=reason)

    async def over(self) -> None:
        """Return when the silence is over."""
        while (left_s := self.until_s - self._clock.network_s()) > 0:
            self.waiting("ban silence", left_s)
            await self._clock.sleep(left_s)


def is_loopback(url: str) -> bool:
    """Return whether *url* names this machine, where no proxy belongs in between."""
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
