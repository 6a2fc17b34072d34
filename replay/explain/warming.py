"""When a run that is warming up may trade: one answer for card, banner and `explain`."""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec import Struct

from tracepaper.daemon.http.client import ask
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.errors import TracepaperError
from tracepaper.strategies.units import minute_text


class _Feed(Struct):
    instrument: str
    warm_at_ms: int | None


class _Status(Struct):
    run_id: str
    feeds: list[_Feed]


def warm_at_ms(reader: Reader, run_id: str, instrument: str) -> int | None:
    """Return when *instrument* will be warm by the daemon of the run; None without an answer.

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
    return next((feed.warm_at_ms for feed in status.feeds if feed.instrument == instrument), None)


def warming_sentence(lacking: int, bars_ms: int, at_ms: int | None) -> str:
    """Return what a warm-up lacks: *lacking* bars, the last of which closes at *bars_ms*.

    *at_ms* is when it will be warm; None if only the bars are known.
    """
    # The count stops one short if candles of a timeframe are missing.
    bars = "one more bar" if lacking == 1 else f"{lacking:,} more bars"
    if at_ms is None:
        return f"It needs {bars}{', or candles of a higher timeframe' if lacking == 1 else ''}."
    others = " and candles of a higher timeframe" if at_ms > bars_ms else ""
    return f"It may trade from {minute_text(at_ms)}, if no bar is missing: it needs {bars}{others}."
