"""The money of an account and of each of its books, which lines change with every fill.

The rules are docs/money.md, M6 to M21 and M90 to M102.
"""

from __future__ import annotations

from tracepaper.daemon.broker.journal import Journal
from tracepaper.daemon.broker.settings import BrokerSettings
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.types.decisions import (
    Account,
    Fill,
    LedgerEntry,
    LedgerKind,
    PositionSide,
)
from tracepaper.strategies.units import MONEY_DECIMALS, MONEY_LIMIT, MONEY_MAX, unscaled


class Ledger:
    """The journal of an account, its cash, and how much of it the margins of its positions bind."""

    def __init__(self, cash: int, *, keeps_entries: bool) -> None:
        self.journal = Journal()
        self.cash = cash
        self.bound = 0
        # Cash movements that no step holds yet; a shadow account keeps none.
        self.entries: list[LedgerEntry] | None = None
        if keeps_entries:
            self.entries = [LedgerEntry(LedgerKind.OPENED, cash, cash)]

    @property
    def available(self) -> int:
        """Cash that no position binds."""
        return self.cash - self.bound


class Totals:
    """The cash and the sums of the lines of one book.

    The sums are updated with each change, so that the cost of a step does not grow with the number
    of instruments.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        ledger: Ledger,
        *,
        side: PositionSide | None = None,
        owner: str = "",
        is_share: bool = False,
    ) -> None:
        """Begin with the cash of *settings*.

        The book is of one *side* of an account in hedge mode. It *is_share* of an *owner* in the
        positions of another book.
        """
        self.settings, self.ledger, self.journal = settings, ledger, ledger.journal
        self.side, self.owner, self.is_share = side, owner, is_share
        self.sign = {None: 0, PositionSide.LONG: 1, PositionSide.SHORT: -1}[side]
        self.cash = settings.cash
        self.realized = self.unrealized = self.fees = self.funding = 0
        self.paid_entries = 0  # entry notional of its spot positions and shares
        self.fills: dict[str, list[Fill]] = {}
        """Fills since the last decision, by instrument, if its strategy sees fills."""
        self._balance: Account | None = None

    def move(
        self, kind: LedgerKind, amount: int, instrument: str, order_id: str | None = None
    ) -> None:
        """Change the cash by *amount*; in a book of positions the cash of the account too.

        A step changes cash nowhere else. In the run's account each change is a ledger entry.
        """
        if not amount:
            return
        self.cash += amount
        if self.is_share:
            return
        ledger = self.ledger
        ledger.cash += amount
        if ledger.entries is not None:
            ledger.entries.append(
                LedgerEntry(kind, amount, ledger.cash, instrument, order_id, self.side)
            )

    def forget_balance(self) -> None:
        """Invalidate the cached balance."""
        self._balance = None

    def subtotal(self) -> Account:
        """Return the cash and the results of this book alone."""
        balance = self._balance
        if balance is None:
            equity = self.cash + self.paid_entries + self.unrealized
            balance = self._balance = check_range(
                Account(self.cash, equity, self.realized, self.unrealized, self.fees, self.funding)
            )
        return balance


def check_range(account: Account) -> Account:
    """Return *account*; raise ``ConfigInvalid`` if it does not fit in 64 bits."""
    if abs(account.equity) > MONEY_LIMIT or abs(account.cash) > MONEY_LIMIT:
        raise ConfigInvalid(
            f"The account's equity of {unscaled(account.equity, MONEY_DECIMALS)} is beyond "
            f"{MONEY_MAX:,}; start a new one with less account.cash or a smaller [sizing]."
        )
    return account
