"""A consistent copy while a daemon writes, and a prune that keeps the chain verifiable.

The rules are docs/storage.md, S16 and S17.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from msgspec import Struct
from sqlalchemy.exc import DBAPIError

from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.chain import DROPPED_TABLES, verify_chain
from tracepaper.storage.database import advice, open_reader, open_writer
from tracepaper.storage.digest import NOTHING
from tracepaper.storage.reader import confirmed_since, latest, run_span
from tracepaper.storage.rows import KEPT_EVENTS, sequence_of, step_key
from tracepaper.strategies.errors import AuditUnwritable, DataInvalid
from tracepaper.strategies.market import DAY_MS
from tracepaper.strategies.types import Prune

if TYPE_CHECKING:
    from pathlib import Path

_LISTED: Final = ", ".join(f"'{kind}'" for kind in KEPT_EVENTS)
_PRUNED_UNTIL: Final = "SELECT until_sequence FROM prunes WHERE run_key = ?"
_KIND: Final = "SELECT kind FROM events WHERE step = ?"
_PRUNED: Final = "SELECT until_sequence, state, kept_sha256 FROM prunes WHERE run_key = ?"


def backup(path: Path, target: Path) -> None:
    """Copy the database *path* to the new file *target*, consistently, while it is written.

    Reads one snapshot over a read-only connection, so the writer goes on. Raises ``DataInvalid``
    where *target* exists, ``AuditUnwritable`` where it cannot be written.
    """
    if target.exists():
        raise DataInvalid(f"{target} exists already; name a new file for the backup.")
    partial = target.with_name(target.name + ".partial")
    partial.unlink(missing_ok=True)
    try:
        with closing(open_reader(path)) as source, closing(sqlite3.connect(partial)) as copy:
            source.backup(copy)
            (verdict,) = copy.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            where = " ".join(verdict.replace("*", "").split())
            raise DataInvalid(f"{path} is damaged ({where}); restore an older backup.")
        # A rename can reach the disk before the content that it names.
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.rename(target)
    except (sqlite3.Error, OSError) as error:
        raise AuditUnwritable(
            f"{target} cannot be written ({error}); free disk space or choose another place."
        ) from error
    finally:
        partial.unlink(missing_ok=True)


class Pruning(Struct, frozen=True):
    """What a prune did to one run."""

    run_id: str
    until_sequence: int  # the last step dropped; -1 where nothing was old enough
    steps: int  # dropped now


def prune(path: Path, *, keep_days: int, pruned_at_ms: int) -> list[Pruning]:
    """Drop what is older than *keep_days* of market time before each run's newest bar.

    Bars, forecasts, steps and twins' steps go; trades, settlements, gaps and commands stay,
    covered by a hash. The chain is checked before, and holds from the first step kept. Raises
    ``ConfigInvalid`` while a daemon has the database open, ``DataInvalid`` where a chain is
    broken already.
    """
    if not path.is_file():
        raise DataInvalid(f"There is no database {path}; name one with --db.")
    if keep_days < 1:
        raise DataInvalid("A prune must keep at least 1 day.")
    writer = open_writer(path)
    try:
        raw = writer.connection.connection.driver_connection
        assert isinstance(raw, sqlite3.Connection)
        runs = raw.execute("SELECT run_key, run_id FROM runs ORDER BY run_key").fetchall()
        log = SqlAuditLog(writer)
        done = [
            _prune_run(log, raw, (run_key, run_id), keep_days * DAY_MS, pruned_at_ms)
            for run_key, run_id in runs
        ]
        if any(pruning.steps for pruning in done):
            raw.execute("VACUUM")
    except (DBAPIError, sqlite3.Error) as error:
        raise AuditUnwritable(
            f"{path} could not be pruned ({error}); {advice(error)} and run it again."
        ) from error
    finally:
        writer.close()
    return done


def _prune_run(
    log: SqlAuditLog,
    raw: sqlite3.Connection,
    run: tuple[int, str],
    keep_ms: int,
    pruned_at_ms: int,
) -> Pruning:
    """Drop what is old, and say so in a step of the run's own chain."""
    run_key, run_id = run
    until = _prunable_until(raw, run_key, keep_ms)
    before = raw.execute(_PRUNED, (run_key,)).fetchone() or (-1, None, NOTHING)
    if until <= before[0]:
        return Pruning(run_id, before[0], 0)
    report = verify_chain(raw, run_id)
    if report.problem is not None:
        raise DataInvalid(f"Run {run_id} is not pruned: {report.problem.sentence}")
    log.resume(run_id)
    first, last = step_key(run_key, 0), step_key(run_key, until)
    span = (first, last)
    (digest,) = raw.execute("SELECT digest FROM steps WHERE step = ?", (last,)).fetchone()
    state = latest(raw, run_key, "state", until) or before[1]
    kept = latest(raw, run_key, "kept_sha256", until) or before[2]
    said = Prune(
        until,
        pruned_at_ms,
        digest.hex(),
        kept.hex(),
        "" if state is None else sha256(state).hexdigest(),
        *_market_times(raw, run_key),
    )

    def drop() -> None:
        for table in DROPPED_TABLES:
            if table == "steps":
                raw.execute(
                    f"DELETE FROM events WHERE step BETWEEN ? AND ? AND kind NOT IN ({_LISTED})",
                    span,
                )
            raw.execute(f"DELETE FROM {table} WHERE step BETWEEN ? AND ?", span)
        row = (run_key, until, pruned_at_ms, digest, kept, state)
        raw.execute("INSERT OR REPLACE INTO prunes VALUES (?, ?, ?, ?, ?, ?)", row)

    steps = until - before[0]
    log.note(said, drop)
    return Pruning(run_id, until, steps)


def _market_times(raw: sqlite3.Connection, run_key: int) -> tuple[int, int]:
    """Return the close of the run's newest bar, twice: market time and time seen."""
    query = (
        "SELECT max(s.open_time_ms) + r.interval_ms FROM steps s, runs r "
        "WHERE s.step BETWEEN ? AND ? AND r.run_key = ?"
    )
    (market_ms,) = raw.execute(query, (*run_span(run_key), run_key)).fetchone()
    return market_ms, market_ms


def _prunable_until(raw: sqlite3.Connection, run_key: int, keep_ms: int) -> int:
    """Return the last sequence before the bars that are kept, or -1."""
    span = run_span(run_key)
    (newest,) = raw.execute(
        "SELECT max(open_time_ms) FROM steps WHERE step BETWEEN ? AND ?", span
    ).fetchone()
    if newest is None:
        return -1
    (first_kept,) = raw.execute(
        "SELECT min(step) FROM steps WHERE step BETWEEN ? AND ? AND open_time_ms > ?",
        (*span, newest - keep_ms),
    ).fetchone()
    (stored,) = raw.execute(
        "SELECT max(step) FROM states WHERE step BETWEEN ? AND ? AND state IS NOT NULL",
        (span[0], first_kept - 1),
    ).fetchone()
    if stored is None:
        # The state of the last prune, or the run's first step.
        (until,) = raw.execute(_PRUNED_UNTIL, (run_key,)).fetchone() or (-1,)
        stored = step_key(run_key, until) if until >= 0 else span[0] - 1
    if any(True for _ in confirmed_since(raw, stored + 1, first_kept - 1)):
        # What was confirmed after the state was stored would go with the steps: cut there.
        return sequence_of(stored) if stored >= span[0] else -1
    (before,) = raw.execute(_KIND, (first_kept - 1,)).fetchone() or ("",)
    return sequence_of(first_kept) - (2 if before == "closed" else 1)
