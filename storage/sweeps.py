"""Files of sweeps: their cells, so that they can resume, and the registry of all trials.

Both are separate SQLite files, no records of runs.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from tracepaper.storage.database.connection import is_busy_error
from tracepaper.storage.database.remedies import primary_code, refusal, remedy_of
from tracepaper.storage.paths import path_of
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid

REGISTRY_VARIABLE: Final = "TRACEPAPER_TRIALS"
BUSY_S: Final = 20.0
_SWEEP_ID: Final = 0x74705357
_ID_AT: Final = 68
"""The offset of the application id in an SQLite file."""
_TRIALS_ID: Final = 0x7470544C

_SWEEP: Final = """
CREATE TABLE IF NOT EXISTS sweep (
  id INTEGER PRIMARY KEY CHECK (id = 1), content TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS cells (
  span INTEGER NOT NULL, part TEXT NOT NULL, number INTEGER NOT NULL, content TEXT NOT NULL,
  PRIMARY KEY (span, part, number)
) STRICT;
CREATE TABLE IF NOT EXISTS document (
  id INTEGER PRIMARY KEY CHECK (id = 1), content TEXT NOT NULL
) STRICT;
"""
_TRIALS: Final = """
CREATE TABLE IF NOT EXISTS tried (
  trial_sha256 TEXT NOT NULL, symbol TEXT NOT NULL, interval_ms INTEGER NOT NULL,
  from_ms INTEGER NOT NULL, until_ms INTEGER NOT NULL, strategy TEXT NOT NULL,
  sharpe_day REAL, days REAL, at_ms INTEGER NOT NULL,
  PRIMARY KEY (trial_sha256, symbol, interval_ms, from_ms, until_ms)
) STRICT;
"""

CellKey = tuple[int, str, int]
"""A run of a sweep: its span, the span's part (whole, train or test), and its number."""


class TriedData(NamedTuple):
    """What trials are made on; two share data if they share time of a symbol at one interval."""

    symbols: tuple[str, ...]
    interval_ms: int
    from_ms: int
    until_ms: int


class Trials(NamedTuple):
    """The number of trials on the same data, and the daily Sharpe ratios that are defined."""

    number: int
    sharpe_day: tuple[float, ...]


class SweepFile:
    """The cells of one sweep in *path*, or in memory for None; open in one process at a time.

    *header* describes the sweep. A file with another header is rejected with the first key that
    differs; one with the same header is resumed.
    """

    def __init__(self, path: Path | None, header: Mapping[str, Any]) -> None:
        self.path = path
        wanted = json.loads(json.dumps(header))
        self._db = _open(path, _SWEEP_ID, "sweep", _SWEEP)
        with _explaining_errors(path):
            # Lock the file until it is closed: two processes would make every run twice.
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._db.execute("BEGIN EXCLUSIVE")
            row = self._db.execute("SELECT content FROM sweep").fetchone()
            if row is None:
                self._db.execute("INSERT INTO sweep VALUES (1, ?)", (json.dumps(wanted),))
            self._db.commit()
        self._is_new = row is None
        if row is not None and (stored := json.loads(row[0])) != wanted:
            self.close()
            differing = next(  # an option that was left out now is a key of *stored* alone
                name for name in (*wanted, *stored) if stored.get(name) != wanted.get(name)
            )
            raise ConfigInvalid(
                f"{path} holds a sweep with another {differing.replace('_', ' ')}; name another "
                "file, or give the same options as for that sweep."
            )

    def cells(self) -> Iterator[tuple[CellKey, dict[str, Any]]]:
        """Yield every stored cell, in order."""
        rows = self._db.execute(
            "SELECT span, part, number, content FROM cells ORDER BY span, part DESC, number"
        )
        for span, part, number, content in rows.fetchall():
            yield (span, part, number), json.loads(content)

    def store(self, key: CellKey, content: Mapping[str, Any]) -> None:
        """Store and commit one cell."""
        with _explaining_errors(self.path):
            self._db.execute("INSERT INTO cells VALUES (?, ?, ?, ?)", (*key, json.dumps(content)))
            self._db.commit()

    def keep_document(self, content: Mapping[str, Any]) -> None:
        """Store the document of the finished sweep, which ``tracepaper ui`` shows."""
        with _explaining_errors(self.path):
            self._db.execute(
                "INSERT OR REPLACE INTO document VALUES (1, ?)", (json.dumps(content),)
            )
            self._db.commit()

    def close(self) -> None:
        """Close the file, which releases its lock."""
        self._db.close()

    def __enter__(self) -> Self:
        """Return the file itself."""
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """Close the file; delete a new one if an error came before its first cell."""
        is_empty = error is not None and self._is_new and next(self.cells(), None) is None
        self.close()
        if is_empty and self.path is not None:
            self.path.unlink()


class StoredSweep(NamedTuple):
    """A sweep read from its file; ``document`` is None until all its runs are done."""

    sweep_id: str
    header: dict[str, Any]
    cells: int
    document: dict[str, Any] | None


def is_sweep(path: Path) -> bool:
    """Return whether the file at *path* has the application id of a sweep."""
    try:
        with path.open("rb") as file:
            head = file.read(_ID_AT + 4)
    except OSError:
        return False
    return head.startswith(b"SQLite format 3\0") and head[_ID_AT:] == _SWEEP_ID.to_bytes(4, "big")


_UNREAD: Final = {
    sqlite3.SQLITE_BUSY: "it is being made",
    sqlite3.SQLITE_READONLY: "it was killed as it stored a run; start it again, which resumes it",
}
"""Reasons, by SQLite's code; a reader may not undo the write that a kill cut off."""


def read_sweep(path: Path) -> StoredSweep:
    """Read the sweep in *path*; raise ``DataInvalid`` if it cannot be read."""
    try:
        with closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=0)
        ) as db:
            (header,) = db.execute("SELECT content FROM sweep").fetchone()
            (cells,) = db.execute("SELECT count(*) FROM cells").fetchone()
            row = db.execute("SELECT content FROM document").fetchone()
        return StoredSweep(
            hashlib.sha256(header.encode()).hexdigest()[:16],
            json.loads(header),
            cells,
            None if row is None else json.loads(row[0]),
        )
    except (sqlite3.Error, ValueError, TypeError) as error:
        reason = _UNREAD.get(primary_code(error) or 0, str(error))
        raise DataInvalid(f"The sweep {path.name} cannot be read ({reason}).") from None


class TrialRegistry:
    """Every trial of every sweep of this user, by the data it was made on; each counts once.

    A trial is one configuration of one strategy, however many sweeps ran it. Every process adds to
    the same file.
    """

    def __init__(self) -> None:
        self.path = registry_path()
        with _explaining_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        self._db = _open(self.path, _TRIALS_ID, "registry of trials", _TRIALS)

    def __enter__(self) -> Self:
        """Return the registry itself."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Close it."""
        self._db.close()

    def add(
        self,
        data: TriedData,
        trial_sha256: str,
        *,
        strategy: str,
        sharpe_day: float | None,
        days: float | None,
        at_ms: int,
    ) -> None:
        """Count one trial, unless it was counted before."""
        symbols, *span = data
        rows = [
            (trial_sha256, symbol, *span, strategy, sharpe_day, days, at_ms) for symbol in symbols
        ]
        with _explaining_errors(self.path):
            self._db.executemany(
                "INSERT OR IGNORE INTO tried VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows
            )
            self._db.commit()

    def trials(self, data: TriedData) -> Trials:
        """Return the trials on data that share time of a symbol with *data*, each once."""
        marks = ", ".join("?" * len(data.symbols))
        rows = self._db.execute(
            "SELECT sharpe_day, max(at_ms) FROM tried WHERE interval_ms = ? AND from_ms < ? "
            f"AND until_ms > ? AND symbol IN ({marks}) GROUP BY trial_sha256 ORDER BY trial_sha256",
            (data.interval_ms, data.until_ms, data.from_ms, *data.symbols),
        ).fetchall()
        return Trials(len(rows), tuple(value for value, _ in rows if value is not None))


def user_folder(variable: str, below_home: str) -> Path:
    """Return tracepaper's folder in that of the environment *variable*, else in the user's home.

    Raises ``ConfigInvalid`` if neither is known, such as for a user id without an account.
    """
    if named := os.environ.get(variable):
        return path_of(named) / "tracepaper"
    try:
        return Path.home() / below_home / "tracepaper"
    except RuntimeError:
        raise ConfigInvalid(
            f"This user has no home folder: set {variable} (or HOME) to a folder that it can write."
        ) from None


def registry_path() -> Path:
    """Return the file of this user's registry (docs/python.md, Y17)."""
    if named := os.environ.get(REGISTRY_VARIABLE):
        return path_of(named)
    return user_folder("XDG_STATE_HOME", ".local/state") / "trials.db"


def _open(path: Path | None, application: int, noun: str, tables: str) -> sqlite3.Connection:
    """Open *path*; create its tables if it is new, and reject a file of another kind."""
    with _explaining_errors(path):
        db = sqlite3.connect(":memory:" if path is None else path, timeout=BUSY_S)
    try:
        with _explaining_errors(path):
            db.execute("BEGIN IMMEDIATE")
            (application_id,) = db.execute("PRAGMA application_id").fetchone()
            (table_count,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if not table_count and not application_id:
                db.execute(f"PRAGMA application_id = {application}")
                application_id = application
            if application_id == application:
                for statement in tables.split(";\n"):
                    db.execute(statement)
            db.commit()
    except BaseException:
        db.close()
        raise
    if application_id != application:
        db.close()
        raise DataInvalid(f"{path} is no {noun}; name another file.")
    return db


@contextmanager
def _explaining_errors(path: Path | None) -> Iterator[None]:
    """Turn errors of the block into one sentence with the reason why *path* cannot be used."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if is_busy_error(error):
            raise ConfigInvalid(
                f"{path} is in use by another sweep; wait for it, or name another file."
            ) from None
        if remedy_of(error).may_heal:
            raise refusal(path or "The sweep", error) from None
        raise ConfigInvalid(f"{path} cannot be used ({error}); name another file.") from None
    except OSError as error:
        then = f", or for the registry of trials set {REGISTRY_VARIABLE}"
        raise refusal(path or "The sweep", error, then) from None
