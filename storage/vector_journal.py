"""What became known of a file of vectors that grows: lines beside the database, appended alone.

Each line is a row with the first close at which it counts, or that the file was no use from a close
on, or that it was of use again. The hash of the first so many lines stands in the run, so that a
line that is changed or missing is noticed.

The rule is docs/models.md, L65.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracepaper.storage.vectors import kept_vectors, write_whole
from tracepaper.strategies.errors import CheckpointMismatch, DataInvalid
from tracepaper.strategies.vectors import ALL_SYMBOLS, NO_VECTORS, VectorRows

LIVE: Final = "live-"
"""What the names of journals begin with; those of files that stand are their hashes."""
_SUFFIX: Final = ".jsonl"


class KnownRow(NamedTuple):
    """A row as it became known."""

    from_ms: int  # the first close at which it counts
    time_ms: int
    symbol: str
    values: tuple[float, ...]


class VectorFault(NamedTuple):
    """From a close on the file was no use, for a reason; empty where it was again."""

    from_ms: int
    reason: str


class JournalHead(NamedTuple):
    """How far a journal goes, and the hash of all its lines up to there."""

    lines: int
    sha256: str


def journal_name(written: str, columns: Sequence[str]) -> str:
    """Return the name of the journal of a file as the configuration names it."""
    said = json.dumps([written, *columns])
    return LIVE + hashlib.sha256(said.encode()).hexdigest()[:12]


class VectorJournal:
    """The lines of one growing file; a ``VectorSource`` of what was known at each bar."""

    def __init__(self, path: Path, columns: Sequence[str], *, lines: Sequence[bytes] = ()) -> None:
        """Begin with *lines* that are stored; use ``open_journal``."""
        self.path = path
        self.columns = tuple(columns)
        self.name = path.name.removesuffix(_SUFFIX)
        self._digest = hashlib.sha256()
        self._heads: list[bytes] = []
        self._rows: dict[str, _Filled] = {}
        self._faults: list[VectorFault] = []
        for line in lines:
            self._take(line)

    # ---------------------------------------------------------------- a ``VectorSource``

    def known(self, symbol: str) -> VectorRows:
        """Return the rows of *symbol*, or everyone's."""
        filled = self._rows.get(ALL_SYMBOLS, self._rows.get(symbol))
        return NO_VECTORS if filled is None else filled.rows()

    def usable(self, closes_ms: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether the file was of use at each close."""
        if not self._faults:
            return np.ones(len(closes_ms), dtype=np.bool_)
        from_ms = np.maximum.accumulate([fault.from_ms for fault in self._faults])
        sound = np.array([True, *(not fault.reason for fault in self._faults)])
        found: NDArray[np.bool_] = sound[np.searchsorted(from_ms, closes_ms, side="right")]
        return found

    def look(self, close_ms: int) -> None:
        """Do nothing: it holds what was known."""

    # ---------------------------------------------------------------- what is kept

    @property
    def head(self) -> JournalHead:
        """How far it goes; another thread may append meanwhile."""
        lines = len(self._heads)
        return JournalHead(lines, self._heads[lines - 1].hex() if lines else "")

    @property
    def fault(self) -> str:
        """Why the file is no use now; empty where it is."""
        return self._faults[-1].reason if self._faults else ""

    @property
    def symbols(self) -> Collection[str]:
        """Whose rows it has."""
        return self._rows.keys()

    def newest(self, symbol: str) -> int | None:
        """Return the time of the newest row of *symbol*; None where there is none."""
        filled = self._rows.get(symbol)
        return None if filled is None else int(filled.rows().time_ms[-1])

    def append(self, entries: Sequence[KnownRow | VectorFault]) -> None:
        """Store *entries* for good, then know them; raise ``DataInvalid`` where that fails.

        Nothing of them is stored then.
        """
        columns = [] if self._heads else [_line({"columns": list(self.columns)})]
        lines = [*columns, *(_line(_document(entry)) for entry in entries)]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                size = file.tell()
                try:
                    file.writelines(lines)
                    file.flush()
                    os.fsync(file.fileno())
                except OSError:
                    os.truncate(self.path, size)
                    raise
        except OSError as error:
            raise DataInvalid(
                f"{self.path} cannot be written ({error.strerror}); make room for it."
            ) from error
        for line in lines:
            self._take(line)

    def require(self, head: JournalHead, run_id: str) -> None:
        """Raise ``CheckpointMismatch`` unless its first lines are those that a run knew."""
        heads = self._heads
        if not 0 < head.lines <= len(heads) or heads[head.lines - 1].hex() != head.sha256:
            raise CheckpointMismatch(
                f"{self.path} does not hold the {head.lines:,} lines of vectors that run {run_id} "
                "knew; restore it beside the database."
            )

    def _take(self, line: bytes) -> None:
        self._digest.update(line)
        self._heads.append(self._digest.digest())
        found = json.loads(line)
        match found:
            case {"columns": _}:
                pass
            case {"fault": reason}:
                self._faults.append(VectorFault(found["from"], reason))
            case _:
                row = KnownRow(
                    found["from"], found["time"], found["symbol"], tuple(found["values"])
                )
                self._rows.setdefault(row.symbol, _Filled(len(self.columns))).add(row)


class _Filled:
    """The rows of one symbol, in arrays that double where they are full."""

    def __init__(self, columns: int) -> None:
        self._count = 0
        self._times = np.empty((2, 64), dtype=np.int64)  # its own, and from when it counts
        self._values = np.empty((64, columns), dtype=np.float64)

    def add(self, row: KnownRow) -> None:
        """Take in one row; ``from_ms`` never falls."""
        at = self._count
        if at == len(self._values):
            self._times = np.concatenate([self._times, self._times], axis=1)
            self._values = np.concatenate([self._values, self._values])
        before = self._times[1, at - 1] if at else row.from_ms
        self._times[:, at] = row.time_ms, max(row.from_ms, before)
        self._values[at] = row.values
        self._count += 1

    def rows(self) -> VectorRows:
        """Return them; more may be added later, which these do not show."""
        count = self._count
        return VectorRows(self._times[0, :count], self._times[1, :count], self._values[:count])


def open_journal(database: Path, name: str, columns: Sequence[str]) -> VectorJournal:
    """Return the journal *name* beside *database*, with its whole lines; a new one where none is.

    A line that was being written when the machine stopped is taken away. Raises
    ``CheckpointMismatch`` for one that cannot be read.
    """
    path = kept_vectors(database) / (name + _SUFFIX)
    raw = path.read_bytes() if path.is_file() else b""
    whole = raw[: raw.rfind(b"\n") + 1]
    if len(whole) < len(raw):
        os.truncate(path, len(whole))
    return _read(path, columns, whole)


def find_journal(database: Path, name: str, columns: Sequence[str]) -> VectorJournal:
    """Return the journal of a run of *database*; raise ``CheckpointMismatch`` if it is gone."""
    path = kept_vectors(database) / (name + _SUFFIX)
    if not path.is_file():
        raise CheckpointMismatch(
            f"The vectors that the run used are not kept any more ({path} is missing); restore the "
            "file beside the database."
        )
    raw = path.read_bytes()
    return _read(path, columns, raw[: raw.rfind(b"\n") + 1])


def keep_journal(journal: VectorJournal, database: Path) -> None:
    """Copy *journal* beside *database*, for a run that is fed with another's record.

    One that is there and is the beginning of *journal*, or begins with it, is the same. Raises
    ``CheckpointMismatch`` for another.
    """
    kept = kept_vectors(database) / (journal.name + _SUFFIX)
    given = journal.path.read_bytes()
    there = kept.read_bytes() if kept.exists() else b""
    if there.startswith(given):
        return
    if not given.startswith(there):
        raise CheckpointMismatch(
            f"{kept} holds other vectors than those of the run that is replayed; give another "
            "database."
        )
    write_whole(given, kept)


def _read(path: Path, columns: Sequence[str], whole: bytes) -> VectorJournal:
    lines = whole.splitlines(keepends=True)
    try:
        if not lines or json.loads(lines[0])["columns"] == list(columns):
            return VectorJournal(path, columns, lines=lines)
    except (ValueError, KeyError, TypeError):
        pass
    raise CheckpointMismatch(
        f"{path} was changed: it is no journal of these vectors; restore it beside the database."
    )


def _line(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def _document(entry: KnownRow | VectorFault) -> dict[str, Any]:
    if isinstance(entry, VectorFault):
        return {"from": entry.from_ms, "fault": entry.reason}
    return {
        "from": entry.from_ms,
        "time": entry.time_ms,
        "symbol": entry.symbol,
        "values": list(entry.values),
    }
