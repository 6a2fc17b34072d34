"""``PaperAccount``: one balance, its margin policy, and the books of its positions.

An event meets each position together with its shares, and the ``Journal`` records the effects.

The rules are docs/money.md, M6 to M21 and M90 to M102, and docs/one_account.md, J12 to J20.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from msgspec.structs import replace

from tracepaper.daemon.broker.book import (
    AccountState,
    Book,
    Holdings,
    requests_of,
)
from tracepaper.daemon.broker.book_fills import Queues
from tracepaper.daemon.broker.book_matching import BookMarket
from tracepaper.daemon.broker.execution import ExecutionCosts, MeanRange
from tracepaper.daemon.broker.exit_plans import ExpectedReturn
from tracepaper.daemon.broker.line import Line
from tracepaper.daemon.broker.margin import CrossMargin, IsolatedMargin, MarginPolicy
from tracepaper.daemon.broker.matching import Market
from tracepaper.daemon.broker.settings import BrokerSettings, Latency, Ownership
from tracepaper.daemon.broker.totals import Ledger, check_range
from tracepaper.strategies.api.context import Orders, Signal
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
    Position,
    PositionSide,
)
from tracepaper.strategies.types.market import Instrument, Side
from tracepaper.strategies.units import RATE_SCALE

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


class PaperAccount(Holdings):
    """The run's account, or a shadow account."""

    def __init__(
        self,
        instruments: Iterable[Instrument],
        settings: BrokerSettings,
        *,
        ranges: Mapping[str, MeanRange] | None = None,
        marked: Mapping[str, int] | None = None,
        keeps_ledger: bool = False,
        reports_fills: Iterable[str] = (),
        owners: Mapping[str, Ownership] | None = None,
    ) -> None:
        """Open an account with one book, or in hedge mode one for each side.

        The caller feeds bars to *ranges*, by instrument. *marked* has the newest mark price of the
        instruments for which one arrived since their last bar. Each of several *owners* gets its
        share of the cash.
        """
        items = tuple(instruments)
        self.settings = settings
        self.ledger = Ledger(settings.cash, keeps_entries=keeps_ledger)
        self.journal = self.ledger.journal
        self._ranges = ranges or {}
        self._queues: dict[str, Queues] = {}
        if settings.execution is FillModel.BOOK:
            self._queues = {item.id: Queues(settings.queue) for item in items}
        fills: dict[str, list[Fill]] = {key: [] for key in reports_fills}
        super().__init__(self._new_books(items, settings, fills))
        self.owners: dict[str, Holdings] = {}
        self.shares: tuple[Book, ...] = ()
        self.reserve = 0  # money that belongs to no owner
        self._weights: list[int] = []
        if owners:
            self._open_shares(items, owners)
        policy = MarginPolicy
        if settings.leverage is not None:
            policy = CrossMargin if settings.is_cross else IsolatedMargin
        lines = [line for book in self.books for line in book.lines.values()]
        self.policy = policy(self.ledger, lines, {} if marked is None else marked)
        for book in self.every_book:
            book.policy = self.policy
        self.markets = {item.id: self._market(item.id) for item in items}
        """The lines of each instrument, which its events meet together."""
        if len(self.books) == 1:
            # Every step calls these: binding the book's methods saves a call.
            for name in ("held", "target", "position", "balance", "subtotal"):
                setattr(self, name, getattr(self.books[0], name))

    def _market(self, instrument: str) -> Market:
        lines = self.lines_of(instrument)
        if (queues := self._queues.get(instrument)) is not None:
            return BookMarket(lines, self.ledger, self.policy, queues)
        return Market(lines, self.ledger, self.policy)

    def _new_books(
        self,
        items: Iterable[Instrument],
        settings: BrokerSettings,
        fills: dict[str, list[Fill]],
        owner: str = "",
    ) -> tuple[Book, ...]:
        """Return a new book of each side, or of the share of *owner* in it, with its cash.

        The books share the list of *fills* that a strategy sees.
        """
        sides = SIDES if settings.is_hedged else (None,)
        parents = self.books if owner else [None] * len(sides)
        cash = apportion(settings.cash, [1] * len(sides))
        books = tuple(
            Book(
                items, replace(settings, cash=part), self.ledger, side=side,
                owner=owner, parent=parent, queues=self._queues, ranges=self._ranges,
            )
            for side, part, parent in zip(sides, cash, parents, strict=True)
        )  # fmt: skip
        for book in books:
            book.fills = fills
        return books

    def _open_shares(self, items: Iterable[Instrument], owners: Mapping[str, Ownership]) -> None:
        shares = [owner.share for owner in owners.values()]
        self._weights = [*shares, RATE_SCALE - sum(shares)]
        *cash, self.reserve = apportion(self.cash, self._weights)
        for (name, owner), money in zip(owners.items(), cash, strict=True):
            fills: dict[str, list[Fill]] = {key: [] for key in owner.reports_fills}
            books = self._new_books(items, replace(owner.settings, cash=money), fills, name)
            self.owners[name] = Holdings(books) if self.sides else books[0]
            self.shares += books

    # ------------------------------------------------------------ books and balances

    def line(self, instrument: str) -> Line:
        """Return the position in *instrument*; the account must be in one-way mode."""
        (book,) = self.books
        return book.lines[instrument]

    @property
    def every_book(self) -> tuple[Book, ...]:
        """The books of positions, then the books of the owners' shares."""
        return (*self.books, *self.shares)

    @property
    def stored_books(self) -> dict[str, Book]:
        """The books whose state is stored separately from the account's, by name."""
        return {book.name: book for book in self.every_book if book.name}

    @property
    def cash(self) -> int:
        """The cash of all books of positions."""
        return self.ledger.cash

    def subtotal(self) -> Account:
        """Return the account at the newest marks.

        Raises ``ConfigInvalid`` if it does not fit in 64 bits.
        """
        return check_range(super().subtotal())

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

    # ------------------------------------------------------------ several owners

    def share_out(self) -> None:
        """Distribute the account's equity to the owners anew, and the rest to the reserve.

        Only cash moves; every share keeps its positions.
        """
        equity = self.balance().equity
        *equities, self.reserve = apportion(max(equity, 0), self._weights)
        for owner, target_equity in zip(self.owners.values(), equities, strict=True):
            owner.transfer(target_equity - owner.balance().equity)
        if equity < 0:
            self.reserve += equity

    # ------------------------------------------------------------ state

    def state(self) -> AccountState:
        """Return the state to store; in hedge mode the sides have states of their own."""
        return AccountState(self.cash, {}) if self.sides else self.books[0].state()

    def restore(
        self,
        state: AccountState,
        parts: Mapping[str, AccountState],
        *,
        taken_over: bool = False,
    ) -> None:
        """Restore the stored state of this run, or of another run (*taken_over*).

        *parts* are the states of the sides and the owners. The ledger of this run continues; the
        cash of another run begins a new one. Raises ``ConfigInvalid`` if another run has positions
        or orders in another position mode, ``InvariantBroken`` if the sides do not add up.
        """
        ledger = self.ledger
        ledger.cash = state.cash
        if ledger.entries is not None:
            opened = LedgerEntry(LedgerKind.TAKEN_OVER, state.cash, state.cash)
            ledger.entries = [opened] if taken_over else []
        if self.sides:
            self._restore_sides(state, parts)
        else:
            reject_switch(*(part for name, part in parts.items() if name in SIDES))
            self.books[0].restore(state)
        shares = {book.name: book for book in self.shares}
        if shares and taken_over and parts.keys() - {*SIDES} != shares.keys():
            self._distribute_positions()
        else:
            for name in shares.keys() & parts.keys():
                shares[name].restore(parts[name])
        self.journal.take()  # no step caused these changes

    def _restore_sides(self, state: AccountState, parts: Mapping[str, AccountState]) -> None:
        if not parts.keys() >= {*SIDES}:  # a run in one-way mode: only its cash is taken over
            reject_switch(state)
            halves = apportion(state.cash, [1] * len(SIDES))
            parts = {s: AccountState(half, {}) for s, half in zip(SIDES, halves, strict=True)}
        for side, book in self.sides.items():
            book.restore(parts[side])
        cash_of_sides = sum(book.cash for book in self.books)
        if cash_of_sides != self.cash:
            raise InvariantBroken(
                f"the cash of both sides adds up to {cash_of_sides}, and the account's is "
                f"{self.cash}; "
                "run `tracepaper audit verify` and restore a backup"
            )

    def _distribute_positions(self) -> None:
        """Distribute the cash and the positions of an account that had other owners."""
        weights = self._weights[:-1]
        *cash, self.reserve = apportion(self.cash, self._weights)
        for owner, money in zip(self.owners.values(), cash, strict=True):
            owner.transfer(money - owner.subtotal().cash)
        for line in (line for book in self.books for line in book.lines.values()):
            held = apportion(line.held, weights)
            sizes = [abs(part) for part in held]
            entries = apportion(line.holding.entry_notional, sizes if any(sizes) else weights)
            targets = apportion(line.orders.target, weights)
            for share, quantity, entry, target in zip(
                line.shares, held, entries, targets, strict=True
            ):
                share.hold(Holding(quantity, entry))
                share.set_target(target, "taken over")


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
