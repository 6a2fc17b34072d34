"""Sums and maxima over the last rows, equal bit for bit in a batch and row by row.

A running total never forgets its rounding errors, so its memory is endless. Here a window of
2m rows is the sum of two windows of m rows, the older one added to the newer one, and a window of
any other length that of its powers of two, the largest newest: every value depends on exactly the
rows of its window, in one fixed order of additions, however the rows arrive. Rows of zero sum to
exactly zero, so a flat market has no variance.

``v2.FeatureRecipe`` says what a bar contributes by itself, over which windows that is added up, and
how rows follow; ``rows`` keeps the windows. So a set of features holds formulas and no state.
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
"""The rows that a ring holds unless it is asked for more; it looks back less than that."""


class Window(NamedTuple):
    """So many rows, of which the newest came *lag* rows ago."""

    size: int
    lag: int = 0

    @property
    def reach(self) -> int:
        """How many rows it takes to know it."""
        return self.size + self.lag

    @property
    def parts(self) -> list[Window]:
        """The windows of powers of two that it is made of, the newest and largest first."""
        windows, lag = [], self.lag
        for place in reversed(range(self.size.bit_length())):
            if self.size >> place & 1:
                windows.append(Window(1 << place, lag))
                lag += 1 << place
        return windows


def lagged(rows: Array, lag: int) -> Array:
    """Return [.., time] *rows* as they were *lag* rows before; NaN where there was none."""
    out = np.full_like(rows, np.nan)
    if lag < rows.shape[-1]:
        out[..., lag:] = rows[..., : rows.shape[-1] - lag]
    return out


def windows(rows: Array, combine: np.ufunc, wanted: Iterable[int]) -> dict[int, Array]:
    """Return {window: combined rows} of [quantity, time] *rows* for the *wanted* lengths.

    *combine* is ``np.add`` or ``np.maximum``; the newer of two adjacent windows comes first. The
    first ``window - 1`` entries of each are NaN.
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
    """Which *windows* are read at each step: those of a power of two as they are, others in parts.

    ``lags`` and ``levels`` say where a ring holds the n-th parts of the others that have one.
    """

    def __init__(self, windows: Iterable[Window]) -> None:
        parts = {window: window.parts for window in windows}
        self.rows = max((window.reach for window in parts), default=1)
        self.longest = max((window.size for window in parts), default=1)
        whole = [window for window, made_of in parts.items() if made_of == [window]]
        self.whole = {window: window.size.bit_length() - 1 for window in whole if not window.lag}
        others = [window for window in parts if window not in self.whole]
        self.others = tuple(sorted(others, key=lambda window: -len(parts[window])))
        self.lags: list[Ids] = []
        self.levels: list[Ids] = []
        for nth in range(max((len(parts[window]) for window in others), default=0)):
            those = [parts[window][nth] for window in self.others if len(parts[window]) > nth]
            self.lags.append(np.array([part.lag for part in those]))
            self.levels.append(np.array([part.size.bit_length() - 1 for part in those]))

    @property
    def windows(self) -> tuple[Window, ...]:
        """All of them."""
        return (*self.whole, *self.others)

    def of(self, rows: Array, combine: np.ufunc) -> dict[Window, Array]:
        """Return the windows of [quantity, time] *rows*."""
        rows_by_size = windows(rows, combine, {window.size for window in self.windows})
        return {
            window: lagged(rows_by_size[window.size], window.lag)
            if window.lag
            else rows_by_size[window.size]
            for window in self.windows
        }


class Windows:
    """The same windows, row by row, of one or more streams of rows that each go on by themselves.

    The newest 256 rows of a stream, or as many *rows* as are asked for, are kept with their
    windows of 1, 2, 4 … *longest* rows side by side, so that a step reads all that it adds up at
    once and writes at once.
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
        self._shorter = np.arange(len(self._sizes) - 1)  # the windows that longer ones are made of

    def extend(self, streams: int) -> None:
        """Make room for so many further *streams*: one copy of all."""
        self._kept = np.concatenate([self._kept, np.full((streams, *self._shape), np.nan)])
        self._counts = np.concatenate([self._counts, np.zeros(streams, dtype=np.int64)])

    def warm(self, stream: int, rows: Array) -> None:
        """Forget *stream*, then take in [quantity, time] *rows* (oldest first) at once."""
        count = rows.shape[-1]
        self._kept[stream] = np.nan
        self._counts[stream] = count
        if count:
            rows_by_size = windows(rows, self._combine, self._sizes.tolist())
            newest = np.arange(max(0, count - self._rows), count)
            levels = np.stack(list(rows_by_size.values()))[..., newest]  # [window, quantity, time]
            self._kept[stream, newest % self._rows] = levels.transpose(2, 0, 1)

    def step(self, streams: Ids, rows: Array) -> Array:
        """Take in [quantity, stream] *rows*, one of each of *streams*; return their windows.

        These are [window, quantity, stream]; entry k covers 2ᵏ rows.
        """
        counts = self._counts[streams]
        # A window of 2m rows is the one of m rows now, and the one of m rows that was m rows ago.
        slots = (counts[:, None] - self._sizes[:-1]) % self._rows
        older = self._kept[streams[:, None], slots, self._shorter]  # [stream, window, quantity]
        older = np.ascontiguousarray(older.transpose(1, 2, 0))
        levels = np.empty((len(self._sizes), *rows.shape))
        levels[0] = rows
        for place in range(len(older)):
            self._combine(levels[place], older[place], out=levels[place + 1])
        self._kept[streams, counts % self._rows] = levels.transpose(2, 0, 1)
        self._counts[streams] = counts + 1
        return levels

    def read(self, streams: Ids, wanted: WindowPlan, levels: Array) -> dict[Window, Array]:
        """Return the *wanted* windows, [quantity, stream] each, of the *levels* of a last step."""
        rows_by_window = {window: levels[place] for window, place in wanted.whole.items()}
        if not wanted.others:
            return rows_by_window
        newest = self._counts[streams, None] - 1
        total = np.empty((len(streams), len(wanted.others), self._shape[2]))
        for nth, (lags, places) in enumerate(zip(wanted.lags, wanted.levels, strict=True)):
            part = self._kept[streams[:, None], (newest - lags) % self._rows, places]
            sums = total[:, : len(lags)]
            sums[...] = self._combine(sums, part) if nth else part
        others = np.ascontiguousarray(total.transpose(1, 2, 0))
        return rows_by_window | dict(zip(wanted.others, others, strict=True))

    def past(self, streams: Ids, lags: Ids, quantity: int) -> Array:
        """Return *quantity* [lag, stream] as it was *lags* rows before the last, of those kept."""
        slots = (self._counts[streams] - 1 - lags[:, None]) % self._rows
        return self._kept[streams, slots, 0, quantity]


class FeatureParts(NamedTuple):
    """What rows follow from: everything known at each bar's close, over [time]."""

    past_closes: Sequence[Array] | Array  # one for each of ``close_lags``
    sums: Mapping[Window, Array]  # [quantity, time]: sums of the base rows
    far: Mapping[Window, Array]  # the same of the first ``far_rows`` of them, over longer windows
    extremes: Mapping[Window, Array]  # [2, time]: highest high and negative lowest low
    inputs: Array  # [2n, time]: what becomes z-scores, and the squares
    input_sums: Mapping[Window, Array]  # [2n, time]: sums of those
    sigma: Array  # the volatility of one bar
    open_time_ms: NDArray[np.int64]


# --- times to bars


class Reach(NamedTuple):
    """How far the rows of an interval look back; σ² is half over *short*, half over *long*."""

    interval_ms: int
    short_ms: int
    long_ms: int  # also what z-scores are taken over
    far_ms: int  # of the tree's longest windows

    def bars(self, time_ms: int) -> int:
        """Return *time_ms* in bars; 0 for less than one."""
        return time_ms // self.interval_ms

    @property
    def short(self) -> int:
        """The short window of σ, in bars."""
        return self.bars(self.short_ms)

    @property
    def long(self) -> int:
        """The long window of σ and that of z-scores, in bars."""
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
"""What every schema reaches, by the text of its interval."""
