"""Columns that a strategy declares: computed for many bars at once, exposed up to the newest bar.

The rule is docs/strategies.md, U2.

``columns`` is called with a block of bars and the bars before it that it looks back on. Blocks lie
on a fixed grid of market time, so an array begins at the same bar live, after a restart and in a
replay. A replay knows the later bars too, so it computes a block in one call. If row i depends only
on rows up to i, all of these give bit-identical values.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import islice
from math import isclose, isnan
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tracepaper.strategies.api.arrays import BarArrays
from tracepaper.strategies.errors import StrategyFailed
from tracepaper.strategies.months import place_of
from tracepaper.strategies.types.market import Bar, Instrument
from tracepaper.strategies.units import iso

BLOCK_BARS: Final = 128
"""Bars per block: a start needs this many bars more than ``warmup``."""

PROBED_FIRST: Final = 4
PROBED_EVERY: Final = 16

Column = npt.NDArray[Any]
Compute = Callable[[BarArrays], Mapping[str, Column]]
_FIELDS: Final = ("open", "high", "low", "close", "volume", "closed_ms")
_LATE: Final = "context.columns was read after its bar; read it in the decide call of that bar."


class ColumnRecord:
    """The declared columns of one instrument, read by (newest bar, name, whether one number).

    A read returns the number at that bar, or an array of the last *lookback* rows. The array's
    memory gets each row with its bar, so neither its ``base`` nor another stride over it reaches
    a later bar.
    """

    __iter__ = copy = get = items = keys = values = None  # a proxy would expose these

    def __init__(self, instrument: Instrument, lookback: int, compute: Compute) -> None:
        self._scales = instrument.price_decimals, instrument.volume_decimals
        self._lookback, self._compute = lookback, compute
        self._past: deque[Bar] = deque(maxlen=lookback + BLOCK_BARS)
        self._coming: deque[Bar] = deque()
        self._bars: Sequence[Bar] = ()  # of the computed block, and the lookback before it
        self._at = -1  # index of the newest bar in ``_bars``
        self._values: Mapping[str, Column] = {}
        self._shown: dict[str, _Shown] = {}
        self.probes = False
        """Whether sampled bars of a block are computed again without the later ones."""
        self._blocks = 0  # that were computed with later bars
        self.precompute_columns = self._coming.append
        """Add a bar that a replay expects later."""

    def append(self, bar: Bar) -> None:
        """Add the newest bar."""
        self._past.append(bar)
        coming = self._coming
        while coming and coming[0].open_time_ms <= bar.open_time_ms:
            coming.popleft()
        self._at += 1
        if self._at >= len(self._bars) or self._bars[self._at] is not bar:
            self._bars, self._at = (), -1

    def extend(self, bars: Sequence[Bar]) -> None:
        """Add *bars*, some of the next in :meth:`same_ahead`."""
        self._past.extend(bars)
        coming, newest_ms = self._coming, bars[-1].open_time_ms
        while coming and coming[0].open_time_ms <= newest_ms:
            coming.popleft()
        self._at += len(bars)

    def same_ahead(self, name: str) -> Sequence[Bar]:
        """Return the known bars that follow the newest in its block with an equal *name*."""
        shown = self._shown.get(name) if self._bars else None
        if shown is None:
            return ()
        changes = shown.changes
        place = bisect_right(changes, self._at)
        end = changes[place] if place < len(changes) else len(self._bars)
        return self._bars[self._at + 1 : end]

    def __getitem__(self, key: tuple[Bar, str, bool]) -> Any:  # noqa: ANN401 - by the key
        """Return the newest number or the last rows of a column; *key* has the newest bar."""
        bar, name, is_one = key
        if not self._past or bar is not self._past[-1]:
            raise StrategyFailed(_LATE)
        if not self._bars:
            self._fill()
        if (shown := self._shown.get(name)) is None:
            names = ", ".join(map(repr, self._values)) or "none"
            raise StrategyFailed(
                f"context.columns[{name!r}] was read, and columns() gives {names}."
            )
        if is_one:
            return shown.numbers[self._at]
        end = self._at + 1
        return shown.rows(end - self._lookback if end > self._lookback else 0, end)

    def newest(self) -> tuple[tuple[str, Any], ...]:
        """Return the name and the newest value of each column; () if too few bars are known."""
        if len(self._past) < self._lookback:
            return ()
        if not self._bars:
            self._fill()
        return tuple((name, column[self._at].item()) for name, column in self._values.items())

    def _fill(self) -> None:
        """Compute the known bars of the newest bar's block."""
        block, past = _block_of(self._past[-1]), [*self._past]
        coming = [*islice(self._coming, BLOCK_BARS)]
        first = bisect_left(past, block, key=_block_of)
        bars = past[max(first - self._lookback, 0) :]
        self._at = len(bars) - 1
        bars += coming[: bisect_right(coming, block, key=_block_of)]
        values = self._computed(bars)
        if self.probes and len(bars) > self._at + 1:
            self._probe(bars, values)
        self._bars, self._values = bars, values
        self._shown = {name: _Shown(column) for name, column in values.items()}

    def _computed(self, bars: Sequence[Bar]) -> Mapping[str, Column]:
        return self._compute(BarArrays(_ColumnCache(bars, *self._scales), bars[-1]))

    def _probe(self, bars: Sequence[Bar], values: Mapping[str, Column]) -> None:
        """If a probe is due, raise ``StrategyFailed`` if a row changes without later bars.

        The first blocks are probed, and later every sixteenth, each at another row.
        """
        self._blocks += 1
        if self._blocks > PROBED_FIRST and self._blocks % PROBED_EVERY:
            return
        row = self._at + self._blocks * 7_919 % (len(bars) - 1 - self._at)
        alone = self._computed(bars[: row + 1])
        for name, column in values.items():
            together, without = column[row].item(), alone[name][row].item()
            # Arrays of another length may round in another order.
            is_equal = isclose(together, without, rel_tol=1e-9, abs_tol=1e-12)
            if not is_equal and not (isnan(together) and isnan(without)):
                raise StrategyFailed(
                    f"The row of {name!r} at {iso(bars[row].closed_ms)} is {together!r}, and "
                    f"{without!r} where later bars are cut off: it looks ahead; let each row "
                    "depend on rows before it alone."
                )


class _Shown:
    """A column of a block in memory of its own, which gets its rows when they may be read."""

    def __init__(self, column: Column) -> None:
        self._column, self._count = column, 0
        memory = bytearray(column.nbytes)
        self._writable = np.frombuffer(memory, column.dtype)
        self._readable = np.frombuffer(memoryview(memory).toreadonly(), column.dtype)

    @cached_property
    def numbers(self) -> list[Any]:
        """All rows as numbers of Python."""
        return self._column.tolist()

    @cached_property
    def changes(self) -> list[int]:
        """The rows that differ from the one before."""
        changes: list[int] = (np.flatnonzero(self._column[1:] != self._column[:-1]) + 1).tolist()
        return changes

    def rows(self, start: int, end: int) -> Column:
        """Return the rows from *start* to *end*, which are now shown."""
        if (count := self._count) < end:
            self._writable[count:end] = self._column[count:end]
            self._count = end
        return self._readable[start:end]


def _block_of(bar: Bar) -> int:
    return place_of(bar.open_time_ms, bar.interval_ms) // BLOCK_BARS


class _ColumnCache(dict[tuple[Bar, int], Column]):
    """The columns of *bars*, created on first read."""

    def __init__(self, bars: Sequence[Bar], price_decimals: int, volume_decimals: int) -> None:
        super().__init__()
        price, volume = 10.0**price_decimals, 10.0**volume_decimals
        self._bars, self._units = bars, (price, price, price, price, volume, None)

    def __missing__(self, key: tuple[Bar, int]) -> Column:
        unit, field = self._units[key[1]], _FIELDS[key[1]]
        column: Column = np.array([getattr(bar, field) for bar in self._bars])
        if unit is not None:
            column = column / unit
        column.flags.writeable = False
        self[key] = column
        return column


def checked_columns(name: str, given: object, rows: int) -> dict[str, Column]:
    """Return *given*, the result of ``columns`` of class *name*, as arrays of *rows* rows."""
    advice = "return a dictionary of arrays with one row per bar of history"
    if not isinstance(given, Mapping):
        raise StrategyFailed(f"{name}.columns returned {type(given).__name__}; {advice}.")
    columns: dict[str, Column] = {}
    for key, values in given.items():
        column = np.asarray(values)
        if type(key) is not str or column.shape != (rows,) or column.dtype.kind not in "biuf":
            raise StrategyFailed(
                f"{name}.columns gave {key!r:.40} of {column.dtype} and the shape {column.shape}, "
                f"and history has {rows} rows; {advice}."
            )
        columns[key] = column
    return columns


def checked_signals(given: object, rows: int, answers: Mapping[int, object]) -> tuple[Column, str]:
    """Return *given*, the result of ``signals``, as int8 [rows]; or what is wrong with it."""
    codes = np.asarray(given)
    if codes.shape != (rows,):
        shape = f"an array of the shape {codes.shape}" if codes.shape else f"{given!r:.40}"
        return codes, f"returned {shape} for {rows} bars"
    if codes.dtype.kind not in "biu":
        return codes, f"returned {codes.dtype} and no whole numbers, as .astype(int) makes"
    known = np.isin(codes, [*answers])
    if not known.all():
        return codes, f"returned {codes[~known][0]}, which is no key of its answers"
    return codes.astype(np.int8), ""
