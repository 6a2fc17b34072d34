"""A run's covariates: the configured file, and live its growth as events of the run.

Live the file is read again as it grows. What is new is an event before the bar that is answered
next, so that a replay, a resumed run and ``verify`` know it from the record alone. A file that is
no use leaves the bars without covariates, so that the gate ``finite`` refuses them.

The rules are docs/models.md, L64 and L65.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tracepaper.daemon.config.loading import Config
from tracepaper.daemon.log import Logger
from tracepaper.daemon.session.loop import Worker, events_of
from tracepaper.storage.covariates import (
    CovariateFile,
    GrowingFile,
    find_covariates,
    iso,
    keep_covariates,
    read_covariates,
)
from tracepaper.strategies.api.strategy import Forecaster
from tracepaper.strategies.covariates import (
    ALL_SYMBOLS,
    NO_COVARIATES,
    CovariateRows,
    CovariateSource,
    JoinedRows,
    joined_rows,
    takes_vectors,
    vector_scale,
)
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.types.market import Bar, CovariateRow, CovariatesRead, Event, Unit

VECTORS: Final = "vectors"
"""The key among the libraries of a run of the hash of its covariates' file."""
AS_EVENTS: Final = "events"
"""What stands there for covariates that are events of the run."""

log = Logger("vectors")


class RunCovariates:
    """The rows that became known in a run, by its events: a ``CovariateSource``.

    A row counts from the close before whose answer it was read, or from its time where that is
    later. Another thread may ask for rows while an event is shown.
    """

    name: Final = AS_EVENTS

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns = tuple(columns)
        self.closed_ms = -math.inf  # of the newest bar
        self._rows: dict[str, _CovariateRows] = {}
        self._faults: list[tuple[int, str]] = []  # from which close, and why; "" is of use again

    def see(self, event: Event) -> None:
        """Take in the next event of the run."""
        match event:
            case Bar():
                self.closed_ms = max(self.closed_ms, event.closed_ms)
            case CovariatesRead():
                if event.fault != self.fault:
                    self._faults.append((event.from_ms, event.fault))
                for row in event.rows:
                    growing = self._rows.setdefault(row.symbol, _CovariateRows(len(self.columns)))
                    growing.add(row, event.from_ms)
            case _:
                pass

    def rows_for(self, symbol: str) -> CovariateRows:
        """Return the rows of *symbol*, or everyone's."""
        growing = self._rows.get(ALL_SYMBOLS, self._rows.get(symbol))
        return NO_COVARIATES if growing is None else growing.rows()

    def usable(self, closes_ms: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether the file could be used at each close."""
        from_ms = [at for at, _ in self._faults]
        sound = np.array([True, *(not reason for _, reason in self._faults)])
        usable: NDArray[np.bool_] = sound[np.searchsorted(from_ms, closes_ms, side="right")]
        return usable

    def at(self, symbol: str, closes_ms: NDArray[np.int64]) -> JoinedRows:
        """Return the rows of *symbol* that were known at these closes."""
        return joined_rows(self.rows_for(symbol), self.usable(closes_ms), closes_ms)

    @property
    def fault(self) -> str:
        """Why the file cannot be used now; empty where it can."""
        return self._faults[-1][1] if self._faults else ""

    @property
    def symbols(self) -> Collection[str]:
        """The symbols that have rows."""
        return self._rows.keys()


class _CovariateRows:
    """The rows of one symbol, in arrays that double where they are full."""

    def __init__(self, columns: int) -> None:
        self._count = 0
        self._times = np.empty((2, 64), dtype=np.int64)  # its own, and from when it counts
        self._values = np.empty((64, columns), dtype=np.float64)

    def add(self, row: CovariateRow, from_ms: int) -> None:
        """Take in one row, which counts from *from_ms* on at the earliest."""
        at = self._count
        if at == len(self._values):
            self._times = np.concatenate([self._times, self._times], axis=1)
            self._values = np.concatenate([self._values, self._values])
        self._times[:, at] = row.time_ms, max(row.time_ms, from_ms)
        self._values[at] = row.values
        self._count += 1

    def rows(self) -> CovariateRows:
        """Return them; more may be added later, which these do not show."""
        count = self._count
        return CovariateRows(self._times[0, :count], self._times[1, :count], self._values[:count])


class CovariateReader:
    """Reads the file of a run again before a close is answered, and makes events of what is new.

    A row with a time before the newest known one comes too late for any bar. A reading that takes
    longer than *deadline_ms* counts at a later close.
    """

    def __init__(
        self,
        path: Path,
        covariates: RunCovariates,
        *,
        period_start_ms: int,
        since_ms: int,
        deadline_ms: int,
    ) -> None:
        self._file, self._covariates = GrowingFile(path), covariates
        self._period_start_ms, self._since_ms = period_start_ms, since_ms
        self._deadline_s = deadline_ms / 1000
        self._worker = Worker("covariates")
        self._reading: asyncio.Future[tuple[str, list[CovariateRow]] | None] | None = None

    @property
    def has_begun(self) -> bool:
        """Whether the run knows rows already."""
        return bool(self._covariates.symbols)

    def first(self, config: Config, at_ms: int) -> CovariatesRead:
        """Return the rows that a new run has at market time *at_ms*: each counts from its time.

        Raises ``DataInvalid`` for a file that cannot be used; a symbol without a row is logged.
        """
        self._file.has_changed()
        rows = self._new(self._since_ms)
        symbols = {row.symbol for row in rows}
        for symbol in config.market.symbols if ALL_SYMBOLS not in symbols else ():
            if symbol not in symbols:
                path = str(self._file.path)
                log.warning("no row yet, so its bars are held", symbol=symbol, file=path)
        return CovariatesRead(0, "", tuple(rows), at_ms, at_ms)

    async def newly(self, unit: Unit) -> CovariatesRead | None:
        """Return the new rows before *unit* is answered; None without any, or without a bar."""
        bar = events_of(unit)[-1]
        if not isinstance(bar, Bar) or bar.open_time_ms < self._period_start_ms:
            return None
        close_ms = bar.closed_ms
        if close_ms <= self._covariates.closed_ms:
            return None
        if self._reading is None:
            self._reading = self._worker.submit(self._read)
        try:
            async with asyncio.timeout(self._deadline_s):
                news = await asyncio.shield(self._reading)
        except TimeoutError:
            return None
        self._reading = None
        if news is None:
            return None
        return CovariatesRead(close_ms, news[0], tuple(news[1]), bar.market_ms, bar.seen_ms)

    def _read(self) -> tuple[str, list[CovariateRow]] | None:
        """Return why the file is no use, or the new rows; None where nothing changed."""
        before = self._covariates.fault
        if not self._file.has_changed() and not before:
            return None
        reason, rows = "", list[CovariateRow]()
        try:
            rows = self._new(0)
        except DataInvalid as error:
            reason = str(error)
        if reason != before:
            log.warning(reason or "covariates are of use again", file=str(self._file.path))
        return (reason, rows) if rows or reason != before else None

    def _new(self, since_ms: int) -> list[CovariateRow]:
        """Return the new rows, and of each symbol the last one before *since_ms* at the earliest.

        Raises ``DataInvalid`` where a known row changed.
        """
        growth = self._file.read()
        self._require_same_symbols(growth.file)
        new: list[CovariateRow] = []
        for symbol, rows in growth.file.chosen(self._covariates.columns).items():
            earlier = self._covariates.rows_for(symbol)
            if growth.is_whole:
                self._require_unchanged(earlier, rows)
            newest = int(earlier.time_ms[-1]) if len(earlier) else -1
            start = int(np.searchsorted(rows.time_ms, max(newest, since_ms), "right"))
            start = max(start - 1, 0) if newest < since_ms else start
            times, values = rows.time_ms[start:].tolist(), rows.values[start:].tolist()
            new += [
                CovariateRow(symbol, time_ms, tuple(row))
                for time_ms, row in zip(times, values, strict=True)
            ]
        self._file.accept(growth)
        return new

    def _require_same_symbols(self, file: CovariateFile) -> None:
        """Raise ``DataInvalid`` where the file has got or lost its column of symbols."""
        symbols = self._covariates.symbols
        if symbols and file.rows and (ALL_SYMBOLS in symbols) != (ALL_SYMBOLS in file.rows):
            raise DataInvalid(
                f"{self._file.path} has got or lost the column symbol; a file that is traded by "
                "may only grow, so restore it."
            )

    def _require_unchanged(self, earlier: CovariateRows, rows: CovariateRows) -> None:
        """Raise ``DataInvalid`` where a known row has other values now."""
        if not len(earlier) or not len(rows):
            return
        place = np.searchsorted(rows.time_ms, earlier.time_ms)
        place[place == len(rows)] = 0
        stands = rows.time_ms[place] == earlier.time_ms
        differ = stands & (earlier.values != rows.values[place]).any(axis=1)
        if differ.any():
            raise DataInvalid(
                f"{self._file.path} has other values at {iso(int(earlier.time_ms[differ][0]))} "
                "than when that row was read; a file that is traded by may only grow, so restore "
                "it."
            )


def covariates_path(config: Config, written: str) -> Path:
    """Return the file: beside the configuration where it is there, else from the working folder."""
    near = None if config.folder is None else config.folder / written
    return near if near is not None and near.is_file() else Path(written)


def configured_covariates(
    config: Config, card: Mapping[str, Any], *, database: Path | None, live: bool
) -> CovariateSource | None:
    """Return the covariates that ``[model] covariates`` names, in the columns of *card*.

    Those of a *live* run are its events. A file that stands is kept beside the database *database*.
    Raises ``DataInvalid`` for a file that cannot be used, or lacks a column, or a symbol of a run
    that is not *live*.
    """
    if config.model.covariates is None:
        return None
    columns = _columns(card)
    if live and database is not None and columns:
        return RunCovariates(columns)
    file = read_covariates(covariates_path(config, config.model.covariates))
    source = file.standing(columns)
    for symbol in config.market.symbols:
        if not live and not len(source.rows_for(symbol)):
            raise DataInvalid(
                f"{file.path} has no row of {symbol}; add some, or leave the column symbol out "
                "where rows are everyone's."
            )
    if database is not None:
        keep_covariates(file, database)
    return source


def reader_of(
    config: Config, forecaster: Forecaster | None, period_start_ms: int
) -> CovariateReader | None:
    """Return the reader of the covariates of a live run's *forecaster*; None where it has none.

    Of a new run's past it reads twice the bars that the model looks back on.
    """
    source = None if forecaster is None else forecaster.vectors
    written = config.model.covariates
    if forecaster is None or written is None or not isinstance(source, RunCovariates):
        return None
    return CovariateReader(
        covariates_path(config, written),
        source,
        period_start_ms=period_start_ms,
        since_ms=period_start_ms - 2 * forecaster.context * config.market.interval_ms,
        deadline_ms=config.model.deadline_ms,
    )


def recorded_covariates(
    database: Path, kept_as: str, card: Mapping[str, Any], *, into: Path | None = None
) -> CovariateSource | None:
    """Return the covariates that a run of *database* had, for the model of *card*; None for none.

    Those of its events are to be shown (``recall_events``); a file is kept beside *into* as well.
    Raises ``CheckpointMismatch`` where it is gone or changed.
    """
    columns = _columns(card)
    if not kept_as or not columns:
        return None
    if kept_as == AS_EVENTS:
        return RunCovariates(columns)
    file = find_covariates(database, kept_as)
    if into is not None:
        keep_covariates(file, into)
    return file.standing(columns)


def kept_covariates_of(libraries: str) -> str:
    """Return the format of a run's covariates, by its ``libraries``; empty where it has none."""
    try:
        versions = json.loads(libraries or "{}")
    except ValueError:  # the row was changed
        return ""
    return str(versions.get(VECTORS, "")) if isinstance(versions, dict) else ""


def covariates_kept_as(forecaster: Forecaster | None) -> str:
    """Return the format of the forecaster's covariates; empty where it has none."""
    source = None if forecaster is None else forecaster.vectors
    return "" if source is None else source.name


def _columns(card: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the columns that the model of *card* was trained with; none for one without."""
    return vector_scale(card).columns if takes_vectors(card) else ()
