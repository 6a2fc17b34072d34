"""Runs known events through the engine into a log."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain, islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Protocol

from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.engine.units import UnitQueue
from tracepaper.daemon.session.loop import (
    BarHistory,
    InlinePredictor,
    KnownPredictor,
    events_of,
    gathered,
    steps_of,
)
from tracepaper.daemon.session.run_row import start_event
from tracepaper.replay.backtest.predictors import CHUNK_EVENTS, ScanPredictor
from tracepaper.strategies.api.strategy import Forecaster
from tracepaper.strategies.types.decisions import (
    ForecastColumns,
    GateSet,
    Prediction,
    QuietStretch,
    RunRow,
    Step,
)
from tracepaper.strategies.types.market import Bar, Event, Unit

if TYPE_CHECKING:
    from tracepaper.replay.backtest.build import Replay

PROGRESS_EVENTS: Final = 512
"""A replay reports its progress, and checks whether to stop, after so many events or closes.

A model that steps bar by bar needs a second or two for them.
"""
_OBJECTS_UNTIL_COLLECTION: Final = 50_000


Progress = Callable[[int], None]


@dataclass
class Tally:
    """Counts of a replay so far; ``equity`` is the money (10⁻⁸) after its last step."""

    progress: Progress = lambda _bars: None
    stopped: Callable[[], bool] = lambda: False
    bars: int = 0
    decisions: int = 0
    equity: int = 0
    finished: bool = True


@dataclass(frozen=True)
class Watch:
    """Callbacks of a replay: its progress, and whether to stop."""

    progress: Callable[[Replay], AbstractContextManager[Progress]] = lambda _replay: nullcontext(
        lambda _bars: None
    )
    stopped: Callable[[], bool] = lambda: False


@contextmanager
def settled_heap() -> Iterator[None]:
    """Exclude objects that exist before the first event from garbage collection; collect rarely.

    A model has half a million of them. Walking them in each full collection costs 5 % of a replay,
    walking the forecasts read ahead in every small one 3 %.
    """
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(_OBJECTS_UNTIL_COLLECTION, *thresholds[1:])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


def run_events(
    events: Iterable[Event],
    predictor: KnownPredictor,
    engine: Engine,
    log: StepLog,
    tally: Tally,
    *,
    stretches: bool = True,
) -> None:
    """Run known *events* through *engine* into *log*; if stopped, keep every completed step.

    *predictor* answers in this thread, and steps are committed in groups, since a replay can be
    repeated. The next event, or the bars of the next close, is drawn only after the last was
    processed: ``ScanPredictor`` relies on that. Consecutive steps that only change prices are
    computed together as a stretch, unless *stretches* is false: a stretch draws events while the
    engine's state is behind them.
    """
    units = UnitQueue(gathered(events))
    predict = None if predictor.is_silent else predictor.predict
    count = 0
    due = PROGRESS_EVENTS
    with settled_heap():
        while (unit := units.unit) is not None:
            room = min(log.room, due - count)
            stretch = None
            if stretches:
                stretch = engine.stretch(units, room, predict, predictor.columns)
            if stretch is not None:
                log.append_stretch(stretch)
                count += stretch.units
                tally.bars += len(stretch.plausible)
                tally.decisions += len(stretch.plausible)
            else:
                predictions = None if predict is None else units.predictions(predict)
                steps = steps_of(engine, unit, predictions)
                log.append_now(*steps)
                count += 1
                for step in steps:
                    tally.bars += type(step.event) is Bar
                    tally.decisions += step.decision is not None
                units.advance()
            if count == due:
                due += PROGRESS_EVENTS
                tally.progress(tally.bars)
                if tally.stopped():
                    tally.finished = False
                    break
    if units.error is not None and tally.finished:
        raise units.error
    log.flush()
    if count:
        tally.equity = engine.broker.account.balance().equity
    tally.progress(tally.bars)


def run_replay(replay: Replay, log: StepLog, tally: Tally) -> None:
    """Open the run of *replay* and run it to its end, or until it is stopped."""
    predictions = predictor_over(replay)
    log.begin(replay.run, replay.engine.gate_sets)
    run_events(predictions.events(replay), predictions.predictor, replay.engine, log, tally)
    replay.engine.expect({})  # an engine may outlive its run until it is collected


@dataclass(frozen=True)
class ReplayPredictor:
    """How a replay gets its forecasts: ``ahead`` wraps the events, ``predictor`` answers them."""

    predictor: KnownPredictor
    ahead: Callable[[Iterable[Event]], Iterable[Event]] = lambda events: events
    history: BarHistory | None = None
    prober: Forecaster | None = None  # computes sampled bars of a scan again

    def events(self, replay: Replay) -> Iterable[Event]:
        """Return the start event of *replay* and all its events, ready for ``predictor``."""
        start = start_event(replay.forecaster, warm_from=(), market_ms=replay.feed.period_start_ms)
        return self.ahead(chain((start,), replay.feed.events()))


class StepLog(Protocol):
    """Receives the steps of a run, in order: a ``SqlAuditLog`` or a ``MemoryLog``."""

    def begin(self, run: RunRow, gate_sets: Sequence[GateSet]) -> None:
        """Open *run* with the *gate_sets* known at its start."""
        ...

    @property
    def room(self) -> int:
        """Steps until the current group is full, the limit of a stretch."""
        ...

    def append_now(self, *steps: Step) -> None:
        """Append *steps*, all or none."""
        ...

    def append_stretch(self, stretch: QuietStretch) -> None:
        """Append the steps of *stretch*."""
        ...

    def flush(self) -> None:
        """Store the appended steps."""
        ...


class _NoForecasts:
    """Predicts nothing: for strategies that need no forecast."""

    is_silent = True
    columns: Mapping[str, ForecastColumns] = MappingProxyType({})

    def predict(self, unit: Unit) -> Sequence[Prediction]:
        """Return None for each event of *unit*."""
        return (None,) * len(events_of(unit))


def predictor_over(
    replay: Replay, *, in_blocks: bool = True, probes: bool = True
) -> ReplayPredictor:
    """Return the predictor of *replay*.

    What depends on bars alone is computed *in_blocks* ahead, or else bar by bar, as live. If
    *probes*, sampled rows of declared columns are computed again without later bars.
    """
    predictions = _predictor_over(replay)
    if in_blocks:
        replay.engine.expect({part.instrument: part.columns for part in replay.feed.candles})
    if not replay.engine.has_columns or not in_blocks:
        return predictions
    if probes:
        replay.engine.probe_columns()
    return replace(
        predictions, ahead=lambda events: foreseen(predictions.ahead(events), replay.engine)
    )


def foreseen(events: Iterable[Event], engine: Engine) -> Iterator[Event]:
    """Yield *events* after passing each chunk of them to ``Engine.precompute_columns``."""
    remaining = iter(events)
    while chunk := [*islice(remaining, CHUNK_EVENTS)]:
        engine.precompute_columns(chunk)
        yield from chunk


def _predictor_over(replay: Replay) -> ReplayPredictor:
    """Return a predictor that gives nothing, scans known bars in one pass, or steps each bar."""
    forecaster, start_ms = replay.forecaster, replay.run.period_start_ms
    if forecaster is None:
        return ReplayPredictor(_NoForecasts())
    keys = [item.id for item in replay.instruments]
    if forecaster.mode != "scan" or not forecaster.causal:
        history = BarHistory(keys, context=forecaster.context)
        inline = InlinePredictor(forecaster, history, period_start_ms=start_ms)
        return ReplayPredictor(inline, history=inline.history)
    prober = replay.prober()
    scan = ScanPredictor(forecaster, prober, keys, period_start_ms=start_ms)
    return ReplayPredictor(scan, scan.read_ahead, scan.history, prober)
