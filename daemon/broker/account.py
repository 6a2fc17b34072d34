"""``PaperAccount``: one balance, its margin policy, and the books of its positions.

An event meets each position together with its shares, and the ``Journal`` records the effects.

The rules are docs/money.md, M6 to M21 and M90 to M102, and docs/one_account.md, J12 to J20.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from tracepaper.daemon.broker.book import (
    AccountState,
    Book,
    Holdings,
    check_range,
    requests_of,
)
from tracepaper.daemon.broker.book_fills import QueueRules, Queues
from tracepaper.daemon.broker.execution import ExecutionCosts, MeanRange
from tracepaper.daemon.broker.exit_plans import Exits, ExpectedReturn
from tracepaper.daemon.broker.journal import Journal
from tracepaper.daemon.broker.line import Line
from tracepaper.daemon.broker.margin import CrossMargin, IsolatedMargin, MarginPolicy
from tracepaper.daemon.broker.orders import FILL_WITHIN_MS, Latency
from tracepaper.daemon.broker.positions import Positions
from tracepaper.strategies.api.context import Orders, Signal
from tracepaper.strategies.apportion import apportion, funding_parts
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


class BrokerSettings(Struct, frozen=True):
    """Settings of accounts, costs and fills; money in 10⁻⁸, times in milliseconds."""

    execution: FillModel
    costs: ExecutionCosts
    cash: int
    latency: Latency
    fill_within_ms: int = FILL_WITHIN_MS
    costs_of: Mapping[str, ExecutionCosts] = {}  # by instrument id, where costs differ
    leverage: int | None = None  # of linear positions, in 10⁻²; None: no margin
    is_cross: bool = False  # whether one balance is the margin of all linear positions
    is_hedged: bool = False  # whether each symbol has a long and a short position
    exits: Exits | None = None  # for every position that a signal enters
    queue: QueueRules = QueueRules()  # for limits that rest at an order book

    def costs_for(self, instrument: str) -> ExecutionCosts:
        """Return the costs of trading *instrument*: those set for it, or the default."""
        return self.costs_of.get(instrument, self.costs)

    @property
    def of_fills(self) -> BrokerSettings:
        """These settings without the latency if bars fill orders: there it only dates them."""
        if self.execution is not FillModel.NEXT_OPEN:
            return self
        return replace(self, latency=Latency(0))


class Ownership(NamedTuple):
    """The share that one of several strategies has of an account."""

    settings: BrokerSettings  # with the strategy's exits
    share: int  # 10⁻¹⁰ of the account
    reports_fills: Iterable[str] = ()  # the instruments whose fills the strategy sees


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
        self.cash = settings.cash
        # Cash movements that no step holds yet; a shadow account keeps no ledger.
        self.entries: list[LedgerEntry] | None = None
        if keeps_ledger:
            self.entries = [LedgerEntry(LedgerKind.OPENED, self.cash, self.cash)]
        self.fills = {key: [] for key in reports_fills}
        self.ranges = ranges or {}
        self.marked = {} if marked is None else marked
        self.journal = Journal()
        self.policy = MarginPolicy(self)
        if settings.leverage is not None:
            self.policy = (CrossMargin if settings.is_cross else IsolatedMargin)(self)
        super().__init__(self._new_books(items, settings))
        self.owners: dict[str, Holdings] = {}
        self.shares: tuple[Book, ...] = ()
        self.reserve = 0  # money that belongs to no owner
        self._weights: list[int] = []
        if owners:
            self._open_shares(items, owners)
        self.positions = {
            item.id: Positions(
                self,
                self.lines_of(item.id),
                Queues(settings.queue) if settings.execution is FillModel.BOOK else None,
            )
            for item in items
        }
        """The positions in each instrument, by its id."""
        if len(self.books) == 1:
            # Every step calls these: binding the book's methods saves a call.
            for name in ("held", "target", "position", "balance", "subtotal"):
                setattr(self, name, getattr(self.books[0], name))

    def _new_books(
        self, items: Iterable[Instrument], settings: BrokerSettings, owner: str = ""
    ) -> tuple[Book, ...]:
        """Return a new book of each side, or of the share of *owner* in it, with its cash."""
        sides = SIDES if settings.is_hedged else (None,)
        parents = self.books if owner else [None] * len(sides)
        cash = apportion(settings.cash, [1] * len(sides))
        return tuple(
            Book(self, items, replace(settings, cash=part), side=side, owner=owner, parent=parent)
            for side, part, parent in zip(sides, cash, parents, strict=True)
        )

    def _open_shares(self, items: Iterable[Instrument], owners: Mapping[str, Ownership]) -> None:
        shares = [owner.share for owner in owners.values()]
        self._weights = [*shares, RATE_SCALE - sum(shares)]
        *cash, self.reserve = apportion(self.cash, self._weights)
        for (name, owner), money in zip(owners.items(), cash, strict=True):
            books = self._new_books(items, replace(owner.settings, cash=money), name)
            fills: dict[str, list[Fill]] = {key: [] for key in owner.reports_fills}
            for book in books:
                book.fills = fills
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
    def available(self) -> int:
        """Cash that no position binds."""
        return self.cash - sum(book.bound for book in self.books)

    def spendable(self, line: Line, *, is_reversal: bool) -> int:
        """Return the cash for an order of *line*: on margin only what no position binds."""
        if line.parent is not None:
            return line.book.cash
        return self.policy.spendable(line, is_reversal=is_reversal)

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
        if movements := self.entries:
            entries = tuple(movements)
            movements.clear()
        return None if instrument is None else self.position(instrument), self.balance(), entries

    # ------------------------------------------------------------ market events

    def match_mark(self, instrument: str, mark: int, at_ms: int) -> None:
        """Liquidate the positions in *instrument*, or the account, if *mark* requires it."""
        self.policy.match_mark(self.positions[instrument], mark, at_ms)

    def pay_funding(self, instrument: str, rate: int) -> None:
        """Settle funding of every position and share; the side that receives comes first."""
        lines = self.lines_of(instrument)
        for line in reversed(lines) if rate > 0 else lines:
            due = [share.value(share.held) * rate for share in line.shares]
            paid = line.pay_funding(rate)
            if not line.is_cash and any(due):
                for share, part in zip(line.shares, funding_parts(paid, due), strict=True):
                    share.post_funding(part)

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
        self.cash = state.cash
        if self.entries is not None:
            opened = LedgerEntry(LedgerKind.TAKEN_OVER, self.cash, self.cash)
            self.entries = [opened] if taken_over else []
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
