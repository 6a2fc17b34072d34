"""``tracepaper.sweep``: runs the trials on an executor, stores and counts them.

The rules are docs/python.md, Y10 to Y20.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tracepaper.daemon.clock import SystemClock
from tracepaper.daemon.config.loading import Sections
from tracepaper.daemon.session.user_class import is_importable, known_class
from tracepaper.daemon.session.user_code import ForeignCode
from tracepaper.replay import notebook
from tracepaper.replay.backtest.run_spec import Consumer, spec_of
from tracepaper.replay.backtest.strategy_keys import check_current, strategy_name
from tracepaper.replay.dataframes import Library, frames_for
from tracepaper.replay.document.values import as_document
from tracepaper.replay.report import metrics
from tracepaper.replay.run import Run
from tracepaper.replay.sweep.executor import InThisProcess, UnitFailed, limited, results_of
from tracepaper.replay.sweep.places import RAY, executor_on
from tracepaper.replay.sweep.result import Sweep, best_of, sweep_document
from tracepaper.replay.sweep.space import Objective, Sampler, Span, sampler_of
from tracepaper.replay.sweep.trial import (
    LIMIT_S,
    TEST,
    TRAIN,
    WHOLE,
    Cell,
    CellResult,
    Search,
    SweepRequest,
    Work,
    read_request,
    record_path,
)
from tracepaper.storage.paths import path_of
from tracepaper.storage.sweeps import SweepFile, TrialRegistry
from tracepaper.strategies.errors import ConfigInvalid, StrategyFailed, TracepaperError, shown

Progress = Callable[[int, int, "float | None"], None]
"""Called after each run with the number done, the total, and the best value so far."""


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
    windows: str | None = None,
    direction: str | None = None,
    jobs: int | None = None,
    limit_s: float | None = LIMIT_S,
    state: str | Path | None = None,
    start: Any = None,  # noqa: ANN401 - as backtest takes it
    end: Any = None,  # noqa: ANN401 - as backtest takes it
    funding: str | Path | Sequence[str | Path] = (),
    frame_data: Any = None,  # noqa: ANN401 - as data
    columns: Mapping[str, str | None] | None = None,
    depth: str | Path | Sequence[str | Path] = (),
    events: str | Path | Sequence[str | Path] = (),
    on: str | None = None,
    executor: Executor | None = None,
    frames: Library | None = None,
    progress: Progress | bool | None = None,
) -> Sweep:
    """Try the points of *space* on *data*; return every result, the best, and the estimate of luck.

    *strategy*, *data*, *params*, *config*, *start*, *end*, *funding*, *frame_data*, *columns*,
    *depth* and *events* are those of ``backtest``. *space* maps an option of the
    strategy, or ``section.key``, to a list of values, or to a range: (low, high), (low, high,
    step), or a dictionary with low, high, and step or log. *objective* is a figure's key
    (``sharpe``, ``return``, ``mean_day``, ``max_drawdown`` ...) or a function of the run. *sampler*
    is grid, random or tpe; the last two draw *trials* points by *seed*. *windows*, ``"90d/30d"``,
    chooses on 90 days, tests on the next 30, and moves on by 30; ``"90d/30d/2d"`` leaves two days
    between them out. *direction* is maximize or
    minimize, by default as the figure needs. A run may take *limit_s* seconds. *state* is a file
    from which an interrupted sweep continues. *on* is local (processes) or ray; another *executor*
    of ``concurrent.futures`` gets *jobs* runs at once. *frames* is the library of the result's
    frames, as ``backtest`` takes it. *progress* is called after each run with the number done, the
    total, and the best value; a notebook shows a bar unless it is False.

    Raises ``ConfigInvalid`` or ``DataInvalid`` if no point can be tried. The error of one run is
    the ``error`` of its cell.
    """
    spec = spec_of(Consumer.PYTHON_SWEEP, locals())
    local_class = strategy if isinstance(strategy, type) else None
    if local_class is not None:
        check_current(local_class)
    with known_class(local_class) as name:
        request = read_request(
            spec,
            space,
            objective,
            Search(sampler, trials, seed, windows, direction, limit_s),
            strategy=name or strategy_name(strategy),
            params=params,
            local_class=local_class,
        )
    callback, wanted = (progress, False) if callable(progress) else (None, progress)
    context = executor_for(request, jobs, on) if executor is None else nullcontext(executor)
    with notebook.progress("runs", wanted=wanted) as advance, context as open_executor:
        return carry_out_sweep(
            replace(request, library=frames_for(data, frames)),
            open_executor,
            jobs=jobs,
            state=None if state is None else path_of(state),
            progress=callback or (lambda done, total, _best: advance(done, total)),
        )


def executor_for(request: SweepRequest, jobs: int | None, on: str | None = None) -> Executor:
    """Return the executor at *on*, or this process if no other can import the class."""
    make, limit_s = executor_on(on, jobs), request.search.limit_s
    local_class = request.work.local_class
    if local_class is None or is_importable(local_class):
        return make(limit_s)
    if on == RAY:
        raise ConfigInvalid(
            f"No worker can import {local_class.__qualname__}, which {local_class.__module__} "
            "defines here alone; put the class into a module, or leave on='ray' out."
        )
    return InThisProcess(limit_s)


# ---------------------------------------------------------------- running the cells


def carry_out_sweep(
    request: SweepRequest,
    executor: Executor,
    *,
    jobs: int | None = None,
    state: Path | None,
    progress: Progress,
) -> Sweep:
    """Run on *executor* every cell that *state* does not contain; return the sweep."""
    with ExitStack() as stack:
        kept = stack.enter_context(SweepFile(state, request.header()))
        registry = stack.enter_context(TrialRegistry())
        work = request.work
        if work.local_class is not None and is_importable(work.local_class):
            work = replace(work, local_class=None)  # each process imports it by its name
        if not isinstance(request.objective, str):
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="tracepaper-sweep-"))
            work = replace(work, record_folder=Path(folder))
        runner = _Runner(
            request, work, partial(results_of, executor, work, slots=jobs), kept, registry, progress
        )
        cells = runner.run()
        sweep = Sweep(
            request=request,
            cells=tuple(cells),
            trials=registry.trials(request.tried),
            registry=registry.path,
            state=state,
            new_runs=runner.count,
        )
        kept.keep_document(as_document(sweep_document(sweep)))
    return sweep


class _Runner:
    """Runs the cells of one sweep, span after span."""

    def __init__(
        self,
        request: SweepRequest,
        work: Work,
        results: Callable[[Iterable[Cell]], Iterator[tuple[Cell, CellResult | UnitFailed]]],
        kept: SweepFile,
        registry: TrialRegistry,
        progress: Progress,
    ) -> None:
        self._request, self._work, self._results = request, work, results
        self._kept, self._registry, self._progress = kept, registry, progress
        self._wall_ms = SystemClock().wall_ms
        self.count = 0  # runs of this call
        self._cells = {key: _restored(key, content) for key, content in kept.cells()}
        self._best: float | None = None

    def run(self) -> list[CellResult]:
        """Return the cells of every span: one per point, and the test of the best one."""
        request = self._request
        tests = sum(span.test_ms is not None for span in request.spans)
        points = self._sampler(0).count
        self._total = points * len(request.spans) + tests
        self._progress(len(self._cells), self._total, None)
        for place, span in enumerate(request.spans):
            part = WHOLE if span.test_ms is None else TRAIN
            self._points(place, span, part)
            if span.test_ms is not None and (place, TEST, 0) not in self._cells:
                tried = [cell for cell in self._cells.values() if cell.key[:2] == (place, TRAIN)]
                best = best_of(tried, maximize=request.maximize)
                if best is not None:
                    test = Cell(place, TEST, 0, best.point, span.tested_ms, span.test_ms)
                    for _, result in self._results([test]):
                        self._store(test, result, None)
        return sorted(
            self._cells.values(), key=lambda cell: (cell.span, cell.part == TEST, cell.number)
        )

    def _sampler(self, place: int) -> Sampler:
        request, search = self._request, self._request.search
        return sampler_of(
            search.sampler,
            request.axes,
            trials=search.trials,
            # Every window tries the same points, except with TPE, which learns in each window.
            seed=search.seed + (place if search.sampler == "tpe" else 0),
            maximize=request.maximize,
        )

    def _points(self, place: int, span: Span, part: str) -> None:
        sampler = self._sampler(place)
        done = {key[2] for key in self._cells if key[:2] == (place, part)}
        for number in sorted(done):
            result = self._cells[place, part, number]
            sampler.tell(number, result.point, result.value)
            self._report(result)
        waiting = (
            Cell(place, part, number, sampler.ask(number), span.from_ms, span.until_ms)
            for number in range(sampler.count)
            if number not in done
        )
        for cell, raw in self._results(waiting):
            self._store(cell, raw, sampler)

    def _store(self, cell: Cell, raw: CellResult | UnitFailed, sampler: Sampler | None) -> None:
        if isinstance(raw, UnitFailed):
            raw = CellResult(*cell[:4], error=str(raw))
        result = self._with_value(raw)
        if sampler is not None:
            sampler.tell(result.number, result.point, result.value)
        self._count(result)
        self._kept.store(result.key, _stored(result))
        self._cells[result.key] = result
        self.count += 1
        self._report(result)

    def _report(self, result: CellResult) -> None:
        value = result.value
        if value is not None and result.part != TEST:
            better = max if self._request.maximize else min
            self._best = value if self._best is None else better(self._best, value)
        self._progress(len(self._cells), self._total, self._best)

    def _with_value(self, raw: CellResult) -> CellResult:
        """Return *raw* with the value of the objective, or with the error that prevents it."""
        if raw.error:
            return raw
        objective = self._request.objective
        if isinstance(objective, str):
            value = raw.figures[objective]
            if value is None:
                error = f"The run has no {objective}: nothing varied, or it did not trade."
                return replace(raw, error=error)
            return replace(raw, value=float(value))
        try:
            return replace(raw, value=self._value(objective, raw), run_id="")
        except TracepaperError as error:
            return replace(raw, error=str(error), run_id="")

    def _value(self, objective: Callable[[Run[Any]], float], raw: CellResult) -> float:
        """Return the objective of the run of *raw*, and delete the run's record."""
        local_class = self._request.work.local_class
        classes = () if local_class is None else (local_class,)
        name, database = self._request.objective_name, record_path(self._work, raw)
        try:
            with limited(self._request.search.limit_s), ForeignCode(name, "as the objective"):
                value: Any = objective(Run(database, raw.run_id, classes))
        finally:
            for path in database.parent.glob(f"{database.name}*"):
                if path.is_file():
                    path.unlink()
        if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
            value = value.item()
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value):
            raise StrategyFailed(f"The objective returned {shown(value)}; return a finite number.")
        return float(value)

    def _count(self, result: CellResult) -> None:
        """Count the trial over all sweeps on these data; a run that failed is no trial."""
        if not result.config_sha256:
            return
        self._registry.add(
            self._request.tried,
            result.trial_sha256,
            strategy=self._request.work.strategy,
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
