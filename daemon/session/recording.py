"""``EventRecording``: has every frame of the books and trades kept, in a process of its own.

No decision waits for it and no fault of it ends a run; status says what it says of itself.
The rules are docs/orderbook.md, D28 to D31.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
import structlog

from tracepaper.daemon.clock import Clock
from tracepaper.daemon.config.loading import Config
from tracepaper.daemon.feed.live_book import LEVELS
from tracepaper.daemon.http.monitor import Monitor
from tracepaper.daemon.session.supervisor import (
    END_WITHIN_S,
    ERROR_MOST,
    Sidecar,
    end,
    import_path,
)
from tracepaper.strategies.errors import ConfigInvalid

PROGRAM = (sys.executable, "-m", "tracepaper.daemon.cli", "data", "record")
"""The process that records: the command that does the same by hand."""
WELL_S = 60.0
"""Seconds at work after which a fault before is over: six times what is held of a block."""
NICE: Final = 5
"""The niceness of the process: after the daemon, before what may wait."""
PROBE_BYTES: Final = 64 * 1024

log = structlog.get_logger("recording")


class RecordingProgress(msgspec.Struct, frozen=True):
    """How recording stands: faults since the daemon's start, and the one that lasts."""

    faults: int = 0
    error: str = ""


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


def recording_of(config: Config, clock: Clock, monitor: Monitor) -> EventRecording | None:
    """Make the process that records events, watched by *monitor*; None without a folder."""
    if (folder := folder_of(config)) is None:
        return None
    recording = EventRecording(config, folder, clock)
    monitor.recording = lambda: msgspec.structs.asdict(recording.progress)
    return recording


class EventRecording(Sidecar):
    """Keeps the process at work, and has its ``progress``.

    At the end of the daemon the process writes what it holds.
    """

    name = "recording"

    def __init__(self, config: Config, folder: Path, clock: Clock) -> None:
        super().__init__(clock)
        market = config.market
        self._command = (
            *(*PROGRAM, *market.symbols, "--events", "--out", str(folder)),
            *("--category", market.category, "--depth", str(market.depth or LEVELS)),
            *("--service", msgspec.json.encode(config.settings()["exchange"]).decode()),
        )
        self._progress = RecordingProgress()
        self._begun_s: float | None = None  # network time; None while no process is at work

    @property
    def progress(self) -> RecordingProgress:
        """How it stands; a fault is over once the process was at work for ``WELL_S``."""
        if self._begun_s is None or self._clock.network_s() - self._begun_s < WELL_S:
            return self._progress
        return msgspec.structs.replace(self._progress, error="")

    def _begin(self) -> Callable[[], bool]:
        self._begun_s = begun_s = self._clock.network_s()
        return lambda: self._clock.network_s() - begun_s >= WELL_S

    def _end(self, fault: str, pause_s: float) -> None:
        self._begun_s = None
        self._progress = RecordingProgress(self._progress.faults + 1, fault)
        log.warning("recording ended", error=fault, again_s=pause_s)

    async def _run(self) -> str:
        """Run the process until it ends by itself; return why."""
        process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": import_path()},
            start_new_session=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        said, last = b"", b""
        try:
            while piece := await process.stdout.read(ERROR_MOST):
                *lines, last = (last + piece).split(b"\n")
                said = next((one for one in reversed(lines) if one.strip()), said)
                last = last[-ERROR_MOST:]
            await process.wait()
        finally:
            process.stdin.close()  # at which it writes what it holds, and ends
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(END_WITHIN_S):
                    await process.wait()
            await end(process)
        words = (last if last.strip() else said).decode(errors="replace").strip()[:ERROR_MOST]
        return words or f"its process ended with {process.returncode}"
