"""Opens a database for reading; ``writer`` opens it for writing.

One writing connection and any number of read-only ones. SQLite 3.7.0 to 3.51.2 (but for 3.44.6
and 3.50.7) can corrupt a WAL file when two connections write or checkpoint it at the same
moment (sqlite.org/wal.html, "The WAL-reset bug"). Here only the lock's holder has a writing
connection, it has one, and a read-only connection cannot checkpoint; so the fault cannot occur.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Final, TypeVar

from tracepaper.storage.database.lock import Holder, last_holder, lock_file
from tracepaper.storage.database.remedies import primary_code, unusable
from tracepaper.storage.database.views import FILE_SCHEMA
from tracepaper.storage.record.columns import ANSWER_GATES, APPLICATION_ID, measure_name
from tracepaper.strategies.errors import DataInvalid

BUSY_TIMEOUT_S: Final = 5.0
SQLITE_OLDEST: Final = (3, 37, 0)  # STRICT tables


def size_on_disk(path: Path) -> int:
    """Return the size in bytes of the database *path* with its -wal and -shm."""
    files = (path.with_name(path.name + ending) for ending in ("", "-wal", "-shm"))
    return sum(file.stat().st_size for file in files if file.exists())


def sqlite_problem(version: tuple[int, ...] = sqlite3.sqlite_version_info) -> str:
    """Return why SQLite *version* cannot be used; empty if it can."""
    if version >= SQLITE_OLDEST:
        return ""
    number = ".".join(map(str, version))
    return f"SQLite {number} is too old: STRICT tables need SQLite 3.37 or newer; upgrade it."


# ---------------------------------------------------------------- reading


def open_reader(path: Path) -> sqlite3.Connection:
    """Open *path* read-only; the connection can neither write nor checkpoint.

    Raises ``DataInvalid`` if there is no database, or it has another schema.
    """
    last = last_holder(path)
    connection = connect_read_only(path)
    try:
        check_acknowledged(path, connection, last)
        check_schema(path, connection)
    except DataInvalid:
        connection.close()
        raise
    return connection


class ImmutableConnection(sqlite3.Connection):
    """A connection to a file on read-only media, which reads without locks and without a journal.

    Another machine or mount may still write to the file. Then the rows that were read may be
    inconsistent, and :meth:`close` raises an error.
    """

    path: Path
    state: tuple[int, ...]

    @property
    def is_changed(self) -> bool:
        """Whether the file was written to since it was opened."""
        return _state_of(self.path) != self.state

    def close(self) -> None:
        """Close the connection; raise ``DataInvalid`` if the file was written to meanwhile."""
        super().close()
        if self.is_changed:
            raise DataInvalid(
                f"{self.path} was written to while it was read, so the rows may be inconsistent; "
                "read it on the machine that writes it, or copy it and read the copy."
            )


def connect_read_only(path: Path) -> sqlite3.Connection:
    """Open *path* read-only, with any schema; raise ``DataInvalid`` if it is no database."""
    if not path.is_file():
        raise DataInvalid(f"There is no database {path}; name one with --db.")
    try:
        return _connected(path, "mode=ro", sqlite3.Connection)
    except (sqlite3.Error, UnicodeDecodeError) as error:
        # In WAL mode SQLite creates -wal and -shm files, which fails on read-only media.
        code = getattr(error, "sqlite_errorcode", None)
        state = _state_of(path)
        if code != sqlite3.SQLITE_CANTOPEN or not _is_on_read_only_media(path) or state[-1]:
            raise DataInvalid(unusable(str(path), error)) from error
    try:
        connection = _connected(path, "mode=ro&immutable=1", ImmutableConnection)
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise DataInvalid(unusable(str(path), error)) from error
    connection.path, connection.state = path.absolute(), state
    return connection


C = TypeVar("C", bound=sqlite3.Connection)


def _connected(path: Path, options: str, factory: type[C]) -> C:
    uri = f"{path.absolute().as_uri()}?{options}"  # works for names that are not UTF-8
    connection = sqlite3.connect(
        uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False,
        factory=factory,
    )  # fmt: skip
    try:
        connection.execute("PRAGMA query_only = ON")
        connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchall()
    except BaseException:
        sqlite3.Connection.close(connection)
        raise
    return connection


def _state_of(path: Path) -> tuple[int, ...]:
    """Return the file's device, inode, write time and size, and the size of its -wal."""
    try:
        state = path.stat()
        journal = path.with_name(f"{path.name}-wal")
        rows = journal.stat().st_size if journal.exists() else 0
    except OSError:
        return (0,)
    return state.st_dev, state.st_ino, state.st_mtime_ns, state.st_size, rows


def _is_on_read_only_media(path: Path) -> bool:
    """Return whether the file system of *path* is mounted read-only.

    A folder that only this user may not write to can have a writer at any time.
    """
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def is_busy_error(error: BaseException | None) -> bool:
    """Return whether *error* means that another connection holds a needed lock."""
    return primary_code(error) in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


def schema_of(connection: sqlite3.Connection) -> int | None:
    """Return a database's schema number; 0 for an empty file, None for another program's file."""
    if connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone() is None:
        return 0
    if connection.execute("PRAGMA application_id").fetchone() != (APPLICATION_ID,):
        return None
    (number,) = connection.execute("PRAGMA user_version").fetchone()
    return int(number)


def to_begin_anew(path: Path) -> str:
    """Return the advice to move the database *path* away with its -wal, -shm and lock file."""
    return f"move it away to begin anew (`mv {path}* FOLDER`)"


def check_acknowledged(path: Path, connection: sqlite3.Connection, last: Holder | None) -> None:
    """Raise ``DataInvalid`` if *path* lacks steps that its *last* writer committed.

    SQLite reads a damaged -wal up to the damage, as if the rest had never been committed.
    """
    schema = schema_of(connection)
    if last is None or not last.run_id or schema not in {0, FILE_SCHEMA}:
        return
    query = "SELECT step_count FROM runs WHERE run_id = ?"
    row = connection.execute(query, (last.run_id,)).fetchone() if schema else None
    count = 0 if row is None else row[0]
    if count < last.steps:
        raise DataInvalid(
            f"{path} has {count} steps of run {last.run_id}, and {last.steps} were committed: "
            "its -wal is gone or cut, or this is an older copy; restore the newer files, or delete "
            f"{lock_file(path).name} to continue without those steps."
        )


def check_schema(path: Path, connection: sqlite3.Connection) -> None:
    """Raise ``DataInvalid`` unless *path* has the schema of this version."""
    schema = schema_of(connection)
    if not schema:
        raise DataInvalid(f"{path} is not a tracepaper database; name another with --db.")
    if schema != FILE_SCHEMA:
        raise DataInvalid(
            f"{path} has schema {schema}, and this version reads {FILE_SCHEMA}: use the tracepaper "
            f"that made it, name another file with --db, or {to_begin_anew(path)}."
        )
    columns = {row[1] for row in connection.execute("PRAGMA table_info(answers)")}
    if columns and (late := [gate for gate in ANSWER_GATES if measure_name(gate) not in columns]):
        raise DataInvalid(
            f"{path} was made before gate {late[0]} was declared and has no column for it: leave "
            f"the declaration out, name another file with --db, or {to_begin_anew(path)}."
        )
