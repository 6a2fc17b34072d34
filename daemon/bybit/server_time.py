"""When the exchange's own time is believed: near what was expected, or said three times alike."""

from __future__ import annotations

from typing import Final

import structlog
from msgspec import Struct

from tracepaper.daemon.bybit.rest import Rest
from tracepaper.daemon.ports import Clock

FAR_S: Final = 60.0
"""A time this far, network time, from the expected one is asked for again."""
ALIKE_S: Final = 5.0
"""Answers agree that differ by no more than this, network time, beside what passed between them."""
ANSWERS: Final = 3
AGAIN_S: Final = 1.0
UNDER_WAY_S_MAX: Final = 10.0
"""An answer was under way no longer than this, however long the retries before it took."""

log = structlog.get_logger("bybit.feed")


class _Said(Struct, frozen=True):
    """One answer: said somewhen between question and answer, network time."""

    server_ms: int
    asked_s: float
    heard_s: float


class Told(Struct, frozen=True):
    """A server's time that is believed; ``is_jump`` where it is far from what was expected."""

    server_ms: int
    is_jump: bool


class ServerTime:
    """Reads the exchange's time; one wrong answer moves nothing.

    All tolerances are network time, so they are multiplied by *time_scale* here.
    """

    def __init__(
        self, rest: Rest, clock: Clock, *, time_scale: float = 1.0, again_s: float = AGAIN_S
    ) -> None:
        self._rest = rest
        self._clock = clock
        self._scale_ms = 1_000 * time_scale
        self._again_s = again_s

    async def first(self) -> int:
        """Return the time where nothing is expected yet: two answers in a row must agree."""
        said = await self._ask()
        again = await self._ask()
        if not self._agree(said, again):
            return (await self._agreed(again)).server_ms
        return again.server_ms

    async def read(self) -> Told:
        """Return the time; one far from the clock's is believed once three answers agree."""
        said = await self._ask()
        if self._is_near(said):
            return Told(said.server_ms, is_jump=False)
        return await self._agreed(said)

    async def _agreed(self, said: _Said) -> Told:
        """Return what three answers in a row say, or the first that is near the expected time."""
        alike = 1
        log.warning(
            "server time doubted",
            server_ms=said.server_ms,
            expected_ms=self._clock.market_ms(),
        )
        while alike < ANSWERS:
            self._rest.silence.waiting("server time", self._again_s)
            await self._clock.sleep(self._again_s)
            again = await self._ask()
            if self._is_near(again):
                return Told(again.server_ms, is_jump=False)
            alike = alike + 1 if self._agree(said, again) else 1
            said = again
        return Told(said.server_ms, is_jump=True)

    async def _ask(self) -> _Said:
        asked_s = self._clock.network_s()
        server_ms = await self._rest.server_time_ms()
        heard_s = self._clock.network_s()
        return _Said(server_ms, max(asked_s, heard_s - UNDER_WAY_S_MAX), heard_s)

    def _is_near(self, said: _Said) -> bool:
        return abs(said.server_ms - self._clock.market_ms()) <= FAR_S * self._scale_ms

    def _agree(self, said: _Said, again: _Said) -> bool:
        """Return whether as much time passed between two answers as lies between their times."""
        passed_s = (again.server_ms - said.server_ms) / self._scale_ms
        shortest_s, longest_s = again.asked_s - said.heard_s, again.heard_s - said.asked_s
        return shortest_s - ALIKE_S <= passed_s <= longest_s + ALIKE_S
