"""A run's covariates: a fixed file in a replay, events of the run in a live run.

A live run reads the file again as it grows. New rows become an event before the next bar's
forecast, so that a replay, a resumed run and ``verify`` need the record alone. While the file is
unusable, bars have no covariates and the gate ``finite`` refuses them.

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
"""The key in a run's ``libraries`` whose value is the hash of its covariates file."""
AS_EVENTS: Final = "events"
"""The value of that key for covariates that are events of the run."""

log = Logger("vectors")


class RunCovariates:
    """The rows that a run has read so far, from its events: a ``CovariateSource``.

    A row is valid from the first forecast after its reading, or from its own time if that is
    later. Another thread may call ``at`` during ``see``.
    """

    name = AS_EVENTS

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns = tuple(columns)
        self.closed_ms = -math.inf  # the close of the newest bar
        self._rows: dict[str, _GrowingRows] = {}
        self._faults: list[tuple[int, str]] = []  # first close and reason; "": usable again

    def see(self, event: Event) -> None:
        """Take in the next event of the run."""
        match event:
            case Bar():
                self.closed_ms = max(self.closed_ms, event.closed_ms)
            case CovariatesRead():
                if event.fault != self.fault:
                    self._faults.append((event.from_ms, event.fault))
                for row in event.rows:
                    growing = self._rows.setdefault(row.symbol, _GrowingRows(len(self.columns)))
                    growing.add(row, event.from_ms)
            case _:
                pass

    def rows_for(self, symbol: str) -> CovariateRows:
        """Return the rows of *symbol*, or those that apply to all symbols."""
        growing = self._rows.get(ALL_SYMBOLS, self._rows.get(symbol))
        return NO_COVARIATES if growing is None else growing.rows()

    def usable(self, closes_ms: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether the file was usable at each close, as an array like *closes_ms*."""
        from_ms = [first_ms for first_ms, _ in self._faults]
        states = np.array([True, *(not reason for _, reason in self._faults)])
        usable: NDArray[np.bool_] = states[np.searchsorted(from_ms, closes_ms, side="right")]
        return usable

    def at(self, symbol: str, closes_ms: NDArray[np.int64]) -> JoinedRows:
        """Return the rows of *symbol* that were known at these closes."""
        return joined_rows(self.rows_for(symbol), self.usable(closes_ms), closes_ms)

    @property
    def fault(self) -> str:
        """The reason why the file is unusable now; empty if it is usable."""
        return self._faults[-1][1] if self._faults else ""

    @property
    def symbols(self) -> Collection[str]:
        """The symbols that have rows."""
        return self._rows.keys()


class _GrowingRows:
    """The rows of one symbol, in arrays that double their capacity when full."""

    def __init__(self, columns: int) -> None:
        self._count = 0
        self._times = np.empty((2, 64), dtype=np.int64)  # a row's time, and the start of validity
        self._values = np.empty((64, columns), dtype=np.float64)

    def add(self, row: CovariateRow, from_ms: int) -> None:
        """Append *row*, which is valid from *from_ms* at the earliest."""
        index = self._count
        if index == len(self._values):
            self._times = np.concatenate([self._times, self._times], axis=1)
            self._values = np.concatenate([self._values, self._values])
        self._times[:, index] = row.time_ms, max(row.time_ms, from_ms)
        self._values[index] = row.values
        self._count += 1

    def rows(self) -> CovariateRows:
        """Return the present rows; rows added later do not appear in the result."""
        count = self._count
        return CovariateRows(self._times[0, :count], self._times[1, :count], self._values[:count])


class CovariateReader:
    """Reads a run's file again before each close's forecast, and makes events of its new rows.

    A row whose time is before the newest known row's is ignored. Rows of a reading that takes
    longer than *deadline_ms* are valid from a later close.
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
    def has_rows(self) -> bool:
        """Whether the run has rows already."""
        return bool(self._covariates.symbols)

    def initial(self, config: Config, at_ms: int) -> CovariatesRead:
        """Return the rows of a new run at market time *at_ms*, each valid from its own time.

        Logs each symbol without a row. Raises ``DataInvalid`` for a file that cannot be used.
        """
        self._file.has_changed()
        rows = self._new_rows(self._since_ms)
        symbols = {row.symbol for row in rows}
        for symbol in config.market.symbols if ALL_SYMBOLS not in symbols else ():
            if symbol not in symbols:
                path = str(self._file.path)
                log.warning("no row yet, so its bars are held", symbol=symbol, file=path)
        return CovariatesRead(0, "", tuple(rows), at_ms, at_ms)

    async def read_new(self, unit: Unit) -> CovariatesRead | None:
        """Return the new rows to store before *unit*, or None.

        None means that there are none, that reading takes longer than the deadline, or that *unit*
        has no new close in the run's period.
        """
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
        """Return the reason why the file is unusable, and its new rows; None if nothing changed."""
        before = self._covariates.fault
        if not self._file.has_changed() and not before:
            return None
        reason, rows = "", list[CovariateRow]()
        try:
            rows = self._new_rows(0)
        except DataInvalid as error:
            reason = str(error)
        if reason != before:
            log.warning(reason or "covariates are usable again", file=str(self._file.path))
        return (reason, rows) if rows or reason != before else None

    def _new_rows(self, since_ms: int) -> list[CovariateRow]:
        """Return the new rows from *since_ms* on and, of a new symbol, the last one before it.

        Raises ``DataInvalid`` if a known row has changed.
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
        """Raise ``DataInvalid`` if the column ``symbol`` was added or removed."""
        symbols = self._covariates.symbols
        if symbols and file.rows and (ALL_SYMBOLS in symbols) != (ALL_SYMBOLS in file.rows):
            raise DataInvalid(
                f"{self._file.path} has got or lost the column symbol; the file of a live run may "
                "only grow, so restore it."
            )

    def _require_unchanged(self, earlier: CovariateRows, rows: CovariateRows) -> None:
        """Raise ``DataInvalid`` if a known row has different values now."""
        if not len(earlier) or not len(rows):
            return
        indices = np.searchsorted(rows.time_ms, earlier.time_ms)
        indices[indices == len(rows)] = 0
        exists = rows.time_ms[indices] == earlier.time_ms
        differs = exists & (earlier.values != rows.values[indices]).any(axis=1)
        if differs.any():
            raise DataInvalid(
                f"{self._file.path} has other values at {iso(int(earlier.time_ms[differs][0]))} "
                "than when that row was read; the file of a live run may only grow, so restore it."
            )


def covariates_path(config: Config, name: str) -> Path:
    """Return the path of file *name*, relative to the configuration or else the working folder."""
    path = Path(name) if config.folder is None else config.folder / name
    return path if path.is_file() else Path(name)


def configured_covariates(
    config: Config, card: Mapping[str, Any], *, database: Path | None, live: bool
) -> CovariateSource | None:
    """Return the covariates that ``[model] covariates`` names, in the columns of *card*.

    Those of a *live* run are its events. A replay's file is copied beside *database*. Raises
    ``DataInvalid`` for a file that cannot be used or lacks a column, and in a replay also for one
    that lacks a symbol.
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
                "if the rows apply to all symbols."
            )
    if database is not None:
        keep_covariates(file, database)
    return source


def covariate_reader(
    config: Config, forecaster: Forecaster | None, period_start_ms: int
) -> CovariateReader | None:
    """Return the covariate reader of a live run; None if *forecaster* uses no covariates.

    A new run reads rows from twice the model's lookback before its start.
    """
    source = None if forecaster is None else forecaster.vectors
    name = config.model.covariates
    if forecaster is None or name is None or not isinstance(source, RunCovariates):
        return None
    return CovariateReader(
        covariates_path(config, name),
        source,
        period_start_ms=period_start_ms,
        since_ms=period_start_ms - 2 * forecaster.context * config.market.interval_ms,
        deadline_ms=config.model.deadline_ms,
    )


def recorded_covariates(
    database: Path, name: str, card: Mapping[str, Any], *, into: Path | None = None
) -> CovariateSource | None:
    """Return the covariates called *name* that a run of *database* had; None without any.

    Their columns are those of *card*. ``recall_events`` fills those that are events; a file is also
    copied beside *into*. Raises ``CheckpointMismatch`` if the file is missing or changed.
    """
    columns = _columns(card)
    if not name or not columns:
        return None
    if name == AS_EVENTS:
        return RunCovariates(columns)
    file = find_covariates(database, name)
    if into is not None:
        keep_covariates(file, into)
    return file.standing(columns)


def recorded_covariates_name(libraries: str) -> str:
    """Return the ``name`` of a run's covariates from its ``libraries``; empty without any."""
    try:
        versions = json.loads(libraries or "{}")
    except ValueError:  # the row was changed
        return ""
    return str(versions.get(VECTORS, "")) if isinstance(versions, dict) else ""


def covariates_name(forecaster: Forecaster | None) -> str:
    """Return the ``name`` of the forecaster's covariates; empty without any."""
    source = None if forecaster is None else forecaster.vectors
    return "" if source is None else source.name


def _columns(card: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the covariate columns that the model of *card* was trained with."""
    return vector_scale(card).columns if takes_vectors(card) else ()
