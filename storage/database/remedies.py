"""One table: what a failed file operation means, what mends it, and whether time may heal it.

The exit code follows: systemd starts a daemon that ended with 1 again, one that ended with 2 not.

docs/operations.md, O1, prints the table.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path
from typing import Final, NamedTuple

from tracepaper.strategies.errors import AuditUnwritable, ConfigInvalid, DataInvalid, Fatal


class Remedy(NamedTuple):
    """The meaning of some errors of the system and of SQLite, and what mends it.

    ``problem`` follows a subject (*FILE has no room*), ``advice`` is a command to the owner.
    """

    errors: tuple[str, ...]  # names of ``errno``, and SQLite's primary result codes
    problem: str
    advice: str
    may_heal: bool  # whether a later start may succeed though nobody did anything

    @property
    def exit_code(self) -> int:
        """The exit code of a process that this ends."""
        return 1 if self.may_heal else 2


REMEDIES: Final = (
    Remedy(
        ("ENOSPC", "EDQUOT", "SQLITE_FULL"),
        "has no room",
        "free some of the disk",
        may_heal=True,
    ),
    Remedy(
        ("EIO", "SQLITE_IOERR"),
        "cannot be reached on its disk",
        "see that the disk works",
        may_heal=True,
    ),
    Remedy(
        ("EAGAIN", "EBUSY", "SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL"),
        "is in use by another process",
        "end the transaction of the other process",
        may_heal=True,
    ),
    Remedy(
        ("EMFILE", "ENFILE", "ENOMEM", "SQLITE_NOMEM"),
        "needs more files or memory than the machine gives",
        "raise LimitNOFILE or MemoryMax",
        may_heal=True,
    ),
    # SQLite reports too many open files by this code too.
    Remedy(
        ("SQLITE_CANTOPEN",),
        "cannot be opened where it lies",
        "give SQLite a folder that it can write in, or copy the file to one",
        may_heal=True,
    ),
    Remedy(
        ("EACCES", "EPERM", "SQLITE_PERM", "SQLITE_AUTH"),
        "may not be opened",
        "give this user the right to it",
        may_heal=False,
    ),
    Remedy(
        ("EROFS", "SQLITE_READONLY"),
        "cannot be written where it lies",
        "choose a place that can be written",
        may_heal=False,
    ),
    Remedy(
        ("ENOENT", "ENOTDIR", "EISDIR", "EEXIST"),
        "cannot be found or made",
        "choose another place",
        may_heal=False,
    ),
    Remedy(
        ("SQLITE_CORRUPT",),
        "is damaged",
        "restore a backup, or name another with --db",
        may_heal=False,
    ),
    Remedy(
        ("SQLITE_NOTADB",),
        "is no database",
        "restore a backup, or name another with --db",
        may_heal=False,
    ),
)
_SYSTEM_UNKNOWN: Final = Remedy((), "cannot be used", "correct that", may_heal=True)
_SQLITE_UNKNOWN: Final = Remedy(
    (), "is of another version, or not a record", "name another with --db", may_heal=False
)
_BY_ERROR: Final = {
    (module, getattr(module, name)): remedy
    for remedy in REMEDIES
    for name in remedy.errors
    for module in (sqlite3 if name.startswith("SQLITE_") else errno,)
}


def primary_code(error: BaseException | None) -> int | None:
    """Return SQLite's primary result code of *error*; None if it is not SQLite's."""
    if isinstance(error, UnicodeDecodeError):  # damage can make SQLite's message invalid UTF-8
        return sqlite3.SQLITE_CORRUPT
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def remedy_of(error: BaseException) -> Remedy:
    """Return the row of the table for *error*."""
    if isinstance(error, OSError):
        return _BY_ERROR.get((errno, error.errno), _SYSTEM_UNKNOWN)
    return _BY_ERROR.get((sqlite3, primary_code(error)), _SQLITE_UNKNOWN)


_MAY_BE_FULL: Final = frozenset({sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN})
"""What SQLite also reports where a full disk refuses the index of the log (-shm) or a new file."""
_NEEDED_BYTES: Final = 65_536
"""The index of the log grows by half of this at once."""


def _free_bytes_if_full(error: BaseException, file: Path | None) -> int | None:
    """Return the free bytes of the file system of *file* if it is full and *error* may say so."""
    if file is None or primary_code(error) not in _MAY_BE_FULL:
        return None
    try:
        found = os.statvfs(file.absolute().parent)
    except OSError:
        return None
    if found.f_flag & os.ST_RDONLY:  # a medium that is written once has no byte left either
        return None
    free = found.f_bavail * found.f_frsize
    return free if free < _NEEDED_BYTES else None


def unusable(
    name: str | Path, error: BaseException, then: str = "", *, file: Path | None = None
) -> str:
    """Return a sentence: why *name* cannot be used, and what to do; *then* continues the advice.

    The disk of *name*, or of *file*, is asked whether it is full.
    """
    remedy = remedy_of(error)
    reason = (error.strerror if isinstance(error, OSError) else None) or error
    free = _free_bytes_if_full(error, name if isinstance(name, Path) else file)
    if free is not None:
        remedy, reason = REMEDIES[0], f"{reason}; {free:,} bytes are free"
    return f"{name} {remedy.problem} ({reason}); {remedy.advice}{then}."


def refusal(
    name: str | Path, error: BaseException, then: str = "", *, file: Path | None = None
) -> Fatal:
    """Return the exception whose exit code and sentence the table gives for *error*.

    Damage is ``DataInvalid``: a start ends with 2 by it, another command with 1.
    """
    kind: type[Fatal] = AuditUnwritable if remedy_of(error).may_heal else ConfigInvalid
    if primary_code(error) in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
        kind = DataInvalid
    return kind(unusable(name, error, then, file=file))
