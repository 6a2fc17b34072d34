"""``CrossAccount``: an account on cross margin, where one balance answers for all that is held.

No order of the exchange rests: the account is asked at each price that values it whether its
maintenance ratio has reached 100 %, and the orders of its liquidation begin and end in that step.

The rules are docs/money.md, M49 to M60.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from typing import Final

from broker_before.account import LIQUIDATIONS_FROM, PaperAccount
from broker_before.ledger import (
    Booked,
    Holding,
    LedgerFunds,
    Liquidated,
    MarginCalls,
    TrialFunds,
)
from broker_before.matching import Matched
from broker_before.orders import OrderEvent, RestingOrders, after
from tracepaper.daemon.broker.account import BrokerSettings
from tracepaper.daemon.broker.cross_margin import (
    CrossLine,
    balance_of,
    is_called,
    loss_of,
    reductions,
    takeover_order,
)
from tracepaper.daemon.broker.execution import TrueRange
from tracepaper.daemon.broker.rules import MarginRules
from tracepaper.strategies.types.decisions import Fill, Order, OrderKind, OrderRole, OrderStatus
from tracepaper.strategies.types.market import Bar, Category, Instrument, Quote, Side
from tracepaper.strategies.units import MONEY_LIMIT, Notional

CALLED: Final = "the account's maintenance ratio reached 100 %"


class CrossAccount(PaperAccount):
    """A paper account whose cash and unrealized results are the margin of all positions."""

    def __init__(
        self,
        instruments: Iterable[Instrument],
        settings: BrokerSettings,
        *,
        ranges: Mapping[str, TrueRange] | None = None,
        keeps_ledger: bool = False,
        marked: Mapping[str, int],
    ) -> None:
        """Open an account; *marked* has the instruments that mark prices value until their bar."""
        items = tuple(instruments)
        super().__init__(items, settings, ranges=ranges, keeps_ledger=keeps_ledger)
        self._marked = marked
        self._cross: dict[str, MarginRules] = {}
        self._values: dict[str, Notional] = {}
        self._sequence = 0
        for item in items:
            self._adopt(item)
        self._funds_of = {key: CrossFunds(self, key) for key in self._cross}
        self._funds = dict[str, LedgerFunds](self._funds_of)
        self._is_margined = True

    def _rules(self, instrument: Instrument) -> None:
        """No position has a margin of its own."""

    def _adopt(self, instrument: Instrument) -> None:
        key, leverage = instrument.id, self._settings.leverage
        assert leverage is not None
        assert instrument.category is Category.LINEAR
        fee = self._settings.costs_for(key).taker_fee
        self._cross[key] = MarginRules(instrument, leverage, fee, is_cross=True)
        self._values[key] = Notional.of(instrument)
        self.orders[key].change(instrument, self._cross[key])

    def change(self, instrument: Instrument) -> None:
        """Use the exchange's new filters and risk tiers from now on."""
        super().change(instrument)
        self._adopt(instrument)

    # ------------------------------------------------------------ what it is worth and needs

    def lines(
        self, prices: Mapping[str, int] = {}, trial: tuple[str, Holding] | None = None
    ) -> dict[str, CrossLine] | None:
        """Return the quantity held or ordered of each instrument, at *prices* where they say one.

        A *trial* holds something else of one. None where something is held that no price has
        valued yet: so the account of another run, before its first bars.
        """
        lines = {}
        for key, resting in self.orders.items():
            holding = self.ledger.holding(key)
            if trial is not None and trial[0] == key:
                holding = trial[1]
            if not holding.quantity and not resting.rests:
                continue
            price = prices.get(key) or self.ledger.price(key)
            if not price:
                if holding.quantity:
                    return None
                continue
            value = self._values[key]
            lines[key] = CrossLine(
                self._cross[key],
                holding.quantity,
                holding.entry_notional,
                value(price, holding.quantity),
                value(price, _exposure(resting, holding.quantity)),
            )
        return lines

    def available(self, instrument: str, *, without_own: bool = False) -> int:
        """Return the margin balance that no position and no order of another instrument binds.

        Nor the position in *instrument*, unless *without_own*.
        """
        lines = self.lines()
        if lines is None:
            return 0
        bound = sum(line.initial for key, line in lines.items() if key != instrument)
        if (own := lines.get(instrument)) is not None and not without_own:
            bound += own.rules.required(own.value)
        return balance_of(self.ledger.cash, lines) - bound

    def _spendable(self, instrument: str, *, is_reversal: bool = False) -> int:
        return self.available(instrument, without_own=is_reversal)

    def is_called_at(self, prices: Mapping[str, int] = {}) -> bool:
        """Return whether the account is liquidated at *prices*, and the newest of the others."""
        lines = self.lines(prices)
        return lines is not None and is_called(self.ledger.cash, lines)

    def tick(self, instrument: str) -> int:
        """Return the tick of *instrument*."""
        return self._instruments[instrument].tick_size

    def follows_path(self, instrument: str) -> bool:
        """Whether bars of *instrument* call the account: no mark price came since the last one."""
        return instrument not in self._marked

    def waits(self, instrument: str) -> bool:
        """Return whether a bar of *instrument* can change anything: it may call the account."""
        return bool(self.ledger.held(instrument)) or super().waits(instrument)

    def _passes(self, bar: Bar) -> bool:
        if not super()._passes(bar):
            return False
        return not self._funds_of[bar.instrument].is_called_within(bar)

    # ------------------------------------------------------------ what happens to it

    def match(self, event: Bar | Quote, sequence: int = 0, *, is_missed: bool = False) -> Matched:
        """Let what rests meet a quote or a bar, whose path may call the account."""
        self._sequence = sequence
        return super().match(event, sequence, is_missed=is_missed)

    def match_mark(self, instrument: str, mark: int, sequence: int, at_ms: int) -> Matched:
        """Liquidate the account where it is called with *instrument* at *mark*."""
        self._sequence = sequence
        if not self.is_called_at({instrument: mark}):
            return Matched()
        return self.liquidate(instrument, mark, at_ms)

    def liquidate(
        self, instrument: str, price: int, at_ms: int, *, is_ruin: bool = False
    ) -> Matched:
        """Take the steps of a liquidation with *instrument* at *price*, and as few as do.

        A *is_ruin* is one by a close that would cost more than there is: all is taken over.
        """
        made, before = Matched(), self.ledger.price(instrument)
        self.ledger.mark(instrument, price)
        self._stale.update(self.orders)
        for key, resting in self.orders.items():
            made.note(*_cancelled(resting, self.ledger.held(key)))
        if is_ruin or self.is_called_at():
            lines = self.lines()
            assert lines is not None
            steps = {key: self._instruments[key].quantity_step for key in lines}
            found = [] if is_ruin else reductions(self.ledger.cash, lines, steps, self._reduced)
            for one in found:
                order = self._ordered(
                    one.instrument, one.quantity, f"reduced to risk tier {one.tier}", at_ms
                )
                self._book(order, made, at_ms)
            if not found:
                self._take_over(made, at_ms)
        self.ledger.mark(instrument, before)
        return made

    def _take_over(self, made: Matched, at_ms: int) -> None:
        """Let the exchange's engine take every position over, where the balance is used up."""
        for key in takeover_order(self.lines() or {}):
            lines = self.lines() or {}
            line = lines[key]
            loss = loss_of(key, self.ledger.cash, lines)
            price = line.rules.bankruptcy(abs(line.value), line.held, loss)
            order = self._ordered(key, abs(line.held), "taken over", at_ms, price=price)
            self._book(order, made, at_ms)

    def _ordered(
        self, key: str, quantity: int, what: str, at_ms: int, price: int | None = None
    ) -> Order:
        """Return the exchange's own order: at the market, or at the bankruptcy *price*."""
        first = LIQUIDATIONS_FROM * (1 + self._places[key])
        return Order(
            self.orders[key].next_id(self._sequence, first),
            key,
            Side.SELL if self.ledger.held(key) > 0 else Side.BUY,
            quantity,
            0,
            OrderStatus.NEW,
            f"{CALLED}: {what}",
            at_ms,
            at_ms,
            OrderKind.MARKET if price is None else OrderKind.LIMIT,
            OrderRole.LIQUIDATION,
            price,
            reduce_only=True,
        )

    def _filled(self, order: Order, at_ms: int) -> Fill:
        executor, mark = self._executors[order.instrument], self.ledger.price(order.instrument)
        if order.price is None:
            return executor.reduced(order, mark, at_ms)
        return executor.liquidated(order, mark, at_ms)

    def _reduced(self, key: str, line: CrossLine, quantity: int) -> tuple[CrossLine, int]:
        """Return *line* after *quantity* of it was closed at the market, and the cash it moves."""
        fill = self._filled(self._ordered(key, quantity, "", 0), 0)
        holding = copy(self.ledger.holding(key))
        realized = holding.trade(_signed(fill), fill.notional, None)
        value = self._values[key](self.ledger.price(key), holding.quantity)
        smaller = line._replace(
            held=holding.quantity, entry=holding.entry_notional, value=value, exposed=value
        )
        return smaller, realized - fill.fee

    def _book(self, order: Order, made: Matched, at_ms: int) -> None:
        """Book the fill of the exchange's own *order*, and what exit orders make of it."""
        key, resting, step = order.instrument, self.orders[order.instrument], Matched()
        order = after(order, OrderEvent.ACCEPT)
        resting.others += (order,)
        fill, before = self._filled(order, at_ms), self.position(key)
        self.ledger.apply_fill(fill)
        changed = resting.apply_fill(fill, self.held(key))
        step.fills.append(fill)
        step.booked.append(Booked(fill, changed[0], before, self.position(key)))
        step.note(*changed)
        self._protected(key, made, step, self._sequence)


class _Calls(ABC):
    """Implements ``MarginCalls``: when a path of prices of one instrument calls the account."""

    account: CrossAccount
    key: str

    @abstractmethod
    def _lines(self, price: int) -> tuple[int, dict[str, CrossLine] | None]:
        """Return the cash, and the positions with the instrument at *price*."""

    def is_called_within(self, bar: Bar) -> bool:
        """Return whether the account is called at one end of *bar*."""
        return self.account.follows_path(self.key) and (self.is_at(bar.low) or self.is_at(bar.high))

    def is_at(self, price: int) -> bool:
        """Return whether the account is called at *price*."""
        cash, lines = self._lines(price)
        return lines is not None and is_called(cash, lines)

    def at(self, start: int, end: int) -> int | None:
        """Return the first price on the way from *start* to *end* that calls the account.

        None where *end* does not: between whole ticks the margin is not looked at.
        """
        if not self.account.follows_path(self.key) or not self.is_at(end):
            return None
        if self.is_at(start):
            return start
        tick = self.account.tick(self.key)
        near, far = 0, -(-abs(end - start) // tick)  # ticks from the start: not called, called
        way = tick if end > start else -tick
        while far - near > 1:
            middle = (near + far) // 2
            if self.is_at(start + middle * way):
                far = middle
            else:
                near = middle
        return end if far * tick >= abs(end - start) else start + far * way


class CrossFunds(_Calls, LedgerFunds):
    """What a fill of one instrument moves in an account on cross margin."""

    def __init__(self, account: CrossAccount, instrument: str) -> None:
        LedgerFunds.__init__(self, account.ledger, instrument)
        self.account, self.key = account, instrument
        self.calls: MarginCalls | None = self

    def _lines(self, price: int) -> tuple[int, dict[str, CrossLine] | None]:
        return self.account.ledger.cash, self.account.lines({self.key: price})

    def liquidate(self, price: int, at_ms: int) -> Liquidated:
        """Liquidate with the instrument at *price*."""
        made = self.account.liquidate(self.key, price, at_ms)
        return made.fills, made.booked, made.orders

    def trial(self) -> TrialFunds:
        """Return a copy of cash and position to try fills on."""
        return CrossTrial(self.account, self.key)

    def refusal(self, fill: Fill) -> str | None:
        """Return why the balance cannot bear *fill*, or None: what only closes is always borne."""
        held = self.held
        if abs(held + _signed(fill)) <= abs(held) and held * (held + _signed(fill)) >= 0:
            return None
        found = self._after(fill)
        if found is None:
            return None
        balance, lines = found
        own = lines[self.key]
        needed = own.rules.required(own.value)
        needed += sum(line.initial for key, line in lines.items() if key != self.key)
        if needed <= balance:
            return None
        return "the available balance did not cover its margin at that price"

    def ruined_by(self, fill: Fill, at_ms: int) -> Liquidated | None:
        """Return the liquidation in place of *fill*, a close that costs more than there is."""
        if not self.is_ruin(fill):
            return None
        made = self.account.liquidate(self.key, fill.reference_price, at_ms, is_ruin=True)
        return made.fills, made.booked, made.orders

    def is_ruin(self, fill: Fill) -> bool:
        """Return whether less than nothing would be left after *fill*."""
        found = self._after(fill)
        return found is not None and found[0] < 0

    def _after(self, fill: Fill) -> tuple[int, dict[str, CrossLine]] | None:
        """Return balance and lines after *fill*, the instrument at the price that it met."""
        ledger = self.account.ledger
        holding = copy(ledger.holding(self.key))
        moved = holding.trade(_signed(fill), fill.notional, None) - fill.fee
        price = {self.key: fill.reference_price}
        if (lines := self.account.lines(price, (self.key, holding))) is None:
            return None
        return balance_of(ledger.cash + moved, lines), lines


class CrossTrial(_Calls, TrialFunds):
    """What fills of one instrument would do to an account on cross margin."""

    def __init__(self, account: CrossAccount, instrument: str) -> None:
        holding = copy(account.ledger.holding(instrument))
        TrialFunds.__init__(self, holding, account.ledger.cash, None, is_cash=False)
        self.account, self.key, self._tried, self._is_over = account, instrument, holding, False
        self.calls: MarginCalls | None = self

    def _lines(self, price: int) -> tuple[int, dict[str, CrossLine] | None]:
        if self._is_over:
            return 0, None
        return self.cash, self.account.lines({self.key: price}, (self.key, self._tried))

    def liquidate(self, price: int, at_ms: int) -> Liquidated:
        """End the trial: a path that calls the account leaves less than any other."""
        del price, at_ms
        self._is_over = True
        return (), (), ()

    def ruined_by(self, fill: Fill, at_ms: int) -> Liquidated | None:
        """Bear *fill*."""
        del fill, at_ms
        return None

    def equity(self, value: int) -> int:
        """Return the equity with the position at *value*; the least where the account is called."""
        return -MONEY_LIMIT if self._is_over else super().equity(value)


def _signed(fill: Fill) -> int:
    return fill.quantity if fill.side is Side.BUY else -fill.quantity


def _exposure(resting: RestingOrders, held: int) -> int:
    """Return the largest position, signed, that *held* and what rests could lead to.

    All buys are filled, or all sells; what may only reduce counts for none.
    """
    if not resting.rests:
        return held
    most, least = held, held
    for order in resting.orders:
        if not order.reduce_only:
            left = order.quantity - order.filled
            if order.side is Side.BUY:
                most += left
            else:
                least -= left
    if abs(most) == abs(least):
        return held or most
    return max(most, least, key=abs)


def _cancelled(resting: RestingOrders, held: int) -> Iterator[Order]:
    """Cancel all that may do more than reduce the position *held*."""
    for order in resting.orders:
        only_closes = order is resting.order and 0 <= _left(held, order) * held <= held * held
        if not order.reduce_only and not (held and only_closes):
            yield resting.end(order, CALLED)


def _left(held: int, order: Order) -> int:
    """Return the quantity left of *held* after *order*."""
    open_ = order.quantity - order.filled
    return held + (open_ if order.side is Side.BUY else -open_)
