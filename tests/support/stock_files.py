"""Candle files of a share that does not exist, over sessions as those of New York."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from tracepaper.strategies.units import DAY_MS

HOUR_MS = 3_600_000
NEW_YORK = ZoneInfo("America/New_York")
Writes = Callable[[int], str]
HOLIDAYS = frozenset({"2014-11-27", "2014-12-25", "2015-01-01", "2015-01-19", "2015-02-16"})
HALF_DAYS = frozenset({"2014-11-28", "2014-12-24"})


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
    hours: Sequence[tuple[str, str]] = (("09:30", "16:00"),),
    zone: ZoneInfo = NEW_YORK,
    by_clock: bool = True,
) -> list[int]:
    """Return when the bars of the weekdays *first* to *last* open, but for holidays.

    *by_clock*, the first bar of an hour is half of one: 9:30, 10:00, 11:00; else 9:30, 10:30.
    """
    day, times = date.fromisoformat(first), list[int]()
    while day <= date.fromisoformat(last):
        if day.weekday() < 5 and str(day) not in HOLIDAYS:
            for opened, closed in hours:
                end = "13:00" if str(day) in HALF_DAYS else closed
                start_ms, end_ms = (
                    moment(f"{datetime.fromisoformat(f'{day}T{at}').replace(tzinfo=zone)}")
                    for at in (opened, end)
                )
                times.append(start_ms)
                if interval_ms < DAY_MS:
                    phase = start_ms % interval_ms if by_clock else 0
                    times += range(start_ms - phase + interval_ms, end_ms, interval_ms)
        day += timedelta(days=1)
    return times


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
