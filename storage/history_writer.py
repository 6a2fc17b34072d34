"""Write the bar archive: all bars of a write or none, and no contradiction in silence."""

from __future__ import annotations

import sqlite3
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple, Self

import msgspec
from msgspec.structs import replace

from tracepaper.storage.database import advice, open_writer
from tracepaper.storage.history import RANGE, VALUES, instrument_of_json
from tracepaper.strategies.errors import AuditUnwritable, DataInvalid
from tracepaper.strategies.types import Bar, Instrument

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

CHUNK_BARS: Final = 10_000
_INSERT: Final = (
    f"INSERT INTO archive_bars (series, open_time_ms, {VALUES}) VALUES (?,?,?,?,?,?,?,?)"
)

Values = tuple[int, int, int, int, int, int | None]


class Written(NamedTuple):
    """What a write did."""

    added: int
    known: int  # were there already, and equal


class HistoryWriter:
    """An archive open for writing; one process at a time."""

    def __init__(self, path: Path) -> None:
        """Open or make the archive *path*; see ``database.open_writer`` for what it raises."""
        self._path = path
        self._writer = open_writer(path)
        raw = self._writer.connection.connection.driver_connection
        assert isinstance(raw, sqlite3.Connection)
        self._raw = raw

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and give its lock back."""
        self._writer.close()

    def write(self, instrument: Instrument, interval_ms: int, bars: Iterable[Bar]) -> Written:
        """Add *bars* of *instrument*, all of them or none.

        A bar that is there already must be equal. Raises ``DataInvalid`` where one differs or
        is of another instrument or interval, ``AuditUnwritable`` where the file is full.
        """
        try:
            self._raw.execute("BEGIN IMMEDIATE")
            key, scale = self._series(instrument, interval_ms)
            added = known = 0
            remaining = iter(bars)
            while chunk := list(islice(remaining, CHUNK_BARS)):
                fresh = self._write_chunk(key, instrument.id, interval_ms, scale, chunk)
                added += fresh
                known += len(chunk) - fresh
            self._raw.execute("COMMIT")
        except (sqlite3.Error, OverflowError) as error:
            self._raw.rollback()
            raise AuditUnwritable(
                f"{self._path} cannot take the bars ({error}), so nothing was written; "
                f"{advice(error)}."
            ) from error
        except BaseException:
            self._raw.rollback()
            raise
        if problem := self._writer.file.problem(self._raw):
            raise AuditUnwritable(problem)
        self._writer.file.settle()
        return Written(added, known)

    def _write_chunk(
        self,
        key: int,
        instrument_id: str,
        interval_ms: int,
        scale: tuple[int, int, int],
        bars: list[Bar],
    ) -> int:
        """Insert the bars of one chunk that are new; return how many there were."""
        price, volume, turnover = scale
        times = [bar.open_time_ms for bar in bars]
        stored = self._raw.execute(RANGE, (key, min(times), max(times) + 1))
        known: dict[int, Values] = {row[0]: row[1:] for row in stored}
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
            before = known.get(bar.open_time_ms)
            if before is None:
                fresh.append((key, bar.open_time_ms, *values))
                known[bar.open_time_ms] = values
            else:
                self._check_equal(key, bar, before, values)
        self._raw.executemany(_INSERT, fresh)
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
            self._raw.execute(
                "UPDATE archive_bars SET turnover = ? WHERE series = ? AND open_time_ms = ?",
                (values[5], key, bar.open_time_ms),
            )

    def _series(self, instrument: Instrument, interval_ms: int) -> tuple[int, tuple[int, int, int]]:
        """Return the series' key and the factors that bring the new bars to its decimals."""
        row = self._raw.execute(
            "SELECT series, instrument FROM archive_series "
            "WHERE instrument_id = ? AND interval_ms = ?",
            (instrument.id, interval_ms),
        ).fetchone()
        if row is None:
            cursor = self._raw.execute(
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
            self._raw.execute(
                "UPDATE archive_bars SET open = open * ?1, high = high * ?1, low = low * ?1, "
                "close = close * ?1, volume = volume * ?2, turnover = turnover * ?3 "
                "WHERE series = ?4",
                (price, volume, turnover, key),
            )
        self._raw.execute(
            "UPDATE archive_series SET instrument = ? WHERE series = ?",
            (msgspec.json.encode(finest).decode(), key),
        )
        return key, _factors(instrument, finest)


def finest_of(one: Instrument, other: Instrument) -> Instrument:
    """Return *other* in the finer decimals and steps of the two."""
    price = max(one.price_decimals, other.price_decimals)
    quantity = max(one.quantity_decimals, other.quantity_decimals)
    coarse = 10 ** (quantity - other.quantity_decimals)
    return replace(
        other,
        price_decimals=price,
        quantity_decimals=quantity,
        volume_decimals=max(one.volume_decimals, other.volume_decimals),
        turnover_decimals=max(one.turnover_decimals, other.turnover_decimals),
        tick_size=min(
            known.tick_size * 10 ** (price - known.price_decimals) for known in (one, other)
        ),
        quantity_step=min(
            known.quantity_step * 10 ** (quantity - known.quantity_decimals)
            for known in (one, other)
        ),
        min_quantity=other.min_quantity * coarse,
        max_quantity=other.max_quantity * coarse,
    )


def _factors(of: Instrument, finest: Instrument) -> tuple[int, int, int]:
    """Return what brings prices, volume and turnover of *of* to the decimals of *finest*."""
    return (
        10 ** (finest.price_decimals - of.price_decimals),
        10 ** (finest.volume_decimals - of.volume_decimals),
        10 ** (finest.turnover_decimals - of.turnover_decimals),
    )
