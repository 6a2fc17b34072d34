"""Runs that fresh processes derive: each is its record in memory, with what a record lacks.

A job runs there as a replay does, quiet stretches together, and sends what it came to. Two runs are
held against each other by the rows of their records; only what is unequal is decoded to steps.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from multiprocessing.connection import Connection
from operator import itemgetter
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from tracepaper.daemon.clock import SystemClock, jump_clocks
from tracepaper.daemon.config.loading import Config, own_classes
from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.session.build import build_engine, needs_forecaster
from tracepaper.daemon.session.loop import (
    BarHistory,
    InlinePredictor,
    KnownPredictor,
    events_of,
    gathered,
)
from tracepaper.daemon.session.models import load_forecaster
from tracepaper.daemon.session.run_row import sessions_of
from tracepaper.daemon.session.user_class import user_class
from tracepaper.daemon.session.user_code import Code, declared_files, own_folder
from tracepaper.daemon.session.user_model import (
    feature_function,
    model_class,
    model_files,
    user_model,
)
from tracepaper.replay.backtest.build import Replay, build
from tracepaper.replay.backtest.make import resumed_replay
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.replay.backtest.run import Tally, predictor_over, run_events
from tracepaper.replay.checks import external_inputs, perturbations
from tracepaper.replay.checks.compare import Difference
from tracepaper.replay.checks.external_inputs import ExternalInput
from tracepaper.replay.checks.judgement import DerivedStep, Sameness, Signals, difference_of
from tracepaper.replay.checks.memory import Memory, memory_of
from tracepaper.storage.database.chunks import interned
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.memory_log import MemoryLog
from tracepaper.storage.record.decode import STEP, STEP_MEASURES, StepDecoder, StoredRows
from tracepaper.strategies.api.strategy import remembered
from tracepaper.strategies.api.timeframes import Row
from tracepaper.strategies.types.decisions import FillModel, Prediction, Run, Step
from tracepaper.strategies.types.market import Bar, CloseStart, Event, Instrument, Unit

if TYPE_CHECKING:
    from tracepaper.strategies.types.decisions import QuietStretch

NewestFrames = tuple[tuple[int, int, Row | None], ...]
"""Of each higher timeframe its length, how many bars are wanted, and the newest handed on."""
EngineInput = tuple[Unit, Sequence[Prediction]]
"""The inputs that an engine takes in at once, with the prediction for each event."""


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
    mode: str
    jumping: bool = False  # whether this process's clocks jump
    compiled: tuple[str, ...] = ()  # what is then imported before
    around: perturbations.Surroundings | None = None

    @classmethod
    def of(cls, replay: Replay, mode: str) -> Setup:
        """Return that of *replay*, which names its run alike in every process."""
        return cls(replay.config, msgspec.structs.replace(replay.run, run_id="0"), mode)

    def alone(self, item: Instrument) -> Setup:
        """Return it with one instrument."""
        return replace(self, run=msgspec.structs.replace(self.run, instruments=(item,)))

    def carry_out(self, inputs: Iterable[EngineInput]) -> DerivedLog:
        """Take *inputs* through an engine as it stood before the replay's first event.

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
            forecaster = load_forecaster(self.config, mode=self.mode)
        run = self.run
        engine = build_engine(
            self.config,
            run.instruments,
            execution=FillModel(self.config.execution.model),
            period_start_ms=run.period_start_ms,
            forecaster=forecaster,
            sessions=sessions_of(run),
        )
        model = None
        if (user := user_model(forecaster)) is not None and not user.is_outside:
            history = BarHistory(engine.instruments, context=user.context)
            model = InlinePredictor(user, history, period_start_ms=run.period_start_ms)
        given = _GivenInputs(inputs, model, is_silent=forecaster is None)
        log = DerivedLog(engine)
        log.begin(run, engine.gate_sets)
        run_events(given.events(), given, engine, log, Tally())
        return log


class _GivenInputs:
    """Inputs of an engine with their predictions."""

    def __init__(
        self, inputs: Iterable[EngineInput], model: InlinePredictor | None, *, is_silent: bool
    ) -> None:
        self.is_silent = is_silent
        self._inputs, self._model = inputs, model
        self._due: deque[Sequence[Prediction]] = deque()

    def events(self) -> Iterator[Event]:
        """Yield the events, each when the one before was dealt with."""
        for unit, predictions in self._inputs:
            if not self.is_silent:
                self._due.append(predictions)
            yield from events_of(unit)

    def predict(self, unit: Unit) -> Sequence[Prediction]:
        """Return what came with *unit*, or what a user's own model says."""
        if self.is_silent:
            return (None,) * len(events_of(unit))
        given = self._due.popleft()
        return given if self._model is None else self._model.predict(unit)


# ---------------------------------------------------------------- the record, and what it lacks


class _StepReached(Exception):
    """The step is derived at which a job was to end."""


class DerivedLog(MemoryLog):
    """The record of a run, with signals, frames and columns, which no record has.

    Columns are read at each bar, so where a strategy declares some no bars are taken together.
    """

    def __init__(
        self, engine: Engine, *, content: bytes | None = None, until: int | None = None
    ) -> None:
        """Take what decides, and the record that it goes on with; end behind step *until*."""
        super().__init__(content=content, keeps_all=True)
        self._engine, self._until = engine, until
        self.signals: dict[bytes, Signals] = {}
        self.signal_keys: dict[int, bytes] = {}  # by sequence, as the next two
        self.frames: dict[int, NewestFrames] = {}
        self.columns: dict[int, Any] = {}

    @property
    def room(self) -> int:
        """Steps until a group is full, or none where each is looked at."""
        if self._engine.has_columns:
            return 0
        most = super().room
        return most if self._until is None else min(most, self._until + 1 - self.next_sequence)

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
        self._end_at_step()

    def append_stretch(self, stretch: QuietStretch) -> None:
        """Take the steps of *stretch*."""
        super().append_stretch(stretch)
        for place, key in enumerate(stretch.repeats, start=bool(stretch.closes)):
            steps = range(stretch.first + place, stretch.next_sequence, stretch.width)
            self._note_signals(steps, key)
        self._end_at_step()

    def _end_at_step(self) -> None:
        if self._until is not None and self.next_sequence > self._until:
            raise _StepReached

    def _note_signals(self, sequences: range, key: str) -> None:
        """Keep what was signalled on *key* at each of *sequences*; the record has the notes."""
        engine = self._engine
        signal = engine.states[key].signal
        if getattr(signal, "note", None) is not None:
            signal = msgspec.structs.replace(signal, note=None)  # type: ignore[type-var]
        parts = tuple(
            None if member.is_empty and not member.failed else member.states[key].signal
            for member in engine.members
        )
        packed = msgspec.msgpack.encode((signal, parts), enc_hook=repr)
        self.signals.setdefault(packed, (signal, parts))
        self.signal_keys.update(dict.fromkeys(sequences, packed))

    def sent(self, setup: Setup, **known: Any) -> SentRun:  # noqa: ANN401 - fields of a SentRun
        """Return all of it as another process takes it."""
        beside = self.signals, self.signal_keys, self.frames, self.columns
        memories: dict[str, Memory] = {}
        if self._until is not None:
            states = self._engine.states
            memories = {key: memory_of(state.strategy) for key, state in states.items()}
        heard = accesses(setup.config)
        return SentRun(self.content, *beside, setup, heard, memories=memories, **known)


class SentRun(NamedTuple):
    """A run as the process sends it that derived it."""

    content: bytes
    signals: Mapping[bytes, Signals]
    signal_keys: Mapping[int, bytes]
    frames: Mapping[int, NewestFrames]
    columns: Mapping[int, Any]
    setup: Setup
    accesses: Accesses
    warmup: int = 0
    is_portfolio: bool = False  # one object decides for all instruments
    is_cut: bool = False  # the time did not suffice for all bars
    memories: Mapping[str, Memory] = {}  # what is remembered of each instrument


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
        self._ids = [item.id for item in stored.run.instruments]
        self.head, self.steps = stored.head_digest, stored.step_count

    def rows(self, until: int | None = None) -> Iterator[StoredRows]:
        """Yield the rows of each step up to step *until*."""
        return self.reader.rows(self.run_id, until=until)

    def opened(self, until_ms: int | None = None) -> tuple[int, int, int]:
        """Return how many bars opened until *until_ms*, the step of the last, and when it did."""
        query = (
            "SELECT count(*), coalesce(max(sequence), -1), coalesce(max(open_time_ms), 0) "
            "FROM steps WHERE open_time_ms <= coalesce(?, open_time_ms)"
        )
        count, last, opened_ms = self.reader.connection.execute(query, (until_ms,)).fetchone()
        return count, last, opened_ms

    def step(self, rows: StoredRows) -> DerivedStep:
        """Return the step that *rows* hold, with what the record lacks."""
        sequence, sent = rows.core[STEP.sequence], self.sent
        signal, parts = sent.signals.get(sent.signal_keys.get(sequence, b""), (None, ()))
        columns = sent.columns.get(sequence, ())
        return DerivedStep(self._decoder.step(rows), signal, parts, columns)

    def step_at(self, sequence: int) -> DerivedStep:
        """Return one step."""
        (rows,) = self.reader.rows(self.run_id, after=sequence - 1, until=sequence)
        return self.step(rows)

    def bar_from(self, sequence: int) -> int:
        """Return the step of the first bar from *sequence* on."""
        query = "SELECT min(sequence) FROM steps WHERE sequence >= ? AND open_time_ms IS NOT NULL"
        (at,) = self.reader.connection.execute(query, (sequence,)).fetchone()
        return int(at)

    def framed(self) -> Iterator[tuple[Bar, NewestFrames]]:
        """Yield each bar at which bars of higher timeframes were handed on, and the newest."""
        frames = self.sent.frames
        for rows in self.rows() if frames else ():
            if (sequence := rows.core[STEP.sequence]) in frames:
                yield self._decoder.bar(rows.core), frames[sequence]

    def by_time(self, only: str | None, from_ms: int | None) -> list[StoredRows]:
        """Return the rows of the bars, by their times and instruments.

        *only* is the one instrument that is compared; from *from_ms* on only what was decided is.
        """
        bars = [
            (opened_ms, self._ids[rows.core[STEP.instrument]], rows)
            for rows in self.rows()
            if (opened_ms := rows.core[STEP.open_time_ms]) is not None
            and (from_ms is None or (opened_ms >= from_ms and rows.core[STEP.outcome] is not None))
        ]
        bars.sort(key=itemgetter(0, 1))
        return [rows for _, key, rows in bars if only is None or key == only]

    def signalled(self, rows: StoredRows) -> tuple[object, ...]:
        """Return what equal signals of equal predictions have in common."""
        key = self.sent.signal_keys.get(rows.core[STEP.sequence])
        return (key, *[row[2:] for row in rows.sparse.get("answers", ())])

    def judged(self, rows: StoredRows) -> tuple[object, ...]:
        """Return what equal judgements have in common beside :meth:`signalled`."""
        at = rows.core[STEP.outcome]
        outcome = None if at is None else self._decoder.outcome(at, 0)
        return (outcome, *STEP_MEASURES(rows.core))


def first_moved(
    mine: DerivedRun,
    other: DerivedRun,
    same: Sameness | None = None,
    *,
    until_ms: int | None = None,
    from_ms: int | None = None,
    only: str | None = None,
) -> tuple[MovedStep | None, int]:
    """Return the first step that is not the *same* in two runs, and how many were compared.

    Without *same* all of each step and its columns are equal to the bit, of bars alone up to
    *until_ms* where that is given. Else bars are aligned by time, which may be moved, and by
    instrument.
    """
    if same is None:
        return _first_unequal(mine, other, until_ms)
    every = zip(*(run.by_time(only, from_ms) for run in (mine, other)), strict=False)
    compared = 0
    for compared, (first, second) in enumerate(every, 1):
        is_shared = first.core[STEP.twins] is None and second.core[STEP.twins] is None
        if (
            is_shared
            and mine.signalled(first) == other.signalled(second)
            and (not same.judges or mine.judged(first) == other.judged(second))
        ):
            continue
        steps = mine.step(first), other.step(second)
        if not same.of_steps(*steps):
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
        is_compared = until_ms is None or first.core[STEP.open_time_ms] is not None
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
    until: int | None = None,
) -> SentRun:
    """Derive a replay of *data*, or what is done of it *within_s*, a few steps in any case.

    It ends with the bars that open at *until_ms*, or behind the step *until*.
    """
    external_inputs.listen(own_classes(config))
    now_s = SystemClock().network_s
    until_s = now_s() + within_s
    replay = build(config, _known(data), started_at_ms=0, mode=mode, until_ms=until_ms)
    engine, setup = replay.engine, Setup.of(replay, mode)
    log, way = DerivedLog(engine, until=until), predictor_over(replay)
    log.begin(setup.run, engine.gate_sets)
    tally = Tally(stopped=lambda: log.next_sequence >= LEAST_STEPS and now_s() > until_s)
    _run(way.events(replay), way.predictor, engine, log, tally)
    # Bars of higher timeframes that come from files need none of the instrument's own.
    warmups = [
        remembered(engine.states[key].strategy) if data.frames else market.reach
        for key, market in engine.markets.items()
    ]
    return log.sent(
        setup, warmup=max(warmups), is_portfolio=engine.is_portfolio, is_cut=not tally.finished
    )


def send_resumed(
    connection: Connection,
    config: Config,
    data: MarketData,
    content: bytes,
    until: int | None = None,
) -> None:
    """Send the run that goes on with the record *content*, as ``replay --resume`` makes it."""
    external_inputs.listen(own_classes(config))
    with MemoryLog(content=content) as audit:
        resumed = resumed_replay("last", _known(data), audit, audit.reader)
    log = DerivedLog(resumed.engine, content=content, until=until)
    point = log.resume(resumed.run_id)
    _run(resumed.events, resumed.predictor, resumed.engine, log, Tally())
    connection.send(log.sent(Setup(config, point.run, point.run.mode)))


def send_again(
    connection: Connection,
    setup: Setup,
    content: bytes | None,
    only: str | None = None,
    most: int | None = None,
    *,
    has_past: bool = False,
) -> None:
    """Send the run of *setup* over the inputs that the record *content* holds, *most* of them.

    Without a record each input is asked for, by None, once the one before was dealt with. What
    *has_past* does the same before in this process.
    """
    external_inputs.listen(own_classes(setup.config))
    for _ in range(1 + has_past):
        log = setup.carry_out(
            _asked(connection)
            if content is None
            else islice(inputs_of(MemoryLog(content=content).reader, only), most)
        )
    connection.send(log.sent(setup))


def _asked(connection: Connection) -> Iterator[EngineInput]:
    """Yield each input when it has come; none is in this process before its turn."""
    connection.send(None)
    while (given := connection.recv()) is not None:
        yield given
        connection.send(None)


def inputs_of(reader: Reader, only: str | None = None) -> Iterator[EngineInput]:
    """Yield what an engine was given, or of it what an engine of *only* one instrument is."""
    predictions: deque[Prediction] = deque()

    def events() -> Iterator[Event]:
        for _, _, event, prediction in reader.events(reader.find("last")):
            if only is None or (
                getattr(event, "instrument", only) == only and type(event) is not CloseStart
            ):
                predictions.append(prediction)
                yield event

    for unit in gathered(events()):
        yield unit, [predictions.popleft() for _ in events_of(unit)]


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

    with contextlib.suppress(_StepReached):
        run_events(unhidden(), predictor, engine, log, tally)


def _known(data: MarketData) -> MarketData:
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
    """Return what the user's classes of *config* did in this process since it listens."""
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
    if config.model.own_class:
        codes.append(model := model_class(config.model.own_class))
        exempt += model_files(config, model).values()
        if (function := feature_function(config, model)) is not None:
            assert isinstance(function.function, FunctionType)
            codes.append(function.function)
            declared += function.files.values()
            exempt += function.files.values()
    folders = [folder for code in codes if (folder := own_folder(code)) is not None]
    return Accesses(
        tuple(external_inputs.opened(folders, exempt)),
        tuple(map(str, declared)),
        tuple(external_inputs.own_modules(folders)),
        perturbations.unset(),
        tuple(external_inputs.native_readers()),
        tuple(external_inputs.compiled_modules()),
    )
