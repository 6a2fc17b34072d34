"""Candle files of a share that does not exist, over the true sessions of an exchange."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import msgspec

from tracepaper.replay.archive.sessions import sessions_named
from tracepaper.strategies.sessions import Anchor, Calendar
from tracepaper.strategies.units import DAY_MS

HOUR_MS = 3_600_000
NEW_YORK = ZoneInfo("America/New_York")
Writes = Callable[[int], str]


def moment(text: str) -> int:
    """Return the UTC milliseconds of a time in New York, or of one with an offset."""
    at = datetime.fromisoformat(text)
    return round((at if at.tzinfo else at.replace(tzinfo=NEW_YORK)).timestamp() * 1_000)


def with_offset(open_ms: int) -> str:
    """Write a time as New York's with its offset from UTC."""
    return datetime.fromtimestamp(open_ms / 1_000, NEW_YORK).isoformat(" ")


def without_zone(open_ms: int) -> str:
    """Write a time as New York's, and do not say so."""
    return with_offset(open_ms)[:19]


def date_alone(open_ms: int) -> str:
    """Write the date in New York."""
    return with_offset(open_ms)[:10]


def local_midnight(open_ms: int) -> str:
    """Write the midnight in New York before the open, with its offset."""
    day = datetime.fromisoformat(date_alone(open_ms)).replace(tzinfo=NEW_YORK)
    return day.isoformat(" ")


def in_utc(open_ms: int) -> str:
    """Write a time in UTC, without saying so."""
    return datetime.fromtimestamp(open_ms / 1_000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def opens(
    first: str,
    last: str,
    interval_ms: int = DAY_MS,
    *,
    calendar: str = "XNAS",
    anchor: Anchor = Anchor.CLOCK,
) -> list[int]:
    """Return when the bars of the exchange's days *first* to *last* open."""
    start, end = (moment(f"{day}T00:00:00+00:00") for day in (first, last))
    sessions = msgspec.structs.replace(sessions_named(calendar)(start, end), anchor=anchor)
    intervals = Calendar(sessions, interval_ms)
    days = [start // DAY_MS <= day <= end // DAY_MS for day in intervals.days.tolist()]
    return [at for at, inside in zip(intervals.opens.tolist(), days, strict=True) if inside]


def write(
    path: Path,
    times: Collection[int],
    writes: Writes = with_offset,
    *,
    prices: Callable[[int], float] = lambda _row: 1.0,
    volumes: Callable[[int], float] = lambda _row: 1.0,
    seed: int = 1,
) -> Path:
    """Write a seeded walk around 100; *prices* and *volumes* multiply the candle of a row."""
    rng = random.Random(seed)
    lines, close = ["Date,Open,High,Low,Close,Volume"], 100.0
    for row, at in enumerate(times):
        open_ = close * (1 + rng.uniform(-0.004, 0.004))
        close = open_ * (1 + rng.uniform(-0.01, 0.01))
        of, volume = prices(row), rng.randint(900_000, 1_100_000) * volumes(row)
        cells = (open_, max(open_, close) * 1.003, min(open_, close) * 0.997, close)
        scaled = ",".join(f"{cell * of:.2f}" for cell in cells)
        lines.append(f"{writes(at)},{scaled},{volume:.0f}")
    path.write_text("\n".join(lines) + "\n")
    return path
