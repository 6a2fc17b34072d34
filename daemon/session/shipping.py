"""``Shipping``: has the run's file shipped to a fleet's PostgreSQL, in a process of its own.

No step waits for it and no fault of it ends a run; what it says of itself is in status and metrics.
It outlives the daemon by the seconds that its last steps take. The rules are docs/fleet.md, F7.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final

import msgspec
import structlog

from tracepaper.daemon.clock import Clock
from tracepaper.daemon.session.supervisor import END_WITHIN_S, ERROR_MOST, Sidecar, import_path
from tracepaper.storage.fleet.server import ShipProgress

PROGRAM = (sys.executable, "-m", "tracepaper.daemon.cli", "db", "ship")
"""The process that ships: the command that does the same by hand."""
LINE_MOST: Final = 2**16
"""Bytes of a line of the process."""

log = structlog.get_logger("shipping")


class Shipping(Sidecar):
    """Keeps the process at work, and has the ``progress`` that it told last."""

    name = "shipping"

    def __init__(self, url: str, database: Path, clock: Clock) -> None:
        super().__init__(clock)
        self.progress = ShipProgress()
        self._command = (*PROGRAM, "--service", "--to", url, "--db", str(database))

    def _begin(self) -> Callable[[], bool]:
        before = self.progress.steps
        return lambda: self.progress.steps > before

    def _end(self, fault: str, pause_s: float) -> None:
        progress = self.progress
        self.progress = msgspec.structs.replace(
            progress, error=progress.error or fault, errors=progress.errors + 1
        )
        log.warning("shipping ended", error=fault, pause_s=pause_s)

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
            log.warning("shipping", error=told.error)
        elif self.progress.error and not told.error:
            log.info("shipping goes on")
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
