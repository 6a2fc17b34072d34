"""``Fill`` and ``Funding`` → position, cash and equity of one account, in exact integers.

Linear: cash = start + realized - fees - funding; equity = cash + unrealized. Spot and shares: cash
is the quote balance, start + realized - fees - entry notional of what is held; equity = cash + what
is held at the mark. A position keeps its entry notional, since an average price is no decimal.

The rules are docs/money.md, M16 to M21.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import NamedTuple, Protocol

from msgspec import Struct

from tracepaper.daemon.broker.rules import Bounds, MarginRules
from tracepaper.strategies.corporate_actions import (
    ShareTerms,
    adjusted_price,
    entitlement,
)
from tracepaper.strategies.errors import ConfigInvalid, InvariantBroken
from tracepaper.strategies.types.decisions import (
    Account,
    Fill,
    FillModel,
    LedgerEntry,
    LedgerKind,
    Order,
    Position,
)
from tracepaper.strategies.types.market import Bar, CorporateAction, Instrument, Side
from tracepaper.strategies.units import (
    MONEY_DECIMALS,
    MONEY_LIMIT,
    MONEY_MAX,
    RATE_SCALE,
    divide_half_even,
    unscaled,
)


class Holding(Struct, gc=False, array_like=True):
    """What an account holds of one instrument; mutable, owned by its ledger."""

    quantity: int = 0
    entry_notional: int = 0
    realized_pnl: int = 0
    fees_paid: int = 0
    funding_paid: int = 0
    opened_ms: int = 0  # market time of the fill that opened the position; 0 where there is none
    margin: int = 0  # what it binds of the cash, where it is isolated

    def trade(self, signed: int, notional: int, rules: MarginRules | None) -> int:
        """Buy or sell *signed* of a derivative for *notional*; return the profit of what closes."""
        sign = 1 if signed > 0 else -1
        realized = 0
        opened, opened_notional = signed, sign * notional
        if self.quantity * signed < 0:
            closed = min(abs(signed), abs(self.quantity))
            share = divide_half_even(notional * closed, abs(signed))
            self.margin = self.margin * (abs(self.quantity) - closed) // abs(self.quantity)
            realized = self.close(closed, -sign * share)
            opened = sign * (abs(signed) - closed)
            opened_notional = sign * (notional - share)
        self.quantity += opened
        self.entry_notional += opened_notional
        if rules is not None and opened_notional:
            self.margin += rules.required(opened_notional)
        return realized

    def close(self, closed: int, proceeds: int) -> int:
        """Take *closed* (unsigned) out; return the profit on *proceeds* (signed)."""
        entry = divide_half_even(self.entry_notional * closed, abs(self.quantity))
        self.quantity -= closed if self.quantity > 0 else -closed
        self.entry_notional -= entry
        return proceeds - entry

    def bounds(self, rules: MarginRules | None) -> Bounds | None:
        """Return where it is liquidated; None where it cannot be."""
        if rules is None or not self.quantity:
            return None
        return rules.bounds(self.entry_notional, self.quantity, self.margin)

    def reduction(self, rules: MarginRules | None, mark: int) -> tuple[int, int] | None:
        """Return by how much *mark*, which calls it, reduces it, and to which tier; None by all."""
        if rules is None or not self.quantity:
            return None
        return rules.reduction(self.entry_notional, self.quantity, self.margin, mark)


class _LedgerLine:
    """What a ledger keeps of one instrument."""

    __slots__ = ("holding", "is_cash", "margin", "mark", "notional", "position", "terms")

    def __init__(self, instrument: Instrument, margin: MarginRules | None) -> None:
        self.margin = margin
        self.holding = Holding()
        self.is_cash = instrument.category.is_cash
        self.terms = ShareTerms.of(instrument)
        self.notional = self.terms.notional
        self.mark = 0
        self.position = Position()  # the holding, valued at the mark


class Ledger:
    """One account: its cash, what it holds, and what that is worth at the newest marks.

    Sums over all instruments are kept as they change, so that a step costs the same with one
    instrument and with a hundred.
    """

    def __init__(
        self,
        cash: int,
        instruments: Mapping[str, Instrument],
        *,
        margin: Mapping[str, MarginRules] | None = None,
        keeps_entries: bool = False,
    ) -> None:
        self.cash = cash
        rules = margin or {}
        self._bound = 0  # by the margin of all positions
        # What moved the cash and is in no step yet; a shadow account keeps none of it.
        self.entries: list[LedgerEntry] | None = None
        if keeps_entries:
            self.entries = [LedgerEntry(LedgerKind.OPENED, cash, cash)]
        self.fills: dict[str, list[Fill]] = {}
        """Fills since the last decision, of each instrument whose strategy sees them."""
        self._lines = {key: _LedgerLine(item, rules.get(key)) for key, item in instruments.items()}
        self._realized = self._unrealized = self._fees = self._funding = 0
        self._paid_entries = 0  # entry notional of what was paid in full and is held
        self._account: Account | None = None

    @property
    def holdings(self) -> dict[str, Holding]:
        """What is held of each instrument."""
        return {key: line.holding for key, line in self._lines.items()}

    def holding(self, instrument: str) -> Holding:
        """Return what is held of *instrument*."""
        return self._lines[instrument].holding

    def held(self, instrument: str) -> int:
        """Return the signed quantity that is held of *instrument*."""
        return self._lines[instrument].holding.quantity

    @property
    def available(self) -> int:
        """Cash that no position binds."""
        return self.cash - self._bound

    def require(self, instrument: str, margin: MarginRules) -> None:
        """Use the exchange's new risk tiers for what is opened from now on."""
        self._lines[instrument].margin = margin

    def freed(self, instrument: str) -> int:
        """Return what closing the whole position at its mark would make available, before fees."""
        position = self._lines[instrument].position
        return position.margin + position.unrealized_pnl

    def refusal(self, fill: Fill) -> str | None:
        """Return why the margin cannot bear *fill*, or None: what only closes is always borne."""
        line = self._lines[fill.instrument]
        if line.margin is None:
            return None
        held, sign = line.holding.quantity, 1 if fill.side is Side.BUY else -1
        closed = min(abs(held), fill.quantity) if held * sign < 0 else 0
        opened = fill.quantity - closed
        if not opened:
            return None
        share = divide_half_even(fill.notional * opened, fill.quantity)
        available = self.available - fill.fee
        if closed:
            proceeds = -sign * (fill.notional - share)
            available += line.holding.margin + proceeds - line.holding.entry_notional
        margin = line.margin.required(sign * share)
        if margin > available:
            return "the available balance did not cover its margin at that price"
        lost = sign * (share - line.notional(fill.reference_price, opened))
        return (
            "its price was worse than the market's by more than its margin"
            if lost > margin
            else None
        )

    def price(self, instrument: str) -> int:
        """Return the price that values *instrument*; 0 before the first."""
        return self._lines[instrument].mark

    def notional(self, instrument: str, quantity: int) -> int:
        """Return the money of *quantity* of *instrument* at its newest mark."""
        line = self._lines[instrument]
        return line.notional(line.mark, quantity)

    def apply_fill(self, fill: Fill) -> Bounds | None:
        """Book a fill on the position, the cash and the fees.

        Returns where the position is then liquidated, None where it cannot be.
        """
        line = self._lines[fill.instrument]
        holding = line.holding
        signed = fill.quantity if fill.side is Side.BUY else -fill.quantity
        before = holding.quantity
        if line.is_cash:
            self._apply_cash(holding, fill, signed)
        else:
            self._apply_linear(line, fill, signed)
        if before * holding.quantity <= 0:
            holding.opened_ms = fill.filled_ms if holding.quantity else 0
        if fill.instrument in self.fills:
            self.fills[fill.instrument].append(fill)
        self._value(line)
        return holding.bounds(line.margin)

    def _apply_linear(self, line: _LedgerLine, fill: Fill, signed: int) -> None:
        holding = line.holding
        bound = holding.margin
        realized = holding.trade(signed, fill.notional, line.margin)
        self._bound += holding.margin - bound
        holding.realized_pnl += realized
        holding.fees_paid += fill.fee
        fee = LedgerKind.FEE
        if fill.model is FillModel.LIQUIDATION:
            fee = LedgerKind.LIQUIDATION_FEE
        self._move(LedgerKind.REALIZED, realized, fill.instrument, fill.order_id)
        self._move(fee, -fill.fee, fill.instrument, fill.order_id)

    def _bind(self, holding: Holding, margin: int) -> None:
        self._bound += margin - holding.margin
        holding.margin = margin

    def _move(
        self, kind: LedgerKind, amount: int, instrument: str, order_id: str | None = None
    ) -> None:
        """Move the cash by *amount*: the one place where a step changes it."""
        if amount:
            self.cash += amount
            if self.entries is not None:
                self.entries.append(LedgerEntry(kind, amount, self.cash, instrument, order_id))

    def _apply_cash(self, holding: Holding, fill: Fill, signed: int) -> None:
        if signed > 0:
            # The fee of a buy on spot is paid in base: that share of what was bought is a cost at
            # once. Of shares it is paid in their currency.
            fee = divide_half_even(fill.notional * fill.fee_base, fill.quantity)
            holding.quantity += fill.quantity - fill.fee_base
            holding.entry_notional += fill.notional - fee
            holding.fees_paid += fee + fill.fee
            self._move(LedgerKind.BOUGHT, -fill.notional, fill.instrument, fill.order_id)
            self._move(LedgerKind.FEE, -fill.fee, fill.instrument, fill.order_id)
        else:
            if fill.quantity > holding.quantity:
                raise InvariantBroken(f"sold {fill.quantity} of {holding.quantity} held")
            holding.realized_pnl += holding.close(fill.quantity, fill.notional)
            holding.fees_paid += fill.fee
            self._move(LedgerKind.SOLD, fill.notional, fill.instrument, fill.order_id)
            self._move(LedgerKind.FEE, -fill.fee, fill.instrument, fill.order_id)

    def pay_funding(self, instrument: str, rate: int) -> int:
        """Settle funding of *rate* (10⁻¹⁰ of the value at the mark); return what was paid.

        What the available balance does not cover is taken from the position's margin, and no more
        than that.
        """
        line = self._lines[instrument]
        if not line.holding.quantity or line.is_cash:
            return 0
        paid = divide_half_even(line.notional(line.mark, line.holding.quantity) * rate, RATE_SCALE)
        if line.margin is not None:
            holding = line.holding
            paid = min(paid, max(self.available, 0) + holding.margin)
            self._bind(holding, holding.margin - max(paid - max(self.available, 0), 0))
        self.book_funding(instrument, paid)
        return paid

    def book_funding(self, instrument: str, paid: int) -> None:
        """Book *paid* as funding of the position in *instrument*."""
        line = self._lines[instrument]
        line.holding.funding_paid += paid
        self._move(LedgerKind.FUNDING, -paid, instrument)
        self._value(line)

    def transfer(self, amount: int) -> None:
        """Take *amount* in, signed, from another part of the same account."""
        self.cash += amount
        self._account = None

    def apply_action(self, action: CorporateAction) -> None:
        """Book a split or a dividend on what is held, which the close before it left.

        Cash in lieu and dividends count as realized profit. After a split the mark is that close,
        adjusted.
        """
        line = self._lines[action.instrument]
        holding = line.holding
        made = entitlement(action, holding.quantity, holding.entry_notional, line.terms)
        holding.quantity = made.quantity
        holding.entry_notional -= made.entry
        holding.realized_pnl += made.paid - made.entry
        if not made.quantity:
            holding.opened_ms = 0
        kind = LedgerKind.CASH_IN_LIEU if action.is_split else LedgerKind.DIVIDEND
        self._move(kind, made.paid, action.instrument)
        if action.is_split:
            line.mark = adjusted_price(action, action.close)
        self._value(line)

    def entry_price(self, instrument: str) -> int:
        """Return the average price at which what is held was entered; 0 where nothing is."""
        line = self._lines[instrument]
        held = line.holding
        if not held.quantity:
            return 0
        unit = abs(held.quantity) * line.notional.multiplier
        return divide_half_even(abs(held.entry_notional) * line.notional.divisor, unit)

    def mark(self, instrument: str, price: int) -> None:
        """Value *instrument* at *price* from now on."""
        line = self._lines[instrument]
        if line.mark != price:
            line.mark = price
            if line.holding.quantity:
                self._revalue(line)

    def _revalue(self, line: _LedgerLine) -> None:
        """Value what *line* holds at its mark."""
        holding = line.holding
        unrealized = 0
        if holding.quantity:
            unrealized = line.notional(line.mark, holding.quantity) - holding.entry_notional
        self._unrealized += unrealized - line.position.unrealized_pnl
        line.position = Position(
            holding.quantity,
            holding.entry_notional,
            holding.realized_pnl,
            unrealized,
            holding.fees_paid,
            holding.funding_paid,
            holding.margin,
        )
        self._account = None

    def _value(self, line: _LedgerLine) -> None:
        """Value what *line* holds, now that this has changed, and add the change to the sums."""
        holding, before = line.holding, line.position
        self._revalue(line)
        self._realized += holding.realized_pnl - before.realized_pnl
        self._fees += holding.fees_paid - before.fees_paid
        self._funding += holding.funding_paid - before.funding_paid
        if line.is_cash:
            self._paid_entries += holding.entry_notional - before.entry_notional

    def position(self, instrument: str) -> Position:
        """Return the position in *instrument* at the newest mark."""
        return self._lines[instrument].position

    def bounds(self, instrument: str) -> Bounds | None:
        """Return where the position in *instrument* is liquidated; None where it cannot be."""
        line = self._lines[instrument]
        return line.holding.bounds(line.margin)

    def reduction(self, instrument: str, mark: int) -> tuple[int, int] | None:
        """Return by how much *mark* reduces what it calls, and to which tier; None by all."""
        line = self._lines[instrument]
        return line.holding.reduction(line.margin, mark)

    def trial(self, instrument: str) -> TrialFunds:
        """Return a copy of the cash and the position in *instrument* to try fills on."""
        line = self._lines[instrument]
        return TrialFunds(copy(line.holding), self.cash, line.margin, is_cash=line.is_cash)

    def account(self) -> Account:
        """Return the account at the newest marks; raise where 64 bits do not hold it."""
        account = self._account
        if account is None:
            equity = self.cash + self._paid_entries + self._unrealized
            if abs(equity) > MONEY_LIMIT or abs(self.cash) > MONEY_LIMIT:
                raise ConfigInvalid(
                    f"The account came to {unscaled(equity, MONEY_DECIMALS)}, beyond "
                    f"{MONEY_MAX:,}; start a new one with less account.cash or a smaller [sizing]."
                )
            account = self._account = Account(
                self.cash, equity, self._realized, self._unrealized, self._fees, self._funding
            )
        return account

    def report(
        self, instrument: str | None
    ) -> tuple[Position | None, Account, tuple[LedgerEntry, ...]]:
        """Return what a step holds: the position, the account, and what moved the cash, once."""
        entries: tuple[LedgerEntry, ...] = ()
        if moved := self.entries:
            entries = tuple(moved)
            moved.clear()
        position = None if instrument is None else self._lines[instrument].position
        return position, self._account or self.account(), entries

    def restore(
        self, cash: int, holdings: Mapping[str, Holding], *, taken_over: bool = False
    ) -> None:
        """Take over a stored account; marks follow with the bars that are fed again.

        Another run's begins a ledger; that of this run goes on.
        """
        self.cash = cash
        if self.entries is not None:
            opened = LedgerEntry(LedgerKind.TAKEN_OVER, cash, cash)
            self.entries = [opened] if taken_over else []
        for key, holding in holdings.items():
            line = self._lines[key]
            line.holding = holding
            self._bound += holding.margin
            if line.margin is None:
                self._bind(holding, 0)
            elif holding.quantity and not holding.margin:  # taken over from a run without margin
                needed = line.margin.required(holding.entry_notional)
                self._bind(holding, max(min(needed, self.available), 0))
            self._value(line)
        self._account = None


class Booked(NamedTuple):
    """A fill, its order after it, and the position before and after it."""

    fill: Fill
    order: Order
    before: Position
    after: Position


Liquidated = tuple[Sequence[Fill], Sequence[Booked], Sequence[Order]]
"""Fills of the exchange's own orders, each with its position, and every order that changed."""


class MarginCalls(Protocol):
    """When prices of one instrument call an account on cross margin, and what follows."""

    def at(self, start: int, end: int) -> int | None:
        """Return the first price on the way from *start* to *end* that calls it, if one does."""
        ...

    def is_called_within(self, bar: Bar) -> bool:
        """Return whether the account is called at one end of *bar*."""
        ...

    def liquidate(self, price: int, at_ms: int) -> Liquidated:
        """Liquidate it with the instrument at *price*."""
        ...

    def ruined_by(self, fill: Fill, at_ms: int) -> Liquidated | None:
        """Return the liquidation in place of *fill*, a close that costs more than there is."""
        ...


class TrialFunds:
    """What fills of one instrument would do to an account; it bears every one."""

    position = Position()  # of which nobody asks
    calls: MarginCalls | None = None

    def __init__(
        self, holding: Holding, cash: int, rules: MarginRules | None, *, is_cash: bool
    ) -> None:
        self.cash = cash
        self._holding = holding
        self._rules = rules
        self._is_cash = is_cash

    @property
    def held(self) -> int:
        """The position, signed."""
        return self._holding.quantity

    def apply_fill(self, fill: Fill) -> Bounds | None:
        """Book *fill*; return where the position is then liquidated, None where it cannot be."""
        is_buy = fill.side is Side.BUY
        if not self._is_cash:
            signed = fill.quantity if is_buy else -fill.quantity
            self.cash += self._holding.trade(signed, fill.notional, self._rules) - fill.fee
        elif is_buy:
            self._holding.quantity += fill.quantity - fill.fee_base
            self.cash -= fill.notional + fill.fee
        else:
            self._holding.quantity -= fill.quantity
            self.cash += fill.notional - fill.fee
        return self._holding.bounds(self._rules)

    def reduction(self, mark: int) -> tuple[int, int] | None:
        """Return by how much *mark* reduces what it calls, and to which tier; None by all."""
        return self._holding.reduction(self._rules, mark)

    def refusal(self, fill: Fill) -> None:
        """Bear *fill*."""

    def equity(self, value: int) -> int:
        """Return the equity with the position at *value*, signed."""
        return self.cash + value - (0 if self._is_cash else self._holding.entry_notional)


class LedgerFunds:
    """What a fill of one instrument moves in a ledger."""

    calls: MarginCalls | None = None

    def __init__(self, ledger: Ledger, instrument: str) -> None:
        self.apply_fill = ledger.apply_fill
        self._ledger = ledger
        self._instrument = instrument

    @property
    def held(self) -> int:
        """The position, signed."""
        return self._ledger.held(self._instrument)

    @property
    def position(self) -> Position:
        """The position, at its mark."""
        return self._ledger.position(self._instrument)

    @property
    def cash(self) -> int:
        """Money, in quote currency."""
        return self._ledger.cash

    def trial(self) -> TrialFunds:
        """Return a copy of cash and position to try fills on."""
        return self._ledger.trial(self._instrument)

    def reduction(self, mark: int) -> tuple[int, int] | None:
        """Return by how much *mark* reduces what it calls, and to which tier; None by all."""
        return self._ledger.reduction(self._instrument, mark)

    def refusal(self, fill: Fill) -> str | None:
        """Return why the account cannot bear *fill*, or None."""
        return self._ledger.refusal(fill)
