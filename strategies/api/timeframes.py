"""Closed bars of higher timeframes, aggregated from an instrument's own bars.

The rules are docs/several.md, P9 to P13.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.months import MONTH_MS, month_of, month_start
from tracepaper.strategies.sessions import Calendar, Sessions
from tracepaper.strategies.types.market import Bar, FrameBar, Instrument
from tracepaper.strategies.units import (
    DAY_MS,
    INTERVAL_NAMES,
    INTERVALS,
    interval_phase,
    interval_start,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Row = tuple[int, int, int, int, int, int, int, int]
"""Index on the grid, open time, close time; open, high, low, close and volume in 10⁻ᵏ."""

_PLACE: Final = 0
_CLOSES: Final = 2
_CLOSE: Final = 6
_VOLUME: Final = 7


class FrameNeeds(Protocol):
    """A strategy's declarations of higher timeframes."""

    frames: tuple[str, ...]
    frames_warmup: Mapping[str, int]
    warmup: int


def frame_bars(strategy: FrameNeeds) -> dict[str, int]:
    """Return the number of closed bars to keep per declared timeframe; by default ``warmup``."""
    return {name: strategy.frames_warmup.get(name, strategy.warmup) for name in strategy.frames}


def frames_reach(bars: Mapping[str, int], base_ms: int, sessions: Sessions | None = None) -> int:
    """Return the maximum number of bars of *base_ms* in the last *bars* of each timeframe."""
    grids = ((count, grid_of(INTERVALS[name], base_ms, sessions)) for name, count in bars.items())
    return max(((count + 1) * grid.most_parts for count, grid in grids), default=0)


def open_frames_ms(frames: Iterable[str], start_ms: int) -> int:
    """Return the start of the bars that the open and the last closed frames need at *start_ms*.

    A candle that just closed may not be final yet, so the last closed bar of each timeframe is
    aggregated rather than requested.
    """
    return min(
        (interval_start(start_ms, INTERVALS[name]) - INTERVALS[name] for name in frames),
        default=start_ms,
    )


def reject_frames(name: str, frames: Iterable[str], base_ms: int) -> None:
    """Raise ``ConfigInvalid`` for timeframes not made of whole bars; *name* is the strategy's."""
    for frame in frames:
        if not is_made_of(INTERVALS.get(frame, 0), base_ms):
            possible = (interval for interval, ms in INTERVALS.items() if is_made_of(ms, base_ms))
            raise ConfigInvalid(
                f"{name}.frames name {frame!r}, which bars of market.interval "
                f"{INTERVAL_NAMES.get(base_ms, base_ms)} cannot make; name frames of: "
                f"{', '.join(possible)}."
            )


def is_made_of(length_ms: int, base_ms: int) -> bool:
    """Return whether a bar of *length_ms* is always made of whole bars of *base_ms*."""
    if length_ms == MONTH_MS:
        length_ms = DAY_MS
        return base_ms <= length_ms and length_ms % base_ms == 0
    return length_ms > base_ms and length_ms % base_ms == 0


def frame_bar_of(bar: Bar, *, seen_ms: int) -> FrameBar:
    """Return *bar*, a candle of a higher timeframe, as an event."""
    return FrameBar(
        bar.instrument,
        bar.open_time_ms,
        bar.interval_ms,
        bar.open,
        bar.high,
        bar.low,
        bar.close,
        bar.volume,
        bar.source,
        bar.closed_ms,
        seen_ms,
    )


class TimeframeBars:
    """Closed bars of one higher timeframe, oldest first, as read-only columns of the shape (bars,).

    Prices and volume are float64 in units of the market, times int64, UTC milliseconds at which
    the bars closed. A bar with a hole in it is missing, so times may jump.
    """

    __slots__ = ("_columns", "_instrument", "_rows")

    def __init__(self, rows: tuple[Row, ...], instrument: Instrument) -> None:
        self._rows = rows
        self._instrument = instrument
        self._columns: dict[int, npt.NDArray[Any]] = {}

    def __len__(self) -> int:
        """Return the number of bars, fewer than requested if bars are missing."""
        return len(self._rows)

    @property
    def open(self) -> npt.NDArray[np.float64]:
        """Opening prices."""
        return self._column(3)

    @property
    def high(self) -> npt.NDArray[np.float64]:
        """Highest prices."""
        return self._column(4)

    @property
    def low(self) -> npt.NDArray[np.float64]:
        """Lowest prices."""
        return self._column(5)

    @property
    def close(self) -> npt.NDArray[np.float64]:
        """Closing prices."""
        return self._column(_CLOSE)

    @property
    def volume(self) -> npt.NDArray[np.float64]:
        """Volumes, in base."""
        return self._column(_VOLUME)

    @property
    def time(self) -> npt.NDArray[np.int64]:
        """Times at which the bars closed, UTC milliseconds."""
        return self._column(_CLOSES)

    def closes(self) -> list[tuple[int, int]]:
        """Return the index on the grid and the close in 10⁻ᵏ of each bar."""
        return [(row[_PLACE], row[_CLOSE]) for row in self._rows]

    @property
    def newest(self) -> Row | None:
        """The newest bar in exact integers; None without one."""
        return self._rows[-1] if self._rows else None

    def followed_by(self, row: Row, most: int) -> TimeframeBars:
        """Return these bars and *row*, of which the newest *most* are kept."""
        return TimeframeBars((*self._rows, row)[-most:], self._instrument)

    def _column(self, place: int) -> npt.NDArray[Any]:
        """Return a read-only column, created on first read."""
        if (column := self._columns.get(place)) is None:
            import numpy as np

            values = np.array([row[place] for row in self._rows], dtype=np.int64)
            if place == _CLOSES:
                scaled: npt.NDArray[Any] = values
            elif place == _VOLUME:
                scaled = values / 10**self._instrument.volume_decimals
            else:
                scaled = values / 10**self._instrument.price_decimals
            column = self._columns[place] = np.frombuffer(scaled.tobytes(), scaled.dtype)
        return column


class FrameRange(NamedTuple):
    """Candles of a timeframe that a run's own bars cannot make, opening in [from_ms, until_ms)."""

    instrument: str
    interval_ms: int
    from_ms: int
    until_ms: int


class _EveryInterval:
    """The grid of a frame without sessions."""

    def __init__(self, length_ms: int, base_ms: int) -> None:
        self._length_ms, self._phase_ms = length_ms, interval_phase(length_ms)
        self.most_parts = length_ms // base_ms
        self._base_ms = base_ms

    def place(self, open_ms: int) -> int:
        """Return the index of the frame's bar that contains *open_ms*."""
        return (open_ms - self._phase_ms) // self._length_ms

    def span(self, place: int) -> tuple[int, int]:
        """Return the open and close time of the frame's bar at index *place*."""
        open_ms = place * self._length_ms + self._phase_ms
        return open_ms, open_ms + self._length_ms

    def parts(self, place: int) -> int:
        """Return the number of bars in the frame's bar at *place*."""
        opens, closes = self.span(place)
        return (closes - opens) // self._base_ms

    def last_open(self, place: int) -> int:
        """Return the open time of the last bar in the frame's bar at *place*."""
        return self.span(place)[1] - self._base_ms


class _EveryMonth(_EveryInterval):
    """The grid of months, made of days or shorter bars."""

    def place(self, open_ms: int) -> int:
        """Return the month that contains *open_ms*."""
        return month_of(open_ms)

    def span(self, place: int) -> tuple[int, int]:
        """Return the open and close time of the month at *place*."""
        return month_start(place), month_start(place + 1)


class _SessionGrid:
    """The grid of a timeframe made of session bars."""

    def __init__(self, sessions: Sessions, length_ms: int, base_ms: int) -> None:
        self._frame, self._base = Calendar(sessions, length_ms), Calendar(sessions, base_ms)
        places = self._frame.places(self._base.opens)
        self.most_parts = max(Counter(places.tolist()).values())

    def place(self, open_ms: int) -> int:
        """Return the index of the frame's bar that contains *open_ms*."""
        return self._frame.place(open_ms)

    def span(self, place: int) -> tuple[int, int]:
        """Return the open and close time of the frame's bar at index *place*."""
        return int(self._frame.opens[place]), int(self._frame.closes[place])

    def parts(self, place: int) -> int:
        """Return the number of session bars in the frame's bar at *place*."""
        return self._first(place + 1) - self._first(place)

    def last_open(self, place: int) -> int:
        """Return the open time of the last session bar in the frame's bar at *place*."""
        return int(self._base.opens[self._first(place + 1) - 1])

    def _first(self, place: int) -> int:
        """Return the index of the first session bar in the frame's bar at *place*."""
        if place >= len(self._frame):
            return len(self._base)
        return self._base.place(int(self._frame.opens[place]))


def grid_of(
    length_ms: int, base_ms: int, sessions: Sessions | None
) -> _EveryInterval | _SessionGrid:
    """Return the grid of a frame, made of session bars if *sessions* are given."""
    if sessions is not None:
        return _SessionGrid(sessions, length_ms, base_ms)
    return (_EveryMonth if length_ms == MONTH_MS else _EveryInterval)(length_ms, base_ms)


class TimeframeAggregator:
    """The closed bars of one timeframe of one instrument over the last *wanted* intervals.

    A bar of the frame appears with the own bar that closes it, if none of its parts is missing.
    :meth:`take` adds candles from before the instrument's first bar; later the own bars count. With
    *sessions* the intervals are those of an exchange's sessions.
    """

    def __init__(
        self,
        instrument: Instrument,
        frame: str,
        base_ms: int,
        wanted: int,
        sessions: Sessions | None = None,
    ) -> None:
        self.instrument = instrument
        self.length_ms = INTERVALS[frame]
        self.wanted = wanted
        self._grid = grid_of(self.length_ms, base_ms, sessions)
        self._own_from: int | None = None  # index of the first frame bar made of own bars
        self._known_from: int | None = None  # index of the first frame bar known, or lost to a gap
        self._rows: tuple[Row, ...] = ()  # sorted by index
        self._end: int | None = None  # index of the open frame bar
        self._place = 0  # index of the frame bar being made
        self._opens_ms = self._last_ms = -1  # open times of its first and last part
        self._count = self._open = self._high = self._low = self._volume = 0
        self.bars = TimeframeBars((), instrument)
        self._last: dict[int, TimeframeBars] = {}  # of fewer intervals, by how many

    @property
    def reach(self) -> int:
        """Maximum number of own bars that the exposed frame bars are made of."""
        return (self.wanted + 1) * self._grid.most_parts

    @property
    def is_warm(self) -> bool:
        """Whether the known bars cover all wanted intervals."""
        return self.reaches(self.wanted)

    def reaches(self, count: int) -> bool:
        """Return whether the known bars cover the last *count* intervals."""
        return self.known >= count

    @property
    def known(self) -> int:
        """How many of the last closed intervals the known bars cover without a hole."""
        end, start = self._end, self._known_from
        return 0 if end is None or start is None else max(end - start, 0)

    def last(self, count: int) -> TimeframeBars:
        """Return the bars of the last *count* closed intervals (at most ``wanted``)."""
        if count == self.wanted or self._end is None:
            return self.bars
        if (bars := self._last.get(count)) is None:
            first, end = (bisect_left(self._rows, (at,)) for at in (self._end - count, self._end))
            bars = self._last[count] = TimeframeBars(self._rows[first:end], self.instrument)
        return bars

    def warm_at(self, now_ms: int) -> int:
        """Return when the known bars will cover all wanted intervals, if no bar is missing."""
        start = self._known_from
        first = self._grid.place(now_ms) + 1 if start is None else start
        return self._grid.span(first + self.wanted)[0]

    def add(self, bar: Bar) -> None:
        """Add the instrument's next bar."""
        open_ms = bar.open_time_ms
        if self._opens_ms <= open_ms <= self._last_ms:
            self._count += 1
            self._high = max(self._high, bar.high)
            self._low = min(self._low, bar.low)
            self._volume += bar.volume
        else:
            self._begin(bar)
        end = place = self._place
        if open_ms == self._last_ms:
            end = place + 1
            if self._count == self._grid.parts(place):
                values = (self._open, self._high, self._low, bar.close, self._volume)
                # A start adds external candles first; own bars replace them.
                at = bisect_left(self._rows, (place,))
                rest = at + (self._at(place) is not None)
                row = (place, *self._grid.span(place), *values)
                self._rows = (*self._rows[:at], row, *self._rows[rest:])
        if end != self._end:
            self._end = end
            self._update()

    def _begin(self, bar: Bar) -> None:
        """Begin the frame bar that contains *bar*."""
        grid, open_ms = self._grid, bar.open_time_ms
        self._place = place = grid.place(open_ms)
        self._opens_ms, _ = grid.span(place)
        self._last_ms, self._count = grid.last_open(place), 1
        self._open, self._high, self._low = bar.open, bar.high, bar.low
        self._volume = bar.volume
        if self._own_from is None:
            self._own_from = place if self._opens_ms == open_ms else place + 1
            self._know_from(self._own_from)

    def take(self, bar: FrameBar) -> bool:
        """Add an external candle of the frame; return whether it was accepted.

        It is not if it contradicts the instrument's own bars, or lies in a gap of them.
        """
        place = self._grid.place(bar.open_time_ms)
        span = self._grid.span(place)
        if span[0] != bar.open_time_ms:
            return False
        row = (place, *span, bar.open, bar.high, bar.low, bar.close, bar.volume)
        if (existing := self._at(place)) is not None:
            return existing == row
        if self._own_from is not None and place >= self._own_from:
            return False
        at = bisect_left(self._rows, (place,))
        self._rows = (*self._rows[:at], row, *self._rows[at:])
        self._know_from(place)
        self._update()
        return True

    def lacking(self, now_ms: int) -> FrameRange | None:
        """Return the range of candles to request before *now_ms*; None if none is missing.

        It begins with the first that own bars cannot make, and includes those that they can, as a
        check against the exchange.
        """
        end = self._grid.place(now_ms)
        own_from = end if self._own_from is None else min(self._own_from, end)
        places = {row[_PLACE] for row in self._rows}
        for place in range(end - self.wanted, own_from):
            if place not in places:
                from_ms, _ = self._grid.span(place)
                until_ms, _ = self._grid.span(end)
                return FrameRange(self.instrument.id, self.length_ms, from_ms, until_ms)
        return None

    def _at(self, place: int) -> Row | None:
        at = bisect_left(self._rows, (place,))
        if at == len(self._rows) or self._rows[at][_PLACE] != place:
            return None
        return self._rows[at]

    def _know_from(self, place: int) -> None:
        self._known_from = place if self._known_from is None else min(place, self._known_from)

    def _update(self) -> None:
        """Expose the closed bars, and drop those older than the wanted intervals."""
        if (end := self._end) is None:
            return
        self._rows = self._rows[bisect_left(self._rows, (end - self.wanted,)) :]
        closed = self._rows[: bisect_left(self._rows, (end,))]
        self.bars = TimeframeBars(closed, self.instrument)
        self._last = {}
