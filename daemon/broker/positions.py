"""``Positions``: all positions of one account in one instrument, which an event meets together.

In one-way mode there is one position, in hedge mode one for each side. Each has the shares of its
owners. An event meets the orders of all of them in one pass.

The rules are docs/money.md, M11 to M14 and M97.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tracepaper.daemon.broker import matching
from tracepaper.daemon.broker.book_fills import BookMoves, Queues
from tracepaper.daemon.broker.book_matching import BookPass
from tracepaper.daemon.broker.line import Line
from tracepaper.daemon.broker.margin import CrossMargin
from tracepaper.daemon.broker.matching import MarketPass
from tracepaper.strategies.types.decisions import Fill
from tracepaper.strategies.types.market import Bar, BookUpdate, Funding, Quote

if TYPE_CHECKING:
    from tracepaper.daemon.broker.account import PaperAccount


class Positions:
    """The positions of an account in one instrument, and the shares in them."""

    __slots__ = ("account", "active_trial", "cross", "every_line", "journal", "lines", "queues")

    def __init__(self, account: PaperAccount, lines: Sequence[Line], queues: Queues | None) -> None:
        """Join the *lines*, one for each side; give *queues* where order books fill orders."""
        self.account, self.journal, self.queues = account, account.journal, queues
        self.lines = tuple(lines)
        self.every_line = tuple(member for line in lines for member in (line, *line.shares))
        self.active_trial: matching.TrialFills | None = None  # the trial that is in progress
        for line in self.every_line:
            line.positions = self
        policy = account.policy
        self.cross = policy if isinstance(policy, CrossMargin) else None

    @property
    def waits(self) -> bool:
        """Whether an event can change anything here: an order rests or a position is protected."""
        for line in self.lines:  # noqa: SIM110 - at every quote; a generator costs more
            if line.waits:
                return True
        return False

    # ------------------------------------------------------------ market events

    def match_quote(self, quote: Quote) -> None:
        """Match the resting orders against *quote*."""
        if not self.waits:
            return
        self._expire(quote.market_ms)
        self._end_due(quote.market_ms, quote.bid, quote.ask)
        first = self.journal.begin()
        MarketPass(self).match_quote(quote)
        self._end_pass(first, quote.market_ms)

    def match_book(self, update: BookUpdate, book_moves: BookMoves) -> None:
        """Match the resting orders against *update*, the update of an order book.

        *book_moves* is the unpacked content of *update*.
        """
        assert self.queues is not None
        at_ms = update.market_ms
        self._expire(at_ms)
        self._end_due(at_ms, book_moves.bids[0].price, book_moves.asks[0].price)
        first = self.journal.begin()
        BookPass(self, self.queues).match(update, book_moves)
        self._end_pass(first, at_ms)

    def match_bar(
        self, bar: Bar, settlements: Sequence[Funding] = (), *, is_missed: bool = False
    ) -> None:
        """Match market orders at the open of *bar*, all others along the path with less equity.

        The *settlements* inside the bar come between the two, since fills on the path are dated at
        the end of the bar. A bar *is_missed* if quotes fill orders and the quotes of this bar did
        not arrive. An order that expires inside the bar is not filled by it. The exit orders of an
        entry can be filled inside the bar of the entry, and a new position on margin can be
        liquidated in it.
        """
        newer = []
        if is_missed:
            newer = [
                (line.orders, line.orders.rewind())
                for line in self.every_line
                if line.orders.before_quotes
            ]
        if self.waits and not self.is_passed_by(bar):
            self._match_path(bar, settlements, is_missed=is_missed)
        else:
            for funding in settlements:
                self.settle(funding)
        for orders, moved in newer:  # quotes after the bar had moved these
            orders.resume(moved, bar.open_time_ms)

    def _match_path(self, bar: Bar, settlements: Sequence[Funding], *, is_missed: bool) -> None:
        """Match the open of *bar*, then its *settlements*, then its path."""
        self._expire(bar.close_time_ms - 1, unfilled=False)
        self._end_due(bar.open_time_ms, bar.open, bar.open)
        first = self.journal.begin()
        MarketPass(self).match_open(bar, is_missed=is_missed)
        self._end_pass(first, bar.open_time_ms)
        first = self.journal.begin()
        MarketPass(self).arrive(bar)
        for funding in settlements:
            self.settle(funding)
        if (path := matching.worse_path(self, bar)) is not None:
            MarketPass(self).walk(bar, path)
        self._end_pass(first, bar.close_time_ms)

    def settle(self, funding: Funding) -> None:
        """Settle *funding*, and liquidate an account on cross margin that it ruins."""
        self.account.pay_funding(funding.instrument, funding.rate)
        for line in self.lines:
            line.protector.set_liquidation_price(funding.market_ms)
        if self.cross is not None:
            self.cross.match_mark(self, self.lines[0].mark, funding.market_ms)

    def match_mark(self, mark: int, at_ms: int) -> None:
        """Liquidate each position whose liquidation price *mark* has reached."""
        first = self.journal.begin()
        MarketPass(self).match_mark(mark, at_ms)
        self.protect_fills(first)

    def close(self, fill: Fill) -> None:
        """Book *fill* of a resting liquidation order, and update the exit orders."""
        first = self.journal.begin()
        MarketPass(self).book(fill)
        self.protect_fills(first)

    def is_passed_by(self, bar: Bar) -> bool:
        """Return whether *bar* changes no resting order and liquidates nothing."""
        for line in self.every_line:
            if line.protector.is_timed or not matching.passes(line.orders, bar):
                return False
        return self.cross is None or not self.cross.is_liquidated_within(self, bar)

    def _expire(self, market_ms: int, *, unfilled: bool = True) -> None:
        for line in self.every_line:
            line.orders.expire(market_ms, unfilled=unfilled)

    def _end_due(self, market_ms: int, bid: int, ask: int) -> None:
        """Apply the time limits that are reached, with the market at *bid* and *ask*."""
        for line in self.every_line:
            if line.protector.is_timed:
                line.protector.act_if_due(market_ms, bid, ask)
        for line in self.lines:
            if line.shares:
                line.sum_share_targets()

    def _end_pass(self, first: tuple[int, int], at_ms: int) -> None:
        """Update exit orders and liquidation prices after the fills of a pass.

        *first* is where they begin: see :meth:`Journal.begin`.
        """
        self.protect_fills(first)
        filled = {entry.fill.position_side for entry in self.journal.entries[first[0] :]}
        for line in self.lines:
            if line.book.side in filled:
                line.protector.set_liquidation_price(at_ms)

    def protect_fills(self, first: tuple[int, int]) -> None:
        """Update the exit orders after the fills of a pass, which begin at *first*."""
        journal, (first_entry, first_share) = self.journal, first
        fills = [("", entry.fill) for entry in journal.entries[first_entry:]]
        fills += journal.share_fills[first_share:]
        if not fills:
            return
        for line in self.every_line:
            if not line.shares:
                wanted = line.owner, line.key, line.book.side
                line.update_exits(
                    [
                        fill
                        for owner, fill in fills
                        if (owner, fill.instrument, fill.position_side) == wanted
                    ]
                )
