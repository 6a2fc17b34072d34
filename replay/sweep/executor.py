"""Executors: units of work that can be pickled, carried out here, in processes or elsewhere.

A sweep's runs, the folds of ``evaluate`` and the seeds of ``train`` are such units. Each executor
is one of ``concurrent.futures``, for one work alone. The rules are docs/python.md, Y20, and
docs/scale.md, R1 to R9.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import pickle
import signal
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import connection
from pathlib import Path
from typing import Any, Final, Generic, NamedTuple, ParamSpec, Self, TypeVar

from tracepaper.daemon.session.run_row import code_version, libraries
from tracepaper.replay.checks.isolation import Child, FreshProcesses
from tracepaper.strategies.errors import (
    ConfigInvalid,
    StrategyFailed,
    TracepaperError,
    shown,
)
from tracepaper.strategies.extras import require

P = ParamSpec("P")
U = TypeVar("U")
R = TypeVar("R")
W = TypeVar("W")

ENDED: Final = "Its process ended; let the class raise instead of exiting, or give it less memory."
GRACE_S: Final = 10.0
"""Seconds after its limit at which a process ends by itself, where nobody is left to end it."""
LOCAL: Final = "local"
RAY: Final = "ray"
PLACES: Final = (LOCAL, RAY)
"""What ``--on`` names."""


class UnitFailed(StrategyFailed):
    """A unit came to nothing, for its worker ended or was stopped; the others go on."""


class UnitWork:
    """What units of work share, a callable of one unit: handed to each worker once.

    It can be pickled, and raises ``TracepaperError`` for what is wrong with a unit.
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

    def answer(self, unit: object) -> Any:  # noqa: ANN401 - whatever it makes
        """Return what it makes of *unit*, or its error."""
        assert callable(self)
        try:
            return self(unit)
        except TracepaperError as error:
            return error


def too_long(limit_s: float) -> str:
    """Return the sentence of a unit that was stopped."""
    return f"It took longer than {limit_s:g} s and was stopped; give a higher limit, or mend it."


@contextmanager
def limited(limit_s: float | None) -> Iterator[None]:
    """Raise ``UnitFailed`` after *limit_s* of Python code; only in the main thread of a process.

    Elsewhere a thread cannot be stopped, and nothing is limited.
    """
    if limit_s is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_signal: int, _frame: object) -> None:
        raise UnitFailed(too_long(limit_s))

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def results_of(
    executor: Executor, work: Callable[[U], R], units: Iterable[U], slots: int | None = None
) -> Iterator[tuple[U, R | UnitFailed]]:
    """Yield each of *units* with what it came to, as they end.

    One is taken when a worker is free, of which an executor has ``slots``, or else *slots*.
    """
    waiting, futures = iter(units), dict[Future[R], U]()
    while True:
        while not futures or len(futures) < getattr(executor, "slots", slots or 1):
            if (unit := next(waiting, None)) is None:
                break
            futures[executor.submit(work, unit)] = unit
        if not futures:
            return
        future = wait(futures, return_when=FIRST_COMPLETED).done.pop()
        unit, result = futures.pop(future), future.exception()
        yield unit, result if isinstance(result, UnitFailed) else future.result()


class InThisProcess(Executor):
    """One unit after another, in this process: for a class that no other process can import.

    A unit is stopped at its limit where this is the main thread and the class is Python.
    """

    slots = 1

    def __init__(self, limit_s: float | None = None) -> None:
        self._limit_s = limit_s

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Carry out a unit now."""
        future = Future[R]()
        try:
            with limited(self._limit_s):
                future.set_result(fn(*args, **kwargs))
        except TracepaperError as error:
            future.set_exception(error)
        return future


class Workers(Executor, ABC, Generic[W]):
    """Workers, each handed the work and then unit after unit; a thread waits for each answer."""

    def __init__(self, threads: int, limit_s: float | None) -> None:
        self.limit_s = limit_s
        self.is_closed = False
        self.idle: list[W] = []
        self._threads = ThreadPoolExecutor(threads)
        self._work: UnitWork | None = None

    @abstractmethod
    def open(self, work: UnitWork) -> None:
        """Get ready for units of *work*."""

    @abstractmethod
    def begin(self) -> W:
        """Return a new worker, which has the work."""

    @abstractmethod
    def ask(self, worker: W, unit: object) -> Any:  # noqa: ANN401 - whatever the work makes
        """Return the worker's answer; end the worker, and raise ``UnitFailed``, without one."""

    @abstractmethod
    def close(self) -> None:
        """End every worker, also one that hangs."""

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Begin a unit of the one work."""
        assert isinstance(fn, UnitWork)
        if self._work is None:
            self.open(fn)
            self._work = fn
        assert fn is self._work, "an executor carries out one work"
        return self._threads.submit(self.carry_out, *args, **kwargs)

    def carry_out(self, unit: object) -> Any:  # noqa: ANN401 - whatever the work makes
        """Return what a worker makes of *unit*; raise its error."""
        worker = self.idle_worker() or self.begin()
        answer = self.ask(worker, unit)
        self.idle.append(worker)
        if isinstance(answer, TracepaperError):
            raise answer
        return answer

    def idle_worker(self) -> W | None:
        """Return a worker that has nothing to do, if there is one."""
        with contextlib.suppress(IndexError):  # another thread may take the last one
            return self.idle.pop()
        return None

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = True) -> None:  # noqa: FBT001, FBT002 - as Executor has it
        """End what is going on and leave nothing behind."""
        self.is_closed = True
        self._threads.shutdown(wait=False, cancel_futures=cancel_futures)
        self.close()
        self._threads.shutdown(wait)


class LocalWorker(NamedTuple):
    """One process: its id, and our end of the line."""

    pid: int
    child: Child
    line: AbstractContextManager[Child]


class LocalProcesses(Workers[LocalWorker]):
    """*jobs* processes of this machine.

    They come from a server that is started by ``exec``, so nothing of this process is in them. A
    unit that is over its limit ends with its process, and another takes its place.
    """

    def __init__(self, jobs: int | None = None, limit_s: float | None = None) -> None:
        self.slots = jobs or max(1, len(os.sched_getaffinity(0)))
        self._fresh: FreshProcesses | None = None
        super().__init__(self.slots, limit_s)

    def open(self, work: UnitWork) -> None:
        """Start the server, with what every process needs; they come with the first units."""
        self._fresh = FreshProcesses(*work.preload).__enter__()
        self._given = work, None if self.limit_s is None else self.limit_s + GRACE_S

    def begin(self) -> LocalWorker:
        """Start a process."""
        assert self._fresh is not None
        line = self._fresh.child(serve)
        child = line.__enter__()
        worker = LocalWorker(child.receive(), child, line)
        child.send(self._given)
        return worker

    def ask(self, worker: LocalWorker, unit: object) -> Any:  # noqa: ANN401 - whatever the work makes
        """Return the answer of a process."""
        worker.child.send(unit)
        try:
            if connection.wait([worker.child.fileno()], self.limit_s):
                return pickle.loads(worker.child.receive())  # noqa: S301 - our own process
            why = too_long(self.limit_s or 0.0)
        except StrategyFailed:
            why = ENDED
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGKILL)
        worker.line.__exit__(None, None, None)
        raise UnitFailed(why)

    def close(self) -> None:
        """End the server, and every process with it."""
        if self._fresh is not None:
            self._fresh.__exit__()
        for worker in self.idle:
            worker.line.__exit__(None, None, None)


def serve(line: connection.Connection) -> None:
    """Carry out the units that arrive until the line is closed: the body of one process."""
    line.send(os.getpid())
    work: UnitWork
    alone_s: float | None
    work, alone_s = line.recv()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    while True:
        unit = line.recv()
        # Should this process outlive who would stop it, a run that hangs ends by itself.
        signal.setitimer(signal.ITIMER_REAL, alone_s or 0.0)
        # Pickled, so that no tensor is shared by way of the other process.
        answer = pickle.dumps(work.answer(unit))
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        line.send(answer)


def executor_on(on: str | None, jobs: int | None) -> Callable[..., Executor]:
    """Return what makes, by its ``limit_s``, an executor at the place that *on* names.

    It has *jobs* workers at most. Raises ``ConfigInvalid`` for another place, and where the place
    is not installed.
    """
    if jobs is not None and (type(jobs) is not int or jobs < 1):
        raise ConfigInvalid(f"jobs is {shown(jobs)}; give how many processes, from 1 on.")
    if on not in {None, *PLACES}:
        raise ConfigInvalid(f"on is {shown(on)}; give one of {', '.join(PLACES)}.")
    if on != RAY:
        return partial(LocalProcesses, jobs)
    require("ray", "--on ray")
    from tracepaper.replay.sweep.on_ray import OnRay

    return partial(OnRay, jobs)


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
        work: UnitWork = pickle.loads(content())  # noqa: S301 - the driver's own
        work.check()
    except (ImportError, AttributeError, TracepaperError) as error:
        return None, str(error)
    return work, ""


# ---------------------------------------------------------------- functions as units of work


Say = Callable[[str], None]


@dataclass(frozen=True)
class FunctionWork(UnitWork):
    """A function of a unit, and of how to say a sentence, as the work of numbered units."""

    function: Callable[[Any, Say], object]
    preload: Sequence[str] = ()

    def __call__(self, unit: tuple[int, Any]) -> tuple[Any, Sequence[str]]:
        """Return the function's value, and what it said."""
        sentences: list[str] = []
        return self.function(unit[1], sentences.append), sentences


@dataclass(frozen=True)
class Spread:
    """Calls a function for each unit by an executor; what units say is said as they end.

    What the function refuses ends it at once. Where a worker failed, the other units go on, and
    the error that names the unit is raised after them.
    """

    executor: Callable[[], Executor]
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
        errors: list[StrategyFailed] = []
        work = FunctionWork(function, self.preload)
        with self.executor() as executor:
            for (place, _), result in results_of(executor, work, enumerate(units)):
                if isinstance(result, UnitFailed):
                    error = f"Part {place + 1} of {len(units)}: {result}"
                    errors.append(StrategyFailed(error))
                else:
                    values[place], sentences = result
                    for sentence in sentences:
                        say(sentence)
                    keep(place, values[place])
                say(f"{len(values)} of {len(units)} done.")
        if errors:
            raise errors[0]
        return [values[place] for place in range(len(units))]
