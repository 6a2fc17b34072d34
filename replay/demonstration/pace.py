"""How fast market time passes: as the plan wants it, never faster than the machine decides."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

FIRST_SPEED: Final = 4_000.0
SPEED_MIN: Final = 500.0
SPEED_MAX: Final = 40_000.0
BEHIND_S: Final = 0.15
BEHIND_INTERVALS: Final = 3.0
"""A bar stored later than both after its close says that the machine does not keep up; so does no
bar for so long."""
PROMPT_S: Final = 0.08
PROMPT_INTERVALS: Final = 1.0
"""A bar stored sooner than one of them says that it could be faster."""
FASTER: Final = 1.06
SLOWER: Final = 0.7
SLOW_MOTION: Final = 0.3
"""Share of the pace at which an incident is shown."""
WAITS_S: Final = 5.0
"""Market time nears where it waits by a pace that would take so long: a daemon may follow a slower
pace a second late, and the exchange waits for it."""
STANDSTILL: Final = 1.0
"""Market time that waits passes as the machine's does: of a quarter of an hour, next to nothing."""
LEAST_LEFT_S: Final = 1.0
PACES_KEPT: Final = 100
"""Some ten seconds of them, at the least: few bars are older when they are stored."""


class MarketPast:
    """The paces that market time had, so that a span of it can be told in this machine's time."""

    def __init__(self) -> None:
        self._paces: deque[tuple[int, float, float]] = deque(maxlen=PACES_KEPT)

    def change(self, speed: float, *, now_ms: int, now_s: float) -> None:
        """Learn that market time is *now_ms* and passes at *speed* from *now_s* on."""
        self._paces.append((now_ms, now_s, speed))

    def market_ms(self, *, now_s: float) -> int:
        """Return market time at *now_s*, at the last pace that is known; 0 before the first."""
        if not self._paces:
            return 0
        from_ms, from_s, speed = self._paces[-1]
        return from_ms + round((now_s - from_s) * 1_000 * speed)

    def seconds_since(self, time_ms: int, *, now_s: float) -> float:
        """Return how many seconds of this machine ago market time was *time_ms*.

        No further back than the paces that are known; 0 before the first.
        """
        until_s = now_s
        for from_ms, from_s, speed in reversed(self._paces):
            if from_ms <= time_ms:
                return max(0.0, now_s - min(until_s, from_s + (time_ms - from_ms) / 1_000 / speed))
            until_s = from_s
        return now_s - until_s


@dataclass(slots=True)
class Pacer:
    """Chooses the speed (market seconds a second) from how late bars were stored.

    The plan is to reach *until_ms* when *seconds* have passed since the first choice, slow motion
    included; a machine that stores bars late is given more time, and the plan takes longer. While
    it catches up, market time all but stands still, so that no bar comes too late to be decided.
    An incident that takes long is waited for: market time does not pass *waits_ms* before its end.
    """

    until_ms: int
    seconds: float
    interval_ms: int
    ceiling: float = FIRST_SPEED
    waits_ms: int | None = None  # where market time waits for the incident that is shown
    expects_silence: bool = False  # it is no sign of a slow machine
    _started_s: float | None = None
    _heard_s: float = 0.0
    slowest_s: float = 0.0  # the longest lag of all
    _worst_s: float = 0.0  # the longest since the last choice
    _is_behind: bool = False

    def observe(self, lag_s: float, *, now_s: float) -> None:
        """Take in at *now_s* that a bar was stored *lag_s* seconds after its close."""
        self._heard_s = now_s
        self._worst_s = max(self._worst_s, lag_s)
        self.slowest_s = max(self.slowest_s, lag_s)

    def choose(self, speed: float, *, now_ms: int, now_s: float) -> float:
        """Return the speed from here on, after *speed*; market time is *now_ms*."""
        planned = self._planned(speed, now_ms=now_ms, now_s=now_s)
        if self.waits_ms is None:
            return planned
        return max(STANDSTILL, min(planned, (self.waits_ms - now_ms) / 1_000 / WAITS_S))

    def _planned(self, speed: float, *, now_ms: int, now_s: float) -> float:
        if self._started_s is None:
            self._started_s = now_s
        interval_s = self.interval_ms / 1_000 / speed
        limit_s = max(BEHIND_S, BEHIND_INTERVALS * interval_s)
        is_silent = not self.expects_silence and now_s - self._heard_s > limit_s + interval_s
        was_behind, worst_s = self._is_behind, self._worst_s
        self._worst_s = 0.0
        self._is_behind = is_silent or worst_s > limit_s
        if self._is_behind:
            if not was_behind:  # once for each time that it falls behind
                self.ceiling = max(SPEED_MIN, self.ceiling * SLOWER)
            return SPEED_MIN
        if worst_s < max(PROMPT_S, PROMPT_INTERVALS * interval_s):
            self.ceiling = min(SPEED_MAX, self.ceiling * FASTER)
        left_s = max(LEAST_LEFT_S, self._started_s + self.seconds - now_s)
        wanted = (self.until_ms - now_ms) / 1_000 / left_s
        shown = 1.0 if self.waits_ms is None else SLOW_MOTION
        return max(SPEED_MIN, min(wanted, self.ceiling) * shown)
