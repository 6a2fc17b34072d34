"""Rotation: an account goes on in a new file of the same name, and the old file keeps its record.

FILE is the old file until one rename, and the new one after it: at no moment is there none, or one
that is written by two. docs/storage.md, S18, has the rule.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from tracepaper.daemon.session.account_file import account_at_end
from tracepaper.storage.covariates import sync_names
from tracepaper.storage.database.connection import PAGE_BYTES, is_busy_error
from tracepaper.storage.database.lock import reader_of
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.remedies import refusal
from tracepaper.storage.database.writer import READER_ATTEMPTS, connected, create, open_writer
from tracepaper.storage.maintenance import put_beside, reject_used
from tracepaper.strategies.errors import AuditUnwritable, ConfigInvalid
from tracepaper.strategies.units import day_text

if TYPE_CHECKING:
    from tracepaper.daemon.session.carried_account import CarriedAccount, Origin
    from tracepaper.storage.database.writer import Writer

_DATED: Final = re.compile(r"\.\d{4}-\d\d-\d\d(-\d+)?")
_NO_LINKS: Final = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}


class Rotated(NamedTuple):
    """The files of a rotation, and the end of the run whose account goes on in the new one."""

    file: Path
    older: Path
    origin: Origin


def rotate(
    path: Path,
    older: Path | None = None,
    *,
    is_own: bool = False,
    attempts: int = READER_ATTEMPTS,
    pause_s: float = 1.0,
) -> Rotated:
    """Let the account of the newest live run of *path* go on in a new file of that name.

    The old file gets the name *older*, by default FILE.DATE of its newest bar. Other processes that
    have it open are awaited for *attempts* pauses. The chain is checked first, unless this process
    wrote it itself (*is_own*). Raises ``ConfigInvalid``, ``DataInvalid`` or
    ``AuditUnwritable``, and then changes nothing.
    """
    real = path.resolve()
    Reader.open(real).close()  # a missing file would be made
    with closing(open_writer(real)) as writer:
        account = account_at_end(real, Reader(writer.driver), is_own=is_own)
        newest_ms = max(account.last_open_ms.values(), default=account.origin.market_ms)
        target = real.with_name(f"{real.name}.{day_text(newest_ms)}")
        if older is not None:
            target = older.parent.resolve() / older.name
        _clear(real, target)
        made: list[Path] = []
        try:
            _end_log(real, writer, attempts, pause_s)
            _put(path, real, target, account, made)
        except (sqlite3.Error, OSError) as error:
            for file in reversed(made):
                file.unlink(missing_ok=True)
                with suppress(OSError):
                    os.removedirs(file.parent)  # a folder that holds other files stays
            if isinstance(error, OSError) and error.errno in _NO_LINKS:
                raise ConfigInvalid(
                    f"{error.filename} cannot get a second name ({error.strerror}), which a "
                    "rotation needs: keep the database and what lies beside it on one local disk."
                ) from error
            raise refusal(target, error, file=real) from error
    return Rotated(real, target, account.origin)


def _clear(real: Path, target: Path) -> None:
    """Remove what a rotation left that was cut short; raise if the name *target* cannot be used."""
    if target.parent != real.parent:
        raise ConfigInvalid(f"The older file stays in {real.parent}; give a name in that folder.")
    for file in {target, *real.parent.iterdir()}:
        ending = file.name.removeprefix(real.name)
        is_name = file == target or (ending != file.name and _DATED.fullmatch(ending))
        if is_name and file != real and file.exists() and file.samefile(real):
            file.unlink()
    real.with_name(f"{real.name}.partial").unlink(missing_ok=True)
    number = 2
    while target.with_name(f"{target.name}-{number}").exists():
        number += 1
    offered = target.with_name(f"{target.name}-{number}")
    reject_used(target, f"name another, as in `tracepaper db rotate {offered}`")


def _end_log(real: Path, writer: Writer, attempts: int, pause_s: float) -> None:
    """Bring every step into the file and remove its log, which would be taken for the new one's.

    The journal of this change is in memory: one on the disk, after a kill, keeps readers out.
    """
    assert writer.lock is not None
    writer.lock.announce_rotation()
    for attempt in range(attempts):
        if attempt:
            time.sleep(pause_s)
        try:
            writer.driver.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            (mode,) = writer.driver.execute("PRAGMA journal_mode = MEMORY").fetchone()
        except sqlite3.OperationalError as error:
            if not is_busy_error(error):
                raise
        else:
            if mode == "memory":
                writer.lock.acknowledge("", 0)  # of the old file, for which the lock outlives it
                return
    raise AuditUnwritable(
        f"{reader_of(real, idle=True)} has {real} open, so it cannot be rotated: close the shell, "
        "the notebook or what else shows it, and try again; nothing was changed."
    )


def _put(path: Path, real: Path, target: Path, account: CarriedAccount, made: list[Path]) -> None:
    """Put the new file in place; *made* collects the names to remove if that fails."""

    def link(file: Path, name: Path) -> None:
        if not name.exists():  # of a rotation that was cut short; its name is that of its content
            made.append(name)
            os.link(file, name)

    put_beside(path, target, link)
    partial = real.with_name(f"{real.name}.partial")
    made.append(partial)
    with closing(sqlite3.connect(partial, isolation_level=None)) as driver:
        driver.execute("PRAGMA journal_mode = OFF")  # what is not whole is never renamed
        driver.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        with connected(driver) as connection:
            create(connection)
        driver.execute("INSERT INTO begins VALUES (?)", (account.json(),))
    shutil.copymode(real, partial)
    with partial.open("rb") as written:
        os.fsync(written.fileno())
    os.link(real, target)
    made.append(target)
    sync_names(real.parent)
    partial.rename(real)
    made.clear()  # the older file has no other name now
    sync_names(real.parent)
