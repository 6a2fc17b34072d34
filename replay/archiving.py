"""Fill a candle archive from files and from the exchange, and say what it holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tracepaper.replay.backtest.feed import bars_of
from tracepaper.replay.fetch import Fetched, Klines, Span, fetch, lacking, whole_span
from tracepaper.replay.importers import Candles, merge_candles
from tracepaper.replay.importers.archives import candles_of
from tracepaper.replay.instruments import archive_instrument
from tracepaper.replay.resample import MONDAY_MS, WEEK_MS
from tracepaper.storage.history import History, HistoryWriter, Series
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.types import Bar, Instrument


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


def wanted_spans(
    archive: Path,
    instrument: Instrument,
    interval_ms: int,
    *,
    from_ms: int | None,
    until_ms: int,
) -> list[Span]:
    """Return the spans of candles that *archive* lacks in [*from_ms*, *until_ms*).

    Without *from_ms* they start with the archive's first candle. Raises ``ConfigInvalid`` where
    it has none.
    """
    stored: list[Span] = []
    if archive.is_file():
        with History.open(archive) as history:
            known = {(one.instrument.id, one.interval_ms) for one in history.series()}
            if (instrument.id, interval_ms) in known:
                stored = history.spans(instrument.id, interval_ms)
    if from_ms is None:
        if not stored:
            raise ConfigInvalid(
                f"{archive} holds no candle of {instrument.id} yet: say with --from where to "
                "start, such as --from 2025-01-01."
            )
        from_ms = stored[0][0]
    phase_ms = MONDAY_MS if interval_ms % WEEK_MS == 0 else 0
    return lacking(stored, whole_span(from_ms, until_ms, interval_ms, phase_ms=phase_ms))


async def fetch_into(
    archive: Path,
    rest: Klines,
    instrument: Instrument,
    interval_ms: int,
    spans: Sequence[Span],
    *,
    progress: Callable[[int], None] = lambda _candles: None,
) -> Fetched:
    """Fetch the candles of *spans* into *archive*; each page is committed before the next."""
    with HistoryWriter(archive) as writer:

        def keep(page: Sequence[Bar]) -> None:
            writer.write(instrument, interval_ms, page)

        return await fetch(rest, instrument, interval_ms, spans, keep=keep, progress=progress)
