"""Opens a database for writing: WAL, synchronous FULL, foreign keys, busy timeout, one writer."""

from __future__ import annotations

import sqlite3
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from sqlalchemy import StaticPool, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateIndex, CreateTable

from tracepaper.storage.database.connection import (
    check_revision,
    connect_read_only,
    has_old_views,
    is_added,
    lacking,
    revision_of,
    sqlite_status,
    unusable,
)
from tracepaper.storage.database.lock import InstanceLock, WatchedFile
from tracepaper.storage.database.schema import added, metadata
from tracepaper.storage.database.views import create_views
from tracepaper.storage.record.columns import SCHEMA_REVISION
from tracepaper.strategies.errors import AuditUnwritable, DataInvalid

if TYPE_CHECKING:
    from sqlalchemy import Connection, Table

WRITE_TIMEOUT_S: Final = 1.0
"""How long one attempt to write waits for the write lock of another process."""


def is_busy(error: BaseException | None) -> bool:
    """Return whether *error* says that another process holds the write lock."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    code = getattr(cause, "sqlite_errorcode", None)
    return code is not None and code & 0xFF == sqlite3.SQLITE_BUSY


def advice(error: BaseException | None) -> str:
    """Return the remedy for a write that failed with *error*."""
    if is_busy(error):
        return "end the transaction of the other process that has the file locked"
    return "free disk space or mend the file"


class Writer(NamedTuple):
    """The one writing connection of a database, and the locks that make it the only one."""

    connection: Connection
    lock: InstanceLock
    file: WatchedFile

    def close(self) -> None:
        """Close the connection, which checkpoints the WAL file, and give the locks back."""
        self.connection.close()
        self.connection.engine.dispose()
        self.file.close()
        self.lock.release()


def open_writer(path: Path) -> Writer:
    """Open *path* for writing, making database and folder where they are missing.

    Columns that an older version did not make are added. Raises ``ConfigInvalid`` where another
    process writes it, ``DataInvalid`` for another schema, ``AuditUnwritable`` where the file cannot
    be written.
    """
    writer, revision = open_writer_of_any_schema(path)
    try:
        check_revision(path, revision)
        add_columns(writer.connection, path)
        identify(writer.connection)
    except DataInvalid:
        writer.close()
        raise
    except DBAPIError as error:
        writer.close()
        raise AuditUnwritable(
            f"{path} could not be extended ({error.orig}); {advice(error)}."
        ) from error
    return writer


def add_columns(connection: Connection, path: Path) -> None:
    """Add the columns that the database *path* lacks; make views anew that are not this version's.

    The chain covers no nulls, so the rows from before have the hashes that they had.
    """
    raw = connection.connection.driver_connection
    assert isinstance(raw, sqlite3.Connection)
    if not (missing := lacking(raw, path)) and not has_old_views(raw):
        return
    connection.exec_driver_sql("BEGIN IMMEDIATE")
    for table, columns in missing.items():
        if is_added(table, columns):
            _make_table(connection, metadata.tables[table])
            continue
        for column in columns:
            connection.exec_driver_sql(added(table, column))
    create_views(connection)
    connection.exec_driver_sql("COMMIT")


def identify(connection: Connection) -> None:
    """Give the database its id, by which a fleet knows it, where it has none.

    A copy has the same id. The chain does not cover it.
    """
    if connection.exec_driver_sql("SELECT count(*) FROM databases").scalar_one() == 0:
        connection.exec_driver_sql(
            "INSERT INTO databases (database_id) VALUES (lower(hex(randomblob(16))))"
        )


def open_writer_of_any_schema(path: Path) -> tuple[Writer, str]:
    """Open *path* for writing as ``open_writer`` does; return its schema's revision as well.

    For ``db upgrade`` alone, since nothing else knows what another schema means.
    """
    if not (status := sqlite_status()).is_usable:
        raise AuditUnwritable(f"SQLite {status.version} is {status.verdict}; upgrade it.")
    if path.is_dir():
        raise AuditUnwritable(f"{path} is a folder; name a file, or choose another --db.")
    is_there = path.is_file() and path.stat().st_size > 0
    file: WatchedFile | None = None
    with ExitStack() as undo:
        if is_there:
            # Look before anything is written: another program's file must stay as it is.
            file = WatchedFile.open(path)
            undo.callback(file.close)
            with closing(connect_read_only(path)) as reader:
                if revision_of(reader) is None:
                    raise DataInvalid(
                        f"{path} is not a tracepaper database; name another with --db."
                    )
        lock = InstanceLock.acquire(path)
        undo.callback(lock.release)
        if file is None:
            file = WatchedFile.open(path)
            undo.callback(file.close)
        try:
            connection = _connect_writing(path)
            undo.callback(connection.engine.dispose)
            undo.callback(connection.close)
            raw = connection.connection.driver_connection
            assert isinstance(raw, sqlite3.Connection)
            revision = revision_of(raw)
            if revision == "":
                create(connection)
                revision = SCHEMA_REVISION
            file.begin(raw)
        except (sqlite3.Error, DBAPIError, OSError) as error:
            cause = error.orig if isinstance(error, DBAPIError) else error
            raise AuditUnwritable(unusable(str(path), cause or error)) from error
        undo.pop_all()
        return Writer(connection, lock, file), revision or ""


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


def make_tables(connection: Connection) -> None:
    """Make every table with its indexes."""
    for table in metadata.sorted_tables:
        _make_table(connection, table)


def _make_table(connection: Connection, table: Table) -> None:
    connection.execute(CreateTable(table))
    for index in table.indexes:
        connection.execute(CreateIndex(index))


def create(connection: Connection) -> None:
    """Make tables and views of the newest schema in one transaction.

    Equal to running every migration (a test compares them), in a tenth of the time.
    """
    connection.exec_driver_sql("BEGIN IMMEDIATE")
    make_tables(connection)
    create_views(connection)
    connection.exec_driver_sql(
        "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL, "
        "CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))"
    )
    connection.exec_driver_sql("INSERT INTO alembic_version VALUES (?)", (SCHEMA_REVISION,))
    connection.exec_driver_sql("COMMIT")
