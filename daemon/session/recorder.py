"""``Recorder``: records the events of a run's symbols, in a process of its own.

The rules are docs/orderbook.md, D28 to D31.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Final

import msgspec
import structlog

from tracepaper.daemon.clock import Clock
from tracepaper.daemon.config.loading import Config
from tracepaper.daemon.feed.live_book import LEVELS
from tracepaper.daemon.session.child import END_S, WELL_S, ChildProcess, Companion, TimeLimits, keep
from tracepaper.strategies.errors import ConfigInvalid

PROGRAM: Final = (sys.executable, "-m", "tracepaper.daemon.cli", "data", "record")
"""The process that records: the command that does the same by hand."""
NICE: Final = 5
"""The niceness of the process: after the daemon, before what may wait."""
PROBE_BYTES: Final = 64 * 1024

log = structlog.get_logger("recording")


def file_of(folder: Path, symbol: str) -> Path:
    """Return the file of *symbol* in *folder*."""
    return folder / f"{symbol}.events"


def folder_of(config: Config) -> Path | None:
    """Return the folder of ``market.record_events``, beside the configuration file."""
    folder = config.market.record_events
    if folder is None:
        return None
    return (folder if config.folder is None else config.folder / folder).absolute()


def check_recording(config: Config) -> None:
    """Raise ``ConfigInvalid`` where nothing can be recorded to the folder."""
    if (folder := folder_of(config)) is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(os.urandom(PROBE_BYTES))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        raise ConfigInvalid(
            f"[market] record_events: {folder} takes no file ({error.strerror}); free disk space, "
            "or name a folder that can be written."
        ) from None


class Recorder(Companion):
    """Keeps the process at work, which writes what it holds once its input is closed."""

    key = "recording"

    def __init__(self, config: Config, folder: Path, clock: Clock) -> None:
        market = config.market
        command = (
            *(*PROGRAM, *market.symbols, "--events", "--out", str(folder)),
            *("--category", market.category, "--depth", str(market.depth or LEVELS)),
            *("--service", msgspec.json.encode(config.settings()["exchange"]).decode()),
        )
        self._child = ChildProcess("recording", command, TimeLimits(end_s=END_S))
        self._clock = clock
        self._faults, self._error = 0, ""
        self._begun_s: float | None = None  # network time; None while no process is at work

    def status(self) -> dict[str, object]:
        """Return the faults since the daemon's start, and the one that lasts.

        It is over once the process was at work for ``WELL_S``.
        """
        begun_s = self._begun_s
        is_well = begun_s is not None and self._clock.network_s() - begun_s >= WELL_S
        return {"faults": self._faults, "error": "" if is_well else self._error}

    async def _work(self) -> None:
        await keep(self._record, self._clock, self._failed)

    async def _record(self) -> None:
        self._begun_s = self._clock.network_s()
        await self._child.follow(object, lambda _message: None)

    def _failed(self, error: Exception, pause_s: float) -> None:
        self._begun_s = None
        self._faults, self._error = self._faults + 1, str(error)
        log.warning("recording ended", error=str(error), again_s=pause_s)
