"""``PaperAccount``: a ledger, and of each instrument its resting orders and exit orders.

The rules are docs/money.md, M6 to M21.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
from msgspec import Struct

from broker_before import matching, splits
from broker_before.exit_orders import ProtectionState, Protector
from broker_before.ledger import Holding, Ledger, LedgerFunds
from broker_before.matching import Matched, Tried
from broker_before.orders import (
    Moment,
    OrdersState,
    RestingOrders,
    Sent,
)
from tracepaper.daemon.broker.account import BrokerSettings
from tracepaper.daemon.broker.book_fills import QueueState
from tracepaper.daemon.broker.execution import DayRange, Executor, TrueRange
from tracepaper.daemon.broker.exit_plans import Expected, HeldPosition, Plan
from tracepaper.daemon.broker.rules import MarginRules
from tracepaper.strategies.api.context import AccountView, Orders, Signal, account_view
from tracepaper.strategies.types.decisions import Action, Fill, Liquidity, Order
from tracepaper.strategies.types.market import Bar, Category, CorporateAction, Instrument, Quote

EncodedAccount = tuple[int, dict[str, msgspec.Raw]]
"""What decodes as an ``AccountState``."""


class BookState(Struct, frozen=True, array_like=True):
    """What an account carries of one instrument from step to step."""

    holding: Holding
    orders: OrdersState
    protection: ProtectionState = ProtectionState()
    queues: QueueState | None = None  # None where no order book fills orders


class AccountState(Struct, frozen=True, array_like=True):
    """What an account carries from step to step."""

    cash: int
    books: dict[str, BookState]

    @property
    def holdings(self) -> dict[str, Holding]:
        """What is held of each instrument."""
        return {key: book.holding for key, book in self.books.items()}


def _encoded(book: BookState) -> bytes:
    return msgspec.msgpack.encode(book)


E = TypeVar("E", Bar, Quote)
LIQUIDATIONS_FROM: Final = 1_000
"""The first ordinal of the exchange's own orders: in a close several are born in one step."""
_NOTHING_MATCHED: Final = Matched()


class BarOpening(NamedTuple):
    """What the open of a bar did to an account, before it follows one of the bar's paths."""

    trades: Matched
    tried: Tried | None = None  # None where nothing that rests is met by either path
    newer: Sequence[tuple[RestingOrders, dict[str, Order]]] = ()  # what quotes after it moved


_NOTHING_OPENED: Final = BarOpening(_NOTHING_MATCHED)


class PaperAccount:
    """The run's account, or the shadow account of a twin.

    All that changes what it carries goes through it, so that it can encode anew what changed alone.
    """

    resting_type: type[RestingOrders] = RestingOrders
    sides: Mapping[Any, Any] = {}

    def __init__(
        self,
        instruments: Iterable[Instrument],
        settings: BrokerSettings,
        *,
        ranges: Mapping[str, TrueRange] | None = None,
        keeps_ledger: bool = False,
    ) -> None:
        """Open an account; whoever sees the bars feeds *ranges*, by instrument."""
        self._settings = settings
        self._instruments = {item.id: item for item in instruments}
        known = self._instruments.items()
        self._margin = {key: rules for key, item in known if (rules := self._rules(item))}
        self.ledger = Ledger(
            settings.cash, self._instruments, margin=self._margin, keeps_entries=keeps_ledger
        )
        self.orders = {key: self._resting(item) for key, item in known}
        self.protectors = {
            key: Protector(self.orders[key], item, settings.exits) for key, item in known
        }
        self._is_margined = bool(self._margin)
        self._places = {key: place for place, key in enumerate(self._instruments)}
        self._ranges = ranges or {}
        self._executors = {key: self._executor(item) for key, item in known}
        self._funds = {key: LedgerFunds(self.ledger, key) for key in self._instruments}
        self._encoded = dict.fromkeys(self._instruments, msgspec.Raw())  # each one's state
        self._stale = set(self._instruments)  # those whose state has changed since
        # The ledger's own answers, without a call between: every step asks for them.
        self.held = self.ledger.held
        self.position = self.ledger.position
        self.balance = self.ledger.account
        self.report = self.ledger.report

    def change(self, instrument: Instrument) -> None:
        """Use the exchange's new filters for orders and prices from now on."""
        self._instruments[instrument.id] = instrument
        key = instrument.id
        if (rules := self._rules(instrument)) is not None:
            self._margin[key] = rules
            self.ledger.require(key, rules)
        self.orders[key].change(instrument, self._margin.get(key))
        self.protectors[key].change(instrument)
        self._executors[instrument.id] = self._executor(instrument)

    def _rules(self, instrument: Instrument) -> MarginRules | None:
        leverage = self._settings.leverage
        if leverage is None or instrument.category is not Category.LINEAR:
            return None
        return MarginRules(instrument, leverage, self._settings.costs_for(instrument.id).taker_fee)

    def _resting(self, item: Instrument) -> RestingOrders:
        return self.resting_type(
            item,
            self._settings.costs_for(item.id),
            latency=self._settings.latency,
            fill_within_ms=self._settings.fill_within_ms,
            margin=self._margin.get(item.id),
        )

    def _executor(self, instrument: Instrument) -> Executor:
        costs = self._settings.costs_for(instrument.id)
        return Executor(instrument, costs, self._ranges.get(instrument.id))

    # ------------------------------------------------------------ what a decision asks

    def target(self, instrument: str) -> int:
        """Return the target of *instrument* that was decided last, reached or not."""
        return self.orders[instrument].target

    def confirmed_ms(self, instrument: str) -> int:
        """Return the open time of the bar that last confirmed the position; 0 where none did."""
        return self.orders[instrument].confirmed_ms

    def reach(self, instrument: str, asked: Orders) -> tuple[int, bool]:
        """Return the largest position that *asked* could lead to: see :meth:`RestingOrders.reach`.

        And whether all of it can only reduce.
        """
        return self.orders[instrument].reach(asked.requests, self.held(instrument))

    def stop_distance(
        self, signal: Signal, bar: Bar, day_range: DayRange, expected: Expected | None
    ) -> int:
        """Return how far from the close of *bar* the nearest stop of *signal* would be."""
        planner = self.protectors[bar.instrument].planner
        return planner.distance(signal, bar.close, day_range, expected)

    def gross_of_others(self, instrument: str) -> int:
        """Return the notional at the marks of all positions but *instrument*'s, without signs.

        A target that is not reached yet counts where it is larger than what is held.
        """
        return sum(
            self.ledger.notional(key, max(abs(self.ledger.held(key)), abs(resting.target)))
            for key, resting in self.orders.items()
            if key != instrument
        )

    def opened_ms(self, instrument: str) -> int:
        """Return the market time of the fill that opened the position; 0 where there is none."""
        return self.ledger.holding(instrument).opened_ms

    def view(self, instrument: Instrument, *, bars_since: Callable[[int], int]) -> AccountView:
        """Return what a strategy sees of the account; its fills are no news after that."""
        key, ledger = instrument.id, self.ledger
        fills, ledger.fills[key] = ledger.fills[key], []
        return account_view(
            instrument,
            position=ledger.position(key),
            opened_ms=ledger.holding(key).opened_ms,
            bars_held=bars_since(ledger.holding(key).opened_ms),
            orders=self.orders[key].orders,
            fills=fills,
            account=ledger.account(),
        )

    # ------------------------------------------------------------ what changes it

    def waits(self, instrument: str) -> bool:
        """Return whether any order of *instrument* rests, or a time at which it is closed."""
        return self.orders[instrument].rests or self.protectors[instrument].is_active

    def match(self, event: Bar | Quote, sequence: int = 0, *, is_missed: bool = False) -> Matched:
        """Let what rests meet a quote, or a bar: market orders its open, then others its path.

        A bar *is_missed* where quotes fill orders and those of the bar did not come.

        An order whose time ends inside a bar meets none of it. What the fill of an entry arms in
        step *sequence* may be met inside the same bar, and what it opens on margin be liquidated.
        """
        if isinstance(event, Bar):
            opened = self.open_bar(event, sequence, is_missed=is_missed)
            return self.follow(event, opened, matching.worse_path(opened.tried), sequence)
        key, trades = event.instrument, Matched()
        if not self.waits(key):
            return _NOTHING_MATCHED
        trades.note(*self.expire(key, event.market_ms))
        self._due(key, trades, event.market_ms, (event.bid, event.ask), sequence)
        self._add(key, trades, self._match(matching.match_quote, event), sequence, event.market_ms)
        return trades

    def open_bar(self, bar: Bar, sequence: int, *, is_missed: bool) -> BarOpening:
        """Let market orders meet the open of *bar*, and try both of its paths."""
        key = bar.instrument
        if not self.waits(key) or self._passes(bar):
            return _NOTHING_OPENED
        resting = self.orders[key]
        at_open = partial(matching.match_open, is_missed=True) if is_missed else matching.match_open
        if not resting.others and not resting.is_guarded and not self._is_margined:
            # An order by signal alone: the rest of this would find nothing to do.
            return BarOpening(self._match(at_open, bar))
        trades = Matched()
        newer = [(line, line.rewind()) for line in resting.lines if is_missed and line.unmoved]
        trades.note(*self.expire(key, bar.close_time_ms - 1, unfilled=False))
        self._due(key, trades, bar.open_time_ms, (bar.open, bar.open), sequence)
        self._add(key, trades, self._match(at_open, bar), sequence, bar.open_time_ms)
        tried = matching.try_paths(
            resting, self._executors[key], self._funds[key], bar, self._instruments[key]
        )
        return BarOpening(trades, tried, newer)

    def follow(self, bar: Bar, opened: BarOpening, path: int, sequence: int) -> Matched:
        """Let what rests meet that *path* of *bar*; return what open and path did."""
        key, trades = bar.instrument, opened.trades
        if opened.tried is not None:
            on_path = self._match(partial(matching.match_path, path=path), bar)
            self._add(key, trades, on_path, sequence, bar.close_time_ms)
        for line, moved in opened.newer:
            resumed = line.resume(moved, bar.open_time_ms)
            changed = {order.order_id for order in trades.orders}
            trades.note(*(order for order in resumed if order.order_id in changed))
            self._stale.add(key)
        return trades

    def _passes(self, bar: Bar) -> bool:
        key = bar.instrument
        return not self.protectors[key].is_timed and matching.passes(self.orders[key], bar)

    def on_quoted_bar(self, instrument: str) -> bool:
        """Learn that a bar of *instrument* closed whose quotes came; return whether that matters.

        No bar before it is missed any more, so what quotes moved stands as they left it.
        """
        resting = self.orders[instrument]
        if not resting.unmoved:
            return False
        resting.unmoved = ()
        self._stale.add(instrument)
        return True

    def _due(
        self,
        instrument: str,
        trades: Matched,
        market_ms: int,
        market: tuple[int, int],
        sequence: int,
    ) -> None:
        """Add to *trades* the orders that change because a position's time or age is reached.

        The *market* is its bid and its ask.
        """
        protector = self.protectors[instrument]
        if not protector.is_timed:
            return
        before, held = protector.state, self.ledger.held(instrument)
        orders = protector.act_if_due(
            market_ms,
            held,
            self.ledger.entry_price(instrument),
            self.opened_ms(instrument),
            market[0] if held > 0 else market[1],
            sequence=sequence,
        )
        trades.note(*orders)
        if orders or protector.state is not before:
            trades.ended_plan = not orders
            self._stale.add(instrument)

    def _add(
        self, instrument: str, trades: Matched, matched: Matched, sequence: int, at_ms: int
    ) -> None:
        """Add to *trades* what was *matched*, and what protection and margin make of its fills."""
        self._protected(instrument, trades, matched, sequence)
        if matched.fills and self._margin:
            trades.note(*self.set_liquidation_price(instrument, sequence, at_ms))

    def _protected(self, instrument: str, trades: Matched, matched: Matched, sequence: int) -> None:
        """Add to *trades* what was *matched*, and what its fills arm or end."""
        trades.add(matched)
        if matched.fills:
            ids = {fill.order_id for fill in matched.fills}
            filled = [order for order in matched.orders if order.order_id in ids]
            trades.note(*self.arm(instrument, matched.fills, filled, sequence))

    def arm(
        self, instrument: str, fills: Sequence[Fill], filled: Sequence[Order], sequence: int
    ) -> tuple[Order, ...]:
        """Return the orders that change because *fills* of the orders *filled* arm or end them."""
        # Whoever takes meets the market; a limit that had rested was met on its way.
        taken = (fill.reference_price for fill in fills if fill.liquidity is Liquidity.TAKER)
        return self.protectors[instrument].after(
            filled,
            self.ledger.held(instrument),
            self.ledger.entry_price(instrument),
            next(taken, fills[-1].reference_price),
            sequence=sequence,
            at_ms=fills[-1].filled_ms,
        )

    def set_liquidation_price(
        self, instrument: str, sequence: int, at_ms: int
    ) -> tuple[Order, ...]:
        """Put the exchange's own order where the position is liquidated; return it if it changed.

        Its id is the step's *sequence* and an ordinal that no other instrument's has.
        """
        if instrument not in self._margin:
            return ()
        changed = self.protectors[instrument].set_liquidation_price(
            self.ledger.bounds(instrument),
            self.ledger.held(instrument),
            order_id=self.orders[instrument].next_id(
                sequence, LIQUIDATIONS_FROM * (1 + self._places[instrument])
            ),
            at_ms=at_ms,
        )
        if changed:
            self._stale.add(instrument)
        return changed

    def match_mark(self, instrument: str, mark: int, sequence: int, at_ms: int) -> Matched:
        """Liquidate what is held of *instrument* where *mark* has reached that price."""
        if not self._margin or not self.ledger.held(instrument):
            return _NOTHING_MATCHED
        made = Matched()
        if self.orders[instrument].liquidation is None:  # taken over
            made.note(*self.set_liquidation_price(instrument, sequence, at_ms))
        taken = matching.match_mark(
            self.orders[instrument], self._executors[instrument], self._funds[instrument], mark,
            at_ms,
        )  # fmt: skip
        self._protected(instrument, made, taken, sequence)
        if made.orders:
            self._stale.add(instrument)
        return made

    def _match(
        self,
        match: Callable[[RestingOrders, Executor, LedgerFunds, E, Instrument], Matched],
        event: E,
    ) -> Matched:
        key = event.instrument
        trades = match(
            self.orders[key], self._executors[key], self._funds[key], event,
            self._instruments[key],
        )  # fmt: skip
        if trades.orders:
            self._stale.add(key)
        return trades

    def expire(
        self, instrument: str, market_ms: int, *, unfilled: bool = True
    ) -> tuple[Order, ...]:
        """Return the orders whose time is over, CANCELED: see :meth:`RestingOrders.expire`."""
        expired = self.orders[instrument].expire(market_ms, unfilled=unfilled)
        if expired:
            self._stale.add(instrument)
        return expired

    def pay_funding(self, instrument: str, rate: int) -> int:
        """Settle funding; return what was paid: see :meth:`Ledger.pay_funding`."""
        paid = self.ledger.pay_funding(instrument, rate)
        if paid:
            self._stale.add(instrument)
        return paid

    def apply_action(self, action: CorporateAction) -> tuple[Order, ...]:
        """Book a split or a dividend; return the orders that this changes."""
        key = action.instrument
        self._stale.add(key)
        before = self.ledger.held(key)
        self.ledger.apply_action(action)
        if not action.is_split:
            return ()
        return splits.adjust_orders(
            self.orders[key],
            self.protectors[key],
            self._instruments[key],
            action,
            before,
            self.ledger.held(key),
        )

    def confirm(self, instrument: str, open_time_ms: int) -> None:
        """Let the position stand for another horizon from the bar at *open_time_ms* on."""
        self.orders[instrument].confirmed_ms = open_time_ms
        self._stale.add(instrument)

    def submit(
        self,
        instrument: str,
        target: int,
        reason: str,
        now: Moment,
        *,
        order_id: str,
        by_command: bool = False,
    ) -> Sent:
        """Ask *instrument* to reach *target* from what is held."""
        self._stale.add(instrument)
        now = now._replace(cash=self._spendable(instrument, is_reversal=target * now.held < 0))
        return self.orders[instrument].submit(
            target, reason, now, order_id=order_id, by_command=by_command
        )

    def affordable(self, instrument: str, target: int, price: int) -> int:
        """Return *target* of *instrument*, or as much of it as the account covers at *price*."""
        held = self.held(instrument)
        funds = self._spendable(instrument, is_reversal=target * held < 0)
        return self.orders[instrument].affordable(target, held, price, funds)

    def is_short(self, instrument: str) -> bool:
        """Return whether a position was cut to what the account could bear."""
        return bool(self.orders[instrument].shortfall and self.held(instrument))

    def _spendable(self, instrument: str, *, is_reversal: bool = False) -> int:
        """Return what an order may be paid from: on margin what no position binds."""
        if instrument not in self._margin:
            return self.ledger.cash
        available = self.ledger.available
        return available + self.ledger.freed(instrument) if is_reversal else available

    def send(self, orders: Orders, bar: Bar, *, sequence: int, at_ms: int) -> tuple[Order, ...]:
        """Ask *bar*'s instrument for *orders*, which were decided at its close."""
        key = bar.instrument
        self._stale.add(key)
        now = Moment(
            sequence,
            at_ms,
            bar.open_time_ms,
            bar.close,
            self.ledger.held(key),
            self._spendable(key),
        )
        return self.orders[key].send(orders.requests, orders.reason, now)

    def withdraw(
        self, instrument: str, reason: str, *, opening_only: bool = False
    ) -> tuple[Order, ...]:
        """Cancel what rests by list: all of it, or what could open a position."""
        self._stale.add(instrument)
        return self.orders[instrument].withdraw("", reason, opening_only=opening_only)

    # ------------------------------------------------------------ protection

    def matters_from(self, quote: Quote) -> int | None:
        """Return the market time from which *quote* closes or moves what is due by then."""
        key = quote.instrument
        if not self.protectors[key].is_timed:  # as at most quotes
            return None
        entry, opened_ms = self.ledger.entry_price(key), self.opened_ms(key)
        return self.protectors[key].matters_from(quote, entry, opened_ms)

    def plan(
        self,
        signal: Signal,
        bar: Bar,
        at_ms: int,
        day_range: DayRange,
        expected: Expected | None = None,
    ) -> Plan | str:
        """Return how the entry that *signal* asks for at the close of *bar* would be protected.

        Or why it cannot be entered: its protection is impossible, or it waits for another signal.
        """
        key = bar.instrument
        protector = self.protectors[key]
        if (refusal := protector.refusal(signal)) is not None:
            return refusal
        sign = 1 if signal.action is Action.LONG else -1
        is_held = self.ledger.held(key) * sign > 0
        entry = self.ledger.entry_price(key) if is_held else bar.close
        held = None
        if is_held:
            held = HeldPosition(protector.state.plan, at_ms - self.opened_ms(key))
        return protector.planner.plan(
            signal, bar.close, entry, at_ms, day_range, expected=expected, held=held
        )

    def protect(self, plan: Plan, bar: Bar, *, sequence: int, at_ms: int) -> tuple[Order, ...]:
        """Protect by *plan* what is held of *bar*'s instrument, or will be; see ``Protector``."""
        key = bar.instrument
        self._stale.add(key)
        return self.protectors[key].follow(
            plan,
            self.ledger.held(key),
            self.ledger.entry_price(key),
            bar.close,
            sequence=sequence,
            at_ms=at_ms,
        )

    def is_protected_by(self, plan: Plan, instrument: str) -> bool:
        """Return whether [exits] gave *instrument* this very *plan* before; nothing changes then.

        False without [exits]: a repeated signal stores the state, as it always has.
        """
        state = self.protectors[instrument].state
        return self._settings.exits is not None and (
            (state.plan, state.closed, state.following) == (plan, 0, None)
        )

    def leave(self, instrument: str, reason: str) -> tuple[Order, ...]:
        """Protect *instrument* until what is held of it is closed: see ``Protector``."""
        if not self.protectors[instrument].is_active:
            return ()
        self._stale.add(instrument)
        return self.protectors[instrument].leave(self.ledger.held(instrument), reason)

    def on_signal(self, instrument: str, action: Action) -> bool:
        """Learn the strategy's newest signal; return whether that ends a wait for another one."""
        if not self.protectors[instrument].on_signal(action):
            return False
        self._stale.add(instrument)
        return True

    # ------------------------------------------------------------ what survives a restart

    def state(self) -> AccountState:
        """Return the state that must survive a restart."""
        books = {key: self._state_of(key) for key in self.orders}
        return AccountState(self.ledger.cash, books)

    def _state_of(self, key: str) -> BookState:
        return BookState(
            self.ledger.holding(key), self.orders[key].state(), self.protectors[key].state
        )

    def encoded_state(self) -> EncodedAccount:
        """Return what decodes as :meth:`state`, made anew only where it has changed."""
        for key in self._stale:
            self._encoded[key] = msgspec.Raw(_encoded(self._state_of(key)))
        self._stale.clear()
        return self.ledger.cash, self._encoded

    def restore(self, state: AccountState, *, taken_over: bool = False) -> None:
        """Take over what survived a restart, or what another run left (*taken_over*)."""
        self.ledger.restore(state.cash, state.holdings, taken_over=taken_over)
        for key, book in state.books.items():
            self.orders[key].restore(book.orders)
            self.protectors[key].state = book.protection
        self._stale.update(self.orders)


def as_they_stand(before: tuple[Order, ...], after: tuple[Order, ...]) -> tuple[Order, ...]:
    """Return each order once, as it stood *after* where it changed again."""
    if not before:
        return after
    return tuple({order.order_id: order for order in (*before, *after)}.values())
