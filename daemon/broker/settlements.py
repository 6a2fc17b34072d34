"""``Settlements``: which funding settlements wait for their moment, and which for their rate.

The moment of a settlement is its place among fills and prices: it is booked on what is held there,
at the mark there, whenever its rate comes. A rate that comes early waits for the moment. If rates
may come late, a note keeps what was held at each whole hour, because an exchange may shorten the
interval of an instrument to one hour at any time.

The rule is docs/money.md, M19.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import gcd, inf
from operator import attrgetter
from typing import Final, NamedTuple

from msgspec import Struct

from tracepaper.strategies.types.market import Category, Funding, Instrument
from tracepaper.strategies.units import HOUR_MS, MINUTE_MS

STAMPED_LATE_MS: Final = 1_000
"""Exchanges date settlements some milliseconds late: until then they belong to the bar before."""
NOTES_MOST: Final = 100
"""The most notes of an instrument that wait for a rate."""


class Note(Struct, frozen=True, array_like=True):
    """What was held of an instrument at a time at which a settlement may have been due."""

    at_ms: int
    mark: int = 0  # 0 if nothing was held
    held: dict[str, int] = {}  # signed quantity by account that held any; "" is the run's


class Moment(NamedTuple):
    """The moment of a settlement; without a ``rate`` what is held is only noted."""

    at_ms: int
    mark: int
    rate: int | None
    held: dict[str, int]  # as in ``Note``; each account adds its own


class Settlements:
    """The settlements of the instruments of a broker, without their accounts."""

    def __init__(self) -> None:
        self.waiting: dict[str, list[Funding]] = {}  # rates whose moment has not come
        self.notes: dict[str, list[Note]] = {}
        """By instrument, oldest first: what waits for a rate. The last note may be of nothing held:
        no time up to it needs another note."""
        self._closed: dict[str, Note] = {}  # the newest close, which may be a settlement as well
        self.given_up: list[tuple[str, int]] = []  # instruments and times, since the last step
        self._interval_ms: dict[str, int] = {}  # of instruments whose rates may come late
        self._next_ms: float = inf  # the earliest time of a note or of a rate that waits

    # ------------------------------------------------------------ when something is due

    @property
    def takes_notes(self) -> bool:
        """Whether rates may come late."""
        return bool(self._interval_ms)

    def change(self, item: Instrument) -> None:
        """Take notes of *item*, whose rates may come late, by its present interval."""
        if item.category is Category.LINEAR and item.funding_interval_minutes:
            self._interval_ms[item.id] = item.funding_interval_minutes * MINUTE_MS
            self._find_next()

    def _grid_ms(self, instrument: str) -> int:
        """Return the distance of the times of notes: an hour, or a shorter interval."""
        return gcd(HOUR_MS, self._interval_ms[instrument])

    def _due_ms(self, instrument: str) -> float:
        """Return the time of the next note; infinity if there is none."""
        if instrument not in self._interval_ms or instrument not in self.notes:
            return inf
        return self.notes[instrument][-1].at_ms + self._grid_ms(instrument)

    def _find_next(self) -> None:
        rates = [kept[0].market_ms for kept in self.waiting.values()]
        self._next_ms = min([*rates, *map(self._due_ms, self._interval_ms)], default=inf)

    def begin(self, instrument: str, since_ms: int) -> None:
        """Let the notes of *instrument* begin with an event since *since_ms*, its first one."""
        if instrument in self._interval_ms and instrument not in self.notes:
            self.notes[instrument] = [Note(since_ms - since_ms % self._grid_ms(instrument))]
            self._find_next()

    def may_be_due(self, until_ms: int) -> bool:
        """Return whether any moment is before *until_ms*."""
        return self._next_ms < until_ms

    def due_by(self, at_ms: int) -> Sequence[str]:
        """Return the instruments with a moment that is not later than *at_ms*."""
        if at_ms < self._next_ms:
            return ()
        rated = {key for key, kept in self.waiting.items() if kept[0].market_ms <= at_ms}
        return [
            key
            for key in dict.fromkeys((*self._interval_ms, *self.waiting))
            if key in rated or self._due_ms(key) <= at_ms
        ]

    # ------------------------------------------------------------ moments and notes

    def take(self, instrument: str, until_ms: int, mark: int) -> Sequence[Moment]:
        """Take the moments of *instrument* before *until_ms*, with its *mark*, oldest first."""
        if until_ms <= self._next_ms:
            return ()
        rates = self.waiting.pop(instrument, [])
        if later := [rate for rate in rates if rate.market_ms >= until_ms]:
            self.waiting[instrument] = later
        moments = [
            Moment(rate.market_ms, mark, rate.rate, {})
            for rate in rates
            if rate.market_ms < until_ms
        ]
        if (due_ms := self._due_ms(instrument)) < until_ms:
            times = range(int(due_ms), until_ms, self._grid_ms(instrument))
            moments += [Moment(at_ms, mark, None, {}) for at_ms in times]
            self._advance(instrument, Note(times[-1]))
        self._find_next()
        return sorted(moments, key=attrgetter("at_ms"))

    def note(self, instrument: str, moment: Moment) -> bool:
        """Keep what was held at *moment* until its rate comes; return whether anything was."""
        held = {name: quantity for name, quantity in moment.held.items() if quantity}
        if held:
            self._advance(instrument, Note(moment.at_ms, moment.mark, held))
        return bool(held)

    def _advance(self, instrument: str, added: Note) -> None:
        """Add a note, and drop one if there are too many.

        Hours that are no settlement by the present interval go first; then the oldest settlement is
        given up.
        """
        notes, interval_ms = self.notes.get(instrument, ()), self._interval_ms[instrument]
        kept = [note for note in notes if note.held or note.at_ms > added.at_ms]
        kept = sorted([*kept, added], key=attrgetter("at_ms"))
        if sum(bool(note.held) for note in kept) > NOTES_MOST:
            spare = (place for place, note in enumerate(kept) if note.at_ms % interval_ms)
            dropped = kept.pop(next(spare, 0))
            if not dropped.at_ms % interval_ms:
                self.given_up.append((instrument, dropped.at_ms))
        self.notes[instrument] = kept

    def close(self, instrument: str, at_ms: int, mark: int, held: dict[str, int]) -> None:
        """Remember what is *held* at the newest close, at *at_ms*, until a restart."""
        self._closed[instrument] = Note(at_ms, mark, held)

    # ------------------------------------------------------------ rates

    def arrive(self, funding: Funding, closed_ms: int, newest: Note) -> Note | None:
        """Take in a rate; return what was held at its time, or None if that time has not come.

        *closed_ms* is the newest close of the instrument: a later settlement waits. An earlier one
        that no note can be of is booked on the newest close, if it is of that, or on *newest*, what
        is held now. Earlier notes are dropped: no settlement was due there.
        """
        key, at_ms, noted = funding.instrument, funding.market_ms, None
        if key in self._interval_ms:
            notes, on_grid_ms = self.notes.get(key, []), at_ms - at_ms % self._grid_ms(key)
            is_on_grid = at_ms - on_grid_ms < STAMPED_LATE_MS
            if is_on_grid and notes and on_grid_ms <= notes[-1].at_ms:
                held = (note for note in notes if note.at_ms == on_grid_ms)
                noted = next(held, Note(on_grid_ms))
            self.notes[key] = [note for note in notes if note.at_ms > on_grid_ms] or [
                Note(on_grid_ms)
            ]
        if noted is None and at_ms >= closed_ms + STAMPED_LATE_MS:
            self.waiting.setdefault(key, []).append(funding)
        elif noted is None:
            closed = self._closed.get(key, newest)
            noted = closed if 0 <= at_ms - closed.at_ms < STAMPED_LATE_MS else newest
        self._find_next()
        return noted

    # ------------------------------------------------------------ state

    def forget(self) -> None:
        """Forget what a restart loses."""
        self._closed.clear()

    def restore(
        self, waiting: Mapping[str, Iterable[Funding]], notes: Mapping[str, Iterable[Note]]
    ) -> None:
        """Restore the stored state."""
        self.waiting = {key: list(kept) for key, kept in waiting.items()}
        self.notes = {key: list(kept) for key, kept in notes.items()}
        self._find_next()
