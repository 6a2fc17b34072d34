"""The cooldown that the exchange asks for after a ban: one for all requests of this address."""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import urlsplit

import structlog

from tracepaper.daemon.engine.ports import Clock
from tracepaper.daemon.supervisor import Complaints, Waiting, unheard

log = structlog.get_logger("bybit")


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
