"""``ReplayClock``: time that comes from the data alone, never from the machine."""

from __future__ import annotations

import asyncio


class ReplayClock:
    """Market time is that of the newest event; sleeping takes none.

    *started_at_ms* is what ``wall_ms`` answers: the caller reads it once from the system's
    clock, for the run's ``started_at``.
    """

    def __init__(self, *, started_at_ms: int) -> None:
        self._started_at_ms = started_at_ms
        self._market_ms = 0

    def market_ms(self) -> int:
        """Return the time of the newest event, 0 before the first."""
        return self._market_ms

    def network_s(self) -> float:
        """Return market time in seconds: a replay waits for nothing."""
        return self._market_ms / 1000

    def wall_ms(self) -> int:
        """Return the time at which the replay was started."""
        return self._started_at_ms

    def observe(self, server_ms: int) -> None:
        """Move on to *server_ms*; never backwards."""
        self._market_ms = max(self._market_ms, server_ms)

    def synchronise(self, server_ms: int) -> None:
        """Set market time to *server_ms*."""
        self._market_ms = server_ms

    async def sleep(self, seconds: float) -> None:
        """Let other tasks run; *seconds* are not waited, as adding machine time would differ."""
        del seconds
        await asyncio.sleep(0)
