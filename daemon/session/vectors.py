"""Vectors that a user supplies, for the model of a run: as configured, or as a run kept them.

Live the file is read again as it grows; what became known at which close is kept as lines beside
the database, whose hash is an event of the run. A file that is no use leaves the bar without
vectors, so that the gate ``finite`` refuses it.

The rules are docs/models.md, L64 and L65.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import structlog
from numpy.typing import NDArray

from tracepaper.daemon.config.loading import Config
from tracepaper.daemon.session.outside import Outside
from tracepaper.storage.vector_growth import GrowingFile, Growth
from tracepaper.storage.vector_journal import (
    LIVE,
    JournalHead,
    KnownRow,
    VectorFault,
    VectorJournal,
    find_journal,
    journal_name,
    keep_journal,
    open_journal,
)
from tracepaper.storage.vectors import (
    VectorFile,
    find_vectors,
    iso,
    keep_vectors,
    read_vectors,
)
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.strategy import Forecaster
from tracepaper.strategies.types import Reading
from tracepaper.strategies.vectors import ALL_SYMBOLS, VectorRows, VectorSource

log = structlog.get_logger("vectors")

VECTORS: Final = "vectors"
"""The key, among what else an answer follows from, of what they are kept as."""


class GrowingVectors:
    """A file that grows, read again before a bar is answered; a ``VectorSource``.

    A row counts from the close at which it was first read, or from its time where that is later.
    One with a time before the newest that is known comes too late to be held by any bar.
    """

    def __init__(self, path: Path, journal: VectorJournal) -> None:
        """Go on with *journal*; without one, take all that *path* holds as known at its times.

        Raises ``DataInvalid`` where there is neither a journal nor a file that can be believed.
        """
        self.name = journal.name
        self._file, self._journal = GrowingFile(path), journal
        self._looked_ms = -math.inf
        self._told = JournalHead(0, "")
        if not journal.head.lines:
            self._file.has_changed()
            growth = self._file.read()
            journal.append(self._new(growth, 0))
            self._file.take(growth)

    def known(self, symbol: str) -> VectorRows:
        """Return the rows of *symbol*, or everyone's."""
        return self._journal.known(symbol)

    def usable(self, closes_ms: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether the file was of use at each close; these are answered from now on.

        What is read later counts from a later close than any of them.
        """
        if len(closes_ms):
            self._looked_ms = max(self._looked_ms, int(closes_ms.max()))
        return self._journal.usable(closes_ms)

    def look(self, close_ms: int) -> None:
        """Read the file again where it changed or was no use, once a close."""
        if close_ms <= self._looked_ms:
            return
        self._looked_ms = close_ms
        if not self._file.has_changed() and not self._journal.fault:
            return
        entries: list[KnownRow | VectorFault] = []
        growth, reason = None, ""
        try:
            growth = self._file.read()
            entries += self._new(growth, close_ms)
        except DataInvalid as error:
            growth, reason = None, str(error)
        if reason != self._journal.fault:
            entries.insert(0, VectorFault(close_ms, reason))
            log.warning(reason or "vectors are of use again", file=str(self._file.path))
        self._keep(growth, entries)

    def _keep(self, growth: Growth | None, entries: Sequence[KnownRow | VectorFault]) -> None:
        """Store what is new; where that fails nothing of it is known, until a later close."""
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

    def newly(self) -> Sequence[Outside]:
        """Return how far the vectors are known, where that changed since the call before."""
        head = self._journal.head
        if head == self._told:
            return ()
        self._told = head
        return (Outside(VECTORS, f"{self.name} {head.lines} {head.sha256}"),)

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

    def _require_same_symbols(self, file: VectorFile) -> None:
        """Raise ``DataInvalid`` where rows were everyone's and are some symbols' now, or not."""
        known = self._journal.symbols
        if known and file.rows and (ALL_SYMBOLS in known) != (ALL_SYMBOLS in file.rows):
            raise DataInvalid(
                f"{self._file.path} has got or lost the column symbol; a file that is traded by "
                "may only grow, so restore it."
            )

    def _require_unchanged(self, symbol: str, rows: VectorRows) -> None:
        """Raise ``DataInvalid`` where a row that was known has other values now."""
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


def refuse_vectors(config: Config) -> None:
    """Raise ``ConfigInvalid`` where ``[model] vectors`` stands beside what cannot use them."""
    if config.model.vectors is None:
        return
    if config.model.own_class:
        raise ConfigInvalid(
            "[model] vectors are a checkpoint's; take them out, and name the file of a class by "
            "[model] files."
        )
    if config.model.retrain is not None:
        raise ConfigInvalid(
            "A model with [model] vectors is not retrained in service; take out [model] retrain."
        )


def vectors_path(config: Config, written: str) -> Path:
    """Return the file: beside the configuration where it is there, else from the working folder."""
    beside = None if config.folder is None else config.folder / written
    return beside if beside is not None and beside.is_file() else Path(written)


def configured_vectors(
    config: Config, card: Mapping[str, Any], *, beside: Path | None, growing: bool
) -> VectorSource | None:
    """Return the vectors that ``[model] vectors`` names, of the columns that *card* says.

    They are kept beside the database *beside*, as a journal where they are *growing*. Raises
    ``DataInvalid`` for a file that cannot be believed, or lacks a column, or, where it stands, a
    symbol.
    """
    if config.model.vectors is None:
        return None
    path, columns = vectors_path(config, config.model.vectors), _columns(card)
    symbols = config.market.symbols
    if growing and beside is not None and columns:
        name = journal_name(config.model.vectors, columns)
        grown = GrowingVectors(path, open_journal(beside, name, columns))
        _require_symbols(path, grown, symbols, growing=True)
        return grown
    file = read_vectors(path)
    found = file.standing(columns)
    _require_symbols(path, found, symbols, growing=growing)
    if beside is not None:
        keep_vectors(file, beside)
    return found


def _require_symbols(
    path: Path, source: VectorSource, symbols: Sequence[str], *, growing: bool
) -> None:
    """Raise ``DataInvalid`` for a symbol without a row; of a file that is *growing* say so."""
    for symbol in symbols:
        if len(source.known(symbol)):
            continue
        if not growing:
            raise DataInvalid(
                f"{path} has no row of {symbol}; add some, or leave the column symbol out where "
                "rows are everyone's."
            )
        log.warning("no row yet, so its bars are held", symbol=symbol, file=str(path))


def vectors_of(forecaster: Forecaster | None) -> VectorSource | None:
    """Return the vectors of *forecaster*; None where it has none."""
    source: VectorSource | None = getattr(forecaster, VECTORS, None)
    return source


def newly_known(forecaster: Forecaster | None) -> Callable[[], Sequence[Outside]]:
    """Return what says how far the vectors of *forecaster* are known, for the run's events."""
    source = vectors_of(forecaster)
    return source.newly if isinstance(source, GrowingVectors) else tuple


def require_known(source: VectorSource | None, reading: Reading | None, run_id: str) -> None:
    """Raise ``CheckpointMismatch`` unless *source* holds the lines that *reading* says."""
    if reading is None or reading.what != VECTORS:
        return
    if isinstance(source, VectorJournal | GrowingVectors):
        _, lines, sha256 = reading.name.split()
        source.require(JournalHead(int(lines), sha256), run_id)


def recorded_vectors(
    database: Path, kept_as: str, card: Mapping[str, Any], *, into: Path | None = None
) -> VectorSource | None:
    """Return the vectors that a run of *database* kept, for the model of *card*; None for none.

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
    file = find_vectors(database, kept_as)
    if into is not None:
        keep_vectors(file, into)
    return file.standing(columns)


def kept_vectors_of(libraries: str) -> str:
    """Return what a run's vectors are kept as, by its ``libraries``; empty where it has none.

    That of a row which was changed into no JSON says nothing.
    """
    try:
        named = json.loads(libraries or "{}")
    except ValueError:
        return ""
    return str(named.get(VECTORS, "")) if isinstance(named, dict) else ""


def vectors_kept_as(forecaster: Forecaster | None) -> str:
    """Return what the vectors of *forecaster* are kept as; empty where it has none."""
    source = vectors_of(forecaster)
    return "" if source is None else source.name


def _columns(card: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the columns that the model of *card* was trained with; none for one without."""
    from tracepaper.strategies.forecasters.build import takes_vectors, vector_scale

    return vector_scale(card).columns if takes_vectors(card) else ()
