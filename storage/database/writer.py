"""Opens a database for writing: WAL, synchronous FULL, foreign keys, busy timeout, one writer."""

from __future__ import annotations

import sqlite3
from contextlib import ExitStack, closing
from functools import cache
from itertools import compress, groupby, repeat
from operator import is_not, itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from tracepaper.storage.database.connection import (
    check_schema,
    connect_read_only,
    is_busy_error,
    schema_of,
    sqlite_status,
    unusable,
)
from tracepaper.storage.database.lock import FileWatch, InstanceLock
from tracepaper.storage.database.views import VIEWS
from tracepaper.storage.record.columns import APPLICATION_ID, SCHEMA, insert_sql, stored_columns
from tracepaper.strategies.errors import AuditUnwritable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tracepaper.storage.record.columns import Row

WRITE_TIMEOUT_S: Final = 1.0
"""How long one attempt to write waits for the write lock of another process."""


def advice(error: BaseException | None) -> str:
    """Return the remedy for a write that failed with *error*."""
    if is_busy_error(error):
        return "end the transaction of the other process that has the file locked"
    return "free disk space or mend the file"


class Writer(NamedTuple):
    """The one writing connection of a database, and the locks that make it the only one."""

    raw: sqlite3.Connection
    lock: InstanceLock
    file: FileWatch

    def close(self) -> None:
        """Close the connection, which checkpoints the WAL file, and give the locks back."""
        self.raw.close()
        self.file.close()
        self.lock.release()


def identify(raw: sqlite3.Connection) -> None:
    """Give the database its id, by which a fleet knows it, where it has none.

    A copy has the same id. The chain does not cover it.
    """
    if raw.execute("SELECT count(*) FROM databases").fetchone() == (0,):
        raw.execute("INSERT INTO databases (database_id) VALUES (lower(hex(randomblob(16))))")


def open_writer(path: Path) -> Writer:
    """Open *path* for writing, making database and folder where they are missing.

    Raises ``ConfigInvalid`` where another process writes it, ``DataInvalid`` for another schema,
    ``AuditUnwritable`` where the file cannot be written.
    """
    if not (status := sqlite_status()).is_usable:
        raise AuditUnwritable(f"SQLite {status.version} is {status.verdict}; upgrade it.")
    if path.is_dir():
        raise AuditUnwritable(f"{path} is a folder; name a file, or choose another --db.")
    is_there = path.is_file() and path.stat().st_size > 0
    file: FileWatch | None = None
    with ExitStack() as undo:
        if is_there:
            # Look before anything is written: another program's file must stay as it is.
            file = FileWatch.open(path)
            undo.callback(file.close)
            with closing(connect_read_only(path)) as reader:
                if schema_of(reader) != 0:  # nothing was made of an empty database yet
                    check_schema(path, reader)
        lock = InstanceLock.acquire(path)
        undo.callback(lock.release)
        if file is None:
            file = FileWatch.open(path)
            undo.callback(file.close)
        try:
            raw = _connect_writing(path)
            undo.callback(raw.close)
            if schema_of(raw) == 0:
                create(raw)
            identify(raw)
            file.begin(raw)
        except (sqlite3.Error, OSError) as error:
            raise AuditUnwritable(unusable(str(path), error)) from error
        undo.pop_all()
        return Writer(raw, lock, file)


def _connect_writing(path: Path) -> sqlite3.Connection:
    raw = sqlite3.connect(
        path, timeout=WRITE_TIMEOUT_S, isolation_level=None, check_same_thread=False
    )
    (mode,) = raw.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raw.close()
        raise AuditUnwritable(f"{path} cannot use a write-ahead log; use a local disk.")
    raw.execute("PRAGMA synchronous = FULL")
    raw.execute("PRAGMA foreign_keys = ON")
    return raw


_OPENED_AT: Final = stored_columns("steps").index("open_time_ms")


def insert_rows(raw: sqlite3.Connection, rows: Mapping[str, Sequence[Row]]) -> None:
    """Insert *rows* by table, in the order of the tables; a row may lack nulls at its end."""
    for table, of_table in rows.items():
        # Binding a null costs as much as four numbers, so what is null in all rows of a shape
        # is left out. They stay in order: every page is filled before the next one is begun.
        shape = _step_shape if table == "steps" else len
        parts = [list(part) for _, part in groupby(of_table, shape)]
        shapes: dict[int, list[Row]] = {}
        for part in parts:
            shapes.setdefault(shape(part[0]), []).extend(part)
        inserts = {key: _insert_of(table, alike) for key, alike in shapes.items()}
        for part in parts:
            sql, chosen = inserts[shape(part[0])]
            raw.executemany(sql, part if chosen is None else map(chosen, part))


def _step_shape(row: Row) -> int:
    """Return what tells rows of ``steps`` apart: their length, below 0 of a step without a bar."""
    return len(row) if row[_OPENED_AT] is not None else -len(row)


def _insert_of(table: str, rows: Sequence[Row]) -> tuple[str, Callable[[Row], Row] | None]:
    """Return the insert of *rows* of one length, and what picks its values; None of all of them."""
    present = [
        value is not None or any(map(is_not, map(itemgetter(place), rows), repeat(None)))
        for place, value in enumerate(rows[0])
    ]
    sql = insert_sql(table, tuple(compress(stored_columns(table), present)))
    return sql, None if all(present) else itemgetter(*compress(range(len(present)), present))


def in_memory() -> sqlite3.Connection:
    """Return a new database in memory, with tables and views; it has no journal."""
    raw = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    raw.deserialize(_empty())
    raw.execute("PRAGMA journal_mode = OFF")
    return raw


@cache
def _empty() -> bytes:
    """Return the pages of a database without a run: to make its views anew takes 40 ms."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as raw:
        create(raw)
        return raw.serialize()


def create(raw: sqlite3.Connection) -> None:
    """Make tables and views in one transaction."""
    from sqlalchemy.dialects import sqlite  # only where a file is made
    from sqlalchemy.schema import CreateIndex, CreateTable

    from tracepaper.storage.database.schema import metadata

    dialect = sqlite.dialect()
    raw.execute("BEGIN IMMEDIATE")
    for table in metadata.sorted_tables:
        raw.execute(str(CreateTable(table).compile(dialect=dialect)))
        for index in table.indexes:
            raw.execute(str(CreateIndex(index).compile(dialect=dialect)))
    for view in VIEWS:
        raw.execute(view.sql)
    raw.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    raw.execute(f"PRAGMA user_version = {SCHEMA}")
    raw.execute("COMMIT")
