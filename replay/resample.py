"""Exact aggregation of candles to a coarser interval; days begin at 00:00 UTC, weeks on Monday."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from tracepaper.replay.importers.candles import Candles
from tracepaper.replay.importers.decimals import INT64_MAX, IntArray
from tracepaper.replay.importers.times import iso
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid

WEEK_MS: Final = 604_800_000
MONDAY_MS: Final = 4 * 86_400_000
"""The first Monday of the epoch, which began on a Thursday."""


def resample(candles: Candles, interval_ms: int) -> Candles:
    """Return *candles* aggregated to *interval_ms*, a multiple of their own interval.

    A coarse candle is made only of all its parts: one that lacks any, at either end or by a
    hole, is dropped and said, so that a hole stays a hole. Volume and turnover are exact sums.

    Raises ``ConfigInvalid`` where the interval does not divide, ``DataInvalid`` where no whole
    coarse candle is left or 64 bits do not hold a sum.
    """
    if interval_ms == candles.interval_ms:
        return candles
    if interval_ms < candles.interval_ms or interval_ms % candles.interval_ms:
        raise ConfigInvalid(
            f"{candles.path} has candles of {candles.interval_ms // 1000} s, which cannot make "
            f"candles of {interval_ms // 1000} s: choose a multiple."
        )
    phase = MONDAY_MS if interval_ms % WEEK_MS == 0 else 0
    buckets = (candles.open_time_ms - phase) // interval_ms
    first = np.flatnonzero(np.diff(buckets, prepend=buckets[0] - 1))
    counts = np.diff(np.append(first, len(candles)))
    starts = buckets[first] * interval_ms + phase
    whole = np.flatnonzero(counts == interval_ms // candles.interval_ms)
    if not whole.size:
        raise DataInvalid(
            f"{candles.path} covers no whole candle of {interval_ms // 1000} s: give more data."
        )
    last = first + counts - 1
    dropped = tuple(iso(int(start)) for start in np.delete(starts, whole).tolist())
    notes = candles.notes
    if dropped:
        kind = "candle" if len(dropped) == 1 else "candles"
        notes = (*notes, f"{len(dropped)} coarse {kind} not whole, dropped: {_listed(dropped)}")
    return replace(
        candles,
        interval_ms=interval_ms,
        open_time_ms=starts[whole],
        open=candles.open[first[whole]],
        high=np.maximum.reduceat(candles.high, first)[whole],
        low=np.minimum.reduceat(candles.low, first)[whole],
        close=candles.close[last[whole]],
        volume=_sums(candles, candles.volume, first, whole),
        turnover=None
        if candles.turnover is None
        else _sums(candles, candles.turnover, first, whole),
        notes=notes,
    )


def _sums(candles: Candles, values: IntArray, first: IntArray, whole: IntArray) -> IntArray:
    """Return the exact sum of each bucket, or refuse one that 64 bits do not hold."""
    sums = np.add.reduceat(values, first)[whole]
    # Integer sums wrap in silence, while sums of doubles show that they would have.
    rough = np.add.reduceat(values.astype(np.float64), first)[whole]
    if rough.size and float(rough.max()) > INT64_MAX / 2:
        raise DataInvalid(
            f"{candles.path} sums to a volume of more than 64 bits: choose a finer interval."
        )
    return sums


def _listed(names: tuple[str, ...]) -> str:
    """Return the first and the last of *names*, as a long list would bury the message."""
    return names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}"
