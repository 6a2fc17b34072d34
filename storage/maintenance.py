"""``db backup`` and ``db prune``.

docs/storage.md, S16 and S17, has the rules.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing, contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct
from sqlalchemy import delete, text

from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.chain.starting_point import Rebuilding, StartingPoint, StartingPoints
from tracepaper.storage.chain.verify import verify_chain
from tracepaper.storage.checkpoints import kept_checkpoints
from tracepaper.storage.covariates import kept_covariates, sync_names, write_whole
from tracepaper.storage.database.chunks import (
    WITHIN,
    FedRows,
    KeptStart,
    chain_head,
    fed_rows,
    find_step,
    prune_point,
    run_span,
)
from tracepaper.storage.database.connection import open_reader, page_problem
from tracepaper.storage.database.lock import lock_file
from tracepaper.storage.database.remedies import refusal
from tracepaper.storage.database.schema import metadata
from tracepaper.storage.database.writer import Writer, insert_rows, open_writer
from tracepaper.storage.record.rows import DROPPED_ROWS, At
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.types.market import Prune
from tracepaper.strategies.units import DAY_MS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


_OPENED: Final = (
    f"SELECT min(open_time_ms), max(open_time_ms) FROM steps WHERE {WITHIN} AND ignored IS NULL"
)
_ANSWER: Final = At("answers")
_TAKEN_OVER: Final = (
    "SELECT state FROM states JOIN runs USING (run_key) "
    "WHERE run_key = ? AND parent_run_id IS NOT NULL ORDER BY sequence LIMIT 1"
)
_NEWEST_CLOSE: Final = (
    "SELECT max(s.open_time_ms) + r.interval_ms FROM steps s, runs r "
    "WHERE s.run_key = ? AND r.run_key = s.run_key"
)
KEPT_BESIDE: Final = (kept_checkpoints, kept_covariates)
"""Functions that return the folders, beside a database, that ``verify`` needs for its runs."""


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """Yield the path of a database to write; rename it to the new file *target* at the end.

    Raises ``DataInvalid`` if *target* exists, ``AuditUnwritable`` if it cannot be written; then no
    file is left.
    """
    if target.exists():
        raise DataInvalid(f"{target} exists already; name a new file for the backup.")
    for suffix in ("-wal", "-journal"):
        rest = target.with_name(target.name + suffix)
        if rest.exists() and rest.stat().st_size:  # SQLite would write it into the new file
            raise DataInvalid(
                f"{rest} belongs to a database that is missing: move it away, or name a new file "
                "for the backup."
            )
    partial = target.with_name(target.name + ".partial")
    try:
        partial.write_bytes(b"")
    except OSError as error:
        raise refusal(str(target), error) from None
    try:
        yield partial
        # Otherwise the rename could reach the disk before the content.
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        lock_file(target).unlink(missing_ok=True)  # left by a database that was deleted
        partial.rename(target)
        sync_names(target.parent)
    except (sqlite3.Error, OSError) as error:
        raise refusal(str(target), error) from error
    finally:
        for suffix in ("", "-journal", "-wal", "-shm", ".lock"):
            partial.with_name(partial.name + suffix).unlink(missing_ok=True)


def backup(path: Path, target: Path) -> list[Path]:
    """Copy one snapshot of the database *path* to the new file *target*, even while it is written.

    Also copies the files beside it that ``verify`` needs, the models and covariates of its runs;
    returns those copies. Raises ``DataInvalid`` if *target* exists, ``AuditUnwritable`` if it
    cannot be written.
    """
    with whole_file(target) as partial:
        with closing(open_reader(path)) as source, closing(sqlite3.connect(partial)) as copy:
            source.backup(copy)
            damage = page_problem(copy)
        if damage:
            raise DataInvalid(f"{path} is damaged ({damage}); restore an older backup.")
        # A file beside the database is written before a run refers to it, and never removed: so
        # all files to which the snapshot refers exist now.
        beside = [copy for folder in KEPT_BESIDE for copy in _copy_beside(path, target, folder)]
    with suppress(OSError):  # the user may only read this folder; the copy is complete
        copied_file(path).touch()
    return beside


def copied_file(database: Path) -> Path:
    """Return the file whose modification time is that of the newest backup."""
    return database.with_name(database.name + ".copied")


def copied_at_s(database: Path) -> float | None:
    """Return the time of the newest backup in Unix seconds; None without one."""
    try:
        return copied_file(database).stat().st_mtime
    except OSError:
        return None


def _copy_beside(path: Path, target: Path, folder: Callable[[Path], Path]) -> list[Path]:
    """Copy every complete file of the *folder* beside *path* to the one beside *target*."""
    source, copies = folder(path), folder(target)
    copied = []
    for place in sorted(source.rglob("*")) if source.is_dir() else ():
        name = place.relative_to(source)
        # A file that is still being written has a temporary name.
        if place.is_file() and not any(part.startswith((".", "tmp")) for part in name.parts):
            (copies / name).parent.mkdir(parents=True, exist_ok=True)
            write_whole((place.read_bytes(),), copies / name)
            copied.append(copies / name)
    return copied


class Pruning(Struct, frozen=True):
    """The steps of one run that a prune dropped."""

    run_id: str
    until_sequence: int  # the last step dropped by this or an earlier prune; -1 if none
    steps: int  # steps dropped by this prune


def prune(
    path: Path,
    *,
    keep_days: int,
    pruned_at_ms: int,
    rebuild: Callable[[str], Rebuilding | None],
) -> list[Pruning]:
    """Drop the steps on which no decision of a run's last *keep_days* of market time depends.

    Their bars, forecasts and shadow steps are dropped; trades, settlements, gaps and commands are
    kept, covered by a hash. The lookback of the first decision is kept too. Every kept decision can
    be derived: the prune keeps the engine's state at its end and the events that go before.
    *rebuild* answers for the engine of a run; if it returns None, the run is left as it is. The
    chain is checked before, and continues from the first kept step. Raises ``ConfigInvalid`` while
    a daemon has the database open, ``DataInvalid`` if a chain is broken.
    """
    if not path.is_file():
        raise DataInvalid(f"There is no database {path}; name one with --db.")
    if keep_days < 1:
        raise DataInvalid("A prune must keep at least 1 day.")
    writer = open_writer(path)
    try:
        raw = writer.driver
        runs = raw.execute("SELECT run_key, run_id FROM runs ORDER BY run_key").fetchall()
        log = SqlAuditLog(writer)
        kept_ms = keep_days * DAY_MS
        done = [_prune_run(log, writer, run, kept_ms, pruned_at_ms, rebuild) for run in runs]
        if any(pruning.steps for pruning in done):
            raw.execute("VACUUM")
    except sqlite3.Error as error:
        raise refusal(str(path), error, ", and prune again") from error
    finally:
        writer.close()
    return done


def _prune_run(
    log: SqlAuditLog,
    writer: Writer,
    run: tuple[int, str],
    keep_ms: int,
    pruned_at_ms: int,
    rebuild: Callable[[str], Rebuilding | None],
) -> Pruning:
    """Drop the commits before the last *keep_ms*; record the prune as a step of the run."""
    raw, (run_key, run_id) = writer.driver, run
    pruned = prune_point(raw, run_key)
    before = -1 if pruned is None else pruned.until_sequence
    unchanged = Pruning(run_id, before, 0)
    oldest, newest = raw.execute(_OPENED, run_span(run_key)).fetchone()
    if newest is None or oldest > newest - keep_ms or (rebuilding := rebuild(run_id)) is None:
        return unchanged
    points = StartingPoints(raw, run_key, rebuilding.lookback)
    until = _prunable_until(raw, run_key, points, newest - keep_ms)
    if until <= before:
        return unchanged
    chain_end = chain_head(raw, run_key, until)
    assert chain_end is not None, "a commit ends there"
    head = chain_end[1]
    report = verify_chain(raw, run_id)
    if report.problem is not None:
        raise DataInvalid(f"Run {run_id} is not pruned: {report.problem.sentence}")
    log.resume(run_id)
    state, run_in = _start_after(raw, run_key, points.after(until), rebuilding)
    (market_ms,) = raw.execute(_NEWEST_CLOSE, (run_key,)).fetchone()
    event = Prune(
        until,
        pruned_at_ms,
        head.digest.hex(),
        head.kept.hex(),
        head.state.hex(),
        sha256(state + run_in).hexdigest(),
        market_ms,
        market_ms,
    )

    def drop() -> None:
        """Drop the rows and keep the prune's, in the transaction of its step."""
        for name, dropped in DROPPED_ROWS:
            table = metadata.tables[name]
            is_before = table.c.run_key == run_key, table.c.sequence <= until
            writer.connection.execute(delete(table).where(*is_before, text(dropped)))
        commits, prunes = metadata.tables["commits"], metadata.tables["prunes"]
        is_before = commits.c.run_key == run_key, commits.c.last_sequence <= until
        writer.connection.execute(delete(commits).where(*is_before))
        writer.connection.execute(delete(prunes).where(prunes.c.run_key == run_key))
        row = (run_key, until, pruned_at_ms, *head, state, run_in)
        insert_rows(writer.driver, {"prunes": [row]})

    log.note(event, drop)
    return Pruning(run_id, until, until - before)


def _prunable_until(
    raw: sqlite3.Connection, run_key: int, points: StartingPoints, until_ms: int
) -> int:
    """Return the last step on which no decision on a bar after *until_ms* depends, or -1.

    It ends a commit.
    """
    first_kept = points.step_at(until_ms + 1)
    assert first_kept is not None, "the newest bar is always kept"
    until = points.droppable(first_kept)
    # If no bar would be dropped, nothing is.
    first_bar = find_step(raw, *run_span(run_key), "steps", "instrument IS NOT NULL")
    if first_bar is None or until < first_bar:
        return -1
    chain_end = chain_head(raw, run_key, until)
    return -1 if chain_end is None else chain_end[0]


def _start_after(
    raw: sqlite3.Connection, run_key: int, point: StartingPoint, rebuilding: Rebuilding
) -> tuple[bytes, bytes]:
    """Return the engine's state at *point*, and the rest with which a derivation begins there."""
    pruned = prune_point(raw, run_key)
    if pruned is None:
        (opened,) = raw.execute(_TAKEN_OVER, (run_key,)).fetchone() or (b"",)
    else:
        opened = pruned.kept_start().opened
    if pruned is None or point.fed_from > pruned.until_sequence:
        fed = fed_rows(raw, (run_key, point.fed_from, point.after))
    else:
        since = fed_rows(raw, (run_key, pruned.until_sequence + 1, point.after))
        kept = zip(pruned.kept_start().run_in, since, strict=True)
        fed = FedRows(*([*old, *new] for old, new in kept))
    # What the model said is not asked for, only where it was late.
    late = [row for row in fed.answers if row[_ANSWER.late_deadline_ms] is not None]
    carried = rebuilding.state_after(point.after)
    start = KeptStart(
        point.fed_from,
        point.is_started,
        carried.since,
        carried.is_unsaved,
        fed._replace(answers=late),
        opened,
    )
    return carried.state, msgspec.msgpack.encode(start)
