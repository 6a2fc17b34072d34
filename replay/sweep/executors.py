"""Where the runs of a sweep are made: in processes of this machine, or here one by one.

Another place (a cluster, say) is another class with these four methods.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Final, Protocol

from tracepaper.daemon.clock import SystemClock
from tracepaper.replay.checks.lookahead import MODEL
from tracepaper.replay.checks.processes import Child, FreshProcesses
from tracepaper.replay.sweep.cell import (
    Cell,
    CellResult,
    TookTooLong,
    Work,
    limited,
    make,
    too_long,
)
from tracepaper.strategies.errors import StrategyFailed

ENDED: Final = "Its process ended; let the class raise instead of exiting, or give it less memory."
GRACE_S: Final = 10.0
"""Seconds after its limit at which a process ends by itself, where nobody is left to end it."""
WORKER: Final = "tracepaper.replay.sweep.executors"


class SweepExecutor(Protocol):
    """Makes runs. ``slots`` is how many cells it takes at once; more are never outstanding."""

    slots: int

    def open(self, work: Work, limit_s: float | None) -> None:
        """Get ready for cells of *work*, each of which may take *limit_s* (no limit if None)."""
        ...

    def submit(self, cell: Cell) -> None:
        """Begin one run; ``next`` brings its outcome."""
        ...

    def next(self) -> CellResult:
        """Wait for the outcome of any cell that was submitted; never raises for what a run does."""
        ...

    def close(self) -> None:
        """End what is going on and leave nothing behind."""
        ...


class InThisProcess:
    """One run after another, in this process: for a class that no other process can import.

    A run is stopped at its limit where this is the main thread and the class is Python.
    """

    slots = 1

    def open(self, work: Work, limit_s: float | None) -> None:
        """Remember what to work on."""
        self._work, self._limit_s = work, limit_s
        self._cell: Cell | None = None

    def submit(self, cell: Cell) -> None:
        """Remember the cell."""
        self._cell = cell

    def next(self) -> CellResult:
        """Make the run now."""
        assert self._cell is not None
        cell, self._cell = self._cell, None
        try:
            with limited(self._limit_s):
                return make(self._work, cell)
        except TookTooLong as error:
            return CellResult(*cell[:4], error=str(error))

    def close(self) -> None:
        """Leave nothing behind."""


@dataclass
class _Worker:
    """One process: its end of the line, its id, and what it works on since when."""

    line: AbstractContextManager[Child]
    child: Child
    pid: int
    cell: Cell
    began_s: float


class LocalProcesses:
    """*jobs* processes of this machine; each is given the candles once and then cell after cell.

    They come from a server that is started by ``exec``, so nothing of this process is in them. A
    run that is over its limit ends with its process, and another takes its place. ``cpu_s`` is
    what the processes have used for the runs that they answered, their start included.
    """

    def __init__(self, jobs: int | None = None) -> None:
        self.slots = jobs or max(1, len(os.sched_getaffinity(0)))
        self._now_s = SystemClock().network_s

    def open(self, work: Work, limit_s: float | None) -> None:
        """Start the server; processes come with the first cells."""
        self._work, self._limit_s = work, limit_s
        # What is loaded before the server forks is loaded once.
        preload = (WORKER, *((MODEL,) if work.strategy == "attention" else ()))
        self._fresh = FreshProcesses(*preload)
        self._fresh.__enter__()
        self._idle: list[tuple[AbstractContextManager[Child], Child, int]] = []
        self._busy: list[_Worker] = []
        self.cpu_s = 0.0

    def submit(self, cell: Cell) -> None:
        """Hand *cell* to an idle process, or to a new one."""
        line, child, pid = self._idle.pop() if self._idle else self._started()
        child.send(cell)
        self._busy.append(_Worker(line, child, pid, cell, self._now_s()))

    def _started(self) -> tuple[AbstractContextManager[Child], Child, int]:
        line = self._fresh.child(serve)
        child = line.__enter__()
        pid: int = child.receive()
        child.send((self._work, None if self._limit_s is None else self._limit_s + GRACE_S))
        return line, child, pid

    def next(self) -> CellResult:
        """Wait for the first process that answers, ends or is over its limit."""
        while True:
            patience = None
            if self._limit_s is not None:
                overdue = min(worker.began_s for worker in self._busy) + self._limit_s
                patience = max(0.0, overdue - self._now_s())
            ready = wait([worker.child.fileno() for worker in self._busy], patience)
            now_s = self._now_s()
            for worker in self._busy:
                if worker.child.fileno() in ready:
                    return self._answered(worker)
                if self._limit_s is not None and now_s - worker.began_s >= self._limit_s:
                    self._end(worker)
                    return CellResult(*worker.cell[:4], error=too_long(self._limit_s))

    def _answered(self, worker: _Worker) -> CellResult:
        try:
            used_s: float
            outcome: CellResult
            outcome, used_s = worker.child.receive()
        except StrategyFailed:
            self._end(worker)
            return CellResult(*worker.cell[:4], error=ENDED)
        self.cpu_s += used_s
        self._busy.remove(worker)
        self._idle.append((worker.line, worker.child, worker.pid))
        return outcome

    def _end(self, worker: _Worker) -> None:
        self._busy.remove(worker)
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGKILL)
        worker.line.__exit__(None, None, None)

    def close(self) -> None:
        """End every process, also one that hangs."""
        for line, _, _ in self._idle:
            line.__exit__(None, None, None)
        for worker in list(self._busy):
            self._end(worker)
        self._fresh.__exit__()


def serve(connection: Connection) -> None:
    """Make the runs that arrive until the line is closed: the body of one process."""
    connection.send(os.getpid())
    work: Work
    alone_s: float | None
    work, alone_s = connection.recv()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    used_s = 0.0
    while True:
        cell: Cell = connection.recv()
        # Should this process outlive who would stop it, a run that hangs ends by itself.
        signal.setitimer(signal.ITIMER_REAL, alone_s or 0.0)
        outcome = make(work, cell)
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        now_s = _used_s()
        connection.send((outcome, now_s - used_s))
        used_s = now_s


def _used_s() -> float:
    """Return the CPU seconds of this process since it began."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
