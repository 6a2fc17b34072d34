"""Diagnosis of a failed ``verify``: code, configuration, model, strategy or record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from hashlib import sha256
from itertools import chain, islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from tracepaper.daemon.clock import jump_clocks
from tracepaper.daemon.config.loading import own_classes, restore
from tracepaper.daemon.session.loop import gathered, steps_of
from tracepaper.daemon.session.resume import engine_of, recall_bars, restore_at
from tracepaper.daemon.session.run_row import code_version
from tracepaper.replay.backtest.recorded import (
    RecordedPredictor,
    RecordedRun,
    instruments_at,
    open_recorded,
    prober_of,
    run_in,
)
from tracepaper.replay.checks.compare import Difference, RowCheck
from tracepaper.replay.checks.external_inputs import ExternalInput, listen
from tracepaper.replay.checks.isolation import FreshProcesses, accesses
from tracepaper.replay.checks.perturbations import HASH_SEEDS
from tracepaper.storage.chain.verify import verify_chain
from tracepaper.storage.database.chunks import StoredRun
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.errors import TracepaperError
from tracepaper.strategies.types.decisions import Step
from tracepaper.strategies.types.market import (
    Event,
    ModelChange,
)

KEEPS_STATE: Final = (
    "the strategy keeps state that its warm-up bars do not rebuild; run `tracepaper recursive`"
)
DRAWS: Final = "the strategy decides otherwise each time it is asked; run `tracepaper lookahead`"
HASHES: Final = (
    "the strategy decides by the hash of a text, or by the order of a set of texts, which Python "
    "draws anew in each process; sort them, and run `tracepaper lookahead`"
)
CLOCK: Final = (
    "the strategy decides by the machine's clock; take the bar's time, and run `tracepaper "
    "lookahead`"
)

_OF_FORECAST: Final = (
    "mean_return",
    "stdev_return",
    "p_",
    "volatility",
    "explanation",
    "model_id",
)
_CAUSES: Final = (
    ("a stored event was changed", ("event", "accepted")),
    (
        "the weights, or a bar in the model's window, were changed",
        _OF_FORECAST,
    ),
    (
        "a stored fill, order or account value was changed",
        ("account", "position", "fills", "orders", "ledger", "twins", "state", "halted"),
    ),
)
"""The causes that the fields of the first differing step show, the surest first."""

_DECIDED: Final = ("action", "target_quantity", "reason", "allowed", "refused_by")
_GIVEN: Final = ("event", "accepted", "bars.", "events.")
_OF_MODEL: Final = ("runs.model_id", "runs.model_sha256")
_OF_CONFIG: Final = ("runs.config", "runs.config_sha256", "runs.strategy", "runs.interval_ms")


class Cause(StrEnum):
    """The part of a run that its differences come from."""

    CODE = "code"
    CONFIGURATION = "configuration"
    MODEL = "model"
    STRATEGY = "strategy"
    ENVIRONMENT = "environment"
    RECORD = "record"


class LikelyCause(NamedTuple):
    """The likeliest cause, a sentence about it, and whether it can be no other."""

    culprit: Cause  # the name of its key in JSON
    sentence: str
    sure: bool = True  # else the record may have been changed as well

    @property
    def named(self) -> str:
        """The cause as a sentence names it."""
        return f"the {self.culprit}" if self.sure else f"the {self.culprit}, or the record,"


@dataclass(frozen=True)
class Case:
    """A run that was derived again, and what differed."""

    reader: Reader
    database: Path
    stored: StoredRun  # whose step count ends the derivation
    differences: Sequence[Difference]
    first_compared: int  # steps before it were derived and not compared
    exact: bool
    member_shape: tuple[int, int] | None = None  # of what an ensemble answers
    from_step: int | None = None  # where the derivation was asked to begin

    @property
    def of_run(self) -> dict[str, Difference]:
        """The differences of the run's own row, by column."""
        return {
            difference.field: difference
            for difference in self.differences
            if difference.field.startswith("runs.")
        }

    @property
    def of_steps(self) -> list[Difference]:
        """The differences of the first step that differs."""
        steps = [
            difference
            for difference in self.differences
            if not difference.field.startswith("runs.")
        ]
        return [
            difference for difference in steps if difference.open_time_ms == steps[0].open_time_ms
        ]


def diagnose(case: Case) -> LikelyCause:
    """Name the likeliest cause of the differences.

    One cause alone is named only where all else is equal: code, environment, and the chain.
    """
    run = case.stored.run
    if (count := case.of_run.get("runs.step_count")) is not None:
        sentence = f"its row counts {count.first} steps, and {count.second} are stored"
        sentence += ": steps were removed or added, or the row was changed"
        return LikelyCause(Cause.RECORD, sentence)
    if run.code_version != code_version():
        versions = f"the run was made by code {run.code_version}, and this is {code_version()}"
        return LikelyCause(
            Cause.CODE, f"{versions}, so that a changed record looks alike", sure=False
        )
    cause, sentence = _with_equal_code(case)
    chain = verify_chain(case.reader.connection, run.run_id)
    sure = cause is Cause.RECORD or (case.exact and chain.holds)
    return LikelyCause(cause, sentence, sure)


def _with_equal_code(case: Case) -> tuple[Cause, str]:
    run, row = case.stored.run, case.of_run
    if row:
        return _by_row(case, row)
    config = restore(run.config)
    is_chained = verify_chain(case.reader.connection, run.run_id).holds
    if is_chained and (classes := own_classes(config)) and (fault := _by_strategy(case)):
        if {*classes} - {config.model.own_class, config.features.own_schema}:
            return Cause.STRATEGY, fault
        return Cause.MODEL, fault.replace("the strategy", "the model", 1)
    names = " ".join(difference.field for difference in case.of_steps).split()
    judged = any(name.startswith((*_OF_FORECAST, *_DECIDED)) for name in names)
    if not case.exact and judged and not any(name.startswith(_GIVEN) for name in names):
        # Another machine's rounding can explain it.
        return Cause.ENVIRONMENT, f"the run was made elsewhere, or {_by_fields(names)}"
    return Cause.RECORD, _by_fields(names)


def _by_row(case: Case, row: Mapping[str, Difference]) -> tuple[Cause, str]:
    """Name the cause of a difference in the run's own row."""
    run = case.stored.run
    if any(name in row for name in _OF_CONFIG):
        return Cause.CONFIGURATION, "its configuration is not the one that its hash names"
    if any(name in row for name in _OF_MODEL):
        return Cause.MODEL, f"the model is not {run.model_id}, which the run names"
    if (strategy := row.get("runs.strategy_sha256")) is None:
        return Cause.RECORD, "the run's row was changed"
    now, then = strategy.second[:12], strategy.first[:12]
    hashes = f"its source and files hash to {now}, the run's to {then}"
    who = f"the strategy {run.strategy} was changed since"
    if not case.of_steps:
        who = f"every step follows, but the strategy {run.strategy} or the run's row was changed"
    return Cause.STRATEGY, f"{who}: {hashes}"


def _by_fields(names: Sequence[str]) -> str:
    for cause, fields in _CAUSES:
        if any(name.startswith(fields) for name in names):
            return cause
    return "a stored decision or gate was changed"


def _by_strategy(case: Case) -> str:
    """Name the fault of a user's class that makes its decisions differ; empty without one."""
    again = partial(_derived, case)
    pairs = zip(again(remade=False), again(remade=False), strict=True)
    if any(step != other for step, other in islice(pairs, case.stored.step_count)):
        return DRAWS
    whole = replace(case, from_step=None)
    if _follows(case, again(remade=True)) or (
        case.from_step is not None and _follows(whole, _derived(whole, remade=False))
    ):
        return KEEPS_STATE
    names = [difference.field for difference in case.of_steps]
    if any(name.startswith(_GIVEN) for name in names):
        return ""  # the inputs of a strategy are not its own doing
    fault, opened = _by_process(case, again(remade=False))
    if fault or not any(name.startswith(_DECIDED) for name in names):
        return fault
    did = ""
    if opened:
        names = [item.name for item in opened[:3]]
        did = f"opens {', '.join(names)}, which `files` does not name and which may have changed"
    if not did and case.reader.pruned(case.stored.run_key) is not None:
        did = "may keep state that its warm-up bars do not rebuild (`tracepaper recursive` tells)"
    return f"the strategy {did}, or a stored decision was changed" if did else ""


def _by_process(case: Case, steps: Iterator[Step]) -> tuple[str, Sequence[ExternalInput]]:
    """Name what of a process *steps* depend on, and what it opened and did not declare.

    The first is the seed for hashes of texts, or the clock; empty where it is neither.
    """
    (_, _, file) = case.reader.connection.execute("PRAGMA database_list").fetchone()
    given = Path(file), case.database, case.stored.run.run_id, case.from_step
    ours = [sha256(msgspec.msgpack.encode(step)).digest() for step in steps]
    opened: Sequence[ExternalInput] = ()
    # Clocks last: under a seed by which nothing moved, they alone are another.
    for seed, jumps in (*((seed, False) for seed in HASH_SEEDS), (HASH_SEEDS[0], True)):
        with (
            suppress(TracepaperError),
            FreshProcesses(hash_seed=seed) as fresh,
            fresh.child(derive_hashes, *given, len(ours), jumps=jumps) as child,
        ):
            theirs, opened = child.receive()
            if theirs != ours:
                return CLOCK if jumps else HASHES, opened
    return "", opened  # also for a class that was typed: no other process finds it


def derive_hashes(
    connection: Connection,
    file: Path,
    database: Path,
    run_id: str,
    from_step: int | None,
    count: int,
    *,
    jumps: bool,
) -> None:
    """Send the hashes of a run's first *count* steps, derived in this process, and what it opened.

    Where the clock *jumps*, it does so at each reading.
    """
    if jumps:
        jump_clocks()
    with Reader.open(file) as reader:
        config = restore(reader.stored_run(run_id).run.config)
        listen(own_classes(config))
        predictor, recorded, run_events = _opened(reader, database, run_id, from_step)
        events = islice(run_events, count)
        hashes = [
            sha256(msgspec.msgpack.encode(step)).digest()
            for unit in gathered(events)
            for step in steps_of(recorded.engine, unit, predictor.predict(unit))
        ]
        connection.send((hashes, accesses(config).opened))


def _opened(
    reader: Reader, database: Path, run_id: str, from_step: int | None
) -> tuple[RecordedPredictor, RecordedRun, Iterator[Event]]:
    """Return the run, what answers it, and the events that are to be derived."""
    recorded = open_recorded(reader, database, run_id, from_step=from_step)
    predictor = RecordedPredictor(recorded, prober_of(recorded, database), database)
    events = predictor.events(reader, run_id)
    return predictor, recorded, run_in(reader, recorded, predictor, events)


def _follows(case: Case, steps: Iterator[Step]) -> bool:
    """Return whether all of *steps* are as they are stored."""
    check = RowCheck(case.reader, case.stored, member_shape=case.member_shape)
    first = next(steps, None)
    if first is None:
        return True
    steps = chain((first,), steps)
    until = case.stored.step_count - 1
    rows = case.reader.rows(case.stored.run.run_id, after=first.sequence - 1, until=until)
    return not any(
        check.compare(step, kept, exact=case.exact).unequal
        for step, kept in zip(steps, rows, strict=True)
        if step.sequence >= case.first_compared
    )


def _derived(case: Case, *, remade: bool) -> Iterator[Step]:
    """Derive the run; *remade* makes its strategies anew at every restart, as a start does."""
    reader, run_id = case.reader, case.stored.run.run_id
    predictor, recorded, run_events = _opened(reader, case.database, run_id, case.from_step)
    engine = recorded.engine
    starts = 0 if recorded.beginning is None else 1
    for unit in gathered(islice(run_events, case.stored.step_count - recorded.first)):
        if isinstance(unit, ModelChange):
            starts += 1
            if remade and starts > 1 and not predictor.is_promotion(unit):
                after = engine.sequence - 1
                instruments = instruments_at(reader, recorded.run, after)
                engine = engine_of(recorded.run, recorded.config, predictor.forecaster, instruments)
                restore_at(engine, reader, recorded.run, after)
                recall_bars(engine, reader, recorded.run, None, until=after)
                predictor.prepare(engine)
        yield from steps_of(engine, unit, predictor.predict(unit))
