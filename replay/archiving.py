"""Fill a candle archive from files and from the exchange, and say what it holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tracepaper.replay.fetch import Span
from tracepaper.replay.importers.candles import Candles, bars_of, candles_of, merge_candles
from tracepaper.replay.instruments import archive_instrument
from tracepaper.storage.history import History, HistoryWriter, Series


@dataclass(frozen=True)
class Imported:
    """What one series gained."""

    instrument: str
    interval_ms: int
    added: int
    known: int  # were there already, and equal
    from_ms: int
    until_ms: int
    gaps: int  # holes in what was given
    source: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Held:
    """One series of an archive."""

    instrument: str
    interval_ms: int
    bars: int
    first_ms: int
    last_ms: int
    gaps: tuple[Span, ...]


def import_candles(archive: Path, parts: Sequence[Candles]) -> list[Imported]:
    """Write *parts* into *archive*, which is made where it is missing.

    All parts are compared with one another and with the archive before any is written, so a
    contradiction leaves the archive as it was. Raises ``DataInvalid`` that names both sides.
    """
    series = merge_candles(parts)
    with HistoryWriter(archive) as writer:
        # The lock is held from here on, so what is compared is what will be written to.
        with History.open(archive) as history:
            for part in series:
                merge_candles([*_stored(history, archive, part), part])
        return [_written(writer, part) for part in series]


def _stored(history: History, archive: Path, part: Candles) -> list[Candles]:
    """Return what the archive holds of the span of *part*, if anything."""
    for held in history.series():
        if (held.instrument.id, held.interval_ms) == (part.instrument, part.interval_ms):
            bars = list(
                history.read(
                    part.instrument,
                    part.interval_ms,
                    from_ms=int(part.open_time_ms[0]),
                    until_ms=part.until_ms,
                )
            )
            return [candles_of(bars, held.instrument, path=str(archive))] if bars else []
    return []


def _written(writer: HistoryWriter, part: Candles) -> Imported:
    instrument = archive_instrument(part)
    scaled = part.rescaled(
        price_decimals=instrument.price_decimals,
        volume_decimals=instrument.volume_decimals,
        turnover_decimals=instrument.turnover_decimals,
    )
    written = writer.write(instrument, part.interval_ms, bars_of(scaled))
    return Imported(
        instrument=part.instrument,
        interval_ms=part.interval_ms,
        added=written.added,
        known=written.known,
        from_ms=int(part.open_time_ms[0]),
        until_ms=part.until_ms,
        gaps=len(part.gaps),
        source=part.path,
        notes=part.notes,
    )


def held(archive: Path) -> list[Held]:
    """Return every series of *archive*, with its holes."""
    with History.open(archive) as history:
        return [_held(history, one) for one in history.series()]


def _held(history: History, one: Series) -> Held:
    return Held(
        instrument=one.instrument.id,
        interval_ms=one.interval_ms,
        bars=one.bars,
        first_ms=one.first_open_ms,
        last_ms=one.last_open_ms,
        gaps=tuple(history.gaps(one.instrument.id, one.interval_ms)),
    )
