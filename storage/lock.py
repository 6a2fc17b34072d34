"""The instance lock: one process writes a database, and the file beside it says which."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from tracepaper.storage.watch import identity
from tracepaper.strategies.errors import AuditUnwritable, ConfigInvalid

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
    file stays when the lock is released. What keeps a second writer out, whatever is done to this
    file, is the lock on the database itself (``watch``).
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
            holder = _read(descriptor)
            os.close(descriptor)
            named = f"process {holder.pid}" if holder else "another process"
            raise ConfigInvalid(
                f"{path} is in use by {named}; stop it or choose another file with --db."
            )
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
        """Write the file anew where somebody deleted or replaced it, so that we are found."""
        found, ours = identity(self._file), os.fstat(self._descriptor)
        if found == (ours.st_dev, ours.st_ino):
            return
        try:
            descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError:
            return  # nobody finds us; nobody can write either
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
        return _read(descriptor)
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


def _read(descriptor: int) -> Holder | None:
    """Return the holder that the open file names; None where it is being written."""
    try:
        content = msgspec.json.decode(os.pread(descriptor, 4096, 0), type=dict[str, int | str])
        return Holder(int(content["pid"]), str(content["http"]))
    except (msgspec.DecodeError, KeyError, ValueError):
        return None
