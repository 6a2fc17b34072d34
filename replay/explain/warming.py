"""When a run that is warming up may trade: one answer for card, banner and `explain`."""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec import Struct

from tracepaper.daemon.http.client import ask
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.errors import TracepaperError
from tracepaper.strategies.units import minute_text


class Warming(Struct):
    """When an instrument will be warm, and what it holds of what it lacks, by its daemon."""

    instrument: str
    warm_at_ms: int | None
    warming: str | None


class _Status(Struct):
    run_id: str
    feeds: list[Warming]


def warming_of(reader: Reader, run_id: str, instrument: str) -> Warming | None:
    """Return what *instrument* lacks by the daemon of the run; None without an answer.

    The record does not say which candles of higher timeframes the strategy wants; the daemon knows.
    """
    (_, _, path) = reader.connection.execute("PRAGMA database_list").fetchone()
    if not path:
        return None  # in memory
    try:
        status = msgspec.convert(ask(Path(path), "/status"), _Status)
    except (TracepaperError, msgspec.ValidationError):
        return None
    if status.run_id != run_id:
        return None
    waits = (feed for feed in status.feeds if feed.instrument == instrument and feed.warming)
    return next(waits, None)


def warming_sentence(lacking: int, warming: Warming | None) -> str:
    """Return what a warm-up lacks: *lacking* bars, or what the daemon says as *warming*."""
    if warming is None or warming.warm_at_ms is None:
        # The count stops one short if candles of a timeframe are missing.
        bars = "one more bar, or candles of a higher timeframe"
        return f"It needs {bars if lacking == 1 else f'{lacking:,} more bars'}."
    at = minute_text(warming.warm_at_ms)
    return f"It may trade from {at}, if no bar is missing."
