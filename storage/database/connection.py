"""Opens a database for reading; ``writer`` opens it for writing.

One writing connection and any number of read-only ones. SQLite 3.7.0 to 3.51.2 (but for 3.44.6
and 3.50.7) can corrupt a WAL file when two connections write or checkpoint it at the same
moment (sqlite.org/wal.html, "The WAL-reset bug"). Here only the lock's holder has a writing
connection, it has one, and a read-only connection cannot checkpoint; so the fault cannot occur.
"""

from __future__ import annotations

import os
import re
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from tracepaper.storage.database.lock import Holder, holder_of, last_holder, lock_file
from tracepaper.storage.database.remedies import primary_code, remedy_of, unusable
from tracepaper.storage.database.views import FILE_SCHEMA
from tracepaper.storage.record.columns import ANSWER_GATES, APPLICATION_ID, measure_name
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid, Fatal

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
        check_log(path, connection)
        check_acknowledged(path, connection, last)
        check_schema(path, connection)
    except BaseException:
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


def reject_place(path: Path) -> None:
    """Raise ``ConfigInvalid`` if *path* is a folder, or SQLite is too old."""
    if problem := sqlite_problem():
        raise ConfigInvalid(problem)
    if path.is_dir():
        raise ConfigInvalid(f"{path} is a folder; name a file with storage.url or --db.")


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
            raise DataInvalid(_unreadable(path, error)) from error
    try:
        connection = _connected(path, "mode=ro&immutable=1", ImmutableConnection)
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise DataInvalid(unusable(path, error)) from error
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


# ---------------------------------------------------------------- the files beside a database

PAGE_BYTES: Final = 2048
"""The size of a page of a new file. A file keeps the size with which it was made.

A commit writes whole pages of five tables, a few hundred bytes in each: with SQLite's usual pages
of 4,096 bytes a live bar writes twice as much.
"""
REPLAY_PAGE_BYTES: Final = 8192
"""The size of a page of a file that a replay makes, whose commits fill many pages.

Fewer pages hold the long rows of explained bars with less space left over.
"""
_BESIDE: Final = ("-wal", "-journal", "-shm", ".lock")
_HOLED: Final = (
    "SELECT 1 FROM runs r LEFT JOIN (SELECT run_key, max(last_sequence) AS last, "
    "sum(last_sequence - first_sequence + 1) AS steps FROM commits GROUP BY run_key) c "
    "USING (run_key) WHERE coalesce(c.last, -1) <> r.step_count - 1 "
    "OR coalesce(c.steps, 0) <> r.step_count"
)
"""Selects a run whose commits are not as many steps as its row counts."""


def beside(path: Path, ending: str) -> Path:
    """Return the file beside the database *path* with this *ending*, such as ``-wal``."""
    return path.with_name(path.name + ending)


def _has_bytes(file: Path) -> bool:
    return file.is_file() and file.stat().st_size > 0


def is_first_page(path: Path) -> bool:
    """Return whether *path* is what a first start left that was killed while it wrote page 1.

    Its journal undoes that page. Afterwards the database has a log, and no journal.
    """
    return _has_bytes(beside(path, "-journal")) and path.stat().st_size <= REPLAY_PAGE_BYTES


def check_log(path: Path, connection: sqlite3.Connection) -> None:
    """Raise ``DataInvalid`` if *path* is damaged by a -wal that no process writes, and only by it.

    It is raised also if the disk does not give the file.

    SQLite reads a -wal that is older than its file, or of another file, as if it belonged to it:
    a copy that was put in the place of the file would be called damaged.
    """
    if not _has_bytes(beside(path, "-wal")) or _is_written(path):
        return
    try:
        if not _is_sound(connection):
            _reject_left_files(path)
    except sqlite3.Error as error:
        raise DataInvalid(unusable(path, error)) from error


def is_at_rest(path: Path) -> bool:
    """Return whether no process writes *path*, and no -wal beside it holds newer steps."""
    return not _has_bytes(beside(path, "-wal")) and not _is_written(path)


def _is_written(path: Path) -> bool:
    try:
        return holder_of(path) is not None
    except Fatal:  # the lock file is another user's
        return True


def _reject_left_files(path: Path) -> None:
    """Raise ``DataInvalid`` if *path* is sound without the files beside it."""
    connection = None
    try:
        connection = _connected(path, "mode=ro&immutable=1", sqlite3.Connection)
        is_sound = _is_sound(connection)
    except (sqlite3.Error, UnicodeDecodeError):
        is_sound = False
    finally:
        if connection is not None:
            connection.close()
    names = [file.name for end in _BESIDE if (file := beside(path, end)).exists()]
    if is_sound and names:
        raise DataInvalid(
            f"{path} is sound without the files beside it, which are older or of another file: "
            f"move {', '.join(names)} away, and try again."
        )


def _is_sound(connection: sqlite3.Connection) -> bool:
    """Return whether the pages are sound, and each run has the commits of its steps.

    Raises the error of a disk that does not answer: it tells nothing about the file.
    """
    try:
        if page_problem(connection):
            return False
        return schema_of(connection) != FILE_SCHEMA or not connection.execute(_HOLED).fetchone()
    except (sqlite3.Error, UnicodeDecodeError) as error:
        code = getattr(error, "sqlite_errorcode", None)
        if remedy_of(error).may_heal and code != sqlite3.SQLITE_IOERR_SHORT_READ:
            raise
        return False


_UNREAD: Final = re.compile(r"unable to get the page\. error code=(\d+)")


def page_problem(connection: sqlite3.Connection) -> str:
    """Return the first damage to the pages of a database; "" if they are sound.

    Raises ``sqlite3.OperationalError`` if the disk did not give a page.
    """
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if (unread := _UNREAD.search(verdict)) is not None:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = int(unread[1])
        if primary_code(error) == sqlite3.SQLITE_IOERR:
            raise error
    return "" if verdict == "ok" else " ".join(verdict.replace("*", "").split())


def _unreadable(path: Path, error: BaseException) -> str:
    """Return why *path* cannot be opened; raise ``DataInvalid`` if a file beside it causes that."""
    code, has_journal = primary_code(error), _has_bytes(beside(path, "-journal"))
    if code == sqlite3.SQLITE_READONLY and has_journal and is_first_page(path):
        return f"{path} has no run: its first start was killed; start it again."
    if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_READONLY_DIRECTORY:
        return (
            f"{path} cannot be read, since SQLite cannot write in its folder; give this user the "
            "right to write there, or copy the file to another folder."
        )
    is_damaged = code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
    if is_damaged or (code == sqlite3.SQLITE_READONLY and has_journal):
        _reject_left_files(path)
    return unusable(path, error)


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


def _maker(connection: sqlite3.Connection) -> str:
    """Return the version that wrote the newest run, of any schema, in brackets; else nothing."""
    with suppress(sqlite3.Error):
        for (code,) in connection.execute("SELECT code_version FROM runs ORDER BY rowid DESC"):
            return f" ({code})"
    return ""


def check_schema(path: Path, connection: sqlite3.Connection) -> None:
    """Raise ``DataInvalid`` unless *path* has the schema of this version."""
    schema = schema_of(connection)
    if not schema:
        raise DataInvalid(f"{path} is not a tracepaper database; name another with --db.")
    if schema != FILE_SCHEMA:
        raise DataInvalid(
            f"{path} has schema {schema}, and this version reads {FILE_SCHEMA}: use the tracepaper "
            f"that made it{_maker(connection)}, name another file with --db, or "
            f"{to_begin_anew(path)}."
        )
    columns = {row[1] for row in connection.execute("PRAGMA table_info(answers)")}
    if columns and (late := [gate for gate in ANSWER_GATES if measure_name(gate) not in columns]):
        raise DataInvalid(
            f"{path} was made before gate {late[0]} was declared and has no column for it: leave "
            f"the declaration out, name another file with --db, or {to_begin_anew(path)}."
        )
