"""Opens a database for writing: WAL, synchronous FULL, foreign keys, busy timeout, one writer."""

from __future__ import annotations

import sqlite3
from contextlib import ExitStack, closing
from functools import cache, lru_cache
from itertools import chain, groupby
from operator import call, itemgetter, ne
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from tracepaper.storage.database.connection import (
    beside,
    check_acknowledged,
    check_log,
    check_schema,
    connect_read_only,
    is_first_page,
    schema_of,
    sqlite_problem,
    to_begin_anew,
)
from tracepaper.storage.database.lock import (
    FileWatch,
    Holder,
    InstanceLock,
    last_holder,
    reader_of,
)
from tracepaper.storage.database.remedies import refusal
from tracepaper.storage.database.views import FILE_SCHEMA, VIEWS
from tracepaper.storage.record.columns import APPLICATION_ID, stored_columns
from tracepaper.strategies.errors import AuditUnwritable, ConfigInvalid

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tracepaper.storage.record.columns import Row

WRITE_TIMEOUT_S: Final = 1.0
"""Seconds that one attempt to write waits for the write lock of another process."""


READER_ATTEMPTS: Final = 30
"""Attempts, of a second each, to move a log that another process reads into its database."""


class Writer(NamedTuple):
    """The only writing connection of a database, with the locks that keep other writers out.

    A database in memory has no locks.
    """

    connection: sqlite3.Connection
    lock: InstanceLock | None = None
    file: FileWatch | None = None

    def problem(self) -> str:
        """Return the damage to the file since the last commit, with a remedy; "" if none."""
        if self.lock is not None:
            self.lock.keep()
        return "" if self.file is None else self.file.problem(self.connection)

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
        is_whole = self.file is None or self.file.is_whole
        if self.file is not None:
            self.file.close()
        if self.lock is not None:
            self.lock.release(is_whole=is_whole)


def identify(connection: sqlite3.Connection) -> None:
    """Give the database an id, by which a fleet identifies it, unless it has one.

    A copy has the same id. The chain does not cover the id.
    """
    if connection.execute("SELECT count(*) FROM databases").fetchone() == (0,):
        connection.execute(
            "INSERT INTO databases (database_id) VALUES (lower(hex(randomblob(16))))"
        )


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


def reject_place(path: Path) -> None:
    """Raise ``ConfigInvalid`` if *path* is a folder, or SQLite is too old."""
    if problem := sqlite_problem():
        raise ConfigInvalid(problem)
    if path.is_dir():
        raise ConfigInvalid(f"{path} is a folder; name a file with storage.url or --db.")


def open_writer(path: Path, *, reader_attempts: int = READER_ATTEMPTS) -> Writer:
    """Open *path* for writing; create database and folder if they are missing.

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
            connection = sqlite3.connect(
                path, timeout=WRITE_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            undo.callback(connection.close)
            if (schema := schema_of(connection)) != 0:  # the first read undoes a first page
                check_schema(path, connection)
            _settle_journal(path, connection)
            _empty_log(path, connection, reader_attempts)
            if schema == 0:
                create(connection)
            identify(connection)
            file.begin(connection)
        except (sqlite3.Error, OSError) as error:
            raise refusal(str(path), error) from error
        undo.pop_all()
        return Writer(connection, lock, file)


def _settle_journal(path: Path, connection: sqlite3.Connection) -> None:
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
"""Rows of different shapes that one statement inserts."""
_ALIKE_ROWS: Final = 4
"""From this many consecutive rows of one shape on, inserting row by row is faster."""
_INSTRUMENT_AT: Final = stored_columns("steps").index("instrument")


def insert_rows(connection: sqlite3.Connection, rows: Mapping[str, Sequence[Row]]) -> None:
    """Insert *rows* by table, in the order of the tables; a row may lack nulls at its end."""
    for table, of_table in rows.items():
        # Binding a null costs as much as four numbers, so columns that are null in all rows of a
        # shape are left out. Rows keep their order, so that SQLite fills one page after another.
        shapes = [*map(_step_shape if table == "steps" else len, of_table)]
        alike: dict[int, list[Row]] = {shape: [] for shape in shapes}
        for shape, row in zip(shapes, of_table, strict=True):
            alike[shape].append(row)
        present = {shape: _present(of_shape) for shape, of_shape in alike.items()}
        in_blocks = 0
        changes = sum(map(ne, shapes, shapes[1:]))
        # The condition of a partial index costs as much as a row, but only once per statement.
        if not changes or _ALIKE_ROWS * changes > len(shapes):  # such as bars and closes
            in_blocks = len(of_table) // BLOCK_ROWS * BLOCK_ROWS
        for start in range(0, in_blocks, BLOCK_ROWS):
            block = slice(start, start + BLOCK_ROWS)
            sql, picks = _insert_of(table, tuple(map(present.__getitem__, shapes[block])))
            connection.execute(sql, [*chain.from_iterable(map(call, picks, of_table[block]))])
        start = in_blocks
        for shape, same in groupby(shapes[in_blocks:]):
            sql, (pick,) = _insert_of(table, (present[shape],))
            block_rows = of_table[start : (start := start + len([*same]))]
            has_all = present[shape] == (1 << len(block_rows[0])) - 1
            connection.executemany(sql, block_rows if has_all else map(pick, block_rows))


def _step_shape(row: Row) -> int:
    """Return the shape of a row of ``steps``: its length, negative without a bar."""
    return len(row) if row[_INSTRUMENT_AT] is not None else -len(row)


def _present(rows: Sequence[Row]) -> int:
    """Return a bit mask of the columns that are not null in all *rows*, which have one length."""
    return sum(
        1 << place
        for place, value in enumerate(rows[0])
        if value is not None or [row[place] for row in rows].count(None) < len(rows)
    )


@lru_cache(128)
def _insert_of(
    table: str, present: tuple[int, ...]
) -> tuple[str, tuple[Callable[[Row], Row], ...]]:
    """Return the INSERT of one row per mask in *present*, and a getter of each row's values."""
    columns = stored_columns(table)
    places = [[place for place in range(len(columns)) if bits >> place & 1] for bits in present]
    union = sorted({*chain.from_iterable(places)})
    names = ", ".join(columns[place] for place in union)
    values = [", ".join("?" if at in of_row else "NULL" for at in union) for of_row in places]
    sql = f"INSERT INTO {table} ({names}) VALUES ({'), ('.join(values)})"
    return sql, tuple(itemgetter(*of_row) for of_row in places)


def in_memory(content: bytes | None = None) -> sqlite3.Connection:
    """Return a database in memory with the pages *content*, or a new one; it has no journal."""
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    connection.deserialize(content or _empty())
    connection.execute("PRAGMA journal_mode = OFF")
    return connection


@cache
def _empty() -> bytes:
    """Return the pages of a database without a run; cached, because creating it takes 40 ms."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        create(connection)
        return connection.serialize()


def create(connection: sqlite3.Connection) -> None:
    """Create tables and views in one transaction."""
    from sqlalchemy.dialects import sqlite  # takes a third of a second to load

    from tracepaper.storage.database.schema import metadata, table_statements

    connection.execute("BEGIN IMMEDIATE")
    tables = table_statements(metadata, sqlite.dialect())
    for statement in (*tables, *(view.sql for view in VIEWS)):
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {FILE_SCHEMA}")
    connection.execute("COMMIT")
