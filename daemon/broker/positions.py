"""``Positions``: what an account holds of one instrument, which meets the market together.

In one-way mode that is one position, in hedge mode one a side; each with the shares of its owners.
An event meets all their orders in one pass.

The rules are docs/money.md, M11 to M14 and M97.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING, Self

from tracepaper.daemon.broker import matching
from tracepaper.daemon.broker.book_fills import BookMoves, Queues
from tracepaper.daemon.broker.book_matching import BookPass
from tracepaper.daemon.broker.line import Line
from tracepaper.daemon.broker.margin import CrossMargin
from tracepaper.daemon.broker.matching import MarketPass
from tracepaper.strategies.types.decisions import Fill
from tracepaper.strategies.types.market import Bar, BookUpdate, Quote
from tracepaper.strategies.units import MONEY_LIMIT

if TYPE_CHECKING:
    from tracepaper.daemon.broker.account import PaperAccount


class Positions:
    """The positions of an account in one instrument, and the shares in them."""

    __slots__ = ("account", "cross", "journal", "lines", "parts", "queues", "tried")

    def __init__(self, account: PaperAccount, lines: Sequence[Line], queues: Queues | None) -> None:
        """Join the *lines* of positions, one for each side; *queues* where books fill orders."""
        self.account, self.journal, self.queues = account, account.journal, queues
        self.lines = tuple(lines)
        self.parts = tuple(part for line in lines for part in (line, *line.shares))
        self.tried: TrialFills | None = None  # while fills are tried on them
        for part in self.parts:
            part.positions = self
        policy = account.policy
        self.cross = policy if isinstance(policy, CrossMargin) else None  # whose calls it meets

    @property
    def waits(self) -> bool:
        """Whether anything rests, or has a time at which it is closed."""
        for line in self.lines:  # noqa: SIM110 - at every quote; a generator costs more
            if line.waits:
                return True
        return False

    # ------------------------------------------------------------ what the market does

    def match_quote(self, quote: Quote) -> None:
        """Let what rests meet *quote*."""
        if not self.waits:
            return
        self._expire(quote.market_ms)
        self._end_due(quote.market_ms, quote.bid, quote.ask)
        first = self.journal.begin()
        MarketPass(self).match_quote(quote)
        self._end_pass(first, quote.market_ms)

    def match_book(self, update: BookUpdate, moved: BookMoves) -> None:
        """Let what rests meet *update* of an order book, which holds *moved*."""
        assert self.queues is not None
        at_ms = update.market_ms
        self._expire(at_ms)
        self._end_due(at_ms, moved.bids[0].price, moved.asks[0].price)
        first = self.journal.begin()
        BookPass(self, self.queues).match(update, moved)
        self._end_pass(first, at_ms)

    def match_bar(self, bar: Bar, *, is_missed: bool = False) -> None:
        """Let market orders meet the open of *bar*, and all else the path that leaves less.

        A bar *is_missed* where quotes fill orders and those of the bar did not come. An order whose
        time ends inside a bar meets none of it. What the fill of an entry arms may be met inside
        the same bar, and what it opens on margin be liquidated.
        """
        if not self.waits or self.is_passed_by(bar):
            return
        newer = [
            (part.orders, part.orders.rewind())
            for part in self.parts
            if is_missed and part.orders.unmoved
        ]
        self._expire(bar.close_time_ms - 1, unfilled=False)
        self._end_due(bar.open_time_ms, bar.open, bar.open)
        first = self.journal.begin()
        MarketPass(self).match_open(bar, is_missed=is_missed)
        self._end_pass(first, bar.open_time_ms)
        if (path := matching.worse_path(self, bar)) is not None:
            first = self.journal.begin()
            MarketPass(self).walk(bar, path)
            self._end_pass(first, bar.close_time_ms)
        for orders, moved in newer:  # what quotes after the bar had moved
            orders.resume(moved, bar.open_time_ms)

    def match_mark(self, mark: int, at_ms: int) -> None:
        """Liquidate each position that has a price for it, where *mark* has reached that."""
        first = self.journal.begin()
        MarketPass(self).match_mark(mark, at_ms)
        self.protect_fills(first)

    def close(self, fill: Fill) -> None:
        """Book *fill* of the exchange's own order, which rests; exit orders follow."""
        first = self.journal.begin()
        MarketPass(self).book(fill)
        self.protect_fills(first)

    def is_passed_by(self, bar: Bar) -> bool:
        """Return whether *bar* leaves all that rests as it is, and calls no account."""
        for part in self.parts:
            if part.protector.is_timed or not matching.passes(part.orders, bar):
                return False
        return self.cross is None or not self.cross.is_called_within(self, bar)

    def _expire(self, market_ms: int, *, unfilled: bool = True) -> None:
        for part in self.parts:
            part.orders.expire(market_ms, unfilled=unfilled)

    def _end_due(self, market_ms: int, bid: int, ask: int) -> None:
        """Let act what a position's time or age is reached of, the market at *bid* and *ask*."""
        for part in self.parts:
            if part.protector.is_timed:
                part.protector.act_if_due(market_ms, bid, ask)
        for line in self.lines:
            if line.shares:
                line.agree()

    def _end_pass(self, first: tuple[int, int], at_ms: int) -> None:
        """Let protection and margin follow the fills of a pass, which begin at *first*."""
        self.protect_fills(first)
        filled = {entry.fill.position_side for entry in self.journal.entries[first[0] :]}
        for line in self.lines:
            if line.book.side in filled:
                line.protector.set_liquidation_price(at_ms)

    def protect_fills(self, first: tuple[int, int]) -> None:
        """Let what the fills of a pass arm or end follow them; they begin at *first*."""
        journal, (entry, part) = self.journal, first
        moved = [("", filled.fill) for filled in journal.entries[entry:]] + journal.parts[part:]
        if not moved:
            return
        for line in self.parts:
            if not line.shares:
                named = line.owner, line.key, line.book.side
                line.arm([f for of, f in moved if (of, f.instrument, f.position_side) == named])

    def trial(self) -> TrialFills:
        """Return a trial of fills."""
        return TrialFills(self)


class TrialFills:
    """What fills of one instrument would do to its account: in the end all of it is taken back.

    It bears every one of them.
    """

    def __init__(self, positions: Positions) -> None:
        self._positions, self._account = positions, positions.account
        self.is_over = False  # the account was called: no path leaves less

    def __enter__(self) -> Self:
        """Begin it: nobody is told of what follows."""
        account, parts = self._account, self._positions.parts
        self._journal = account.journal.take()
        self._owners = [(of, vars(of).copy()) for of in (account, *(part.book for part in parts))]
        self._lines = [(part, part.holding, part.position, part.orders.state()) for part in parts]
        account.entries = None
        for part in parts:
            part.holding, part.book.fills = copy(part.holding), {}
        self._positions.tried = self
        return self

    def __exit__(self, *_: object) -> None:
        """Take everything back."""
        self._positions.tried = None
        for of, kept in self._owners:
            vars(of).update(kept)
        for line, holding, position, orders in self._lines:
            line.holding, line.position = holding, position
            line.orders.restore(orders)
        self._account.journal.swap(self._journal)

    def equity(self, price: int) -> int:
        """Return the equity with the instrument at *price*; the least once it was called."""
        if self.is_over:
            return -MONEY_LIMIT
        lines = self._positions.lines
        return sum(
            line.book.cash
            + line.notional(price, line.held)
            - (0 if line.is_cash else line.holding.entry_notional)
            for line in lines
        )
