"""The series of a candle archive: read one back, import files into it, list what it holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tracepaper.replay.archive.candles import Candles, Span, bars_of, candles_of, merge_candles
from tracepaper.replay.archive.instruments import archive_instrument
from tracepaper.storage.history import History, HistoryWriter, Series
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.types import Category

LISTED_MAX: Final = 8


def read_archive(
    path: Path,
    *,
    symbol: str | None = None,
    category: Category | str | None = None,
    interval_ms: int | None = None,
) -> Candles:
    """Return the one series of the archive *path* that the arguments mean.

    Raises ``ConfigInvalid`` where they mean several, ``DataInvalid`` where they mean none.
    """
    with History.open(path) as history:
        chosen = _chosen(path, history.series(), symbol, category, interval_ms)
        bars = history.read(chosen.instrument.id, chosen.interval_ms)
        return candles_of(list(bars), chosen.instrument, path=str(path))


def _chosen(
    path: Path,
    held: Sequence[Series],
    symbol: str | None,
    category: Category | str | None,
    interval_ms: int | None,
) -> Series:
    """Return the one series that is meant."""
    found = [
        one
        for one in held
        if symbol in (None, one.instrument.symbol)
        and category in (None, one.instrument.category)
        and interval_ms in (None, one.interval_ms)
    ]
    if len(found) == 1:
        return found[0]
    if found:
        names = [f"{one.instrument.id} of {one.interval_ms // 1000} s" for one in found]
        raise ConfigInvalid(
            f"{path} holds {', '.join(names[:LISTED_MAX])}: choose one with SYMBOL={path} or "
            "--category, and keep other intervals in another file."
        )
    wanted = symbol or "candles"
    raise DataInvalid(
        f"{path} holds no {wanted} such as is asked for: see `tracepaper data list --db {path}`."
    )


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
