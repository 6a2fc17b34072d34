"""What a file of candles is worth: span, holes, empty minutes, and where its opens come from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tracepaper.replay.archive.candles import Candles, Span
from tracepaper.strategies.calendar import Calendar
from tracepaper.strategies.market import DAY_MS
from tracepaper.strategies.splits import SplitWatch, SuspectedSplit
from tracepaper.strategies.types import Category


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
    splits: tuple[str, ...]  # sentences about those that are suspected; of shares alone
    calendar: str | None  # whose sessions are counted; None where every interval is
    sessions: int | None  # of them from the first candle to the last


def quality(candles: Candles) -> Quality:
    """Return the figures of *candles*."""
    consecutive = candles.steps == 1
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
        missing=candles.missing,
        zero_volume=int(np.count_nonzero(candles.volume == 0)),
        price_decimals=candles.price_decimals,
        volume_decimals=candles.volume_decimals,
        turnover_decimals=None if candles.turnover is None else candles.turnover_decimals,
        open_is_previous_close=int(np.count_nonzero(same & consecutive)) / joined
        if joined
        else None,
        flat=int(np.count_nonzero(candles.high == candles.low)),
        notes=candles.notes,
        splits=split_sentences(candles),
        calendar=None if candles.calendar is None else candles.calendar.sessions.name,
        sessions=None if candles.calendar is None else _sessions(candles, candles.calendar),
    )


def _sessions(candles: Candles, calendar: Calendar) -> int:
    first, last = calendar.places(candles.open_time_ms[[0, -1]]).tolist()
    return int(np.unique(calendar.days[first : last + 1]).size)


def suspected_splits(candles: Candles) -> list[SuspectedSplit]:
    """Return the splits that *candles* of a share show, each where they were not adjusted for it.

    Only the first and the last candle of a session are looked at.
    """
    times, calendar = candles.open_time_ms, candles.calendar
    days = times // DAY_MS if calendar is None else calendar.days[calendar.places(times)]
    turns = np.flatnonzero(np.diff(days))
    rows = np.unique(np.concatenate(([0], turns, turns + 1)))
    watch = SplitWatch()
    columns = (days, times, candles.open, candles.close, candles.volume)
    bars = zip(*(column[rows].tolist() for column in columns), strict=True)
    seen = (watch.add(day, at, (open_, close), volume) for day, at, open_, close, volume in bars)
    return [split for split in seen if split is not None]


def split_sentences(candles: Candles) -> tuple[str, ...]:
    """Return a sentence about each split that is suspected in *candles*; none unless of a share."""
    if candles.category is not Category.STOCK:
        return ()
    return tuple(split.sentence(candles.symbol) for split in suspected_splits(candles))
