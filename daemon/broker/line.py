"""``Line``: one instrument in an account, in exact integers.

A line is a position at the exchange. It has the holding, the resting orders and the plan of its
exit orders, and it books fills and settlements.

Linear: cash = start + realized - fees - funding; equity = cash + unrealized. Spot and shares: cash
is the quote balance, start + realized - fees - entry notional of the holding; equity = cash + the
holding's value at the mark. A position stores its entry notional, since its average price may not
be a finite decimal.

There is at most one order by signal, since a new target replaces it. Orders by list and exit
orders are in ``others``, oldest first. A fill of a reduce-only order sets the target to the
position after it, and cancels the order by signal, which was computed for another position.

The rules are docs/money.md, M6 to M21, and docs/orders.md, B1 and B2.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from itertools import takewhile
from typing import Any, Final, TypeGuard

from msgspec import Struct
from msgspec.structs import replace

from tracepaper.daemon.broker.execution import Executor, MeanRange
from tracepaper.daemon.broker.exit_plans import Planner, ProtectionState
from tracepaper.daemon.broker.ledger import FillEntry, Ledger
from tracepaper.daemon.broker.orders import (
    DECIDED,
    ENDED,
    PROTECTIVE,
    FollowingTarget,
    OrderContext,
    OrderEvent,
    OrdersState,
    after,
    carried,
    terms_of,
    tighter,
    urgency,
)
from tracepaper.daemon.broker.rules import Filters, MarginRules
from tracepaper.daemon.broker.settings import BrokerSettings
from tracepaper.strategies.api.context import Cancel, OrderRequest
from tracepaper.strategies.errors import InvariantBroken
from tracepaper.strategies.holding import Holding, Movement
from tracepaper.strategies.types.decisions import (
    Fill,
    FillModel,
    LedgerEntry,
    LedgerKind,
    Order,
    OrderKind,
    OrderRole,
    OrderStatus,
    Position,
)
from tracepaper.strategies.types.market import Category, Instrument, Side
from tracepaper.strategies.units import RATE_SCALE, Notional, divide_half_even

RESTING_MOST: Final = 200
"""The most orders by list that may rest at a time."""
_STEPS_COUNTED: Final = 4_096
"""More than the bars of a close, which has one for each symbol of a venue."""


class LineState(Struct, frozen=True, array_like=True):
    """The stored state of a line."""

    holding: Holding
    orders: OrdersState
    protection: ProtectionState = ProtectionState()

    def taken_over(self) -> LineState:
        """Return the state for a run that continues another one."""
        return replace(self, orders=self.orders.taken_over())


def signed_quantity(fill: Fill) -> int:
    """Return the quantity of *fill*, negative for a sale."""
    return fill.quantity if fill.side is Side.BUY else -fill.quantity


class Line:
    """One instrument in an account."""

    __slots__ = (
        "_is_spot", "_orders_of_step", "before_quotes", "confirmed_ms", "executor", "exits",
        "filters", "following", "holding", "is_cash", "is_cross", "is_guarded", "isolated_rules",
        "item", "key", "ledger", "margin_rules", "mark", "mean_range", "notional", "order",
        "others", "planner", "position", "protection", "reason", "settings", "shortfall", "target",
    )  # fmt: skip
    executor: Executor
    filters: Filters
    planner: Planner

    def __init__(
        self,
        item: Instrument,
        settings: BrokerSettings,
        ledger: Ledger,
        *,
        mean_range: MeanRange | None = None,
    ) -> None:
        """Open the line of *item* in the account with *ledger*."""
        self.settings, self.ledger, self.key = settings, ledger, item.id
        self.is_cash = item.category.is_cash
        self._is_spot = item.category is Category.SPOT
        self.is_cross = settings.leverage is not None and settings.is_cross
        self.notional = Notional.of(item)
        self.holding = Holding()
        self.mark = 0  # 0 before the first price
        self.position = Position()  # the holding, valued at the mark
        self.margin_rules: MarginRules | None = None  # by which orders are accepted
        # Those by which an isolated position is liquidated.
        self.isolated_rules: MarginRules | None = None
        self.mean_range = mean_range
        self.order: Order | None = None  # by signal
        self.others: tuple[Order, ...] = ()
        # Orders that quotes moved or triggered, in their state at the newest bar not missed.
        self.before_quotes: tuple[Order, ...] = ()
        self.target = 0  # the last decided target, whether or not it could be reached
        self.reason = ""  # of the target
        self.shortfall = ""  # why less than the target was ordered or filled
        # Targets after that of the delayed order on its way; the last is `target`.
        self.following: tuple[FollowingTarget, ...] = ()
        self.confirmed_ms = 0  # open time of the bar whose decision was last allowed
        self._orders_of_step = (-1, 0)  # the current step, and the number of orders it created here
        self.exits = settings.exits
        self.protection = ProtectionState()  # the plan of the exit orders
        self.is_guarded = False  # an exit plan is active, or an entry waits for another signal
        self.change(item)

    def change(self, item: Instrument) -> None:
        """Use the exchange's new filters and risk tiers for new orders and prices from now on."""
        self.item, settings = item, self.settings
        costs = settings.costs_for(self.key)
        if settings.leverage is not None:
            self.margin_rules = MarginRules(
                item, settings.leverage, costs.taker_fee, is_cross=settings.is_cross
            )
            self.isolated_rules = None if settings.is_cross else self.margin_rules
        self.filters = Filters(item, costs, self.margin_rules)
        self.planner = Planner(item, self.exits)
        self.executor = Executor(item, costs, self.mean_range)

    def protect_by(self, state: ProtectionState) -> None:
        """Replace the plan of the exit orders and what belongs to it by *state*."""
        if state == self.protection:
            return  # a repeated entry names the same plan: no new state to store
        self.protection = state
        self.is_guarded = state.plan is not None or state.closed != 0
        self.ledger.has_changes = True

    # ------------------------------------------------------------ the holding and its value

    @property
    def held(self) -> int:
        """The quantity of the holding, signed."""
        return self.holding.quantity

    @property
    def entry_price(self) -> int:
        """The average entry price of the holding, half-even; there must be one."""
        held = self.holding
        unit = abs(held.quantity) * self.notional.multiplier
        return divide_half_even(abs(held.entry_notional) * self.notional.divisor, unit)

    def value(self, quantity: int) -> int:
        """Return the value of *quantity* at the newest mark, in money."""
        return self.notional(self.mark, quantity)

    def mark_to(self, price: int) -> None:
        """Value the holding at *price* from now on."""
        if self.mark != price:
            self.mark = price
            if self.holding.quantity:
                self._revalue()

    def profits_at(self, prices: Sequence[int], held: Holding | Position) -> list[int]:
        """Return the unrealized profit of *held*, of this instrument, at each of *prices*."""
        quantity, entry, value_at = held.quantity, held.entry_notional, self.notional
        if not quantity:
            return [0] * len(prices)
        return [value_at(price, quantity) - entry for price in prices]

    def _revalue(self) -> None:
        """Value the holding at the mark; before the first price, as taken over, at its entry."""
        holding = self.holding
        (unrealized,) = self.profits_at((self.mark,), holding) if self.mark else (0,)
        self.ledger.unrealized += unrealized - self.position.unrealized_pnl
        self.position = Position(
            holding.quantity,
            holding.entry_notional,
            holding.realized_pnl,
            unrealized,
            holding.fees_paid,
            holding.funding_paid,
            holding.margin,
        )
        self.ledger.valued = None

    def post_holding(self) -> None:
        """Value the holding, and add its changes to the sums of the account."""
        holding, before, ledger = self.holding, self.position, self.ledger
        self._revalue()
        ledger.realized += holding.realized_pnl - before.realized_pnl
        ledger.fees += holding.fees_paid - before.fees_paid
        ledger.funding += holding.funding_paid - before.funding_paid
        ledger.bound += holding.margin - before.margin
        if self.is_cash:
            ledger.paid_entries += holding.entry_notional - before.entry_notional

    # ------------------------------------------------------------ fills and funding

    def move_cash(self, movement: Movement, order_id: str | None = None) -> None:
        """Change the cash of the account.

        A step changes cash nowhere else. In the run's account each change is a ledger entry.
        """
        kind, amount = movement
        if not amount:
            return
        ledger = self.ledger
        ledger.cash += amount
        if ledger.entries is not None:
            ledger.entries.append(LedgerEntry(kind, amount, ledger.cash, self.key, order_id))

    def apply(self, fill: Fill) -> Order:
        """Apply *fill* to the position and its order; return the order after it."""
        before = self.position
        self.post(fill)
        order = self.fill_order(fill)
        self.ledger.fills.append(FillEntry(fill, order, before, self.position))
        # The rest of the event meets the changed position.
        self.set_liquidation_price(fill.filled_ms, amends_only=True)
        return order

    def post(self, fill: Fill) -> None:
        """Book *fill*: holding, cash and fees."""
        holding = self.holding
        before = holding.quantity
        if self.is_cash and -signed_quantity(fill) > before:
            raise InvariantBroken(f"sold {fill.quantity} of {before} held")
        for movement in holding.fill(
            signed_quantity(fill),
            fill.notional,
            fill.fee,
            fill.fee_base,
            is_cash=self.is_cash,
            is_liquidation=fill.model is FillModel.LIQUIDATION,
            required=None if self.isolated_rules is None else self.isolated_rules.required,
        ):
            self.move_cash(movement, fill.order_id)
        if before * holding.quantity <= 0:
            holding.opened_ms = fill.filled_ms if holding.quantity else 0
        if (unseen := self.ledger.unseen.get(self.key)) is not None:
            unseen.append(fill)
        self.post_holding()

    def pay_funding(self, rate: int, held: int, mark: int) -> None:
        """Settle funding of *rate*, 10⁻¹⁰ of the value of the signed quantity *held* at *mark*.

        An isolated position pays from the available balance first, then from its margin. It never
        pays more than both.
        """
        holding = self.holding
        if not held or self.is_cash:
            return
        paid = divide_half_even(self.notional(mark, held) * rate, RATE_SCALE)
        if self.isolated_rules is not None:
            available = max(self.ledger.available, 0)
            paid = min(paid, available + holding.margin)
            holding.margin -= max(paid - available, 0)
        self.post_funding(paid)

    def post_funding(self, paid: int) -> None:
        """Book *paid* as funding."""
        self.holding.funding_paid += paid
        self.move_cash((LedgerKind.FUNDING, -paid))
        self.post_holding()

    # ------------------------------------------------------------ resting orders

    @property
    def rests(self) -> bool:
        """Whether any order rests, or follows one."""
        return self.order is not None or bool(self.others) or bool(self.following)

    @property
    def orders(self) -> tuple[Order, ...]:
        """Every resting order, in the order in which they meet the market.

        Stops come first and targets last, so that doubtful cases end with the worse result.
        """
        signalled = () if self.order is None else (self.order,)
        if not self.others:
            return signalled
        return tuple(sorted((*signalled, *self.others), key=urgency))

    def next_id(self) -> str:
        """Return the id of the next order that this step creates here.

        It is the number of the step and a count within the step. The account keeps counts by step,
        since the steps of a close interleave: each bar fills orders before the first is decided.
        """
        step, counts = self.ledger.step.number, self.ledger.counts
        last, here = self._orders_of_step
        self._orders_of_step = step, here + 1 if last == step else 1
        count = counts.get(step, 0)
        if not count and len(counts) >= _STEPS_COUNTED:
            del counts[next(iter(counts))]
        counts[step] = count + 1
        return f"{step}-{count}"

    def find(self, order_id: str) -> Order | None:
        """Return the resting order with that id, or None."""
        if (order := self.order) is not None and order.order_id == order_id:
            return order
        return next((other for other in self.others if other.order_id == order_id), None)

    # ------------------------------------------------------------ changes of orders

    def note(self, order: Order) -> Order:
        """Record the new state of *order*, resting or ended, and return it."""
        self._keep(order)
        return self.record(order)

    def record(self, order: Order) -> Order:
        """Record *order*, which changed, and return it."""
        self.ledger.has_changes = True
        self.ledger.orders[order.order_id] = order
        return order

    def add(self, order: Order) -> None:
        """Let the new *order* rest."""
        self.others += (self.record(order),)

    def _keep(self, order: Order) -> None:
        ended = order.status in ENDED
        if self.order is not None and order.order_id == self.order.order_id:
            self.order = None if ended else order
        else:
            kept = [other if other.order_id != order.order_id else order for other in self.others]
            self.others = tuple(other for other in kept if other.status not in ENDED)
        if self.before_quotes:
            self.before_quotes = tuple(
                other for other in self.before_quotes if other.order_id != order.order_id
            )

    def move(self, order: Order, moved: Order) -> Order:
        """Replace *order* by *moved*, its state after a quote moved or triggered it.

        The state before is kept for :meth:`rewind`.
        """
        first = next(
            (other for other in self.before_quotes if other.order_id == order.order_id), order
        )
        self.note(moved)
        self.before_quotes += (first,)
        return moved

    def rewind(self) -> dict[str, Order]:
        """Undo the moves of orders by quotes; return the moved states by order id.

        A missed bar may arrive after quotes that are newer than it.
        """
        old = {order.order_id: order for order in self.before_quotes}
        newer = {order.order_id: order for order in self.others if order.order_id in old}
        self.others = tuple(old.get(order.order_id, order) for order in self.others)
        self.before_quotes = ()
        return newer

    def resume(self, newer: Mapping[str, Order], opened_ms: int) -> None:
        """Undo :meth:`rewind` after the bar that opened at *opened_ms*.

        A trailing stop keeps the tighter one of the triggers that bar and quotes gave it.
        """
        for order in self.others:
            if (later := newer.get(order.order_id)) is None:
                continue
            later = replace(later, quantity=order.quantity, trigger=tighter(order, later))
            (self.note if order.order_id in self.ledger.orders else self._keep)(later)
            if order.created_ms <= opened_ms:  # else the order is newer than the bar
                self.before_quotes += (order,)

    def end(self, order: Order, reason: str, event: OrderEvent = OrderEvent.CANCEL) -> Order:
        """End *order* by *event* and return it; its reason becomes *reason*."""
        return self.note(after(order, event, reason=reason))

    def fill_order(self, fill: Fill) -> Order:
        """Apply *fill*, which is already booked, to its order and the orders beside it.

        Returns the order after the fill.
        """
        order = self.find(fill.order_id)
        if order is None:
            raise InvariantBroken(f"a fill of order {fill.order_id}, which does not rest")
        filled = order.filled + fill.quantity
        event = OrderEvent.FILL_REST if filled == order.quantity else OrderEvent.FILL_PART
        is_by_signal = order is self.order
        filled_order = self.note(after(order, event, filled=filled))
        if not is_by_signal and order.reduce_only:
            self._close_first(order)
        elif not is_by_signal:
            bought = fill.side is Side.BUY
            self.target += fill.quantity - fill.fee_base if bought else -fill.quantity
        self.resize()
        return filled_order

    def _close_first(self, order: Order) -> None:
        """Shrink or end the order by signal after *order* reduced the position.

        The order by signal was computed for another position, so it ends. If *order* is protective
        and the order by signal reverses the position, the rest of the reversal stays.
        """
        signed_target = self.target if order.side is Side.BUY else -self.target
        reverses = order.role in PROTECTIVE and signed_target > 0
        needed = self._whole_steps(abs(self.target - self.held)) if reverses else 0
        if not needed:
            self.target, self.following = self.held, ()
        self._shrink(0 if self.following else needed)

    def _shrink(self, needed: int) -> None:
        """Shrink the order by signal to the quantity *needed*, or end it where that is 0."""
        if (rest := self.order) is None or needed >= rest.quantity - rest.filled:
            return
        if needed:
            self.note(after(rest, OrderEvent.REPLACE, quantity=rest.filled + needed))
        else:
            self.end(rest, "another order closed the position first")

    def resize(self) -> None:
        """Shrink reduce-only orders to the position, and cancel those it leaves nothing."""
        for order in self.others:
            if not order.reduce_only:
                continue
            most = self._closable_by(order.side)
            if most == 0:
                self.end(order, "the position that it was to close is gone")
            elif order.quantity - order.filled > most:
                self.note(after(order, OrderEvent.REPLACE, quantity=order.filled + most))

    def _closable_by(self, side: Side) -> int:
        """Return how much of the position an order of *side* can close, in whole steps."""
        closes = self.held < 0 if side is Side.BUY else self.held > 0
        return self.closable if closes else 0

    @property
    def closable(self) -> int:
        """How much of the position can be closed, unsigned: less than a step cannot."""
        return self._whole_steps(abs(self.held))

    def _whole_steps(self, quantity: int) -> int:
        """Return *quantity* (unsigned) rounded down to whole steps."""
        return quantity - quantity % self.item.quantity_step

    def expire(self, market_ms: int, *, unfilled: bool = True) -> None:
        """Cancel the orders whose time is over; with *unfilled* also market orders left unfilled.

        Those are orders by decisions that no quote filled within ``fill_within_ms``.
        """
        for order in self.orders:
            if order.until_ms is not None and market_ms >= order.until_ms:
                self.end(order, "its time is over", OrderEvent.EXPIRE)
            elif (
                unfilled
                and order.kind is OrderKind.MARKET
                and order.role in DECIDED
                and market_ms - order.eligible_ms > self.settings.fill_within_ms
            ):
                within = f"no quote filled it within {self.settings.fill_within_ms:,} ms"
                self.end(order, within, OrderEvent.EXPIRE)

    # ------------------------------------------------------------ by signal

    def submit(
        self, target: int, reason: str, context: OrderContext, *, by_command: bool = False
    ) -> str | None:
        """Place the order that moves the position to *target*; return why it is smaller or missing.

        Each repetition of the target computes the reason anew. A reversal is one order. An order
        for more than the account can pay for is cut, and the rest is not ordered again, since that
        would be a hidden limit order. A refused order *by_command* is recorded as REJECTED, since
        no decision holds its reason.
        """
        if by_command:
            self.following = ()
        is_ordered = self.order is not None and target == self.target
        before = self.target
        if target != before:
            self.target, self.reason, self.shortfall = target, reason, ""
            self.ledger.has_changes = True
            if not by_command and self._follows(target, before, context):
                due_ms = self._eligible_ms(context)
                self.following += (FollowingTarget(before, target, reason, due_ms),)
        if is_ordered or self.following:
            return None
        if self.shortfall and target * self.held > 0 and not self.is_reached(target):
            return self.shortfall
        role = OrderRole.COMMAND if by_command else OrderRole.SIGNAL
        return self._order_to(target, reason, context, role)

    def _order_to(
        self,
        target: int,
        reason: str,
        context: OrderContext,
        role: OrderRole = OrderRole.SIGNAL,
        due_ms: int | None = None,
    ) -> str | None:
        """Order what *target* needs, in place of the order on its way, to arrive at *due_ms*.

        Returns why it is smaller or missing. A delayed order that only changes the size of the one
        on its way is not later: otherwise a target that changes at every bar is never reached.
        """
        if (order := self.order) is not None:
            self.end(order, "another target")
        if self.is_reached(target):
            return None
        needed = target - self.held
        placed = self._new_order(
            _side(needed), self._quantity_of(needed), reason, context, role=role
        )
        if due_ms is None and self._is_delayed(order, context) and order.side is placed.side:
            due_ms = order.eligible_ms
        if due_ms is not None:
            placed = replace(
                placed, eligible_ms=max(min(placed.eligible_ms, due_ms), placed.created_ms)
            )
        placed, refusal, shortfall = self._judged(placed, target, context)
        self.ledger.has_changes |= (shortfall or "") != self.shortfall
        self.shortfall = shortfall or ""
        if refusal is None:
            self.order = self.record(after(placed, OrderEvent.ACCEPT))
        elif role is OrderRole.COMMAND:
            self.record(after(placed, OrderEvent.REJECT, reason=shortfall))
        return shortfall

    def _judged(
        self, placed: Order, target: int, context: OrderContext
    ) -> tuple[Order, str | None, str | None]:
        """Return the order *placed*, cut to the cash, why it is refused, and why it is smaller."""
        held, price, filters = self.held, context.price, self.filters
        refusal = filters.refusal(placed, price, reduces=target == 0)
        refusal = refusal or filters.tier_refusal(held, target, price)
        if refusal is not None:
            return placed, refusal, refusal
        covered = filters.affordable(placed.side, placed.quantity, held, price, context.cash)
        if covered == placed.quantity:
            return placed, None, None
        closes = target * held < 0 and covered == abs(held)
        placed = replace(placed, quantity=covered)
        return placed, filters.refusal(placed, price, reduces=closes), filters.no_funds

    def _is_delayed(self, order: Order | None, context: OrderContext) -> TypeGuard[Order]:
        """Return whether *order* is on its way, delayed by bars."""
        bars = self.settings.latency.bars
        return bool(bars) and order is not None and order.eligible_ms >= context.at_ms

    def _follows(self, target: int, before: int, context: OrderContext) -> bool:
        """Return whether the order to *target* waits for the one on its way, to *before*.

        Each has its own delay: the new order would take back the one on its way, or take along an
        entry on the other side.
        """
        order = self.order
        if self.following:
            return True
        return self._is_delayed(order, context) and not (
            order.side is _side(target - self.held) and before * target > 0
        )

    def place_following(self, context: OrderContext) -> None:
        """Order the next target that follows, once the order before it has arrived."""
        while self.following and not self._is_delayed(self.order, context):
            (new, *others) = self.following
            self.following = tuple(others)
            self._order_to(new.target, new.reason, context, due_ms=new.due_ms)
            self.ledger.has_changes = True

    def keep_exits(self) -> None:
        """Forget the targets that follow, from the first that is not 0 on."""
        exits = tuple(takewhile(lambda new: not new.target, self.following))
        if len(exits) < len(self.following):
            self.target = self.following[len(exits)].follows
            self.following = exits
            self.ledger.has_changes = True

    def is_reached(self, target: int) -> bool:
        """Return whether the position is *target*; on spot within one step, for fees in base."""
        near = self.item.quantity_step if self._is_spot else 0
        return abs(target - self.held) <= near

    def affordable(self, target: int, price: int, funds: int) -> int:
        """Return *target*, or as much of it as *funds* pay for at *price*.

        *funds* is cash, on margin only what no position binds.
        """
        held = self.held
        side, quantity = _side(target - held), self._quantity_of(target - held)
        covered = self.filters.affordable(side, quantity, held, price, funds)
        if covered == quantity:
            return target
        if side is Side.SELL:
            return held - covered
        rate = RATE_SCALE - (self.executor.costs.taker_fee if self._is_spot else 0)
        return held + self._whole_steps(covered * rate // RATE_SCALE)

    def _quantity_of(self, needed: int) -> int:
        """Return the quantity of a market order that moves a position by *needed*, signed."""
        quantity = abs(needed)
        if self._is_spot and needed > 0:
            # The fee is paid in base: *needed* must be left after it.
            step = self.item.quantity_step
            gross = -(-quantity * RATE_SCALE // (RATE_SCALE - self.executor.costs.taker_fee))
            quantity = -(-gross // step) * step
        return self._whole_steps(quantity)

    def _new_order(
        self,
        side: Side,
        quantity: int,
        reason: str,
        context: OrderContext,
        **terms: Any,  # noqa: ANN401
    ) -> Order:
        """Return a new order of a decision; it reaches the exchange after the latency."""
        order_id = self.next_id()
        return Order(
            order_id, self.key, side, quantity, 0, OrderStatus.NEW, reason, context.at_ms,
            self._eligible_ms(context, self._orders_of_step[1] - 1), **terms,
        )  # fmt: skip

    def _eligible_ms(self, context: OrderContext, ordinal: int = 0) -> int:
        """Return when the order of a decision reaches the exchange."""
        latency = self.settings.latency
        return latency.eligible_ms(context.at_ms, self.key, context.opened_ms, ordinal)

    # ------------------------------------------------------------ by list

    def send(
        self, requests: Iterable[OrderRequest | Cancel], reason: str, context: OrderContext
    ) -> None:
        """Execute the *requests* of a list, in their order.

        An order that the exchange would refuse is recorded as REJECTED with the reason. A refused
        replacement leaves the resting order as it is.
        """
        for request in requests:
            if isinstance(request, Cancel):
                self.cancel_listed(request.tag, "canceled by the strategy")
            else:
                self._place(request, reason, context)

    def cancel_listed(self, tag: str, reason: str, *, opening_only: bool = False) -> None:
        """Cancel the orders by list with *tag*; with an empty one all of them."""
        for order in self._listed():
            if not (tag and order.tag != tag) and not (opening_only and order.reduce_only):
                self.end(order, reason)

    def _place(self, request: OrderRequest, reason: str, context: OrderContext) -> None:
        order, refusal = self._order_of(request, reason, context)
        if refusal is not None:
            self.record(after(order, OrderEvent.REJECT, reason=refusal))
            return
        if request.tag:
            same = [other for other in self._listed() if other.tag == request.tag]
            if any(terms_of(other) == terms_of(order) for other in same):
                return
            self.cancel_listed(request.tag, "replaced")
        self.add(order)

    def _listed(self) -> list[Order]:
        """Return the resting orders by list."""
        return [order for order in self.others if order.role is OrderRole.LIST]

    def _order_of(
        self, request: OrderRequest, reason: str, context: OrderContext
    ) -> tuple[Order, str | None]:
        """Return the order of *request*, and why the exchange would refuse it, or None."""
        filters, held = self.filters, self.held
        terms = filters.terms(request)
        # Spot and shares cannot be sold short.
        reduce_only = request.reduce_only or (self.is_cash and request.side is Side.SELL)
        closing = self._closable_by(request.side)
        order = self._new_order(
            request.side,
            min(terms.quantity, closing) if reduce_only and closing else terms.quantity,
            request.reason or reason,
            context,
            kind=request.kind,
            role=OrderRole.LIST,
            price=terms.price,
            trigger=terms.trigger,
            post_only=request.post_only,
            reduce_only=reduce_only,
            until_ms=request.until,
            tag=request.tag,
        )
        price = order.price or order.trigger or context.price
        signed = order.quantity if order.side is Side.BUY else -order.quantity
        listed = [other for other in self._listed() if not request.tag or other.tag != request.tag]
        bound = sum(
            filters.bound(
                other.quantity - other.filled,
                other.price or other.trigger or context.price,
                other.side,
            )
            for other in listed
            if not other.reduce_only and other.side is order.side
        )
        funds = context.cash - bound
        is_paid = reduce_only or filters.covers(order.side, order.quantity, held, price, funds)
        nothing = "it is reduce-only, and there is no position for it to close"
        is_over = request.until is not None and request.until <= context.at_ms
        refusals = (
            (True, terms.refusal),
            (reduce_only and not closing, nothing),
            (is_over, "its time is over already"),
            (len(listed) >= RESTING_MOST, f"{RESTING_MOST} orders by list rest already"),
            (True, filters.price_refusal(order, context.price)),
            (True, filters.refusal(order, price, reduces=reduce_only)),
            (not reduce_only, filters.tier_refusal(held, held + signed, price)),
            (not is_paid, filters.no_funds),
        )
        return order, next((why for is_so, why in refusals if is_so and why), None)

    def reach(self, requests: Sequence[OrderRequest | Cancel]) -> tuple[int, bool]:
        """Return the largest position (unsigned) that *requests* and resting orders could lead to.

        Either all buys or all sells are assumed to fill, whichever leads further. The second value
        says whether all of *requests* can only reduce.
        """
        opened = {Side.BUY: 0, Side.SELL: 0}
        only_reduces = True
        replaced = {request.tag for request in requests if request.tag}
        cancels_all = any(isinstance(request, Cancel) and not request.tag for request in requests)
        for order in () if cancels_all else self._listed():
            if not order.reduce_only and order.tag not in replaced:
                opened[order.side] += order.quantity - order.filled
        for request in requests:
            if isinstance(request, Cancel) or request.reduce_only:
                continue
            if self.is_cash and request.side is Side.SELL:
                continue
            only_reduces = False
            opened[request.side] += self.filters.terms(request).quantity
        most = max(abs(self.held + opened[Side.BUY]), abs(self.held - opened[Side.SELL]))
        return most, only_reduces

    # ------------------------------------------------------------ exit orders

    def exit_order(
        self,
        *,
        role: OrderRole,
        reason: str,
        at_ms: int,
        quantity: int,
        price: int | None = None,
        trigger: int | None = None,
    ) -> Order:
        """Return a new order, not yet accepted, that closes *quantity* of the position."""
        kind, side = OrderKind.of(price, trigger), Side.SELL if self.held > 0 else Side.BUY
        return Order(
            self.next_id(), self.key, side, quantity, 0, OrderStatus.NEW, reason, at_ms, at_ms,
            kind, role, price, trigger, reduce_only=True,
        )  # fmt: skip

    def protective(self, role: OrderRole) -> Order | None:
        """Return the resting protective or liquidation order of *role*, or None."""
        return next((order for order in self.others if order.role is role), None)

    def set_liquidation_price(self, at_ms: int, *, amends_only: bool = False) -> None:
        """Place or amend the liquidation order of an isolated position.

        It triggers like a stop, at the liquidation price, and closes the position at the
        bankruptcy price wherever the market is. With *amends_only* no new order is placed.
        """
        if (rules := self.isolated_rules) is None:
            return
        holding, held = self.holding, self.held
        bounds = rules.bounds(holding.entry_notional, held, holding.margin) if held else None
        armed = self.protective(OrderRole.LIQUIDATION)
        quantity = self.closable
        if bounds is None or not quantity:
            if armed is not None and not amends_only:  # the exchange's step grew
                self.end(armed, "nothing is held")
        elif armed is not None:
            amended = replace(
                armed, quantity=armed.filled + quantity, trigger=bounds.liquidation,
                price=bounds.bankruptcy, reason=bounds.reason, triggered=False,
            )  # fmt: skip
            if amended != armed:
                self.note(after(amended, OrderEvent.REPLACE))
        elif not amends_only:
            order = self.exit_order(
                role=OrderRole.LIQUIDATION, reason=bounds.reason, at_ms=at_ms,
                quantity=quantity, price=bounds.bankruptcy, trigger=bounds.liquidation,
            )  # fmt: skip
            self.add(after(order, OrderEvent.ACCEPT))

    # ------------------------------------------------------------ state

    def state(self) -> LineState:
        """Return the state to store."""
        return LineState(self.holding, self.orders_state(), self.protection)

    def orders_state(self) -> OrdersState:
        """Return the stored state of the orders."""
        return OrdersState(*carried(self))

    def restore_orders(self, state: OrdersState) -> None:
        """Restore the stored *state* of the orders."""
        for name in OrdersState.__struct_fields__:
            setattr(self, name, getattr(state, name))

    def restore(self, state: LineState) -> None:
        """Restore the stored *state*; the bars that are fed again set the mark."""
        self.hold(state.holding)
        self.restore_orders(state.orders)
        self.protect_by(state.protection)

    def hold(self, holding: Holding) -> None:
        """Replace the holding by *holding*, which may come from an account with another margin."""
        held = self.holding = copy(holding)
        if self.isolated_rules is None:
            held.margin = 0
        elif held.quantity and not held.margin:  # taken over from a run without margin
            needed = self.isolated_rules.required(held.entry_notional)
            held.margin = max(min(needed, self.ledger.available), 0)
        self.post_holding()


def _side(needed: int) -> Side:
    return Side.BUY if needed > 0 else Side.SELL
