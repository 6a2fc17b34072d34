"""A recorded run as a feed: its events, its start, its checkpoint.

``verify`` derives a run from here, and ``replay --data FILE.db#RUN`` replays it as a new run. The
model runs as it did: warmed at every recorded start with the bars that the start names, and late,
``PredictionTimeout``, where it was late.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from msgspec.structs import replace

from tracepaper.daemon.commands.options import located
from tracepaper.daemon.config.loading import Config, restore
from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.engine.restart import Restart
from tracepaper.daemon.session.build import needs_forecaster
from tracepaper.daemon.session.loop import BarHistory, InlinePredictor, events_of, gathered
from tracepaper.daemon.session.models import forecaster_of_run
from tracepaper.daemon.session.resume import (
    engine_after,
    engine_lookback,
    engine_of,
    recall_lookback,
    take_over,
)
from tracepaper.daemon.session.run_row import ENVIRONMENT_FIELDS, start_event
from tracepaper.daemon.session.user_model import reject_other_model, user_model
from tracepaper.replay.backtest.predictors import ScanPredictor
from tracepaper.replay.backtest.run import Tally, run_events
from tracepaper.storage import checkpoints
from tracepaper.storage.chain.starting_point import StartingPoint, StartingPoints
from tracepaper.storage.database.reader import Fed, Reader
from tracepaper.strategies.api.model import OF_MEASURE, answer_of
from tracepaper.strategies.api.strategy import Forecaster
from tracepaper.strategies.errors import DataInvalid, InvariantBroken
from tracepaper.strategies.gates.card import calibration_of, section_of
from tracepaper.strategies.gates.gate import HEAD_MEASURES
from tracepaper.strategies.types.decisions import (
    Forecast,
    ForecastColumns,
    Prediction,
    PredictionTimeout,
    RunRow,
)
from tracepaper.strategies.types.market import (
    Event,
    ModelChange,
    ParityCheck,
    RunEnd,
    RunKind,
    Unit,
)

if TYPE_CHECKING:
    from tracepaper.storage.audit import SqlAuditLog


_ENDS: Final = frozenset({RunEnd, ParityCheck})


@dataclass(frozen=True)
class RecordedRun:
    """A run from its record, ready to be derived again.

    Without a *beginning* it starts at the run's first event. With one the engine has the state of
    the step before, and :func:`run_in` feeds the history that a state does not hold.
    """

    run: RunRow
    config: Config
    engine: Engine
    forecaster: Forecaster | None
    beginning: StartingPoint | None = None

    @property
    def first(self) -> int:
        """The first step that is derived."""
        return 0 if self.beginning is None else self.beginning.after + 1


def open_recorded(
    reader: Reader, database: Path, run_id: str, *, from_step: int | None = None
) -> RecordedRun:
    """Rebuild the engine of *run_id* before its first event, or before *from_step*.

    Raises ``CheckpointMismatch`` if its checkpoint is neither beside the database nor bundled.
    """
    stored = reader.stored_run(run_id)
    run = stored.run
    config = restore(run.config)
    forecaster = _forecaster(config, database, run) if needs_forecaster(config) else None
    engine = engine_of(run, config, forecaster, run.instruments)
    context = 0 if forecaster is None else forecaster.context
    beginning = None
    if from_step is not None:
        reach = engine_lookback(engine, context)
        beginning = StartingPoints(reader.connection, stored.run_key, reach).before(from_step)
    if beginning is None:
        take_over(engine, run)
        return RecordedRun(run, config, engine, forecaster)
    engine = engine_after(reader, run, config, forecaster, beginning.after)
    return RecordedRun(run, config, engine, forecaster, beginning)


def _forecaster(config: Config, database: Path, run: RunRow) -> Forecaster:
    """Return the model of *run*."""
    forecaster = forecaster_of_run(run, config, database)
    if (model := user_model(forecaster)) is not None:
        reject_other_model(model, run.model_sha256, run.run_id)
    elif forecaster.model_sha256 != run.model_sha256:
        kept = checkpoints.find_kept(database, run.model_id)
        raise DataInvalid(f"{kept} is not the checkpoint that run {run.run_id} used; restore it.")
    return forecaster


def prober_of(recorded: RecordedRun, database: Path) -> Forecaster | None:
    """Return a second forecaster of the same checkpoint for the probes of a scan."""
    run = recorded.run
    if recorded.forecaster is None or run.mode != "scan":
        return None
    return _reload_model(recorded, database)


def _reload_model(recorded: RecordedRun, database: Path, *, into: Path | None = None) -> Forecaster:
    """Load the run's model once more, and keep it beside *into* as well."""
    run = recorded.run
    forecaster = forecaster_of_run(run, recorded.config, database, into=into)
    if (model := user_model(forecaster)) is not None:
        model.scale(run.instruments)
    return forecaster


class RecordedPredictor:
    """Yields recorded events in order, and answers each as the model did."""

    def __init__(
        self, recorded: RecordedRun, prober: Forecaster | None, *, probes: bool = True
    ) -> None:
        run, forecaster = recorded.run, recorded.forecaster
        self._run, self._prober = recorded, prober
        # A record only says that the model was late; the configuration has the deadline.
        self._timeout = PredictionTimeout(recorded.config.model.deadline_ms)
        keys = [item.id for item in run.instruments]
        self._recorded: deque[Prediction] = deque()
        self._inline: InlinePredictor | None = None
        self._scan: ScanPredictor | None = None
        self.taken = 0  # answers taken from the record
        self._is_outside = forecaster is not None and forecaster.is_outside
        self.is_silent = forecaster is None
        if forecaster is None or self._is_outside:
            return
        if run.mode == "scan" and (prober is not None or not probes):
            self._scan = ScanPredictor(
                forecaster, prober, keys, period_start_ms=recorded.engine.begun_ms
            )
        else:
            history = BarHistory(keys, context=forecaster.context)
            beginning = recorded.beginning
            self._inline = InlinePredictor(
                forecaster,
                history,
                period_start_ms=recorded.engine.begun_ms,
                started=beginning is not None and beginning.is_started,
            )

    def events(
        self, reader: Reader, run_id: str, *, place: Mapping[str, Any] | None = None
    ) -> Iterator[Event]:
        """Yield the recorded events from the run-in on, as :meth:`handed_on` does."""
        beginning = self._run.beginning
        before = -1 if beginning is None else beginning.fed_from - 1
        for model in (self._run.forecaster, self._prober):
            recall_lookback(model, reader, run_id, before)
        return self.handed_on(reader.events(run_id, before), place=place)

    def handed_on(
        self,
        rows: Iterable[Fed],
        *,
        place: Mapping[str, Any] | None = None,
    ) -> Iterator[Event]:
        """Yield the events of *rows*, from ``Reader.events``, and queue their recorded answers.

        With a *place* they become the events of a new run: its starts name the place, and the ends
        of the recorded run are left out.
        """
        if self.is_silent and not place:
            return (row[2] for row in rows if place is None or type(row[2]) not in _ENDS)
        events = self._handed_on(rows, place)
        return events if self._scan is None else self._scan.read_ahead(events)

    @property
    def columns(self) -> Mapping[str, ForecastColumns]:
        """Known forecasts of the next bars."""
        return {} if self._scan is None else self._scan.columns

    def _handed_on(self, rows: Iterable[Fed], place: Mapping[str, Any] | None) -> Iterator[Event]:
        """Yield the events of *rows*; queue the stored answers for ``predict``."""
        is_queued = self._inline is not None or self._is_outside
        for _, _, event, stored in rows:
            kind = type(event)
            if place is not None and kind in _ENDS:
                continue
            if is_queued:
                is_late = type(stored) is PredictionTimeout
                self._recorded.append(self._timeout if is_late else stored)
                self.taken += self._is_outside and stored is not None
            is_start = place is not None and kind is ModelChange
            yield replace(event, **place or {}) if is_start else event

    def predict(self, unit: Unit) -> list[Prediction]:
        """Return the answer to each event of *unit*, the oldest unanswered one."""
        if self._scan is not None:
            return self._scan.predict(unit)
        events = events_of(unit)
        if self._inline is None and not self._is_outside:
            return [None] * len(events)
        recorded = [self._recorded.popleft() for _ in events]
        return recorded if self._inline is None else self._inline.predict(unit, recorded)


def run_in(
    reader: Reader, recorded: RecordedRun, predictor: RecordedPredictor, events: Iterable[Event]
) -> Iterator[Event]:
    """Feed the events before the beginning to engine and model; return the rest of *events*."""
    remaining = iter(events)
    beginning, run_id = recorded.beginning, recorded.run.run_id
    if beginning is None:
        return remaining
    restart = Restart(recorded.engine)
    for bar in reader.frame_bars(run_id, until=beginning.fed_from - 1):
        restart.repeat(bar)
    for gap in reader.gaps_since_start(run_id, until=beginning.fed_from - 1):
        restart.repeat(gap)
    for unit in gathered(islice(remaining, beginning.after + 1 - beginning.fed_from)):
        predictor.predict(unit)
        for event in events_of(unit):
            restart.repeat(event)
    return remaining


# ---------------------------------------------------------------- without its model


class RecordedForecaster:
    """Replaces a model whose forecasts are stored: it has the card, and no weights.

    Asking it raises ``InvariantBroken``: ``RecordedPredictor`` answers from the record.
    """

    is_outside = True
    causal = False
    scanned_at_once = 1
    vectors = None

    def __init__(
        self, run: RunRow, card: Mapping[str, Any], forecasts: Sequence[Forecast], *, context: int
    ) -> None:
        """Take the recorded *card* of the model of *run*, and some of its *forecasts*."""
        self.model_id, self.model_sha256 = run.model_id, run.model_sha256
        self.mode, self.device, self.dtype = run.mode, run.device, run.dtype
        self.threads, self.backend = run.threads, run.backend
        self.bucket_bars = run.bucket_bars
        self.context, self.horizons = context, forecasts[0].horizons
        section = section_of(card, "calibration", {})
        # No gate reads what a network without content would give: forecasts carry it.
        self.calibration = calibration_of(section, 0.0, self.horizons)
        self.every = section_of(card, "architecture", {}).get("every")  # of one of several symbols
        declared = card.get("measures", {}).get("given")
        self.measures = frozenset(declared or set().union(*map(_measures_of, forecasts)))

    def _reject(self, *_arguments: object, **_named: object) -> NoReturn:
        raise InvariantBroken("a model that is not loaded was asked for a forecast")

    warm = step = predict_many = scan = _reject


def _measures_of(forecast: Forecast) -> set[str]:
    """Return which of ``MEASURES`` and ``HEAD_MEASURES`` *forecast* holds."""
    given, heads = answer_of(forecast), forecast.heads
    measures = {name for name, of in OF_MEASURE.items() if given.keys() >= set(of)}
    return measures | {name for name in HEAD_MEASURES if getattr(heads, name, b"")}


# ---------------------------------------------------------------- into a new run


def rerun_recorded(
    spec: str, audit: SqlAuditLog, database: Path, tally: Tally, *, started_at_ms: int
) -> str:
    """Replay the run *spec* (``FILE.db#RUN``) into *audit*; return the id of the new run.

    It keeps the run's mode, warm-up and timeouts, so every decision must be equal.
    """
    named = located(spec, None)
    with Reader.open(named.path) as reader:
        recorded = open_recorded(reader, named.path, named.run_id)
        prober = None
        if recorded.forecaster is not None:
            prober = _reload_model(recorded, named.path, into=database)
        here = start_event(recorded.forecaster, warm_from=(), market_ms=0)
        place = {name: getattr(here, name) for name in ENVIRONMENT_FIELDS}
        run = replace(
            recorded.run,
            run_id=secrets.token_hex(8),
            kind=RunKind.REPLAY,
            started_at_ms=started_at_ms,
            **place,
        )
        audit.begin(run, recorded.engine.gate_sets)
        predictor = RecordedPredictor(recorded, prober)
        events = predictor.events(reader, named.run_id, place=place)
        run_events(events, predictor, recorded.engine, audit, tally)
    return run.run_id
