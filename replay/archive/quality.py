"""What a file of candles is worth: span, holes, empty minutes, and where its opens come from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tracepaper.replay.archive.candles import Candles, Span
from tracepaper.strategies.market import UNITS_MS


@dataclass(frozen=True)
class Quality:
    """Figures of one file; times are UTC milliseconds of candle opens."""

    path: str
    instrument: str
    interval_ms: int
    rows: int
    first_ms: int
    last_ms: int
    gaps: tuple[Span, ...]  # (first missing open time, open time after it)
    missing: int  # candles that the gaps lack
    zero_volume: int  # candles without volume
    price_decimals: int
    volume_decimals: int
    turnover_decimals: int | None  # None where the file has no turnover
    open_is_previous_close: float | None
    """Share of consecutive candles that open at the close before: Bybit's always do, as their
    open is not a traded price; those built from trades mostly do not."""
    flat: int  # candles with one price alone
    notes: tuple[str, ...]


def quality(candles: Candles) -> Quality:
    """Return the figures of *candles*."""
    consecutive = np.diff(candles.open_time_ms) == candles.interval_ms
    same = candles.open[1:] == candles.close[:-1]
    joined = int(np.count_nonzero(consecutive))
    gaps = tuple(candles.gaps)
    return Quality(
        path=candles.path,
        instrument=candles.instrument,
        interval_ms=candles.interval_ms,
        rows=len(candles),
        first_ms=int(candles.open_time_ms[0]),
        last_ms=int(candles.open_time_ms[-1]),
        gaps=gaps,
        missing=sum(until - start for start, until in gaps) // candles.interval_ms,
        zero_volume=int(np.count_nonzero(candles.volume == 0)),
        price_decimals=candles.price_decimals,
        volume_decimals=candles.volume_decimals,
        turnover_decimals=None if candles.turnover is None else candles.turnover_decimals,
        open_is_previous_close=int(np.count_nonzero(same & consecutive)) / joined
        if joined
        else None,
        flat=int(np.count_nonzero(candles.high == candles.low)),
        notes=candles.notes,
    )


def interval_text(interval_ms: int) -> str:
    """Return *interval_ms* in the largest unit that divides it: ``5m``, ``4h``, ``1d``."""
    for unit in ("w", "d", "h", "m"):
        if interval_ms % UNITS_MS[unit] == 0:
            return f"{interval_ms // UNITS_MS[unit]}{unit}"
    return f"{interval_ms / 1000:g}s"
