"""The candle archive: ranges in order, gaps reported, contradictions refused.

An archive is a database of the usual schema, so it may also hold runs. Each series is one
instrument at one interval, in the finest decimals that were ever written to it.
"""

from __future__ import annotations

import sqlite3
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple, Self

import msgspec
from msgspec.structs import replace

from tracepaper.storage.database.connection import ReadOnly
from tracepaper.storage.database.writer import advice, open_writer
from tracepaper.strategies.errors import AuditUnwritable, DataInvalid
from tracepaper.strategies.months import interval_end
from tracepaper.strategies.types.market import Bar, Instrument, Source

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

VALUES: Final = "open, high, low, close, volume, turnover"
RANGE: Final = (
    f"SELECT open_time_ms, {VALUES} FROM archive_bars "
    "WHERE series = ? AND open_time_ms >= ? AND open_time_ms < ? ORDER BY open_time_ms"
)
_SERIES: Final = (
    "SELECT series, instrument FROM archive_series WHERE instrument_id = ? AND interval_ms = ?"
)
_TIMES: Final = (
    "SELECT open_time_ms FROM archive_bars WHERE series = (SELECT series FROM archive_series "
    "WHERE instrument_id = ? AND interval_ms = ?) ORDER BY open_time_ms"
)
_FOREVER: Final = 2**62

Span = tuple[int, int]
"""First open time, and the first after the last: [from, until)."""


class Series(NamedTuple):
    """The extent of a series: an instrument's bars at one interval."""

    instrument: Instrument
    interval_ms: int
    bars: int
    first_open_ms: int
    last_open_ms: int


class History(ReadOnly):
    """An archive open for reading."""

    def series(self) -> list[Series]:
        """Return every series of the archive, by instrument and interval."""
        rows = self._connection.execute(
            "SELECT s.instrument, s.interval_ms, count(*), min(b.open_time_ms), "
            "max(b.open_time_ms) FROM archive_series s JOIN archive_bars b USING (series) "
            "GROUP BY s.series ORDER BY s.instrument_id, s.interval_ms"
        )
        return [Series(instrument_of_json(text), *rest) for text, *rest in rows]

    def instrument(self, instrument_id: str, interval_ms: int) -> Instrument:
        """Return the instrument in whose decimals its bars are read; raise where there is none."""
        return self._series(instrument_id, interval_ms)[1]

    def read(
        self, instrument_id: str, interval_ms: int, *, from_ms: int = 0, until_ms: int = _FOREVER
    ) -> Iterator[Bar]:
        """Yield the bars that open in [*from_ms*, *until_ms*), oldest first."""
        key, _ = self._series(instrument_id, interval_ms)
        for row in self._connection.execute(RANGE, (key, from_ms, until_ms)):
            open_time_ms, open_, high, low, close, volume, turnover = row
            end = interval_end(open_time_ms, interval_ms)
            yield Bar(
                instrument_id,
                open_time_ms,
                interval_ms,
                open_,
                high,
                low,
                close,
                volume,
                turnover,
                end,
                end,
                Source.ARCHIVE,
            )

    def times(self, instrument_id: str, interval_ms: int) -> list[int]:
        """Return when the bars of the series open, oldest first; none of one that is not there."""
        rows = self._connection.execute(_TIMES, (instrument_id, interval_ms))
        return [open_ms for (open_ms,) in rows]

    def gaps(self, instrument_id: str, interval_ms: int) -> list[Span]:
        """Return the holes between the first bar of the series and its last, oldest first."""
        times = self.times(instrument_id, interval_ms)
        ends = (interval_end(open_ms, interval_ms) for open_ms in times)
        return [span for span in zip(ends, times[1:], strict=False) if span[0] != span[1]]

    def _series(self, instrument_id: str, interval_ms: int) -> tuple[int, Instrument]:
        row = self._connection.execute(_SERIES, (instrument_id, interval_ms)).fetchone()
        if row is None:
            raise DataInvalid(
                f"The archive holds no {instrument_id} of {interval_ms} ms; "
                "`tracepaper data list` shows what it holds."
            )
        return row[0], instrument_of_json(row[1])


def instrument_of_json(text: str) -> Instrument:
    """Return the instrument that a series keeps."""
    return msgspec.json.decode(text, type=Instrument)


# ---------------------------------------------------------------- writing

CHUNK_BARS: Final = 10_000
_INSERT: Final = (
    f"INSERT INTO archive_bars (series, open_time_ms, {VALUES}) VALUES (?,?,?,?,?,?,?,?)"
)

Values = tuple[int, int, int, int, int, int | None]


class ArchiveWrite(NamedTuple):
    """How many bars a write added, and how many the archive had."""

    added: int
    existing: int  # were there already, and equal


class HistoryWriter:
    """An archive open for writing; one process at a time."""

    def __init__(self, path: Path) -> None:
        """Open or make the archive *path*; it raises what ``open_writer`` does."""
        self._path, self._writer = path, open_writer(path)
        self._connection = self._writer.connection

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and give its lock back."""
        self._writer.close()

    def write(self, instrument: Instrument, interval_ms: int, bars: Iterable[Bar]) -> ArchiveWrite:
        """Add *bars* of *instrument*, all of them or none.

        A bar that is there already must be equal. Raises ``DataInvalid`` where one differs or
        is of another instrument or interval, ``AuditUnwritable`` where the file is full.
        """
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            key, scale = self._series(instrument, interval_ms)
            added = existing = 0
            remaining = iter(bars)
            while chunk := list(islice(remaining, CHUNK_BARS)):
                fresh = self._write_chunk(key, instrument.id, interval_ms, scale, chunk)
                added += fresh
                existing += len(chunk) - fresh
            self._connection.execute("COMMIT")
        except (sqlite3.Error, OverflowError) as error:
            self._connection.rollback()
            raise AuditUnwritable(
                f"{self._path} cannot take the bars ({error}), so nothing was written; "
                f"{advice(error)}."
            ) from error
        except BaseException:
            self._connection.rollback()
            raise
        if problem := self._writer.file.problem(self._connection):
            raise AuditUnwritable(problem)
        self._writer.file.settle()
        return ArchiveWrite(added, existing)

    def _write_chunk(
        self,
        key: int,
        instrument_id: str,
        interval_ms: int,
        scale: tuple[int, int, int],
        bars: list[Bar],
    ) -> int:
        """Insert the new bars of one chunk; return their number."""
        price, volume, turnover = scale
        times = [bar.open_time_ms for bar in bars]
        stored = self._connection.execute(RANGE, (key, min(times), max(times) + 1))
        existing: dict[int, Values] = {row[0]: row[1:] for row in stored}
        fresh: list[tuple[int, ...] | tuple[int | None, ...]] = []
        for bar in bars:
            if bar.instrument != instrument_id or bar.interval_ms != interval_ms:
                raise DataInvalid(
                    f"A bar of {bar.instrument} ({bar.interval_ms} ms) was given for "
                    f"{instrument_id} ({interval_ms} ms); write each series by itself."
                )
            values: Values = (
                bar.open * price,
                bar.high * price,
                bar.low * price,
                bar.close * price,
                bar.volume * volume,
                None if bar.turnover is None else bar.turnover * turnover,
            )
            before = existing.get(bar.open_time_ms)
            if before is None:
                fresh.append((key, bar.open_time_ms, *values))
                existing[bar.open_time_ms] = values
            else:
                self._check_equal(key, bar, before, values)
        self._connection.executemany(_INSERT, fresh)
        return len(fresh)

    def _check_equal(self, key: int, bar: Bar, before: Values, values: Values) -> None:
        """Refuse a bar that contradicts the stored one; take its turnover where that lacks it."""
        turnovers = {before[5], values[5]} - {None}
        if before[:5] != values[:5] or len(turnovers) > 1:
            raise DataInvalid(
                f"Bar {bar.open_time_ms} of {bar.instrument} is in the archive with other values; "
                "decide which source is right and import into another file."
            )
        if before[5] is None and values[5] is not None:
            self._connection.execute(
                "UPDATE archive_bars SET turnover = ? WHERE series = ? AND open_time_ms = ?",
                (values[5], key, bar.open_time_ms),
            )

    def _series(self, instrument: Instrument, interval_ms: int) -> tuple[int, tuple[int, int, int]]:
        """Return the series' key and the factors that bring the new bars to its decimals."""
        row = self._connection.execute(_SERIES, (instrument.id, interval_ms)).fetchone()
        if row is None:
            cursor = self._connection.execute(
                "INSERT INTO archive_series (instrument_id, interval_ms, instrument) "
                "VALUES (?, ?, ?)",
                (instrument.id, interval_ms, msgspec.json.encode(instrument).decode()),
            )
            assert cursor.lastrowid is not None
            return cursor.lastrowid, (1, 1, 1)
        key, stored = row[0], instrument_of_json(row[1])
        finest = finest_of(stored, instrument)
        price, volume, turnover = _factors(stored, finest)
        if (price, volume, turnover) != (1, 1, 1):
            self._connection.execute(
                "UPDATE archive_bars SET open = open * ?1, high = high * ?1, low = low * ?1, "
                "close = close * ?1, volume = volume * ?2, turnover = turnover * ?3 "
                "WHERE series = ?4",
                (price, volume, turnover, key),
            )
        self._connection.execute(
            "UPDATE archive_series SET instrument = ? WHERE series = ?",
            (msgspec.json.encode(finest).decode(), key),
        )
        return key, _factors(instrument, finest)


def finest_of(stored: Instrument, new: Instrument) -> Instrument:
    """Return *new* in the finer decimals and steps of the two."""
    price = max(stored.price_decimals, new.price_decimals)
    quantity = max(stored.quantity_decimals, new.quantity_decimals)
    factor = 10 ** (quantity - new.quantity_decimals)
    return replace(
        new,
        price_decimals=price,
        quantity_decimals=quantity,
        volume_decimals=max(stored.volume_decimals, new.volume_decimals),
        turnover_decimals=max(stored.turnover_decimals, new.turnover_decimals),
        tick_size=min(
            instrument.tick_size * 10 ** (price - instrument.price_decimals)
            for instrument in (stored, new)
        ),
        quantity_step=min(
            instrument.quantity_step * 10 ** (quantity - instrument.quantity_decimals)
            for instrument in (stored, new)
        ),
        min_quantity=new.min_quantity * factor,
        max_quantity=new.max_quantity * factor,
    )


def _factors(instrument: Instrument, finest: Instrument) -> tuple[int, int, int]:
    """Return the factors of prices, volume and turnover to the decimals of *finest*."""
    return (
        10 ** (finest.price_decimals - instrument.price_decimals),
        10 ** (finest.volume_decimals - instrument.volume_decimals),
        10 ** (finest.turnover_decimals - instrument.turnover_decimals),
    )
