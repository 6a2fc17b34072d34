"""A run's covariates: the configured file, its growth, and the journal of what was known when.

Live the file is read again as it grows; what became known at which close is kept as lines beside
the database, whose hash is an event of the run. A file that is no use leaves the bar without
covariates, so that the gate ``finite`` refuses it.

Each line is a row with the first close at which it counts, or that the file was no use from a close
on, or that it was of use again. The hash of the first so many lines stands in the run, so that a
line that is changed or missing is noticed.

The rules are docs/models.md, L64 and L65.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import structlog
from numpy.typing import NDArray

from tracepaper.daemon.config.loading import Config
from tracepaper.storage.covariates import (
    CovariateFile,
    GrowingFile,
    Growth,
    find_covariates,
    iso,
    keep_covariates,
    kept_covariates,
    read_covariates,
    write_whole,
)
from tracepaper.strategies.api.strategy import Forecaster
from tracepaper.strategies.covariates import (
    ALL_SYMBOLS,
    NO_COVARIATES,
    CovariateRows,
    CovariateSource,
    FixedCovariates,
    JoinedRows,
    joined_rows,
    takes_vectors,
    vector_scale,
)
from tracepaper.strategies.errors import CheckpointMismatch, DataInvalid
from tracepaper.strategies.types.market import CovariatesRead, Event

LIVE: Final = "live-"
"""What the names of journals begin with; those of files that stand are their hashes."""
_SUFFIX: Final = ".jsonl"


class KnownRow(NamedTuple):
    """A row as it became known."""

    from_ms: int  # the first close at which it counts
    time_ms: int
    symbol: str
    values: tuple[float, ...]


class CovariateFault(NamedTuple):
    """From a close on the file could not be used, for a reason; empty where it could again."""

    from_ms: int
    reason: str


class JournalHead(NamedTuple):
    """How far a journal goes, and the hash of all its lines up to there."""

    lines: int
    sha256: str


def journal_name(written: str, columns: Sequence[str]) -> str:
    """Return the name of the journal of a file that the configuration calls *written*."""
    key = json.dumps([written, *columns])
    return LIVE + hashlib.sha256(key.encode()).hexdigest()[:12]


class CovariateJournal:
    """The lines of one growing file; a ``CovariateSource`` of what was known at each bar."""

    def __init__(self, path: Path, columns: Sequence[str], *, lines: Sequence[bytes] = ()) -> None:
        """Begin with the stored *lines*; use ``open_journal``."""
        self.path = path
        self.columns = tuple(columns)
        self.name = path.name.removesuffix(_SUFFIX)
        self._digest = hashlib.sha256()
        self._heads: list[bytes] = []
        self._rows: dict[str, _Filled] = {}
        self._faults: list[CovariateFault] = []
        for line in lines:
            self._take(line)

    # ---------------------------------------------------------------- a ``CovariateSource``

    def known(self, symbol: str) -> CovariateRows:
        """Return the rows of *symbol*, or everyone's."""
        filled = self._rows.get(ALL_SYMBOLS, self._rows.get(symbol))
        return NO_COVARIATES if filled is None else filled.rows()

    def usable(self, closes_ms: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether the file could be used at each close."""
        if not self._faults:
            return np.ones(len(closes_ms), dtype=np.bool_)
        from_ms = np.maximum.accumulate([fault.from_ms for fault in self._faults])
        sound = np.array([True, *(not fault.reason for fault in self._faults)])
        usable: NDArray[np.bool_] = sound[np.searchsorted(from_ms, closes_ms, side="right")]
        return usable

    def at(self, symbol: str, closes_ms: NDArray[np.int64]) -> JoinedRows:
        """Return the rows of *symbol* that were known at these closes."""
        return joined_rows(self.known(symbol), self.usable(closes_ms), closes_ms)

    def look(self, close_ms: int) -> None:
        """Do nothing: it holds what was known."""

    # ---------------------------------------------------------------- the file

    @property
    def head(self) -> JournalHead:
        """How far it goes; another thread may append meanwhile."""
        lines = len(self._heads)
        return JournalHead(lines, self._heads[lines - 1].hex() if lines else "")

    @property
    def fault(self) -> str:
        """Why the file cannot be used now; empty where it can."""
        return self._faults[-1].reason if self._faults else ""

    @property
    def symbols(self) -> Collection[str]:
        """The symbols that have rows."""
        return self._rows.keys()

    def newest(self, symbol: str) -> int | None:
        """Return the time of the newest row of *symbol*; None where there is none."""
        filled = self._rows.get(symbol)
        return None if filled is None else int(filled.rows().time_ms[-1])

    def append(self, entries: Sequence[KnownRow | CovariateFault]) -> None:
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
                f"{self.path} does not hold the {head.lines:,} lines of covariates that run "
                f"{run_id} knew; restore it beside the database."
            )

    def _take(self, line: bytes) -> None:
        self._digest.update(line)
        self._heads.append(self._digest.digest())
        entry = json.loads(line)
        match entry:
            case {"columns": _}:
                pass
            case {"fault": reason}:
                self._faults.append(CovariateFault(entry["from"], reason))
            case _:
                row = KnownRow(
                    entry["from"], entry["time"], entry["symbol"], tuple(entry["values"])
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

    def rows(self) -> CovariateRows:
        """Return them; more may be added later, which these do not show."""
        count = self._count
        return CovariateRows(self._times[0, :count], self._times[1, :count], self._values[:count])


def open_journal(database: Path, name: str, columns: Sequence[str]) -> CovariateJournal:
    """Return the journal *name* beside *database*, with its whole lines; a new one where none is.

    A line that was being written when the machine stopped is taken away. Raises
    ``CheckpointMismatch`` for one that cannot be read.
    """
    path = kept_covariates(database) / (name + _SUFFIX)
    raw = path.read_bytes() if path.is_file() else b""
    whole = raw[: raw.rfind(b"\n") + 1]
    if len(whole) < len(raw):
        os.truncate(path, len(whole))
    return _read(path, columns, whole)


def find_journal(database: Path, name: str, columns: Sequence[str]) -> CovariateJournal:
    """Return the journal of a run of *database*; raise ``CheckpointMismatch`` if it is gone."""
    path = kept_covariates(database) / (name + _SUFFIX)
    if not path.is_file():
        raise CheckpointMismatch(
            f"The covariates that the run used are not kept any more ({path} is missing); restore "
            "the file beside the database."
        )
    raw = path.read_bytes()
    return _read(path, columns, raw[: raw.rfind(b"\n") + 1])


def keep_journal(journal: CovariateJournal, database: Path) -> None:
    """Copy *journal* beside *database*, for a run that is fed with another's record.

    An existing one that is the beginning of *journal*, or begins with it, is the same. Raises
    ``CheckpointMismatch`` for another.
    """
    path = kept_covariates(database) / (journal.name + _SUFFIX)
    content = journal.path.read_bytes()
    existing = path.read_bytes() if path.exists() else b""
    if existing.startswith(content):
        return
    if not content.startswith(existing):
        raise CheckpointMismatch(
            f"{path} holds other covariates than those of the run that is replayed; give another "
            "database."
        )
    write_whole(content, path)


def _read(path: Path, columns: Sequence[str], whole: bytes) -> CovariateJournal:
    lines = whole.splitlines(keepends=True)
    try:
        if not lines or json.loads(lines[0])["columns"] == list(columns):
            return CovariateJournal(path, columns, lines=lines)
    except (ValueError, KeyError, TypeError):
        pass
    raise CheckpointMismatch(
        f"{path} was changed: it is no journal of these covariates; restore it beside the database."
    )


def _line(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def _document(entry: KnownRow | CovariateFault) -> dict[str, Any]:
    if isinstance(entry, CovariateFault):
        return {"from": entry.from_ms, "fault": entry.reason}
    return {
        "from": entry.from_ms,
        "time": entry.time_ms,
        "symbol": entry.symbol,
        "values": list(entry.values),
    }


log = structlog.get_logger("vectors")

VECTORS: Final = "vectors"
"""The key of their file's name among the libraries of a run."""


class GrowingCovariates:
    """A file that grows, read again before a bar is answered; a ``CovariateSource``.

    A row counts from the close at which it was first read, or from its time where that is later.
    One with a time before the newest known one comes too late for any bar.
    """

    def __init__(self, path: Path, journal: CovariateJournal) -> None:
        """Go on with *journal*; without one, take all that *path* holds as known at its times.

        Raises ``DataInvalid`` where there is neither a journal nor a file that can be believed.
        """
        self.name = journal.name
        self._file, self._journal = GrowingFile(path), journal
        self._looked_ms = -math.inf
        self._reported = JournalHead(0, "")
        if not journal.head.lines:
            self._file.has_changed()
            growth = self._file.read()
            journal.append(self._new(growth, 0))
            self._file.take(growth)

    def known(self, symbol: str) -> CovariateRows:
        """Return the rows of *symbol*, or everyone's."""
        return self._journal.known(symbol)

    def usable(self, closes_ms: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether the file could be used at each close.

        Rows that are read later count from a later close than any of these.
        """
        if len(closes_ms):
            self._looked_ms = max(self._looked_ms, int(closes_ms.max()))
        return self._journal.usable(closes_ms)

    def at(self, symbol: str, closes_ms: NDArray[np.int64]) -> JoinedRows:
        """Return the rows of *symbol* that are known at these closes."""
        return joined_rows(self.known(symbol), self.usable(closes_ms), closes_ms)

    def look(self, close_ms: int) -> None:
        """Read the file again where it changed or could not be used, once a close."""
        if close_ms <= self._looked_ms:
            return
        self._looked_ms = close_ms
        if not self._file.has_changed() and not self._journal.fault:
            return
        entries: list[KnownRow | CovariateFault] = []
        growth, reason = None, ""
        try:
            growth = self._file.read()
            entries += self._new(growth, close_ms)
        except DataInvalid as error:
            growth, reason = None, str(error)
        if reason != self._journal.fault:
            entries.insert(0, CovariateFault(close_ms, reason))
            log.warning(reason or "covariates are of use again", file=str(self._file.path))
        self._keep(growth, entries)

    def _keep(self, growth: Growth | None, entries: Sequence[KnownRow | CovariateFault]) -> None:
        """Store the new entries; where that fails none of them is known until a later close."""
        try:
            if entries:
                self._journal.append(entries)
        except DataInvalid as error:
            log.warning(str(error), file=str(self._file.path))
            self._file.forget()
            return
        if growth is not None:
            self._file.take(growth)

    def require(self, head: JournalHead, run_id: str) -> None:
        """Raise ``CheckpointMismatch`` unless the lines that run *run_id* knew are there."""
        self._journal.require(head, run_id)

    def newly(self, at: Event) -> CovariatesRead | None:
        """Return the head of the journal, at the time of *at*, where it changed since the last."""
        head = self._journal.head
        if head == self._reported:
            return None
        self._reported = head
        return CovariatesRead(self.name, head.lines, head.sha256, at.market_ms, at.seen_ms)

    def _new(self, growth: Growth, close_ms: int) -> list[KnownRow]:
        """Return the rows that are new at *close_ms*; raise ``DataInvalid`` where one changed."""
        self._require_same_symbols(growth.file)
        new: list[KnownRow] = []
        for symbol, rows in growth.file.chosen(self._journal.columns).items():
            newest = self._journal.newest(symbol)
            if growth.is_whole:
                self._require_unchanged(symbol, rows)
            start = 0 if newest is None else int(np.searchsorted(rows.time_ms, newest, "right"))
            new += [
                KnownRow(max(at, close_ms), at, symbol, tuple(values))
                for at, values in zip(
                    rows.time_ms[start:].tolist(), rows.values[start:].tolist(), strict=True
                )
            ]
        return new

    def _require_same_symbols(self, file: CovariateFile) -> None:
        """Raise ``DataInvalid`` where the file has got or lost its column of symbols."""
        symbols = self._journal.symbols
        if symbols and file.rows and (ALL_SYMBOLS in symbols) != (ALL_SYMBOLS in file.rows):
            raise DataInvalid(
                f"{self._file.path} has got or lost the column symbol; a file that is traded by "
                "may only grow, so restore it."
            )

    def _require_unchanged(self, symbol: str, rows: CovariateRows) -> None:
        """Raise ``DataInvalid`` where a known row has other values now."""
        known = self._journal.known(symbol)
        if not len(known) or not len(rows):
            return
        place = np.searchsorted(rows.time_ms, known.time_ms)
        place[place == len(rows)] = 0
        stands = rows.time_ms[place] == known.time_ms
        differ = stands & (known.values != rows.values[place]).any(axis=1)
        if differ.any():
            raise DataInvalid(
                f"{self._file.path} has other values at {iso(int(known.time_ms[differ][0]))} than "
                "when that row was read; a file that is traded by may only grow, so restore it."
            )


def covariates_path(config: Config, written: str) -> Path:
    """Return the file: beside the configuration where it is there, else from the working folder."""
    beside = None if config.folder is None else config.folder / written
    return beside if beside is not None and beside.is_file() else Path(written)


def configured_covariates(
    config: Config, card: Mapping[str, Any], *, beside: Path | None, growing: bool
) -> CovariateSource | None:
    """Return the covariates that ``[model] covariates`` names, in the columns of *card*.

    They are kept beside the database *beside*, as a journal where they are *growing*. Raises
    ``DataInvalid`` for a file that cannot be used, or lacks a column, or, where it is not growing,
    a symbol.
    """
    if config.model.covariates is None:
        return None
    path, columns = covariates_path(config, config.model.covariates), _columns(card)
    symbols = config.market.symbols
    if growing and beside is not None and columns:
        name = journal_name(config.model.covariates, columns)
        grown = GrowingCovariates(path, open_journal(beside, name, columns))
        _require_symbols(path, grown, symbols, growing=True)
        return grown
    file = read_covariates(path)
    source = file.standing(columns)
    _require_symbols(path, source, symbols, growing=growing)
    if beside is not None:
        keep_covariates(file, beside)
    return source


def _require_symbols(
    path: Path,
    source: FixedCovariates | GrowingCovariates,
    symbols: Sequence[str],
    *,
    growing: bool,
) -> None:
    """Raise ``DataInvalid`` for a symbol without a row; of a *growing* file only log it."""
    for symbol in symbols:
        if len(source.known(symbol)):
            continue
        if not growing:
            raise DataInvalid(
                f"{path} has no row of {symbol}; add some, or leave the column symbol out where "
                "rows are everyone's."
            )
        log.warning("no row yet, so its bars are held", symbol=symbol, file=str(path))


def covariates_of(forecaster: Forecaster | None) -> CovariateSource | None:
    """Return the covariates of *forecaster*; None where it has none."""
    source: CovariateSource | None = getattr(forecaster, VECTORS, None)
    return source


def newly_known(forecaster: Forecaster | None) -> Callable[[Event], CovariatesRead | None]:
    """Return a function that gives the new heads of the forecaster's journal, as run events."""
    source = covariates_of(forecaster)
    return source.newly if isinstance(source, GrowingCovariates) else lambda _at: None


def require_known(
    source: CovariateSource | None, reading: CovariatesRead | None, run_id: str
) -> None:
    """Raise ``CheckpointMismatch`` unless *source* holds the lines that *reading* names."""
    if reading is not None and isinstance(source, CovariateJournal | GrowingCovariates):
        source.require(JournalHead(reading.lines, reading.sha256), run_id)


def recorded_covariates(
    database: Path, kept_as: str, card: Mapping[str, Any], *, into: Path | None = None
) -> CovariateSource | None:
    """Return the covariates that a run of *database* kept, for the model of *card*; None for none.

    They are kept beside *into* as well. Raises ``CheckpointMismatch`` where they are gone or
    changed.
    """
    columns = _columns(card)
    if not kept_as or not columns:
        return None
    if kept_as.startswith(LIVE):
        journal = find_journal(database, kept_as, columns)
        if into is not None:
            keep_journal(journal, into)
        return journal
    file = find_covariates(database, kept_as)
    if into is not None:
        keep_covariates(file, into)
    return file.standing(columns)


def kept_covariates_of(libraries: str) -> str:
    """Return the name of a run's kept covariates, by its ``libraries``; empty where it has none."""
    try:
        versions = json.loads(libraries or "{}")
    except ValueError:  # the row was changed
        return ""
    return str(versions.get(VECTORS, "")) if isinstance(versions, dict) else ""


def covariates_kept_as(forecaster: Forecaster | None) -> str:
    """Return the name of the forecaster's kept covariates; empty where it has none."""
    source = covariates_of(forecaster)
    return "" if source is None else source.name


def _columns(card: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the columns that the model of *card* was trained with; none for one without."""
    return vector_scale(card).columns if takes_vectors(card) else ()
