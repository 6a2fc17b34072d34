"""Opens a database for writing: WAL, synchronous FULL, foreign keys, busy timeout, one writer."""

from __future__ import annotations

import sqlite3
from contextlib import ExitStack, closing
from functools import cache, lru_cache
from itertools import chain, compress, count, repeat
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from sqlalchemy import create_engine, event, insert
from sqlalchemy.dialects import sqlite
from sqlalchemy.pool import StaticPool

from tracepaper.storage.database.connection import (
    PAGE_BYTES,
    beside,
    check_acknowledged,
    check_log,
    check_schema,
    connect_read_only,
    is_first_page,
    reject_place,
    schema_of,
    to_begin_anew,
)
from tracepaper.storage.database.lock import FileWatch, Holder, InstanceLock, last_holder, reader_of
from tracepaper.storage.database.remedies import refusal
from tracepaper.storage.database.schema import metadata
from tracepaper.storage.database.views import FILE_SCHEMA, VIEWS
from tracepaper.storage.record.columns import APPLICATION_ID, stored_columns
from tracepaper.strategies.errors import AuditUnwritable, ConfigInvalid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from sqlalchemy import Connection

    from tracepaper.storage.record.columns import Row

WRITE_TIMEOUT_S: Final = 1.0
"""Seconds that one attempt to write waits for the write lock of another process."""


READER_ATTEMPTS: Final = 30
"""Attempts, of a second each, to move a log that another process reads into its database."""


class Writer(NamedTuple):
    """The only writing connection of a database, with the locks that keep other writers out.

    ``connection`` is SQLAlchemy's over ``driver``, which readers, pragmas and the rows of a commit
    use. A database in memory has no locks.
    """

    driver: sqlite3.Connection
    connection: Connection
    lock: InstanceLock | None = None
    file: FileWatch | None = None

    def problem(self) -> str:
        """Return the damage to the file since the last commit, with a remedy; "" if none."""
        return "" if self.file is None else self.file.problem(self.driver)

    def settle(self, run_id: str, steps: int) -> None:
        """Record the file's size and the number of *steps* of a run after a commit."""
        if self.file is not None:
            self.file.settle()
        if self.lock is not None:
            self.lock.acknowledge(run_id, steps)

    def close(self) -> None:
        """Close the connection, which checkpoints the WAL file, and release the locks.

        If a reader keeps the WAL file, the count of acknowledged steps is kept too.
        """
        self.connection.close()
        self.driver.close()
        is_whole = self.file is None or self.file.is_whole
        if self.file is not None:
            self.file.close()
        if self.lock is not None:
            self.lock.release(is_whole=is_whole)


def connected(driver: sqlite3.Connection) -> Connection:
    """Return SQLAlchemy's connection over *driver*, which is in autocommit mode.

    A transaction takes the write lock as it begins. An error is the driver's own, because the cause
    of a failed write is read from its code.
    """
    # Another pool would close the driver, which a reader may hold, as soon as nothing refers to
    # SQLAlchemy's connection.
    engine = create_engine("sqlite://", creator=lambda: driver, poolclass=StaticPool)
    event.listen(engine, "begin", lambda _: driver.execute("BEGIN IMMEDIATE"))
    event.listen(engine, "handle_error", lambda context: context.original_exception)
    return engine.connect()


def left_log(path: Path) -> str:
    """Return advice if a -wal is left without its database; "" otherwise.

    SQLite would delete that log, and with it the steps in it.
    """
    log = beside(path, "-wal")
    if not log.is_file() or not log.stat().st_size:
        return ""
    return (
        f"{path} is missing, but its {log.name} is left: put a backup in their place, or "
        f"{to_begin_anew(path)}."
    )


def open_writer(
    path: Path, *, page_bytes: int = PAGE_BYTES, reader_attempts: int = READER_ATTEMPTS
) -> Writer:
    """Open *path* for writing; create database, of pages of *page_bytes*, and folder if missing.

    Waits *reader_attempts* seconds for other processes that read the log of the last writer.

    Raises ``ConfigInvalid`` if it is a folder, another process writes it, only its -wal is left or
    only the owner can make it writable, ``DataInvalid`` for another schema, ``AuditUnwritable`` if
    it cannot be written for now.
    """
    reject_place(path)
    is_there = path.is_file() and path.stat().st_size > 0 and not is_first_page(path)
    if not is_there and (problem := left_log(path)):
        raise ConfigInvalid(problem)
    file: FileWatch | None = None
    last: Holder | None = None
    with ExitStack() as undo:
        if is_there:
            # Check before writing anything: another program's file must not change.
            file = FileWatch.open(path)
            undo.callback(file.close)
            last = last_holder(path)
            with closing(connect_read_only(path)) as reader:
                check_log(path, reader)
                check_acknowledged(path, reader, last)
                if schema_of(reader) != 0:  # 0: the database is still empty
                    check_schema(path, reader)
        lock = InstanceLock.acquire(path, last)
        undo.callback(lock.release)
        if file is None:
            file = FileWatch.open(path)
            undo.callback(file.close)
        try:
            driver = sqlite3.connect(
                path, timeout=WRITE_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            undo.callback(driver.close)
            if (schema := schema_of(driver)) != 0:  # the first read undoes a first page
                check_schema(path, driver)
            _settle_journal(path, driver, page_bytes)
            _empty_log(path, driver, reader_attempts)
            connection = connected(driver)
            undo.callback(connection.close)  # else its pool finds the driver closed, and prints so
            if schema == 0:
                create(connection)
            file.begin(driver)
        except (sqlite3.Error, OSError) as error:
            raise refusal(path, error) from error
        undo.pop_all()
        return Writer(driver, connection, lock, file)


def _settle_journal(path: Path, connection: sqlite3.Connection, page_bytes: int) -> None:
    connection.execute(f"PRAGMA page_size = {page_bytes}")  # before the log, which fixes it
    (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
    if mode != "wal" and schema_of(connection) != 0:  # made by a rotation, or cut during one
        connection.execute("PRAGMA journal_mode = MEMORY")  # one on the disk keeps readers out
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise ConfigInvalid(f"{path} cannot use a write-ahead log; use a local disk.")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")


def _empty_log(path: Path, connection: sqlite3.Connection, attempts: int) -> None:
    """Move the log of the last writer into the database and empty it, before anything follows it.

    A sync of that log may have failed before the writer ended. Then the kernel shows pages that
    the disk never got and counts them as written, so no later sync of the log writes them: a power
    cut would end the log there, and drop every commit behind. The pages moved are written anew.

    Raises ``AuditUnwritable`` if another process still reads the log after *attempts* seconds.
    """
    for _ in range(attempts):
        (is_busy, *_counts) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if not is_busy:
            return
    raise AuditUnwritable(
        f"{reader_of(path)} still reads {path}, so the log of its last writer cannot be moved into "
        "it: end that process or its transaction, and start again; every stored step is kept."
    )


BLOCK_ROWS: Final = 30
"""Rows that one statement inserts; by executemany of single rows SQLite takes a third longer."""
_INSTRUMENT_AT: Final = stored_columns("steps").index("instrument")


def insert_rows(driver: sqlite3.Connection, rows: Mapping[str, Sequence[Row]]) -> None:
    """Insert *rows* by table, in the order of the tables; a row may lack nulls at its end.

    The driver runs what SQLAlchemy compiled once: SQLAlchemy's own execution of each statement
    would add a fifth to a live step. The caller has begun a transaction.
    """
    for table, of_table in rows.items():
        for alike in _shapes(table, of_table):
            inserted = _insert_of(table, _given(alike))
            end = len(alike) // BLOCK_ROWS * BLOCK_ROWS
            flat = chain.from_iterable(map(inserted.pick, alike[:end]))
            driver.executemany(inserted.block, zip(*repeat(flat, inserted.width * BLOCK_ROWS)))  # noqa: B905 - one iterator
            driver.executemany(inserted.row, map(inserted.pick, alike[end:]))


def _shapes(table: str, rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """Yield *rows* by shape: a length, and in ``steps`` whether there is a bar.

    Binding a null costs as much as four numbers, so columns that are null in all rows of a shape
    are left out.
    """
    groups = [rows]
    if table == "steps":
        closes = [row for row in rows if row[_INSTRUMENT_AT] is None]
        bars = [row for row in rows if row[_INSTRUMENT_AT] is not None] if closes else rows
        groups = [bars, closes]
    for group in groups:
        lengths = dict.fromkeys(map(len, group))
        for length in lengths:
            yield group if len(lengths) == 1 else [row for row in group if len(row) == length]


def _given(rows: Sequence[Row]) -> tuple[bool, ...]:
    """Return for each column whether a row has a value; *rows* have one length."""
    return tuple(
        value is not None or [row[place] for row in rows].count(None) < len(rows)
        for place, value in enumerate(rows[0])
    )


class _Insert(NamedTuple):
    """The compiled INSERT of a row and of a block, and the getter of a row's *width* values."""

    row: str
    block: str
    width: int
    pick: Callable[[Row], Row]


@lru_cache(256)
def _insert_of(table: str, given: tuple[bool, ...]) -> _Insert:
    """Return the INSERT of the columns that are *given*, at least two: keys."""
    names = [*compress(stored_columns(table), given)]
    statement = insert(metadata.tables[table])
    row = str(statement.compile(dialect=sqlite.dialect(), column_keys=names))
    values = row.partition(" VALUES ")[2]
    return _Insert(
        row,
        row + f", {values}" * (BLOCK_ROWS - 1),
        len(names),
        itemgetter(*compress(count(), given)),
    )


def in_memory(content: bytes | None = None) -> Writer:
    """Return the writer of the pages *content* or a new database, in memory, without a journal."""
    driver = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    driver.deserialize(content or _empty())
    driver.execute("PRAGMA journal_mode = OFF")
    return Writer(driver, connected(driver))


@cache
def _empty() -> bytes:
    """Return the pages of a database without a run; cached, because creating it takes 40 ms."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as driver:
        with connected(driver) as connection:
            create(connection)
        return driver.serialize()


def create(connection: Connection) -> None:
    """Create tables and views in one transaction."""
    with connection.begin():
        metadata.create_all(connection, checkfirst=False)
        for view in VIEWS:
            connection.exec_driver_sql(view.sql)
        connection.exec_driver_sql(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.exec_driver_sql(f"PRAGMA user_version = {FILE_SCHEMA}")
