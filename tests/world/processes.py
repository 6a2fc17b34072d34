"""Processes in the world: forks of the harness, and what stands for the daemon's own.

A process beside the daemon is a stand-in on the world's loop: it does the same work a drawn time
later, or is killed, silent or answers garbage.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import pickle
import random
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from tracepaper.daemon.session.child import ChildProcess, TimeLimits, frame_of
from tracepaper.replay.archive.columns import instant
from tracepaper.replay.checks.parity import check_span
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.types.market import ParityCheck
from tracepaper.strategies.units import DAY_MS

WORK_S: Final = (0.05, 2.0)
FAULTS: Final = ("killed", "silent", "garbage")
FAULT_SHARE: Final = 0.3
"""Share of the answers of a process that a fault replaces, where faults of processes are drawn."""
A = TypeVar("A")
FORK: Final = os.fork
"""The guard of a life refuses the daemon this one."""


def in_child(work: Callable[[], A]) -> A:
    """Return the result of *work*, which is done in a forked child."""
    read, write = os.pipe()
    pid = FORK()
    if pid == 0:
        asyncio._set_running_loop(None)
        try:
            value: Any = (True, work())
        except BaseException:  # noqa: BLE001 - raised in the parent
            value = (False, traceback.format_exc())
        with os.fdopen(write, "wb") as out:
            pickle.dump(value, out)
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as source:
        data = source.read()
    os.waitpid(pid, 0)
    is_done, value = pickle.loads(data)
    if not is_done:
        raise RuntimeError(value)
    return value


class StandIn(ChildProcess):
    """Stands for the process that runs *command*.

    *begun* returns its messages; *fault* draws what happens to them instead: nothing, or one of
    ``FAULTS``.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        limits: TimeLimits,
        *,
        rng: random.Random,
        begun: Callable[[], Sequence[object]],
        fault: Callable[[], str],
    ) -> None:
        super().__init__(name, command, limits)
        self._rng, self._begun, self._fault = rng, begun, fault
        self._is_running = False
        self._answer: asyncio.TimerHandle | None = None

    async def _spawn(self) -> None:
        self._process = _Running(self)  # type: ignore[assignment]  # what ``exchange`` asks of one
        self._reader, self._is_running = asyncio.StreamReader(), True
        self._answer_later()

    async def stop(self) -> None:
        """End the process; what it has not answered yet it never does."""
        self._process, self._is_running = None, False
        if self._answer is not None:
            self._answer.cancel()

    async def _cause(self) -> str:
        return f"the {self._name} process was ended by SIGKILL; the machine may lack memory"

    def _answer_later(self) -> None:
        """Write the messages a drawn time later, or meet a fault."""
        loop, fault = asyncio.get_running_loop(), self._fault()

        def answer() -> None:
            if fault == "garbage":
                self._reader.feed_data(frame_of("no result"))
            elif fault == "killed":
                self._is_running = False
                self._reader.feed_eof()
            elif not fault:
                for message in self._begun():
                    self._reader.feed_data(frame_of(message))

        self._answer = loop.call_later(self._rng.uniform(*WORK_S), answer)


class _Running:
    """What a ``ChildProcess`` asks of its process."""

    def __init__(self, process: StandIn) -> None:
        self._stand_in = process

    def poll(self) -> int | None:
        """Return the exit code once it has ended."""
        return None if self._stand_in._is_running else -9


def replayed(command: Sequence[str]) -> ParityCheck:
    """Do what the *command* of a daily parity does, and return what it answers."""
    given = dict(itertools.pairwise(command))
    database, day_ms = Path(given["--db"]), instant(given["--day"])
    with Reader.open(database) as reader:
        run_id = command[command.index("--day") - 1]
        return check_span(reader, database, run_id, from_ms=day_ms, until_ms=day_ms + DAY_MS)
