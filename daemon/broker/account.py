"""``Fill`` and ``Funding`` → position, cash and equity of one account, in exact integers.

Linear: cash = start + realised - fees - funding; equity = cash + unrealised. Spot and shares: cash
is the quote balance, start + realised - fees - entry notional of what is held; equity = cash + what
is held at the mark. A position keeps its entry notional, since an average price is no decimal.

The rules are docs/money.md, M16 to M21.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Final, TypeVar

import msgspec
from msgspec import Struct

from tracepaper.daemon.broker import matching
from tracepaper.daemon.broker.execution import ExecutionCosts, Executor, TrueRange
from tracepaper.daemon.broker.exit_orders import DayRange, Plan, ProtectionState, Protector
from tracepaper.daemon.broker.matching import Met
from tracepaper.daemon.broker.orders import (
    FILL_WITHIN_MS,
    PROTECTIVE,
    Broker,
    BrokerState,
    Latency,
    Moment,
    Sent,
)
from tracepaper.daemon.broker.rules import MarginRules
from tracepaper.strategies.api.context import Orders, Signal
from tracepaper.strategies.errors import ConfigInvalid, InvariantBroken
from tracepaper.strategies.types.decisions import (
    Account,
    Action,
    Fill,
    FillModel,
    LedgerEntry,
    LedgerKind,
    Liquidity,
    Order,
    OrderRole,
    Position,
)
from tracepaper.strategies.types.market import Bar, Category, Instrument, Quote, Side
from tracepaper.strategies.units import (
    MONEY_DECIMALS,
    MONEY_LIMIT,
    MONEY_SCALE,
    Notional,
    divide_half_even,
    unscaled,
)


class Holding(Struct, gc=False, array_like=True):
    """What an account holds of one instrument; mutable, owned by its portfolio."""

    quantity: int = 0
    entry_notional: int = 0
    realized_pnl: int = 0
    fees_paid: int = 0
    funding_paid: int = 0
    opened_ms: int = 0  # market time of the fill that opened the position; 0 where there is none
    margin: int = 0  # what it binds of the cash, where it is isolated


class _Line:
    """What a portfolio knows of one instrument."""

    __slots__ = ("holding", "is_cash", "margin", "mark", "notional", "position")

    def __init__(self, instrument: Instrument, margin: MarginRules | None) -> None:
        self.margin = margin
        self.holding = Holding()
        self.is_cash = instrument.category.is_cash
        self.notional = Notional.of(instrument)
        self.mark = 0
        self.position = Position()  # the holding, valued at the mark


class Portfolio:
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
        keeps_ledger: bool = False,
    ) -> None:
        self.cash = cash
        rules = margin or {}
        self._bound = 0  # by the margin of all positions
        # What moved the cash and is in no step yet; a shadow account keeps none of it.
        self.ledger: list[LedgerEntry] | None = None
        if keeps_ledger:
            self.ledger = [LedgerEntry(LedgerKind.OPENED, cash, cash)]
        self.fills: dict[str, list[Fill]] = {}
        """Fills since the last decision, of each instrument whose strategy sees them."""
        self._lines = {key: _Line(item, rules.get(key)) for key, item in instruments.items()}
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

    def notional(self, instrument: str, quantity: int) -> int:
        """Return the money of *quantity* of *instrument* at its newest mark."""
        line = self._lines[instrument]
        return line.notional(line.mark, quantity)

    def apply(self, fill: Fill) -> None:
        """Book a fill on the position, the cash and the fees."""
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

    def _apply_linear(self, line: _Line, fill: Fill, signed: int) -> None:
        holding = line.holding
        sign = 1 if signed > 0 else -1
        realized = 0
        opened, opened_notional = signed, sign * fill.notional
        if holding.quantity * signed < 0:
            closed = min(abs(signed), abs(holding.quantity))
            share = divide_half_even(fill.notional * closed, abs(signed))
            self._bind(holding, holding.margin * (abs(holding.quantity) - closed)
                       // abs(holding.quantity))  # fmt: skip
            realized = self._close(holding, closed, -sign * share)
            opened = sign * (abs(signed) - closed)
            opened_notional = sign * (fill.notional - share)
        holding.quantity += opened
        holding.entry_notional += opened_notional
        holding.realized_pnl += realized
        holding.fees_paid += fill.fee
        if line.margin is not None and opened_notional:
            self._bind(holding, holding.margin + line.margin.required(opened_notional))
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
            if self.ledger is not None:
                self.ledger.append(LedgerEntry(kind, amount, self.cash, instrument, order_id))

    def _close(self, holding: Holding, closed: int, proceeds: int) -> int:
        """Take *closed* (unsigned) out of *holding*; return the profit on *proceeds* (signed)."""
        entry = divide_half_even(holding.entry_notional * closed, abs(holding.quantity))
        holding.quantity -= closed if holding.quantity > 0 else -closed
        holding.entry_notional -= entry
        return proceeds - entry

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
            holding.realized_pnl += self._close(holding, fill.quantity, fill.notional)
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
        paid = divide_half_even(line.notional(line.mark, line.holding.quantity) * rate, MONEY_SCALE)
        if line.margin is not None:
            holding = line.holding
            paid = min(paid, max(self.available, 0) + holding.margin)
            self._bind(holding, holding.margin - max(paid - max(self.available, 0), 0))
        line.holding.funding_paid += paid
        self._move(LedgerKind.FUNDING, -paid, instrument)
        self._value(line)
        return paid

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
            holding.margin,
        )
        self._account = None

    def _value(self, line: _Line) -> None:
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

    def account(self) -> Account:
        """Return the account at the newest marks; raise where 64 bits do not hold it."""
        account = self._account
        if account is None:
            equity = self.cash + self._paid_entries + self._unrealized
            if abs(equity) > MONEY_LIMIT or abs(self.cash) > MONEY_LIMIT:
                raise ConfigInvalid(
                    f"The account came to {unscaled(equity, MONEY_DECIMALS)}, beyond 922,337,203; "
                    "start a new one with less account.cash or a smaller [sizing]."
                )
            account = self._account = Account(
                self.cash, equity, self._realized, self._unrealized, self._fees, self._funding
            )
        return account

    def restore(
        self, cash: int, holdings: Mapping[str, Holding], *, taken_over: bool = False
    ) -> None:
        """Take over a stored account; marks follow with the bars that are fed again.

        Another run's begins a ledger; that of this run goes on.
        """
        self.cash = cash
        if self.ledger is not None:
            opened = LedgerEntry(LedgerKind.TAKEN_OVER, cash, cash)
            self.ledger = [opened] if taken_over else []
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


class BookState(Struct, frozen=True, array_like=True):
    """What an account carries of one instrument from step to step."""

    holding: Holding
    orders: BrokerState
    protection: ProtectionState = ProtectionState()


class AccountState(Struct, frozen=True, array_like=True):
    """What an account carries from step to step."""

    cash: int
    books: dict[str, BookState]

    @property
    def holdings(self) -> dict[str, Holding]:
        """What is held of each instrument."""
        return {key: book.holding for key, book in self.books.items()}


def _encoded(book: BookState) -> bytes:
    """Encode *book* as it was before plans could follow, where none does: as most are."""
    guard = book.protection
    if guard.following is not None:
        return msgspec.msgpack.encode(book)
    kept = guard.plan, guard.trail, guard.closed, guard.closed_by
    return msgspec.msgpack.encode((book.holding, book.orders, kept))


class _Purse:
    """What a fill of one instrument moves in a portfolio."""

    def __init__(self, portfolio: Portfolio, instrument: str) -> None:
        self.apply = portfolio.apply
        self._portfolio = portfolio
        self._instrument = instrument

    @property
    def held(self) -> int:
        return self._portfolio.held(self._instrument)

    @property
    def position(self) -> Position:
        return self._portfolio.position(self._instrument)

    @property
    def cash(self) -> int:
        return self._portfolio.cash

    def refusal(self, fill: Fill) -> str | None:
        return self._portfolio.refusal(fill)


E = TypeVar("E", Bar, Quote)
LIQUIDATIONS_FROM: Final = 1_000
"""The first ordinal of the exchange's own orders: in a close several are born in one step."""
_NOTHING_MET: Final = Met()


class PaperAccount:
    """The run's account, or the shadow account of a twin.

    All that changes what it carries goes through it, so that it can encode anew what changed alone.
    """

    def __init__(  # noqa: PLR0913 - what an account is opened with
        self,
        instruments: Mapping[str, Instrument],
        costs: ExecutionCosts,
        *,
        costs_of: Mapping[str, ExecutionCosts] | None = None,
        leverage: int | None = None,
        cash: int,
        latency: Latency,
        fill_within_ms: int = FILL_WITHIN_MS,
        ranges: Mapping[str, TrueRange] | None = None,
        keeps_ledger: bool = False,
    ) -> None:
        """Open an account with *cash*; whoever sees the bars feeds *ranges*, by instrument.

        *costs_of* are those of the instruments that have others than *costs*; positions of linear
        instruments are isolated at *leverage* (10⁻²), and without margin where it is None.
        """
        self._costs_of = costs_of or {}
        self._costs = costs
        self._leverage = leverage
        self._margin = {
            key: rules for key, item in instruments.items() if (rules := self._rules(item))
        }
        self.portfolio = Portfolio(
            cash, instruments, margin=self._margin, keeps_ledger=keeps_ledger
        )
        self.brokers = {
            key: Broker(
                item,
                self._costs_of.get(key, costs),
                latency=latency,
                fill_within_ms=fill_within_ms,
                margin=self._margin.get(key),
            )
            for key, item in instruments.items()
        }
        self.protectors = {
            key: Protector(self.brokers[key], item) for key, item in instruments.items()
        }
        self._instruments = dict(instruments)
        self._places = {key: place for place, key in enumerate(instruments)}
        self._ranges = ranges or {}
        self._executors = {key: self._executor(item) for key, item in instruments.items()}
        self._purses = {key: _Purse(self.portfolio, key) for key in instruments}
        self._encoded = dict.fromkeys(instruments, msgspec.Raw())  # the state of each instrument
        self._stale = set(instruments)  # those whose state has changed since

    def change(self, instrument: Instrument) -> None:
        """Use the exchange's new filters for orders and prices from now on."""
        self._instruments[instrument.id] = instrument
        key = instrument.id
        if (rules := self._rules(instrument)) is not None:
            self._margin[key] = rules
            self.portfolio.require(key, rules)
        self.brokers[key].change(instrument, self._margin.get(key))
        self.protectors[key].change(instrument)
        self._executors[instrument.id] = self._executor(instrument)

    def _rules(self, instrument: Instrument) -> MarginRules | None:
        if self._leverage is None or instrument.category is not Category.LINEAR:
            return None
        costs = self._costs_of.get(instrument.id, self._costs)
        return MarginRules(instrument, self._leverage, costs.taker_fee)

    def _executor(self, instrument: Instrument) -> Executor:
        costs = self._costs_of.get(instrument.id, self._costs)
        return Executor(instrument, costs, self._ranges.get(instrument.id))

    # ------------------------------------------------------------ what changes it

    def waits(self, instrument: str) -> bool:
        """Return whether any order of *instrument* rests, or a time at which it is closed."""
        return self.brokers[instrument].rests or self.protectors[instrument].is_active

    def meet(self, event: Bar | Quote, sequence: int = 0, *, is_missed: bool = False) -> Met:
        """Let what rests meet a quote, or a bar: market orders its open, then others its path.

        A bar *is_missed* where quotes fill orders and those of the bar did not come.

        An order whose time ends inside a bar meets none of it. What the fill of an entry arms in
        step *sequence* may be met inside the same bar, and what it opens on margin be liquidated.
        """
        key = event.instrument
        if not self.waits(key):
            return _NOTHING_MET
        broker = self.brokers[key]
        if (
            isinstance(event, Bar)
            and not self.protectors[key].is_timed
            and matching.passes(broker, event)
        ):
            return _NOTHING_MET
        at_open = partial(matching.at_open, is_missed=True) if is_missed else matching.at_open
        if (
            isinstance(event, Bar)
            and not broker.others
            and not broker.is_guarded
            and not self._margin
        ):  # an order by signal alone: the rest of this would find nothing to do
            return self._met(at_open, event)
        trades = Met()
        if isinstance(event, Quote):
            trades.note(*self.expire(key, event.market_ms))
            self._due(key, trades, event.market_ms, sequence)
            self._add(key, trades, self._met(matching.at_quote, event), sequence, event.market_ms)
        else:
            newer = broker.rewind() if is_missed and broker.unmoved else {}
            trades.note(*self.expire(key, event.close_time_ms - 1, unfilled=False))
            self._due(key, trades, event.open_time_ms, sequence)
            opened = self._met(at_open, event)
            self._add(key, trades, opened, sequence, event.open_time_ms)
            on_path = self._met(matching.on_path, event)
            self._add(key, trades, on_path, sequence, event.close_time_ms)
            if newer:
                resumed = broker.resume(newer, event.open_time_ms)
                changed = {order.order_id for order in trades.orders}
                trades.note(*(order for order in resumed if order.order_id in changed))
                self._stale.add(key)
        return trades

    def heard(self, instrument: str) -> bool:
        """Learn that a bar of *instrument* closed whose quotes came; return whether that matters.

        No bar before it is missed any more, so what quotes moved stands as they left it.
        """
        broker = self.brokers[instrument]
        if not broker.unmoved:
            return False
        broker.unmoved = ()
        self._stale.add(instrument)
        return True

    def _due(self, instrument: str, trades: Met, market_ms: int, sequence: int) -> None:
        """Add to *trades* the order that closes a position whose time is over."""
        held = self.portfolio.held(instrument)
        protector = self.protectors[instrument]
        before = protector.state
        orders = protector.close_if_due(market_ms, held, sequence=sequence)
        trades.note(*orders)
        if orders or protector.state is not before:
            trades.ended_plan = not orders
            self._stale.add(instrument)

    def _add(self, instrument: str, trades: Met, met: Met, sequence: int, at_ms: int) -> None:
        """Add to *trades* what was *met*, and what its fills protect, and what margin secures."""
        self._protected(instrument, trades, met, sequence)
        if met.fills and self._margin:
            trades.note(*self.secure(instrument, sequence, at_ms))

    def _protected(self, instrument: str, trades: Met, met: Met, sequence: int) -> None:
        """Add to *trades* what was *met*, and what its fills arm or end."""
        trades.add(met)
        if not met.fills:
            return
        ids = {fill.order_id for fill in met.fills}
        # Whoever takes meets the market; a limit that had rested was met on its way.
        taken = (fill.reference_price for fill in met.fills if fill.liquidity is Liquidity.TAKER)
        trades.note(
            *self.protectors[instrument].after(
                [order for order in met.orders if order.order_id in ids],
                self.portfolio.held(instrument),
                self.portfolio.entry_price(instrument),
                next(taken, met.fills[-1].reference_price),
                sequence=sequence,
                at_ms=met.fills[-1].filled_ms,
            )
        )

    def secure(self, instrument: str, sequence: int, at_ms: int) -> tuple[Order, ...]:
        """Put the exchange's own order where the position is liquidated; return it if it changed.

        Its id is the step's *sequence* and an ordinal that no other instrument's has.
        """
        if (rules := self._margin.get(instrument)) is None:
            return ()
        held = self.portfolio.holding(instrument)
        broker = self.brokers[instrument]
        bounds = None
        if held.quantity:
            bounds = rules.bounds(held.entry_notional, held.quantity, held.margin)
        changed = broker.bound(
            bounds,
            held.quantity,
            order_id=broker.next_id(sequence, LIQUIDATIONS_FROM * (1 + self._places[instrument])),
            at_ms=at_ms,
        )
        if changed:
            self._stale.add(instrument)
        return changed

    def at_mark(self, instrument: str, mark: int, sequence: int, at_ms: int) -> Met:
        """Liquidate what is held of *instrument* where *mark* has reached that price."""
        if not self._margin or not self.portfolio.held(instrument):
            return _NOTHING_MET
        made = Met()
        if self.brokers[instrument].liquidation is None:  # taken over
            made.note(*self.secure(instrument, sequence, at_ms))
        taken = matching.at_mark(
            self.brokers[instrument], self._executors[instrument], self._purses[instrument], mark,
            at_ms,
        )  # fmt: skip
        self._protected(instrument, made, taken, sequence)
        if made.orders:
            self._stale.add(instrument)
        return made

    def _met(self, meet: Callable[[Broker, Executor, _Purse, E, Instrument], Met], event: E) -> Met:
        key = event.instrument
        trades = meet(
            self.brokers[key], self._executors[key], self._purses[key], event,
            self._instruments[key],
        )  # fmt: skip
        if trades.orders:
            self._stale.add(key)
        return trades

    def expire(
        self, instrument: str, market_ms: int, *, unfilled: bool = True
    ) -> tuple[Order, ...]:
        """Return the orders whose time is over, CANCELED: see :meth:`Broker.expire`."""
        expired = self.brokers[instrument].expire(market_ms, unfilled=unfilled)
        if expired:
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
        opened_ms: int = 0,
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
            opened_ms=opened_ms,
            cash=self._spendable(instrument, is_reversal=target * held < 0),
            by_command=by_command,
        )

    def _spendable(self, instrument: str, *, is_reversal: bool = False) -> int:
        """Return what an order may be paid from: on margin what no position binds."""
        if instrument not in self._margin:
            return self.portfolio.cash
        available = self.portfolio.available
        return available + self.portfolio.freed(instrument) if is_reversal else available

    def gross_of_others(self, instrument: str) -> int:
        """Return the notional at the marks of all positions but *instrument*'s, without signs.

        A target that is not reached yet counts where it is larger than what is held.
        """
        return sum(
            self.portfolio.notional(key, max(abs(self.portfolio.held(key)), abs(broker.target)))
            for key, broker in self.brokers.items()
            if key != instrument
        )

    def send(self, orders: Orders, bar: Bar, *, sequence: int, at_ms: int) -> tuple[Order, ...]:
        """Ask the broker of *bar*'s instrument for *orders*, which were decided at its close."""
        key = bar.instrument
        self._stale.add(key)
        now = Moment(
            sequence,
            at_ms,
            bar.open_time_ms,
            bar.close,
            self.portfolio.held(key),
            self._spendable(key),
        )
        return self.brokers[key].send(orders.requests, orders.reason, now)

    def withdraw(
        self, instrument: str, reason: str, *, opening_only: bool = False
    ) -> tuple[Order, ...]:
        """Cancel what rests by list: all of it, or what could open a position."""
        self._stale.add(instrument)
        return self.brokers[instrument].withdraw("", reason, opening_only=opening_only)

    def arm(
        self,
        instrument: str,
        role: OrderRole,
        *,
        sequence: int,
        at_ms: int,
        reason: str,
        trigger: int | None = None,
        price: int | None = None,
    ) -> tuple[Order, ...]:
        """Protect what is held of *instrument* by one order of *role*: see :meth:`Broker.arm`."""
        self._stale.add(instrument)
        return self.brokers[instrument].arm(
            role,
            self.portfolio.held(instrument),
            sequence=sequence,
            at_ms=at_ms,
            reason=reason,
            trigger=trigger,
            price=price,
        )

    def disarm(
        self, instrument: str, reason: str, roles: Collection[OrderRole] = PROTECTIVE
    ) -> tuple[Order, ...]:
        """Cancel the protective orders of *roles*, for that *reason*."""
        self._stale.add(instrument)
        return self.brokers[instrument].disarm(reason, roles)

    # ------------------------------------------------------------ protection

    def plan(self, signal: Signal, bar: Bar, at_ms: int, day_range: DayRange) -> Plan | str:
        """Return how the entry that *signal* asks for at the close of *bar* would be protected.

        Or why it cannot be entered: its protection is impossible, or it waits for another signal.
        """
        key = bar.instrument
        protector = self.protectors[key]
        if (refusal := protector.refusal(signal)) is not None:
            return refusal
        is_held = self.portfolio.held(key) * (1 if signal.action is Action.LONG else -1) > 0
        entry = self.portfolio.entry_price(key) if is_held else bar.close
        return protector.planner.plan(signal, bar.close, entry, at_ms, day_range)

    def protect(self, plan: Plan, bar: Bar, *, sequence: int, at_ms: int) -> tuple[Order, ...]:
        """Protect by *plan* what is held of *bar*'s instrument, or will be; see ``Protector``."""
        key = bar.instrument
        self._stale.add(key)
        return self.protectors[key].follow(
            plan,
            self.portfolio.held(key),
            self.portfolio.entry_price(key),
            bar.close,
            sequence=sequence,
            at_ms=at_ms,
        )

    def leave(self, instrument: str, reason: str) -> tuple[Order, ...]:
        """Protect *instrument* until what is held of it is closed: see ``Protector``."""
        if not self.protectors[instrument].is_active:
            return ()
        self._stale.add(instrument)
        return self.protectors[instrument].leave(self.portfolio.held(instrument), reason)

    def saw(self, instrument: str, action: Action) -> bool:
        """Learn the strategy's newest signal; return whether that ends a wait for another one."""
        if not self.protectors[instrument].saw(action):
            return False
        self._stale.add(instrument)
        return True

    # ------------------------------------------------------------ what survives a restart

    def state(self) -> AccountState:
        """Return what must survive a restart."""
        books = {key: self._book(key) for key in self.brokers}
        return AccountState(self.portfolio.cash, books)

    def _book(self, key: str) -> BookState:
        return BookState(
            self.portfolio.holding(key), self.brokers[key].state(), self.protectors[key].state
        )

    def encoded_state(self) -> tuple[int, dict[str, msgspec.Raw]]:
        """Return what decodes as :meth:`state`, made anew only where it has changed."""
        for key in self._stale:
            self._encoded[key] = msgspec.Raw(_encoded(self._book(key)))
        self._stale.clear()
        return self.portfolio.cash, self._encoded

    def restore(self, state: AccountState, *, taken_over: bool = False) -> None:
        """Take over what survived a restart, or what another run left (*taken_over*)."""
        self.portfolio.restore(state.cash, state.holdings, taken_over=taken_over)
        for key, book in state.books.items():
            self.brokers[key].restore(book.orders)
            self.protectors[key].state = book.protection
        self._stale.update(self.brokers)
