"""``ShippingProcess``: ships a run's file to a fleet, in a process of its own.

It outlives the daemon by the seconds that its last steps take. The rules are docs/fleet.md, F7.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import structlog
from msgspec.structs import asdict, replace

from tracepaper.daemon.clock import Clock
from tracepaper.daemon.session.child import ChildProcess, Companion, TimeLimits, keep
from tracepaper.storage.fleet.server import ShipProgress

PROGRAM: Final = (sys.executable, "-m", "tracepaper.daemon.cli", "db", "ship")
"""The process that ships: the command that does the same by hand."""

log = structlog.get_logger("shipping")


class ShippingProcess(Companion):
    """Keeps the process at work, and has the newest ``progress`` of it."""

    key = "shipping"

    def __init__(self, url: str, database: Path, clock: Clock) -> None:
        self.progress = ShipProgress()
        self._clock = clock
        command = (*PROGRAM, "--service", "--to", url, "--db", str(database))
        self._child = ChildProcess("shipping", command, TimeLimits(end_s=None))

    def status(self) -> dict[str, object]:
        """Return the newest progress."""
        return asdict(self.progress)

    async def _work(self) -> None:
        await keep(self._ship, self._clock, self._failed)

    async def _ship(self) -> None:
        before = self.progress

        def take(progress: ShipProgress) -> None:
            """Keep *progress*; counts go on over the restarts of the process."""
            if progress.error and progress.error != self.progress.error:
                log.warning("shipping", error=progress.error)
            elif self.progress.error and not progress.error:
                log.info("shipping goes on")
            self.progress = replace(
                progress,
                steps=before.steps + progress.steps,
                errors=before.errors + progress.errors,
                holes=before.holes + progress.holes,
            )

        await self._child.follow(ShipProgress, take)

    def _failed(self, error: Exception, pause_s: float) -> None:
        progress = self.progress
        self.progress = replace(
            progress, error=progress.error or str(error), errors=progress.errors + 1
        )
        log.warning("shipping ended", error=str(error), pause_s=pause_s)
