"""The feed's state of one instrument: bars in order, newest quote and mark; pure."""

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
"""Bars whose values are kept to tell a repetition from a revision; older ones count as old."""

_Values = tuple[int, int, int, int, int, int | None]


class Place(StrEnum):
    """Where a bar stands against those already delivered."""

    NEXT = "next"
    AHEAD = "ahead"  # bars before it are missing
    REPEATED = "repeated"  # equal to a bar already delivered
    REVISED = "revised"  # another value of a bar already delivered
    OLD = "old"  # too old to compare


class BarSequence:
    """Exactly-once order of one instrument's bars; it alone decides which bar is the next."""

    def __init__(self, *, interval_ms: int, next_open_ms: int) -> None:
        self.interval_ms = interval_ms
        self.next_open_ms = next_open_ms
        self.is_begun = False  # True once a bar was delivered
        self._values: OrderedDict[int, set[_Values]] = OrderedDict()

    @property
    def next_close_ms(self) -> int:
        """The close of the bar that comes next."""
        return self.next_open_ms + self.interval_ms

    def lacks(self, until_ms: int) -> bool:
        """Return whether a bar that opens before *until_ms* is still to come."""
        return self.next_open_ms < until_ms

    def is_new(self, bar: Bar) -> bool:
        """Return whether *bar* opens where no bar was delivered or given up yet."""
        return bar.open_time_ms >= self.next_open_ms

    def place(self, bar: Bar) -> Place:
        """Return where *bar* stands; changes nothing."""
        if self.is_new(bar):
            return Place.NEXT if bar.open_time_ms == self.next_open_ms else Place.AHEAD
        if (delivered := self._values.get(bar.open_time_ms)) is None:
            return Place.OLD
        return Place.REPEATED if _values(bar) in delivered else Place.REVISED

    def accept(self, bar: Bar) -> None:
        """Remember *bar* as delivered, be it new or a revision."""
        self._values.setdefault(bar.open_time_ms, set()).add(_values(bar))
        if len(self._values) > REMEMBERED_BARS:
            self._values.popitem(last=False)
        self.skip(bar.close_time_ms)
        self.is_begun = True

    def skip(self, until_ms: int) -> None:
        """Drop the bars that open before *until_ms*."""
        if self.lacks(until_ms):
            self.next_open_ms = until_ms


class CloseFilter:
    """Which closes are accepted at once, and which only once REST has repeated them.

    A close that lies more than *most* usual ranges of a bar from the last one is implausible; it is
    accepted where REST repeats that of the stream, or has it in two answers.
    """

    def __init__(self, most: float = float("inf"), recent: Iterable[Bar] = ()) -> None:
        self._most = most
        self._usual = Plausibility()
        self._unverified: dict[int, _Values] = {}
        for bar in recent:
            self.accept(bar, 1)

    def accept(self, bar: Bar, tick: int) -> None:
        """Take in a delivered *bar*."""
        self._usual.add(bar, tick)
        if self._unverified:
            self._unverified = {
                at: values for at, values in self._unverified.items() if at > bar.open_time_ms
            }

    def unverified(self, bars: Iterable[Bar], tick: int) -> list[Bar]:
        """Return those of *bars*, the next ones, that REST has to repeat, and remember them.

        They lie too far from the last accepted one.
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
    """Return the values by which two bars of one time are compared."""
    return (bar.open, bar.high, bar.low, bar.close, bar.volume, bar.turnover)


class MissingBars:
    """Bars that REST lacks although it has later ones.

    One answer proves nothing: a bar is certain not to come once a second answer lacks it,
    *certain_s* or more after the first.
    """

    def __init__(self, certain_s: float, interval_ms: int) -> None:
        self._certain_s = certain_s
        self._interval_ms = interval_ms
        self._since_s: dict[int, float] = {}  # network time of the first such answer, by open time
        self._certain: set[int] = set()

    def update(
        self, missing: Collection[int], *, from_ms: int, until_ms: int, now_s: float
    ) -> None:
        """Take in that an answer lacks the bars that open at *missing* of [*from_ms*, *until_ms*).

        It has all else of that window, and says nothing about times outside.
        """
        lacking, before = set(missing), self._since_s
        since_s = {at: s for at, s in before.items() if not from_ms <= at < until_ms}
        self._since_s = since_s | {at: before.get(at, now_s) for at in lacking}
        again = lacking & before.keys()
        self._certain &= self._since_s.keys()
        self._certain |= {at for at in again if now_s - before[at] >= self._certain_s}

    def certain_until(self, from_ms: int) -> int:
        """Return up to which time all bars from *from_ms* on are certain not to come."""
        at_ms = from_ms
        while at_ms in self._certain:
            at_ms += self._interval_ms
        return at_ms

    def due_s(self) -> float:
        """Return when the next answer can make a bar certain; infinity where all are."""
        waiting = (s for at, s in self._since_s.items() if at not in self._certain)
        return min(waiting, default=float("inf")) + self._certain_s

    def forget(self, before_ms: int) -> None:
        """Forget the bars before *before_ms*: they were delivered or given up."""
        self._since_s = {at: s for at, s in self._since_s.items() if at >= before_ms}
        self._certain &= self._since_s.keys()


# ---------------------------------------------------------------- order books

OVERFLOW: Final = "overflow"
"""Why books are interrupted where the queue had no room for one, or for a frame."""


class DepthHolder:
    """Holds the books of one instrument until they are an event: a block of them, or a bar comes.

    Until then a book is two short byte strings.
    """

    def __init__(self, instrument: str, levels: int, every_ms: int) -> None:
        self._instrument = instrument
        self._levels = levels
        self._every_ms = every_ms
        self._held: list[Depth] = []
        self._cause = ""
        self._next_ms: int | None = None

    def add(self, depth: Depth, cause: str) -> Iterator[Depths]:
        """Take the next book, with a *cause* if some before it are missing; yield full blocks."""
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
        """Yield the held books as one event, seen at the time of the newest one."""
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
"""A closing frame is awaited at least this long, network time, before REST is asked."""
REQUEST_WAIT_MAX_S: Final = 30.0
SETTLEMENT_WAIT_S: Final = 1.0
"""Between the first two requests for an overdue settlement; doubled with each."""
PENDING_MAX: Final = 1_000
"""Bars that wait behind a hole; REST gives a thousand in one answer."""
REVISIONS_MAX: Final = 4


class FeedState:
    """One instrument's state in the feed; pure, times are arguments."""

    def __init__(
        self,
        instrument: Instrument,
        *,
        sequence: BarSequence,
        funding: FundingSchedule,
        cause: GapCause | None = GapCause.MISSED,
        certain_s: float = 30.0,
        close_filter: CloseFilter | None = None,
        books: DepthHolder | None = None,
    ) -> None:
        self.instrument = instrument
        self.sequence = sequence
        self.funding = funding
        self.cause = cause  # of the next hole; None while only warm-up bars can be missing
        self._next_cause: GapCause | None = None  # of the hole after the bars that wait
        self._has_queued_cause = False  # a notice of a cause is in the queue
        self._is_requested = False  # REST is asked for bars, or its answer is in the queue
        self.pending = PendingBars()
        self.missing = MissingBars(certain_s, sequence.interval_ms)
        self._close_filter = CloseFilter() if close_filter is None else close_filter
        self.books = books  # None where none are asked for
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
        """Count *bar* as delivered, for the first time."""
        self.sequence.accept(bar)
        self._close_filter.accept(bar, self.instrument.tick_size)

    def unverified(self, bars: Iterable[Bar]) -> list[Bar]:
        """Return the implausible ones that REST has not repeated: each must be requested."""
        return self._close_filter.unverified(bars, self.instrument.tick_size)

    def change_filters(self, instrument: Instrument) -> None:
        """Take in new filters of the instrument, and how often its funding is settled."""
        self.instrument = instrument
        self.funding.change(instrument.funding_interval_minutes)

    def claim_request(self) -> bool:
        """Return whether REST may be asked for bars now: one request at a time."""
        is_free, self._is_requested = not self._is_requested, True
        return is_free

    def end_request(self) -> None:
        """Note that the answer of REST was read from the queue."""
        self._is_requested = False

    def claim_gap_cause(self) -> bool:
        """Return whether a notice of a cause may be queued now: the first one stands."""
        is_free, self._has_queued_cause = not self._has_queued_cause, True
        return is_free

    def set_gap_cause(self, cause: GapCause) -> None:
        """Note why bars may be missing from here on: behind those that wait, where some do."""
        self._has_queued_cause = False
        if len(self.pending):
            self._next_cause = cause
        else:
            self.cause = cause

    def clear_gap_cause(self) -> None:
        """Note that a bar of the stream was delivered, so the next hole has its own cause."""
        self.cause = GapCause.MISSED
        if not len(self.pending):
            self.cause, self._next_cause = self._next_cause or GapCause.MISSED, None

    def may_fill(self, quote: Quote, from_ms: int, *, again: bool = False) -> bool:
        """Return whether *quote* matters to an order that rests and may fill from *from_ms* on.

        The first quote at or after that does, then each that differs from the one delivered before.
        An equal one does too (*again*) where that one was not believed.
        """
        if quote.market_ms < from_ms:
            return False
        delivered = self._newest[Quote].delivered
        if again or not isinstance(delivered, Quote) or delivered.market_ms < from_ms:
            return True
        return _offers(delivered) != _offers(quote)

    def keep(self, price: Price, *, matters: bool) -> bool:
        """Keep *price* if it is the newest of its kind; return whether it is an event of its own.

        It is where it *matters*. Quotes and marks that do not are delivered before a bar, trades
        beside a price that is doubted.
        """
        newest = self._newest[type(price)]
        if not newest.update(price) or not matters:
            return False
        newest.deliver()
        return True

    def deliver(self, *kinds: type[Struct]) -> list[Price]:
        """Return the newest prices of *kinds* unless they were delivered; they count so now."""
        newest = (of.deliver() for kind, of in self._newest.items() if kind in kinds)
        return [price for price in newest if price is not None]

    def drop_ahead(self, latest_ms: float) -> None:
        """Forget prices dated after *latest_ms*, so that later ones do not look old."""
        for newest in self._newest.values():
            newest.drop_ahead(latest_ms)

    def undelivered(self) -> list[Price | Depths]:
        """Return the newest quote and mark unless they were delivered, and the held books.

        All of it counts as delivered now.
        """
        return [*self.deliver(Quote, Mark), *(() if self.books is None else self.books.flush())]

    def is_settlement_due(self, *, market_ms: int, network_s: float) -> bool:
        """Return True, once for each request, when a settlement is overdue.

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
        """Return True, once for each request, when the next bar's closing frame is overdue.

        It is overdue *grace_ms* of market time and ``GRACE_S`` of network time after its close; the
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

    def request_by(self, network_s: float) -> None:
        """Make the next request due no later than *network_s*."""
        self._request_at_s = min(self._request_at_s, network_s)


class NewestPrice:
    """The newest quote, mark or trade by market time, and the one that was delivered last."""

    def __init__(self) -> None:
        self.value: Price | None = None
        self.delivered: Price | None = None

    def update(self, value: Price) -> bool:
        """Keep *value* unless it is older than the newest; return whether it was kept.

        Right after subscribing the exchange plays older frames again.
        """
        if self.value is not None and value.market_ms < self.value.market_ms:
            return False
        self.value = value
        return True

    def deliver(self) -> Price | None:
        """Return the newest unless it was delivered; it counts as delivered now."""
        if self.value is self.delivered:
            return None
        self.delivered = self.value
        return self.value

    def drop_ahead(self, latest_ms: float) -> None:
        """Forget the newest where it is dated after *latest_ms*."""
        if self.value is not None and self.value.market_ms > latest_ms:
            self.value = self.delivered = None


class PendingBars:
    """Bars behind a hole, by open time, each with its revisions; bounded, oldest first."""

    def __init__(self) -> None:
        self._bars: dict[int, list[Bar]] = {}

    def __len__(self) -> int:
        return len(self._bars)

    def add(self, bar: Bar) -> bool:
        """Keep *bar*, or a revision of one that waits; False where there is no room.

        Then the newest bar goes, which is requested again once the hole is closed.
        """
        versions = self._bars.setdefault(bar.open_time_ms, [])
        if len(versions) < REVISIONS_MAX:
            versions.append(bar)
        if len(self._bars) <= PENDING_MAX:
            return True
        del self._bars[max(self._bars)]
        return False

    def add_missing(self, bars: Iterable[Bar]) -> None:
        """Keep those of *bars* of which no version waits."""
        for bar in bars:
            self._bars.setdefault(bar.open_time_ms, [bar])

    def trim(self) -> None:
        """Let the newest bars go until the bound is kept."""
        for open_ms in sorted(self._bars)[PENDING_MAX:]:
            del self._bars[open_ms]

    def first_open_ms(self) -> int | None:
        """Return the open time of the oldest bar that waits."""
        return min(self._bars, default=None)

    def put_back(self, stretch: Iterable[list[Bar]]) -> None:
        """Put back bars that were taken out, each with its revisions."""
        self._bars.update((versions[0].open_time_ms, versions) for versions in stretch)

    def pop_from(self, open_ms: int) -> list[list[Bar]]:
        """Take out the consecutive bars from *open_ms* on, each with its revisions."""
        taken: list[list[Bar]] = []
        while (versions := self._bars.pop(open_ms, None)) is not None:
            taken.append(versions)
            open_ms = versions[0].close_time_ms
        return taken


def _offers(quote: Quote) -> tuple[int, int, int, int]:
    return quote.bid, quote.bid_size, quote.ask, quote.ask_size
