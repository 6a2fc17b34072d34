"""The feed's state of one instrument: the order of its bars and its newest prices; pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from enum import StrEnum
from typing import Final

from msgspec import Struct

from tracepaper.daemon.feed.funding import FundingSchedule
from tracepaper.strategies.gates.evaluator import Plausibility
from tracepaper.strategies.order_book import BLOCK_BOOKS, books_of, packed_books
from tracepaper.strategies.types.market import (
    Bar,
    Depth,
    Depths,
    GapCause,
    Instrument,
    Mark,
    Quote,
    Source,
    Trade,
)

Price = Quote | Mark | Trade

# ---------------------------------------------------------------- bars

REMEMBERED_BARS: Final = 4_096
"""Number of bars whose values are kept to tell a repeated bar from a revised one."""

_Values = tuple[int, int, int, int, int, int | None]


class Place(StrEnum):
    """The relation of a bar to the bars that were delivered."""

    NEXT = "next"
    AHEAD = "ahead"  # bars before it are missing
    REPEATED = "repeated"  # equal to a bar already delivered
    REVISED = "revised"  # another value of a bar already delivered
    OLD = "old"  # too old to compare


class BarSequence:
    """The exactly-once order of one instrument's bars; it decides which bar is next."""

    def __init__(self, *, interval_ms: int, next_open_ms: int) -> None:
        self.interval_ms = interval_ms
        self.next_open_ms = next_open_ms
        self.is_begun = False  # True once a bar was delivered
        self._values: OrderedDict[int, set[_Values]] = OrderedDict()

    @property
    def next_close_ms(self) -> int:
        """The close of the next bar."""
        return self.next_open_ms + self.interval_ms

    def lacks(self, until_ms: int) -> bool:
        """Return whether the next bar opens before *until_ms*."""
        return self.next_open_ms < until_ms

    def is_new(self, bar: Bar) -> bool:
        """Return whether *bar* is the next one or a later one."""
        return bar.open_time_ms >= self.next_open_ms

    def place(self, bar: Bar) -> Place:
        """Return the place of *bar*; change nothing."""
        if self.is_new(bar):
            return Place.NEXT if bar.open_time_ms == self.next_open_ms else Place.AHEAD
        if (delivered := self._values.get(bar.open_time_ms)) is None:
            return Place.OLD
        return Place.REPEATED if _values(bar) in delivered else Place.REVISED

    def accept(self, bar: Bar) -> None:
        """Note that *bar*, new or a revision, was delivered."""
        self._values.setdefault(bar.open_time_ms, set()).add(_values(bar))
        if len(self._values) > REMEMBERED_BARS:
            self._values.popitem(last=False)
        self.skip(bar.close_time_ms)
        self.is_begun = True

    def skip(self, until_ms: int) -> None:
        """Give up all bars that open before *until_ms*."""
        if self.lacks(until_ms):
            self.next_open_ms = until_ms


class CloseFilter:
    """Decides which closes are accepted at once, and which only after REST has repeated them.

    A close more than *most* usual bar ranges from the last one is implausible. It is accepted if
    REST repeats the stream's bar, or has the same bar in two answers.
    """

    def __init__(self, most: float = float("inf"), recent: Iterable[Bar] = ()) -> None:
        self._most = most
        self._usual = Plausibility()
        self._unverified: dict[int, _Values] = {}
        for bar in recent:
            self.accept(bar, 1)

    def accept(self, bar: Bar, tick: int) -> None:
        """Take in *bar*, which was delivered."""
        self._usual.add(bar, tick)
        if self._unverified:
            self._unverified = {
                at: values for at, values in self._unverified.items() if at > bar.open_time_ms
            }

    def unverified(self, bars: Iterable[Bar], tick: int) -> list[Bar]:
        """Return, and remember, those of the next *bars* that REST has to repeat.

        They are too far from the last accepted bar.
        """
        usual, unverified = self._usual, list[Bar]()
        for bar in bars:
            following = usual.copy()
            if following.add(bar, tick) > self._most and not self._is_verified(bar):
                unverified.append(bar)
            else:
                usual = following
        self._unverified.update((bar.open_time_ms, _values(bar)) for bar in unverified)
        return unverified

    def _is_verified(self, bar: Bar) -> bool:
        return bar.source is Source.REST and self._unverified.get(bar.open_time_ms) == _values(bar)


def _values(bar: Bar) -> _Values:
    """Return the values in which two bars of the same time may differ."""
    return (bar.open, bar.high, bar.low, bar.close, bar.volume, bar.turnover)


class MissingBars:
    """Bars that REST lacks although it has later ones.

    One answer is no proof: a bar is certain never to arrive when a second answer lacks it, at least
    *certain_s* after the first.
    """

    def __init__(self, certain_s: float, interval_ms: int) -> None:
        self._certain_s = certain_s
        self._interval_ms = interval_ms
        self._since_s: dict[int, float] = {}  # network time of the first such answer, by open time
        self._certain: set[int] = set()

    def update(
        self, missing: Collection[int], *, from_ms: int, until_ms: int, now_s: float
    ) -> None:
        """Take in an answer that has all bars of [*from_ms*, *until_ms*) except *missing*.

        *missing* are open times. The answer is no evidence for times outside that window.
        """
        lacking, before = set(missing), self._since_s
        since_s = {at: s for at, s in before.items() if not from_ms <= at < until_ms}
        self._since_s = since_s | {at: before.get(at, now_s) for at in lacking}
        again = lacking & before.keys()
        self._certain &= self._since_s.keys()
        self._certain |= {at for at in again if now_s - before[at] >= self._certain_s}

    def certain_until(self, from_ms: int) -> int:
        """Return the end of the certain bars that begin at *from_ms*."""
        at_ms = from_ms
        while at_ms in self._certain:
            at_ms += self._interval_ms
        return at_ms

    def due_s(self) -> float:
        """Return when an answer can next make a bar certain; infinity if all are certain."""
        uncertain = (s for at, s in self._since_s.items() if at not in self._certain)
        return min(uncertain, default=float("inf")) + self._certain_s

    def forget(self, before_ms: int) -> None:
        """Forget the bars before *before_ms*, which were delivered or given up."""
        self._since_s = {at: s for at, s in self._since_s.items() if at >= before_ms}
        self._certain &= self._since_s.keys()


LISTING_WAIT_S_MAX: Final = 1.0
"""Longest wait between the two answers that have to agree on an instrument's first bar."""


class Listing:
    """The evidence for the first bar of a new instrument: two answers of REST without earlier ones.

    Answers that hold the first bar agree ``wait_s`` after each other. Answers without it, which
    only the stream has brought so far, agree after *certain_s*. ``due_s`` is the network time at
    which to ask again; infinity before the first answer.
    """

    def __init__(self, certain_s: float) -> None:
        self._certain_s = certain_s
        self.wait_s = min(LISTING_WAIT_S_MAX, certain_s)
        self._since_s: dict[tuple[int, bool], float] = {}  # network time of the first such answer
        self.due_s = float("inf")

    def is_certain(self, first_ms: int, *, is_held: bool, answered_s: float) -> bool:
        """Take in an answer without bars before *first_ms*; return whether that is certain.

        *is_held* tells whether the answer has the bar that opens at *first_ms*.
        """
        since_s = self._since_s.setdefault((first_ms, is_held), answered_s)
        # REST holds a bar some seconds after the stream brought it, so ask before certain_s.
        self.due_s = answered_s + self.wait_s
        return answered_s - since_s >= (self.wait_s if is_held else self._certain_s)


# ---------------------------------------------------------------- order books

OVERFLOW: Final = "overflow"
"""The cause of a gap in books for which the queue had no room."""


class DepthHolder:
    """Holds the books of one instrument, as byte strings, until a block is full or a bar arrives.

    The held books then become one event.
    """

    def __init__(self, instrument: str, levels: int, every_ms: int) -> None:
        self._instrument = instrument
        self._levels = levels
        self._every_ms = every_ms
        self._held: list[Depth] = []
        self._cause = ""
        self._next_ms: int | None = None

    def add(self, depth: Depth, cause: str) -> Iterator[Depths]:
        """Take in a book; *cause* tells why books before it are missing. Yield full blocks."""
        if not cause and self._next_ms not in (None, depth.seen_ms):
            cause = OVERFLOW
        if cause:
            yield from self.flush()
            self._cause = cause
        self._held.append(depth)
        self._next_ms = depth.seen_ms + self._every_ms
        if len(self._held) >= BLOCK_BOOKS:
            yield from self.flush()

    def flush(self) -> Iterator[Depths]:
        """Yield the held books as one event with the time of the newest one."""
        if not self._held:
            return
        books = books_of(self._held, self._levels)
        cause, self._cause = self._cause, ""
        self._held = []
        yield packed_books(
            self._instrument,
            books,
            every_ms=self._every_ms,
            cause=cause,
            seen_ms=int(books.seen_ms[-1]),
        )


# ---------------------------------------------------------------- the instrument

GRACE_S: Final = 0.5
"""Least network time to wait for a closing frame before REST is asked."""
REQUEST_WAIT_MAX_S: Final = 30.0
SETTLEMENT_WAIT_S: Final = 1.0
"""Wait between the first two requests for an overdue settlement; each request doubles it."""
PENDING_MAX: Final = 1_000
"""Most bars that wait behind a hole; an answer of REST has as many."""


class FeedState:
    """The feed's state of one instrument; pure, with times as arguments."""

    def __init__(
        self,
        instrument: Instrument,
        *,
        sequence: BarSequence,
        funding: FundingSchedule,
        cause: GapCause | None = GapCause.MISSED,
        first_ms: int = 0,
        certain_s: float = 30.0,
        close_filter: CloseFilter | None = None,
        books: DepthHolder | None = None,
    ) -> None:
        self.instrument = instrument
        self.sequence = sequence
        self.funding = funding
        self.cause = cause  # of the next hole; None while only warm-up bars can be missing
        self.first_ms = first_ms  # bars that open earlier only warm up
        self._next_cause: GapCause | None = None  # of the hole after the pending bars
        self._has_queued_cause = False  # a notice of a cause is in the queue
        self._is_requested = False  # a request for bars runs, or its answer is in the queue
        self.pending = PendingBars()
        self.missing = MissingBars(certain_s, sequence.interval_ms)
        self.listing = Listing(certain_s)
        self._close_filter = CloseFilter() if close_filter is None else close_filter
        self.books = books  # None if no books are sampled
        self._newest = {kind: NewestPrice() for kind in (Quote, Mark, Trade)}
        self._overdue_open_ms = -1
        self._request_at_s = float("inf")
        self._request_wait_s = GRACE_S
        self._settlement_request_s = 0.0  # network time of the next one
        self._settlement_wait_s = SETTLEMENT_WAIT_S

    @property
    def quote_ms(self) -> int | None:
        """The market time of the newest quote."""
        quote = self._newest[Quote].value
        return None if quote is None else quote.market_ms

    def accept(self, bar: Bar) -> None:
        """Note that *bar*, which is new, was delivered."""
        self.sequence.accept(bar)
        self._close_filter.accept(bar, self.instrument.tick_size)

    def unverified(self, bars: Iterable[Bar]) -> list[Bar]:
        """Return the implausible bars that REST has not repeated; REST has to be asked for them."""
        return self._close_filter.unverified(bars, self.instrument.tick_size)

    def change_filters(self, instrument: Instrument) -> None:
        """Take in new filters of the instrument and its funding interval."""
        self.instrument = instrument
        self.funding.change(instrument.funding_interval_minutes)

    def claim_request(self) -> bool:
        """Return whether a request for bars may start; the caller then starts it."""
        is_free, self._is_requested = not self._is_requested, True
        return is_free

    def end_request(self) -> None:
        """Note that the answer of REST was taken from the queue."""
        self._is_requested = False

    def claim_gap_cause(self) -> bool:
        """Return whether a notice of a cause may be queued; the caller then queues it."""
        is_free, self._has_queued_cause = not self._has_queued_cause, True
        return is_free

    def set_gap_cause(self, cause: GapCause) -> None:
        """Set the cause of the next hole after the pending bars."""
        self._has_queued_cause = False
        if len(self.pending):
            self._next_cause = cause
        else:
            self.cause = cause

    def clear_gap_cause(self) -> None:
        """Note that a bar of the stream was delivered, which ends the present hole."""
        self.cause = GapCause.MISSED
        if not len(self.pending):
            self.cause, self._next_cause = self._next_cause or GapCause.MISSED, None

    def may_fill(self, quote: Quote, from_ms: int, *, again: bool = False) -> bool:
        """Return whether *quote* matters to a resting order that may fill from *from_ms* on.

        The first quote from then on matters, and each one that differs from the last delivered one.
        If that was not believed, an equal one matters too (*again*).
        """
        if quote.market_ms < from_ms:
            return False
        delivered = self._newest[Quote].delivered
        if again or not isinstance(delivered, Quote) or delivered.market_ms < from_ms:
            return True
        return _prices_and_sizes(delivered) != _prices_and_sizes(quote)

    def keep(self, price: Price, *, matters: bool) -> bool:
        """Keep *price* if it is the newest of its kind; return whether to deliver it at once.

        That is so if it *matters*. Other quotes and marks are delivered before a bar, and trades
        with a doubted price.
        """
        newest = self._newest[type(price)]
        if not newest.update(price) or not matters:
            return False
        newest.deliver()
        return True

    def deliver(self, *kinds: type[Struct]) -> list[Price]:
        """Return the undelivered newest prices of *kinds*; they count as delivered from now on."""
        prices = (newest.deliver() for kind, newest in self._newest.items() if kind in kinds)
        return [price for price in prices if price is not None]

    def drop_ahead(self, latest_ms: float) -> None:
        """Forget prices dated after *latest_ms*, which would make later ones look old."""
        for newest in self._newest.values():
            newest.drop_ahead(latest_ms)

    def undelivered(self) -> list[Price | Depths]:
        """Return the undelivered newest quote and mark, and the held books.

        They count as delivered from now on.
        """
        return [*self.deliver(Quote, Mark), *(() if self.books is None else self.books.flush())]

    def is_settlement_due(self, *, market_ms: int, network_s: float) -> bool:
        """Return whether to request an overdue settlement now; the caller then requests it.

        The wait between requests doubles, up to ``REQUEST_WAIT_MAX_S``.
        """
        if not self.funding.is_overdue(market_ms):
            self._settlement_wait_s = SETTLEMENT_WAIT_S
            return False
        if network_s < self._settlement_request_s:
            return False
        self._settlement_request_s = network_s + self._settlement_wait_s
        self._settlement_wait_s = min(2 * self._settlement_wait_s, REQUEST_WAIT_MAX_S)
        return True

    def is_overdue(self, *, market_ms: int, network_s: float, grace_ms: int) -> bool:
        """Return whether to request the next bar, whose closing frame is overdue; as above.

        It is overdue *grace_ms* of market time and ``GRACE_S`` of network time after its close. The
        wait between requests then doubles, up to ``REQUEST_WAIT_MAX_S``.
        """
        close_ms = self.sequence.next_close_ms
        if market_ms < close_ms:
            self._overdue_open_ms = -1
            return False
        if self._overdue_open_ms != self.sequence.next_open_ms:
            self._overdue_open_ms = self.sequence.next_open_ms
            self._request_wait_s = GRACE_S
            self._request_at_s = network_s + self._request_wait_s
        if market_ms < close_ms + grace_ms or network_s < self._request_at_s:
            return False
        self._request_wait_s = min(2 * self._request_wait_s, REQUEST_WAIT_MAX_S)
        self._request_at_s = network_s + self._request_wait_s
        return True

    def evidence_due_s(self) -> float:
        """Return when an answer of REST can next make certain that bars are missing."""
        due_s = self.missing.due_s()
        return due_s if self.sequence.is_begun else min(due_s, self.listing.due_s)

    def request_by(self, network_s: float) -> None:
        """Make the next request for bars due by *network_s*."""
        self._request_at_s = min(self._request_at_s, network_s)


class NewestPrice:
    """The newest quote, mark or trade by market time, and the last delivered one."""

    def __init__(self) -> None:
        self.value: Price | None = None
        self.delivered: Price | None = None

    def update(self, value: Price) -> bool:
        """Keep *value* unless it is older than the newest; return whether it was kept.

        After a subscription the exchange may repeat older frames.
        """
        if self.value is not None and value.market_ms < self.value.market_ms:
            return False
        self.value = value
        return True

    def deliver(self) -> Price | None:
        """Return the newest if it is undelivered; it counts as delivered from now on."""
        if self.value is self.delivered:
            return None
        self.delivered = self.value
        return self.value

    def drop_ahead(self, latest_ms: float) -> None:
        """Forget the newest if it is dated after *latest_ms*."""
        if self.value is not None and self.value.market_ms > latest_ms:
            self.value = self.delivered = None


class PendingBars:
    """Bars that wait behind a hole, by open time; bounded."""

    def __init__(self) -> None:
        self._bars: dict[int, Bar] = {}

    def __len__(self) -> int:
        return len(self._bars)

    def add(self, bar: Bar) -> bool:
        """Keep *bar* unless one of its time is here; return False if there was no room.

        Then the newest is dropped, and requested again once the hole is filled.
        """
        self._bars.setdefault(bar.open_time_ms, bar)
        if len(self._bars) <= PENDING_MAX:
            return True
        del self._bars[max(self._bars)]
        return False

    def add_missing(self, bars: Iterable[Bar]) -> None:
        """Keep those of *bars* of whose time none is here."""
        for bar in bars:
            self._bars.setdefault(bar.open_time_ms, bar)

    def trim(self) -> None:
        """Drop the newest bars beyond ``PENDING_MAX``."""
        for open_ms in sorted(self._bars)[PENDING_MAX:]:
            del self._bars[open_ms]

    def first_open_ms(self) -> int | None:
        """Return the open time of the oldest bar; None if there is none."""
        return min(self._bars, default=None)

    def put_back(self, stretch: Iterable[Bar]) -> None:
        """Put back bars that ``pop_from`` returned."""
        self._bars.update((bar.open_time_ms, bar) for bar in stretch)

    def pop_from(self, open_ms: int) -> list[Bar]:
        """Remove and return the consecutive bars from *open_ms* on."""
        stretch: list[Bar] = []
        while (bar := self._bars.pop(open_ms, None)) is not None:
            stretch.append(bar)
            open_ms = bar.close_time_ms
        return stretch


def _prices_and_sizes(quote: Quote) -> tuple[int, int, int, int]:
    return quote.bid, quote.bid_size, quote.ask, quote.ask_size
