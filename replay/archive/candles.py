"""``Candles``: one symbol's candles as exact columns."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from tracepaper.replay.archive.columns import (
    INT64_MAX,
    ZONELESS,
    CellInvalidError,
    Decimals,
    IntArray,
)
from tracepaper.replay.archive.sessions import lacking_days, own_sessions, session_days
from tracepaper.strategies.api.timeframes import is_made_of
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.months import MONTH_MS
from tracepaper.strategies.sessions import (
    Calendar,
    closes_of,
    first_days,
    is_whole_days,
    joint,
    month_calendar,
)
from tracepaper.strategies.types.market import Bar, BarColumns, Category, Instrument, Source
from tracepaper.strategies.units import DAY_MS, MINUTE_MS, interval_phase, interval_text, iso

COLUMNS: Final = ("open", "high", "low", "close", "volume")
"""Columns that every source has; turnover is optional."""

Span = tuple[int, int]
"""First open time, and the first after the last: [from, until), UTC milliseconds."""


@dataclass(frozen=True, eq=False)
class Candles:
    """Closed candles of one symbol, oldest first, each open time once, on one grid.

    Columns are int64 arrays of one length: prices in 10^-price_decimals, volume in
    10^-volume_decimals of base coin, turnover (None if missing) in 10^-turnover_decimals of quote
    coin. ``path`` is the source, for messages; ``notes`` are sentences about conversions, sorting
    and dropped rows.
    """

    path: str
    category: Category
    symbol: str
    interval_ms: int
    price_decimals: int
    volume_decimals: int
    turnover_decimals: int
    open_time_ms: IntArray
    open: IntArray
    high: IntArray
    low: IntArray
    close: IntArray
    volume: IntArray
    turnover: IntArray | None
    notes: tuple[str, ...] = ()
    calendar: Calendar | None = None
    """The sessions of a share, or the months; None if the market never closes."""

    def __len__(self) -> int:
        return int(self.open_time_ms.size)

    def __getitem__(self, rows: slice | npt.NDArray[Any]) -> Candles:
        """Return the candles at *rows*: ascending indices, a slice or a mask."""
        columns = {name: getattr(self, name)[rows] for name in _columns_of(self)}
        return replace(self, open_time_ms=self.open_time_ms[rows], **columns)

    @property
    def columns(self) -> BarColumns:
        """The arrays of the bars."""
        prices = self.open, self.high, self.low, self.close
        return BarColumns(self.open_time_ms, *prices, self.volume, self.turnover)

    @property
    def instrument(self) -> str:
        """The instrument's id, ``linear:BTCUSDT``."""
        return f"{self.category.value}:{self.symbol}"

    @property
    def sha256(self) -> str:
        """The hash of symbol, interval, times, prices and volumes."""
        header = f"{self.symbol} {self.interval_ms} {self.price_decimals}"
        digest = hashlib.sha256(header.encode())
        for name in ("open_time_ms", *COLUMNS):
            digest.update(getattr(self, name).tobytes())
        return digest.hexdigest()

    @property
    def until_ms(self) -> int:
        """The first millisecond after the last candle."""
        return int(self.closes_ms[-1])

    @property
    def closes_ms(self) -> IntArray:
        """The first millisecond after each candle."""
        return closes_of(self.open_time_ms, self.interval_ms, self.calendar)

    @property
    def steps(self) -> IntArray:
        """The distance of each candle from the previous one, in bars: 1 without a hole."""
        if self.calendar is not None:
            return np.diff(self.calendar.places(self.open_time_ms))
        return -(-np.diff(self.open_time_ms) // self.interval_ms)

    @property
    def gaps(self) -> list[Span]:
        """Holes as (first missing open time, open time of the candle after it)."""
        after = np.flatnonzero(self.steps != 1)
        missing = self.open_time_ms[after] + self.interval_ms
        if (calendar := self.calendar) is not None:
            missing = calendar.opens[calendar.places(self.open_time_ms[after]) + 1]
        return list(zip(missing.tolist(), self.open_time_ms[after + 1].tolist(), strict=True))

    @property
    def missing(self) -> int:
        """The number of candles missing in holes."""
        return int((self.steps - 1).sum())

    def rescaled(
        self,
        *,
        price_decimals: int | None = None,
        volume_decimals: int | None = None,
        turnover_decimals: int | None = None,
    ) -> Candles:
        """Return the candles with at least the given decimals, never fewer than now.

        Raises ``DataInvalid`` if a value does not fit in 64 bits at that scale.
        """
        given = {
            "price_decimals": price_decimals,
            "volume_decimals": volume_decimals,
            "turnover_decimals": turnover_decimals,
        }
        wanted = {name: max(places or 0, getattr(self, name)) for name, places in given.items()}
        columns: dict[str, IntArray] = {}
        for name in _columns_of(self):
            places = f"{name if name in ('volume', 'turnover') else 'price'}_decimals"
            try:
                column = Decimals(getattr(self, name), getattr(self, places))
                columns[name] = column.rescale(wanted[places]).mantissa
            except CellInvalidError as error:
                at = iso(int(self.open_time_ms[error.row]))
                raise DataInvalid(f"{self.path}: the candle of {at} {error.what}.") from None
        changed: dict[str, Any] = {**wanted, **columns}
        return replace(self, **changed)

    def aligned(self, scales: Candles | Instrument) -> Candles:
        """Return the candles with at least the decimals of *scales*; see ``rescaled``."""
        return self.rescaled(
            price_decimals=scales.price_decimals,
            volume_decimals=scales.volume_decimals,
            turnover_decimals=scales.turnover_decimals,
        )

    def bars(self) -> list[Bar]:
        """Return the candles as bars of an archive, with their own decimals."""
        times = self.open_time_ms
        closes = self.closes_ms.tolist()
        turnover = repeat(None) if self.turnover is None else self.turnover.tolist()
        return list(
            map(
                Bar,
                repeat(self.instrument),
                times.tolist(),
                repeat(self.interval_ms),
                self.open.tolist(),
                self.high.tolist(),
                self.low.tolist(),
                self.close.tolist(),
                self.volume.tolist(),
                turnover,
                closes,
                closes,
                repeat(Source.ARCHIVE),
            )
        )

    def in_sessions(self) -> Candles:
        """Return the candles of a share with the sessions of their dates (docs/shares.md, K1).

        Days, weeks and months open at midnight, UTC, of their first date; a note counts the days
        that the file lacks. Raises ``DataInvalid`` for two candles of one date, and for times that
        are no whole minutes.
        """
        times, interval_ms, notes = self.open_time_ms, self.interval_ms, self.notes
        if is_whole_days(interval_ms):
            days = first_days(session_days(times, interval_ms), interval_ms)
            times, notes = days * DAY_MS, tuple(note for note in notes if note != ZONELESS)
            again = np.flatnonzero(np.diff(days) <= 0)
            if again.size:
                two = (iso(int(self.open_time_ms[again[0] + more])) for more in (0, 1))
                raise DataInvalid(
                    f"{self.path}: the candles of {' and '.join(two)} have one date; remove one of "
                    "them."
                )
        elif (times % MINUTE_MS).any():
            raise DataInvalid(
                f"{self.path}: bars of shares open at whole minutes; give bars of at least one."
            )
        lacking = lacking_days(times, interval_ms)
        return replace(
            self,
            open_time_ms=times,
            calendar=Calendar(own_sessions(times, interval_ms), interval_ms),
            notes=(*notes, lacking) if lacking else notes,
        )

    def resampled(self, interval_ms: int) -> Candles:
        """Return the candles aggregated to *interval_ms*, a multiple of their interval.

        Days begin at 00:00 UTC, weeks on Monday, months on their first day. With a calendar an
        interval consists of its session bars. An incomplete coarse candle, at either end or at a
        hole, is dropped with a note. Volume and turnover are exact sums; a turnover that does not
        fit in 64 bits is left out with a note.

        Raises ``ConfigInvalid`` if the interval is no multiple, and ``DataInvalid`` if no complete
        coarse candle is left or a volume does not fit in 64 bits.
        """
        if interval_ms == self.interval_ms:
            return self
        if not is_made_of(interval_ms, self.interval_ms):
            raise ConfigInvalid(
                f"{self.path} has candles of {interval_text(self.interval_ms)}, which cannot "
                f"make candles of {interval_text(interval_ms)}: choose a multiple."
            )
        if not self._coarse_grid(interval_ms)[2].any():
            raise DataInvalid(
                f"{self.path} covers no whole candle of {interval_text(interval_ms)}: give more "
                "data."
            )
        coarse, is_whole = self.aggregated(interval_ms)
        dropped = [iso(start) for start in coarse.open_time_ms[~is_whole].tolist()]
        if not dropped:
            return coarse
        kind = "candle" if len(dropped) == 1 else "candles"
        # Name the first and last only: a long list would bury the message.
        named = dropped[0] if len(dropped) == 1 else f"{dropped[0]} … {dropped[-1]}"
        note = f"{len(dropped)} coarse {kind} not whole, dropped: {named}"
        more = coarse.notes[len(self.notes) :]
        return replace(coarse[is_whole], notes=(*self.notes, note, *more))

    def aggregated(self, interval_ms: int) -> tuple[Self, npt.NDArray[np.bool_]]:
        """Return the coarse candles, including incomplete ones, and a mask of the complete ones."""
        first, starts, is_whole, calendar = self._coarse_grid(interval_ms)
        last = np.append(first[1:], len(self)) - 1
        volume, notes = _sums(self.volume, first), self.notes
        if volume is None:
            raise DataInvalid(
                f"{self.path} sums to a volume of more than 64 bits: choose a finer interval."
            )
        turnover = None if self.turnover is None else _sums(self.turnover, first)
        if turnover is None and self.turnover is not None:
            text = interval_text(interval_ms)
            notes = (*notes, f"turnover left out, which takes more than 64 bits in {text}")
        coarse = replace(
            self,
            interval_ms=interval_ms,
            calendar=calendar,
            open_time_ms=starts,
            open=self.open[first],
            high=np.maximum.reduceat(self.high, first),
            low=np.minimum.reduceat(self.low, first),
            close=self.close[last],
            volume=volume,
            turnover=turnover,
            notes=notes,
        )
        return coarse, is_whole

    def _coarse_grid(
        self, interval_ms: int
    ) -> tuple[IntArray, IntArray, npt.NDArray[np.bool_], Calendar | None]:
        """Return the first row, open time and completeness of each coarse candle.

        The fourth value is the calendar at the coarse interval, or None.
        """
        counted, times = self.calendar, self.open_time_ms
        calendar: Calendar | None = None
        parts: int | IntArray
        if counted is None and interval_ms != MONTH_MS:
            phase = interval_phase(interval_ms)
            buckets = (times - phase) // interval_ms
            first = _bucket_starts(buckets)
            opens = buckets[first] * interval_ms + phase
            parts = interval_ms // self.interval_ms
        else:
            calendar = Calendar(counted.sessions, interval_ms) if counted else month_calendar()
            buckets = calendar.places(times)
            first = _bucket_starts(buckets)
            opens, closes = calendar.opens[buckets[first]], calendar.closes[buckets[first]]
            parts = (closes - opens) // self.interval_ms
            if counted is not None:
                held = np.bincount(calendar.places(counted.opens), minlength=len(calendar))
                parts = held[buckets[first]]
        counts = np.diff(np.append(first, len(self)))
        return first, opens, counts == parts, calendar


def _columns_of(*parts: Candles) -> tuple[str, ...]:
    """Return the names of the columns that all of *parts* have."""
    has_turnover = all(part.turnover is not None for part in parts)
    return (*COLUMNS, "turnover") if has_turnover else COLUMNS


def merge_candles(parts: Sequence[Candles]) -> list[Candles]:
    """Join the parts of each instrument; keep the order in which instruments first appear.

    Candles in two parts must be equal. Raises ``DataInvalid``, naming both files, if they differ or
    have different intervals.
    """
    groups: dict[str, Candles] = {}
    for part in parts:
        before = groups.get(part.instrument)
        groups[part.instrument] = part if before is None else _join(before, part)
    return list(groups.values())


def on_joint_sessions(candles: Sequence[Candles]) -> list[Candles]:
    """Return the candles of shares on the sessions of all of them together."""
    sessions = joint(part.calendar.sessions for part in candles if part.calendar is not None)
    if sessions is None:
        return list(candles)
    return [replace(part, calendar=Calendar(sessions, part.interval_ms)) for part in candles]


def _join(first: Candles, second: Candles) -> Candles:
    """Return the union of two parts of one instrument."""
    if first.interval_ms != second.interval_ms:
        raise DataInvalid(
            f"{first.path} holds {first.symbol} in steps of {first.interval_ms // 1000} s and "
            f"{second.path} in steps of {second.interval_ms // 1000} s: give files of one interval."
        )
    first, second = first.aligned(second), second.aligned(first)
    _reject_contradiction(first, second)
    is_new = ~np.isin(second.open_time_ms, first.open_time_ms)
    added = second[is_new]
    times = np.concatenate((first.open_time_ms, added.open_time_ms))
    order = np.argsort(times, kind="stable")
    columns: dict[str, Any] = {
        name: np.concatenate((getattr(first, name), getattr(added, name)))[order]
        for name in _columns_of(first, added)
    }
    calendar = first.calendar
    if first.category is Category.STOCK:
        calendar = Calendar(own_sessions(times[order], first.interval_ms), first.interval_ms)
    shared = len(second) - len(added)
    notes = (*first.notes, *second.notes)
    if shared:
        notes = (*notes, f"{shared} candles of {second.path} were already in {first.path}")
    return replace(
        first,
        path=f"{first.path} and {second.path}",
        open_time_ms=times[order],
        **{"turnover": None, **columns},
        notes=notes,
        calendar=calendar,
    )


def _reject_contradiction(first: Candles, second: Candles) -> None:
    """Raise ``DataInvalid`` if a shared candle differs; both parts have the same decimals."""
    phase = (second.open_time_ms[0] - first.open_time_ms[0]) % first.interval_ms
    if phase and first.calendar is None:
        raise DataInvalid(
            f"{first.path} and {second.path} open their candles of {first.symbol} at different "
            "instants: give files of one grid."
        )
    times, mine, theirs = np.intersect1d(
        first.open_time_ms, second.open_time_ms, assume_unique=True, return_indices=True
    )
    for name in _columns_of(first, second):
        differs = np.flatnonzero(getattr(first, name)[mine] != getattr(second, name)[theirs])
        if differs.size:
            at = iso(int(times[differs[0]]))
            raise DataInvalid(
                f"{first.path} and {second.path} contradict each other in {name} of the "
                f"{first.symbol} candle of {at}: leave one of them out."
            )


def _bucket_starts(buckets: IntArray) -> IntArray:
    """Return the first row of each run of equal values in the ascending *buckets*."""
    return np.flatnonzero(np.diff(buckets, prepend=buckets[0] - 1))


def _sums(values: IntArray, first: IntArray) -> IntArray | None:
    """Return the exact sum of each bucket; None if a sum does not fit in 64 bits."""
    # Integer sums wrap silently; sums of doubles reveal it.
    rough = np.add.reduceat(values.astype(np.float64), first)
    if rough.size and float(rough.max()) > INT64_MAX / 2:
        return None
    return np.add.reduceat(values, first)
