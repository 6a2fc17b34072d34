"""``Book``: the lines of one side of an account, or of one owner's share in it.

An account in one-way mode has one book of positions, in hedge mode one for each side. If several
strategies share the account, each of them also has a book of its share in each of these books.
``Holdings`` answers a decision's questions about an account, a side or an owner.

The rules are docs/money.md, M16 to M21 and M90 to M102, and docs/one_account.md, J12 to J20.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from tracepaper.daemon.broker.line import Line, LineState
from tracepaper.strategies.api.context import AccountView, Cancel, OrderRequest, Orders
from tracepaper.strategies.api.context import account_view as view_of
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.holding import Holding
from tracepaper.strategies.types.decisions import (
    Account,
    Fill,
    LedgerEntry,
    LedgerKind,
    Order,
    Position,
    PositionSide,
)
from tracepaper.strategies.types.market import Instrument
from tracepaper.strategies.units import MONEY_DECIMALS, MONEY_LIMIT, MONEY_MAX, unscaled

if TYPE_CHECKING:
    from tracepaper.daemon.broker.account import BrokerSettings, PaperAccount


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
    """Fills since the last decision, by instrument, if its strategy sees fills."""

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


class Book(Holdings):
    """The lines of one side of an account, or of one owner's share in it, and their sums.

    The sums are updated with each change, so that the cost of a step does not grow with the number
    of instruments.
    """

    def __init__(
        self,
        account: PaperAccount,
        instruments: Iterable[Instrument],
        settings: BrokerSettings,
        *,
        side: PositionSide | None = None,
        owner: str = "",
        parent: Book | None = None,
    ) -> None:
        """Open a book of positions, or of the share of *owner* in the positions of *parent*."""
        self.account, self.settings, self.side, self.owner = account, settings, side, owner
        self.name = "/".join(filter(None, (owner, side)))
        """The key of its stored state; empty for the only book of an account."""
        self.books = (self,)
        self.holder: Holdings = account if parent is None else self
        """The account or owner on whose balance sizes are based."""
        self.sign = {None: 0, PositionSide.LONG: 1, PositionSide.SHORT: -1}[side]
        self.cash = settings.cash
        self.realized = self.unrealized = self.fees = self.funding = 0
        self.bound = 0  # cash that the margins of its positions bind
        self.paid_entries = 0  # entry notional of its spot positions and shares
        self.fills = account.fills if parent is None else {}
        self._parent = parent
        self._balance: Account | None = None
        self.lines: dict[str, Line] = {
            item.id: Line(self, item, None if parent is None else parent.lines[item.id])
            for item in instruments
        }

    def move(
        self, kind: LedgerKind, amount: int, instrument: str, order_id: str | None = None
    ) -> None:
        """Change the cash by *amount*; in a book of positions the cash of the account too.

        A step changes cash nowhere else. In the run's account each change is a ledger entry.
        """
        if not amount:
            return
        self.cash += amount
        if self._parent is not None:
            return
        account = self.account
        account.cash += amount
        if account.entries is not None:
            account.entries.append(
                LedgerEntry(kind, amount, account.cash, instrument, order_id, self.side)
            )

    def forget_balance(self) -> None:
        """Invalidate the cached balance."""
        self._balance = None

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

    def subtotal(self) -> Account:
        """Return the cash and the results of this book alone."""
        balance = self._balance
        if balance is None:
            equity = self.cash + self.paid_entries + self.unrealized
            balance = self._balance = check_range(
                Account(self.cash, equity, self.realized, self.unrealized, self.fees, self.funding)
            )
        return balance

    @property
    def fits_a_quarter_away(self) -> bool:
        """Whether its sums fit in 64 bits at prices a quarter away.

        In the book of an owner the equity must stay positive at them too.
        """
        lines = self.lines.values()
        worth = sum(abs(line.value(line.held)) for line in lines)
        if self._parent is not None and 4 * self.subtotal().equity <= worth:
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


def check_range(account: Account) -> Account:
    """Return *account*; raise ``ConfigInvalid`` if it does not fit in 64 bits."""
    if abs(account.equity) > MONEY_LIMIT or abs(account.cash) > MONEY_LIMIT:
        raise ConfigInvalid(
            f"The account's equity of {unscaled(account.equity, MONEY_DECIMALS)} is beyond "
            f"{MONEY_MAX:,}; start a new one with less account.cash or a smaller [sizing]."
        )
    return account


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
