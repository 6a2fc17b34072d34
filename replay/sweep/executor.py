"""Executors that run picklable units of work in this process, in others, or on other machines.

A unit is a run of a sweep, a fold of ``evaluate`` or a seed of ``train``. Each executor implements
``concurrent.futures.Executor`` and serves a single ``UnitWork``. The rules are docs/python.md, Y20,
and docs/scale.md, R1 to R9.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Final, Generic, ParamSpec, Self, TypeVar

from tracepaper.replay.checks.isolation import Child, FreshProcesses, Overdue
from tracepaper.strategies.errors import StrategyFailed, TracepaperError

P = ParamSpec("P")
U = TypeVar("U")
R = TypeVar("R")
W = TypeVar("W")

ENDED: Final = "Its process ended; let the class raise instead of exiting, or give it less memory."


class UnitFailed(StrategyFailed):
    """A unit has no result because its worker ended or was stopped; the other units continue."""


class UnitWork:
    """A picklable callable of one unit, sent once to each worker with all that the units share.

    It raises ``TracepaperError`` if a unit fails.
    """

    @property
    def preload(self) -> Sequence[str]:
        """Modules that each process needs, loaded once."""
        return ()

    def packed(self) -> Self:
        """Return a copy that contains the local files it reads, for workers on other machines."""
        return self

    def check(self) -> None:
        """Raise ``ConfigInvalid`` or ``DataInvalid`` if this worker lacks a file or a class."""

    def answer(self, unit: object) -> Any:  # noqa: ANN401 - the type depends on the work
        """Return the result of *unit*, or its error."""
        assert callable(self)
        try:
            return self(unit)
        except TracepaperError as error:
            return error


def too_long(limit_s: float) -> str:
    """Return the error message of a unit that exceeded its time limit."""
    return f"It took longer than {limit_s:g} s and was stopped; give a higher limit, or mend it."


@contextmanager
def limited(limit_s: float | None) -> Iterator[None]:
    """Raise ``UnitFailed`` after *limit_s* seconds; signals interrupt Python code only.

    Other threads than the main one receive no signals and are not limited.
    """
    if limit_s is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_signal: int, _frame: object) -> None:
        raise UnitFailed(too_long(limit_s))

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def results_of(
    executor: Executor, work: Callable[[U], R], units: Iterable[U], slots: int | None = None
) -> Iterator[tuple[U, R | UnitFailed]]:
    """Yield each of *units* with its result, in the order of completion.

    A unit is taken from *units* when a worker is free. The number of workers is ``executor.slots``;
    an executor without this attribute gets *slots* units at once.
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
    """Runs one unit after another in this process, for a class that no other process can import.

    ``limited`` enforces the time limit.
    """

    slots = 1

    def __init__(self, limit_s: float | None = None) -> None:
        self._limit_s = limit_s

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Run a unit now."""
        future = Future[R]()
        try:
            with limited(self._limit_s):
                future.set_result(fn(*args, **kwargs))
        except TracepaperError as error:
            future.set_exception(error)
        return future


class Workers(Executor, ABC, Generic[W]):
    """Workers that receive the work once and then units; a thread waits for each result."""

    def __init__(self, threads: int, limit_s: float | None) -> None:
        self.limit_s = limit_s
        self.is_closed = False
        self.idle: list[W] = []
        self._threads = ThreadPoolExecutor(threads)
        self.work: UnitWork | None = None

    @abstractmethod
    def open(self, work: UnitWork) -> None:
        """Prepare for units of *work*."""

    @abstractmethod
    def begin(self) -> W:
        """Return a new worker that has received the work."""

    @abstractmethod
    def ask(self, worker: W, unit: object) -> Any:  # noqa: ANN401 - the type depends on the work
        """Return the worker's answer; if there is none, end the worker and raise ``UnitFailed``."""

    @abstractmethod
    def close(self) -> None:
        """End every worker, including those that hang."""

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Start a unit; every unit must belong to the same work."""
        assert isinstance(fn, UnitWork)
        if self.work is None:
            self.work = fn
            self.open(fn)
        assert fn is self.work, "an executor serves a single work"
        (unit,) = args
        return self._threads.submit(self.carry_out, unit, **kwargs)

    def carry_out(self, unit: object) -> Any:  # noqa: ANN401 - the type depends on the work
        """Return a worker's result of *unit*, or raise its error."""
        worker = self.idle_worker() or self.begin()
        answer = self.ask(worker, unit)
        self.idle.append(worker)
        if isinstance(answer, TracepaperError):
            raise answer
        return answer

    def idle_worker(self) -> W | None:
        """Return an idle worker, if there is one."""
        with contextlib.suppress(IndexError):  # another thread may take the last one
            return self.idle.pop()
        return None

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = True) -> None:  # noqa: FBT001, FBT002 - as Executor has it
        """End running units and every worker."""
        self.is_closed = True
        self._threads.shutdown(wait=False, cancel_futures=cancel_futures)
        self.close()
        self._threads.shutdown(wait)


class LocalProcesses(Workers[Child]):
    """*jobs* processes on this machine, forked by a server that shares no memory with this process.

    A unit over its limit is killed with its process; a new process replaces it.
    """

    def __init__(self, jobs: int | None = None, limit_s: float | None = None) -> None:
        self.slots = jobs or max(1, len(os.sched_getaffinity(0)))
        self._fresh: FreshProcesses | None = None
        super().__init__(self.slots, limit_s)

    def open(self, work: UnitWork) -> None:
        """Start the fork server with the modules of ``work.preload``."""
        self._fresh = FreshProcesses(*work.preload).__enter__()

    def begin(self) -> Child:
        """Start a process for the work."""
        assert self._fresh is not None
        assert self.work is not None
        return self._fresh.child(serve, self.work)

    def ask(self, worker: Child, unit: object) -> Any:  # noqa: ANN401 - the type depends on the work
        """Return the answer of a process."""
        worker.send(unit)
        try:
            return pickle.loads(worker.receive(self.limit_s))  # noqa: S301 - our own process
        except Overdue:
            reason = too_long(self.limit_s or 0.0)
        except StrategyFailed:
            reason = ENDED
        worker.__exit__()
        raise UnitFailed(reason)

    def close(self) -> None:
        """End the server, and every process with it."""
        if self._fresh is not None:
            self._fresh.__exit__()
        for child in self.idle:
            child.__exit__()


def serve(line: Connection, work: UnitWork) -> None:
    """Run the units that arrive until the connection is closed: the body of one process."""
    while True:
        # Plain pickle copies tensors; the connection would share their memory.
        line.send(pickle.dumps(work.answer(line.recv())))


# ---------------------------------------------------------------- functions as units of work


Say = Callable[[str], None]


@dataclass(frozen=True)
class FunctionWork(UnitWork):
    """The work of ``Spread``: calls *function* with a unit and a function that reports progress."""

    function: Callable[[Any, Say], object]
    preload: Sequence[str] = ()

    def __call__(self, unit: tuple[int, Any]) -> tuple[Any, Sequence[str]]:
        """Return the function's value and the sentences that it reported."""
        sentences: list[str] = []
        return self.function(unit[1], sentences.append), sentences


@dataclass(frozen=True)
class Spread:
    """Calls a function for each unit on an executor; reports a unit's sentences when it ends.

    An error of the function is raised at once. If a worker fails, the other units continue, and the
    error that names the failed unit is raised at the end.
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
        """Return the values in the order of *units*; call *keep* with each as it completes."""
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
