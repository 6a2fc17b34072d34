"""The exchange's limits on what one address may ask."""

from __future__ import annotations

from collections import deque


class Limiter:
    """Admit at most *limit* calls in any *window_s* machine seconds."""

    def __init__(self, limit: int, window_s: float) -> None:
        self._limit = limit
        self._window_s = window_s
        self._calls: deque[float] = deque()

    def admits(self, now_s: float) -> bool:
        """Return whether a call at *now_s* is within the limit, and count it if so."""
        while self._calls and self._calls[0] <= now_s - self._window_s:
            self._calls.popleft()
        if len(self._calls) >= self._limit:
            return False
        self._calls.append(now_s)
        return True
