"""When an instrument's next funding is due, and which settlements were handed on. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from tracepaper.strategies.types import Funding


class FundingSchedule:
    """Each settlement once, also after a restart.

    Settlements fall on multiples of the instrument's interval (00, 08 and 16 UTC where it is eight
    hours); one that the ticker announces elsewhere is awaited as well.
    """

    def __init__(self, *, interval_minutes: int, settled_ms: int) -> None:
        self._interval_ms = interval_minutes * 60_000
        self._announced_ms = 0
        self._asked_ms = settled_ms
        self.settled_ms = settled_ms  # the newest settlement that needs nothing more

    def announce(self, next_ms: int) -> None:
        """Learn the ticker's ``nextFundingTime``."""
        if self._announced_ms <= self.settled_ms:
            self._announced_ms = next_ms

    def is_overdue(self, market_ms: int) -> bool:
        """Return whether a settlement's time has passed that was not handed on."""
        return self._due_ms(self.settled_ms) <= market_ms

    def is_due_by(self, close_ms: int) -> bool:
        """Return whether a settlement at or before *close_ms* was neither found nor asked for."""
        return self._due_ms(self._asked_ms) <= close_ms

    def _due_ms(self, after_ms: int) -> float:
        """Return the first settlement after *after_ms*; infinity where there is no funding."""
        if not self._interval_ms:
            return float("inf")
        grid_ms = (after_ms // self._interval_ms + 1) * self._interval_ms
        return min(grid_ms, self._announced_ms) if self._announced_ms > after_ms else grid_ms

    def asked(self, until_ms: int) -> None:
        """Note that everything up to *until_ms* was asked for once."""
        self._asked_ms = max(self._asked_ms, until_ms)

    def settle(self, settlements: Iterable[Funding]) -> list[Funding]:
        """Return those of *settlements* (oldest first) that are new, and count them as done."""
        fresh = [one for one in settlements if one.market_ms > self.settled_ms]
        if fresh:
            self.settled_ms = fresh[-1].market_ms
            self.asked(self.settled_ms)
        return fresh
