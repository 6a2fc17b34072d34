"""``Sidecar``: a process beside the daemon; one records events, another ships the run's file.

No step waits for it and no fault of it ends a run; what it says of itself is in status and metrics.
The shipping one outlives the daemon by the seconds that its last steps take. The rules are
docs/orderbook.md, D28 to D31, and docs/fleet.md, F7.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Final

import msgspec
import structlog

from tracepaper.daemon.clock import Clock
from tracepaper.daemon.config.loading import Config
from tracepaper.daemon.feed.live_book import LEVELS
from tracepaper.daemon.http.monitor import Monitor
from tracepaper.daemon.session.supervisor import END_WITHIN_S, end, import_path, working
from tracepaper.storage.fleet.server import ShipProgress
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.types.decisions import Step

recording_log = structlog.get_logger("recording")
shipping_log = structlog.get_logger("shipping")

PAUSE_S: Final = (1.0, 300.0)
"""The first and the longest pause before a sidecar is begun again; each further one doubles it."""
ERROR_MOST: Final = 2_000
"""Bytes that are kept of what a sidecar says at its end."""


class Sidecar(ABC):
    """Keeps a process at work beside the daemon: no fault of it ends a run."""

    name: str

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def observe(self, step: Step) -> None:  # noqa: B027 - all that a sidecar does at a step
        """Do nothing: no step waits for the process, which reads what it needs itself."""

    @asynccontextmanager
    async def at_work(self, _failed: Callable[[], object]) -> AsyncIterator[None]:
        """Keep the process at work in the background of the block; after that it ends by itself.

        No error ends it, so nobody is told that it failed.
        """
        async with working(self._work(), self.name, lambda: None):
            yield

    async def _work(self) -> None:
        pause_s, longest_s = PAUSE_S
        while True:
            did_well = self._begin()
            try:
                fault = await self._run()
            except (OSError, RuntimeError) as error:  # for want of memory, descriptors or threads
                fault = f"its process could not begin ({error})"
            if did_well():
                pause_s = PAUSE_S[0]
            self._end(fault, pause_s)
            await self._clock.sleep(pause_s)
            pause_s = min(2 * pause_s, longest_s)

    @abstractmethod
    def _begin(self) -> Callable[[], bool]:
        """Return what tells, once the process has ended, whether it had done its work."""

    @abstractmethod
    async def _run(self) -> str:
        """Run the process until it ends by itself; return why."""

    @abstractmethod
    def _end(self, fault: str, pause_s: float) -> None:
        """Note why the process ended, and for how long it pauses."""


# ---------------------------------------------------------------- recording

RECORD_PROGRAM = (sys.executable, "-m", "tracepaper.daemon.cli", "data", "record")
"""The process that records: the command that does the same by hand."""
WELL_S = 60.0
"""Seconds at work after which a fault before is over: six times what is held of a block."""
NICE: Final = 5
"""The niceness of the process: after the daemon, before what may wait."""
PROBE_BYTES: Final = 64 * 1024


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
            *(*RECORD_PROGRAM, *market.symbols, "--events", "--out", str(folder)),
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
        recording_log.warning("recording ended", error=fault, again_s=pause_s)

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


# ---------------------------------------------------------------- shipping

SHIP_PROGRAM = (sys.executable, "-m", "tracepaper.daemon.cli", "db", "ship")
"""The process that ships: the command that does the same by hand."""
LINE_MOST: Final = 2**16
"""Bytes of a line of the process."""


class Shipping(Sidecar):
    """Keeps the process at work, and has the ``progress`` that it told last."""

    name = "shipping"

    def __init__(self, url: str, database: Path, clock: Clock) -> None:
        super().__init__(clock)
        self.progress = ShipProgress()
        self._command = (*SHIP_PROGRAM, "--service", "--to", url, "--db", str(database))

    def _begin(self) -> Callable[[], bool]:
        before = self.progress.steps
        return lambda: self.progress.steps > before

    def _end(self, fault: str, pause_s: float) -> None:
        progress = self.progress
        self.progress = msgspec.structs.replace(
            progress, error=progress.error or fault, errors=progress.errors + 1
        )
        shipping_log.warning("shipping ended", error=fault, pause_s=pause_s)

    async def _run(self) -> str:
        try:
            return await self._ship()
        except ValueError:
            return f"its process wrote a line of more than {LINE_MOST:,} bytes"

    async def _ship(self) -> str:
        # Not asyncio's: that kills its processes with the loop, and this one has to ship the end.
        process = subprocess.Popen(  # noqa: ASYNC220, S603 - our own program; forks in no time
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": import_path()},
            start_new_session=True,
        )
        assert process.stdout is not None
        assert process.stdin is not None
        said = ""
        first = self.progress
        reader, transport = await _reader_of(process.stdout)
        try:
            while line := await reader.readline():
                try:
                    told = msgspec.json.decode(line, type=ShipProgress)
                except msgspec.MsgspecError:
                    said = line.decode(errors="replace").strip()[:ERROR_MOST] or said
                    continue
                self._hear(first, told)
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(process.wait, END_WITHIN_S)
        finally:
            process.stdin.close()  # at which it ends, when the last steps are shipped
            transport.close()
            _reap(process)
        return said or "its process ended"

    def _hear(self, first: ShipProgress, told: ShipProgress) -> None:
        """Take up what the process *told*; counts go on over its restarts."""
        if told.error and told.error != self.progress.error:
            shipping_log.warning("shipping", error=told.error)
        elif self.progress.error and not told.error:
            shipping_log.info("shipping goes on")
        self.progress = msgspec.structs.replace(
            told,
            steps=first.steps + told.steps,
            errors=first.errors + told.errors,
            holes=first.holes + told.holes,
        )


async def _reader_of(output: IO[bytes]) -> tuple[asyncio.StreamReader, asyncio.ReadTransport]:
    reader = asyncio.StreamReader(LINE_MOST)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), output
    )
    return reader, transport


def _reap(process: subprocess.Popen[bytes]) -> None:
    """Take the exit code if the process has ended; one that goes on is no child to wait for."""
    process.poll()
    process.returncode = process.returncode if process.returncode is not None else 0
