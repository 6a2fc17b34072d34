"""Runs known events through the engine into a log."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain, islice
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
from tracepaper.strategies.types.decisions import GateSet, Prediction, QuietStretch, Run, Step
from tracepaper.strategies.types.market import (
    Bar,
    Event,
    Unit,
)

if TYPE_CHECKING:
    from tracepaper.replay.backtest.build import Replay

PROGRESS_EVENTS: Final = 512
"""Events or closes after which a replay says how far it is, and asks whether it shall stop.

A model that steps bar by bar takes a second or two for them.
"""


Progress = Callable[[int], None]


@dataclass
class Tally:
    """What a replay has done so far; ``equity`` in money (10⁻⁸) after its last step."""

    progress: Progress = lambda _bars: None
    stopped: Callable[[], bool] = lambda: False
    bars: int = 0
    decisions: int = 0
    equity: int = 0
    finished: bool = True


@dataclass(frozen=True)
class Watch:
    """Who looks on: shows how far a replay is, and is asked whether it shall stop."""

    progress: Callable[[Replay], AbstractContextManager[Progress]] = lambda _replay: nullcontext(
        lambda _bars: None
    )
    stopped: Callable[[], bool] = lambda: False


@contextmanager
def settled_heap() -> Iterator[None]:
    """Keep the garbage collector from what was built before the first event.

    With a model that is half a million objects, and each full collection walks them all: a
    twentieth of a replay's time.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def run_events(
    events: Iterable[Event],
    predictor: KnownPredictor,
    engine: Engine,
    log: StepLog,
    tally: Tally,
) -> None:
    """Take known *events* through *engine* into *log*, whole wherever it stops.

    Nothing is awaited: the events are there, *predictor* answers in this thread, and steps are
    committed in groups, for a replay can always be run again. An event, or the bars of one close,
    is drawn only when the one before was dealt with: what reads ahead (``ScanPredictor``) relies
    on that. Where nothing is predicted, steps that change only prices are taken together.
    """
    units = UnitQueue(gathered(events))
    count = 0
    due = PROGRESS_EVENTS
    with settled_heap():
        while units.peek() is not None:
            room = min(log.room, due - count)
            stretch = engine.stretch(units, room) if predictor.is_silent else None
            if stretch is not None:
                log.append_stretch(stretch)
                count += stretch.units
                tally.bars += len(stretch.plausible)
                tally.decisions += len(stretch.plausible)
            else:
                unit = units.next()
                steps = steps_of(engine, unit, predictor.predict(unit))
                log.append_now(*steps)
                count += 1
                for step in steps:
                    tally.bars += type(step.event) is Bar
                    tally.decisions += step.decision is not None
            if count == due:
                due += PROGRESS_EVENTS
                tally.progress(tally.bars)
                if tally.stopped():
                    tally.finished = False
                    break
    log.flush()
    if count:
        tally.equity = engine.broker.account.balance().equity
    tally.progress(tally.bars)


def run_replay(replay: Replay, log: StepLog, tally: Tally) -> None:
    """Open the run of *replay* and take it to its end, or until it is stopped."""
    predictions = predictor_over(replay)
    log.begin(replay.run, replay.engine.gate_sets)
    run_events(predictions.events(replay), predictions.predictor, replay.engine, log, tally)


@dataclass(frozen=True)
class ReplayPredictor:
    """How a replay is answered: ``ahead`` wraps the events, ``predictor`` answers them."""

    predictor: KnownPredictor
    ahead: Callable[[Iterable[Event]], Iterable[Event]] = lambda events: events
    history: BarHistory | None = None
    prober: Forecaster | None = None  # which samples the bars of a pass over known ones

    def events(self, replay: Replay) -> Iterable[Event]:
        """Return the start of *replay* and all its events, ready to be predicted."""
        start = start_event(replay.forecaster, warm_from=(), market_ms=replay.feed.period_start_ms)
        handed_on = self.ahead(chain((start,), replay.feed.events()))
        return replay.with_books(handed_on, frames_read=lambda _key: 0)


class StepLog(Protocol):
    """Takes the steps of a run, in order: a ``SqlAuditLog``, or a ``MemoryLog``."""

    def begin(self, run: Run, gate_sets: Sequence[GateSet]) -> None:
        """Open *run* with the *gate_sets* known at its start."""
        ...

    @property
    def room(self) -> int:
        """Steps until a group is full; a stretch has no more."""
        ...

    def append_now(self, *steps: Step) -> None:
        """Take *steps*: all of them or none are kept."""
        ...

    def append_stretch(self, stretch: QuietStretch) -> None:
        """Take the steps of *stretch*."""
        ...

    def flush(self) -> None:
        """Keep what was taken."""
        ...


class _NoForecasts:
    """Predicts nothing: for strategies that need no forecast."""

    is_silent = True

    def predict(self, unit: Unit) -> Sequence[Prediction]:
        """Return None for each event of *unit*."""
        return (None,) * len(events_of(unit))


def predictor_over(replay: Replay) -> ReplayPredictor:
    """Return the predictor of *replay*; columns that a strategy declares see its bars ahead."""
    predictions = _predictor_over(replay)
    if not replay.engine.has_columns:
        return predictions
    return replace(
        predictions, ahead=lambda events: _foreseen(predictions.ahead(events), replay.engine)
    )


def _foreseen(events: Iterable[Event], engine: Engine) -> Iterator[Event]:
    """Yield *events*, of which *engine* is shown many before the first of them comes."""
    remaining = iter(events)
    while chunk := [*islice(remaining, CHUNK_EVENTS)]:
        engine.foresee(chunk)
        yield from chunk


def _predictor_over(replay: Replay) -> ReplayPredictor:
    """Return none, one pass over known bars, or a step for each bar."""
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
