"""What the feed knows of one instrument: its bar order, newest quote and mark, and patience."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from tracepaper.daemon.bybit.funding import FundingSchedule
from tracepaper.daemon.bybit.sequence import BarSequence, Closes, Doubts
from tracepaper.strategies.types import Bar, GapCause, Instrument, Mark, Quote

PATIENCE_MAX_S: Final = 30.0
WAITING_MAX: Final = 1_000
"""Bars that wait behind a hole; REST hands a thousand on in one answer."""
REVISIONS_MAX: Final = 4


class Market:
    """One instrument's state in the feed; pure, times are arguments."""

    def __init__(
        self,
        instrument: Instrument,
        *,
        sequence: BarSequence,
        funding: FundingSchedule,
        grace_s: float,
        cause: GapCause | None = GapCause.MISSED,
        certain_s: float = 30.0,
        closes: Closes | None = None,
    ) -> None:
        self.instrument = instrument
        self.sequence = sequence
        self.funding = funding
        self.cause = cause  # of the next hole; None while only warm-up bars can be missing
        self._next_cause: GapCause | None = None  # of the hole after the bars that wait
        self.is_blamed = False  # a blame is in line and not yet read
        self.is_asking = False  # REST is asked, or its answer is in line
        self.waiting = Waiting()
        self.doubts = Doubts(certain_s)
        self._closes = Closes() if closes is None else closes
        self._quote: Quote | None = None
        self._quote_handed: Quote | None = None
        self._mark: Mark | None = None
        self._mark_handed: Mark | None = None
        self._grace_s = grace_s
        self._reminded_open_ms = -1
        self._asks_s = float("inf")
        self._patience_s = grace_s
        self.settle_at_s = 0.0  # network time of the next question for an overdue settlement
        self.settle_patience_s = 1.0

    @property
    def quote_ms(self) -> int | None:
        """The market time of the newest quote."""
        return None if self._quote is None else self._quote.market_ms

    def accept(self, bar: Bar) -> None:
        """Count *bar* as handed on, for the first time."""
        self.sequence.accept(bar)
        self._closes.accept(bar, self.instrument.tick_size)

    def doubtful(self, bars: Iterable[Bar], is_sure: Callable[[Bar], bool]) -> list[Bar]:
        """Return those of *bars*, the next ones, too far from the last that is believed or sure."""
        return self._closes.doubtful(bars, self.instrument.tick_size, is_sure)

    def unseconded(self, bars: Iterable[Bar]) -> list[Bar]:
        """Return those of the doubtful that REST has not repeated; each is asked about."""
        return self._closes.unseconded(bars, self.instrument.tick_size)

    def blame(self, cause: GapCause) -> None:
        """Learn why bars may be missing from here on: after those that wait, where some do."""
        self.is_blamed = False
        if len(self.waiting):
            self._next_cause = cause
        else:
            self.cause = cause

    def passed(self) -> None:
        """Learn that a bar of the stream was handed on, so the next hole has its own cause."""
        self.cause = GapCause.MISSED
        if not len(self.waiting):
            self.cause, self._next_cause = self._next_cause or GapCause.MISSED, None

    def learn_quote(self, quote: Quote, from_ms: int | None) -> bool:
        """Keep *quote* if it is the newest; return whether it is an event of its own.

        It is one while an order rests (*from_ms* is the market time from which it may fill): the
        first quote at or after that, then each that differs from the one handed on before.
        """
        if self._quote is not None and quote.market_ms < self._quote.market_ms:
            return False  # a replay of older frames right after subscribing
        self._quote = quote
        if from_ms is None or quote.market_ms < from_ms:
            return False
        handed = self._quote_handed
        if handed is not None and handed.market_ms >= from_ms and _same(handed, quote):
            return False
        self._quote_handed = quote
        return True

    def learn_mark(self, mark: Mark) -> None:
        """Keep *mark* if it is the newest."""
        if self._mark is None or mark.market_ms >= self._mark.market_ms:
            self._mark = mark

    def forget_ahead(self, latest_ms: float) -> None:
        """Forget a quote or mark dated after *latest_ms*, so that later ones do not look old."""
        if self._quote is not None and self._quote.market_ms > latest_ms:
            self._quote = self._quote_handed = None
        if self._mark is not None and self._mark.market_ms > latest_ms:
            self._mark = self._mark_handed = None

    def unhanded(self) -> list[Quote | Mark]:
        """Return the newest quote and mark unless they were handed on; they count as such now."""
        events: list[Quote | Mark] = []
        if self._quote is not None and self._quote is not self._quote_handed:
            self._quote_handed = self._quote
            events.append(self._quote)
        if self._mark is not None and self._mark is not self._mark_handed:
            self._mark_handed = self._mark
            events.append(self._mark)
        return events

    def is_overdue(self, *, market_ms: int, network_s: float, grace_ms: int) -> bool:
        """Return True, once for each question, when the next bar's closing frame is overdue.

        Overdue is *grace_ms* of market time and ``grace_s`` of network time after its close; then
        after twice the wait each time, up to ``PATIENCE_MAX_S``, while REST has no such bar.
        """
        close_ms = self.sequence.next_close_ms
        if market_ms < close_ms:
            self._reminded_open_ms = -1
            return False
        if self._reminded_open_ms != self.sequence.next_open_ms:
            self._reminded_open_ms = self.sequence.next_open_ms
            self._patience_s = self._grace_s
            self._asks_s = network_s + self._patience_s
        if market_ms < close_ms + grace_ms or network_s < self._asks_s:
            return False
        self._patience_s = min(2 * self._patience_s, PATIENCE_MAX_S)
        self._asks_s = network_s + self._patience_s
        return True

    def ask_by(self, network_s: float) -> None:
        """Have the next question come no later than *network_s*."""
        self._asks_s = min(self._asks_s, network_s)


class Waiting:
    """Bars behind a hole, by open time, each with its revisions; bounded, oldest first."""

    def __init__(self) -> None:
        self._bars: dict[int, list[Bar]] = {}

    def __len__(self) -> int:
        return len(self._bars)

    def add(self, bar: Bar) -> bool:
        """Keep *bar*, or a revision of one that waits; False where there is no place.

        Without a place the newest bar goes, which is asked for again once the hole is closed.
        """
        versions = self._bars.setdefault(bar.open_time_ms, [])
        if len(versions) < REVISIONS_MAX:
            versions.append(bar)
        if len(self._bars) <= WAITING_MAX:
            return True
        del self._bars[max(self._bars)]
        return False

    def add_missing(self, bars: Iterable[Bar]) -> None:
        """Keep those of *bars* of which no version waits."""
        for bar in bars:
            self._bars.setdefault(bar.open_time_ms, [bar])

    def trim(self) -> None:
        """Let the newest bars go until the bound is kept."""
        for open_ms in sorted(self._bars)[WAITING_MAX:]:
            del self._bars[open_ms]

    def first_open_ms(self) -> int | None:
        """Return the open time of the oldest bar that waits."""
        return min(self._bars, default=None)

    def put_back(self, stretch: Iterable[list[Bar]]) -> None:
        """Let bars that were taken out wait again, each with its revisions."""
        self._bars.update((versions[0].open_time_ms, versions) for versions in stretch)

    def pop_from(self, open_ms: int) -> list[list[Bar]]:
        """Take out the bars that follow one another from *open_ms* on, each with its revisions."""
        taken: list[list[Bar]] = []
        while (versions := self._bars.pop(open_ms, None)) is not None:
            taken.append(versions)
            open_ms = versions[0].close_time_ms
        return taken


def _same(one: Quote, other: Quote) -> bool:
    """Return whether two quotes offer the same."""
    return (one.bid, one.bid_size, one.ask, one.ask_size) == (
        other.bid,
        other.bid_size,
        other.ask,
        other.ask_size,
    )
