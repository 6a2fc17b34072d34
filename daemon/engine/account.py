"""``Fill`` and ``Funding`` → position, cash and equity of one account, in exact integers.

Linear: cash = start + realised - fees - funding; equity = cash + unrealised. Spot: cash is the
quote balance, start + realised - fees - entry notional of what is held; equity = cash + base at
the mark. A position keeps its entry notional, since an average price is no decimal.

The rules are docs/money.md, M16 to M21.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec import Struct

from tracepaper.daemon.engine.execution import ExecutionCosts, Executor
from tracepaper.daemon.engine.orders import FILL_WITHIN_MS, Broker, BrokerState, Sent
from tracepaper.strategies.errors import ConfigInvalid, InvariantBroken
from tracepaper.strategies.market import Notional, divide_half_even, unscaled
from tracepaper.strategies.types import (
    MONEY_DECIMALS,
    MONEY_LIMIT,
    MONEY_SCALE,
    Account,
    Bar,
    Category,
    Fill,
    Instrument,
    Order,
    Position,
    Quote,
    Side,
)


class Holding(Struct, gc=False, array_like=True):
    """What an account holds of one instrument; mutable, owned by its portfolio."""

    quantity: int = 0
    entry_notional: int = 0
    realized_pnl: int = 0
    fees_paid: int = 0
    funding_paid: int = 0


class _Line:
    """What a portfolio knows of one instrument."""

    __slots__ = ("holding", "is_spot", "mark", "notional", "position")

    def __init__(self, instrument: Instrument) -> None:
        self.holding = Holding()
        self.is_spot = instrument.category is Category.SPOT
        self.notional = Notional.of(instrument)
        self.mark = 0
        self.position = Position()  # the holding, valued at the mark


class Portfolio:
    """One account: its cash, what it holds, and what that is worth at the newest marks.

    Sums over all instruments are kept as they change, so that a step costs the same with one
    instrument and with a hundred.
    """

    def __init__(self, cash: int, instruments: Mapping[str, Instrument]) -> None:
        self.cash = cash
        self._lines = {key: _Line(item) for key, item in instruments.items()}
        self._realized = self._unrealized = self._fees = self._funding = 0
        self._spot_entries = 0  # entry notional of what is held on spot
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

    def apply(self, fill: Fill) -> None:
        """Book a fill on the position, the cash and the fees."""
        line = self._lines[fill.instrument]
        holding = line.holding
        signed = fill.quantity if fill.side is Side.BUY else -fill.quantity
        if line.is_spot:
            self._apply_spot(holding, fill, signed)
        else:
            self._apply_linear(holding, fill, signed)
        self._value(line)

    def _apply_linear(self, holding: Holding, fill: Fill, signed: int) -> None:
        sign = 1 if signed > 0 else -1
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
        line = self._lines[instrument]
        if not line.holding.quantity or line.is_spot:
            return 0
        paid = divide_half_even(line.notional(line.mark, line.holding.quantity) * rate, MONEY_SCALE)
        line.holding.funding_paid += paid
        self.cash -= paid
        self._value(line)
        return paid

    def mark(self, instrument: str, price: int) -> None:
        """Value *instrument* at *price* from now on."""
        line = self._lines[instrument]
        if line.mark != price:
            line.mark = price
            if line.holding.quantity:
                self._revalue(line)

    def _revalue(self, line: _Line) -> None:
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
        )
        self._account = None

    def _value(self, line: _Line) -> None:
        """Value what *line* holds, now that this has changed, and add the change to the sums."""
        holding, before = line.holding, line.position
        self._revalue(line)
        self._realized += holding.realized_pnl - before.realized_pnl
        self._fees += holding.fees_paid - before.fees_paid
        self._funding += holding.funding_paid - before.funding_paid
        if line.is_spot:
            self._spot_entries += holding.entry_notional - before.entry_notional

    def position(self, instrument: str) -> Position:
        """Return the position in *instrument* at the newest mark."""
        return self._lines[instrument].position

    def account(self) -> Account:
        """Return the account at the newest marks; raise where 64 bits do not hold it."""
        account = self._account
        if account is None:
            equity = self.cash + self._spot_entries + self._unrealized
            if abs(equity) > MONEY_LIMIT or abs(self.cash) > MONEY_LIMIT:
                raise ConfigInvalid(
                    f"The account came to {unscaled(equity, MONEY_DECIMALS)}, beyond 922,337,203; "
                    "start a new one with less account.cash or a smaller [sizing]."
                )
            account = self._account = Account(
                self.cash, equity, self._realized, self._unrealized, self._fees, self._funding
            )
        return account

    def restore(self, cash: int, holdings: Mapping[str, Holding]) -> None:
        """Take over a stored account; marks follow with the bars that are fed again."""
        self.cash = cash
        for key, holding in holdings.items():
            line = self._lines[key]
            line.holding = holding
            self._value(line)
        self._account = None


class BookState(Struct, frozen=True, array_like=True):
    """What an account carries of one instrument from step to step."""

    holding: Holding
    orders: BrokerState


class AccountState(Struct, frozen=True, array_like=True):
    """What an account carries from step to step."""

    cash: int
    books: dict[str, BookState]

    @property
    def holdings(self) -> dict[str, Holding]:
        """What is held of each instrument."""
        return {key: book.holding for key, book in self.books.items()}


class PaperAccount:
    """The run's account, or the shadow account of a twin.

    All that changes what it carries goes through it, so that it can encode anew what changed alone.
    """

    def __init__(
        self,
        instruments: Mapping[str, Instrument],
        costs: ExecutionCosts,
        *,
        cash: int,
        latency_ms: int,
        fill_within_ms: int = FILL_WITHIN_MS,
    ) -> None:
        self.portfolio = Portfolio(cash, instruments)
        self.brokers = {
            key: Broker(item, costs, latency_ms=latency_ms, fill_within_ms=fill_within_ms)
            for key, item in instruments.items()
        }
        self._costs = costs
        self._executors = {key: Executor(item, costs) for key, item in instruments.items()}
        self._encoded = dict.fromkeys(instruments, msgspec.Raw())  # the state of each instrument
        self._stale = set(instruments)  # those whose state has changed since

    def change(self, instrument: Instrument) -> None:
        """Use the exchange's new filters for orders and prices from now on."""
        self.brokers[instrument.id].change(instrument)
        self._executors[instrument.id] = Executor(instrument, self._costs)

    # ------------------------------------------------------------ what changes it

    def at_open(self, bar: Bar) -> tuple[Fill, Order] | None:
        """Fill the order that rests on *bar*'s instrument at its open, if there is one."""
        if (order := self.brokers[bar.instrument].order) is None:
            return None
        return self._book(self._executors[bar.instrument].at_open(order, bar))

    def at_quote(self, quote: Quote) -> tuple[Fill, Order] | None:
        """Fill the resting order at *quote* if it has waited out its latency."""
        order = self.brokers[quote.instrument].order
        if order is None or quote.market_ms < order.eligible_ms:
            return None
        fill = self._executors[quote.instrument].at_quote(order, quote)
        return None if fill is None else self._book(fill)

    def _book(self, fill: Fill) -> tuple[Fill, Order]:
        self._stale.add(fill.instrument)
        self.portfolio.apply(fill)
        return fill, self.brokers[fill.instrument].fill(fill)

    def expire(self, instrument: str, market_ms: int) -> Order | None:
        """Return the order that no quote filled in time, CANCELED, if there is one."""
        expired = self.brokers[instrument].expire(market_ms)
        if expired is not None:
            self._stale.add(instrument)
        return expired

    def pay_funding(self, instrument: str, rate: int) -> int:
        """Settle funding; return what was paid: see :meth:`Portfolio.pay_funding`."""
        paid = self.portfolio.pay_funding(instrument, rate)
        if paid:
            self._stale.add(instrument)
        return paid

    def confirm(self, instrument: str, open_time_ms: int) -> None:
        """Let the position stand for another horizon from the bar at *open_time_ms* on."""
        self.brokers[instrument].confirmed_ms = open_time_ms
        self._stale.add(instrument)

    def submit(
        self,
        instrument: str,
        target: int,
        *,
        order_id: str,
        price: int,
        reason: str,
        at_ms: int,
        by_command: bool = False,
    ) -> Sent:
        """Ask the broker of *instrument* to reach *target* from what is held."""
        self._stale.add(instrument)
        held = self.portfolio.held(instrument)
        return self.brokers[instrument].submit(
            target,
            held,
            order_id=order_id,
            price=price,
            reason=reason,
            at_ms=at_ms,
            cash=self.portfolio.cash,
            by_command=by_command,
        )

    # ------------------------------------------------------------ what survives a restart

    def state(self) -> AccountState:
        """Return what must survive a restart."""
        holdings = self.portfolio.holdings
        books = {key: BookState(holdings[key], one.state()) for key, one in self.brokers.items()}
        return AccountState(self.portfolio.cash, books)

    def encoded_state(self) -> tuple[int, dict[str, msgspec.Raw]]:
        """Return what encodes as :meth:`state` does, made anew only where it has changed."""
        for key in self._stale:
            book = BookState(self.portfolio.holding(key), self.brokers[key].state())
            self._encoded[key] = msgspec.Raw(msgspec.msgpack.encode(book))
        self._stale.clear()
        return self.portfolio.cash, self._encoded

    def restore(self, state: AccountState) -> None:
        """Take over what survived a restart."""
        self.portfolio.restore(state.cash, state.holdings)
        for key, book in state.books.items():
            self.brokers[key].restore(book.orders)
        self._stale.update(self.brokers)
