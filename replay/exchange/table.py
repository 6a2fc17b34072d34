"""Candles of one symbol at one interval: the data itself, or its exact aggregate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import starmap
from typing import Final

import numpy as np

from tracepaper.replay.exchange.intervals import (
    IntArray,
    bucket_end,
    bucket_start,
    bucket_starts,
    is_coarser,
    is_name,
)
from tracepaper.replay.exchange.path import Candle

TURNOVER_DECIMALS: Final = 4
"""Decimals of a turnover that the data lacks, as tickers show it."""
SLICE_ROWS: Final = 4_096


@dataclass(frozen=True, eq=False)
class CandleTable:
    """Columns of one length, oldest first; ``first_row`` is where each candle's base rows begin."""

    start_ms: IntArray
    open: IntArray
    high: IntArray
    low: IntArray
    close: IntArray
    volume: IntArray
    turnover: IntArray
    first_row: IntArray

    def __len__(self) -> int:
        return int(self.start_ms.size)

    def candle(self, row: int) -> Candle:
        """Return the candle at *row*."""
        return Candle(
            int(self.start_ms[row]),
            int(self.open[row]),
            int(self.high[row]),
            int(self.low[row]),
            int(self.close[row]),
            int(self.volume[row]),
            int(self.turnover[row]),
        )

    def candles(self, first: int, last: int) -> list[Candle]:
        """Return the candles of rows *first* to *last*, exclusive, oldest first."""
        rows = slice(first, last)
        return list(
            starmap(
                Candle,
                zip(
                    self.start_ms[rows].tolist(),
                    self.open[rows].tolist(),
                    self.high[rows].tolist(),
                    self.low[rows].tolist(),
                    self.close[rows].tolist(),
                    self.volume[rows].tolist(),
                    self.turnover[rows].tolist(),
                    strict=True,
                ),
            )
        )

    def row_at(self, time_ms: int) -> int:
        """Return the last row that starts at or before *time_ms*; -1 where there is none."""
        return int(self.start_ms.searchsorted(time_ms, side="right")) - 1

    def end_of(self, row: int, interval: str) -> int:
        """Return the first millisecond after the candle at *row* of a table of *interval*."""
        return bucket_end(int(self.start_ms[row]), interval)


class CandleSeries:
    """One measure of a market (trades, mark, index, premium) at every interval of the exchange.

    ``running`` gives a bar of *base* as it stands at a moment, with nothing later in it.
    """

    def __init__(
        self,
        base: CandleTable,
        interval: str,
        interval_ms: int,
        running: Callable[[int, int], Candle],
    ) -> None:
        self.base: Final = base
        self._interval = interval
        self._interval_ms = interval_ms
        self._running = running
        self._tables = {interval: base}

    def table(self, interval: str) -> CandleTable | None:
        """Return the candles at *interval*, or None where the data cannot make them."""
        if interval not in self._tables:
            if not is_name(interval) or not is_coarser(interval, self._interval_ms):
                return None
            self._tables[interval] = aggregate(self.base, interval)
        return self._tables[interval]

    def open_candle(self, interval: str, row: int, time_ms: int) -> Candle:
        """Return the candle at *interval* around bar *row*, with nothing after *time_ms* in it."""
        now = self._running(row, time_ms)
        if interval == self._interval:
            return now
        start = bucket_start(int(self.base.start_ms[row]), interval)
        first = self.base.row_at(start - 1) + 1
        if first == row:
            return now._replace(start_ms=start)
        past = slice(first, row)
        return Candle(
            start,
            int(self.base.open[first]),
            max(int(self.base.high[past].max()), now.high),
            min(int(self.base.low[past].min()), now.low),
            now.close,
            int(self.base.volume[past].sum()) + now.volume,
            int(self.base.turnover[past].sum()) + now.turnover,
        )


def aggregate(base: CandleTable, interval: str) -> CandleTable:
    """Return *base* at the coarser *interval*; a bucket holds what the data has of it."""
    starts = bucket_starts(base.start_ms, interval)
    first = np.flatnonzero(np.diff(starts, prepend=starts[0] - 1))
    last = np.append(first[1:], len(base)) - 1
    return CandleTable(
        start_ms=starts[first],
        open=base.open[first],
        high=np.maximum.reduceat(base.high, first),
        low=np.minimum.reduceat(base.low, first),
        close=base.close[last],
        volume=np.add.reduceat(base.volume, first),
        turnover=np.add.reduceat(base.turnover, first),
        first_row=first,
    )


def typical_turnover(base: CandleTable, *, price_decimals: int, size_decimals: int) -> IntArray:
    """Return volume x (open + high + low + close) / 4, in 10^-TURNOVER_DECIMALS.

    It stands in for the turnover that an archive dropped. The product of two 64-bit scales needs
    Python integers; they are made a slice at a time, since they are large.
    """
    shift = price_decimals + size_decimals - TURNOVER_DECIMALS
    above, below = 10 ** max(0, -shift), 4 * 10 ** max(0, shift)
    total = base.open + base.high + base.low + base.close
    turnover = np.empty(len(base), dtype=np.int64)
    for first in range(0, len(base), SLICE_ROWS):
        rows = slice(first, first + SLICE_ROWS)
        turnover[rows] = total[rows].astype(object) * base.volume[rows] * above // below
    return turnover
