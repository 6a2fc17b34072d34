"""Runs derived in fresh processes: their records in memory, with values that no record has.

A job runs there as a replay does, with quiet stretches as a unit, and sends its result. Two runs
are compared by the rows of their records; only unequal rows are decoded to steps.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from multiprocessing.connection import Connection
from operator import itemgetter
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from tracepaper.daemon.clock import SystemClock, jump_clocks
from tracepaper.daemon.config.loading import Config, custom_classes
from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.session.build import build_engine, needs_forecaster
from tracepaper.daemon.session.loop import KnownPredictor
from tracepaper.daemon.session.models import load_forecaster
from tracepaper.daemon.session.run_row import sessions_of
from tracepaper.daemon.session.user_class import user_class
from tracepaper.daemon.session.user_code import Code, custom_folder, declared_files
from tracepaper.daemon.session.user_model import (
    feature_function,
    model_class,
    model_files,
    user_model,
)
from tracepaper.replay.backtest.build import build
from tracepaper.replay.backtest.make import resumed_replay
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.replay.backtest.recorded import RecordedPredictor, RecordedRun
from tracepaper.replay.backtest.run import Tally, predictor_over, run_events
from tracepaper.replay.checks import external_inputs, perturbations
from tracepaper.replay.checks.compare import Difference
from tracepaper.replay.checks.external_inputs import ExternalInput
from tracepaper.replay.checks.judgement import DerivedStep, Signals, difference_of, same_signal
from tracepaper.replay.checks.memory import Memory, memory_of
from tracepaper.storage.database.chunks import interned
from tracepaper.storage.database.reader import Fed
from tracepaper.storage.memory_log import IN_MEMORY, MemoryLog
from tracepaper.storage.record.decode import STEP, StepDecoder, StoredRows
from tracepaper.strategies.api.strategy import decision_bars
from tracepaper.strategies.api.timeframes import Row
from tracepaper.strategies.types.decisions import FillModel, RunRow, Step
from tracepaper.strategies.types.market import Bar, CloseStart, Event, Instrument

if TYPE_CHECKING:
    from tracepaper.strategies.types.decisions import QuietStretch

NewestFrames = tuple[tuple[int, int, Row | None], ...]
"""For each higher timeframe: its length, the number of bars wanted, the newest one passed on."""


@dataclass(frozen=True)
class Accesses:
    """What the user's classes accessed in a process."""

    opened: tuple[ExternalInput, ...]  # and not declared
    declared: tuple[str, ...]  # paths, without those of [model] files
    modules: tuple[str, ...]  # files of the class that Python imported
    unset: tuple[str, ...]  # variables that were read in an empty environment
    native: tuple[str, ...]
    compiled: tuple[str, ...]  # installed modules that must be loaded before clocks jump


@dataclass(frozen=True)
class Setup:
    """The inputs from which an engine without candles is built."""

    config: Config
    run: RunRow
    jumping: bool = False  # whether this process's clocks jump
    compiled: tuple[str, ...] = ()  # modules to import before they jump
    surroundings: perturbations.Surroundings | None = None

    def carry_out(self, rows: Iterable[Fed]) -> DerivedLog:
        """Run the events of *rows* through a new engine, as at the start of the replay.

        It gets the recorded predictions; only a user's own model predicts again.
        """
        if self.jumping:
            # Compiled code checks the size of date types as it loads, and crashes on ours.
            for name in self.compiled:
                with contextlib.suppress(ImportError):
                    importlib.import_module(name)
            jump_clocks()
        if self.surroundings is not None:
            self.surroundings.enter()
        forecaster = None
        if needs_forecaster(self.config):
            forecaster = load_forecaster(self.config, mode=self.run.mode or "scan")
        run = self.run
        engine = build_engine(
            self.config,
            run.instruments,
            execution=FillModel(self.config.execution.model),
            period_start_ms=run.period_start_ms,
            forecaster=forecaster,
            sessions=sessions_of(run),
        )
        recorded = RecordedRun(run, self.config, engine, forecaster)
        asks = user_model(forecaster) is not None
        predictor = RecordedPredictor(recorded, None, IN_MEMORY, asks=asks)
        log = DerivedLog(engine)
        log.begin(run, engine.gate_sets)
        run_events(predictor.handed_on(rows), predictor, engine, log, Tally())
        return log


# ---------------------------------------------------------------- the record, and more


class DerivedLog(MemoryLog):
    """The record of a run, with signals, frames and columns, which no record has.

    Columns are read at each bar, so a strategy that declares some has no quiet stretches.
    """

    def __init__(self, engine: Engine, content: bytes | None = None) -> None:
        """Log the steps of *engine*, after the record *content* where the run resumes."""
        super().__init__(content=content, keeps_all=True)
        self._engine = engine
        self.signals: dict[int, Signals] = {}  # by sequence, like the next two
        self.frames: dict[int, NewestFrames] = {}
        self.columns: dict[int, Any] = {}

    @property
    def room(self) -> int:
        """Steps until a group is full, or 0 where columns are read at each."""
        return 0 if self._engine.has_columns else super().room

    def append_now(self, *steps: Step) -> None:
        """Take *steps*: all of them or none are kept."""
        super().append_now(*steps)
        engine = self._engine
        for step in steps:
            if type(step.event) is not Bar or step.decision is None:
                continue
            key, sequence = step.event.instrument, step.sequence
            self._note_signals(range(sequence, sequence + 1), key)
            if frames := engine.markets[key].newest_frames:
                self.frames[sequence] = frames
            if columns := engine.columns_of(key):
                self.columns[sequence] = columns

    def append_stretch(self, stretch: QuietStretch) -> None:
        """Take the steps of *stretch*."""
        super().append_stretch(stretch)
        for place, key in enumerate(stretch.repeats, start=bool(stretch.closes)):
            steps = range(stretch.first + place, stretch.next_sequence, stretch.width)
            self._note_signals(steps, key)

    def _note_signals(self, sequences: range, key: str) -> None:
        """Keep the signals on *key* for each of *sequences*."""
        engine = self._engine
        parts = tuple(
            None if member.is_empty and not member.failed else member.states[key].signal
            for member in engine.members
        )
        self.signals.update(dict.fromkeys(sequences, (engine.states[key].signal, parts)))

    def message(self, setup: Setup, *, names: bool = False, **about: Any) -> RunMessage:  # noqa: ANN401 - fields of a SentRun
        """Return the run for another process; with *names* also the strategies' memory."""
        states = self._engine.states if names else {}
        memories = {key: memory_of(state.strategy) for key, state in states.items()}
        columns = self.signals, self.frames, self.columns, memories
        return RunMessage(self.content, *columns, setup, accesses(setup.config), **about)


class RunMessage(NamedTuple):
    """A derived run, as its process sends it."""

    content: bytes
    signals: Mapping[int, Signals]
    frames: Mapping[int, NewestFrames]
    columns: Mapping[int, Any]
    memories: Mapping[str, Memory]  # of the strategy of each instrument
    setup: Setup
    accesses: Accesses
    warmup: int = 0
    is_portfolio: bool = False  # one object decides for all instruments
    is_cut: bool = False  # the time was too short for all bars


class MovedStep(NamedTuple):
    """The first step that differs in a trial, or why the trial failed there."""

    base: DerivedStep
    other: DerivedStep | str
    unset: Sequence[str] = ()  # variables that were read in an empty environment

    @property
    def difference(self) -> Difference:
        """The first field that differs."""
        if isinstance(self.other, str):
            return Difference.of(self.base.step, "the step", "made", f"refused: {self.other}")
        return difference_of(self.base, self.other)


class DerivedRun:
    """A run that another process derived, read from its record."""

    def __init__(self, message: RunMessage) -> None:
        self.message = message
        self._log = MemoryLog(content=message.content)
        self.reader = self._log.reader
        self.run_id = self.reader.find("last")
        stored = self.reader.stored_run(self.run_id)
        self._decoder = StepDecoder(stored.run, interned(self.reader.connection, stored.run_key))
        self.ids = [item.id for item in stored.run.instruments]
        self.head, self.steps = stored.head_digest, stored.step_count

    def rows(self, until: int | None = None) -> Iterator[StoredRows]:
        """Yield the rows of each step up to step *until*."""
        return self.reader.rows(self.run_id, until=until)

    def opened(self, until_ms: int | None = None) -> tuple[int, int, int]:
        """Return the count of bars opened until *until_ms*, and the last one's step and time."""
        query = (
            "SELECT count(*), coalesce(max(sequence), -1), coalesce(max(open_time_ms), 0) "
            "FROM steps WHERE instrument IS NOT NULL AND open_time_ms <= coalesce(?, open_time_ms)"
        )
        count, last, open_ms = self.reader.connection.execute(query, (until_ms,)).fetchone()
        return count, last, open_ms

    def step(self, rows: StoredRows) -> DerivedStep:
        """Return the step in *rows*, with its signals and columns."""
        sequence, message = rows.core[STEP.sequence], self.message
        signals, columns = (
            message.signals.get(sequence, (None, ())),
            message.columns.get(sequence, ()),
        )
        return DerivedStep(self._decoder.step(rows), *signals, columns)

    def bar_from(self, sequence: int) -> DerivedStep:
        """Return the step of the first bar from *sequence* on."""
        rows = self.reader.rows(self.run_id, after=sequence - 1)
        return next(self.step(each) for each in rows if each.core[STEP.instrument] is not None)

    def framed(self) -> Iterator[tuple[Bar, NewestFrames]]:
        """Yield each bar at which bars of higher timeframes were passed on, and the newest ones."""
        frames = self.message.frames
        for rows in self.rows() if frames else ():
            if (sequence := rows.core[STEP.sequence]) in frames:
                bar = self._decoder.step(rows).event
                assert isinstance(bar, Bar), "frames are passed on at bars"
                yield bar, frames[sequence]

    def by_time(self, from_ms: int | None) -> list[tuple[int, str, StoredRows]]:
        """Return the open time, instrument and rows of each bar, sorted by time and instrument.

        With *from_ms*, only the decided bars from then on.
        """
        bars = [
            (open_ms, self.ids[place], rows)
            for rows in self.rows()
            if (place := rows.core[STEP.instrument]) is not None
            for open_ms in (rows.core[STEP.open_time_ms],)
            if from_ms is None or (open_ms >= from_ms and rows.core[STEP.outcome] is not None)
        ]
        return sorted(bars, key=itemgetter(0, 1))

    def signalled(self, rows: StoredRows) -> tuple[object, ...]:
        """Return the values that are equal where signals and predictions are equal."""
        signals = self.message.signals.get(rows.core[STEP.sequence])
        return (signals, *[row[2:] for row in rows.sparse.get("answers", ())])

    def judged(self, rows: StoredRows) -> tuple[object, ...]:
        """Return the values that are equal where judgements are, besides :meth:`signalled`."""
        at = rows.core[STEP.outcome]
        outcome = None if at is None else self._decoder.outcome(at, 0)
        return outcome, rows.core[STEP.measure_plausible], rows.core[STEP.measures]


def first_moved(
    base: DerivedRun,
    other: DerivedRun,
    same: Callable[[DerivedStep, DerivedStep], bool] | None = None,
    *,
    until_ms: int | None = None,
    from_ms: int | None = None,
) -> tuple[MovedStep | None, int]:
    """Return the first step that is not the *same* in two runs, and how many were compared.

    Without *same*, steps and columns must be equal in every bit; with *until_ms* only those of bars
    until then. With *same*, bars are aligned by instrument and by the order of their times, which
    may be shifted.
    """
    if same is None:
        return _first_unequal(base, other, until_ms)
    due = (bar for bar in base.by_time(from_ms) if bar[1] in other.ids)
    compared = 0
    for compared, ((*_, first), (*_, second)) in enumerate(zip(due, other.by_time(from_ms)), 1):  # noqa: B905 - both, as far as they reach
        is_shared = first.core[STEP.shadows] is None and second.core[STEP.shadows] is None
        if (
            is_shared
            and base.signalled(first) == other.signalled(second)
            and (same is same_signal or base.judged(first) == other.judged(second))
        ):
            continue
        steps = base.step(first), other.step(second)
        if not same(*steps):
            return MovedStep(*steps), compared
    return None, compared


def _first_unequal(
    base: DerivedRun, other: DerivedRun, until_ms: int | None
) -> tuple[MovedStep | None, int]:
    compared, until, _ = base.opened(until_ms)
    if until_ms is None:
        compared = until = min(base.steps, other.steps)
    columns, others = base.message.columns, other.message.columns
    unequal = {at for at in columns if repr(columns[at]) != repr(others.get(at))}
    if base.head == other.head and not unequal:
        return None, compared
    for first, second in zip(base.rows(until), other.rows(until), strict=False):
        # With another future, events between bars may name another file.
        is_compared = until_ms is None or first.core[STEP.instrument] is not None
        if is_compared and (first != second or first.core[STEP.sequence] in unequal):
            return MovedStep(base.step(first), other.step(second)), compared
    return None, compared


# ---------------------------------------------------------------- jobs

LEAST_STEPS: Final = 500
"""Steps that are derived however short the time is."""


def send_candles(connection: Connection, *given: Any, **named: Any) -> None:  # noqa: ANN401 - of derive_candles
    """Send the run that ``derive_candles`` returns for the same arguments."""
    connection.send(derive_candles(*given, **named))


def derive_candles(
    config: Config,
    data: MarketData,
    mode: str,
    within_s: float,
    *,
    until_ms: int | None = None,
) -> RunMessage:
    """Derive a replay of *data*, or the part done *within_s*, which is at least ``LEAST_STEPS``.

    With *until_ms* it ends before that time, and includes the strategies' memory then.
    """
    external_inputs.listen(custom_classes(config))
    now_s = SystemClock().network_s
    until_s = now_s() + within_s
    replay = build(
        config, _without_later_frames(data), started_at_ms=0, mode=mode, until_ms=until_ms
    )
    engine = replay.engine
    # The run has the same id in every process.
    setup = Setup(replay.config, msgspec.structs.replace(replay.run, run_id="0"))
    log, predictions = DerivedLog(engine), predictor_over(replay)
    log.begin(setup.run, engine.gate_sets)
    tally = Tally(stopped=lambda: log.next_sequence >= LEAST_STEPS and now_s() > until_s)
    _run(predictions.events(replay), predictions.predictor, engine, log, tally)
    # Bars of higher timeframes from files need none of the instrument's own bars.
    warmups = [
        decision_bars(engine.states[key].strategy) if data.frames else market.reach
        for key, market in engine.markets.items()
    ]
    return log.message(
        setup,
        names=until_ms is not None,
        warmup=max(warmups),
        is_portfolio=engine.is_portfolio,
        is_cut=not tally.finished,
    )


def send_resumed(
    connection: Connection,
    config: Config,
    data: MarketData,
    content: bytes,
    until_ms: int | None = None,
) -> None:
    """Send the run that resumes the record *content*, as ``replay --resume`` does."""
    external_inputs.listen(custom_classes(config))
    with MemoryLog(content=content) as audit:
        resumed = resumed_replay(
            "last", _without_later_frames(data), audit, audit.reader, until_ms=until_ms
        )
    log = DerivedLog(resumed.engine, content)
    point = log.resume(resumed.run_id)
    _run(resumed.events, resumed.predictor, resumed.engine, log, Tally())
    connection.send(log.message(Setup(config, point.run), names=until_ms is not None))


def send_again(
    connection: Connection,
    setup: Setup,
    content: bytes | None,
    only: Instrument | None = None,
    most: int | None = None,
    *,
    runs_twice: bool = False,
) -> None:
    """Send the run of *setup* over the first *most* inputs in the record *content*.

    Without a record, each input is requested by sending None, after the one before was processed.
    With *runs_twice* the run is derived twice in this process.
    """
    external_inputs.listen(custom_classes(setup.config))
    run = setup.run if only is None else msgspec.structs.replace(setup.run, instruments=(only,))
    setup = replace(setup, run=run)
    for _ in range(1 + runs_twice):
        fed = _stored_inputs(connection) if content is None else fed_together(content, only)
        log = setup.carry_out(chain.from_iterable(islice(fed, most)))
    connection.send(log.message(setup))


def _stored_inputs(connection: Connection) -> Iterator[list[Fed]]:
    """Request and yield each input in turn, so that no later one is in this process."""
    connection.send(None)
    while (given := connection.recv()) is not None:
        yield given
        connection.send(None)


def fed_together(content: bytes, only: Instrument | None = None) -> Iterator[list[Fed]]:
    """Yield the inputs of a record's engine, each close with its bars.

    With *only*, yield the inputs of that instrument's engine, bar by bar.
    """
    reader = MemoryLog(content=content).reader
    rows = reader.events(reader.find("last"))
    for row in rows:
        event = row[2]
        if only is None:
            yield [row, *islice(rows, event.bars if type(event) is CloseStart else 0)]
        elif getattr(event, "instrument", only.id) == only.id and type(event) is not CloseStart:
            yield [row]


def _run(
    events: Iterable[Event],
    predictor: KnownPredictor,
    engine: Engine,
    log: DerivedLog,
    tally: Tally,
) -> None:
    """Run *events* through *engine*, unfrozen: a class may search all objects for later bars."""

    def unhidden() -> Iterator[Event]:
        gc.unfreeze()
        yield from events

    run_events(unhidden(), predictor, engine, log, tally)


def _without_later_frames(data: MarketData) -> MarketData:
    """Return *data* with only the frame candles that open before its bars, for the warm-up.

    Later ones aggregate bars, and would reveal a future bar.
    """
    first_ms = {part.symbol: int(part.open_time_ms[0]) for part in data.candles}
    before = [
        part[part.open_time_ms < first_ms[part.symbol]]
        for part in data.frames
        if part.symbol in first_ms
    ]
    return replace(data, frames=[part for part in before if len(part)])


def accesses(config: Config) -> Accesses:
    """Return the accesses of the user's classes in *config* since ``listen`` was called."""
    declared: list[Path] = []
    codes: list[Code] = []
    named = [strategy.name for strategy in config.strategies.named.values()] or [
        config.strategy.name
    ]
    for name in named:
        if ":" in name:
            codes.append(made_of := user_class(name))
            declared += declared_files(made_of).values()
    exempt = list(declared)
    if config.model.custom_class:
        codes.append(model := model_class(config.model.custom_class))
        exempt += model_files(config, model).values()
        if (function := feature_function(config, model)) is not None:
            assert isinstance(function.function, FunctionType)
            codes.append(function.function)
            declared += function.files.values()
            exempt += function.files.values()
    folders = [folder for code in codes if (folder := custom_folder(code)) is not None]
    return Accesses(
        tuple(external_inputs.opened(folders, exempt)),
        tuple(map(str, declared)),
        tuple(external_inputs.custom_modules(folders)),
        perturbations.unset(),
        tuple(external_inputs.native_readers()),
        tuple(external_inputs.compiled_modules()),
    )
