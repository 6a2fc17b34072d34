"""The daemon of the show, in a process of its own: the one that is killed and goes on.

The show starts it by ``python -m``, writes one ``Assignment`` on its standard input, and after
that a line with each new pace of market time. It tells every stored step on its standard output,
and ends in good order when its standard input does: whoever started it is gone.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from tracepaper.daemon.clock import SystemClock
from tracepaper.daemon.config.loading import load, restore
from tracepaper.daemon.session.daemon import Daemon
from tracepaper.daemon.session.shutdown import exit_without_waiting, run_loop
from tracepaper.daemon.terminal import log
from tracepaper.daemon.terminal.live_view import live_view
from tracepaper.replay.demonstration.told import Paced, begun, line_of, told_of
from tracepaper.strategies.errors import TracepaperError
from tracepaper.strategies.types import Bar, Instrument, Run, RunKind, Step

CHUNK_BYTES: Final = 4_096


class Assignment(Struct, frozen=True):
    """What one process of the daemon is to do."""

    database: str
    config: str  # the file
    settings: dict[str, dict[str, Any]]  # what lies over the file, by section and key
    speed: float  # market seconds a second, until another is said
    until_ms: int  # it ends with the bars that close then


class PaceSaid(Struct, frozen=True):
    """A new pace: market seconds a second."""

    speed: float


async def serve(assignment: Assignment, lines: Iterator[bytes]) -> None:
    """Run the daemon until the data or the *lines* of its standard input end."""
    config = load(Path(assignment.config), assignment.settings)
    log.configure(level=config.log.level, output="json")
    clock = SystemClock(assignment.speed)
    instruments: dict[str, Instrument] = {}
    unfinished: set[str] = set()

    with live_view(limit=None) as watcher:

        def opened(run: Run) -> None:
            watcher.opened(run)
            instruments.update({one.id: one for one in run.instruments})
            unfinished.update(instruments)
            cash = float(restore(run.config).account.cash)
            _tell(line_of(begun(run, pid=os.getpid(), cash=cash)))

        def watch(step: Step) -> bool:
            for told in told_of(step, instruments):
                _tell(line_of(told))
            if isinstance(step.event, Bar) and step.event.close_time_ms >= assignment.until_ms:
                unfinished.discard(step.event.instrument)
            return watcher.watch(step) and bool(unfinished)

        daemon = Daemon(
            config,
            Path(assignment.database),
            kind=RunKind.DEMO,
            opened=opened,
            watch=watch,
            clock=clock,
        )

        def follow(speed: float) -> None:
            clock.set_time_scale(speed)
            _tell(line_of(Paced(speed)))

        _listen(lines, daemon, follow, asyncio.get_running_loop())
        await daemon.run()


def _tell(line: bytes) -> None:
    sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()


def _lines() -> Iterator[bytes]:
    """Yield each line of standard input as it comes.

    Not through ``sys.stdin``: its buffer would be locked by a thread that waits in it when the
    interpreter ends, which is fatal.
    """
    pending = b""
    while chunk := os.read(0, CHUNK_BYTES):
        *whole, pending = (pending + chunk).split(b"\n")
        yield from whole


def _listen(
    lines: Iterator[bytes],
    daemon: Daemon,
    follow: Callable[[float], None],
    loop: asyncio.AbstractEventLoop,
) -> None:
    """Follow each new pace, and stop *daemon* where standard input ends."""

    def read() -> None:
        for line in lines:
            pace = msgspec.json.decode(line, type=PaceSaid)
            loop.call_soon_threadsafe(follow, pace.speed)
        loop.call_soon_threadsafe(daemon.stop)

    threading.Thread(target=read, name="pace", daemon=True).start()


def main() -> None:
    """Do what the first line of standard input says; exit with 1 and a sentence where it fails."""
    lines = _lines()
    assignment = msgspec.json.decode(next(lines), type=Assignment)
    code = 0
    try:
        run_loop(serve(assignment, lines))
    except TracepaperError as error:
        sys.stderr.write(f"{error}\n")
        code = 1
    exit_without_waiting(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
