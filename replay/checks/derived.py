"""Runs that fresh processes derive: each is its record in memory, with what a record lacks.

A job runs there as a replay does, quiet stretches together, and sends what it came to. Two runs are
held against each other by the rows of their records; only what is unequal is decoded to steps.
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
from tracepaper.daemon.session.loop import (
    KnownPredictor,
)
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
from tracepaper.strategies.types.decisions import FillModel, Run, Step
from tracepaper.strategies.types.market import Bar, CloseStart, Event, Instrument

if TYPE_CHECKING:
    from tracepaper.strategies.types.decisions import QuietStretch

NewestFrames = tuple[tuple[int, int, Row | None], ...]
"""Of each higher timeframe its length, how many bars are wanted, and the newest handed on."""


@dataclass(frozen=True)
class Accesses:
    """What a process knows of the class beside its decisions."""

    opened: tuple[ExternalInput, ...]  # and not declared
    declared: tuple[str, ...]  # paths, but for those of [model] files
    modules: tuple[str, ...]  # files of its own that Python imported
    unset: tuple[str, ...]  # variables that were asked for in an empty environment
    native: tuple[str, ...]
    compiled: tuple[str, ...]  # installed modules that must be loaded before clocks jump


@dataclass(frozen=True)
class Setup:
    """What an engine without candles is made of."""

    config: Config
    run: Run
    jumping: bool = False  # whether this process's clocks jump
    compiled: tuple[str, ...] = ()  # what is then imported before
    around: perturbations.Surroundings | None = None

    def carry_out(self, rows: Iterable[Fed]) -> DerivedLog:
        """Take the events of *rows* through an engine as it stood before the replay's first one.

        It is given the predictions, but for those of a user's own model: that is asked again.
        """
        if self.jumping:
            # Compiled code measures the types of dates while it is loaded, and dies of ours.
            for name in self.compiled:
                with contextlib.suppress(ImportError):
                    importlib.import_module(name)
            jump_clocks()
        if self.around is not None:
            self.around.enter()
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


# ---------------------------------------------------------------- the record, and what it lacks


class DerivedLog(MemoryLog):
    """The record of a run, with signals, frames and columns, which no record has.

    Columns are read at each bar, so where a strategy declares some no bars are taken together.
    """

    def __init__(self, engine: Engine, content: bytes | None = None) -> None:
        """Take what decides, and the record that it goes on with."""
        super().__init__(content=content, keeps_all=True)
        self._engine = engine
        self.signals: dict[int, Signals] = {}  # by sequence, as the next two
        self.frames: dict[int, NewestFrames] = {}
        self.columns: dict[int, Any] = {}

    @property
    def room(self) -> int:
        """Steps until a group is full, or none where each is looked at."""
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
        """Keep what was signalled on *key* at each of *sequences*."""
        engine = self._engine
        parts = tuple(
            None if member.is_empty and not member.failed else member.states[key].signal
            for member in engine.members
        )
        self.signals.update(dict.fromkeys(sequences, (engine.states[key].signal, parts)))

    def sent(self, setup: Setup, *, names: bool = False, **about: Any) -> SentRun:  # noqa: ANN401 - fields of a SentRun
        """Return all of it for another process; with *names* also what is remembered."""
        states = self._engine.states if names else {}
        memories = {key: memory_of(state.strategy) for key, state in states.items()}
        columns = self.signals, self.frames, self.columns, memories
        return SentRun(self.content, *columns, setup, accesses(setup.config), **about)


class SentRun(NamedTuple):
    """A run as the process sends it that derived it."""

    content: bytes
    signals: Mapping[int, Signals]
    frames: Mapping[int, NewestFrames]
    columns: Mapping[int, Any]
    memories: Mapping[str, Memory]  # what is remembered of each instrument
    setup: Setup
    accesses: Accesses
    warmup: int = 0
    is_portfolio: bool = False  # one object decides for all instruments
    is_cut: bool = False  # the time did not suffice for all bars


class MovedStep(NamedTuple):
    """The first step that a trial derives otherwise, or why it derives none."""

    mine: DerivedStep
    other: DerivedStep | str
    unset: Sequence[str] = ()  # variables that were asked for in an empty environment

    @property
    def difference(self) -> Difference:
        """The first field that differs."""
        if isinstance(self.other, str):
            return Difference.of(self.mine.step, "the step", "made", f"refused: {self.other}")
        return difference_of(self.mine, self.other)


class DerivedRun:
    """A run that another process derived, read from its record."""

    def __init__(self, sent: SentRun) -> None:
        self.sent = sent
        self._log = MemoryLog(content=sent.content)
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
        """Return how many bars opened until *until_ms*, the step of the last, and when it did."""
        query = (
            "SELECT count(*), coalesce(max(sequence), -1), coalesce(max(open_time_ms), 0) "
            "FROM steps WHERE instrument IS NOT NULL AND open_time_ms <= coalesce(?, open_time_ms)"
        )
        count, last, opened_ms = self.reader.connection.execute(query, (until_ms,)).fetchone()
        return count, last, opened_ms

    def step(self, rows: StoredRows) -> DerivedStep:
        """Return the step that *rows* hold, with what the record lacks."""
        sequence, sent = rows.core[STEP.sequence], self.sent
        signals, columns = sent.signals.get(sequence, (None, ())), sent.columns.get(sequence, ())
        return DerivedStep(self._decoder.step(rows), *signals, columns)

    def bar_from(self, sequence: int) -> DerivedStep:
        """Return the step of the first bar from *sequence* on."""
        rows = self.reader.rows(self.run_id, after=sequence - 1)
        return next(self.step(of) for of in rows if of.core[STEP.instrument] is not None)

    def framed(self) -> Iterator[tuple[Bar, NewestFrames]]:
        """Yield each bar at which bars of higher timeframes were handed on, and the newest."""
        frames = self.sent.frames
        for rows in self.rows() if frames else ():
            if (sequence := rows.core[STEP.sequence]) in frames:
                bar = self._decoder.step(rows).event
                assert isinstance(bar, Bar), "frames are handed on at bars"
                yield bar, frames[sequence]

    def by_time(self, from_ms: int | None) -> list[tuple[int, str, StoredRows]]:
        """Return when each bar opened, its instrument and its rows, in that order.

        From *from_ms* on only those that were decided.
        """
        bars = [
            (opened_ms, self.ids[place], rows)
            for rows in self.rows()
            if (place := rows.core[STEP.instrument]) is not None
            for opened_ms in (rows.core[STEP.open_time_ms],)
            if from_ms is None or (opened_ms >= from_ms and rows.core[STEP.outcome] is not None)
        ]
        return sorted(bars, key=itemgetter(0, 1))

    def signalled(self, rows: StoredRows) -> tuple[object, ...]:
        """Return the values that equal signals of equal predictions share."""
        signals = self.sent.signals.get(rows.core[STEP.sequence])
        return (signals, *[row[2:] for row in rows.sparse.get("answers", ())])

    def judged(self, rows: StoredRows) -> tuple[object, ...]:
        """Return the values that equal judgements share beside :meth:`signalled`."""
        at = rows.core[STEP.outcome]
        outcome = None if at is None else self._decoder.outcome(at, 0)
        return outcome, rows.core[STEP.measure_plausible], rows.core[STEP.measures]


def first_moved(
    mine: DerivedRun,
    other: DerivedRun,
    same: Callable[[DerivedStep, DerivedStep], bool] | None = None,
    *,
    until_ms: int | None = None,
    from_ms: int | None = None,
) -> tuple[MovedStep | None, int]:
    """Return the first step that is not the *same* in two runs, and how many were compared.

    Without *same* all of each step and its columns are equal to the bit, of bars alone up to
    *until_ms* where that is given. Else bars are aligned by time, which may be moved, and by
    instrument.
    """
    if same is None:
        return _first_unequal(mine, other, until_ms)
    due = (bar for bar in mine.by_time(from_ms) if bar[1] in other.ids)
    compared = 0
    for compared, ((*_, first), (*_, second)) in enumerate(zip(due, other.by_time(from_ms)), 1):  # noqa: B905 - as far as both reach
        is_shared = first.core[STEP.shadows] is None and second.core[STEP.shadows] is None
        if (
            is_shared
            and mine.signalled(first) == other.signalled(second)
            and (same is same_signal or mine.judged(first) == other.judged(second))
        ):
            continue
        steps = mine.step(first), other.step(second)
        if not same(*steps):
            return MovedStep(*steps), compared
    return None, compared


def _first_unequal(
    mine: DerivedRun, other: DerivedRun, until_ms: int | None
) -> tuple[MovedStep | None, int]:
    compared, until, _ = mine.opened(until_ms)
    if until_ms is None:
        compared = until = min(mine.steps, other.steps)
    ours, theirs = mine.sent.columns, other.sent.columns
    unequal = {at for at in ours if repr(ours[at]) != repr(theirs.get(at))}
    if mine.head == other.head and not unequal:
        return None, compared
    for first, second in zip(mine.rows(until), other.rows(until), strict=False):
        # Of another future, events between bars may name another file.
        is_compared = until_ms is None or first.core[STEP.instrument] is not None
        if is_compared and (first != second or first.core[STEP.sequence] in unequal):
            return MovedStep(mine.step(first), other.step(second)), compared
    return None, compared


# ---------------------------------------------------------------- jobs

LEAST_STEPS: Final = 500
"""So many are derived however short the time is."""


def send_candles(connection: Connection, *given: Any, **named: Any) -> None:  # noqa: ANN401 - of derive_candles
    """Send the run that ``derive_candles`` makes of *given* and *named*."""
    connection.send(derive_candles(*given, **named))


def derive_candles(
    config: Config,
    data: MarketData,
    mode: str,
    within_s: float,
    *,
    until_ms: int | None = None,
) -> SentRun:
    """Derive a replay of *data*, or what is done of it *within_s*, a few steps in any case.

    It ends before *until_ms*, and names what is remembered then.
    """
    external_inputs.listen(custom_classes(config))
    now_s = SystemClock().network_s
    until_s = now_s() + within_s
    replay = build(
        config, _without_later_frames(data), started_at_ms=0, mode=mode, until_ms=until_ms
    )
    engine = replay.engine
    # Its run is named alike in every process.
    setup = Setup(replay.config, msgspec.structs.replace(replay.run, run_id="0"))
    log, predictions = DerivedLog(engine), predictor_over(replay)
    log.begin(setup.run, engine.gate_sets)
    tally = Tally(stopped=lambda: log.next_sequence >= LEAST_STEPS and now_s() > until_s)
    _run(predictions.events(replay), predictions.predictor, engine, log, tally)
    # Bars of higher timeframes that come from files need none of the instrument's own.
    warmups = [
        decision_bars(engine.states[key].strategy) if data.frames else market.reach
        for key, market in engine.markets.items()
    ]
    return log.sent(
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
    """Send the run that goes on with the record *content*, as ``replay --resume`` makes it."""
    external_inputs.listen(custom_classes(config))
    with MemoryLog(content=content) as audit:
        resumed = resumed_replay(
            "last", _without_later_frames(data), audit, audit.reader, until_ms=until_ms
        )
    log = DerivedLog(resumed.engine, content)
    point = log.resume(resumed.run_id)
    _run(resumed.events, resumed.predictor, resumed.engine, log, Tally())
    connection.send(log.sent(Setup(config, point.run), names=until_ms is not None))


def send_again(
    connection: Connection,
    setup: Setup,
    content: bytes | None,
    only: Instrument | None = None,
    most: int | None = None,
    *,
    has_past: bool = False,
) -> None:
    """Send the run of *setup* over the inputs that the record *content* holds, *most* of them.

    Without a record each input is asked for, by None, once the one before was dealt with. What
    *has_past* does the same before in this process.
    """
    external_inputs.listen(custom_classes(setup.config))
    run = setup.run if only is None else msgspec.structs.replace(setup.run, instruments=(only,))
    setup = replace(setup, run=run)
    for _ in range(1 + has_past):
        fed = _stored_inputs(connection) if content is None else fed_together(content, only)
        log = setup.carry_out(chain.from_iterable(islice(fed, most)))
    connection.send(log.sent(setup))


def _stored_inputs(connection: Connection) -> Iterator[list[Fed]]:
    """Yield each input when it has come; none is in this process before its turn."""
    connection.send(None)
    while (given := connection.recv()) is not None:
        yield given
        connection.send(None)


def fed_together(content: bytes, only: Instrument | None = None) -> Iterator[list[Fed]]:
    """Yield what the engine of a record was given, a close with its bars.

    That is what an engine of *only* one instrument is given of it, bars by themselves.
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
    """Take *events* through *engine*; a class may look for what comes among all objects."""

    def unhidden() -> Iterator[Event]:
        gc.unfreeze()
        yield from events

    run_events(unhidden(), predictor, engine, log, tally)


def _without_later_frames(data: MarketData) -> MarketData:
    """Return *data* with the candles of frames alone that begin before its bars, to warm it.

    Later ones say what the bars add up to, and would tell a bar of the future.
    """
    first_ms = {part.symbol: int(part.open_time_ms[0]) for part in data.candles}
    before = [
        part[part.open_time_ms < first_ms[part.symbol]]
        for part in data.frames
        if part.symbol in first_ms
    ]
    return replace(data, frames=[part for part in before if len(part)])


def accesses(config: Config) -> Accesses:
    """Return the accesses of the user's classes of *config* since this process listens."""
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
