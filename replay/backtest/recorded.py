"""A recorded run as a feed: its own events, its own start, its own checkpoint.

``verify`` re-derives a run from here, and ``replay --data FILE.db#RUN`` feeds it into a new one.
The model goes the way it went then: warmed at every recorded start with the bars that the start
names, and ``PredictionTimeout`` wherever it was late.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from tracepaper.daemon.commands.options import located
from tracepaper.daemon.config.loading import Config, restore
from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.engine.state import ModelTerms, decode_state
from tracepaper.daemon.session.build import build_engine, needs_forecaster, terms_for
from tracepaper.daemon.session.models import recorded_forecaster
from tracepaper.daemon.session.predictor import BarHistory, InlinePredictor
from tracepaper.daemon.session.run_record import OF_THE_PLACE, sessions_of, start_event
from tracepaper.daemon.session.user_model import UserForecaster, refuse_other_model
from tracepaper.daemon.session.vectors import kept_vectors_of, require_known, vectors_of
from tracepaper.replay.backtest.run import Tally, run_events
from tracepaper.replay.backtest.scan import ScanPredictor
from tracepaper.storage import checkpoints
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.reader import Reader
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.strategy import Forecaster
from tracepaper.strategies.types import (
    ACTING_ONLY,
    Bar,
    Event,
    FillModel,
    Instrument,
    ModelChange,
    Prediction,
    PredictionTimeout,
    Reading,
    Retrained,
    RetrainOutcome,
    Run,
    RunEnd,
    RunKind,
)


@dataclass(frozen=True)
class Recorded:
    """A run from its record, ready to be stepped through again."""

    run: Run
    config: Config
    engine: Engine
    forecaster: Forecaster | None


def open_recorded(reader: Reader, database: Path, run_id: str) -> Recorded:
    """Rebuild the engine of *run_id* as it stood before its first event.

    Raises ``DataInvalid`` where the record has no start any more (it was pruned), and
    ``CheckpointMismatch`` where its checkpoint is neither beside the database nor bundled.
    """
    stored = reader.stored_run(run_id)
    run = stored.run
    if reader.pruned(stored.run_key) is not None:
        raise DataInvalid(f"Run {run_id} was pruned, so its start is gone; choose a younger run.")
    if not run.keeps_every_step:
        raise DataInvalid(f"Run {run_id} says: {ACTING_ONLY}; replay its candles in full.")
    config = restore(run.config)
    if config.execution.model == "auto":
        raise ConfigInvalid(f"Run {run_id} does not say how its orders were filled.")
    forecaster = None
    if needs_forecaster(config):
        forecaster = recorded_forecaster(
            config,
            database,
            run.model_id,
            mode=run.mode,
            backend=run.backend,
            vectors=kept_vectors_of(run.libraries),
        )
        if isinstance(forecaster, UserForecaster):
            refuse_other_model(forecaster, run.model_sha256, run_id)
        elif forecaster.model_sha256 != run.model_sha256:
            kept = checkpoints.find_kept(database, run.model_id)
            raise DataInvalid(f"{kept} is not the checkpoint that run {run_id} used; restore it.")
    engine = engine_of(run, config, forecaster, run.instruments)
    _restore_parent(reader, run, engine)
    return Recorded(run, config, engine, forecaster)


def engine_of(
    run: Run, config: Config, forecaster: Forecaster | None, instruments: Sequence[Instrument]
) -> Engine:
    """Return an engine as each start of *run* builds it, with the filters of *instruments*."""
    return build_engine(
        config,
        instruments,
        execution=FillModel(config.execution.model),
        period_start_ms=run.period_start_ms,
        forecaster=forecaster,
        sessions=sessions_of(run),
    )


def prober_of(recorded: Recorded, database: Path) -> Forecaster | None:
    """Return a second forecaster of the same checkpoint, for a run that went by one pass."""
    run = recorded.run
    if recorded.forecaster is None or run.mode != "scan":
        return None
    return _made_again(recorded, database)


def _made_again(recorded: Recorded, database: Path, *, into: Path | None = None) -> Forecaster:
    """Return the run's model made once more; what it is, is kept beside *into*."""
    run = recorded.run
    found = recorded_forecaster(
        recorded.config,
        database,
        run.model_id,
        mode=run.mode,
        backend=run.backend,
        into=into,
        vectors=kept_vectors_of(run.libraries),
    )
    if isinstance(found, UserForecaster):
        found.scale(run.instruments)
    return found


def _restore_parent(reader: Reader, run: Run, engine: Engine) -> None:
    """Give *engine* the account and orders of the run's parent, as its first start did."""
    if run.parent_run_id is None:
        return
    first = next(iter(reader.steps(run.run_id)), None)
    if first is None or first.step.state is None:
        raise DataInvalid(f"Run {run.run_id} does not hold its first step; restore a backup.")
    engine.restore(decode_state(first.step.state), next_sequence=0, taken_over=True)


class RecordedPredictor:
    """Hands out recorded events in order, and answers each by the model as it went then.

    A model that was promoted in service is taken from where it is kept beside *database*.
    """

    def __init__(self, recorded: Recorded, prober: Forecaster | None, database: Path) -> None:
        run, forecaster = recorded.run, recorded.forecaster
        self._of, self._database = recorded, database
        self._promoted: dict[str, ModelTerms] = {}
        # That it was late is recorded; which deadline it missed is the configuration's.
        self._timeout = PredictionTimeout(recorded.config.model.deadline_ms)
        keys = [item.id for item in run.instruments]
        self._recorded: deque[Prediction] = deque()
        self._inline: InlinePredictor | None = None
        self._scan: ScanPredictor | None = None
        self.taken = 0  # answers of an outside service, which are taken from the record
        self._is_outside = forecaster is not None and forecaster.is_outside
        if forecaster is None or self._is_outside:
            return
        if run.mode == "scan" and prober is not None:
            self._scan = ScanPredictor(
                forecaster, prober, keys, period_start_ms=run.period_start_ms
            )
        else:
            history = BarHistory(keys, context=forecaster.context)
            self._inline = InlinePredictor(forecaster, history, period_start_ms=run.period_start_ms)

    def events(self, reader: Reader, run_id: str) -> Iterator[Event]:
        """Yield the recorded events in order."""
        plain = self._plain(reader, run_id)
        return plain if self._scan is None else self._scan.read_ahead(plain)

    @property
    def forecaster(self) -> Forecaster | None:
        """The model that answers now."""
        return self._of.forecaster if self._inline is None else self._inline.forecaster

    def is_promotion(self, change: ModelChange) -> bool:
        """Return whether *change*, which is not answered yet, is no start of the process."""
        now = "" if self.forecaster is None else self.forecaster.model_sha256
        return change.model_sha256 != now and not change.warm_from

    def prepare(self, engine: Engine) -> None:
        """Let *engine*, made anew in the midst of the run, know the model that comes next."""
        now = "" if self.forecaster is None else self.forecaster.model_sha256
        for sha256, terms in self._promoted.items():
            if sha256 != now:
                engine.prepare(sha256, terms)

    def _promote(self, event: Retrained) -> None:
        """Load the model that *event* promoted, for the change to it.

        Raises ``CheckpointMismatch`` where it is gone, or another is kept in its place.
        """
        of, model_id = self._of, event.candidate_sha256[: checkpoints.ID_DIGITS]
        found = recorded_forecaster(
            of.config, self._database, model_id, mode=of.run.mode, backend=of.run.backend
        )
        if found.model_sha256 != event.candidate_sha256:
            raise DataInvalid(
                f"{checkpoints.find_kept(self._database, model_id)} is not the model that was "
                f"promoted in run {of.run.run_id}; restore it."
            )
        assert self._inline is not None
        self._inline.prepare(found)
        terms = terms_for(of.config, of.engine, found, of.run)
        self._promoted[found.model_sha256] = terms
        of.engine.prepare(found.model_sha256, terms)

    def _plain(self, reader: Reader, run_id: str) -> Iterator[Event]:
        for _, _, event, stored in reader.events(run_id):
            if isinstance(event, Retrained) and event.outcome is RetrainOutcome.PROMOTED:
                self._promote(event)
            if isinstance(event, Reading):
                require_known(vectors_of(self.forecaster), event, run_id)
            if self._inline is not None or self._is_outside:
                was_late = isinstance(stored, PredictionTimeout)
                self._recorded.append(self._timeout if was_late else stored)
                self.taken += self._is_outside and stored is not None
            yield event

    def predict(self, event: Event) -> Prediction:
        """Return the answer to *event*, which must be the oldest not yet answered."""
        if self._scan is not None:
            return self._scan.predict(event)
        if self._inline is not None:
            return self._inline.predict(event, self._recorded.popleft())
        return self._recorded.popleft() if self._is_outside else None

    def predict_close(self, bars: Sequence[Bar]) -> list[Prediction]:
        """Return the answers to *bars*, which must be the oldest not yet answered."""
        if self._scan is not None:
            return self._scan.predict_close(bars)
        if self._inline is not None:
            return self._inline.predict_close(bars, [self._recorded.popleft() for _ in bars])
        if self._is_outside:
            return [self._recorded.popleft() for _ in bars]
        return [None] * len(bars)


# ---------------------------------------------------------------- into a new run


def rerun_recorded(
    spec: str, audit: SqlAuditLog, database: Path, tally: Tally, *, started_at_ms: int
) -> str:
    """Feed the run that *spec* (``FILE.db#RUN``) names into *audit*; return the new run's id.

    On the run's own mode and warm-up, with its timeouts: every ``decision_sha256`` must
    come out equal.
    """
    named = located(spec, None)
    with Reader.open(named.path) as reader:
        recorded = open_recorded(reader, named.path, named.run_id)
        prober = None
        if recorded.forecaster is not None:
            prober = _made_again(recorded, named.path, into=database)
        here = start_event(recorded.forecaster, warm_from=(), market_ms=0)
        place = {name: getattr(here, name) for name in OF_THE_PLACE}
        run = msgspec.structs.replace(
            recorded.run,
            run_id=secrets.token_hex(8),
            kind=RunKind.REPLAY,
            started_at_ms=started_at_ms,
            **place,
        )
        audit.begin(run, recorded.engine.gate_sets)
        predictor = RecordedPredictor(recorded, prober, named.path)
        for sha256 in reader.promoted(named.run_id):
            kept = checkpoints.find_kept(named.path, sha256[: checkpoints.ID_DIGITS])
            checkpoints.keep(kept, database)
        events = _made_here(predictor.events(reader, named.run_id), place)
        run_events(events, predictor, recorded.engine, audit, tally)
    return run.run_id


def _made_here(events: Iterable[Event], place: dict[str, Any]) -> Iterator[Event]:
    """Yield *events* without ends, and with starts that say where they are made now."""
    for event in events:
        if isinstance(event, ModelChange):
            yield msgspec.structs.replace(event, **place)
        elif not isinstance(event, RunEnd):
            yield event
