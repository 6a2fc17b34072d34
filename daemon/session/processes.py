"""A process beside a daemon that records market events.

The rules are docs/orderbook.md, D28 to D31.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Final

import msgspec

from tracepaper.daemon.clock import Clock
from tracepaper.daemon.config.loading import Config
from tracepaper.daemon.feed.book_follower import LEVELS
from tracepaper.daemon.log import Logger
from tracepaper.daemon.session.background import HEALTHY_S, Companion, repeat
from tracepaper.daemon.session.child import (
    ChildProcess,
    StartProcess,
    TimeLimits,
)
from tracepaper.storage.database.remedies import refusal

RECORD: Final = (sys.executable, "-m", "tracepaper.daemon.cli", "data", "record")
RECORDED_S: Final = 10.0
"""Wall seconds that the recorder has to end, after which it is killed."""
NICE: Final = 5
"""The niceness of the recorder: its priority is below the daemon's, above work that can wait."""
PROBE_BYTES: Final = 64 * 1024

log = Logger("recording")


def file_of(folder: Path, symbol: str) -> Path:
    """Return the file of *symbol* in *folder*."""
    return folder / f"{symbol}.events"


def folder_of(config: Config) -> Path | None:
    """Return the absolute path of ``market.record_events``, relative to the configuration file."""
    folder = config.market.record_events
    if folder is None:
        return None
    return (folder if config.folder is None else config.folder / folder).absolute()


def check_recording(config: Config) -> None:
    """Raise ``ConfigInvalid`` or ``AuditUnwritable`` if no file can be written to the folder."""
    if (folder := folder_of(config)) is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(os.urandom(PROBE_BYTES))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        raise refusal(f"[market] record_events: {folder}", error) from None


class Recorder(Companion):
    """Records the market events of a run's symbols; its process writes its buffers as it ends."""

    key = "recording"

    def __init__(
        self,
        config: Config,
        folder: Path,
        clock: Clock,
        start_process: StartProcess = ChildProcess,
    ) -> None:
        market = config.market
        command = (
            *(*RECORD, *market.symbols, "--events", "--out", str(folder)),
            *("--category", market.category, "--depth", str(market.depth or LEVELS)),
            *("--service", msgspec.json.encode(config.settings()["exchange"]).decode()),
        )
        self._child = start_process("recording", command, TimeLimits(end_s=RECORDED_S))
        self._clock = clock
        self._faults, self._error = 0, ""
        self._started_s: float | None = None  # network time; None while no process runs

    def status(self) -> dict[str, object]:
        """Return the number of faults since the daemon's start, and the present error.

        The error is cleared once the process has run for ``HEALTHY_S``.
        """
        started_s = self._started_s
        is_healthy = started_s is not None and self._clock.network_s() - started_s >= HEALTHY_S
        return {"faults": self._faults, "error": "" if is_healthy else self._error}

    async def _work(self) -> None:
        try:
            await repeat(self._record, self._clock, self._failed)
        finally:
            if self._child.fault:
                log.warning(
                    "recording cut",
                    error=self._child.fault,
                    advice="the files lack the last frames before this stop",
                )

    async def _record(self) -> None:
        self._started_s = self._clock.network_s()
        await self._child.follow(object, lambda _message: None)

    def _failed(self, error: Exception, pause_s: float) -> None:
        self._started_s = None
        self._faults, self._error = self._faults + 1, str(error)
        log.warning("recording ended", error=str(error), again_s=pause_s)
