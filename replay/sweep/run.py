"""``tracepaper.sweep``: runs the trials, in processes or here.

The rules are docs/python.md, Y10 to Y20.

Another place (a cluster, say) is another class with these four methods.
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
import signal
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from html import escape
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Final, Protocol

from tracepaper.daemon.clock import SystemClock
from tracepaper.daemon.config.loading import Sections
from tracepaper.daemon.session.user_class import is_importable, known_class
from tracepaper.daemon.session.user_code import ForeignCode
from tracepaper.replay import notebook
from tracepaper.replay.api import Backtest, paths_of, strategy_name
from tracepaper.replay.checks.isolation import Child, FreshProcesses
from tracepaper.replay.checks.lookahead import MODEL
from tracepaper.replay.dataframes import Library, frames_for
from tracepaper.replay.document.values import as_document
from tracepaper.replay.notebook import text_of
from tracepaper.replay.report import metrics
from tracepaper.replay.sweep.result import SweepResult, chosen
from tracepaper.replay.sweep.space import Objective, Sampler, Span, sampler_of
from tracepaper.replay.sweep.trial import (
    LIMIT_S,
    TEST,
    TRAIN,
    WHOLE,
    Cell,
    CellResult,
    SweepRequest,
    TookTooLong,
    Work,
    kept_database,
    limited,
    make,
    read_request,
    too_long,
)
from tracepaper.replay.sweep.views import show_sweep, sweep_document
from tracepaper.storage.sweeps import SweepFile, TrialRegistry
from tracepaper.strategies.errors import ConfigInvalid, StrategyFailed, TracepaperError, shown

ENDED: Final = "Its process ended; let the class raise instead of exiting, or give it less memory."
GRACE_S: Final = 10.0
"""Seconds after its limit at which a process ends by itself, where nobody is left to end it."""
WORKER: Final = "tracepaper.replay.sweep.run"


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


Progress = Callable[[int, int, "float | None"], None]
"""Told after each run: how many are done, of how many, and the best value so far."""


class Sweep(SweepResult):
    """A sweep that was made; printed, it says what is best and how much of that is luck."""

    def report(self, *, html: str | Path) -> None:
        """Write the sweep as one page that needs no network."""
        from tracepaper.replay.page.export import write_document_page

        write_document_page(sweep_document(self), Path(html))

    def __repr__(self) -> str:
        return text_of(lambda console: show_sweep(console, self))

    def _repr_html_(self) -> str:
        return f"<pre>{escape(repr(self))}</pre>"


def sweep(  # noqa: PLR0913 - the options of a sweep
    strategy: str | type | None,
    data: Any,  # noqa: ANN401 - as backtest takes it
    space: Mapping[str, Any],
    objective: Objective = "sharpe",
    *,
    params: Mapping[str, Any] | None = None,
    config: str | Path | Sections | None = None,
    sampler: str = "grid",
    trials: int | None = None,
    seed: int = 0,
    windows: Any = None,  # noqa: ANN401 - two lengths, as text or numbers
    direction: str | None = None,
    jobs: int | None = None,
    limit_s: float | None = LIMIT_S,
    state: str | Path | None = None,
    start: Any = None,  # noqa: ANN401 - as backtest takes it
    end: Any = None,  # noqa: ANN401 - as backtest takes it
    funding: str | Path | Sequence[str | Path] = (),
    frame_data: Any = None,  # noqa: ANN401 - as data
    depth: str | Path | Sequence[str | Path] = (),
    executor: SweepExecutor | None = None,
    frames: Library | None = None,
    progress: Progress | bool | None = None,
) -> Sweep:
    """Try the points of *space* on *data*; return every cell, the best, and how much is luck.

    *strategy*, *data*, *params*, *config*, *start*, *end*, *funding*, *frame_data* and *depth* are
    those of ``backtest``. *space*
    maps an option of the strategy, or ``section.key``, to a list of values, or to a range: (low,
    high), (low, high, step), or a dictionary with low, high, and step or log. *objective* is a
    figure's key (``sharpe``, ``return``, ``mean_day``, ``max_drawdown`` ...) or a function of the
    run. *sampler* is grid, random or tpe; of the last two *trials* points are drawn by *seed*.
    *windows*, ``"90d/30d"``, chooses on 90 days and reports on the 30 after them, over and over.
    *direction* is maximize or minimize, by default the figure's own. A run may take *limit_s*
    seconds. *state* is a file with which an interrupted sweep goes on. *frames* is the library of
    the result's frames, as ``backtest`` takes it. *progress* is told after each run how many are
    done, of how many, and the best value so far; a notebook shows a bar unless it is False.

    Raises ``ConfigInvalid`` or ``DataInvalid`` where nothing can be tried. What goes wrong in one
    run is that cell's ``error``.
    """
    made_of = strategy if isinstance(strategy, type) else None
    with known_class(made_of) as name:
        request = read_request(
            name or strategy_name(strategy), data, space, objective,
            made_of=made_of, params=params, config=config, sampler=sampler, trials=trials,
            seed=seed, windows=windows, direction=direction, limit_s=limit_s, start=start, end=end,
            funding=paths_of(funding, "funding"), frame_data=frame_data,
            depth=paths_of(depth, "depth"),
        )  # fmt: skip
    told, wanted = (progress, False) if callable(progress) else (None, progress)
    with notebook.progress("runs", wanted=wanted) as advance:
        return carry_out_sweep(
            replace(request, library=frames_for(data, frames)),
            executor or executor_for(request, jobs),
            state=None if state is None else Path(state),
            progress=told or (lambda done, of, _best: advance(done, of)),
        )


def executor_for(request: SweepRequest, jobs: int | None) -> SweepExecutor:
    """Return processes of this machine; this process alone where no other has the class."""
    if jobs is not None and (type(jobs) is not int or jobs < 1):
        raise ConfigInvalid(f"jobs is {shown(jobs)}; give how many processes, from 1 on.")
    made_of = request.work.made_of
    if made_of is not None and not is_importable(made_of):
        return InThisProcess()
    return LocalProcesses(jobs)


# ---------------------------------------------------------------- making the runs


def carry_out_sweep(
    request: SweepRequest,
    executor: SweepExecutor,
    *,
    state: Path | None,
    progress: Progress,
    registry: Path | None = None,
) -> Sweep:
    """Make every run that *state* does not hold yet, by *executor*; return the whole sweep."""
    with ExitStack() as stack:
        kept = stack.enter_context(SweepFile(state, request.header()))
        counted = stack.enter_context(TrialRegistry(registry))
        work = request.work
        if work.made_of is not None and is_importable(work.made_of):
            work = replace(work, made_of=None)  # each process imports it by its name
        if not isinstance(request.objective, str):
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="tracepaper-sweep-"))
            work = replace(work, kept_in=Path(folder))
        executor.open(work, request.limit_s)
        stack.callback(executor.close)
        made = _Maker(request, work, executor, kept, counted, progress)
        cells = made.all()
        sweep = Sweep(
            request=request,
            cells=tuple(cells),
            trials=counted.trials(request.data_sha256),
            registry=counted.path,
            state=state,
            made=made.count,
        )
        kept.keep_document(as_document(sweep_document(sweep)))
    return sweep


class _Maker:
    """Makes the runs of one sweep, span after span."""

    def __init__(
        self,
        request: SweepRequest,
        work: Work,
        executor: SweepExecutor,
        kept: SweepFile,
        registry: TrialRegistry,
        progress: Progress,
    ) -> None:
        self._request, self._work, self._executor = request, work, executor
        self._kept, self._registry, self._progress = kept, registry, progress
        self._wall_ms = SystemClock().wall_ms
        self.count = 0  # runs that were made now
        self._found = {key: _restored(key, content) for key, content in kept.cells()}
        self._best: float | None = None

    def all(self) -> list[CellResult]:
        """Return the cells of every span: those of its points, and of the best one's test."""
        request = self._request
        tested = sum(span.test_ms is not None for span in request.spans)
        points = self._sampler(0).count
        self._of = points * len(request.spans) + tested
        self._progress(len(self._found), self._of, None)
        for place, span in enumerate(request.spans):
            part = WHOLE if span.test_ms is None else TRAIN
            self._points(place, span, part)
            if span.test_ms is not None and (place, TEST, 0) not in self._found:
                tried = [of for of in self._found.values() if of.key[:2] == (place, TRAIN)]
                best = chosen(tried, maximize=request.maximize)
                if best is not None:
                    self._executor.submit(
                        Cell(place, TEST, 0, best.point, span.until_ms, span.test_ms)
                    )
                    self._take(self._executor.next(), None)
        order = {WHOLE: 0, TRAIN: 0, TEST: 1}
        return sorted(self._found.values(), key=lambda of: (of.span, order[of.part], of.number))

    def _sampler(self, place: int) -> Sampler:
        request = self._request
        return sampler_of(
            request.sampler,
            request.axes,
            trials=request.trials,
            # Every window tries the same points; TPE learns in each of its own.
            seed=request.seed + (place if request.sampler == "tpe" else 0),
            maximize=request.maximize,
        )

    def _points(self, place: int, span: Span, part: str) -> None:
        sampler, executor = self._sampler(place), self._executor
        known = {number for at, of, number in self._found if (at, of) == (place, part)}
        for number in sorted(known):
            result = self._found[place, part, number]
            sampler.tell(number, result.point, result.value)
            self._told(result)
        waiting = iter(number for number in range(sampler.count) if number not in known)
        outstanding = 0
        while True:
            while outstanding < executor.slots and (wanted := next(waiting, None)) is not None:
                point = sampler.ask(wanted)
                executor.submit(Cell(place, part, wanted, point, span.from_ms, span.until_ms))
                outstanding += 1
            if not outstanding:
                return
            self._take(executor.next(), sampler)
            outstanding -= 1

    def _take(self, raw: CellResult, sampler: Sampler | None) -> None:
        result = self._judged(raw)
        if sampler is not None:
            sampler.tell(result.number, result.point, result.value)
        self._count(result)
        self._kept.store(result.key, _stored(result))
        self._found[result.key] = result
        self.count += 1
        self._told(result)

    def _told(self, result: CellResult) -> None:
        value = result.value
        if value is not None and result.part != TEST:
            better = max if self._request.maximize else min
            self._best = value if self._best is None else better(self._best, value)
        done = len(self._found)
        self._progress(done, self._of, self._best)

    def _judged(self, raw: CellResult) -> CellResult:
        """Return *raw* with the objective's value, or with the sentence of why there is none."""
        if raw.error:
            return raw
        of = self._request.objective
        if isinstance(of, str):
            value = raw.figures[of]
            if value is None:
                return replace(
                    raw, error=f"The run has no {of}: nothing varied, or it did not trade."
                )
            return replace(raw, value=float(value))
        try:
            return replace(raw, value=self._value(of, raw), run_id="")
        except TracepaperError as error:
            return replace(raw, error=str(error), run_id="")

    def _value(self, of: Callable[[Backtest], float], raw: CellResult) -> float:
        """Return the objective of the run of *raw*; remove its record then."""
        name, database = self._request.objective_name, kept_database(self._work, raw)
        try:
            with limited(self._request.limit_s), ForeignCode(name, "as the objective"):
                value: Any = of(Backtest(database, raw.run_id, self._request.work.made_of))
        finally:
            for left in database.parent.glob(f"{database.name}*"):
                if left.is_file():
                    left.unlink()
        if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise StrategyFailed(f"The objective returned {shown(value)}; return a number.")
        if not math.isfinite(value):
            raise StrategyFailed(f"The objective returned {value}; return a finite number.")
        return float(value)

    def _count(self, result: CellResult) -> None:
        """Count the trial over all sweeps on these data; a run that failed tried nothing."""
        if not result.config_sha256:
            return
        self._registry.add(
            self._request.data_sha256,
            result.trial_sha256,
            strategy=self._request.work.strategy or "",
            sharpe_day=metrics.sharpe(result.daily, 1.0),
            days=result.figures.get("days"),
            at_ms=self._wall_ms(),
        )


def _stored(result: CellResult) -> dict[str, Any]:
    names = ("point", "value", "error", "figures", "daily", "config_sha256", "strategy_sha256",
             "model_sha256", "seconds")  # fmt: skip
    return {name: getattr(result, name) for name in names}


def _restored(key: tuple[int, str, int], content: Mapping[str, Any]) -> CellResult:
    return CellResult(*key, **{**content, "daily": tuple(content["daily"])})
