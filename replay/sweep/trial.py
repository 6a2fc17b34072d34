"""One trial: its request, its run in memory, its figures (docs/python.md, Y14)."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from tracepaper.daemon.clock import SystemClock
from tracepaper.daemon.config.loading import Given, load
from tracepaper.daemon.config.values import merged, nested
from tracepaper.daemon.session.build import needs_forecaster, with_usual_warmup
from tracepaper.daemon.session.covariates import covariates_path
from tracepaper.daemon.session.models import card_of
from tracepaper.daemon.session.run_row import code_version, sources_of
from tracepaper.daemon.session.user_class import known_class, user_class
from tracepaper.daemon.session.user_code import class_sha256
from tracepaper.replay.backtest.build import configuration, fit_windows, fitted_on
from tracepaper.replay.backtest.make import make_run, run_in_memory
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.replay.backtest.run_spec import RunSpec
from tracepaper.replay.backtest.strategy_keys import has_options, plain_values, strategy_keys
from tracepaper.replay.checks.lookahead import MODEL
from tracepaper.replay.dataframes import Library
from tracepaper.replay.report import metrics
from tracepaper.replay.report.figures import Headline, headline
from tracepaper.replay.report.record import read_record
from tracepaper.replay.report.trades import closed_trades
from tracepaper.replay.sweep.executor import UnitWork
from tracepaper.replay.sweep.space import (
    OF_A_YEAR,
    Axis,
    Objective,
    Point,
    Span,
    bounds,
    objective_of,
    sampler_of,
    space_of,
    walk,
)
from tracepaper.storage.checkpoints import files_of, hold, is_checkpoint, locate
from tracepaper.storage.covariates import file_bytes
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.memory_log import IN_MEMORY
from tracepaper.storage.sweeps import CellKey, TriedData
from tracepaper.strategies.errors import ConfigInvalid, StrategyFailed, TracepaperError, shown
from tracepaper.strategies.units import DAY_MS

WORKER: Final = "tracepaper.replay.sweep.trial"
WHOLE: Final = "whole"
TRAIN: Final = "train"
TEST: Final = "test"
CALLER: Final = "the point"
LIMIT_S: Final = 600.0
"""Seconds that one run may take unless another limit is given."""


@dataclass(frozen=True)
class Work(UnitWork):
    """The inputs that all runs of a sweep share; sent once to each worker."""

    strategy: str
    params: Mapping[str, Any]
    spec: RunSpec  # of every run, with the content of its files
    usual: Mapping[str, Any] = field(default_factory=dict)  # the warm-up of a class without one
    local_class: type | None = None  # a class that other processes cannot import
    record_folder: Path | None = None  # folder of the records that an objective function reads
    tried_checkpoints: tuple[str, ...] = ()  # those that an axis names
    checkpoints: Mapping[Path, bytes] = field(default_factory=dict)  # files, for other machines
    config_sha256: str = ""  # hash of the sender's configuration, without a point's changes

    @property
    def preload(self) -> tuple[str, ...]:
        """Modules that each process needs."""
        return (WORKER, *((MODEL,) if self.strategy == "attention" else ()))

    def packed(self) -> Work:
        """Return a copy with the files of its checkpoints and the configuration's hash."""
        config = load(self.spec.given)
        options = {**config.strategy.options, **self.params}
        named = (config.model.checkpoint, options.get("checkpoint"), *self.tried_checkpoints)
        folders = [
            Path(name) for name in named if isinstance(name, str) and locate(name) == Path(name)
        ]
        files: dict[Path, bytes] = {}
        for folder in filter(is_checkpoint, folders):
            files |= files_of(folder)
        return replace(self, checkpoints=files, config_sha256=config.sha256())

    def check(self) -> None:
        """Raise ``ConfigInvalid`` if a run here would differ from one in the sender's process."""
        hold(self.checkpoints)
        if ":" in self.strategy:
            user_class(self.strategy)
        config = load(self.spec.given)
        if config.sha256() != self.config_sha256:
            raise ConfigInvalid(
                "it reads another configuration; put the file where every node reads it, or give "
                "what it says as --set."
            )
        written = config.model.covariates
        if written is not None and not covariates_path(config, written).is_file():
            raise ConfigInvalid(f"it has no {written}; put the file where every node reads it.")
        if self.record_folder is not None and not self.record_folder.is_dir():
            raise ConfigInvalid(
                "an objective that is a function reads runs on the driver's machine; choose a "
                "figure's key."
            )

    def __call__(self, unit: Cell) -> CellResult:
        """Run one cell."""
        return make(self, unit)


class Cell(NamedTuple):
    """One run to carry out: the trial's number and point, and the period in UTC milliseconds."""

    span: int
    part: str
    number: int
    point: Point
    from_ms: int | None
    until_ms: int | None

    @property
    def key(self) -> CellKey:
        """The cell's key in the sweep."""
        return self.span, self.part, self.number


@dataclass(frozen=True)
class CellResult:
    """The result of one run; ``error`` is one sentence if the run failed, else empty."""

    span: int
    part: str
    number: int
    point: Point
    value: float | None = None  # of the objective
    error: str = ""
    figures: Headline = field(default_factory=dict)
    daily: tuple[float, ...] = ()  # simple returns of UTC days
    config_sha256: str = ""
    strategy_sha256: str = ""
    model_sha256: str = ""
    seconds: float = 0.0
    run_id: str = ""  # of its record, until the objective has read it
    without_fills: str = ""  # why nothing filled, in sentences; empty if an order filled

    @property
    def key(self) -> CellKey:
        """The cell's key in the sweep."""
        return self.span, self.part, self.number

    @property
    def trial_sha256(self) -> str:
        """The id of the configuration, class and model tried, equal in every sweep."""
        tried = f"{self.config_sha256}/{self.strategy_sha256}/{self.model_sha256}"
        return hashlib.sha256(tried.encode()).hexdigest()


def overrides_of(work: Work, point: Point) -> dict[str, dict[str, Any]]:
    """Return the sections and keys of the configuration that *point* sets.

    ``section.key`` names a key of the configuration, a bare name an option of the strategy.
    """
    params = dict(work.params)
    strategy = point.get("strategy.name", work.strategy)
    takes_options = has_options(strategy)
    sections: dict[str, dict[str, Any]] = {}
    for name, value in point.items():
        bare = name.removeprefix("strategy.options.") if takes_options else name
        path = bare.split(".")
        # Decimal keys take text; str() of a float is the shortest text that equals it.
        is_option = "options" in path[1:-1] or (len(path) == 1 and takes_options)
        plain = str(value) if isinstance(value, float) and not is_option else value
        if len(path) > 1:
            sections = merged(sections, nested(path, plain))
        else:
            params[bare] = plain
    sections["strategy"] = {
        **strategy_keys(strategy, params, work.spec.given),
        **(work.usual if strategy == work.strategy else {}),
        **sections.get("strategy", {}),
    }
    return sections


def spec_at(work: Work, point: Point, from_ms: int | None, until_ms: int | None) -> RunSpec:
    """Return the spec of a run at *point* from *from_ms* to *until_ms*."""
    return replace(
        work.spec,
        overrides=overrides_of(work, point),
        start=None if from_ms is None else str(from_ms),
        end=None if until_ms is None else str(until_ms),
    )


def make(work: Work, cell: Cell) -> CellResult:
    """Run one cell; the result of a run that fails holds the error."""
    began_s = SystemClock().network_s()
    try:
        outcome = _run(work, cell)
    except TracepaperError as error:
        return CellResult(*cell[:4], error=str(error))
    seconds = round(SystemClock().network_s() - began_s, 3)
    return CellResult(*cell[:4], **outcome, seconds=seconds)


def _run(work: Work, cell: Cell) -> dict[str, Any]:
    with ExitStack() as stack:
        with known_class(work.local_class):
            spec = spec_at(work, cell.point, cell.from_ms, cell.until_ms)
            if work.record_folder is None:
                log = stack.enter_context(run_in_memory(spec))
                database, run_id, reader = IN_MEMORY, log.run.run_id, log.reader
            else:
                database = record_path(work, cell)
                run_id = make_run(replace(spec, database=database)).run_id
                reader = stack.enter_context(Reader.open(database))
        record = read_record(reader, database, run_id)
        row = reader.run(run_id)
    return {
        "figures": headline(record, closed_trades(record.account)),
        "daily": tuple(metrics.daily_returns(record.times_ms, record.account.equity).tolist()),
        "config_sha256": row.config_sha256,
        "strategy_sha256": row.strategy_sha256,
        "model_sha256": row.model_sha256,
        "run_id": "" if work.record_folder is None else run_id,
        "without_fills": record.without_fills,
    }


def record_path(work: Work, cell: Cell | CellResult) -> Path:
    """Return the path of the record that the objective function reads."""
    assert work.record_folder is not None
    return work.record_folder / f"{cell.span}-{cell.part}-{cell.number}.db"


@dataclass(frozen=True)
class Search:
    """The arguments of ``sweep`` that choose its points and its spans."""

    sampler: str = "grid"
    trials: int | None = None
    seed: int = 0
    windows: str | None = None  # times to train and to test
    direction: str | None = None
    limit_s: float | None = LIMIT_S


@dataclass(frozen=True)
class SweepRequest:
    """The validated arguments of ``tracepaper.sweep``."""

    work: Work
    spec: RunSpec  # as given, with the names of its files
    symbols: tuple[str, ...]
    axes: tuple[Axis, ...]
    objective: Objective
    maximize: bool
    search: Search
    spans: tuple[Span, ...]
    days: float
    sources: Mapping[str, str]  # the hash of each source of data
    data_sha256: str  # of the candles and the covariates
    tried: TriedData  # by which the registry counts trials
    warnings: tuple[str, ...] = ()  # those of every run
    library: Library | None = None  # of the frames of the result

    @property
    def objective_name(self) -> str:
        """The figure's key, or the function's name."""
        if isinstance(self.objective, str):
            return self.objective
        return getattr(self.objective, "__name__", type(self.objective).__name__)

    def header(self) -> dict[str, Any]:
        """Return all inputs of the cells; a state file continues only a sweep with equal ones."""
        strategy = self.work.strategy
        with known_class(self.work.local_class):
            source = class_sha256(user_class(strategy)) if ":" in strategy else ""
        return {
            "strategy": strategy,
            "source_of_the_class": source,
            **self.sources,
            "data": self.data_sha256,
            "space": {axis.name: axis.document() for axis in self.axes},
            "params": dict(self.work.params),
            "configuration": load(self.work.spec.given).settings(),
            "objective": self.objective_name,
            "direction": "maximize" if self.maximize else "minimize",
            "sampler": self.search.sampler,
            "seed": self.search.seed,
            "spans": [list(span) for span in self.spans],
            "code": sources_of(code_version()),
        }


def read_request(
    spec: RunSpec,
    space: object,
    objective: Objective,
    search: Search = Search(),
    *,
    strategy: str | None = None,
    params: Mapping[str, Any] | None = None,
    local_class: type | None = None,
) -> SweepRequest:
    """Validate the arguments of a sweep; raise ``ConfigInvalid`` or ``DataInvalid``."""
    axes = space_of(space)
    objective, maximize = objective_of(objective, search.direction)
    if type(search.seed) is not int:
        raise ConfigInvalid(f"seed is {shown(search.seed)}; give a whole number.")
    if search.limit_s is not None and not 0 < search.limit_s < math.inf:
        raise ConfigInvalid(f"limit_s is {shown(search.limit_s)}; give seconds above 0, or None.")
    sampler_of(search.sampler, axes, trials=search.trials, seed=search.seed, maximize=maximize)
    given = spec.given
    config = load(given)
    strategy = strategy or config.strategy.name
    data = MarketData.read(spec)
    first, last = bounds(data, spec.from_ms, spec.until_ms)
    spans = [Span(None if spec.from_ms is None else first, None if spec.until_ms is None else last)]
    days = (last - first) / DAY_MS
    if search.windows is not None:
        spans = walk(search.windows, first, last)
        days = min((span.until_ms or 0) - (span.from_ms or 0) for span in spans) / DAY_MS
    if isinstance(objective, str) and objective in OF_A_YEAR and not metrics.is_annual(days):
        raise ConfigInvalid(
            f"{objective} is an annual figure, which needs {metrics.DAYS_TO_ANNUALISE} days; "
            f"{'a window trains on' if search.windows is not None else 'the data have'} "
            f"{days:.1f}: choose return or mean_day as the objective."
        )
    symbols = tuple(dict.fromkeys(part.symbol for part in data.candles))
    sources = data.sha256()
    data_sha256 = hashlib.sha256(_covariates(given) + sources.pop("candles").encode()).hexdigest()
    return SweepRequest(
        work=Work(
            strategy=strategy,
            params=plain_values(dict(params or {}), "params"),
            usual=_usual_warmup(given, data, strategy, local_class, days),
            spec=data.within(replace(spec, caller=CALLER)),
            local_class=local_class,
            tried_checkpoints=tuple(
                str(value)
                for axis in axes
                if axis.name.rpartition(".")[2] == "checkpoint"
                for value in axis.values
            ),
        ),
        spec=spec,
        symbols=symbols,
        axes=axes,
        objective=objective,
        maximize=maximize,
        search=search,
        spans=tuple(spans),
        days=days,
        sources=sources,
        data_sha256=data_sha256,
        tried=TriedData(symbols, data.candles[0].interval_ms, first, last),
        warnings=_warnings(
            spec,
            strategy,
            data,
            first,
            has_windows=bool(data.frames)
            or "trend_windows"
            in {*(axis.name.rpartition(".")[2] for axis in axes), *(params or {})},
        ),
    )


def _warnings(
    spec: RunSpec, strategy: str, data: MarketData, first_ms: int, *, has_windows: bool
) -> tuple[str, ...]:
    """Return the warnings of every run: windows shortened for few candles, bars trained on.

    *has_windows*: the windows are set by the user or by frames, so none is shortened.
    """
    try:
        config = configuration(spec.given, data, {"strategy": {"name": strategy}})
        shortened = () if has_windows else fit_windows(config, data.span_ms)[1]
        if config.model.custom_class or not config.model.is_given or not needs_forecaster(config):
            return shortened
    except ConfigInvalid:  # a point may set the missing key; else each cell reports the error
        return ()
    return (*shortened, *fitted_on(card_of(config, None), data, first_ms))


def _usual_warmup(
    given: Given, data: MarketData, strategy: str, local_class: type | None, days: float
) -> dict[str, Any]:
    """Return the keys of the warm-up that all runs share; *days* are those of the shortest one."""
    try:
        with known_class(local_class):
            config = configuration(given, data, {"strategy": {"name": strategy}})
            chosen = with_usual_warmup(config, int(days * DAY_MS)).strategy
    except (ConfigInvalid, StrategyFailed):  # each cell reports the error
        return {}
    return chosen.model_dump(include={"warmup", "frames_warmup"}, exclude_defaults=True)


def _covariates(given: Given) -> bytes:
    config = load(given)
    written = config.model.covariates
    return b"" if written is None else file_bytes(covariates_path(config, written))


def default_state(request: SweepRequest) -> Path:
    """Return the command's default state file; its name is a hash of the sweep's inputs."""
    sha256 = hashlib.sha256(json.dumps(request.header(), sort_keys=True).encode()).hexdigest()
    return Path(f"sweep-{sha256[:12]}.db")
