"""The system clock: the only file of the project that reads the machine's time."""

from __future__ import annotations

import asyncio
import time


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

    async def sleep(self, seconds: float) -> None:
        """Wait *seconds* of network time."""
        await asyncio.sleep(max(0.0, seconds))
