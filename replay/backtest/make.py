"""Makes the run of a ``RunSpec``, in a database or in memory; every command uses it."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import msgspec

from tracepaper.daemon.clock import SystemClock
from tracepaper.daemon.commands.options import reads_record
from tracepaper.daemon.config.loading import Config, restore
from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.session.build import unread_gate_keys
from tracepaper.daemon.session.longer_history import remedied
from tracepaper.daemon.session.loop import KnownPredictor
from tracepaper.daemon.session.models import card_of
from tracepaper.daemon.session.resume import recall_events, restore_engine
from tracepaper.daemon.session.run_row import continues, sessions_of, start_event
from tracepaper.replay.backtest.build import Replay, build, configuration
from tracepaper.replay.backtest.effects import engine_inputs, keys_without_effect, sentence_on
from tracepaper.replay.backtest.longer_history import LONGEST_S, Rehearsal
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.replay.backtest.recorded import rerun_recorded
from tracepaper.replay.backtest.run import Tally, Watch, predictor_over, run_events, run_replay
from tracepaper.replay.backtest.run_spec import Consumer, RunSpec, names_a_run, reject_unused
from tracepaper.replay.backtest.universe import with_chosen
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.checkpoints import identity, kept_checkpoints
from tracepaper.storage.covariates import kept_covariates
from tracepaper.storage.database.connection import REPLAY_PAGE_BYTES
from tracepaper.storage.database.lock import lock_file
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.memory_log import MemoryLog
from tracepaper.strategies.book_features import WANTED, books_read_by
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.types.decisions import FillModel
from tracepaper.strategies.types.market import Depths, Event, RunKind


@dataclass(frozen=True)
class MadeRun:
    """The run of a spec; its ``tally`` says whether it is finished."""

    database: Path
    run_id: str
    tally: Tally
    seconds: float


def make_run(spec: RunSpec, watch: Watch | None = None) -> MadeRun:
    """Make the run of *spec*; if its start fails, remove what it wrote.

    It handles no signals and awaits nothing, so any thread may call it, also inside a running event
    loop. Raises ``ConfigInvalid``, ``DataInvalid`` or ``StrategyFailed``.
    """
    watch = watch or Watch()
    clock = SystemClock()
    recorded = [item for item in spec.candles if isinstance(item, str) and names_a_run(item)]
    if recorded and len(spec.candles) > 1:
        raise ConfigInvalid("A recorded run is replayed alone; give --data FILE.db#RUN once.")
    for run in recorded:
        subject = f"{run} is fed again whole and by its own configuration"
        reject_unused(spec, Consumer.RECORDED, subject)
    database = spec.database or Path(f"replay-{clock.wall_ms()}.db")
    if spec.resume is not None and not database.exists():
        raise ConfigInvalid(
            "--resume goes on with a run of --db FILE; name the database that holds it."
            if spec.database is None
            else f"{database} does not exist, so it holds no run that could go on (one that was "
            "stopped before its first bars is not stored); leave --resume out to begin it."
        )
    began_s = clock.network_s()
    is_new, kept = not database.exists(), _kept(database)
    audit = SqlAuditLog.open(database, page_bytes=REPLAY_PAGE_BYTES)
    tally = Tally(stopped=watch.stopped)
    rehearsal = None
    try:
        if recorded:
            rerun = reads_record(rerun_recorded)
            started_at_ms = clock.wall_ms()
            run_id = rerun(recorded[0], audit, database, tally, started_at_ms=started_at_ms)
        elif spec.resume is not None:
            reject_unused(
                spec, Consumer.RESUME, f"Run {spec.resume} goes on by its own configuration"
            )
            data = MarketData.read(spec)
            run_id = resume_replay(
                spec.resume, data, audit, database, tally, until_ms=spec.until_ms
            )
        else:
            data, replay = _replay_of(spec, database, clock.wall_ms())
            rehearsal = Rehearsal(replay, data)
            with watch.progress(replay) as tally.progress, remedied(rehearsal.short_history):
                run_replay(replay, audit, tally)
            run_id = replay.run.run_id
        if tally.finished:
            audit.end(clock.wall_ms())
    finally:
        audit.close()
        if not audit.is_open:  # the start failed: nothing is left behind
            _remove_failed_start(database, kept, is_new=is_new)
    took_s = clock.network_s() - began_s
    if rehearsal is not None and tally.finished:
        rehearsal.keep(database, run_id, seconds=took_s + LONGEST_S)
    return MadeRun(database, run_id, tally, took_s)


def run_in_memory(spec: RunSpec) -> MemoryLog:
    """Return the finished run of *spec*, which must not resume or replay a recorded run.

    Nothing is written to disk. Raises the errors of :func:`make_run`.
    """
    wall_ms = SystemClock().wall_ms
    data, replay = _replay_of(spec, None, wall_ms())
    model = None
    if replay.forecaster is not None:
        card = card_of(replay.config, replay.forecaster)
        model = identity(str(card["model"].get("weights_sha256")), card)
    log = MemoryLog(model)
    replay.engine.stores_state = False  # it is never resumed
    with remedied(Rehearsal(replay, data).short_history):
        run_replay(replay, log, Tally())
    log.end(wall_ms())
    return log


def options_without_effect(
    spec: RunSpec, others: Mapping[str, Sequence[RunSpec]]
) -> tuple[str, ...]:
    """Return the names in *others* whose specs set a key that has no effect on the run of *spec*.

    The specs of a name differ from *spec* in that key alone. Raises the errors of that run.
    """
    data, config, replay = _built(spec, None, 0)
    return tuple(
        name
        for name, specs in others.items()
        if specs and all(_without_effect(other, data, config, replay) for other in specs)
    )


def _replay_of(
    spec: RunSpec, database: Path | None, started_at_ms: int
) -> tuple[MarketData, Replay]:
    data, config, replay = _built(spec, database, started_at_ms)
    unset = dataclasses.replace(spec, settings=())
    if not spec.settings:
        return data, replay
    said = unread_gate_keys(replay.config, replay.engine)  # in the run's own warnings
    keys = [key for key in _without_effect(unset, data, config, replay) if key not in said]
    if not keys:
        return data, replay
    warnings = (*replay.run.warnings, sentence_on(keys))
    row = msgspec.structs.replace(replay.run, warnings=warnings)
    return data, dataclasses.replace(replay, run=row)


def _built(
    spec: RunSpec, database: Path | None, started_at_ms: int
) -> tuple[MarketData, Config, Replay]:
    """Return the data and the configuration of *spec*, before the build, and its replay."""
    if spec.mode not in ("scan", "step"):
        raise ConfigInvalid(f"--mode is {spec.mode!r}; write scan or step.")
    data = MarketData.read(spec)
    config = configuration(spec.given, data, spec.sections, caller=spec.caller)
    replay = build(
        with_chosen(config, data, spec.from_ms),
        data,
        started_at_ms=started_at_ms,
        from_ms=spec.from_ms,
        until_ms=spec.until_ms,
        mode=spec.mode,
        database=database,
        warnings=spec.warnings,
    )
    return data, config, replay


def _without_effect(
    other: RunSpec, data: MarketData, config: Config, replay: Replay
) -> tuple[str, ...]:
    """Return the keys that differ in *other* and on which *replay* does not depend.

    *config* is that of *replay* before its build. None is named where *other* cannot be configured.
    """
    try:
        before = configuration(other.given, data, other.sections, caller=other.caller)
    except ConfigInvalid:
        return ()
    execution = FillModel(replay.config.execution.model)
    strategies = {
        item.symbol: replay.engine.deciders[item.id].strategy for item in replay.instruments
    }
    return keys_without_effect(
        before,
        config,
        replay.config,
        lambda config: engine_inputs(
            config, replay.run, strategies, replay.forecaster, execution=execution
        ),
    )


def _kept(database: Path) -> dict[Path, list[Path]]:
    """Return the folders of checkpoints and covariates beside *database*, with their contents."""
    folders = kept_checkpoints(database), kept_covariates(database)
    return {folder: [*folder.iterdir()] if folder.is_dir() else [] for folder in folders}


def _remove_failed_start(database: Path, kept: dict[Path, list[Path]], *, is_new: bool) -> None:
    """Remove everything that a failed start wrote; *kept* existed before it."""
    for folder, paths in _kept(database).items():
        for path in set(paths) - set(kept[folder]):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        if not kept[folder]:
            with suppress(OSError):  # it does not exist, or another process wrote into it
                folder.rmdir()
    if is_new:
        database.unlink(missing_ok=True)
        lock_file(database).unlink(missing_ok=True)


# ---------------------------------------------------------------- resume an interrupted replay


def resume_replay(
    wanted: str,
    data: MarketData,
    audit: SqlAuditLog,
    database: Path,
    tally: Tally,
    *,
    until_ms: int | None = None,
) -> str:
    """Resume the replay *wanted* over the same *data*, until *until_ms*; return its run id.

    Raises the errors of :func:`resumed_replay`.
    """
    with Reader.open(database) as reader:
        resumed = resumed_replay(wanted, data, audit, reader, database=database, until_ms=until_ms)
    run_events(resumed.events, resumed.predictor, resumed.engine, audit, tally)
    return resumed.run_id


class ResumedReplay(NamedTuple):
    """A resumed replay, and the events that it has yet to process."""

    run_id: str
    engine: Engine
    predictor: KnownPredictor
    events: Iterable[Event]


def resumed_replay(
    wanted: str,
    data: MarketData,
    audit: SqlAuditLog,
    reader: Reader,
    *,
    database: Path | None = None,
    until_ms: int | None = None,
) -> ResumedReplay:
    """Return the replay *wanted* over the same *data*, ready to continue until *until_ms*.

    *reader* reads the database of *audit*. Raises ``ConfigInvalid`` if the run is no replay, is
    finished, or was made by other code.
    """
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
    if replay.feed.sessions != sessions_of(run):
        raise DataInvalid(
            f"The dates of the data are not those of run {run_id}, which are its sessions; give "
            "the data that it was made of."
        )
    if not continues(run, replay.config, replay.forecaster):
        raise ConfigInvalid(
            f"Run {run_id} was made by {run.code_version} with another configuration, strategy, "
            "code, checkpoint or covariates; start a new replay."
        )
    resumed = audit.resume(run_id)
    engine, market = replay.engine, replay.config.market
    # A start clears the order books: feed those again that the next decisions read.
    of_model = WANTED if books_read_by(replay.forecaster) else 0
    seen_ms = {
        key: open_ms
        + market.interval_ms
        - max(engine.deciders[key].strategy.books, of_model) * market.depth_every_ms
        for key, open_ms in resumed.last_open_ms.items()
    }
    predictions = predictor_over(replay)
    history = predictions.history
    rest = _after(reader.newest_fed(run_id), replay.feed.events(), seen_ms)
    restore_engine(replay.engine, reader, resumed, history)
    bars = [] if history is None else [*chain(*history.by_instrument().values())]
    for model in (replay.forecaster, predictions.prober):
        recall_events(model, reader, run_id, bars)
    warm_from = () if history is None else history.warm_from()
    start = start_event(
        replay.forecaster,
        warm_from=warm_from,
        market_ms=max(resumed.last_open_ms.values(), default=run.period_start_ms),
    )
    events = predictions.ahead(chain((start,), rest))
    return ResumedReplay(run_id, engine, predictions.predictor, events)


def _after(
    newest: Event | None, events: Iterable[Event], books_ms: Mapping[str, int]
) -> Iterator[Event]:
    """Yield the *events* after *newest*, the run's last; all if it is None.

    Order books newer than *books_ms* of their instrument come first, although the run has them.
    """
    is_new = newest is None
    for event in events:
        if is_new or (
            isinstance(event, Depths) and event.market_ms > books_ms.get(event.instrument, -1)
        ):
            yield event
        is_new = is_new or event == newest
    if not is_new:
        raise DataInvalid(
            "The data do not hold the last event of the run, so nothing follows it; give the data "
            "that it was made of."
        )
