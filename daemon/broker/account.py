"""``PaperAccount``: one balance, its margin policy, and one position for each instrument.

The rules are docs/money.md, M6 to M21.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

from msgspec import Struct

from tracepaper.daemon.broker.execution import ExecutionCosts, MeanRange
from tracepaper.daemon.broker.exit_plans import ExpectedReturn
from tracepaper.daemon.broker.ledger import Ledger, StepNumber
from tracepaper.daemon.broker.line import Line, LineState
from tracepaper.daemon.broker.margin import CrossMargin, IsolatedMargin, MarginPolicy
from tracepaper.daemon.broker.matching import Market
from tracepaper.daemon.broker.settings import BrokerSettings, Latency
from tracepaper.strategies.api.context import AccountView, Signal
from tracepaper.strategies.api.context import account_view as view_of
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.holding import Holding
from tracepaper.strategies.types.decisions import (
    Account,
    Action,
    FillModel,
    LedgerEntry,
    LedgerKind,
    Position,
)
from tracepaper.strategies.types.market import Instrument
from tracepaper.strategies.units import MONEY_DECIMALS, MONEY_LIMIT, MONEY_MAX, unscaled

ENTRIES: Final = (Action.LONG, Action.SHORT)
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
    ends_lists: bool = False  # whether it cancels the orders by list that could open a position


class AccountState(Struct, frozen=True, array_like=True):
    """The stored state of an account."""

    cash: int
    lines: dict[str, LineState]

    @property
    def holdings(self) -> dict[str, Holding]:
        """The holding in each instrument."""
        return {key: line.holding for key, line in self.lines.items()}

    def taken_over(self) -> AccountState:
        """Return the state for a run that continues another one."""
        return AccountState(self.cash, {key: line.taken_over() for key, line in self.lines.items()})


class PaperAccount:
    """The run's account, or a shadow account."""

    def __init__(
        self,
        instruments: Iterable[Instrument],
        settings: BrokerSettings,
        *,
        name: str = "",
        step: StepNumber | None = None,
        ranges: Mapping[str, MeanRange] | None = None,
        marked: Mapping[str, int] | None = None,
        keeps_ledger: bool = False,
        reports_fills: Iterable[str] = (),
    ) -> None:
        """Open an account with a line for each instrument; a shadow account has a *name*.

        New orders get the number of *step*. The caller feeds bars to *ranges*, by instrument.
        *marked* has the newest mark price of the instruments for which one arrived since their
        last bar.
        """
        self.settings, self.name = settings, name
        self.ledger = Ledger(
            settings.cash,
            step or StepNumber(),
            keeps_entries=keeps_ledger,
            reports_fills=reports_fills,
        )
        self.lines = {
            item.id: Line(
                item,
                settings,
                self.ledger,
                mean_range=None if ranges is None else ranges.get(item.id),
            )
            for item in instruments
        }
        policy = MarginPolicy
        if settings.leverage is not None:
            policy = CrossMargin if settings.is_cross else IsolatedMargin
        self.policy = policy(self.ledger, self.lines, {} if marked is None else marked)
        self.markets = {key: Market(line, self.policy, name) for key, line in self.lines.items()}
        """How events meet the orders of each line."""

    # ------------------------------------------------------------ questions of a decision

    def balance(self) -> Account:
        """Return the account at the newest marks, by which sizes and limits are computed.

        Raises ``ConfigInvalid`` if it does not fit in 64 bits.
        """
        ledger = self.ledger
        if (valued := ledger.valued) is None:
            equity = ledger.cash + ledger.paid_entries + ledger.unrealized
            valued = ledger.valued = _in_range(
                Account(
                    ledger.cash,
                    equity,
                    ledger.realized,
                    ledger.unrealized,
                    ledger.fees,
                    ledger.funding,
                )
            )
        return valued

    def affordable(self, instrument: str, target: int, price: int) -> int:
        """Return *target*, or as much of it as the account can pay for at *price*."""
        line = self.lines[instrument]
        funds = self.policy.spendable(line, is_reversal=target * line.held < 0)
        return line.affordable(target, price, funds)

    def gross_of_others(self, instrument: str) -> int:
        """Return the gross notional of all other positions at the marks.

        Of position and target the larger one counts.
        """
        return sum(
            line.value(max(abs(line.held), abs(line.target)))
            for key, line in self.lines.items()
            if key != instrument
        )

    def exposure(self, instrument: str) -> int:
        """Return the signed notional of the position at the mark."""
        line = self.lines[instrument]
        return line.value(abs(line.held)) * (1 if line.held > 0 else -1)

    def exposures_of_others(self, instrument: str) -> dict[str, int]:
        """Return the signed notional of each other position at the marks, by instrument.

        They are the positions of :meth:`gross_of_others`.
        """
        exposures = {}
        for key, line in self.lines.items():
            if key != instrument:
                larger = max(line.held, line.target, key=abs)
                value = line.value(abs(larger))
                exposures[key] = value if larger > 0 else -value
        return exposures

    def view(self, instrument: Instrument, *, bars_since: Callable[[int], int]) -> AccountView:
        """Return the strategy's view of the account, and clear the fills that it contains.

        *bars_since* counts the closes since a market time.
        """
        key = instrument.id
        line, unseen = self.lines[key], self.ledger.unseen
        fills, unseen[key] = unseen[key], []
        opened_ms = line.holding.opened_ms
        return view_of(
            instrument,
            position=line.position,
            opened_ms=opened_ms,
            bars_held=bars_since(opened_ms),
            orders=line.orders,
            fills=fills,
            account=self.balance(),
        )

    @property
    def fits_a_quarter_away(self) -> bool:
        """Whether its sums fit in 64 bits at prices a quarter away."""
        lines, ledger = self.lines.values(), self.ledger
        worth = sum(abs(line.value(line.held)) for line in lines)
        entries = sum(abs(line.holding.entry_notional) for line in lines)
        return abs(ledger.cash) + abs(ledger.paid_entries) + entries + 2 * worth < MONEY_LIMIT

    # ------------------------------------------------------------ a step

    def report(
        self, instrument: str | None
    ) -> tuple[Position | None, Account, tuple[LedgerEntry, ...]]:
        """Return the position, the account, and the cash movements since the last call."""
        entries: tuple[LedgerEntry, ...] = ()
        if movements := self.ledger.entries:
            entries = tuple(movements)
            movements.clear()
        position = None if instrument is None else self.lines[instrument].position
        return position, self.balance(), entries

    # ------------------------------------------------------------ state

    def state(self) -> AccountState:
        """Return the state to store."""
        return AccountState(
            self.ledger.cash, {key: line.state() for key, line in self.lines.items()}
        )

    def restore(self, state: AccountState, *, taken_over: bool = False) -> None:
        """Restore the stored state of this run, or of another run (*taken_over*).

        The ledger of this run continues; the cash of another run begins a new one.
        """
        ledger = self.ledger
        ledger.cash = state.cash
        if ledger.entries is not None:
            opened = LedgerEntry(LedgerKind.TAKEN_OVER, state.cash, state.cash)
            ledger.entries = [opened] if taken_over else []
        for key, line in state.lines.items():
            self.lines[key].restore(line)
        ledger.valued = None
        ledger.clear()  # no step caused these changes


def posting_account(
    instruments: Iterable[Instrument], state: AccountState | None = None
) -> PaperAccount:
    """Return an account without cash that holds the positions of *state*, to book fills in."""
    settings = BrokerSettings(FillModel.NEXT_OPEN, ExecutionCosts(0), 0, Latency(0))
    account = PaperAccount(instruments, settings)
    for key, line in ({} if state is None else state.lines).items():
        account.lines[key].hold(line.holding)
    return account


def _in_range(account: Account) -> Account:
    """Return *account*; raise ``ConfigInvalid`` if it does not fit in 64 bits."""
    if abs(account.equity) > MONEY_LIMIT or abs(account.cash) > MONEY_LIMIT:
        raise ConfigInvalid(
            f"The account's equity of {unscaled(account.equity, MONEY_DECIMALS)} is beyond "
            f"{MONEY_MAX:,}; start a new one with less account.cash or a smaller [sizing]."
        )
    return account
