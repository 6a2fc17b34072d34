"""Executors: units of work that can be pickled, carried out here, in processes or elsewhere.

A sweep's runs, the folds of ``evaluate`` and the seeds of ``train`` are such units. Another place
is another class with the four methods of ``UnitExecutor``, as ``on_ray`` has them. The rules are
docs/python.md, Y20, and docs/scale.md, R1 to R9.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import pickle
import resource
import signal
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Final, Generic, NamedTuple, Protocol, Self, TypeVar

from tracepaper.daemon.clock import SystemClock
from tracepaper.daemon.session.run_row import code_version, libraries
from tracepaper.replay.checks.isolation import Child, FreshProcesses
from tracepaper.strategies.errors import (
    ConfigInvalid,
    StrategyFailed,
    TracepaperError,
    shown,
)
from tracepaper.strategies.extras import require

U = TypeVar("U")
R = TypeVar("R")
Unit_contra = TypeVar("Unit_contra", contravariant=True)
Made_co = TypeVar("Made_co", covariant=True)

ENDED: Final = "Its process ended; let the class raise instead of exiting, or give it less memory."
GRACE_S: Final = 10.0
"""Seconds after its limit at which a process ends by itself, where nobody is left to end it."""
LOCAL: Final = "local"
RAY: Final = "ray"
PLACES: Final = (LOCAL, RAY)
"""What ``--on`` names."""


class UnitWork(ABC, Generic[Unit_contra, Made_co]):
    """What units of work share: handed to each worker once, and called with one unit after another.

    It can be pickled. A call never raises for what is wrong with a unit: that is its outcome.
    """

    @property
    def preload(self) -> Sequence[str]:
        """Modules that each process needs, loaded once."""
        return ()

    def packed(self) -> Self:
        """Return it with what it reads from files of this machine, for workers of another."""
        return self

    def check(self) -> None:
        """Raise ``ConfigInvalid`` or ``DataInvalid`` where a worker lacks something of it."""

    @abstractmethod
    def __call__(self, unit: Unit_contra, /) -> Made_co:
        """Carry out one unit."""

    @abstractmethod
    def failed(self, unit: Unit_contra, why: str, /) -> Made_co:
        """Return the outcome of a unit that came to nothing, by one sentence."""


class UnitExecutor(Protocol[U, R]):
    """Carries out units. ``slots`` is how many it takes at once; more are never outstanding."""

    slots: int

    def open(self, work: UnitWork[U, R], limit_s: float | None) -> None:
        """Get ready for units of *work*, each of which may take *limit_s* (no limit if None)."""
        ...

    def submit(self, unit: U) -> None:
        """Begin one unit; ``next`` brings its outcome."""
        ...

    def next(self) -> R:
        """Wait for the outcome of any unit that was submitted; never raises for what it does."""
        ...

    def close(self) -> None:
        """End what is going on and leave nothing behind."""
        ...


class TookTooLong(TracepaperError):
    """A unit was stopped at its limit."""


def too_long(limit_s: float) -> str:
    """Return the sentence of a unit that was stopped."""
    return f"It took longer than {limit_s:g} s and was stopped; give a higher limit, or mend it."


@contextmanager
def limited(limit_s: float | None) -> Iterator[None]:
    """Raise ``TookTooLong`` after *limit_s* of Python code; only in the main thread of a process.

    Elsewhere a thread cannot be stopped, and nothing is limited.
    """
    if limit_s is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_signal: int, _frame: object) -> None:
        raise TookTooLong(too_long(limit_s))

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def outcomes_of(executor: UnitExecutor[U, R], units: Iterator[U]) -> Iterator[R]:
    """Yield the outcomes of *units*, of which one is taken when a worker is free, as they come."""
    outstanding = 0
    while True:
        while outstanding < executor.slots and (unit := next(units, None)) is not None:
            executor.submit(unit)
            outstanding += 1
        if not outstanding:
            return
        yield executor.next()
        outstanding -= 1


class InThisProcess(Generic[U, R]):
    """One unit after another, in this process: for a class that no other process can import.

    A unit is stopped at its limit where this is the main thread and the class is Python.
    """

    slots = 1

    def open(self, work: UnitWork[U, R], limit_s: float | None) -> None:
        """Remember what to work on."""
        self._work, self._limit_s = work, limit_s
        self._units: list[U] = []

    def submit(self, unit: U) -> None:
        """Remember the unit."""
        self._units.append(unit)

    def next(self) -> R:
        """Carry it out now."""
        [unit] = self._units
        self._units.clear()
        try:
            with limited(self._limit_s):
                return self._work(unit)
        except TookTooLong as error:
            return self._work.failed(unit, str(error))

    def close(self) -> None:
        """Leave nothing behind."""


@dataclass
class _Worker:
    """One process: its end of the line, its id, and what it works on since when."""

    line: AbstractContextManager[Child]
    child: Child
    pid: int
    unit: Any = None
    began_s: float = 0.0


class LocalProcesses(Generic[U, R]):
    """*jobs* processes of this machine; each is given the work once and then unit after unit.

    They come from a server that is started by ``exec``, so nothing of this process is in them. A
    unit that is over its limit ends with its process, and another takes its place. ``cpu_s`` is
    what the processes have used for the units that they answered, their start included.
    """

    def __init__(self, jobs: int | None = None) -> None:
        self.slots = jobs or max(1, len(os.sched_getaffinity(0)))
        self._now_s = SystemClock().network_s

    def open(self, work: UnitWork[U, R], limit_s: float | None) -> None:
        """Start the server; processes come with the first units."""
        self._work, self._limit_s = work, limit_s
        # What is loaded before the server forks is loaded once.
        self._fresh = FreshProcesses(*work.preload)
        self._fresh.__enter__()
        self._idle: list[_Worker] = []
        self._busy: list[_Worker] = []
        self.cpu_s = 0.0

    def submit(self, unit: U) -> None:
        """Hand *unit* to an idle process, or to a new one."""
        worker = self._idle.pop() if self._idle else self._started()
        worker.child.send(unit)
        worker.unit, worker.began_s = unit, self._now_s()
        self._busy.append(worker)

    def _started(self) -> _Worker:
        line = self._fresh.child(serve)
        child = line.__enter__()
        worker = _Worker(line, child, child.receive())
        child.send((self._work, None if self._limit_s is None else self._limit_s + GRACE_S))
        return worker

    def next(self) -> R:
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
                    return self._work.failed(worker.unit, too_long(self._limit_s))

    def _answered(self, worker: _Worker) -> R:
        try:
            used_s: float
            outcome: R
            outcome, used_s = worker.child.receive()
        except StrategyFailed:
            self._end(worker)
            return self._work.failed(worker.unit, ENDED)
        self.cpu_s += used_s
        self._busy.remove(worker)
        self._idle.append(worker)
        return outcome

    def _end(self, worker: _Worker) -> None:
        self._busy.remove(worker)
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGKILL)
        worker.line.__exit__(None, None, None)

    def close(self) -> None:
        """End every process, also one that hangs."""
        for worker in self._idle:
            worker.line.__exit__(None, None, None)
        for worker in list(self._busy):
            self._end(worker)
        self._fresh.__exit__()


def serve(connection: Connection) -> None:
    """Carry out the units that arrive until the line is closed: the body of one process."""
    connection.send(os.getpid())
    work: UnitWork[Any, Any]
    alone_s: float | None
    work, alone_s = connection.recv()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    used_s = 0.0
    while True:
        unit: Any = connection.recv()
        # Should this process outlive who would stop it, a run that hangs ends by itself.
        signal.setitimer(signal.ITIMER_REAL, alone_s or 0.0)
        outcome = work(unit)
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        now_s = _used_s()
        connection.send((outcome, now_s - used_s))
        used_s = now_s


def _used_s() -> float:
    """Return the CPU seconds of this process since it began."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def executor_on(on: str | None, jobs: int | None) -> UnitExecutor[Any, Any]:
    """Return the executor at the place that *on* names, of *jobs* workers at most.

    Raises ``ConfigInvalid`` for another place, and where the place is not installed.
    """
    if jobs is not None and (type(jobs) is not int or jobs < 1):
        raise ConfigInvalid(f"jobs is {shown(jobs)}; give how many processes, from 1 on.")
    if on not in {None, *PLACES}:
        raise ConfigInvalid(f"on is {shown(on)}; give one of {', '.join(PLACES)}.")
    if on != RAY:
        return LocalProcesses(jobs)
    require("ray", "--on ray")
    from tracepaper.replay.sweep.on_ray import OnRay

    return OnRay(jobs)


# ---------------------------------------------------------------- workers of another machine


def surroundings() -> dict[str, Any]:
    """Versions that each worker must share, and settings that it takes over of this process."""
    ours = {name: value for name, value in os.environ.items() if name.startswith("TRACEPAPER_")}
    return {
        "equal": {
            "tracepaper": code_version(),
            "the libraries": libraries(),
            "torch": importlib.metadata.version("torch"),
        },
        "environment": {of: ours[of] for of in ours if not of.startswith("TRACEPAPER_NOTIFY")},
        "folder": os.getcwd(),  # noqa: PTH109 - as text
        "path": list(sys.path),
    }


def taken_over(around: Mapping[str, Any], content: Callable[[], bytes]) -> tuple[Any, str]:
    """Return the pickled task of *content*, in a process that takes over *around*; else why not."""
    local = surroundings()
    for name, wanted in around["equal"].items():
        if (has := local["equal"][name]) != wanted:
            return None, f"{name} is {has} there and {wanted} here; install the same on every node."
    for name in local["environment"]:
        del os.environ[name]
    os.environ.update(around["environment"])
    sys.path.extend(folder for folder in around["path"] if folder not in sys.path)
    if Path(around["folder"]).is_dir():
        os.chdir(around["folder"])
    try:
        work: UnitWork[Any, Any] = pickle.loads(content())  # noqa: S301 - the driver's own
        work.check()
    except (ImportError, AttributeError, TracepaperError) as error:
        return None, str(error)
    return work, ""


# ---------------------------------------------------------------- functions as units of work


Say = Callable[[str], None]


class UnitOutcome(NamedTuple):
    """What a unit came to: its place among all, its value or error, and what it said."""

    place: int
    value: bytes = b""  # pickled, so that no tensor is shared by way of the other process
    error: TracepaperError | None = None
    sentences: tuple[str, ...] = ()
    is_refused: bool = False  # by the function itself, which would refuse it again


@dataclass(frozen=True)
class FunctionWork(UnitWork[tuple[int, U], UnitOutcome]):
    """A function of a unit, and of how to say a sentence, as the task of numbered units."""

    function: Callable[[U, Say], object]
    preload: Sequence[str] = ()

    def __call__(self, unit: tuple[int, U]) -> UnitOutcome:
        """Call the function."""
        place, given = unit
        sentences: list[str] = []
        try:
            return UnitOutcome(
                place, pickle.dumps(self.function(given, sentences.append)), None, tuple(sentences)
            )
        except TracepaperError as error:
            return UnitOutcome(place, b"", error, tuple(sentences), is_refused=True)

    def failed(self, unit: tuple[int, U], why: str) -> UnitOutcome:
        """Return that the unit came to nothing."""
        return UnitOutcome(unit[0], error=StrategyFailed(why))


@dataclass(frozen=True)
class Spread:
    """Calls a function for each unit by an executor; what units say is said as they end.

    What the function refuses ends it at once. Where a worker failed, the other units go on, and
    the error that names the unit is raised after them.
    """

    executor: UnitExecutor[Any, Any]
    preload: Sequence[str] = ()

    def __call__(
        self,
        function: Callable[[U, Say], R],
        units: Sequence[U],
        say: Say,
        keep: Callable[[int, R], None] = lambda _place, _value: None,
    ) -> list[R]:
        """Return the values in the order of *units*; *keep* is given each when it is there."""
        values: dict[int, R] = {}
        errors: list[TracepaperError] = []
        executor: UnitExecutor[tuple[int, U], UnitOutcome] = self.executor
        executor.open(FunctionWork(function, self.preload), None)
        try:
            for outcome in outcomes_of(executor, iter(enumerate(units))):
                for sentence in outcome.sentences:
                    say(sentence)
                if outcome.error is None:
                    values[outcome.place] = pickle.loads(outcome.value)  # noqa: S301 - our own process
                    keep(outcome.place, values[outcome.place])
                elif outcome.is_refused:
                    raise outcome.error
                else:
                    errors.append(
                        StrategyFailed(f"Part {outcome.place + 1} of {len(units)}: {outcome.error}")
                    )
                say(f"{len(values)} of {len(units)} done.")
        finally:
            executor.close()
        if errors:
            raise errors[0]
        return [values[place] for place in range(len(units))]
