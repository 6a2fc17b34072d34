"""The databases of a page: found by run, kept open, and reopened if they changed."""

from __future__ import annotations

import contextlib
import sqlite3
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from msgspec import Struct

from tracepaper.replay.page.rollups import Rollups
from tracepaper.replay.run_columns import RunColumns
from tracepaper.storage.database.connection import ImmutableConnection
from tracepaper.storage.database.lock import is_rotating
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.run_views import RunViews
from tracepaper.storage.sweeps import StoredSweep, is_sweep, read_sweep
from tracepaper.strategies.errors import DataInvalid, TracepaperError

S = TypeVar("S", bound=Struct)
RUNS_KEPT: Final = 8


class HttpRefusal(TracepaperError):
    """A refused request: an HTTP *status* and one sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class OpenRun(NamedTuple):
    """A run with its reader and roll-ups."""

    database: Path
    run_id: str
    reader: Reader
    rollups: Rollups

    @property
    def columns(self) -> RunColumns:
        """The run as columns."""
        return self.rollups.columns

    @property
    def views(self) -> RunViews:
        """The run's documented views."""
        return self.rollups.columns.views


class _OpenDatabase(NamedTuple):
    identity: tuple[int, int]  # device and inode; another file may replace it
    reader: Reader


class Databases:
    """Databases open for reading; with *builds*, this process builds roll-ups."""

    def __init__(self, paths: Sequence[Path], *, served: str = "", builds: bool = True) -> None:
        every = tuple(dict.fromkeys(path.absolute() for path in paths))
        self.sweeps = tuple(path for path in every if is_sweep(path))
        self.paths = tuple(path for path in every if path not in self.sweeps)
        self.served = served
        self.status: Mapping[str, Any] | None = None  # of the served run's daemon, at a request
        self.verified: Mapping[str, Any] | None = (
            None  # parity from a verification that the page requested
        )
        self._builds = builds
        self._opened: dict[Path, _OpenDatabase] = {}
        self._rollups: OrderedDict[tuple[Path, str], Rollups] = OrderedDict()

    def reader(self, path: Path) -> Reader:
        """Return the reader of one database; raise ``DataInvalid`` if it cannot be read."""
        try:
            state = path.stat()
        except OSError as error:
            self._forget(path)
            raise DataInvalid(f"{path.name} cannot be read ({error.strerror}).") from None
        if is_rotating(path):
            self._forget(path)
            raise DataInvalid(f"{path.name} is being rotated; ask again in some seconds.")
        identity = (state.st_dev, state.st_ino)
        if (opened := self._opened.get(path)) is not None:
            connection = opened.reader.connection
            is_changed = isinstance(connection, ImmutableConnection) and connection.is_changed
            if opened.identity == identity and not is_changed:
                return opened.reader
            self._forget(path)
        try:
            reader = Reader.open(path)
        except DataInvalid as error:  # do not show folders of this machine
            raise DataInvalid(str(error).replace(str(path), path.name)) from None
        self._opened[path] = _OpenDatabase(identity, reader)
        return reader

    def find(self, run_id: str) -> OpenRun:
        """Return the run *run_id*; raise ``HttpRefusal`` if no database has it."""
        unread: Exception | None = None
        for path in self.paths:
            try:
                reader = self.reader(path)
                ids = reader.run_ids()
            except (DataInvalid, sqlite3.Error) as error:
                unread = error
                continue
            if run_id in ids:
                return self._shown(path, run_id, reader)
        if unread is not None and len(self.paths) == 1:
            raise unread
        raise HttpRefusal(404, "There is no such run; /api/v1/runs lists all.")

    def listed(self, path: Path, run_id: str) -> OpenRun:
        """Return the run of one database for a list, without evicting another run."""
        return self._shown(path, run_id, self.reader(path), is_listed=True)

    def sweep(self, sweep_id: str) -> StoredSweep:
        """Return the sweep *sweep_id*; raise ``HttpRefusal`` if no file has it."""
        for path in self.sweeps:
            with contextlib.suppress(DataInvalid):
                if (sweep := read_sweep(path)).sweep_id == sweep_id:
                    return sweep
        raise HttpRefusal(404, "There is no such sweep; /api/v1/runs lists all.")

    def _shown(
        self, path: Path, run_id: str, reader: Reader, *, is_listed: bool = False
    ) -> OpenRun:
        key = (path, run_id)
        rollups = self._rollups.get(key)
        if rollups is None:
            rollups = Rollups(path, RunColumns(reader, run_id), builds=self._builds)
            if not is_listed or len(self._rollups) < RUNS_KEPT:
                self._rollups[key] = rollups
            while len(self._rollups) > RUNS_KEPT:
                self._rollups.popitem(last=False)
        else:
            rollups.refresh()
            if not is_listed:
                self._rollups.move_to_end(key)
        return OpenRun(path, run_id, reader, rollups)

    def let_go(self, *, idle: bool) -> None:
        """Close the databases that are being rotated, and all if this process is *idle*."""
        for path in [path for path in self._opened if idle or is_rotating(path)]:
            self._forget(path)

    def _forget(self, path: Path) -> None:
        if (opened := self._opened.pop(path, None)) is not None:
            with contextlib.suppress(DataInvalid):  # it was written to and is read anew
                opened.reader.close()
        for key in [key for key in self._rollups if key[0] == path]:
            del self._rollups[key]


def as_number(value: float | str | None) -> float | None:
    """Return *value* as a float, or None."""
    return None if value is None else float(value)


def from_row(struct: type[S], row: Mapping[str, Any], **changed: Any) -> S:  # noqa: ANN401
    """Return a *row* of a view as *struct*; *changed* replaces or adds fields."""
    return struct(**{name: row[name] for name in struct.__struct_fields__ if name in row} | changed)
