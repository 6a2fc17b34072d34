"""Makes the run of a ``RunSpec`` in a database: the one way in which every run is made."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tracepaper.daemon.clock import SystemClock
from tracepaper.daemon.commands.options import reads_record
from tracepaper.daemon.session.models import card_of
from tracepaper.replay.backtest.build import Replay, build, configuration
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.replay.backtest.recorded import rerun_recorded
from tracepaper.replay.backtest.run import (
    Tally,
    Watch,
    resume_replay,
    run_replay,
    sessions_before,
)
from tracepaper.replay.backtest.run_spec import Consumer, RunSpec, names_a_run, refuse_unused
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.checkpoints import identity
from tracepaper.storage.covariates import kept_covariates
from tracepaper.storage.database.lock import lock_file
from tracepaper.storage.memory_log import MemoryLog
from tracepaper.strategies.errors import ConfigInvalid


@dataclass(frozen=True)
class MadeRun:
    """The run of a spec; its ``tally`` says whether it is finished."""

    database: Path
    run_id: str
    tally: Tally
    seconds: float


def make_run(spec: RunSpec, watch: Watch | None = None) -> MadeRun:
    """Make the run of *spec*; leave nothing behind where its start fails.

    Reads no signal and awaits nothing, so it may be called in any thread and inside a running
    event loop. Raises ``ConfigInvalid``, ``DataInvalid`` or ``StrategyFailed``, in one sentence.
    """
    watch = watch or Watch()
    clock = SystemClock()
    recorded = [item for item in spec.candles if isinstance(item, str) and names_a_run(item)]
    if recorded and len(spec.candles) > 1:
        raise ConfigInvalid("A recorded run is replayed alone; give --data FILE.db#RUN once.")
    for run in recorded:
        subject = f"{run} is fed again whole and by its own configuration"
        refuse_unused(spec, Consumer.RECORDED, subject)
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
    audit = SqlAuditLog.open(database)
    tally = Tally(stopped=watch.stopped)
    try:
        if recorded:
            rerun = reads_record(rerun_recorded)
            started_at_ms = clock.wall_ms()
            run_id = rerun(recorded[0], audit, database, tally, started_at_ms=started_at_ms)
        elif spec.resume is not None:
            run_id = _resume(spec, spec.resume, audit, database, tally)
        else:
            replay = _replay_of(spec, database, clock.wall_ms())
            with watch.progress(replay) as tally.progress:
                run_replay(replay, audit, tally)
            run_id = replay.run.run_id
        if tally.finished:
            audit.end(clock.wall_ms())
    finally:
        audit.close()
        if not audit.is_open:  # the start failed: nothing is left behind
            _remove_failed_start(database, kept, is_new=is_new)
    return MadeRun(database, run_id, tally, clock.network_s() - began_s)


def run_in_memory(spec: RunSpec) -> MemoryLog:
    """Return the finished run of *spec*, which is neither resumed nor a record fed again.

    Nothing is written to a disk. Raises what :func:`make_run` raises.
    """
    wall_ms = SystemClock().wall_ms
    replay = _replay_of(spec, None, wall_ms())
    model = None
    if replay.forecaster is not None:
        card = card_of(replay.config, replay.forecaster)
        model = identity(str(card["model"].get("weights_sha256")), card)
    log = MemoryLog(model)
    run_replay(replay, log, Tally())
    log.end(wall_ms())
    return log


def _resume(spec: RunSpec, wanted: str, audit: SqlAuditLog, database: Path, tally: Tally) -> str:
    refuse_unused(spec, Consumer.RESUME, f"Run {wanted} goes on by its own configuration")
    data = MarketData.read(spec, sessions_for=sessions_before(database, wanted))
    return resume_replay(wanted, data, audit, database, tally, until_ms=spec.until_ms)


def _replay_of(spec: RunSpec, database: Path | None, started_at_ms: int) -> Replay:
    if spec.mode not in ("scan", "step"):
        raise ConfigInvalid(f"--mode is {spec.mode!r}; write scan or step.")
    data = MarketData.read(spec)
    return build(
        configuration(spec.given, data.candles, spec.sections, caller=spec.caller),
        data,
        started_at_ms=started_at_ms,
        from_ms=spec.from_ms,
        until_ms=spec.until_ms,
        mode=spec.mode,
        database=database,
        warnings=spec.warnings,
    )


def _kept(database: Path) -> dict[Path, list[Path]]:
    """Return the folders beside *database*, and the checkpoints and covariates kept in each."""
    folders = database.with_name(database.name + ".checkpoints"), kept_covariates(database)
    return {folder: [*folder.iterdir()] if folder.is_dir() else [] for folder in folders}


def _remove_failed_start(database: Path, kept: dict[Path, list[Path]], *, is_new: bool) -> None:
    """Remove what a start left that failed; *kept* was there before."""
    for folder, paths in _kept(database).items():
        for path in set(paths) - set(kept[folder]):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        if not kept[folder]:
            with suppress(OSError):  # there is none, or somebody put something into it
                folder.rmdir()
    if is_new:
        database.unlink(missing_ok=True)
        lock_file(database).unlink(missing_ok=True)
