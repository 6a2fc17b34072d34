"""The closed bars of an instrument as read-only arrays.

Bars are kept in append-only columns. A column that a strategy reads is copied once per bar into
immutable bytes. So an array never changes, and neither its ``base`` nor another stride over it
reaches later bars. Copying a thousand bars of a column takes under a microsecond.

The rules are docs/strategies.md, U2.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tracepaper.strategies.errors import StrategyFailed
from tracepaper.strategies.types.market import Bar, Instrument

Floats = npt.NDArray[np.float64]
Times = npt.NDArray[np.int64]
ColumnCache = Mapping[tuple[Bar, int], Any]
"""Maps (bar, column number) to the column's last rows at that bar."""

_DTYPES: Final = (*(np.dtype(np.float64),) * 5, np.dtype(np.int64))
_SPARE: Final = 1_024
"""Rows beyond twice the window at which old rows are dropped."""
_LATE: Final = (
    "The history of an earlier bar was first read at a later one; read its columns in the call "
    "that received it, and keep the arrays."
)


class BarArrays:
    """The last closed bars, oldest first, including the decided bar.

    Prices and volume are float64 in units of the market, times int64, UTC milliseconds at which the
    bars closed. Every array has the shape (bars,) and is read-only. A column is copied on its first
    read, which must be inside the call that received it.
    """

    __slots__ = ("_bar", "_close", "_columns", "_high", "_low", "_open", "_time", "_volume")

    def __init__(self, columns: ColumnCache, bar: Bar) -> None:
        self._columns, self._bar = columns, bar
        self._open: Floats | None = None
        self._high: Floats | None = None
        self._low: Floats | None = None
        self._close: Floats | None = None
        self._volume: Floats | None = None
        self._time: Times | None = None

    def __len__(self) -> int:
        """Return the number of bars, which is ``warmup`` in every decision."""
        return (self.time if self._close is None else self._close).size

    def __getitem__(self, name: str) -> Floats | Times:
        """Return the array *name*, as a frame of pandas does."""
        array: Floats | Times = getattr(self, str(name))
        return array

    @property
    def open(self) -> Floats:
        """Opening prices."""
        if (column := self._open) is None:
            column = self._open = self._columns[self._bar, 0]
        return column

    @property
    def high(self) -> Floats:
        """Highest prices."""
        if (column := self._high) is None:
            column = self._high = self._columns[self._bar, 1]
        return column

    @property
    def low(self) -> Floats:
        """Lowest prices."""
        if (column := self._low) is None:
            column = self._low = self._columns[self._bar, 2]
        return column

    @property
    def close(self) -> Floats:
        """Closing prices."""
        if (column := self._close) is None:
            column = self._close = self._columns[self._bar, 3]
        return column

    @property
    def volume(self) -> Floats:
        """Volumes, in base."""
        if (column := self._volume) is None:
            column = self._volume = self._columns[self._bar, 4]
        return column

    @property
    def time(self) -> Times:
        """Times at which the bars closed, UTC milliseconds."""
        if (column := self._time) is None:
            column = self._time = self._columns[self._bar, 5]
        return column


class RecentBars:
    """The writable columns of one instrument; reads return copies of the last *length* rows.

    A history reads them through a mapping proxy, so a strategy cannot reach the writable memory.
    """

    __iter__ = copy = get = items = keys = values = None  # a proxy would expose these

    def __init__(self, instrument: Instrument, length: int) -> None:
        self._length = length
        self._max_rows = 2 * length + _SPARE
        self._price_unit = 10**instrument.price_decimals
        self._volume_unit = 10**instrument.volume_decimals
        self._open, self._high, self._low, self._close, self._volume = (
            array("d") for _ in range(5)
        )
        self._time = array("q")
        self._all = (self._open, self._high, self._low, self._close, self._volume, self._time)
        self._newest: Bar | None = None
        self._history: BarArrays | None = None
        self._columns: ColumnCache = MappingProxyType(self)  # type: ignore[arg-type]

    def extend(self, bars: Iterable[Bar]) -> None:
        """Append *bars*, in order."""
        price, volume = self._price_unit, self._volume_unit
        for bar in bars:
            self._open.append(bar.open / price)
            self._high.append(bar.high / price)
            self._low.append(bar.low / price)
            self._close.append(bar.close / price)
            self._volume.append(bar.volume / volume)
            self._time.append(bar.closed_ms)
            self._newest = bar
        self._history = None
        if len(self._time) > self._max_rows:
            for column in self._all:
                del column[: -self._length]

    def at(self, bar: Bar) -> BarArrays:
        """Return the history up to *bar*, which must be the newest."""
        if bar is not self._newest:
            raise StrategyFailed(_LATE)
        history = self._history
        if history is None:
            history = self._history = BarArrays(self._columns, bar)
        return history

    def __getitem__(self, key: tuple[Bar, int]) -> npt.NDArray[Any]:
        """Return a copy of a column's last rows; the bar of *key* must be the newest."""
        bar, place = key
        if bar is not self._newest:
            raise StrategyFailed(_LATE)
        column = memoryview(self._all[place])
        return np.frombuffer(column[-self._length :].tobytes(), _DTYPES[place])
