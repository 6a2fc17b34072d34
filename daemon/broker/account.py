"""``PaperAccount``: one balance, its margin policy, and the books of its positions.

An account in one-way mode has one ``Book`` of positions, in hedge mode one for each side.
``Holdings`` answers a decision's questions about an account or a side. The ``Ledger`` records the
effects of an event.

The rules are docs/money.md, M6 to M21 and M90 to M102.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from tracepaper.daemon.broker.execution import ExecutionCosts, MeanRange
from tracepaper.daemon.broker.exit_plans import ExpectedReturn
from tracepaper.daemon.broker.ledger import Ledger, StepNumber, Totals
from tracepaper.daemon.broker.line import Line, LineState
from tracepaper.daemon.broker.margin import CrossMargin, IsolatedMargin, MarginPolicy
from tracepaper.daemon.broker.matching import Market
from tracepaper.daemon.broker.settings import BrokerSettings, Latency
from tracepaper.strategies.api.context import AccountView, Cancel, OrderRequest, Orders, Signal
from tracepaper.strategies.api.context import account_view as view_of
from tracepaper.strategies.apportion import apportion
from tracepaper.strategies.errors import ConfigInvalid, InvariantBroken
from tracepaper.strategies.holding import Holding
from tracepaper.strategies.types.decisions import (
    Account,
    Action,
    Fill,
    FillModel,
    LedgerEntry,
    LedgerKind,
    Order,
    Position,
    PositionSide,
)
from tracepaper.strategies.types.market import Instrument, Side
from tracepaper.strategies.units import (
    MONEY_DECIMALS,
    MONEY_LIMIT,
    MONEY_MAX,
    unscaled,
)

SIDES: Final = tuple(PositionSide)
OPENS: Final = {PositionSide.LONG: Side.BUY, PositionSide.SHORT: Side.SELL}
"""The side of the orders that open a position side; orders of the other side close it."""
SIDE_OF: Final = {Action.LONG: PositionSide.LONG, Action.SHORT: PositionSide.SHORT}
"""The position side that an action opens; other actions concern both sides."""
ENTRIES: Final = tuple(SIDE_OF)
"""The actions that request a position, and so confirm one for another horizon."""


class Intent(NamedTuple):
    """The target that an account should reach, as decided at a bar's close."""

    action: Action
    target: int  # signed
    reason: str
    signal: Signal | None = None  # for the exit orders of an entry
    is_protected: bool = False  # whether the signal names exit orders
    refusal: str | None = None  # why an entry has no size
    expected: ExpectedReturn | None = None  # the model's forecast, if [exits] follow it
    # In hedge mode the intent of each side, None if a gate refused it; other fields are of both.
    sides: Mapping[PositionSide, Intent | None] = {}
    ends_lists: bool = False  # whether it cancels the orders by list that could open a position


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
    """The positions and balance of an account or a side: sums over its books."""

    sides: Mapping[PositionSide, Book] = {}
    """The two books of an account in hedge mode."""
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
        return sum(line.target for line in self.lines_of(instrument))

    def position(self, instrument: str) -> Position:
        """Return the position in *instrument* at the newest mark."""
        return _summed(Position, [line.position for line in self.lines_of(instrument)])

    def confirmed_ms(self, instrument: str) -> int:
        """Return the open time of the bar that last confirmed the position; 0 if none did.

        It is 0 as well in hedge mode, in which each side is confirmed separately.
        """
        lines = self.lines_of(instrument)
        return lines[0].confirmed_ms if len(lines) == 1 else 0

    def confirm(self, instrument: str, open_time_ms: int) -> None:
        """Let the position live for another horizon from the bar at *open_time_ms* on."""
        lines = self.lines_of(instrument)
        if len(lines) == 1:
            lines[0].confirmed_ms = open_time_ms

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
            bought, sold, reduces = line.opens(requests_of(orders, line.book.side))
            most += max(abs(line.held + bought), abs(line.held - sold))
            only_reduces = only_reduces and reduces
        return most, only_reduces

    def affordable(self, instrument: str, target: int, price: int) -> int:
        """Return *target*, or as much of it as the first book can pay for at *price*."""
        book = self.books[0]
        line = book.lines[instrument]
        funds = book.policy.spendable(line, is_reversal=target * line.held < 0)
        return line.affordable(target, price, funds)

    def gross_of_others(self, instrument: str) -> int:
        """Return the gross notional of all other positions at the marks.

        For a side, the other side of *instrument* is another position. Of position and target the
        larger one counts.
        """
        return sum(
            line.value(max(abs(line.held), abs(line.target)))
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
                    larger = max(line.held, line.target, key=abs)
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

        orders = [order for line in lines for order in line.orders]
        view = view_at(self.position(key), self.opened_ms(key), orders, fills)
        if len(lines) == 1:
            return view
        long, short = (view_at(line.position, line.holding.opened_ms).position for line in lines)
        return replace(view, long=long, short=short)


class Book(Totals, Holdings):
    """The lines of an account, or of one side of it, and their sums."""

    def __init__(
        self,
        instruments: Iterable[Instrument],
        settings: BrokerSettings,
        ledger: Ledger,
        *,
        side: PositionSide | None = None,
        ranges: Mapping[str, MeanRange] = {},
    ) -> None:
        """Open a book of positions."""
        super().__init__(settings, ledger, side=side)
        self.books = (self,)
        self.holder: Holdings = self
        """The account on whose balance sizes are based."""
        self.policy: MarginPolicy
        self.lines: dict[str, Line] = {
            item.id: Line(self, item, mean_range=ranges.get(item.id)) for item in instruments
        }

    # These three run at every bar: they avoid the list of lines that Holdings makes.

    def held(self, instrument: str) -> int:
        """Return the position in *instrument*, a signed quantity."""
        return self.lines[instrument].holding.quantity

    def target(self, instrument: str) -> int:
        """Return the last decided target of *instrument*, whether it was reached or not."""
        return self.lines[instrument].target

    def position(self, instrument: str) -> Position:
        """Return the position in *instrument* at the newest mark."""
        return self.lines[instrument].position

    def balance(self) -> Account:
        """Return the account by which sizes and limits are computed: for a side, that of both."""
        return self.holder.balance() if self.side is not None else self.subtotal()

    def subtotal(self) -> Account:
        """Return the cash and the results of this book alone."""
        valued = self.valued
        if valued is None:
            equity = self.cash + self.paid_entries + self.unrealized
            valued = self.valued = _in_range(
                Account(self.cash, equity, self.realized, self.unrealized, self.fees, self.funding)
            )
        return valued

    @property
    def fits_a_quarter_away(self) -> bool:
        """Whether its sums fit in 64 bits at prices a quarter away."""
        lines = self.lines.values()
        worth = sum(abs(line.value(line.held)) for line in lines)
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
        self.valued = None


class PaperAccount(Holdings):
    """The run's account, or a shadow account."""

    def __init__(
        self,
        instruments: Iterable[Instrument],
        settings: BrokerSettings,
        *,
        step: StepNumber | None = None,
        ranges: Mapping[str, MeanRange] | None = None,
        marked: Mapping[str, int] | None = None,
        keeps_ledger: bool = False,
        reports_fills: Iterable[str] = (),
    ) -> None:
        """Open an account with one book, or in hedge mode one for each side.

        New orders get the number of *step*. The caller feeds bars to *ranges*, by instrument.
        *marked* has the newest mark price of the instruments for which one arrived since their
        last bar.
        """
        items = tuple(instruments)
        self.settings = settings
        self.ledger = Ledger(settings.cash, step or StepNumber(), keeps_entries=keeps_ledger)
        self._ranges = ranges or {}
        fills: dict[str, list[Fill]] = {key: [] for key in reports_fills}
        super().__init__(self._new_books(items, settings, fills))
        policy = MarginPolicy
        if settings.leverage is not None:
            policy = CrossMargin if settings.is_cross else IsolatedMargin
        lines = [line for book in self.books for line in book.lines.values()]
        self.policy = policy(self.ledger, lines, {} if marked is None else marked)
        for book in self.books:
            book.policy = self.policy
        self.markets = {
            item.id: Market(self.lines_of(item.id), self.ledger, self.policy) for item in items
        }
        """The lines of each instrument, which its events meet together."""
        if len(self.books) == 1:
            # Every step calls these: binding the book's methods saves a call.
            for name in ("held", "target", "position", "balance", "subtotal"):
                setattr(self, name, getattr(self.books[0], name))

    def _new_books(
        self,
        items: Iterable[Instrument],
        settings: BrokerSettings,
        fills: dict[str, list[Fill]],
    ) -> tuple[Book, ...]:
        """Return a new book of each side, with its cash.

        The books share the list of *fills* that a strategy sees.
        """
        sides = SIDES if settings.is_hedged else (None,)
        cash = apportion(settings.cash, [1] * len(sides))
        books = tuple(
            Book(
                items, replace(settings, cash=part), self.ledger, side=side, ranges=self._ranges
            )
            for side, part in zip(sides, cash, strict=True)
        )  # fmt: skip
        for book in books:
            book.fills = fills
        return books

    # ------------------------------------------------------------ books and balances

    def line(self, instrument: str) -> Line:
        """Return the position in *instrument*; the account must be in one-way mode."""
        (book,) = self.books
        return book.lines[instrument]

    @property
    def cash(self) -> int:
        """The cash of all books of positions."""
        return self.ledger.cash

    def subtotal(self) -> Account:
        """Return the account at the newest marks.

        Raises ``ConfigInvalid`` if it does not fit in 64 bits.
        """
        return _in_range(super().subtotal())

    def report(
        self, instrument: str | None
    ) -> tuple[Position | None, Account, tuple[LedgerEntry, ...]]:
        """Return the position, the account, and the cash movements since the last call."""
        entries: tuple[LedgerEntry, ...] = ()
        if movements := self.ledger.entries:
            entries = tuple(movements)
            movements.clear()
        return None if instrument is None else self.position(instrument), self.balance(), entries

    # ------------------------------------------------------------ market events

    def match_mark(self, instrument: str, mark: int, at_ms: int) -> None:
        """Liquidate the positions in *instrument*, or the account, if *mark* requires it."""
        self.policy.match_mark(self.markets[instrument].lines, mark, at_ms)

    # ------------------------------------------------------------ state

    def state(self) -> AccountState:
        """Return the state to store; in hedge mode the sides have states of their own."""
        return AccountState(self.cash, {}) if self.sides else self.books[0].state()

    def restore(
        self,
        state: AccountState,
        sides: Mapping[PositionSide | None, AccountState],
        *,
        taken_over: bool = False,
    ) -> None:
        """Restore the stored state of this run, or of another run (*taken_over*).

        *sides* are the states of the sides. The ledger of this run continues; the cash of another
        run begins a new one. Raises ``ConfigInvalid`` if another run has positions or orders in
        another position mode, ``InvariantBroken`` if the sides do not add up.
        """
        ledger = self.ledger
        ledger.cash = state.cash
        if ledger.entries is not None:
            opened = LedgerEntry(LedgerKind.TAKEN_OVER, state.cash, state.cash)
            ledger.entries = [opened] if taken_over else []
        if self.sides:
            self._restore_sides(state, sides)
        else:
            reject_switch(*sides.values())
            self.books[0].restore(state)
        self.ledger.clear()  # no step caused these changes

    def _restore_sides(
        self, state: AccountState, sides: Mapping[PositionSide | None, AccountState]
    ) -> None:
        if not sides:  # a run in one-way mode: only its cash is taken over
            reject_switch(state)
            halves = apportion(state.cash, [1] * len(SIDES))
            sides = {s: AccountState(half, {}) for s, half in zip(SIDES, halves, strict=True)}
        for side, book in self.sides.items():
            book.restore(sides[side])
        cash_of_sides = sum(book.cash for book in self.books)
        if cash_of_sides != self.cash:
            raise InvariantBroken(
                f"the cash of both sides adds up to {cash_of_sides}, and the account's is "
                f"{self.cash}; "
                "run `tracepaper audit verify` and restore a backup"
            )


def intent_for_side(intent: Intent | Orders, side: PositionSide | None) -> Intent | Orders | None:
    """Return the part of *intent* for the position of *side*; None if a gate refused it."""
    if side is None:
        return intent
    if isinstance(intent, Orders):
        return replace(intent, requests=requests_of(intent, side))
    return intent.sides[side] if intent.sides else intent


def reject_switch(*accounts: AccountState) -> None:
    """Raise ``ConfigInvalid`` if *accounts*, of another position mode, have positions or orders."""
    for account in accounts:
        for key, book in account.books.items():
            if book.holding.quantity or book.orders.order is not None or book.orders.others:
                raise ConfigInvalid(
                    f"The newest run in this database has a position or orders in {key} in another "
                    "position mode, and account.position_mode can only change without both; "
                    "close them in that mode (FLATTEN), or use another database."
                )


def posting_account(
    instruments: Iterable[Instrument], state: AccountState | None = None
) -> PaperAccount:
    """Return an account without cash that holds the positions of *state*, to book fills in."""
    settings = BrokerSettings(FillModel.NEXT_OPEN, ExecutionCosts(0), 0, Latency(0))
    account = PaperAccount(instruments, settings)
    for key, line in ({} if state is None else state.books).items():
        account.line(key).hold(line.holding)
    return account


def requests_of(orders: Orders, side: PositionSide | None) -> Sequence[OrderRequest | Cancel]:
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


def _in_range(account: Account) -> Account:
    """Return *account*; raise ``ConfigInvalid`` if it does not fit in 64 bits."""
    if abs(account.equity) > MONEY_LIMIT or abs(account.cash) > MONEY_LIMIT:
        raise ConfigInvalid(
            f"The account's equity of {unscaled(account.equity, MONEY_DECIMALS)} is beyond "
            f"{MONEY_MAX:,}; start a new one with less account.cash or a smaller [sizing]."
        )
    return account
