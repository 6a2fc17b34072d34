"""Opens a database for writing: WAL, synchronous FULL, foreign keys, busy timeout, one writer."""

from __future__ import annotations

import sqlite3
from contextlib import ExitStack, closing
from functools import cache, lru_cache
from itertools import chain, groupby, repeat
from operator import call, is_not, itemgetter, ne
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
from tracepaper.storage.record.columns import APPLICATION_ID, SCHEMA, stored_columns
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


BLOCK_ROWS: Final = 30
"""Rows of different shapes that one statement inserts."""
_ALIKE_ROWS: Final = 4
"""Where so many rows in a row are alike, a statement of one row is the faster one."""
_OPENED_AT: Final = stored_columns("steps").index("open_time_ms")


def insert_rows(raw: sqlite3.Connection, rows: Mapping[str, Sequence[Row]]) -> None:
    """Insert *rows* by table, in the order of the tables; a row may lack nulls at its end."""
    for table, of_table in rows.items():
        # Binding a null costs as much as four numbers, so what is null in all rows of a shape
        # is left out. They stay in order: every page is filled before the next one is begun.
        shapes = [*map(_step_shape if table == "steps" else len, of_table)]
        alike: dict[int, list[Row]] = {shape: [] for shape in shapes}
        for shape, row in zip(shapes, of_table, strict=True):
            alike[shape].append(row)
        present = {shape: _present(of_shape) for shape, of_shape in alike.items()}
        whole = 0
        if _ALIKE_ROWS * sum(map(ne, shapes, shapes[1:])) > len(shapes):  # as of bars and closes
            whole = len(of_table) // BLOCK_ROWS * BLOCK_ROWS
        for start in range(0, whole, BLOCK_ROWS):
            block = slice(start, start + BLOCK_ROWS)
            sql, picks = _insert_of(table, tuple(map(present.__getitem__, shapes[block])))
            raw.execute(sql, [*chain.from_iterable(map(call, picks, of_table[block]))])
        start = whole
        for shape, same in groupby(shapes[whole:]):
            sql, (pick,) = _insert_of(table, (present[shape],))
            part = of_table[start : (start := start + len([*same]))]
            is_whole = present[shape] == (1 << len(part[0])) - 1
            raw.executemany(sql, part if is_whole else map(pick, part))


def _step_shape(row: Row) -> int:
    """Return what tells rows of ``steps`` apart: their length, below 0 of a step without a bar."""
    return len(row) if row[_OPENED_AT] is not None else -len(row)


def _present(rows: Sequence[Row]) -> int:
    """Return a bit for each place at which one of *rows*, all of one length, is not null."""
    return sum(
        1 << place
        for place, value in enumerate(rows[0])
        if value is not None or any(map(is_not, map(itemgetter(place), rows), repeat(None)))
    )


@lru_cache(128)
def _insert_of(
    table: str, present: tuple[int, ...]
) -> tuple[str, tuple[Callable[[Row], Row], ...]]:
    """Return the insert of a row for each of *present*, and what picks the values of each."""
    columns = stored_columns(table)
    places = [[place for place in range(len(columns)) if bits >> place & 1] for bits in present]
    union = sorted({*chain.from_iterable(places)})
    names = ", ".join(columns[place] for place in union)
    values = [", ".join("?" if at in of_row else "NULL" for at in union) for of_row in places]
    sql = f"INSERT INTO {table} ({names}) VALUES ({'), ('.join(values)})"
    return sql, tuple(itemgetter(*of_row) for of_row in places)


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
