"""``Shipper``: copies the committed steps of a file into the PostgreSQL of a fleet.

It reads over a read-only connection, in one short transaction per group, so no writer waits for it.
The server stores a group, its mark and its updates in one transaction: after a crash on either side
shipping continues after the mark. docs/fleet.md, F4 to F9, has the rules.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct
from sqlalchemy import bindparam, delete, func, insert, text, update
from sqlalchemy import select as select_from
from sqlalchemy.dialects import postgresql

from tracepaper.storage.chain.verify import StoredCommit, Walk, check_prune, missing_commit
from tracepaper.storage.database.chunks import (
    RANGES,
    PrunePoint,
    Span,
    StoredRow,
    prune_point,
    select,
    snapshot,
)
from tracepaper.storage.database.connection import open_reader
from tracepaper.storage.database.writer import DATABASES, RANDOM_ID, open_writer
from tracepaper.storage.fleet.server import (
    check_rights,
    check_schema,
    connect,
    driver_of,
    shown,
    transaction,
)
from tracepaper.storage.fleet.tables import DATABASE, columns_of, metadata, upsert
from tracepaper.storage.record.rows import (
    DROPPED_ROWS,
    DROPPED_TABLES,
    OPENED_AT,
    At,
)
from tracepaper.strategies.errors import DataInvalid, ServerLost

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from sqlalchemy import BindParameter, Connection

GROUP_STEPS: Final = 2000
"""Steps per transaction; reading them takes some tens of milliseconds."""
_RUN: Final = select("runs", "run_key = ?")
_RUNS: Final = "SELECT run_key, step_count FROM runs ORDER BY run_key"
_OPENING_SETS: Final = select("gate_sets", "run_key = ? AND sequence IS NULL")
_HEAD: Final = "SELECT digest FROM commits WHERE run_key = ? AND last_sequence = ?"
_RUN_AT: Final = At("runs")
_SHIPPED: Final = (
    "SELECT run_key, m.sequence, m.digest, r.run_id, r.opened_digest "
    "FROM marks m JOIN runs r USING (database_id, run_key) WHERE database_id = %s "
    "ORDER BY run_key"
)
_OF_SHIPPED: Final = "JOIN marks USING (database_id, run_key) WHERE database_id = %s"
_TABLES: Final = metadata.tables
_OF_RUN: Final[dict[str, BindParameter[Any]]] = {
    DATABASE: bindparam("of_database"),
    "run_key": bindparam("of_run"),
}
_MARKS: Final = _TABLES["marks"]
_MARK: Final = (
    select_from(_MARKS.c.sequence, _MARKS.c.digest).filter_by(**_OF_RUN).with_for_update()
)
_SET_MARK: Final = upsert(_MARKS).values(shipped_at=func.clock_timestamp())
_SET_HEAD: Final = (
    update(_TABLES["runs"])
    .filter_by(**_OF_RUN)
    .values(step_count=bindparam("count"), head_digest=bindparam("head"))
)
_ARRIVED: Final = (
    "SELECT count(*), max(sequence) FROM steps "
    "WHERE database_id = %s AND run_key = %s AND sequence BETWEEN %s AND %s"
)
_LOCK: Final = "SELECT pg_try_advisory_lock(hashtextextended('tracepaper ' || %s, 0))"
_HOLDER: Final = (
    "SELECT a.application_name FROM pg_locks l JOIN pg_stat_activity a USING (pid) "
    "WHERE l.locktype = 'advisory' AND l.granted AND a.pid <> pg_backend_pid() "
    "AND a.datname = current_database() "
    "AND (l.classid::bigint << 32 | l.objid::bigint) = hashtextextended('tracepaper ' || %s, 0)"
)
RIGHTS: Final = {
    "SELECT": tuple(metadata.tables),
    "INSERT": tuple(metadata.tables),
    "UPDATE": ("runs", "marks", "shippers"),
    "DELETE": (*DROPPED_TABLES, "events", "commits", "prunes"),
}
"""By privilege: the tables on which the role of a shipper needs it."""
NEW_ID: Final = "give the file an id of its own with `tracepaper db ship --new-id`"


class ShipResult(Struct, frozen=True):
    """The result of one pass over a file."""

    steps: int = 0
    runs: int = 0
    holes: tuple[str, ...] = ()  # one sentence per hole


class _RunState:
    """How far a run has been shipped, and the walk over its next commits."""

    def __init__(self, run_key: int) -> None:
        self.run_key = run_key
        self.next = 0
        self.digest = b""
        self.is_there = False  # whether the run's row is on the server
        self.pruned_until: int | None = None
        self.walk: Walk | None = None


class Shipper:
    """Ships one file: ``open`` connects, ``ship`` copies commits that the server lacks."""

    def __init__(
        self,
        path: Path,
        url: str,
        *,
        group_steps: int = GROUP_STEPS,
        at: Callable[[str], object] = lambda _point: None,
        needed_by: str = "--to",
    ) -> None:
        self._path, self._url, self._needed_by = path, url, needed_by
        self._group_steps = group_steps
        self._at = at  # called at named points of a group, at which tests end the process
        self._server: Connection | None = None
        self._file: sqlite3.Connection | None = None
        self._runs: dict[int, _RunState] = {}
        self._models: set[str] = set()
        self._holes: list[str] = []
        self._shipped: dict[int, int] = {}  # steps by run; kept when a connection is lost
        self.database_id = ""

    # ------------------------------------------------------------ opening

    def open(self) -> None:
        """Connect, take the lock of this file on the server, and compare the histories.

        Raises ``DataInvalid`` if the file's history contradicts the server's, or the server has
        another schema, ``ServerLost`` if it does not answer or another process ships the file.
        """
        self.close()
        try:
            self.database_id = database_id(self._path)
            self._file = open_reader(self._path)
            self._server = connect(self._url, needed_by=self._needed_by)
            check_schema(self._url, self._server)
            with transaction(self._url, self._server, "take the lock of the file"):
                self._lock(self._server)
            with transaction(self._url, self._server, "read how far the file was shipped"):
                self._compare(self._server, self._file)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close both connections; the server releases the lock."""
        for connection in (self._file, self._server):
            if connection is not None:
                connection.close()
        self._file = self._server = None
        self._runs, self._models = {}, set()

    @property
    def is_open(self) -> bool:
        """Whether the server is connected."""
        return self._server is not None

    @property
    def server(self) -> Connection:
        """The connection to the server."""
        assert self._server is not None
        return self._server

    def probe(self) -> str:
        """Check all that ``open`` needs but the lock; return the process that ships the file.

        Returns "" if there is none. Writes nothing. Raises as ``open`` does, and ``ServerLost`` if
        the role lacks a right.
        """
        self.close()
        try:
            server = self._server = connect(self._url, needed_by=self._needed_by)
            check_schema(self._url, server)
            check_rights(self._url, server, RIGHTS)
            if not self._path.exists():
                return ""
            file = self._file = open_reader(self._path)
            row = file.execute("SELECT database_id FROM databases").fetchone()
            self.database_id = str(row[0])
            with transaction(self._url, server, "read how far the file was shipped"):
                self._compare(server, file)
                return self._holder(server)
        finally:
            self.close()

    def _holder(self, server: Connection) -> str:
        return server.exec_driver_sql(_HOLDER, (self.database_id,)).scalar() or ""

    def _lock(self, server: Connection) -> None:
        if server.exec_driver_sql(_LOCK, (self.database_id,)).scalar():
            return
        holder = self._holder(server)
        holder = f" ({holder})" if holder else ""
        raise ServerLost(
            f"Another process ships this file to {shown(self._url)} already{holder}: stop it, or "
            "leave the shipping to it; a `tracepaper db ship` without --once waits for its end."
        )

    def _compare(self, server: Connection, file: sqlite3.Connection) -> None:
        """Read the marks; raise ``DataInvalid`` if the file's history differs from the server's."""
        key = (self.database_id,)
        for run_key, last, digest, run_id, opened_digest in server.exec_driver_sql(_SHIPPED, key):
            state = self._runs[run_key] = _RunState(run_key)
            state.is_there, state.next, state.digest = True, last + 1, bytes(digest)
            row = file.execute(_RUN, (run_key,)).fetchone()
            if row is None:
                raise self._diverges(f"it lacks run {run_id}, which")
            if (row[_RUN_AT.run_id], row[OPENED_AT]) != (run_id, bytes(opened_digest)):
                raise self._diverges(
                    f"its run {row[_RUN_AT.run_id]} was opened otherwise than what"
                )
            if row[_RUN_AT.step_count] < state.next:
                raise self._diverges(
                    f"run {run_id} ends at step {row[_RUN_AT.step_count] - 1}, and step "
                    f"{state.next - 1} of it"
                )
            file_head = file.execute(_HEAD, (run_key, state.next - 1)).fetchone()
            pruned = prune_point(file, run_key)
            if file_head is None and pruned is not None and pruned.until_sequence == state.next - 1:
                file_head = (pruned.digest,)
            is_pruned = pruned is not None and pruned.until_sequence >= state.next
            if file_head != (state.digest,) and not (file_head is None and is_pruned):
                raise self._diverges(
                    f"step {state.next - 1} of run {run_id} has another digest than that which"
                )
        for run_key, until in server.exec_driver_sql(
            f"SELECT run_key, until_sequence FROM prunes {_OF_SHIPPED}", key
        ):
            self._runs[run_key].pruned_until = until
        self._shipped = {run_key: state.next for run_key, state in self._runs.items()}
        query = f"SELECT model_sha256 FROM models WHERE {DATABASE} = %s"
        self._models = set(server.exec_driver_sql(query, key).scalars())

    def _diverges(self, how: str) -> DataInvalid:
        return DataInvalid(
            f"{self._path} has another history than the fleet's under its id: {how} "
            f"{shown(self._url)} holds. It is a copy that was continued, or a restored older one; "
            f"nothing was shipped: {NEW_ID}."
        )

    # ------------------------------------------------------------ shipping

    def version(self) -> int:
        """Return a number that changes with every commit to the file by another connection."""
        assert self._file is not None
        return int(self._file.execute("PRAGMA data_version").fetchone()[0])

    def behind(self) -> int:
        """Return the number of committed steps that may not be on the server."""
        try:
            with closing(open_reader(self._path)) as file:
                runs = file.execute(_RUNS).fetchall()
        except (DataInvalid, sqlite3.Error):
            return 0
        return sum(max(0, count - self._shipped.get(run_key, 0)) for run_key, count in runs)

    def ship(self, progress: Callable[[int], object] = lambda _steps: None) -> ShipResult:
        """Ship every committed step and change; call *progress* with the steps of each group.

        Raises ``DataInvalid`` if the chain is broken, ``ServerLost`` if the connection fails; then
        ``open`` again.
        """
        file, server = self._file, self._server
        assert file is not None
        assert server is not None
        self._holes, steps, grown = [], 0, 0
        try:
            with self._taking(server):
                self._register(server, file)
            for run_key, _ in file.execute(_RUNS).fetchall():
                shipped = self._ship_run(server, file, run_key, progress)
                steps += shipped
                grown += bool(shipped)
        except BaseException:
            self.close()  # the states of the runs may be ahead of the server
            raise
        return ShipResult(steps, grown, tuple(self._holes))

    def _taking(self, server: Connection) -> AbstractContextManager[None]:
        return transaction(self._url, server, "take what was shipped")

    def _register(self, server: Connection, file: sqlite3.Connection) -> None:
        """Write the file's row and the cards of its models, unless the server has them."""
        only = file.execute("SELECT only_run_id FROM databases").fetchone()
        database = self.database_id, only[0] if only else None
        server.execute(_insert_new("databases").values(database))
        hashes = {sha256 for (sha256,) in file.execute("SELECT model_sha256 FROM models")}
        for new in sorted(hashes - self._models):
            row = file.execute(select("models", "model_sha256 = ?"), (new,)).fetchone()
            server.execute(_insert_new("models").values((self.database_id, *row)))
            self._models.add(new)

    def _ship_run(
        self,
        server: Connection,
        file: sqlite3.Connection,
        run_key: int,
        progress: Callable[[int], object],
    ) -> int:
        """Ship new steps of one run, group by group, and a prune with all steps before it."""
        state = self._runs.get(run_key) or _RunState(run_key)
        total = 0
        while True:
            with self._taking(server):
                steps, pruned = self._ship_group(server, file, state)
                # A prune is shipped with all steps up to its own, so that the record on the server
                # is complete after every transaction.
                more = steps
                while pruned is not None and more:
                    more, pruned = self._ship_group(server, file, state)
                    steps += more
                if pruned is not None:
                    self._at("before drop")
                    self._drop(server, state, pruned)
                self._at("before commit")
            self._at("after commit")
            self._runs[run_key] = state
            self._shipped[run_key] = state.next
            progress(steps)
            total += steps
            if steps < self._group_steps:
                return total

    def _ship_group(
        self, server: Connection, file: sqlite3.Connection, state: _RunState
    ) -> tuple[int, PrunePoint | None]:
        """Copy the next steps of a run; return their number, and a prune that must follow."""
        key = state.run_key
        with snapshot(file):
            row = file.execute(_RUN, (key,)).fetchone()
            pruned = prune_point(file, key)
            if pruned is not None and pruned.until_sequence == state.pruned_until:
                pruned = None
            first, count = state.next, row[_RUN_AT.step_count]
            if first >= count:
                return 0, pruned
            if pruned is not None and (until := pruned.until_sequence) >= first:
                # Its steps were dropped: the rows that the prune kept are shipped with the next.
                if (problem := check_prune(file, key, pruned)) is not None:
                    raise self._broken(row, problem.sentence)
                self._note_hole(server, row, first, until)
                state.walk = None
            if state.walk is None or state.walk.due != first:
                state.walk = Walk.begin(file, key, row[OPENED_AT], first)
            walk, start = state.walk, state.walk.due
            rows = self._walked(file, walk, row, (key, first, start - 1))
            last = walk.due - 1
            span = key, first, last
            opening = []
            if not state.is_there:
                opening = [
                    ("instruments", _rows_of(file, "instruments", key)),
                    ("gate_sets", file.execute(_OPENING_SETS, (key,)).fetchall()),
                ]
        self._at("before copy")
        self._write(server, state, row, opening)
        for table, copied in rows.items():
            self._copy(server, table, copied)
            self._at(f"after {table}")
        arrived = tuple(server.exec_driver_sql(_ARRIVED, (self.database_id, *span)).one())
        if arrived != (last - start + 1, last):
            raise DataInvalid(
                f"{shown(self._url)} does not hold what was sent to it ({arrived}): nothing of "
                "this group was kept; look at the server's log."
            )
        state.next, state.digest, state.is_there = last + 1, walk.head.digest, True
        head = {"count": state.next, "head": state.digest}
        server.execute(_SET_HEAD, {**self._of_run(state), **head})
        run = {DATABASE: self.database_id, "run_key": key}
        server.execute(_SET_MARK, {**run, "sequence": last, "digest": state.digest})
        return last - start + 1, pruned

    def _walked(
        self, file: sqlite3.Connection, walk: Walk, row: StoredRow, pruned: Span
    ) -> dict[str, list[StoredRow]]:
        """Return the rows that a prune kept in the span *pruned*, and those of the next commits."""
        start = walk.due
        rows = {table: file.execute(query, pruned).fetchall() for table, query in RANGES.items()}
        rows["commits"] = []
        for commit in walk.commits(start + self._group_steps):
            for table, of_table in commit.rows.items():
                rows[table] += of_table
            rows["commits"].append(StoredCommit.of(walk.run_key, commit))
        if problem := walk.problem or (missing_commit(start) if walk.due == start else None):
            raise self._broken(row, problem.sentence)
        return rows

    def _broken(self, row: StoredRow, sentence: str) -> DataInvalid:
        return DataInvalid(
            f"Run {row[_RUN_AT.run_id]} of {self._path} is not shipped further: {sentence}"
        )

    def _write(
        self,
        server: Connection,
        state: _RunState,
        row: StoredRow,
        opening: Sequence[tuple[str, Sequence[StoredRow]]],
    ) -> None:
        """Lock the run's mark for this transaction, and write the rows that open a run."""
        marks = server.execute(_MARK, self._of_run(state)).all()
        if marks != ([(state.next - 1, state.digest)] if state.is_there else []):
            raise ServerLost(
                f"Another process shipped to {shown(self._url)} meanwhile: this one continues "
                "after its mark."
            )
        if not state.is_there:
            server.execute(insert(_TABLES["runs"]).values((self.database_id, *row)))
        for table, rows in opening:
            self._copy(server, table, rows)

    def _of_run(self, state: _RunState) -> dict[str, object]:
        return {"of_database": self.database_id, "of_run": state.run_key}

    def _copy(self, server: Connection, table: str, rows: Sequence[StoredRow]) -> None:
        if not rows:
            return
        names = columns_of(table)
        key, nulls = (self.database_id,), (None,) * len(names)
        listed = ", ".join(names)
        with (
            driver_of(server).cursor().copy(f"COPY {table} ({listed}) FROM STDIN".encode()) as copy
        ):
            write = copy.write_row
            for row in rows:  # a row may lack nulls at its end
                write(key + row + nulls[1 + len(row) :])

    # ------------------------------------------------------------ prunes

    def _note_hole(self, server: Connection, row: StoredRow, first: int, until: int) -> None:
        hole = self.database_id, row[0], first, until, func.clock_timestamp()
        server.execute(_insert_new("holes").values(hole))
        self._holes.append(
            f"Steps {first} to {until} of run {row[_RUN_AT.run_id]} were pruned before they were "
            "shipped: the fleet has only the rows that the prune kept."
        )

    def _drop(self, server: Connection, state: _RunState, pruned: PrunePoint) -> None:
        """Drop on the server the rows that a prune dropped in the file; write the prune's row."""
        until, run = pruned.until_sequence, self._of_run(state)
        for name, dropped in DROPPED_ROWS:
            is_before = _TABLES[name].c.sequence <= until, text(dropped)
            server.execute(delete(_TABLES[name]).filter_by(**_OF_RUN).where(*is_before), run)
        commits, prunes = _TABLES["commits"], _TABLES["prunes"]
        of_commits = delete(commits).filter_by(**_OF_RUN)
        server.execute(of_commits.where(commits.c.last_sequence <= until), run)
        server.execute(delete(prunes).filter_by(**_OF_RUN), run)
        server.execute(insert(prunes).values((self.database_id, *pruned)))
        state.pruned_until, state.walk = pruned.until_sequence, None


def _rows_of(file: sqlite3.Connection, table: str, run_key: int) -> list[StoredRow]:
    return file.execute(select(table, "run_key = ?"), (run_key,)).fetchall()


def _insert_new(table: str) -> postgresql.Insert:
    """Return the INSERT that leaves a row with the same key as it is."""
    return postgresql.insert(_TABLES[table]).on_conflict_do_nothing()


def database_id(path: Path) -> str:
    """Return the database id of the file *path*."""
    with closing(open_reader(path)) as file:
        return str(file.execute("SELECT database_id FROM databases").fetchone()[0])


def new_id(path: Path) -> str:
    """Give the file *path* a new random id; return it.

    Raises ``ConfigInvalid`` while a process writes the file.
    """
    writer = open_writer(path)
    try:
        with writer.connection.begin():
            writer.connection.execute(update(DATABASES).values(database_id=RANDOM_ID))
    finally:
        writer.close()
    return database_id(path)
