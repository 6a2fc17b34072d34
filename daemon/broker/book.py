"""``Book``: the lines of one side of an account, or of one owner's share in it.

An account in one-way mode has one book of positions, in hedge mode one for each side. If several
strategies share the account, each of them also has a book of its share in each of these books.
``Holdings`` answers a decision's questions about an account, a side or an owner.

The rules are docs/money.md, M16 to M21 and M90 to M102, and docs/one_account.md, J12 to J20.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from msgspec import Struct
from msgspec.structs import replace

from tracepaper.daemon.broker.book_fills import Queues
from tracepaper.daemon.broker.execution import MeanRange
from tracepaper.daemon.broker.line import Line, LineState
from tracepaper.daemon.broker.margin import MarginPolicy
from tracepaper.daemon.broker.settings import BrokerSettings
from tracepaper.daemon.broker.totals import Ledger, Totals
from tracepaper.strategies.api.context import AccountView, Cancel, OrderRequest, Orders
from tracepaper.strategies.api.context import account_view as view_of
from tracepaper.strategies.holding import Holding
from tracepaper.strategies.types.decisions import (
    Account,
    Fill,
    Order,
    Position,
    PositionSide,
)
from tracepaper.strategies.types.market import Instrument
from tracepaper.strategies.units import MONEY_LIMIT


class AccountState(Struct, frozen=True, array_like=True):
    """The stored state of a book; of an account with two sides, its cash alone."""

    cash: int
    books: dict[str, LineState]

    @property
    def holdings(self) -> dict[str, Holding]:
        """The holding in each instrument."""
        return {key: line.holding for key, line in self.books.items()}

    def taken_over(self) -> AccountState:
        """Return the state for a run that continues another one."""
        return AccountState(self.cash, {key: line.taken_over() for key, line in self.books.items()})


class Holdings:
    """The positions and balance of an account, a side or an owner: sums over its books.

    An instance of this class itself holds an owner's shares in both sides of an account in hedge
    mode.
    """

    sides: Mapping[PositionSide, Book] = {}
    """The two books of an account or an owner in hedge mode."""
    fills: dict[str, list[Fill]]

    def __init__(self, books: Sequence[Book]) -> None:
        """Sum over *books*: one, or one of each side."""
        self.books, self.fills = books, books[0].fills
        if len(books) > 1:
            self.sides = {book.side: book for book in books if book.side is not None}
            for book in books:
                book.holder = self

    def lines_of(self, instrument: str) -> list[Line]:
        """Return the line of *instrument* in each book."""
        return [book.lines[instrument] for book in self.books]

    def held(self, instrument: str) -> int:
        """Return the position in *instrument*, a signed quantity."""
        return sum(line.holding.quantity for line in self.lines_of(instrument))

    def target(self, instrument: str) -> int:
        """Return the last decided target of *instrument*, whether it was reached or not."""
        return sum(line.orders.target for line in self.lines_of(instrument))

    def position(self, instrument: str) -> Position:
        """Return the position in *instrument* at the newest mark."""
        return _summed(Position, [line.position for line in self.lines_of(instrument)])

    def confirmed_ms(self, instrument: str) -> int:
        """Return the open time of the bar that last confirmed the position; 0 if none did.

        It is 0 as well in hedge mode, in which each side is confirmed separately.
        """
        lines = self.lines_of(instrument)
        return lines[0].orders.confirmed_ms if len(lines) == 1 else 0

    def confirm(self, instrument: str, open_time_ms: int) -> None:
        """Let the position live for another horizon from the bar at *open_time_ms* on."""
        lines = self.lines_of(instrument)
        if len(lines) == 1:
            lines[0].orders.confirmed_ms = open_time_ms

    def opened_ms(self, instrument: str) -> int:
        """Return the market time of the fill that opened the position; 0 without a position.

        Of two sides it is the time of the older one.
        """
        opened = (line.holding.opened_ms for line in self.lines_of(instrument))
        return min(filter(None, opened), default=0)

    def balance(self) -> Account:
        """Return the account by which sizes and limits are computed.

        Raises ``ConfigInvalid`` if it does not fit in 64 bits.
        """
        return self.subtotal()

    def transfer(self, amount: int) -> None:
        """Add the signed *amount* of cash, which another owner of the same account gives up."""
        self.books[0].cash += amount
        self.books[0].forget_balance()

    def subtotal(self) -> Account:
        """Return the cash and the results of these books alone."""
        return _summed(Account, [book.subtotal() for book in self.books])

    def reach(self, instrument: str, orders: Orders) -> tuple[int, bool]:
        """Return the largest position (unsigned) that *orders* and resting orders could lead to.

        Either all buys or all sells are assumed to fill, whichever leads further. The positions of
        two sides are added up. The second value says whether all of *orders* can only reduce.
        """
        most, only_reduces = 0, True
        for line in self.lines_of(instrument):
            bought, sold, reduces = line.orders.opens(requests_of(orders, line.book.side))
            most += max(abs(line.held + bought), abs(line.held - sold))
            only_reduces = only_reduces and reduces
        return most, only_reduces

    def affordable(self, instrument: str, target: int, price: int) -> int:
        """Return *target*, or as much of it as the first book can pay for at *price*."""
        book = self.books[0]
        return book.policy.affordable(book.lines[instrument], target, price)

    def gross_of_others(self, instrument: str) -> int:
        """Return the gross notional of all other positions at the marks.

        For a side, the other side of *instrument* is another position. Of position and target the
        larger one counts.
        """
        return sum(
            line.value(max(abs(line.held), abs(line.orders.target)))
            for book in self.books[0].holder.books
            for key, line in book.lines.items()
            if key != instrument or book not in self.books
        )

    def exposure(self, instrument: str) -> int:
        """Return the signed notional of the position at the mark."""
        lines = self.lines_of(instrument)
        return sum(line.value(abs(line.held)) * (1 if line.held > 0 else -1) for line in lines)

    def exposures_of_others(self, instrument: str) -> dict[str, int]:
        """Return the signed notional of each other position at the marks, by instrument.

        They are the positions of :meth:`gross_of_others`; two sides of one instrument are netted.
        """
        exposures: dict[str, int] = {}
        for book in self.books[0].holder.books:
            for key, line in book.lines.items():
                if key != instrument or book not in self.books:
                    larger = max(line.held, line.orders.target, key=abs)
                    value = line.value(abs(larger))
                    exposures[key] = exposures.get(key, 0) + (value if larger > 0 else -value)
        return exposures

    def view(self, instrument: Instrument, *, bars_since: Callable[[int], int]) -> AccountView:
        """Return the strategy's view of the account, and clear the fills that it contains.

        *bars_since* counts the closes since a market time. In hedge mode the view also has each
        side.
        """
        key = instrument.id
        fills, self.fills[key] = self.fills[key], []
        lines, balance = self.lines_of(key), self.balance()

        def view_at(
            position: Position,
            opened_ms: int,
            orders: Sequence[Order] = (),
            new_fills: Sequence[Fill] = (),
        ) -> AccountView:
            return view_of(
                instrument,
                position=position,
                opened_ms=opened_ms,
                bars_held=bars_since(opened_ms),
                orders=orders,
                fills=new_fills,
                account=balance,
            )

        orders = [order for line in lines for order in line.orders.orders]
        view = view_at(self.position(key), self.opened_ms(key), orders, fills)
        if len(lines) == 1:
            return view
        long, short = (view_at(line.position, line.holding.opened_ms).position for line in lines)
        return replace(view, long=long, short=short)


class Book(Totals, Holdings):
    """The lines of one side of an account, or of one owner's share in it, and their sums."""

    def __init__(
        self,
        instruments: Iterable[Instrument],
        settings: BrokerSettings,
        ledger: Ledger,
        *,
        side: PositionSide | None = None,
        owner: str = "",
        parent: Book | None = None,
        queues: Mapping[str, Queues] = {},
        ranges: Mapping[str, MeanRange] = {},
    ) -> None:
        """Open a book of positions, or of the share of *owner* in the positions of *parent*."""
        super().__init__(settings, ledger, side=side, owner=owner, is_share=parent is not None)
        self.name = "/".join(filter(None, (owner, side)))
        """The key of its stored state; empty for the only book of an account."""
        self.books = (self,)
        self.holder: Holdings = self
        """The account or owner on whose balance sizes are based."""
        self.policy: MarginPolicy
        self.lines: dict[str, Line] = {
            item.id: Line(
                self,
                item,
                None if parent is None else parent.lines[item.id],
                queues=queues.get(item.id),
                mean_range=ranges.get(item.id),
            )
            for item in instruments
        }

    # These three run at every bar: they avoid the list of lines that Holdings makes.

    def held(self, instrument: str) -> int:
        """Return the position in *instrument*, a signed quantity."""
        return self.lines[instrument].holding.quantity

    def target(self, instrument: str) -> int:
        """Return the last decided target of *instrument*, whether it was reached or not."""
        return self.lines[instrument].orders.target

    def position(self, instrument: str) -> Position:
        """Return the position in *instrument* at the newest mark."""
        return self.lines[instrument].position

    def balance(self) -> Account:
        """Return the account by which sizes and limits are computed: for a side, that of both."""
        return self.holder.balance() if self.side is not None else self.subtotal()

    @property
    def fits_a_quarter_away(self) -> bool:
        """Whether its sums fit in 64 bits at prices a quarter away.

        In the book of an owner the equity must stay positive at them too.
        """
        lines = self.lines.values()
        worth = sum(abs(line.value(line.held)) for line in lines)
        if self.is_share and 4 * self.subtotal().equity <= worth:
            return False
        entries = sum(abs(line.holding.entry_notional) for line in lines)
        return abs(self.cash) + abs(self.paid_entries) + entries + 2 * worth < MONEY_LIMIT

    # ------------------------------------------------------------ state

    def state(self) -> AccountState:
        """Return the state to store."""
        return AccountState(self.cash, {key: line.state() for key, line in self.lines.items()})

    def restore(self, state: AccountState) -> None:
        """Restore the stored *state*."""
        self.cash = state.cash
        for key, line in state.books.items():
            self.lines[key].restore(line)
        self.forget_balance()


def requests_of(orders: Orders, side: PositionSide | None) -> tuple[OrderRequest | Cancel, ...]:
    """Return the requests of a list that concern *side*; cancellations concern both.

    In one-way mode (*side* None) all of them.
    """
    if side is None:
        return orders.requests
    return tuple(
        request
        for request in orders.requests
        if isinstance(request, Cancel) or request.position_side is side
    )


T = TypeVar("T", Position, Account)


def _summed(kind: type[T], parts: Sequence[T]) -> T:
    """Return the sum of *parts*, field by field."""
    if len(parts) == 1:
        return parts[0]
    return kind(*(sum(getattr(part, name) for part in parts) for name in kind.__struct_fields__))
