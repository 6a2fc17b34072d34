"""Matching: when orders are triggered and filled at a quote, at a bar's open or along its path.

Quotes. An order meets the first quote after its latency. A limit that crosses the far side takes
there. Otherwise it rests, and is filled as maker once the far side is strictly through its price,
because earlier orders at that price are served first. A stop triggers on the side at which it
would be filled, and at once becomes a market or a limit order.

Bars. The order of the prices within a bar is unknown. Both paths are tried, open-high-low-close
and open-low-high-close, and the path that leaves the account with less equity counts.

The rules are docs/money.md, M11 to M14, and docs/orders.md, B2 to B4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from itertools import pairwise
from operator import attrgetter
from typing import Final, Self

from tracepaper.daemon.broker.execution import Executor
from tracepaper.daemon.broker.exit_orders import act_if_due, is_timed, protect_fills
from tracepaper.daemon.broker.line import Line
from tracepaper.daemon.broker.margin import CrossMargin, MarginPolicy, liquidate, take_over
from tracepaper.daemon.broker.orders import (
    DECIDED,
    OrderEvent,
    after,
    crosses,
    is_through,
    is_waiting_stop,
    passes,
    price_met,
    touched,
    trailed_to,
    waits_for_next_bar,
)
from tracepaper.daemon.broker.rules import NO_CASH, largest_multiple
from tracepaper.daemon.broker.settlements import Moment
from tracepaper.strategies.types.decisions import (
    Fill,
    FillModel,
    Order,
    OrderKind,
    OrderRole,
    OrderStatus,
)
from tracepaper.strategies.types.market import Bar, Quote, Side
from tracepaper.strategies.units import MONEY_LIMIT

WOULD_TAKE: Final = "post-only, and it would have taken"
LIQUIDATED_FIRST: Final = "the position was liquidated first"


class Market:
    """How events meet the orders of a line."""

    def __init__(self, line: Line, policy: MarginPolicy, account: str = "") -> None:
        """Match the orders of *line*, whose *account* has the margin *policy*."""
        self.line, self.ledger, self.policy = line, line.ledger, policy
        self._account = account
        self.cross = policy if isinstance(policy, CrossMargin) else None
        self.trial: TrialFills | None = None  # the trial that is in progress
        self.taken = {Side.BUY: 0, Side.SELL: 0}  # quantity by takers within the bar
        self._volume = 0  # of the bar
        self._younger: set[str] = set()  # ids of orders that are younger than the bar
        self._delayed = line.settings.latency.bars > 0
        self._is_quote = False  # whether the event is newer than bars that may still arrive

    @property
    def waits(self) -> bool:
        """Whether an event can change anything here.

        It can where an order rests, an exit plan is active, or a position is on cross margin, whose
        account a bar may liquidate.
        """
        line = self.line
        return (
            line.rests
            or line.protection.plan is not None
            or (line.is_cross and line.holding.quantity != 0)
        )

    @property
    def _executor(self) -> Executor:
        return self.line.executor

    # ------------------------------------------------------------ quotes

    def match_quote(self, quote: Quote) -> None:
        """Match every order that has reached the exchange; all of them share the quote's sizes."""
        if not self.waits:
            return
        first = self._begin(quote.market_ms, quote.bid, quote.ask)
        left = {Side.BUY: quote.ask_size, Side.SELL: quote.bid_size}
        for resting in self.line.orders:
            order = self.line.find(resting.order_id)  # an earlier fill may have changed it
            if order is not None and quote.market_ms >= order.eligible_ms:
                self._meet_quote(order, quote, left)
        self._trail(quote.bid, quote.ask)
        self._end_pass(first, quote.market_ms)

    def _meet_quote(self, order: Order, quote: Quote, left: dict[Side, int]) -> None:
        """Match *order* against *quote*, of whose sizes *left* is not taken yet."""
        if order.role is OrderRole.LIQUIDATION:
            return  # only the mark price triggers it
        far = quote.ask if order.side is Side.BUY else quote.bid
        if (admitted := self._admitted(order, far, far)) is None:
            return
        order, may_take = admitted
        available = left[order.side]
        part: Callable[[int], Fill | None]
        if order.price is None or (may_take and crosses(order, far)):
            part = partial(self._executor.at_quote, order, quote, available)
            fill = part(order.quantity - order.filled)
        else:
            quantity = min(order.quantity - order.filled, available)
            if may_take or quantity <= 0 or not is_through(order, far):
                return
            part = partial(self._made, order, FillModel.QUOTE, quote.market_ms)
            fill = part(quantity)
        if fill is not None:
            left[order.side] = max(available - self._apply_fill(order, fill, part), 0)

    def _made(self, order: Order, model: FillModel, at_ms: int, quantity: int) -> Fill:
        """Return the fill of a *quantity* of a resting limit as maker."""
        return self._executor.fill_resting(order, quantity, model, at_ms)

    def _admitted(self, order: Order, far: int, price: int) -> tuple[Order, bool] | None:
        """Accept *order* with the market at *price*, or trigger its stop; it would take at *far*.

        Returns it, and whether it may take: it arrives, or its stop has just triggered. None if it
        is rejected, or its stop still waits.
        """
        arrives = order.status is OrderStatus.NEW
        if arrives and order.post_only and crosses(order, far):
            self.line.end(order, WOULD_TAKE, OrderEvent.REJECT)
            return None
        order = self._accepted(order)
        if not is_waiting_stop(order):
            return order, arrives
        return (self._triggered(order), True) if touched(order, price) else None

    def _accepted(self, order: Order) -> Order:
        """Accept *order* if it is new, and return it."""
        if order.status is not OrderStatus.NEW:
            return order
        return self.line.note(after(order, OrderEvent.ACCEPT))

    def _begin(self, at_ms: int, bid: int, ask: int) -> int:
        """Expire orders and apply time limits before a quote; return where its fills begin."""
        self._is_quote, self._younger = True, set()
        self.line.expire(at_ms)
        self._end_due(at_ms, bid, ask)
        return len(self.ledger.fills)

    def _end_due(self, market_ms: int, bid: int, ask: int) -> None:
        """Apply the time limits that are reached, with the market at *bid* and *ask*."""
        if self.line.protection.plan is not None:
            act_if_due(self.line, market_ms, bid, ask)

    def _end_pass(self, first: int, at_ms: int) -> None:
        """Update exit orders and liquidation price after the fills of a pass, from *first* on."""
        if len(self.ledger.fills) > first:
            protect_fills(self.line, first)
            self.line.set_liquidation_price(at_ms)

    # ------------------------------------------------------------ bars

    def match_bar(
        self, bar: Bar, settlements: Sequence[Moment] = (), *, is_missed: bool = False
    ) -> None:
        """Match market orders at the open of *bar*, all others along the path with less equity.

        The *settlements* inside the bar come between the two, since fills on the path are dated at
        the end of the bar. A bar *is_missed* if quotes fill orders and the quotes of this bar did
        not arrive. An order that expires inside the bar is not filled by it. The exit orders of an
        entry can be filled inside the bar of the entry, and a new position on margin can be
        liquidated in it.
        """
        line = self.line
        newer = line.rewind() if is_missed and line.before_quotes else {}
        if self.waits and not self.is_passed_by(bar):
            self._match_path(bar, settlements, is_missed=is_missed)
        else:
            self.settle(settlements)
        if newer:  # quotes after the bar had moved these
            line.resume(newer, bar.open_time_ms)

    def _match_path(self, bar: Bar, settlements: Sequence[Moment], *, is_missed: bool) -> None:
        """Match the open of *bar*, then its *settlements*, then its path."""
        self._is_quote, self._younger = False, set()
        self._volume, self.taken = bar.volume, {Side.BUY: 0, Side.SELL: 0}
        self.line.expire(bar.close_time_ms - 1, unfilled=False)
        self._end_due(bar.open_time_ms, bar.open, bar.open)
        first = len(self.ledger.fills)
        self._match_open(bar, is_missed=is_missed)
        self._end_pass(first, bar.open_time_ms)
        if not (settlements or self.waits):
            return  # the open filled every order
        first = len(self.ledger.fills)
        self._arrive(bar)
        self.settle(settlements)
        if (path := self._worse_path(bar)) is not None:
            self._walk(bar, path)
        self._end_pass(first, bar.close_time_ms)

    def settle(self, moments: Sequence[Moment]) -> None:
        """Add what is held to *moments*, which are now, and pay those whose rate is known."""
        for moment in moments:
            moment.held[self._account] = self.line.held
            if moment.rate is not None:
                self.pay(moment, moment.at_ms)

    def pay(self, moment: Moment, at_ms: int) -> None:
        """Pay *moment* at *at_ms*, and liquidate an account on cross margin that it ruins."""
        line = self.line
        assert moment.rate is not None
        line.pay_funding(moment.rate, moment.held.get(self._account, 0), moment.mark)
        line.set_liquidation_price(at_ms)
        if self.cross is not None:
            self.cross.match_mark(line, line.mark, at_ms)

    def is_passed_by(self, bar: Bar) -> bool:
        """Return whether *bar* changes no resting order and liquidates nothing."""
        line = self.line
        has_plan = line.protection.plan is not None
        if line.order is not None or (has_plan and is_timed(line)):
            return False
        if not passes(line.others, bar, line.protection.trail):
            return False
        return self.cross is None or not self.cross.is_liquidated_within(line, bar)

    def _worse_path(self, bar: Bar) -> int | None:
        """Return the path of *bar*, 0 or 1, that leaves less equity; 0 if both leave the same.

        None if neither path meets a resting order.
        """
        if self.is_passed_by(bar):
            return None
        equities = []
        for path in (0, 1):
            with TrialFills(self) as trial:
                self._walk(bar, path)
                equities.append(trial.equity(bar.close))
        return 0 if equities[0] <= equities[1] else 1

    def _match_open(self, bar: Bar, *, is_missed: bool) -> None:
        """Fill every market order at the open of *bar*, after the liquidations at that price.

        If the bar *is_missed*, market orders of decisions keep waiting for a quote.
        """
        at_ms = bar.open_time_ms
        self._match_liquidations(bar.open, at_ms)
        for resting in self.line.orders:
            if is_missed and resting.role in DECIDED:
                continue
            if resting.kind is OrderKind.MARKET and not self._is_younger(resting, bar):
                order = self.line.find(resting.order_id)
                if order is not None:
                    order = self._accepted(order)
                    self._take_all(order, bar.open, at_ms, FillModel.NEXT_OPEN)

    def _match_liquidations(self, mark: int, at_ms: int) -> None:
        """Liquidate the position if *mark* has reached its liquidation price, or the account."""
        self._liquidate_account(mark, mark, at_ms)
        order = self.line.protective(OrderRole.LIQUIDATION)
        if order is not None and touched(order, mark):
            liquidate(self.line, order, mark, at_ms)

    def _liquidate_account(self, start: int, end: int, at_ms: int) -> int | None:
        """Liquidate an account on cross margin if a price from *start* to *end* requires it.

        Returns that price, or None.
        """
        if self.cross is None or (self.trial is not None and self.trial.is_over):
            return None
        at = self.cross.first_liquidation(self.line, start, end)
        if at is not None:
            self._liquidate_all(self.cross, at, at_ms)
        return at

    def _liquidate_all(
        self, cross: CrossMargin, price: int, at_ms: int, *, is_ruined: bool = False
    ) -> None:
        """Liquidate the account; a trial of fills only ends, since no path leaves less."""
        if self.trial is not None:
            self.trial.is_over = True
        else:
            cross.liquidate(self.line, price, at_ms, is_ruined=is_ruined)

    def _walk(self, bar: Bar, path: int) -> None:
        """Match limits and stops after the open of *bar*, at every price along *path*, 0 or 1."""
        self._skip_younger(bar)
        for start, end in pairwise(_PATHS[path](bar)):
            at = start
            while True:
                first = self._next(at, end, bar.open_time_ms)
                liquidated_at = self._liquidate_account(
                    at, end if first is None else first[1], bar.close_time_ms - 1
                )
                if liquidated_at is not None:
                    at = liquidated_at
                elif first is not None:
                    order, at = first
                    self._match(order, at, bar.close_time_ms - 1)
                else:
                    break
            self._trail(end, end)

    def _skip_younger(self, bar: Bar) -> None:
        """Skip the orders that began to rest after the open of *bar*.

        They exist if quotes filled an order before a missed bar arrived late, or if orders reach
        the exchange bars later.
        """
        self._younger = {
            order.order_id for order in self.line.orders if self._is_younger(order, bar)
        }

    def _is_younger(self, order: Order, bar: Bar) -> bool:
        """Return whether *order* began to rest inside *bar*, by a quote's fill or a command.

        An order by a decision belongs to the close before, unless that bar was observed so late
        that *bar* had closed as well. If orders are delayed by bars, it begins to rest when it
        reaches the exchange.
        """
        if order.role in DECIDED:
            is_past = order.created_ms >= bar.close_time_ms
            return is_past or (self._delayed and order.eligible_ms > bar.open_time_ms)
        return order.created_ms > bar.open_time_ms

    def _arrive(self, bar: Bar) -> None:
        """Let orders arrive at the open of *bar*, and match those whose price the open passed.

        An arriving order takes at the open. A resting limit is filled at its own price, which the
        market passed on its way to the open.
        """
        self._skip_younger(bar)
        line, price, at_ms = self.line, bar.open, bar.open_time_ms
        for resting in line.orders:
            order = line.find(resting.order_id)
            if order is None or order.kind is OrderKind.MARKET or waits_for_next_bar(order, at_ms):
                continue
            if order.order_id in self._younger:
                continue
            if order.role is OrderRole.LIQUIDATION:
                if touched(order, price):
                    liquidate(line, order, price, at_ms)
                continue
            far = self._executor.far_side(price, order.side)
            if (admitted := self._admitted(order, far, price)) is None:
                continue
            order, may_take = admitted
            if order.price is None or (may_take and crosses(order, far)):
                self._take_all(order, price, at_ms)
            elif not may_take and is_through(order, price):
                self._make(order, at_ms)
        self._trail(price, price)

    def _next(self, start: int, end: int, opened_ms: int) -> tuple[Order, int] | None:
        """Return the order that a move from *start* to *end* meets first, and the price."""
        first: tuple[tuple[int, bool], Order, int] | None = None
        for order in self.line.orders:
            at = price_met(order, start, end)
            if (
                at is None
                or waits_for_next_bar(order, opened_ms)
                or order.order_id in self._younger
            ):
                continue
            rank = (abs(at - start), order.price is not None)
            if first is None or rank < first[0]:
                first = rank, order, at
        return None if first is None else first[1:]

    def _match(self, order: Order, price: int, at_ms: int) -> None:
        """Fill the limit that the path passed, or trigger the stop that it touched."""
        if order.role is OrderRole.LIQUIDATION:
            liquidate(self.line, order, price, at_ms)
            return
        if not is_waiting_stop(order):
            self._make(order, at_ms)
            return
        order = self._triggered(order)
        if order.price is None or crosses(order, self._executor.far_side(price, order.side)):
            self._take_all(order, price, at_ms)

    def _take_all(
        self, order: Order, price: int, at_ms: int, model: FillModel = FillModel.BAR_PATH
    ) -> None:
        """Fill all of *order* as taker, with the market at *price*.

        Orders of one direction share the bar's volume.
        """
        before = self.taken[order.side]

        def part(quantity: int | None = None) -> Fill:
            of_bar = before, self._volume
            return self._executor.taken(
                order, price, model, at_ms, quantity=quantity, of_bar=of_bar
            )

        self.taken[order.side] = before + self._apply_fill(order, part(), part)

    def _make(self, order: Order, at_ms: int) -> None:
        """Fill a resting limit as maker."""
        part = partial(self._made, order, FillModel.BAR_PATH, at_ms)
        self._apply_fill(order, part(order.quantity - order.filled), part)

    # ------------------------------------------------------------ quotes and bars

    def _trail(self, bid: int, ask: int) -> None:
        """Let trailing stops follow the market at *bid* and *ask*; they only become tighter."""
        if not (trail := self.line.protection.trail):
            return
        order = self.line.protective(OrderRole.TRAILING)
        if order is None or order.order_id in self._younger:
            return
        if moved := trailed_to(order, bid, ask, trail):
            tick = self._executor.tick
            steps = moved // tick if order.side is Side.SELL else -(-moved // tick)
            if steps * tick != order.trigger:
                trailed = after(order, OrderEvent.REPLACE, trigger=steps * tick)
                self._moved(order, trailed)

    def _triggered(self, order: Order) -> Order:
        return self._moved(order, after(order, OrderEvent.TRIGGER, triggered=True))

    def _moved(self, order: Order, moved: Order) -> Order:
        """Replace *order* by *moved*, its state after a move or a trigger.

        After a quote the old state is kept, since an older bar may still arrive.
        """
        return self.line.move(order, moved) if self._is_quote else self.line.note(moved)

    def _apply_fill(self, order: Order, fill: Fill, part: Callable[[int], Fill | None]) -> int:
        """Book *fill* of *order*, cut to what the account can pay; return the quantity booked.

        *part* returns the fill of a smaller quantity, with the impact of that.
        """
        line = self.line
        if _liquidates_instead(line, order, fill):
            if (left := line.find(order.order_id)) is not None:
                line.end(left, LIQUIDATED_FIRST)
            return 0
        if (refusal := self._refusal(fill)) is not None:
            affordable = None
            if order.role is not OrderRole.LIST:
                affordable = self._affordable(fill, part)
            if affordable is None:
                _end_short(line, order, refusal)
                return 0
            fill = affordable
        cross = self.cross
        if cross is not None and self.trial is None and cross.is_ruined_by(line, fill):
            self._liquidate_all(cross, fill.reference_price, fill.filled_ms, is_ruined=True)
            if (left := line.find(order.order_id)) is not None:
                line.end(left, LIQUIDATED_FIRST)
            return 0
        filled = line.apply(fill)
        if refusal is not None:
            _end_short(line, filled, refusal)
        return fill.quantity

    def _refusal(self, fill: Fill) -> str | None:
        """Return why the account cannot pay for *fill*, or None; a trial checks no margin."""
        if self.line.is_cash:
            is_paid = fill.side is Side.SELL or fill.notional + fill.fee <= self.ledger.cash
            return None if is_paid else NO_CASH
        return None if self.trial is not None else self.policy.refusal(self.line, fill)

    def _affordable(self, fill: Fill, part: Callable[[int], Fill | None]) -> Fill | None:
        """Return the largest *part* of *fill* that the account can pay, in whole steps; or None."""

        def is_paid(quantity: int) -> bool:
            smaller = part(quantity)
            return smaller is not None and self._refusal(smaller) is None

        most = largest_multiple(fill.quantity, self._executor.step, is_paid)
        return part(most) if most else None


def _end_short(line: Line, order: Order, refusal: str) -> None:
    """End *order*, which the account cannot pay; its rest is not ordered again."""
    line.end(order, refusal)
    if order.role is OrderRole.SIGNAL:
        line.shortfall = refusal


def _liquidates_instead(line: Line, order: Order, fill: Fill) -> bool:
    """Liquidate *line* instead if *fill* is beyond its bankruptcy price; return whether so.

    Nobody can close at a price beyond the bankruptcy price.
    """
    bound = line.protective(OrderRole.LIQUIDATION) if line.others else None
    if bound is None or order.role is OrderRole.LIQUIDATION or fill.side is not bound.side:
        return False
    assert bound.price is not None
    sells = fill.side is Side.SELL
    if not (fill.price < bound.price if sells else fill.price > bound.price):
        return False
    take_over(line, bound, fill.reference_price, fill.filled_ms)
    return True


# ---------------------------------------------------------------- whole events


_PATHS: Final = (
    attrgetter("open", "high", "low", "close"),
    attrgetter("open", "low", "high", "close"),
)


class TrialFills:
    """A context in which orders of one instrument are filled on trial, without margin checks.

    On exit the account and its position are as before.
    """

    def __init__(self, market: Market) -> None:
        self._market = market
        self.is_over = False  # the account was liquidated: no path leaves less

    def __enter__(self) -> Self:
        """Save the state; until the exit neither ledger nor strategies learn of fills."""
        market, line, ledger = self._market, self._market.line, self._market.ledger
        self._money, self._orders = vars(ledger).copy(), line.orders_state()
        self._holding, self._position = line.holding, line.position
        self._taken = market.taken.copy()
        ledger.clear()
        ledger.entries, ledger.unseen = None, {}
        line.holding = copy(line.holding)
        market.trial = self
        return self

    def __exit__(self, *_: object) -> None:
        """Restore the state."""
        market, line = self._market, self._market.line
        market.trial, market.taken = None, self._taken
        vars(market.ledger).update(self._money)
        line.holding, line.position = self._holding, self._position
        line.restore_orders(self._orders)

    def equity(self, price: int) -> int:
        """Return the equity with the instrument at *price*.

        If the account was liquidated it is the least possible number.
        """
        if self.is_over:
            return -MONEY_LIMIT
        line = self._market.line
        entry = 0 if line.is_cash else line.holding.entry_notional
        return line.ledger.cash + line.notional(price, line.held) - entry
