"""``Fill`` and ``Funding`` → position, cash and equity of one account, in exact integers.

Linear: cash = start + realised - fees - funding; equity = cash + unrealised. Spot: cash is the
quote balance, start + realised - fees - entry notional of what is held; equity = cash + base at
the mark. A position keeps its entry notional, since an average price is no decimal.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from tracepaper.strategies.errors import ConfigInvalid, InvariantBroken
from tracepaper.strategies.market import Notional, divide_half_even, unscaled
from tracepaper.strategies.types import (
    MONEY_DECIMALS,
    MONEY_LIMIT,
    MONEY_SCALE,
    Account,
    Category,
    Fill,
    Instrument,
    Position,
    Side,
)


class Holding(Struct, gc=False):
    """What an account holds of one instrument; mutable, owned by its portfolio."""

    quantity: int = 0
    entry_notional: int = 0
    realized_pnl: int = 0
    fees_paid: int = 0
    funding_paid: int = 0


class Portfolio:
    """One account: its cash, what it holds, and what that is worth at the newest marks."""

    def __init__(self, cash: int, instruments: Mapping[str, Instrument]) -> None:
        self.cash = cash
        self.holdings = {key: Holding() for key in instruments}
        self._spot = {key: item.category is Category.SPOT for key, item in instruments.items()}
        self._notional = {key: Notional.of(item) for key, item in instruments.items()}
        self._marks = dict.fromkeys(instruments, 0)
        self._unrealized = dict.fromkeys(instruments, 0)
        self._account: Account | None = None
        self._positions: dict[str, Position] = {}

    def apply(self, fill: Fill) -> None:
        """Take a fill into the position, the cash and the fees."""
        holding = self.holdings[fill.instrument]
        signed = fill.quantity if fill.side is Side.BUY else -fill.quantity
        sign = 1 if signed > 0 else -1
        if self._spot[fill.instrument]:
            self._apply_spot(holding, fill, signed)
        else:
            realized = 0
            opened, opened_notional = signed, sign * fill.notional
            if holding.quantity * signed < 0:
                closed = min(abs(signed), abs(holding.quantity))
                share = divide_half_even(fill.notional * closed, abs(signed))
                realized = self._close(holding, closed, -sign * share)
                opened = sign * (abs(signed) - closed)
                opened_notional = sign * (fill.notional - share)
            holding.quantity += opened
            holding.entry_notional += opened_notional
            holding.realized_pnl += realized
            holding.fees_paid += fill.fee
            self.cash += realized - fill.fee
        self._touch(fill.instrument)

    def _close(self, holding: Holding, closed: int, proceeds: int) -> int:
        """Take *closed* (unsigned) out of *holding*; return the profit on *proceeds* (signed)."""
        entry = divide_half_even(holding.entry_notional * closed, abs(holding.quantity))
        holding.quantity -= closed if holding.quantity > 0 else -closed
        holding.entry_notional -= entry
        return proceeds - entry

    def _apply_spot(self, holding: Holding, fill: Fill, signed: int) -> None:
        if signed > 0:
            # The fee of a buy is paid in base: that share of what was bought is a cost at once.
            fee = divide_half_even(fill.notional * fill.fee_base, fill.quantity)
            holding.quantity += fill.quantity - fill.fee_base
            holding.entry_notional += fill.notional - fee
            holding.fees_paid += fee
            self.cash -= fill.notional
        else:
            if fill.quantity > holding.quantity:
                raise InvariantBroken(f"sold {fill.quantity} of {holding.quantity} held on spot")
            holding.realized_pnl += self._close(holding, fill.quantity, fill.notional)
            holding.fees_paid += fill.fee
            self.cash += fill.notional - fill.fee

    def pay_funding(self, instrument: str, rate: int) -> int:
        """Settle funding of *rate* (10⁻¹⁰ of the value at the mark); return what was paid."""
        holding = self.holdings[instrument]
        if not holding.quantity or self._spot[instrument]:
            return 0
        value = self._notional[instrument](self._marks[instrument], holding.quantity)
        paid = divide_half_even(value * rate, MONEY_SCALE)
        holding.funding_paid += paid
        self.cash -= paid
        self._touch(instrument)
        return paid

    def mark(self, instrument: str, price: int) -> None:
        """Value *instrument* at *price* from now on."""
        if self._marks[instrument] == price:
            return
        self._marks[instrument] = price
        if self.holdings[instrument].quantity:
            self._touch(instrument)

    def _touch(self, instrument: str) -> None:
        holding = self.holdings[instrument]
        if holding.quantity:
            value = self._notional[instrument](self._marks[instrument], holding.quantity)
            self._unrealized[instrument] = value - holding.entry_notional
        else:
            self._unrealized[instrument] = 0
        self._account = None
        self._positions.pop(instrument, None)

    def position(self, instrument: str) -> Position:
        """Return the position in *instrument* at the newest mark."""
        position = self._positions.get(instrument)
        if position is None:
            holding = self.holdings[instrument]
            position = self._positions[instrument] = Position(
                holding.quantity,
                holding.entry_notional,
                holding.realized_pnl,
                self._unrealized[instrument],
                holding.fees_paid,
                holding.funding_paid,
            )
        return position

    def account(self) -> Account:
        """Return the account at the newest marks; raise where 64 bits do not hold it."""
        if self._account is None:
            realized = unrealized = fees = funding = held = 0
            for key, holding in self.holdings.items():
                realized += holding.realized_pnl
                unrealized += self._unrealized[key]
                fees += holding.fees_paid
                funding += holding.funding_paid
                if self._spot[key]:
                    held += holding.entry_notional
            equity = self.cash + held + unrealized
            if abs(equity) > MONEY_LIMIT or abs(self.cash) > MONEY_LIMIT:
                raise ConfigInvalid(
                    f"The account came to {unscaled(equity, MONEY_DECIMALS)}, beyond 922,337,203; "
                    "start a new one with less account.cash or a smaller [sizing]."
                )
            self._account = Account(self.cash, equity, realized, unrealized, fees, funding)
        return self._account

    def restore(self, cash: int, holdings: Mapping[str, Holding]) -> None:
        """Take over a stored account; marks follow with the bars that are fed again."""
        self.cash = cash
        for key, holding in holdings.items():
            self.holdings[key] = holding
            self._touch(key)
        self._account = None
