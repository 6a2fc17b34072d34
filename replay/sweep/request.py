"""What one sweep is to try, read from the arguments of ``tracepaper.sweep`` or its command."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tracepaper.daemon.config.loading import Sections, load
from tracepaper.daemon.session.run_record import code_version
from tracepaper.daemon.session.sources import class_sha256
from tracepaper.daemon.session.user_class import known_class, user_class
from tracepaper.daemon.session.vectors import vectors_path
from tracepaper.replay.archive import Candles, read_candles, read_funding
from tracepaper.replay.archive.depth import StoredDepth
from tracepaper.replay.archive.times import instant
from tracepaper.replay.backtest.build import configuration, fit_windows, read_market, span_of
from tracepaper.replay.python import configured, data_of, moment_of, plain_values
from tracepaper.replay.report import metrics
from tracepaper.replay.sweep.cell import Work
from tracepaper.replay.sweep.objectives import OF_A_YEAR, Objective, objective_of
from tracepaper.replay.sweep.samplers import sampler_of
from tracepaper.replay.sweep.space import Axis, space_of
from tracepaper.replay.sweep.spans import Span, bounds, walk
from tracepaper.storage.vectors import file_bytes
from tracepaper.strategies.errors import ConfigInvalid, shown
from tracepaper.strategies.market import DAY_MS
from tracepaper.strategies.trend import TREND

LIMIT_S: Final = 600.0
"""Seconds that one run may take unless another limit is given."""


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
    depth: tuple[Path, ...] = ()
    data_sha256: str = ""
    warnings: tuple[str, ...] = ()  # what every run of it is told

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
            "depth": [one.sha256 for one in self.work.depth],
        }


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
    depth: tuple[Path, ...] = (),
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
    if isinstance(objective, str) and objective in OF_A_YEAR and not metrics.is_annual(days):
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
            depth=tuple(map(StoredDepth, depth)),
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
        depth=depth,
        data_sha256=data_sha256(candles, _vectors(given)),
        warnings=()
        if frame_data is not None or _chooses_windows([axis.name for axis in axes], params)
        else _fitted(strategy, given, candles),
    )


def _chooses_windows(axes: Iterable[str], params: Mapping[str, Any] | None) -> bool:
    """Return whether the windows of a trend are among what is tried or given."""
    return "trend_windows" in {*(name.rpartition(".")[2] for name in axes), *(params or {})}


def _fitted(
    strategy: str | None, given: Path | Sections | None, candles: Sequence[Candles]
) -> tuple[str, ...]:
    """Return what each run says of windows that it takes because the candles are few."""
    named = {} if strategy is None else {"strategy": {"name": strategy}}
    if (strategy or load(given).strategy.name) != TREND:
        return ()
    return fit_windows(configuration(given, candles, named), span_of(candles))[1]


def _vectors(given: Path | Sections | None) -> bytes:
    """Return what a user's file of vectors holds, where the configuration names one."""
    config = load(given)
    written = config.model.vectors
    return b"" if written is None else file_bytes(vectors_path(config, written))


def data_sha256(candles: tuple[Candles, ...], vectors: bytes = b"") -> str:
    """Return the hash of what *candles* hold: instruments, times, prices and volumes.

    A user's *vectors* are data as well.
    """
    digest = hashlib.sha256(vectors)
    for part in sorted(candles, key=lambda one: (one.symbol, int(one.open_time_ms[0]))):
        digest.update(f"{part.symbol} {part.interval_ms} {part.price_decimals}".encode())
        for column in (part.open_time_ms, part.open, part.high, part.low, part.close, part.volume):
            digest.update(column.tobytes())
    return digest.hexdigest()


def state_beside(request: SweepRequest) -> Path:
    """Return the file in which the command keeps this sweep: the same for the same sweep."""
    named = hashlib.sha256(json.dumps(request.header(), sort_keys=True).encode()).hexdigest()
    return Path(f"sweep-{named[:12]}.db")
