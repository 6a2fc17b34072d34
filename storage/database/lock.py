"""The instance lock: one process writes a database, and notices when its file is replaced.

A file system accepts writes to a file that was deleted, replaced or truncated, though nobody can
read them back. So the writer checks the file before each commit, and before acknowledging it.

docs/storage.md, S2 and S4, has the rules.
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
from typing import ClassVar, Final

import msgspec
from msgspec.structs import replace

from tracepaper.storage.database.remedies import refusal
from tracepaper.strategies.errors import ConfigInvalid

# ---------------------------------------------------------------- the files under the writer

# Sizes in a write-ahead log, and offsets in its index (sqlite.org/walformat.html).
_WAL_HEADER: Final = 32
_FRAME_HEADER: Final = 24
_FRAMES_AT: Final = 16
_MOVED_AT: Final = 96
_LAST_STEPS: Final = (
    "the last steps may be lost: start again, which checks what is left, or restore a backup."
)

Identity = tuple[int, int]


def identity(path: Path) -> Identity | None:
    """Return device and inode of the file at *path*; None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


class FileWatch:
    """The writer's descriptors on a database, which it locks with flock, and on -wal and -shm.

    Closing any descriptor of a file drops all POSIX locks of this process on it, including
    SQLite's. So these descriptors are closed after SQLite's, and no others are opened. An flock is
    independent of POSIX locks.
    """

    _held: ClassVar[set[Identity]] = set()  # the files that this process has locked

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self._identity = _identity_of(descriptor)
        self._size = 0
        self._frame_bytes = 0
        self._log: dict[Path, int] = {}  # descriptors of -wal and -shm
        self._index_bytes = 0
        self._frames = 0
        self._is_suspect = False
        self._held.add(self._identity)

    @classmethod
    def open(cls, path: Path) -> FileWatch:
        """Lock the file *path*, which is created if missing.

        Raises ``ConfigInvalid`` if another writer has locked it, even under another name, or if
        only the owner can make it writable, ``AuditUnwritable`` if time may.
        """
        if identity(path) in cls._held:
            raise ConfigInvalid(_in_use(path, os.getpid()))
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise refusal(path, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                holder = holder_of(path)
                raise ConfigInvalid(_in_use(path, holder.pid if holder else 0)) from None
            raise ConfigInvalid(
                f"{path} cannot be locked ({error.strerror}); use a local disk."
            ) from error
        return cls(path, descriptor)

    def begin(self, connection: sqlite3.Connection) -> None:
        """Begin to watch, once *connection* has the file, its -wal and its -shm open."""
        (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
        self._frame_bytes = _FRAME_HEADER + int(page_bytes)
        path = self.path.resolve()
        for ending in ("-wal", "-shm"):
            file = path.with_name(path.name + ending)
            self._log[file] = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        self.settle()

    def settle(self) -> None:
        """Remember the sizes of the files after a commit."""
        self._size = os.fstat(self._descriptor).st_size
        if self._log:
            self._frames, _ = self._counted()
            _, index = self._log.values()
            self._index_bytes = max(self._index_bytes, os.fstat(index).st_size)

    def problem(self, connection: sqlite3.Connection) -> str:
        """Return the damage to the files of *connection* since the last commit, with a remedy.

        Empty if there is none. Steps in a deleted -wal can still be read through its open
        descriptor: they are saved here.
        """
        if identity(self.path) != self._identity:
            return (
                f"{self.path} was deleted, moved or replaced while it was written; put it back "
                "with its -wal file, or start again with a new one."
            )
        size = os.fstat(self._descriptor).st_size
        if size < self._size:
            self._is_suspect = True
            return (
                f"{self.path} was cut from {self._size} to {size} bytes while it was written; "
                "restore a backup, then start again."
            )
        if not self._log:
            return ""
        if self._restore_index() or any(
            identity(file) != _identity_of(descriptor) for file, descriptor in self._log.items()
        ):
            self._is_suspect = True
            remedy = (
                f"every stored step was saved into {self.path}: start again."
                if self._save(connection)
                else _LAST_STEPS
            )
            return f"{self.path}-wal or -shm was deleted or replaced while it was written; {remedy}"
        frames, moved = self._counted()
        if frames > moved and (self._lacks(frames) or self._has_hole(min(frames, self._frames))):
            if sys.version_info >= (3, 12):
                # The close must not copy pieces of a broken log into the database.
                connection.setconfig(sqlite3.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE)
            self._is_suspect = True
            return f"{self.path}-wal was cut while it was written; {_LAST_STEPS}"
        return ""

    @property
    def is_whole(self) -> bool:
        """Whether the database file has every step: nothing was damaged, and the -wal is empty."""
        has_log = any(file.exists() and file.stat().st_size for file in [*self._log][:1])
        return not has_log and not self._is_suspect

    def close(self) -> None:
        """Release the lock, after SQLite has closed the files; safe to call twice."""
        if self._descriptor < 0:
            return
        for descriptor in (*self._log.values(), self._descriptor):
            os.close(descriptor)
        self._held.discard(self._identity)
        self._log, self._descriptor = {}, -1

    def _counted(self) -> tuple[int, int]:
        """Return the number of frames in the index, and how many of them are checkpointed."""
        _, index = self._log.values()
        header = os.pread(index, _MOVED_AT + 4, 0).ljust(_MOVED_AT + 4, b"\0")
        (frames,), (moved,) = (
            struct.unpack_from("=I", header, at) for at in (_FRAMES_AT, _MOVED_AT)
        )
        return frames, moved

    def _lacks(self, frames: int) -> bool:
        """Return whether the -wal is shorter than *frames* frames."""
        wal, _ = self._log.values()
        return frames > 0 and os.fstat(wal).st_size < _WAL_HEADER + frames * self._frame_bytes

    def _has_hole(self, frame: int) -> bool:
        """Return whether *frame* of the -wal was cut off and later frames were written.

        The hole reads as zeros, but a frame begins with its page number, which is never 0.
        """
        wal, _ = self._log.values()
        place = _WAL_HEADER + (frame - 1) * self._frame_bytes
        return frame > 0 and not any(os.pread(wal, 4, place))

    def _restore_index(self) -> bool:
        """Restore the length of the -shm index if it was cut; return whether it was.

        SQLite has it mapped: reading a page after its end would kill the process with SIGBUS.
        SQLite rebuilds an index of zeros.
        """
        _, descriptor = self._log.values()
        if os.fstat(descriptor).st_size >= self._index_bytes:
            return False
        with suppress(OSError), open(f"/proc/self/fd/{descriptor}", "r+b") as index:  # noqa: PTH123
            index.truncate(0)
            index.truncate(self._index_bytes)
        return True

    def _save(self, connection: sqlite3.Connection) -> bool:
        """Checkpoint the steps in the deleted -wal; return whether all were copied."""
        try:
            (is_busy, frames, moved) = connection.execute("PRAGMA wal_checkpoint(FULL)").fetchone()
        except sqlite3.Error:
            return False
        file, descriptor = next(iter(self._log.items()))
        if (
            not is_busy
            and frames == moved
            and identity(file) not in {None, _identity_of(descriptor)}
        ):
            # SQLite would apply the replacement log over the steps just saved.
            file.rename(file.with_name(file.name + ".replaced"))
        return not is_busy and frames == moved


def _identity_of(descriptor: int) -> Identity:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def _in_use(path: Path, pid: int) -> str:
    holder = f"process {pid}" if pid > 0 else "another process"
    return f"{path} is in use by {holder}; stop it or choose another file with --db."


LOCK_ATTEMPTS: Final = 4
LOCK_PAUSE_S: Final = 0.02


class Holder(msgspec.Struct, frozen=True, omit_defaults=True):
    """The writer of a database: its process id, and the address of its HTTP server or "".

    It has acknowledged *steps* steps of the run *run_id*.
    """

    pid: int
    http: str
    run_id: str = ""
    steps: int = 0
    rotating: bool = False  # it waits until no other process has the database open


def lock_file(path: Path) -> Path:
    """Return the lock file of the database *path*, following links: ``tracepaper.db.lock``."""
    file = path.resolve()
    return file.with_name(file.name + ".lock")


class InstanceLock:
    """An flock on ``FILE.lock``, which holds the ``Holder`` as two equal lines of JSON.

    The kernel drops the lock when its holder dies, so a stale file can be locked again. A holder
    that ends in good order removes the file. If it is deleted earlier, the lock on the database
    itself (``FileWatch``) still keeps a second writer out.
    """

    def __init__(self, file: Path, descriptor: int, last: Holder | None) -> None:
        self._file = file
        self._descriptor = descriptor
        self._holder = last or Holder(0, "")

    @classmethod
    def acquire(cls, path: Path, last: Holder | None = None) -> InstanceLock:
        """Lock the database *path*; raise ``ConfigInvalid`` with the holder's pid if it is held.

        The count of steps that its *last* writer acknowledged is kept.
        """
        file = lock_file(path)
        while True:
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except OSError as error:
                raise refusal(file, error) from error
            if not _lock(descriptor):
                holder = _read_holder(descriptor)
                os.close(descriptor)
                raise ConfigInvalid(_in_use(path, holder.pid if holder else 0))
            if identity(file) == _identity_of(descriptor):
                break
            os.close(descriptor)  # the previous holder removed the file before it was locked here
        lock = cls(file, descriptor, last)
        lock.publish("")
        return lock

    def publish(self, http: str) -> None:
        """Write this process id and the address *http* (``http://127.0.0.1:8787``)."""
        self._write(replace(self._holder, pid=os.getpid(), http=http))

    def acknowledge(self, run_id: str, steps: int) -> None:
        """Write that *steps* steps of a run are committed."""
        self._write(replace(self._holder, run_id=run_id, steps=steps))

    def announce_rotation(self) -> None:
        """Write that the other processes should close the database."""
        self._write(replace(self._holder, rotating=True))

    def _write(self, holder: Holder) -> None:
        # Twice: after lost power the beginning of a count may stand before the end of an older one.
        self._holder, content = holder, 2 * (msgspec.json.encode(holder) + b"\n")
        with suppress(OSError):  # the disk may be full; a count that is too low rejects nothing
            os.pwrite(self._descriptor, content, 0)
            os.truncate(self._descriptor, len(content))

    def release(self, *, is_whole: bool = True) -> None:
        """Release the lock; safe to call twice.

        The file, with the acknowledged count, is kept unless the database file *is_whole*.
        """
        if self._descriptor >= 0:
            if is_whole:
                with suppress(OSError):  # a count of steps that are all there rejects nothing
                    os.truncate(self._descriptor, 0)
                with suppress(OSError):  # this user may only write the files of the folder
                    if identity(self._file) == _identity_of(self._descriptor):
                        self._file.unlink()
            os.close(self._descriptor)
            self._descriptor = -1


def holder_of(path: Path) -> Holder | None:
    """Return the present writer of the database *path*; None without one."""
    try:
        descriptor = os.open(lock_file(path), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise refusal(lock_file(path), error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read_holder(descriptor)
    else:
        return None
    finally:
        os.close(descriptor)


def is_rotating(path: Path) -> bool:
    """Return whether the database *path* is being rotated, so that readers should close it."""
    last = last_holder(path)
    return last is not None and last.rotating and holder_of(path) is not None


def last_holder(path: Path) -> Holder | None:
    """Return the present writer of *path*, or the last if it left a -wal; None otherwise."""
    try:
        return _decoded(lock_file(path).read_bytes())
    except OSError:
        return None


_READ_LOCKS: Final = range(120, 128)
"""Bytes of the -shm that a transaction locks (sqlite.org/walformat.html)."""
_OPEN_LOCK: Final = 128
"""The byte of the -shm that every connection locks."""


def reader_of(path: Path, *, idle: bool = False) -> str:
    """Return the process that has a transaction on the log of *path*, as a sentence begins.

    With *idle* it may be any other process that has the file open.
    """
    locks = {*_READ_LOCKS, *([_OPEN_LOCK] if idle else [])}
    index = identity(path.resolve().with_name(f"{path.resolve().name}-shm"))
    with suppress(OSError):
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            *_, pid, file, first, _last = line.split()
            inode = int(file.rpartition(":")[2])
            is_other = int(pid) != os.getpid()
            if index is not None and inode == index[1] and int(first) in locks and is_other:
                with suppress(OSError):  # its name may be hidden from this user
                    name = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace")
                    return f"Process {pid} ({name.strip()})"
                return f"Process {pid}"
    return "Another process"


def _lock(descriptor: int) -> bool:
    """Lock the open file; retry, because ``holder_of`` locks it for a moment."""
    for _ in range(LOCK_ATTEMPTS):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(LOCK_PAUSE_S)
        else:
            return True
    return False


def _read_holder(descriptor: int) -> Holder | None:
    """Return the holder in the open file; None if it is just being written."""
    return _decoded(os.pread(descriptor, 4096, 0))


def _decoded(content: bytes) -> Holder | None:
    """Return the holder in *content*; None if it was written in part."""
    line, _, rest = content.partition(b"\n")
    try:
        holder = msgspec.json.decode(line, type=Holder)
    except msgspec.DecodeError:
        return None
    return holder if rest.startswith(line + b"\n") else None
