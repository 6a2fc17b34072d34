"""``tracepaper.sweep``: every point of a space, or points that are drawn, over the same data.

The rules are docs/python.md, Y10 to Y20.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from tracepaper.daemon.clock import SystemClock
from tracepaper.daemon.config.loading import Sections, load
from tracepaper.daemon.session.run_record import code_version
from tracepaper.daemon.session.user_class import (
    ForeignCode,
    class_sha256,
    is_importable,
    known_class,
    user_class,
)
from tracepaper.replay.archive import Candles, read_candles, read_funding
from tracepaper.replay.archive.times import instant
from tracepaper.replay.backtest.build import read_market
from tracepaper.replay.python import (
    Backtest,
    configured,
    data_of,
    moment_of,
    plain_values,
    strategy_name,
)
from tracepaper.replay.report import metrics
from tracepaper.replay.sweep.cell import (
    TEST,
    TRAIN,
    WHOLE,
    Cell,
    CellResult,
    Work,
    kept_database,
    limited,
)
from tracepaper.replay.sweep.executors import InThisProcess, LocalProcesses, SweepExecutor
from tracepaper.replay.sweep.objectives import OF_A_YEAR, Objective, objective_of
from tracepaper.replay.sweep.result import Sweep, chosen
from tracepaper.replay.sweep.samplers import Sampler, sampler_of
from tracepaper.replay.sweep.space import Axis, space_of
from tracepaper.replay.sweep.spans import Span, bounds, walk
from tracepaper.storage.sweeps import SweepFile, TrialRegistry
from tracepaper.strategies.errors import ConfigInvalid, StrategyFailed, TracepaperError, shown
from tracepaper.strategies.market import DAY_MS

LIMIT_S: Final = 600.0
"""Seconds that one run may take unless another limit is given."""

Progress = Callable[[int, int, "float | None"], None]
"""Told after each run: how many are done, of how many, and the best value so far."""


@dataclass(frozen=True)
class SweepRequest:
    """What one sweep is to try; the arguments of ``tracepaper.sweep``, read."""

    work: Work
    paths: tuple[str, ...] | None  # of the data, where all of them are paths
    axes: tuple[Axis, ...]
    objective: Objective
    maximize: bool
    sampler: str
    trials: int | None
    seed: int
    spans: tuple[Span, ...]
    days: float
    limit_s: float | None
    start: str | None = None
    end: str | None = None
    funding: tuple[Path, ...] = ()
    data_sha256: str = ""

    @property
    def objective_name(self) -> str:
        """The figure's key, or the function's name."""
        of = self.objective
        return of if isinstance(of, str) else getattr(of, "__name__", type(of).__name__)

    def header(self) -> dict[str, Any]:
        """Return what decides every cell: a sweep goes on only with an equal one."""
        of = self.work.strategy
        own = of is not None and ":" in of
        with known_class(self.work.made_of):
            made_of = class_sha256(user_class(str(of))) if own else ""
        return {
            "strategy": of or "",
            "source_of_the_class": made_of,
            "data": self.data_sha256,
            "space": {axis.name: axis.document() for axis in self.axes},
            "params": dict(self.work.params),
            "configuration": load(self.work.config).document(),
            "objective": self.objective_name,
            "direction": "maximize" if self.maximize else "minimize",
            "sampler": self.sampler,
            "seed": self.seed,
            "spans": [list(span) for span in self.spans],
            "code": code_version(),
        }


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
    funding: Sequence[str | Path] = (),
    frame_data: Any = None,  # noqa: ANN401 - as data
    executor: SweepExecutor | None = None,
    progress: Progress | None = None,
) -> Sweep:
    """Try the points of *space* on *data*; return every cell, the best, and how much is luck.

    *strategy*, *data*, *params*, *config*, *start*, *end*, *funding* and *frame_data* are those of
    ``backtest``. *space*
    maps an option of the strategy, or ``section.key``, to a list of values, or to a range: (low,
    high), (low, high, step), or a dictionary with low, high, and step or log. *objective* is a
    figure's key (``sharpe``, ``return``, ``mean_day``, ``max_drawdown`` ...) or a function of the
    run. *sampler* is grid, random or tpe; of the last two *trials* points are drawn by *seed*.
    *windows*, ``"90d/30d"``, chooses on 90 days and reports on the 30 after them, over and over.
    *direction* is maximize or minimize, by default the figure's own. A run may take *limit_s*
    seconds. *state* is a file with which an interrupted sweep goes on.

    Raises ``ConfigInvalid`` or ``DataInvalid`` where nothing can be tried. What goes wrong in one
    run is that cell's ``error``.
    """
    made_of = strategy if isinstance(strategy, type) else None
    with known_class(made_of) as name:
        request = read_request(
            name or strategy_name(strategy), data, space, objective,
            made_of=made_of, params=params, config=config, sampler=sampler, trials=trials,
            seed=seed, windows=windows, direction=direction, limit_s=limit_s, start=start, end=end,
            funding=tuple(map(Path, funding)), frame_data=frame_data,
        )  # fmt: skip
    return carry_out_sweep(
        request,
        executor or executor_for(request, jobs),
        state=None if state is None else Path(state),
        progress=progress or (lambda _done, _of, _best: None),
    )


def read_request(  # noqa: PLR0913 - the options of a sweep
    strategy: str | None,
    data: Any,  # noqa: ANN401 - as backtest takes it
    space: object,
    objective: Objective,
    *,
    made_of: type | None = None,
    params: Mapping[str, Any] | None = None,
    config: str | Path | Sections | None = None,
    sampler: str = "grid",
    trials: int | None = None,
    seed: int = 0,
    windows: Any = None,  # noqa: ANN401 - two lengths
    direction: str | None = None,
    limit_s: float | None = LIMIT_S,
    start: Any = None,  # noqa: ANN401 - a moment
    end: Any = None,  # noqa: ANN401 - a moment
    symbol: str | None = None,
    funding: tuple[Path, ...] = (),
    frame_data: Any = None,  # noqa: ANN401 - as data
) -> SweepRequest:
    """Return the sweep that is meant; raise ``ConfigInvalid`` or ``DataInvalid``."""
    axes = space_of(space)
    objective, maximize = objective_of(objective, direction)
    if type(seed) is not int:
        raise ConfigInvalid(f"seed is {shown(seed)}; give a whole number.")
    if limit_s is not None and not 0 < limit_s < math.inf:
        raise ConfigInvalid(f"limit_s is {shown(limit_s)}; give seconds above 0, or None.")
    sampler_of(sampler, axes, trials=trials, seed=seed, maximize=maximize)
    given = configured(config)
    market = load(given).market
    items = data_of(data, given)
    candles = tuple(read_market(market, items, symbol=symbol))
    begin, until = (moment_of(value, said) for value, said in ((start, "start"), (end, "end")))
    first, last = bounds(
        candles,
        None if begin is None else instant(begin),
        None if until is None else instant(until),
    )
    spans = [Span(None if begin is None else first, None if until is None else last)]
    days = (last - first) / DAY_MS
    if windows is not None:
        spans = walk(windows, first, last)
        days = min((span.until_ms or 0) - (span.from_ms or 0) for span in spans) / DAY_MS
    if isinstance(objective, str) and objective in OF_A_YEAR and days < metrics.DAYS_TO_ANNUALISE:
        raise ConfigInvalid(
            f"{objective} is a figure of a year, which takes {metrics.DAYS_TO_ANNUALISE} days; "
            f"{'a window trains on' if windows is not None else 'the data have'} {days:.1f}: "
            "choose return or mean_day as the objective."
        )
    return SweepRequest(
        work=Work(
            strategy=strategy,
            params=plain_values(dict(params or {}), "params"),
            config=given,
            candles=candles,
            funding=tuple(read_funding(path, symbol=symbol) for path in funding),
            frames=()
            if frame_data is None
            else tuple(
                read_candles(item, symbol=symbol) if isinstance(item, str) else item
                for item in data_of(frame_data, given)
            ),
            made_of=made_of,
        ),
        paths=tuple(map(str, items)) if all(isinstance(item, str) for item in items) else None,
        axes=axes,
        objective=objective,
        maximize=maximize,
        sampler=sampler,
        trials=trials,
        seed=seed,
        spans=tuple(spans),
        days=days,
        limit_s=limit_s,
        start=begin,
        end=until,
        funding=funding,
        data_sha256=data_sha256(candles),
    )


def data_sha256(candles: tuple[Candles, ...]) -> str:
    """Return the hash of what *candles* hold: instruments, times, prices and volumes."""
    digest = hashlib.sha256()
    for part in sorted(candles, key=lambda one: (one.symbol, int(one.open_time_ms[0]))):
        digest.update(f"{part.symbol} {part.interval_ms} {part.price_decimals}".encode())
        for column in (part.open_time_ms, part.open, part.high, part.low, part.close, part.volume):
            digest.update(column.tobytes())
    return digest.hexdigest()


def executor_for(request: SweepRequest, jobs: int | None) -> SweepExecutor:
    """Return processes of this machine; this process alone where no other has the class."""
    if jobs is not None and (type(jobs) is not int or jobs < 1):
        raise ConfigInvalid(f"jobs is {shown(jobs)}; give how many processes, from 1 on.")
    made_of = request.work.made_of
    if made_of is not None and not is_importable(made_of):
        return InThisProcess()
    return LocalProcesses(jobs)


def state_beside(request: SweepRequest) -> Path:
    """Return the file in which the command keeps this sweep: the same for the same sweep."""
    named = hashlib.sha256(json.dumps(request.header(), sort_keys=True).encode()).hexdigest()
    return Path(f"sweep-{named[:12]}.db")


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
        trials = counted.trials(request.data_sha256)
    return Sweep(
        request=request,  # pyright: ignore[reportArgumentType]
        cells=tuple(cells),
        trials=trials,
        registry=counted.path,
        state=state,
        made=made.count,
    )


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
        """Return what the objective says of the run of *raw*; remove its record then."""
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
