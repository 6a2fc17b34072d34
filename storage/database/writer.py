"""Opens a database for writing: WAL, synchronous FULL, foreign keys, busy timeout, one writer."""

from __future__ import annotations

import sqlite3
from contextlib import ExitStack, closing
from functools import cache
from itertools import compress, groupby, repeat
from operator import is_not, itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from sqlalchemy import StaticPool, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateIndex, CreateTable

from tracepaper.storage.database.connection import (
    check_schema,
    connect_read_only,
    is_busy_error,
    schema_of,
    sqlite_status,
    unusable,
)
from tracepaper.storage.database.lock import FileWatch, InstanceLock
from tracepaper.storage.database.schema import metadata
from tracepaper.storage.database.views import VIEWS
from tracepaper.storage.record.columns import APPLICATION_ID, SCHEMA, insert_sql, stored_columns
from tracepaper.strategies.errors import AuditUnwritable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sqlalchemy import Connection

    from tracepaper.storage.record.columns import Row

WRITE_TIMEOUT_S: Final = 1.0
"""How long one attempt to write waits for the write lock of another process."""


def is_busy(error: BaseException | None) -> bool:
    """Return whether *error* says that another process holds the write lock."""
    return is_busy_error(error.orig if isinstance(error, DBAPIError) else error)


def advice(error: BaseException | None) -> str:
    """Return the remedy for a write that failed with *error*."""
    if is_busy(error):
        return "end the transaction of the other process that has the file locked"
    return "free disk space or mend the file"


class Writer(NamedTuple):
    """The one writing connection of a database, and the locks that make it the only one."""

    connection: Connection
    lock: InstanceLock
    file: FileWatch

    @property
    def raw(self) -> sqlite3.Connection:
        """The connection of SQLite itself: statements cost less without a layer in between."""
        return raw_of(self.connection)

    def close(self) -> None:
        """Close the connection, which checkpoints the WAL file, and give the locks back."""
        self.connection.close()
        self.connection.engine.dispose()
        self.file.close()
        self.lock.release()


def raw_of(connection: Connection) -> sqlite3.Connection:
    """Return the connection of SQLite under that of SQLAlchemy."""
    raw = connection.connection.driver_connection
    assert isinstance(raw, sqlite3.Connection)
    return raw


def identify(connection: Connection) -> None:
    """Give the database its id, by which a fleet knows it, where it has none.

    A copy has the same id. The chain does not cover it.
    """
    if connection.exec_driver_sql("SELECT count(*) FROM databases").scalar_one() == 0:
        connection.exec_driver_sql(
            "INSERT INTO databases (database_id) VALUES (lower(hex(randomblob(16))))"
        )


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
            connection = _connect_writing(path)
            undo.callback(connection.engine.dispose)
            undo.callback(connection.close)
            raw = raw_of(connection)
            if schema_of(raw) == 0:
                create(connection)
            identify(connection)
            file.begin(raw)
        except (sqlite3.Error, DBAPIError, OSError) as error:
            cause = error.orig if isinstance(error, DBAPIError) else error
            raise AuditUnwritable(unusable(str(path), cause or error)) from error
        undo.pop_all()
        return Writer(connection, lock, file)


def _connect_writing(path: Path) -> Connection:
    def connect() -> sqlite3.Connection:
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

    engine = create_engine("sqlite://", creator=connect, poolclass=StaticPool)
    return engine.connect().execution_options(isolation_level="AUTOCOMMIT")


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
    raw = sqlite3.connect(":memory:", isolation_level=None)
    engine = create_engine("sqlite://", creator=lambda: raw, poolclass=StaticPool)
    with closing(raw), engine.connect() as connection:
        create(connection.execution_options(isolation_level="AUTOCOMMIT"))
        return raw.serialize()


def create(connection: Connection) -> None:
    """Make tables and views in one transaction."""
    connection.exec_driver_sql("BEGIN IMMEDIATE")
    for table in metadata.sorted_tables:
        connection.execute(CreateTable(table))
        for index in table.indexes:
            connection.execute(CreateIndex(index))
    for view in VIEWS:
        connection.exec_driver_sql(view.sql)
    connection.exec_driver_sql(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.exec_driver_sql(f"PRAGMA user_version = {SCHEMA}")
    connection.exec_driver_sql("COMMIT")
