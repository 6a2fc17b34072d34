"""The bar archive: read a range in order, report gaps; ``history_writer.py`` fills it.

An archive is a database of the usual schema, so it may also hold runs. Each series is one
instrument at one interval, in the finest decimals that were ever written to it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple, Self

import msgspec

from tracepaper.storage.database import open_reader
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.types import Bar, Instrument, Source

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator
    from pathlib import Path

VALUES: Final = "open, high, low, close, volume, turnover"
RANGE: Final = (
    f"SELECT open_time_ms, {VALUES} FROM archive_bars "
    "WHERE series = ? AND open_time_ms >= ? AND open_time_ms < ? ORDER BY open_time_ms"
)
_FOREVER: Final = 2**62

Span = tuple[int, int]
"""First open time, and the first after the last: [from, until)."""


class Series(NamedTuple):
    """What the archive holds of one instrument at one interval."""

    instrument: Instrument
    interval_ms: int
    bars: int
    first_open_ms: int
    last_open_ms: int


class _Found(NamedTuple):
    key: int
    instrument: Instrument


class History:
    """An archive open for reading."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the archive *path* read-only; raise ``DataInvalid`` where that cannot be."""
        return cls(open_reader(path))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def series(self) -> list[Series]:
        """Return what the archive holds, by instrument and interval."""
        rows = self._connection.execute(
            "SELECT s.instrument, s.interval_ms, count(*), min(b.open_time_ms), "
            "max(b.open_time_ms) FROM archive_series s JOIN archive_bars b USING (series) "
            "GROUP BY s.series ORDER BY s.instrument_id, s.interval_ms"
        )
        return [Series(instrument_of_json(text), *rest) for text, *rest in rows]

    def instrument(self, instrument_id: str, interval_ms: int) -> Instrument:
        """Return the instrument in whose decimals its bars are read; raise where there is none."""
        return self._series(instrument_id, interval_ms).instrument

    def read(
        self, instrument_id: str, interval_ms: int, *, from_ms: int = 0, until_ms: int = _FOREVER
    ) -> Iterator[Bar]:
        """Yield the bars that open in [*from_ms*, *until_ms*), oldest first."""
        found = self._series(instrument_id, interval_ms)
        for row in self._connection.execute(RANGE, (found.key, from_ms, until_ms)):
            open_time_ms, open_, high, low, close, volume, turnover = row
            end = open_time_ms + interval_ms
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

    def spans(self, instrument_id: str, interval_ms: int) -> list[Span]:
        """Return the spans of time that the series covers without a hole, oldest first."""
        found = self._series(instrument_id, interval_ms)
        rows = self._connection.execute(
            "SELECT open_time_ms, "
            "lag(open_time_ms) OVER (ORDER BY open_time_ms), "
            "lead(open_time_ms) OVER (ORDER BY open_time_ms) "
            "FROM archive_bars WHERE series = ?",
            (found.key,),
        )
        spans: list[Span] = []
        start = 0
        for open_ms, before, after in rows:
            if before is None or before + interval_ms != open_ms:
                start = open_ms
            if after is None or open_ms + interval_ms != after:
                spans.append((start, open_ms + interval_ms))
        return spans

    def gaps(self, instrument_id: str, interval_ms: int) -> list[Span]:
        """Return the holes between the first bar of the series and its last, oldest first."""
        spans = self.spans(instrument_id, interval_ms)
        return [(one[1], other[0]) for one, other in pairwise(spans)]

    def _series(self, instrument_id: str, interval_ms: int) -> _Found:
        row = self._connection.execute(
            "SELECT series, instrument FROM archive_series "
            "WHERE instrument_id = ? AND interval_ms = ?",
            (instrument_id, interval_ms),
        ).fetchone()
        if row is None:
            raise DataInvalid(
                f"The archive holds no {instrument_id} of {interval_ms} ms; "
                "`tracepaper data list` shows what it holds."
            )
        return _Found(row[0], instrument_of_json(row[1]))


def instrument_of_json(text: str) -> Instrument:
    """Return the instrument that a series keeps."""
    return msgspec.json.decode(text, type=Instrument)
