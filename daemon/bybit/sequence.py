"""Which bar of an instrument comes next, which came already, and what a window lacks. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import Final

from msgspec import Struct, structs

from tracepaper.strategies.gates import Plausibility
from tracepaper.strategies.types import Bar, Source

REMEMBERED_BARS: Final = 4_096
"""Bars whose values are kept to tell a repetition from a revision; older ones count as old."""

_Values = tuple[int, int, int, int, int, int | None]


class Place(StrEnum):
    """Where a bar stands against those already handed on."""

    NEXT = "next"
    AHEAD = "ahead"  # bars before it are missing
    REPEATED = "repeated"  # equal to what was handed on
    REVISED = "revised"  # another value of a bar already handed on
    OLD = "old"  # too old to compare


class BarSequence:
    """Exactly-once order of one instrument's bars, by open time."""

    def __init__(self, *, interval_ms: int, next_open_ms: int) -> None:
        self.interval_ms = interval_ms
        self.next_open_ms = next_open_ms
        self.is_begun = False  # True once a bar was handed on
        self._values: OrderedDict[int, set[_Values]] = OrderedDict()

    @property
    def next_close_ms(self) -> int:
        """The close of the bar that comes next."""
        return self.next_open_ms + self.interval_ms

    def place(self, bar: Bar) -> Place:
        """Return where *bar* stands; changes nothing."""
        if bar.open_time_ms == self.next_open_ms:
            return Place.NEXT
        if bar.open_time_ms > self.next_open_ms:
            return Place.AHEAD
        if (known := self._values.get(bar.open_time_ms)) is None:
            return Place.OLD
        return Place.REPEATED if _values(bar) in known else Place.REVISED

    def accept(self, bar: Bar) -> None:
        """Remember *bar* as handed on, be it new or a revision."""
        self._values.setdefault(bar.open_time_ms, set()).add(_values(bar))
        if len(self._values) > REMEMBERED_BARS:
            self._values.popitem(last=False)
        self.next_open_ms = max(self.next_open_ms, bar.close_time_ms)
        self.is_begun = True

    def skip(self, until_ms: int) -> None:
        """Give up what opens before *until_ms*."""
        self.next_open_ms = max(self.next_open_ms, until_ms)


class Closes:
    """Which closes are believed at once, and which only once REST has repeated them.

    A close that lies more than *most* usual ranges of a bar from the last one is doubtful; it is
    believed where REST says the same of it after the stream, or in two answers.
    """

    def __init__(self, most: float = float("inf"), recent: Iterable[Bar] = ()) -> None:
        self._most = most
        self._usual = Plausibility()
        self._suspects: dict[int, _Values] = {}
        for bar in recent:
            self.accept(bar, 1)

    def accept(self, bar: Bar, tick: int) -> None:
        """Take *bar* in, which was handed on."""
        self._usual.add(bar, tick)
        if self._suspects:
            self._suspects = {
                at: one for at, one in self._suspects.items() if at > bar.open_time_ms
            }

    def doubtful(
        self, bars: Iterable[Bar], tick: int, is_sure: Callable[[Bar], bool] = lambda _bar: False
    ) -> list[Bar]:
        """Return those of *bars*, the next ones, that lie too far from the last believed one."""
        usual = self._usual
        found = []
        for bar in bars:
            tried = usual.copy()
            if tried.add(bar, tick) > self._most and not is_sure(bar):
                found.append(bar)
            else:
                usual = tried
        return found

    def unseconded(self, bars: Iterable[Bar], tick: int) -> list[Bar]:
        """Return the doubtful ones of *bars* that nothing has repeated; they are suspects now."""
        alone = self.doubtful(bars, tick, self._is_seconded)
        self._suspects.update((bar.open_time_ms, _values(bar)) for bar in alone)
        return alone

    def _is_seconded(self, bar: Bar) -> bool:
        return bar.source is Source.REST and self._suspects.get(bar.open_time_ms) == _values(bar)


def _values(bar: Bar) -> _Values:
    """Return what makes two bars of one time the same bar."""
    return (bar.open, bar.high, bar.low, bar.close, bar.volume, bar.turnover)


class Run(Struct, frozen=True):
    """A stretch of a window: the bars that fill it, or none where it is a hole."""

    from_ms: int
    until_ms: int  # exclusive
    bars: tuple[Bar, ...]


def runs(bars: Iterable[Bar], *, from_ms: int, until_ms: int, interval_ms: int) -> list[Run]:
    """Cut the window [*from_ms*, *until_ms*) into stretches with and without bars, in order.

    *bars* are sorted by open time, each once, and open inside the window. A hole at the window's
    end is listed too; whether it is certain is for the caller to know.
    """
    found: list[Run] = []
    stretch: list[Bar] = []
    at_ms = from_ms
    for bar in bars:
        if bar.open_time_ms > at_ms:
            if stretch:
                found.append(_run(stretch))
                stretch = []
            found.append(Run(at_ms, bar.open_time_ms, ()))
        stretch.append(bar)
        at_ms = bar.open_time_ms + interval_ms
    if stretch:
        found.append(_run(stretch))
    if at_ms < until_ms:
        found.append(Run(at_ms, until_ms, ()))
    return found


def _run(stretch: Sequence[Bar]) -> Run:
    """Return the run of consecutive bars."""
    return Run(stretch[0].open_time_ms, stretch[-1].close_time_ms, tuple(stretch))


class _Doubt(Struct, frozen=True):
    """A stretch that was lacked, since when (network time), and whether that is certain."""

    from_ms: int
    until_ms: int
    since_s: float
    is_certain: bool


class Doubts:
    """What REST lacked although it has later bars.

    One answer proves nothing: a stretch is certain once an answer lacks it that came *certain_s*
    or more after the first one that did.
    """

    def __init__(self, certain_s: float) -> None:
        self._certain_s = certain_s
        self._doubts: list[_Doubt] = []

    def learn(
        self, lacked: Iterable[tuple[int, int]], *, from_ms: int, until_ms: int, now_s: float
    ) -> None:
        """Learn that an answer about [*from_ms*, *until_ms*) lacks the rising *lacked* stretches.

        All else of that time it has; of other times it says nothing.
        """
        found = [*self._outside(from_ms, until_ms)]
        for start_ms, end_ms in lacked:
            at_ms = start_ms
            for known in self._doubts:
                first_ms, last_ms = max(known.from_ms, at_ms), min(known.until_ms, end_ms)
                if first_ms >= last_ms:
                    continue
                if first_ms > at_ms:
                    found.append(_Doubt(at_ms, first_ms, now_s, is_certain=False))
                is_certain = known.is_certain or now_s - known.since_s >= self._certain_s
                found.append(_Doubt(first_ms, last_ms, known.since_s, is_certain))
                at_ms = last_ms
            if at_ms < end_ms:
                found.append(_Doubt(at_ms, end_ms, now_s, is_certain=False))
        self._doubts = sorted(found, key=lambda one: one.from_ms)

    def _outside(self, from_ms: int, until_ms: int) -> Iterable[_Doubt]:
        """Yield what is known of times outside [*from_ms*, *until_ms*)."""
        for one in self._doubts:
            if one.from_ms < from_ms:
                yield structs.replace(one, until_ms=min(one.until_ms, from_ms))
            if one.until_ms > until_ms:
                yield structs.replace(one, from_ms=max(one.from_ms, until_ms))

    def certain_until(self, from_ms: int) -> int:
        """Return until when, from *from_ms* on, nothing will ever come; *from_ms* where unsure."""
        at_ms = from_ms
        for one in self._doubts:
            if one.is_certain and one.from_ms <= at_ms < one.until_ms:
                at_ms = one.until_ms
        return at_ms

    def due_s(self) -> float:
        """Return when the next answer can make a stretch certain; infinity without a doubt."""
        return min(
            (one.since_s + self._certain_s for one in self._doubts if not one.is_certain),
            default=float("inf"),
        )

    def forget(self, before_ms: int) -> None:
        """Forget what was lacked before *before_ms*: it was handed on or given up."""
        self._doubts = [one for one in self._doubts if one.until_ms > before_ms]
