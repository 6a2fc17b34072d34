"""The instance lock: one process writes a database, and notices when its file is replaced.

A file system accepts every write to a file that was deleted, replaced or cut short, and nobody can
read it back. So the writer checks before a commit, and again before it is acknowledged.

The rules are docs/storage.md, S2 and S4.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import struct
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Final, NamedTuple

import msgspec

from tracepaper.strategies.errors import AuditUnwritable, ConfigInvalid

# ---------------------------------------------------------------- the file under the writer

NAME_AT: Final = 2**62
"""The byte whose POSIX lock tells others our process id; SQLite locks none there."""

# A write-ahead log and its index, as sqlite.org/walformat.html describes them.
_WAL_HEADER: Final = 32
_FRAME_HEADER: Final = 24
_INDEX_HEADER: Final = 48
_INDEX_MOVED: Final = 2 * _INDEX_HEADER  # where it counts the frames that the database holds
_INDEX_READS: Final = 100
_INDEX_VERSION: Final = 3_007_000
_NO_FRAME: Final = b"\0\0\0\0"  # a frame begins with its page's number, which is never 0
_LAST_STEPS: Final = (
    "the last steps may be lost: start again from what is left, or restore a backup."
)
_FLOCK: Final = "hhqqi"  # struct flock of a 64-bit Linux

Identity = tuple[int, int]


def identity(path: Path) -> Identity | None:
    """Return which file lies at *path*, by device and inode; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


class WatchedFile:
    """The one descriptor of ours on the database *path*, under an flock of its inode.

    Closing any descriptor of a file drops every POSIX lock that this process has on it, SQLite's
    among them: this one is opened before SQLite's and closed after it, and no other is opened. An
    flock is none of these, so neither disturbs the other.
    """

    _held: ClassVar[set[Identity]] = set()  # the files that this process has under such a lock

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self._identity = _identity_of(descriptor)
        self._size = 0
        self._log: _WriteAheadLog | None = None
        self._held.add(self._identity)

    @classmethod
    def open(cls, path: Path) -> WatchedFile:
        """Lock the file *path*, making it where it is missing, under whatever name it is known.

        Raises ``ConfigInvalid`` with the holder's process id where another writer has it.
        """
        if identity(path) in cls._held:
            raise ConfigInvalid(_in_use(path, os.getpid()))
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise AuditUnwritable(
                f"{path} cannot be opened for writing ({error.strerror}); correct that, or choose "
                "another --db."
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _lock_holder(descriptor)
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                raise ConfigInvalid(_in_use(path, holder)) from None
            raise AuditUnwritable(
                f"{path} cannot be locked ({error.strerror}); use a local disk."
            ) from error
        return cls(path, descriptor)

    def begin(self, connection: sqlite3.Connection) -> None:
        """Begin to watch, once *connection* has the file, its -wal and its -shm open.

        Raises ``AuditUnwritable`` where a reader still holds on to a -wal that is gone.
        """
        # Taken now: SQLite's first steps give up every POSIX lock of the file.
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, NAME_AT)
        page_bytes = int(connection.execute("PRAGMA page_size").fetchone()[0])
        self._log = _WriteAheadLog(self._path.resolve(), page_bytes)
        if self._log.is_left_behind() and not self._log.restart(connection):
            raise AuditUnwritable(
                f"Another process still reads {self._path}, whose -wal was deleted under it: end "
                "that process and start again; every stored step is in the file."
            )
        self.settle()

    def settle(self) -> None:
        """Remember the state of the files after a commit."""
        self._size = os.fstat(self._descriptor).st_size
        if self._log is not None:
            self._log.settle()

    def problem(self, connection: sqlite3.Connection) -> str:
        """Return the damage to the files of *connection* since the last commit, and its remedy.

        Empty where there is none. Steps that lie in a -wal which is gone can still be read over
        our descriptor: they are saved here.
        """
        if identity(self._path) != self._identity:
            return (
                f"{self._path} was deleted, moved or replaced while it was written; put it back "
                "with its -wal file, or start again with a new one."
            )
        size = os.fstat(self._descriptor).st_size
        if size < self._size:
            return (
                f"{self._path} was cut from {self._size} to {size} bytes while it was written; "
                "restore a backup, then start again."
            )
        log = self._log
        if log is None:
            return ""
        if log.is_gone():
            remedy = (
                f"every stored step was saved into {self._path}: start again."
                if log.save(connection)
                else _LAST_STEPS
            )
            return (
                f"{self._path}-wal or -shm was deleted or replaced while it was written; {remedy}"
            )
        if log.is_cut():
            log.leave(connection)
            return f"{self._path}-wal was cut or overwritten while it was written; {_LAST_STEPS}"
        return ""

    def close(self) -> None:
        """Give the lock back, after SQLite has closed the file; safe to call twice."""
        if self._descriptor < 0:
            return
        if self._log is not None:
            self._log.close()
        self._held.discard(self._identity)
        os.close(self._descriptor)
        self._descriptor = -1


class _WriteAheadLog:
    """The -wal that our connection writes, and the index of it in -shm."""

    def __init__(self, database: Path, page_bytes: int) -> None:
        self._files = {
            database.with_name(database.name + ending): -1 for ending in ("-wal", "-shm")
        }
        for file in self._files:
            self._files[file] = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        self._wal, self._index = self._files.values()
        self._frame_bytes = _FRAME_HEADER + page_bytes
        self._salt = b""
        self._frames = 0
        self._last = b""
        self._index_bytes = 0

    def settle(self) -> None:
        """Remember the last frame that the index counts."""
        self._salt, self._frames = self._counted()
        self._last = self._frame(self._frames)
        self._index_bytes = max(self._index_bytes, os.fstat(self._index).st_size)

    def _restore_index(self) -> bool:
        """Give the index its length back where it was cut; return whether it was.

        SQLite has it mapped: a look at a page behind its end would end the process by a signal. Of
        an empty one SQLite makes a new index by itself.
        """
        if os.fstat(self._index).st_size >= self._index_bytes:
            return False
        with suppress(OSError), open(f"/proc/self/fd/{self._index}", "r+b") as index:  # noqa: PTH123
            index.truncate(0)
            index.truncate(self._index_bytes)
        return True

    def is_gone(self) -> bool:
        """Return whether another file, or none, is at one of the two paths, or the index is cut."""
        if self._restore_index():
            return True
        return any(identity(file) != _identity_of(at) for file, at in self._files.items())

    def is_cut(self) -> bool:
        """Return whether the file is shorter than the index counts, or its last frame has changed.

        A checkpoint restarts the file under another salt, with its frames in the database.
        """
        salt, frames = self._counted()
        if os.fstat(self._wal).st_size < _WAL_HEADER + frames * self._frame_bytes and frames:
            return True
        if salt == self._salt:
            return self._frame(self._frames) != self._last
        # A file that was cut and then written further back has a hole, which reads as zeros.
        starts = (os.pread(self._wal, 4, self._place(frame)) for frame in range(1, frames + 1))
        return any(start in {_NO_FRAME, b""} for start in starts)

    def is_left_behind(self) -> bool:
        """Return whether the index counts frames that the file lacks and the database has.

        A reader keeps the index of a deleted -wal alive; the next process opens a new, empty -wal
        beside it.
        """
        _, frames = self._counted()
        (moved,) = struct.unpack("=I", os.pread(self._index, 4, _INDEX_MOVED) or bytes(4))
        is_short = os.fstat(self._wal).st_size < _WAL_HEADER + frames * self._frame_bytes
        return is_short and 0 < frames <= moved

    def restart(self, connection: sqlite3.Connection) -> bool:
        """Let the next frame be the first; return whether no reader is in the way."""
        (is_busy, _, _) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return not is_busy

    def save(self, connection: sqlite3.Connection) -> bool:
        """Checkpoint the steps that only our descriptor reaches; return whether all were copied."""
        try:
            (is_busy, frames, moved) = connection.execute("PRAGMA wal_checkpoint(FULL)").fetchone()
        except sqlite3.Error:
            return False
        wal = next(iter(self._files))
        if not is_busy and frames == moved and identity(wal) not in {None, _identity_of(self._wal)}:
            # SQLite would read the other log at this place over the steps just saved.
            wal.rename(wal.with_name(wal.name + ".replaced"))
        return not is_busy and frames == moved

    def leave(self, connection: sqlite3.Connection) -> None:
        """Keep the close of *connection* from copying pieces of a broken log into the database."""
        if sys.version_info >= (3, 12):
            connection.setconfig(sqlite3.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE)

    def close(self) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)

    def _counted(self) -> tuple[bytes, int]:
        """Return the salt of the log and how many of its frames are committed."""
        for _ in range(_INDEX_READS):
            first, second = (os.pread(self._index, _INDEX_HEADER, at) for at in (0, _INDEX_HEADER))
            if first == second and len(first) == _INDEX_HEADER:
                version, frames = struct.unpack_from("=I12xI", first)
                return (first[32:40], frames) if version == _INDEX_VERSION else (b"", 0)
        return b"", 0  # a writer of another process is between the two

    def _frame(self, frame: int) -> bytes:
        return os.pread(self._wal, self._frame_bytes, self._place(frame)) if frame else b""

    def _place(self, frame: int) -> int:
        return _WAL_HEADER + (frame - 1) * self._frame_bytes


def _identity_of(descriptor: int) -> Identity:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def _lock_holder(descriptor: int) -> int:
    """Return the id of the process that locked ``NAME_AT``; 0 where that is not known."""
    request = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, NAME_AT, 1, 0)
    try:
        kind, *_, pid = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, request))
    except OSError:
        return 0
    return 0 if kind == fcntl.F_UNLCK else int(pid)


def _in_use(path: Path, pid: int) -> str:
    holder = f"process {pid}" if pid > 0 else "another process"
    return f"{path} is in use by {holder}; stop it or choose another file with --db."


LOCK_ATTEMPTS: Final = 4
LOCK_PAUSE_S: Final = 0.02


class Holder(NamedTuple):
    """Who writes a database: its process id, and the address of its HTTP server, if it has one."""

    pid: int
    http: str


def lock_file(path: Path) -> Path:
    """Return the lock file of the database *path*, links followed: ``tracepaper.db.lock``."""
    file = path.resolve()
    return file.with_name(file.name + ".lock")


class InstanceLock:
    """An flock on ``FILE.lock``, whose JSON ``{"pid", "http"}`` names the holder.

    The kernel drops the lock when its holder dies, so a stale file is simply taken over. The
    file stays when the lock is released. The lock on the database itself (``WatchedFile``) keeps a
    second writer out, even where this file is deleted.
    """

    def __init__(self, file: Path, descriptor: int) -> None:
        self._file = file
        self._descriptor = descriptor
        self._http = ""

    @classmethod
    def acquire(cls, path: Path) -> InstanceLock:
        """Lock the database *path*; raise ``ConfigInvalid`` with the holder's pid if it is held."""
        file = lock_file(path)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise AuditUnwritable(
                f"{file} cannot be written ({error.strerror}); choose another --db."
            ) from error
        if not _lock(descriptor):
            holder = _read_holder(descriptor)
            os.close(descriptor)
            raise ConfigInvalid(_in_use(path, holder.pid if holder else 0))
        lock = cls(file, descriptor)
        lock.publish("")
        return lock

    def publish(self, http: str) -> None:
        """Write this process and the address *http* (``http://127.0.0.1:8787``) into the file."""
        self._http = http
        content = msgspec.json.encode({"pid": os.getpid(), "http": http})
        os.pwrite(self._descriptor, content, 0)
        os.truncate(self._descriptor, len(content))

    def keep(self) -> None:
        """Write the file anew where it was deleted or replaced, so that others find the holder."""
        if identity(self._file) == _identity_of(self._descriptor):
            return
        try:
            descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError:
            return  # nobody finds the holder; nobody can write either
        if _lock(descriptor):
            os.close(self._descriptor)
            self._descriptor = descriptor
            self.publish(self._http)
        else:
            os.close(descriptor)

    def release(self) -> None:
        """Give the lock back; safe to call twice."""
        if self._descriptor >= 0:
            os.truncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = -1


def holder_of(path: Path) -> Holder | None:
    """Return who writes the database *path* now; None where nobody does."""
    try:
        descriptor = os.open(lock_file(path), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigInvalid(
            f"{lock_file(path)} cannot be read ({error.strerror}); mend its permissions."
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read_holder(descriptor)
    else:
        return None
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Lock the open file; a reader that just looks (``holder_of``) is gone in a moment."""
    for _ in range(LOCK_ATTEMPTS):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(LOCK_PAUSE_S)
        else:
            return True
    return False


def _read_holder(descriptor: int) -> Holder | None:
    """Return the holder that the open file names; None where it is being written."""
    try:
        content = msgspec.json.decode(os.pread(descriptor, 4096, 0), type=dict[str, int | str])
        return Holder(int(content["pid"]), str(content["http"]))
    except (msgspec.DecodeError, KeyError, ValueError):
        return None
