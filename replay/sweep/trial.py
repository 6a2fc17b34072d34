"""One trial: its request, its run in memory, its figures (docs/python.md, Y14)."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from tracepaper.daemon.clock import SystemClock
from tracepaper.daemon.config.loading import Given, load
from tracepaper.daemon.session.build import needs_forecaster
from tracepaper.daemon.session.covariates import covariates_path
from tracepaper.daemon.session.models import card_of
from tracepaper.daemon.session.run_row import code_version
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
from tracepaper.replay.report.record import (
    read_record,
)
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
from tracepaper.storage.sweeps import CellKey
from tracepaper.strategies.errors import ConfigInvalid, TracepaperError, shown
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
    """What all runs of a sweep share; handed to each worker once."""

    strategy: str | None  # None for several on one account
    params: Mapping[str, Any]
    spec: RunSpec  # of each of them, with what was read of its files
    made_of: type | None = None  # a class that only this process knows
    kept_in: Path | None = None  # where records wait for the objective that reads them
    tried_checkpoints: tuple[str, ...] = ()  # of the points
    checkpoints: Mapping[Path, bytes] = field(default_factory=dict)  # for another machine
    configured: str = ""  # the hash of the configuration there, before any point

    @property
    def preload(self) -> tuple[str, ...]:
        """Modules that each process needs."""
        return (WORKER, *((MODEL,) if self.strategy == "attention" else ()))

    def packed(self) -> Work:
        """Return it with the checkpoint that it names, and the configuration that is meant."""
        config = load(self.spec.given)
        options = {**config.strategy.options, **self.params}
        named = (config.model.checkpoint, options.get("checkpoint"), *self.tried_checkpoints)
        folders = [
            Path(name) for name in named if isinstance(name, str) and locate(name) == Path(name)
        ]
        files: dict[Path, bytes] = {}
        for folder in filter(is_checkpoint, folders):
            files |= files_of(folder)
        return replace(self, checkpoints=files, configured=config.sha256())

    def check(self) -> None:
        """Raise ``ConfigInvalid`` where this process would not do what the sender would."""
        hold(self.checkpoints)
        if self.strategy is not None and ":" in self.strategy:
            user_class(self.strategy)
        config = load(self.spec.given)
        if config.sha256() != self.configured:
            raise ConfigInvalid(
                "it reads another configuration; put the file where every node reads it, or give "
                "what it says as --set."
            )
        written = config.model.covariates
        if written is not None and not covariates_path(config, written).is_file():
            raise ConfigInvalid(f"it has no {written}; put the file where every node reads it.")
        if self.kept_in is not None and not self.kept_in.is_dir():
            raise ConfigInvalid(
                "an objective that is a function reads runs on the driver's machine; choose a "
                "figure's key."
            )

    def __call__(self, unit: Cell) -> CellResult:
        """Make the run of one cell."""
        return make(self, unit)


class Cell(NamedTuple):
    """One run to be made: the trial's number and point, and the span in UTC milliseconds."""

    span: int
    part: str
    number: int
    point: Point
    from_ms: int | None
    until_ms: int | None

    @property
    def key(self) -> CellKey:
        """What names it in the sweep."""
        return self.span, self.part, self.number


@dataclass(frozen=True)
class CellResult:
    """What one run came to; ``error`` is one sentence where it came to nothing."""

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
    run_id: str = ""  # of its record, while that is kept

    @property
    def key(self) -> CellKey:
        """What names it in the sweep."""
        return self.span, self.part, self.number

    @property
    def trial_sha256(self) -> str:
        """The id of what was tried, wherever and however often it is tried."""
        tried = f"{self.config_sha256}/{self.strategy_sha256}/{self.model_sha256}"
        return hashlib.sha256(tried.encode()).hexdigest()


def overrides_of(work: Work, point: Point) -> dict[str, dict[str, Any]]:
    """Return the keys of the configuration that *point* sets.

    ``section.key`` is one of the configuration, a bare name one of the strategy's params.
    """
    params = dict(work.params)
    strategy = point.get("strategy.name", work.strategy)
    takes_options = strategy is not None and has_options(strategy)
    sections: dict[str, dict[str, Any]] = {}
    for name, value in point.items():
        bare = name.removeprefix("strategy.options.") if takes_options else name
        section, dot, key = bare.partition(".")
        # A key of money is written as text; the shortest is the number that was meant.
        is_key = isinstance(value, float) and (dot or not takes_options)
        keys = sections.setdefault(section, {}) if dot else params
        keys[key or bare] = str(value) if is_key else value
    if strategy is not None:
        sections["strategy"] = {
            **strategy_keys(strategy, params, work.spec.given),
            **sections.get("strategy", {}),
        }
    return sections


def make(work: Work, cell: Cell) -> CellResult:
    """Make one run; what goes wrong in it is its outcome, in one sentence."""
    began_s = SystemClock().network_s()
    spec = replace(
        work.spec,
        start=None if cell.from_ms is None else str(cell.from_ms),
        end=None if cell.until_ms is None else str(cell.until_ms),
    )
    try:
        outcome = _carried_out(work, cell, spec)
    except TracepaperError as error:
        return CellResult(*cell[:4], error=str(error))
    seconds = round(SystemClock().network_s() - began_s, 3)
    return CellResult(*cell[:4], **outcome, seconds=seconds)


def _carried_out(work: Work, cell: Cell, spec: RunSpec) -> dict[str, Any]:
    with ExitStack() as stack:
        with known_class(work.made_of):
            spec = replace(spec, overrides=overrides_of(work, cell.point))
            if work.kept_in is None:
                log = stack.enter_context(run_in_memory(spec))
                database, run_id, reader = IN_MEMORY, log.run.run_id, log.reader
            else:
                database = kept_database(work, cell)
                run_id = make_run(replace(spec, database=database)).run_id
                reader = stack.enter_context(Reader.open(database))
        record = read_record(reader, database, run_id)
        row = reader.run(run_id)
    equity = record.account.equity[: 1 if record.holds_over_split(record.account) else None]
    return {
        "figures": headline(record, closed_trades(record.account)),
        "daily": tuple(metrics.daily_returns(record.times_ms[: equity.size - 1], equity).tolist()),
        "config_sha256": row.config_sha256,
        "strategy_sha256": row.strategy_sha256,
        "model_sha256": row.model_sha256,
        "run_id": "" if work.kept_in is None else run_id,
    }


def kept_database(work: Work, cell: Cell | CellResult) -> Path:
    """Return the path at which the record of one run waits for the objective."""
    assert work.kept_in is not None
    return work.kept_in / f"{cell.span}-{cell.part}-{cell.number}.db"


@dataclass(frozen=True)
class Search:
    """How a sweep looks for its points, and over which spans; arguments of ``sweep``."""

    sampler: str = "grid"
    trials: int | None = None
    seed: int = 0
    windows: str | None = None  # times to train and to test
    direction: str | None = None
    limit_s: float | None = LIMIT_S


@dataclass(frozen=True)
class SweepRequest:
    """What one sweep is to try; the arguments of ``tracepaper.sweep``, read."""

    work: Work
    spec: RunSpec  # as it was given, by the names of its files
    symbols: tuple[str, ...]
    axes: tuple[Axis, ...]
    objective: Objective
    maximize: bool
    search: Search
    spans: tuple[Span, ...]
    days: float
    sources: Mapping[str, str]  # the hash of each source of data
    data_sha256: str  # of the candles and the user's vectors: what trials are counted by
    warnings: tuple[str, ...] = ()  # what every run of it is told
    library: Library | None = None  # of the frames that the result makes

    @property
    def objective_name(self) -> str:
        """The figure's key, or the function's name."""
        of = self.objective
        return of if isinstance(of, str) else getattr(of, "__name__", type(of).__name__)

    def header(self) -> dict[str, Any]:
        """Return all that decides every cell: a sweep goes on only with an equal one."""
        of = self.work.strategy
        is_class = of is not None and ":" in of
        with known_class(self.work.made_of):
            made_of = class_sha256(user_class(str(of))) if is_class else ""
        return {
            "strategy": of or "",
            "source_of_the_class": made_of,
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
            "code": code_version(),
        }


def check_several(
    names: Sequence[str], strategy: str | None, params: Mapping[str, Any] | None
) -> None:
    """Raise ``ConfigInvalid`` where a sweep would vary one of several strategies on one account."""
    those = [name for name in names if name != "strategies.reset"]
    keys = [name for name in those if name.partition(".")[0] in {name, "strategy", "strategies"}]
    if not keys and strategy is None and not params:
        return
    what = f"{keys[0]} is a key" if keys else "that is an option"
    raise ConfigInvalid(
        f"[strategies] names several, and {what} of one; let the sweep vary keys that they share, "
        "such as sizing.fraction, or sweep one of them as [strategy]."
    )


def read_request(
    spec: RunSpec,
    space: object,
    objective: Objective,
    search: Search = Search(),
    *,
    strategy: str | None = None,
    params: Mapping[str, Any] | None = None,
    made_of: type | None = None,
) -> SweepRequest:
    """Return the sweep that is meant; raise ``ConfigInvalid`` or ``DataInvalid``."""
    axes = space_of(space)
    objective, maximize = objective_of(objective, search.direction)
    if type(search.seed) is not int:
        raise ConfigInvalid(f"seed is {shown(search.seed)}; give a whole number.")
    if search.limit_s is not None and not 0 < search.limit_s < math.inf:
        raise ConfigInvalid(f"limit_s is {shown(search.limit_s)}; give seconds above 0, or None.")
    sampler_of(search.sampler, axes, trials=search.trials, seed=search.seed, maximize=maximize)
    given = spec.given
    configured = load(given)
    if configured.strategies.named:
        check_several([axis.name for axis in axes], strategy, params)
    else:
        strategy = strategy or configured.strategy.name
    data = MarketData.read(spec)
    first, last = bounds(data, spec.from_ms, spec.until_ms)
    spans = [Span(None if spec.from_ms is None else first, None if spec.until_ms is None else last)]
    days = (last - first) / DAY_MS
    if search.windows is not None:
        spans = walk(search.windows, first, last)
        days = min((span.until_ms or 0) - (span.from_ms or 0) for span in spans) / DAY_MS
    if isinstance(objective, str) and objective in OF_A_YEAR and not metrics.is_annual(days):
        raise ConfigInvalid(
            f"{objective} is a figure of a year, which takes {metrics.DAYS_TO_ANNUALISE} days; "
            f"{'a window trains on' if search.windows is not None else 'the data have'} "
            f"{days:.1f}: choose return or mean_day as the objective."
        )
    sources = data.sha256()
    counted_by = hashlib.sha256(_vectors(given) + sources.pop("candles").encode()).hexdigest()
    return SweepRequest(
        work=Work(
            strategy=strategy,
            params=plain_values(dict(params or {}), "params"),
            spec=data.within(replace(spec, caller=CALLER)),
            made_of=made_of,
            tried_checkpoints=tuple(
                str(value)
                for axis in axes
                if axis.name.rpartition(".")[2] == "checkpoint"
                for value in axis.values
            ),
        ),
        spec=spec,
        symbols=tuple(dict.fromkeys(part.symbol for part in data.candles)),
        axes=axes,
        objective=objective,
        maximize=maximize,
        search=search,
        spans=tuple(spans),
        days=days,
        sources=sources,
        data_sha256=counted_by,
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
    spec: RunSpec, strategy: str | None, data: MarketData, first_ms: int, *, has_windows: bool
) -> tuple[str, ...]:
    """List what every run is told: windows shortened for few candles, bars that a model has seen.

    *has_windows* says that nobody needs to shorten them.
    """
    named = {} if strategy is None else {"strategy": {"name": strategy}}
    try:
        config = configuration(spec.given, data, named)
        shortened = () if has_windows else fit_windows(config, data.span_ms)[1]
        if config.model.custom_class or not config.model.is_given or not needs_forecaster(config):
            return shortened
    except ConfigInvalid:  # without a cell's values: each cell reports its error
        return ()
    return (*shortened, *fitted_on(card_of(config, None), data, first_ms))


def _vectors(given: Given) -> bytes:
    config = load(given)
    written = config.model.covariates
    return b"" if written is None else file_bytes(covariates_path(config, written))


def state_beside(request: SweepRequest) -> Path:
    """Return the file in which the command keeps this sweep: the same for the same sweep."""
    named = hashlib.sha256(json.dumps(request.header(), sort_keys=True).encode()).hexdigest()
    return Path(f"sweep-{named[:12]}.db")
