"""Runs known events through the engine into a database; resumes interrupted replays."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Final, Protocol

from tracepaper.daemon.config.loading import restore
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
from tracepaper.daemon.session.resume import recall_events, restore_engine
from tracepaper.daemon.session.run_row import continues, sessions_of, start_event
from tracepaper.replay.archive.sessions import SessionsFor, reaching
from tracepaper.replay.backtest.build import Replay, build
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.replay.backtest.predictors import CHUNK_EVENTS, ScanPredictor
from tracepaper.storage.audit import ResumePoint, SqlAuditLog
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.run_views import actions_of
from tracepaper.strategies.api.strategy import Forecaster
from tracepaper.strategies.book_features import WANTED, books_read_by
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.types.decisions import GateSet, Prediction, QuietStretch, Run, Step
from tracepaper.strategies.types.market import (
    Bar,
    Closed,
    CorporateAction,
    Depths,
    Event,
    FrameBar,
    Funding,
    Gap,
    RunKind,
    Unit,
    UniverseChange,
)

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
        tally.equity = engine.broker.own.balance().equity
    tally.progress(tally.bars)


def run_replay(replay: Replay, log: StepLog, tally: Tally) -> None:
    """Open the run of *replay* and take it to its end, or until it is stopped."""
    way = predictor_over(replay)
    log.begin(replay.run, replay.engine.gate_sets)
    run_events(way.events(replay), way.predictor, replay.engine, log, tally)


@dataclass(frozen=True)
class ReplayPredictor:
    """How a replay is answered: ``ahead`` wraps the events, ``predictor`` answers them."""

    predictor: KnownPredictor
    ahead: Callable[[Iterable[Event]], Iterable[Event]]
    history: BarHistory | None
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
    way = _predictor_over(replay)
    if not replay.engine.has_columns:
        return way
    return replace(way, ahead=lambda events: _foreseen(way.ahead(events), replay.engine))


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
        return ReplayPredictor(_NoForecasts(), lambda events: events, None)
    keys = [item.id for item in replay.instruments]
    if forecaster.mode != "scan" or not forecaster.causal:
        history = BarHistory(keys, context=forecaster.context)
        inline = InlinePredictor(forecaster, history, period_start_ms=start_ms)
        return ReplayPredictor(inline, lambda events: events, inline.history)
    prober = replay.prober()
    scan = ScanPredictor(forecaster, prober, keys, period_start_ms=start_ms)
    return ReplayPredictor(scan, scan.read_ahead, scan.history, prober)


# ---------------------------------------------------------------- go on with an interrupted replay


def sessions_before(database: Path, wanted: str) -> SessionsFor | None:
    """Return a function that gives the sessions with which the run *wanted* was opened.

    The package that computed them may say something else by now. None where it counts intervals.
    """
    with Reader.open(database) as reader:
        sessions = sessions_of(reader.stored_run(reader.find(wanted)).run)
    return None if sessions is None else partial(reaching, sessions)


def resume_replay(
    wanted: str,
    data: MarketData,
    audit: SqlAuditLog,
    database: Path,
    tally: Tally,
    *,
    until_ms: int | None = None,
) -> str:
    """Go on with the replay *wanted* over the same *data*, until *until_ms*; return its run id.

    Raises what :func:`resumed_replay` raises.
    """
    replay, predictor, events = resumed_replay(wanted, data, audit, database, until_ms=until_ms)
    run_events(events, predictor, replay.engine, audit, tally)
    return replay.run.run_id


def resumed_replay(
    wanted: str,
    data: MarketData,
    audit: SqlAuditLog,
    database: Path,
    *,
    until_ms: int | None = None,
) -> tuple[Replay, KnownPredictor, Iterable[Event]]:
    """Return the replay *wanted* as a new process goes on with it, and the events that follow.

    Raises ``ConfigInvalid`` where it is no replay, is finished, or was made by other code.
    """
    with Reader.open(database) as reader:
        run_id = reader.find(wanted)
        stored = reader.stored_run(run_id)
        has_ended = reader.ended_at_ms(run_id) is not None
    run = stored.run
    if run.kind is not RunKind.REPLAY:
        raise ConfigInvalid(f"Run {run_id} is a {run.kind.value} run; only a replay is resumed.")
    if has_ended:
        raise ConfigInvalid(f"Run {run_id} is finished; start a new replay.")
    config = restore(run.config)
    if bool(data.depth) != bool(config.market.depth):
        raise ConfigInvalid(
            f"Run {run_id} was made without order books; leave --depth out."
            if data.depth
            else f"Run {run_id} was made with order books; give the same --depth."
        )
    replay = build(
        config,
        data,
        started_at_ms=run.started_at_ms,
        from_ms=None if not stored.step_count else run.period_start_ms,
        until_ms=until_ms,
        mode=run.mode or "scan",
        database=database,
    )
    if not continues(run, replay.config, replay.forecaster, model_sha256=run.model_sha256):
        raise ConfigInvalid(
            f"Run {run_id} was made by {run.code_version} with another configuration, strategy, "
            "code, checkpoint or covariates; start a new replay."
        )
    _refuse_short(replay, database, run_id)
    resumed = audit.resume(run_id)
    with Reader.open(database) as reader:
        held = {_frame_key(bar) for bar in reader.frame_bars(run_id)}
        booked = [action for _, action in actions_of(reader.connection, run)]
        choice = reader.newest_of(run_id, UniverseChange)
        chosen_ms = -1 if choice is None else choice.market_ms
        query = "SELECT instrument, from_ms FROM v_gaps WHERE run_id = ?"
        gaps = set(reader.connection.execute(query, (run_id,)))
    engine, market = replay.engine, replay.config.market
    # A start forgets the books, so those are handed on again that are looked at next.
    of_model = WANTED if books_read_by(replay.forecaster) else 0
    seen_ms = {
        key: open_ms
        + market.interval_ms
        - max(engine.books_of(key), of_model) * market.depth_every_ms
        for key, open_ms in resumed.last_open_ms.items()
    }
    rest = (
        event
        for event in replay.feed.events()
        if event not in booked and _is_new(event, resumed, held, seen_ms)
        if not isinstance(event, UniverseChange) or event.market_ms > chosen_ms
        if not isinstance(event, Gap) or (event.instrument, event.from_ms) not in gaps
    )
    way = predictor_over(replay)
    history = way.history
    with Reader.open(database) as reader:
        restore_engine(replay.engine, reader, resumed, history)
        bars = [] if history is None else [*chain(*history.known().values())]
        for model in (replay.forecaster, way.prober):
            recall_events(model, reader, run_id, bars)
    warm_from = () if history is None else history.warm_from()
    start = start_event(
        replay.forecaster,
        warm_from=warm_from,
        market_ms=max(resumed.last_open_ms.values(), default=run.period_start_ms),
    )
    queues = engine.broker.frames_read()
    handed_on = replay.with_books(
        way.ahead(chain((start,), rest)),
        frames_read=lambda key: queues.get(key, 0),
        known_ms=max(
            (at_ms + market.interval_ms for at_ms in resumed.last_open_ms.values()), default=0
        ),
    )
    return replay, way.predictor, handed_on


def _refuse_short(replay: Replay, database: Path, run_id: str) -> None:
    """Refuse to go on where a prune left fewer bars than decide: it would decide otherwise."""
    context = 0 if replay.forecaster is None else replay.forecaster.context
    with Reader.open(database) as reader:
        if reader.pruned(reader.stored_run(run_id).run_key) is None:
            return
        for item in replay.instruments:
            wanted = max(replay.engine.warmup_of(item.id), context)
            held = len(reader.bars(run_id, item.id, wanted))
            if held < wanted:
                raise DataInvalid(
                    f"Run {run_id} was pruned to {held:,} bars of {item.id}, and its decisions "
                    f"depend on {wanted:,}; start a new replay."
                )


def _frame_key(bar: FrameBar) -> tuple[str, int, int]:
    """Return the identity of a higher timeframe's candle."""
    return bar.instrument, bar.interval_ms, bar.open_time_ms


def _is_new(  # noqa: PLR0911 - one case an event
    event: Event,
    resumed: ResumePoint,
    frame_bars: Collection[tuple[str, int, int]],
    books_ms: Mapping[str, int],
) -> bool:
    """Return whether *event* comes after what the run already holds, *frame_bars* included.

    Of order books those count as new that stood so after *books_ms*.
    """
    match event:
        case Depths():
            return event.market_ms > books_ms.get(event.instrument, -1)
        case Bar():
            return event.open_time_ms > resumed.last_open_ms.get(event.instrument, -1)
        case Closed():  # of its bars all are stored or none
            return event.open_time_ms > max(resumed.last_open_ms.values(), default=-1)
        case FrameBar():
            return _frame_key(event) not in frame_bars
        case CorporateAction():
            return event.market_ms > resumed.last_open_ms.get(event.instrument, -1)
        case Funding():
            return event.market_ms > resumed.last_funding_ms.get(event.instrument, -1)
        case Gap():
            return event.from_ms > resumed.last_open_ms.get(event.instrument, -1)
        case _:
            return True
