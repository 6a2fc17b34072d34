"""``db backup``, and what ``db rotate`` shares with it; docs/storage.md, S16, has the rule."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tracepaper.storage.checkpoints import kept_checkpoints
from tracepaper.storage.covariates import kept_covariates, sync_names, write_whole
from tracepaper.storage.database.connection import open_reader, page_problem
from tracepaper.storage.database.lock import lock_file
from tracepaper.storage.database.remedies import refusal
from tracepaper.strategies.errors import DataInvalid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


KEPT_BESIDE: Final = (kept_checkpoints, kept_covariates)
"""Functions that return the folders, beside a database, that ``verify`` needs for its runs."""


def reject_used(target: Path, remedy: str) -> None:
    """Raise ``DataInvalid`` with the *remedy* unless the name *target* is free for a database."""
    if target.exists():
        raise DataInvalid(f"{target} exists already; {remedy}.")
    for suffix in ("-wal", "-journal"):
        rest = target.with_name(target.name + suffix)
        if rest.exists() and rest.stat().st_size:  # SQLite would write it into the new file
            raise DataInvalid(
                f"{rest} belongs to a database that is missing: move it away, or {remedy}."
            )


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """Yield the path of a database to write; rename it to the new file *target* at the end.

    Raises ``DataInvalid`` if *target* exists, ``AuditUnwritable`` if it cannot be written; then no
    file is left.
    """
    reject_used(target, "name a new file for the backup")
    partial = target.with_name(target.name + ".partial")
    try:
        partial.write_bytes(b"")
    except OSError as error:
        raise refusal(target, error) from None
    try:
        yield partial
        # Otherwise the rename could reach the disk before the content.
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        lock_file(target).unlink(missing_ok=True)  # left by a database that was deleted
        partial.rename(target)
        sync_names(target.parent)
    except (sqlite3.Error, OSError) as error:
        raise refusal(target, error) from error
    finally:
        for suffix in ("", "-journal", "-wal", "-shm", ".lock"):
            partial.with_name(partial.name + suffix).unlink(missing_ok=True)


def backup(path: Path, target: Path) -> list[Path]:
    """Copy one snapshot of the database *path* to the new file *target*, even while it is written.

    Also copies the files beside it that ``verify`` needs, the models and covariates of its runs;
    returns those copies. Raises ``DataInvalid`` if *target* exists, ``AuditUnwritable`` if it
    cannot be written.
    """
    with whole_file(target) as partial:
        with closing(open_reader(path)) as source, closing(sqlite3.connect(partial)) as copy:
            source.backup(copy)
            damage = page_problem(copy)
        if damage:
            raise DataInvalid(f"{path} is damaged ({damage}); restore an older backup.")
        # A file beside the database is written before a run refers to it, and never removed: so
        # all files to which the snapshot refers exist now.
        beside = put_beside(
            path, target, lambda file, copy: write_whole((file.read_bytes(),), copy)
        )
    with suppress(OSError):  # the user may only read this folder; the copy is complete
        copied_file(path).touch()
    return beside


def copied_file(database: Path) -> Path:
    """Return the file whose modification time is that of the newest backup."""
    return database.with_name(database.name + ".copied")


def copied_at_s(database: Path) -> float | None:
    """Return the time of the newest backup in Unix seconds; None without one."""
    try:
        return copied_file(database).stat().st_mtime
    except OSError:
        return None


def put_beside(path: Path, target: Path, put: Callable[[Path, Path], object]) -> list[Path]:
    """*put* every complete file of the folders beside *path* into those beside *target*.

    Returns the files in these.
    """
    found = []
    for folder in KEPT_BESIDE:
        source, copies = folder(path), folder(target)
        for place in sorted(source.rglob("*")) if source.is_dir() else ():
            name = place.relative_to(source)
            # A file that is still being written has a temporary name.
            if place.is_file() and not any(part.startswith((".", "tmp")) for part in name.parts):
                (copies / name).parent.mkdir(parents=True, exist_ok=True)
                put(place, copies / name)
                found.append(copies / name)
    return found
