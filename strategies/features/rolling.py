"""Rolling sums and maxima, bit-identical whether computed in a batch or row by row.

A running total keeps its rounding errors forever. Here a window of 2m rows is the sum of two
windows of m rows, the older added to the newer. Any other length is made of powers of two, the
largest one newest. So a value depends on exactly the rows of its window, added in a fixed order
however they arrive. Rows of zero sum to exactly zero, so a flat market has no variance.

``v2.FeatureRecipe`` defines a bar's base rows, their windows and the features; ``rows`` holds the
state of the windows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracepaper.strategies.units import DAY_MS, HOUR_MS, MINUTE_MS

Array = NDArray[np.float64]
Ids = NDArray[np.int64]

LONGEST: Final = 256
"""The minimum number of rows in a ring buffer; lookbacks are shorter."""


class Window(NamedTuple):
    """*size* consecutive rows that end *lag* rows ago."""

    size: int
    lag: int = 0

    @property
    def reach(self) -> int:
        """Number of rows needed to compute the window."""
        return self.size + self.lag

    @property
    def parts(self) -> list[Window]:
        """The windows of power-of-two size that it is made of, newest and largest first."""
        windows, lag = [], self.lag
        for bit in reversed(range(self.size.bit_length())):
            if self.size >> bit & 1:
                windows.append(Window(1 << bit, lag))
                lag += 1 << bit
        return windows


def lagged(rows: Array, lag: int) -> Array:
    """Return [.., time] *rows* shifted by *lag* rows; the first *lag* entries are NaN."""
    out = np.full_like(rows, np.nan)
    if lag < rows.shape[-1]:
        out[..., lag:] = rows[..., : rows.shape[-1] - lag]
    return out


def windows(rows: Array, combine: np.ufunc, wanted: Iterable[int]) -> dict[int, Array]:
    """Return {size: combined [quantity, time] rows} for the *wanted* window sizes.

    *combine* is ``np.add`` or ``np.maximum``, with the newer of two adjacent windows first. The
    first ``size - 1`` entries of each are NaN.
    """
    sizes = sorted(set(wanted))
    if not sizes:
        return {}
    parts = {size: Window(size).parts for size in sizes}
    needed = {part.size for made_of in parts.values() for part in made_of}
    levels: dict[int, Array] = {}
    size, level = 1, rows
    while True:
        if size in needed:
            levels[size] = level
        if size >= max(needed):
            break
        level = combine(level, lagged(level, size))
        size *= 2
    combined: dict[int, Array] = {}
    for size in sizes:
        first, *others = parts[size]
        total = levels[first.size]
        for part in others:
            total = combine(total, lagged(levels[part.size], part.lag))
        combined[size] = total
    return combined


class WindowPlan:
    """How to read *windows* from a ring: power-of-two sizes directly, the others from parts.

    ``lags[n]`` and ``levels[n]`` locate the n-th part of each of the others that has one.
    """

    def __init__(self, windows: Iterable[Window]) -> None:
        parts = {window: window.parts for window in windows}
        self.rows = max((window.reach for window in parts), default=1)
        self.longest = max((window.size for window in parts), default=1)
        single = [window for window, made_of in parts.items() if made_of == [window]]
        self.direct = {window: window.size.bit_length() - 1 for window in single if not window.lag}
        others = [window for window in parts if window not in self.direct]
        self.others = tuple(sorted(others, key=lambda window: -len(parts[window])))
        self.lags: list[Ids] = []
        self.levels: list[Ids] = []
        for nth in range(max((len(parts[window]) for window in others), default=0)):
            nths = [parts[window][nth] for window in self.others if len(parts[window]) > nth]
            self.lags.append(np.array([part.lag for part in nths]))
            self.levels.append(np.array([part.size.bit_length() - 1 for part in nths]))

    @property
    def windows(self) -> tuple[Window, ...]:
        """All windows of the plan."""
        return (*self.direct, *self.others)

    def of(self, rows: Array, combine: np.ufunc) -> dict[Window, Array]:
        """Return all windows of a batch of [quantity, time] *rows*."""
        rows_by_size = windows(rows, combine, {window.size for window in self.windows})
        return {
            window: lagged(rows_by_size[window.size], window.lag)
            if window.lag
            else rows_by_size[window.size]
            for window in self.windows
        }


class Windows:
    """Rolling windows of one or more independent streams, updated row by row.

    A ring buffer keeps the newest *rows* (at least 256) of each stream, together with their windows
    of 1, 2, 4 … *longest* rows, so that a step needs one read and one write.
    """

    def __init__(
        self,
        quantities: int,
        combine: np.ufunc,
        longest: int,
        *,
        streams: int = 1,
        rows: int = LONGEST,
    ) -> None:
        self._combine = combine
        self._rows = max(LONGEST, 1 << (rows - 1).bit_length())
        self._sizes = 2 ** np.arange(longest.bit_length())
        self._shape = (self._rows, len(self._sizes), quantities)
        self._kept = np.full((streams, *self._shape), np.nan)
        self._counts = np.zeros(streams, dtype=np.int64)
        self._shorter = np.arange(len(self._sizes) - 1)  # levels of all windows but the longest

    def extend(self, streams: int) -> None:
        """Add so many *streams*; copies everything once."""
        self._kept = np.concatenate([self._kept, np.full((streams, *self._shape), np.nan)])
        self._counts = np.concatenate([self._counts, np.zeros(streams, dtype=np.int64)])

    def warm(self, stream: int, rows: Array) -> None:
        """Reset *stream*, then add [quantity, time] *rows* (oldest first) at once."""
        count = rows.shape[-1]
        self._kept[stream] = np.nan
        self._counts[stream] = count
        if count:
            rows_by_size = windows(rows, self._combine, self._sizes.tolist())
            newest = np.arange(max(0, count - self._rows), count)
            levels = np.stack(list(rows_by_size.values()))[..., newest]  # [window, quantity, time]
            self._kept[stream, newest % self._rows] = levels.transpose(2, 0, 1)

    def step(self, streams: Ids, rows: Array) -> Array:
        """Add [quantity, stream] *rows*, one to each of *streams*; return their windows.

        The result is [level, quantity, stream]; level k covers 2ᵏ rows.
        """
        counts = self._counts[streams]
        # A window of 2m rows is the newest window of m rows and the one from m rows ago.
        slots = (counts[:, None] - self._sizes[:-1]) % self._rows
        older = self._kept[streams[:, None], slots, self._shorter]  # [stream, window, quantity]
        older = np.ascontiguousarray(older.transpose(1, 2, 0))
        levels = np.empty((len(self._sizes), *rows.shape))
        levels[0] = rows
        for level in range(len(older)):
            self._combine(levels[level], older[level], out=levels[level + 1])
        self._kept[streams, counts % self._rows] = levels.transpose(2, 0, 1)
        self._counts[streams] = counts + 1
        return levels

    def read(self, streams: Ids, wanted: WindowPlan, levels: Array) -> dict[Window, Array]:
        """Return the *wanted* windows, [quantity, stream] each, from the last step's *levels*."""
        rows_by_window = {window: levels[level] for window, level in wanted.direct.items()}
        if not wanted.others:
            return rows_by_window
        newest = self._counts[streams, None] - 1
        total = np.empty((len(streams), len(wanted.others), self._shape[2]))
        for nth, (lags, part_levels) in enumerate(zip(wanted.lags, wanted.levels, strict=True)):
            part = self._kept[streams[:, None], (newest - lags) % self._rows, part_levels]
            sums = total[:, : len(lags)]
            sums[...] = self._combine(sums, part) if nth else part
        others = np.ascontiguousarray(total.transpose(1, 2, 0))
        return rows_by_window | dict(zip(wanted.others, others, strict=True))

    def past(self, streams: Ids, lags: Ids, quantity: int) -> Array:
        """Return *quantity* [lag, stream] at *lags* rows before the last one."""
        slots = (self._counts[streams] - 1 - lags[:, None]) % self._rows
        return self._kept[streams, slots, 0, quantity]


class FeatureParts(NamedTuple):
    """The inputs of feature rows at each bar's close; arrays end in [time]."""

    past_closes: Sequence[Array] | Array  # one per lag in ``close_lags``
    sums: Mapping[Window, Array]  # [quantity, time]: sums of the base rows
    far: Mapping[Window, Array]  # sums of the first ``far_rows`` base rows over longer windows
    extremes: Mapping[Window, Array]  # [2, time]: highest high and negative lowest low
    inputs: Array  # [2n, time]: inputs of the z-scores, and their squares
    input_sums: Mapping[Window, Array]  # [2n, time]: sums of ``inputs``
    sigma: Array  # the volatility of one bar
    open_time_ms: NDArray[np.int64]


# --- times to bars


class Reach(NamedTuple):
    """The lookbacks of an interval's features; σ² is the mean of *short* and *long* estimates."""

    interval_ms: int
    short_ms: int
    long_ms: int  # also the window of z-scores
    far_ms: int  # the longest windows of ``tree``

    def bars(self, time_ms: int) -> int:
        """Return *time_ms* in whole bars."""
        return time_ms // self.interval_ms

    @property
    def short(self) -> int:
        """The short window of σ, in bars."""
        return self.bars(self.short_ms)

    @property
    def long(self) -> int:
        """The long window of σ and of z-scores, in bars."""
        return self.bars(self.long_ms)


REACHES: Final = {
    "1m": Reach(MINUTE_MS, HOUR_MS, 4 * HOUR_MS, 5 * DAY_MS),
    "3m": Reach(3 * MINUTE_MS, HOUR_MS, 8 * HOUR_MS, 5 * DAY_MS),
    "5m": Reach(5 * MINUTE_MS, 4 * HOUR_MS, DAY_MS, 5 * DAY_MS),
    "15m": Reach(15 * MINUTE_MS, 4 * HOUR_MS, DAY_MS, 5 * DAY_MS),
    "30m": Reach(30 * MINUTE_MS, 8 * HOUR_MS, 2 * DAY_MS, 10 * DAY_MS),
    "1h": Reach(HOUR_MS, DAY_MS, 5 * DAY_MS, 20 * DAY_MS),
    "2h": Reach(2 * HOUR_MS, 2 * DAY_MS, 10 * DAY_MS, 40 * DAY_MS),
    "4h": Reach(4 * HOUR_MS, 4 * DAY_MS, 20 * DAY_MS, 60 * DAY_MS),
    "6h": Reach(6 * HOUR_MS, 6 * DAY_MS, 30 * DAY_MS, 90 * DAY_MS),
    "12h": Reach(12 * HOUR_MS, 10 * DAY_MS, 40 * DAY_MS, 90 * DAY_MS),
    "1d": Reach(DAY_MS, 20 * DAY_MS, 60 * DAY_MS, 120 * DAY_MS),
    "1w": Reach(7 * DAY_MS, 140 * DAY_MS, 420 * DAY_MS, 840 * DAY_MS),
}
"""The lookbacks by interval text."""
