"""``tracepaper.sweep``: runs the trials by an executor, keeps and counts them.

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
from tracepaper.replay.api import Backtest
from tracepaper.replay.backtest.run_spec import Consumer, spec_of
from tracepaper.replay.backtest.strategy_keys import strategy_name
from tracepaper.replay.dataframes import Library, frames_for
from tracepaper.replay.document.values import as_document
from tracepaper.replay.report import metrics
from tracepaper.replay.sweep.executor import (
    RAY,
    InThisProcess,
    UnitFailed,
    executor_on,
    limited,
    results_of,
)
from tracepaper.replay.sweep.result import Sweep, chosen
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
    kept_database,
    read_request,
)
from tracepaper.replay.sweep.views import sweep_document
from tracepaper.storage.sweeps import SweepFile, TrialRegistry
from tracepaper.strategies.errors import ConfigInvalid, StrategyFailed, TracepaperError, shown

Progress = Callable[[int, int, "float | None"], None]
"""Told after each run: how many are done, of how many, and the best value so far."""


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
    actions: str | Path | Sequence[str | Path] = (),
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

    *strategy*, *data*, *params*, *config*, *start*, *end*, *funding*, *actions*, *frame_data*,
    *columns*, *depth* and *events* are those of ``backtest``. *space* maps an option of the
    strategy, or ``section.key``, to a list of values, or to a range: (low, high), (low, high,
    step), or a dictionary with low, high, and step or log. *objective* is a figure's key
    (``sharpe``, ``return``, ``mean_day``, ``max_drawdown`` ...) or a function of the run. *sampler*
    is grid, random or tpe; the last two draw *trials* points by *seed*. *windows*, ``"90d/30d"``,
    chooses on 90 days, tests on the next 30, and moves on by 30. *direction* is maximize or
    minimize, by default as the figure needs. A run may take *limit_s* seconds. *state* is a file
    from which an interrupted sweep continues. *on* is local (processes) or ray; another *executor*
    of ``concurrent.futures`` gets *jobs* runs at once. *frames* is the library of the result's
    frames, as ``backtest`` takes it. *progress* is called after each run with the number done, the
    total, and the best value; a notebook shows a bar unless it is False.

    Raises ``ConfigInvalid`` or ``DataInvalid`` if no point can be tried. The error of one run is
    the ``error`` of its cell.
    """
    spec = spec_of(Consumer.PYTHON_SWEEP, locals())
    made_of = strategy if isinstance(strategy, type) else None
    with known_class(made_of) as name:
        request = read_request(
            spec,
            space,
            objective,
            Search(sampler, trials, seed, windows, direction, limit_s),
            strategy=name or strategy_name(strategy),
            params=params,
            made_of=made_of,
        )
    callback, wanted = (progress, False) if callable(progress) else (None, progress)
    used = executor_for(request, jobs, on) if executor is None else nullcontext(executor)
    with notebook.progress("runs", wanted=wanted) as advance, used as chosen_executor:
        return carry_out_sweep(
            replace(request, library=frames_for(data, frames)),
            chosen_executor,
            jobs=jobs,
            state=None if state is None else Path(state),
            progress=callback or (lambda done, of, _best: advance(done, of)),
        )


def executor_for(request: SweepRequest, jobs: int | None, on: str | None = None) -> Executor:
    """Return the executor that *on* names; this process alone where no other has the class."""
    make, limit_s = executor_on(on, jobs), request.search.limit_s
    made_of = request.work.made_of
    if made_of is None or is_importable(made_of):
        return make(limit_s)
    if on == RAY:
        raise ConfigInvalid(
            f"No worker can import {made_of.__qualname__}, which {made_of.__module__} defines here "
            "alone; put the class into a module, or leave on='ray' out."
        )
    return InThisProcess(limit_s)


# ---------------------------------------------------------------- making the runs


def carry_out_sweep(
    request: SweepRequest,
    executor: Executor,
    *,
    jobs: int | None = None,
    state: Path | None,
    progress: Progress,
) -> Sweep:
    """Make every run that *state* does not hold yet, by *executor*; return the whole sweep."""
    with ExitStack() as stack:
        kept = stack.enter_context(SweepFile(state, request.header()))
        counted = stack.enter_context(TrialRegistry())
        work = request.work
        if work.made_of is not None and is_importable(work.made_of):
            work = replace(work, made_of=None)  # each process imports it by its name
        if not isinstance(request.objective, str):
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="tracepaper-sweep-"))
            work = replace(work, kept_in=Path(folder))
        maker = _Maker(
            request, work, partial(results_of, executor, work, slots=jobs), kept, counted, progress
        )
        cells = maker.all()
        sweep = Sweep(
            request=request,
            cells=tuple(cells),
            trials=counted.trials(request.data_sha256),
            registry=counted.path,
            state=state,
            new_runs=maker.count,
        )
        kept.keep_document(as_document(sweep_document(sweep)))
    return sweep


class _Maker:
    """Makes the runs of one sweep, span after span."""

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
        self.count = 0  # runs that were made now
        self._cells = {key: _restored(key, content) for key, content in kept.cells()}
        self._best: float | None = None

    def all(self) -> list[CellResult]:
        """Return the cells of every span: those of its points, and of the best one's test."""
        request = self._request
        tested = sum(span.test_ms is not None for span in request.spans)
        points = self._sampler(0).count
        self._of = points * len(request.spans) + tested
        self._progress(len(self._cells), self._of, None)
        for place, span in enumerate(request.spans):
            part = WHOLE if span.test_ms is None else TRAIN
            self._points(place, span, part)
            if span.test_ms is not None and (place, TEST, 0) not in self._cells:
                tried = [of for of in self._cells.values() if of.key[:2] == (place, TRAIN)]
                best = chosen(tried, maximize=request.maximize)
                if best is not None:
                    cell = Cell(place, TEST, 0, best.point, span.until_ms, span.test_ms)
                    for _, result in self._results([cell]):
                        self._take(cell, result, None)
        order = {WHOLE: 0, TRAIN: 0, TEST: 1}
        return sorted(self._cells.values(), key=lambda of: (of.span, order[of.part], of.number))

    def _sampler(self, place: int) -> Sampler:
        request, search = self._request, self._request.search
        return sampler_of(
            search.sampler,
            request.axes,
            trials=search.trials,
            # Every window tries the same points; TPE learns in each of its own.
            seed=search.seed + (place if search.sampler == "tpe" else 0),
            maximize=request.maximize,
        )

    def _points(self, place: int, span: Span, part: str) -> None:
        sampler = self._sampler(place)
        done = {number for at, of, number in self._cells if (at, of) == (place, part)}
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
            self._take(cell, raw, sampler)

    def _take(self, cell: Cell, raw: CellResult | UnitFailed, sampler: Sampler | None) -> None:
        if isinstance(raw, UnitFailed):
            raw = CellResult(*cell[:4], error=str(raw))
        result = self._judged(raw)
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
        done = len(self._cells)
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
        made_of = self._request.work.made_of
        classes = () if made_of is None else (made_of,)
        name, database = self._request.objective_name, kept_database(self._work, raw)
        try:
            with limited(self._request.search.limit_s), ForeignCode(name, "as the objective"):
                value: Any = of(Backtest(database, raw.run_id, classes))
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
