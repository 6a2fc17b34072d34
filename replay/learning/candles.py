"""Candle files of several symbols and intervals → the candles of each interval that is asked for.

A file of a finer interval is resampled: closed bars alone, and a coarser bar that lacks one of its
parts is a hole. A bar of a symbol that an earlier file holds is used once, from that file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tracepaper.replay.archive import Candles, merge_candles, read_candles, slice_candles
from tracepaper.replay.archive.candles import resample
from tracepaper.replay.archive.sessions import common_sessions, counted_by, sessions_named
from tracepaper.replay.learning.splits import TrainingFile, file_sha256
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.months import MONTH_MS
from tracepaper.strategies.types.market import Category
from tracepaper.strategies.units import interval_text


@dataclass(frozen=True)
class CandleFiles:
    """What the files hold, and their candles by interval: a series an instrument, oldest first."""

    sources: tuple[TrainingFile, ...]
    candles: dict[int, list[Candles]]


def read_files(
    paths: Sequence[str],
    intervals: Sequence[int] = (),
    *,
    calendar: str | None = None,
    columns: Sequence[str] = (),
) -> CandleFiles:
    """Read candle files (PATH or SYMBOL=PATH) as bars of *intervals*, in milliseconds.

    Without *intervals* they are bars of the first file's. With a *calendar*, such as ``XNAS``, bars
    are those of its sessions; *columns* are choices as of ``read_candles``. Raises ``DataInvalid``
    for a file that makes bars of none of them, whose price never moves or that holds no volume, and
    ``ConfigInvalid`` for one whose symbol cannot be known.
    """
    parts = _read(paths, calendar, columns)
    for part in parts:
        _refuse_dead(part)
    wanted = tuple(intervals) or (parts[0].interval_ms,)
    if MONTH_MS in wanted:
        raise DataInvalid(
            f"{parts[0].path}: months are too few to learn from; give a shorter interval."
        )
    for part in parts:
        if not _makes(part, wanted):
            known = ", ".join(map(interval_text, wanted))
            raise DataInvalid(
                f"{part.path} has bars of {interval_text(part.interval_ms)}, which make none of"
                f" {known}; leave it out, or train on a multiple of its interval."
            )
    found: dict[int, list[Candles]] = {}
    known_already = [0] * len(parts)
    for number, interval_ms in enumerate(wanted):
        held: list[Candles] = []
        for at, part in enumerate(parts):
            if _makes(part, (interval_ms,)):
                again = _add(held, resample(part, interval_ms))
                known_already[at] += again if number == 0 else 0
        found[interval_ms] = held
    sources = zip(parts, known_already, strict=True)
    return CandleFiles(tuple(_source(part, again, columns) for part, again in sources), found)


def _read(paths: Sequence[str], calendar: str | None, columns: Sequence[str]) -> list[Candles]:
    if calendar is None:
        return [read_candles(path, columns=columns) for path in paths]
    sessions_for = sessions_named(calendar)
    parts = [
        read_candles(path, category=Category.STOCK, columns=columns, sessions_for=sessions_for)
        for path in paths
    ]
    sessions = common_sessions(parts, sessions_for)
    return [counted_by(part, sessions) for part in parts]


def _makes(part: Candles, intervals: Sequence[int]) -> bool:
    return any(interval_ms % part.interval_ms == 0 for interval_ms in intervals)


def _refuse_dead(part: Candles) -> None:
    """Raise ``DataInvalid`` where there is nothing to learn from."""
    if int(part.high.max()) == int(part.low.min()):
        raise DataInvalid(
            f"{part.path}: the price never moves in {len(part)} bars; give candles of a market "
            "that trades."
        )
    if not part.volume.any():
        raise DataInvalid(
            f"{part.path}: no bar has any volume, which features need; give candles with volume."
        )


def _add(held: list[Candles], part: Candles) -> int:
    """Add *part* to the series *held*; return how many of its bars another file had already."""
    used = [one.open_time_ms for one in held if one.symbol == part.symbol]
    fresh = np.ones(len(part), dtype=np.bool_)
    for times in used:
        fresh &= ~np.isin(part.open_time_ms, times, assume_unique=True)
    again = int(np.count_nonzero(~fresh))
    if again < len(part):
        new = slice_candles(part, np.flatnonzero(fresh))
        for at, one in enumerate(held):
            if one.instrument == new.instrument:
                held[at] = replace(merge_candles([one, new])[0], path=one.path)
                break
        else:
            held.append(new)
    return again


def _source(part: Candles, again: int, columns: Sequence[str]) -> TrainingFile:
    file = Path(part.path)
    return TrainingFile(
        name=file.name,
        sha256=file_sha256(file),
        symbol=part.symbol,
        bars=len(part),
        from_ms=int(part.open_time_ms[0]),
        until_ms=part.until_ms,
        interval_ms=part.interval_ms,
        known_already=again,
        columns=tuple(columns),
    )
