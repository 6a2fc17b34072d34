"""Resting orders of one instrument in one book: the order state table, netting, lists.

There is at most one order by signal, since a new target replaces it. Orders by list and exit
orders are in ``others``, oldest first. A fill of a reduce-only order sets the target to the
position after it, and cancels the order by signal, which was computed for another position.

The rules are docs/money.md, M6 to M9, and docs/orders.md, B1 and B2.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from operator import attrgetter
from typing import Any, Final, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from tracepaper.daemon.broker.journal import Journal, taken_over_id
from tracepaper.daemon.broker.rules import Filters, MarginRules
from tracepaper.daemon.broker.settings import BrokerSettings
from tracepaper.daemon.broker.totals import Totals
from tracepaper.strategies.api.context import Cancel, OrderRequest
from tracepaper.strategies.errors import InvariantBroken
from tracepaper.strategies.types.decisions import (
    Fill,
    FillModel,
    Order,
    OrderKind,
    OrderRole,
    OrderStatus,
)
from tracepaper.strategies.types.market import Category, CommandKind, Instrument, Side
from tracepaper.strategies.units import MONEY_LIMIT, RATE_SCALE

FLATTEN: Final = CommandKind.FLATTEN.value
"""The reason on an order by the operator's command, which never expires unfilled."""
RESTING_MOST: Final = 200
"""The most orders by list that may rest at a time."""
PROTECTIVE: Final = frozenset(
    {OrderRole.STOP, OrderRole.TARGET, OrderRole.TRAILING, OrderRole.UNTIL}
)


class OrderEvent(StrEnum):
    """The events in the life of an order."""

    ACCEPT = "accept"  # it reached the exchange and rests
    REJECT = "reject"
    REPLACE = "replace"  # amended in place
    TRIGGER = "trigger"  # a stop's price was touched
    FILL_PART = "fill_part"
    FILL_REST = "fill_rest"
    CANCEL = "cancel"
    EXPIRE = "expire"


NEXT: Final = {
    (OrderStatus.NEW, OrderEvent.ACCEPT): OrderStatus.ACCEPTED,
    (OrderStatus.NEW, OrderEvent.REJECT): OrderStatus.REJECTED,
    (OrderStatus.NEW, OrderEvent.REPLACE): OrderStatus.NEW,
    (OrderStatus.NEW, OrderEvent.CANCEL): OrderStatus.CANCELED,
    (OrderStatus.NEW, OrderEvent.EXPIRE): OrderStatus.CANCELED,
    (OrderStatus.ACCEPTED, OrderEvent.REPLACE): OrderStatus.ACCEPTED,
    (OrderStatus.ACCEPTED, OrderEvent.TRIGGER): OrderStatus.ACCEPTED,
    (OrderStatus.ACCEPTED, OrderEvent.FILL_PART): OrderStatus.PARTIALLY_FILLED,
    (OrderStatus.ACCEPTED, OrderEvent.FILL_REST): OrderStatus.FILLED,
    (OrderStatus.ACCEPTED, OrderEvent.CANCEL): OrderStatus.CANCELED,
    (OrderStatus.ACCEPTED, OrderEvent.EXPIRE): OrderStatus.CANCELED,
    (OrderStatus.PARTIALLY_FILLED, OrderEvent.REPLACE): OrderStatus.PARTIALLY_FILLED,
    # A liquidation order, at the next risk tier:
    (OrderStatus.PARTIALLY_FILLED, OrderEvent.TRIGGER): OrderStatus.PARTIALLY_FILLED,
    (OrderStatus.PARTIALLY_FILLED, OrderEvent.FILL_PART): OrderStatus.PARTIALLY_FILLED,
    (OrderStatus.PARTIALLY_FILLED, OrderEvent.FILL_REST): OrderStatus.FILLED,
    (OrderStatus.PARTIALLY_FILLED, OrderEvent.CANCEL): OrderStatus.CANCELED,
    (OrderStatus.PARTIALLY_FILLED, OrderEvent.EXPIRE): OrderStatus.CANCELED,
}


def advance(status: OrderStatus, event: OrderEvent) -> OrderStatus:
    """Return the status after *event*; raise ``InvariantBroken`` for a pair that is not listed."""
    if (after := NEXT.get((status, event))) is None:
        raise InvariantBroken(f"an order that is {status} cannot {event}")
    return after


def after(order: Order, event: OrderEvent, **changed: object) -> Order:
    """Return *order* after *event*, with the *changed* fields."""
    return replace(order, status=advance(order.status, event), **changed)


class OrdersState(Struct, frozen=True, array_like=True):
    """The stored state of the resting orders of an instrument."""

    target: int = 0
    reason: str = ""
    confirmed_ms: int = 0
    order: Order | None = None
    others: tuple[Order, ...] = ()
    before_quotes: tuple[Order, ...] = ()
    shortfall: str = ""
    canceling: tuple[str, ...] = ()  # ids of orders with a cancellation on its way

    def taken_over(self) -> OrdersState:
        """Return the orders for a run that continues another one."""
        return replace(
            self,
            order=None if self.order is None else _taken_over(self.order),
            others=tuple(map(_taken_over, self.others)),
            before_quotes=tuple(map(_taken_over, self.before_quotes)),
            canceling=tuple(map(taken_over_id, self.canceling)),
        )


class OrderContext(NamedTuple):
    """The time of a decision, and the state of market and account at that time."""

    at_ms: int  # market time
    opened_ms: int  # open time of the deciding bar
    price: int  # the newest close, from which the notional is computed
    held: int  # signed
    cash: int = MONEY_LIMIT  # available for the order
    position: int = 0  # for orders by list: the account's position, signed


class RestingOrders:
    """The resting orders of one instrument in one book: of a position, or of an owner's share.

    The journal of the account records every order that changes.
    """

    def __init__(
        self,
        instrument: Instrument,
        settings: BrokerSettings,
        *,
        book: Totals | None = None,
        net: RestingOrders | None = None,
    ) -> None:
        """Hold the orders of *book*; for an owner's share, *net* are those of the whole position.

        If order books fill orders, a strategy's cancellation takes effect after the latency. Until
        then the order can be filled.
        """
        costs = settings.costs_for(instrument.id)
        self.filters = Filters(instrument, costs)
        self._spot = instrument.category is Category.SPOT
        self._is_cash = instrument.category.is_cash
        self._costs = costs
        self._latency, self._fill_within_ms = settings.latency, settings.fill_within_ms
        self._cancel_ms = self._latency.fixed_ms if settings.execution is FillModel.BOOK else 0
        self.canceling: tuple[str, ...] = ()  # ids of orders with a cancellation on its way
        self.journal = Journal() if book is None else book.journal
        self._side = None if book is None else book.side
        self._owner = "" if book is None else book.owner
        self._net = net
        self.order: Order | None = None
        self.others: tuple[Order, ...] = ()
        # Orders that quotes moved or triggered, in their state at the newest bar not missed.
        self.before_quotes: tuple[Order, ...] = ()
        self.target = 0  # the last decided target, whether or not it could be reached
        self.reason = ""  # of the target
        self.shortfall = ""  # why less than the target was ordered or filled
        self.confirmed_ms = 0  # open time of the bar whose decision was last allowed
        self._orders_of_step = (-1, 0)  # the current step, and the number of orders it created here

    @property
    def rests(self) -> bool:
        """Whether any order rests."""
        return self.order is not None or bool(self.others)

    @property
    def orders(self) -> tuple[Order, ...]:
        """Every resting order, in the order in which they meet the market.

        Stops come first and targets last, so that doubtful cases end with the worse result.
        """
        signalled = () if self.order is None else (self.order,)
        if not self.others:
            return signalled
        return tuple(sorted((*signalled, *self.others), key=urgency))

    def leads_on(self, held: int) -> bool:
        """Return whether a resting order by signal still moves the position *held*.

        For a share that is the account's net order, if it moves towards the share's target.
        """
        if self._net is None:
            return self.order is not None
        if (rest := self._net.order) is None:
            return False
        return self.target > held if rest.side is Side.BUY else self.target < held

    def change(self, instrument: Instrument, margin: MarginRules | None = None) -> None:
        """Use new filters and *margin* rules for new orders; resting ones stay as accepted."""
        self.filters = Filters(instrument, self._costs, margin)

    def state(self) -> OrdersState:
        """Return the state to store."""
        return OrdersState(*_carried(self))

    def restore(self, state: OrdersState) -> None:
        """Restore the stored *state*."""
        for name in OrdersState.__struct_fields__:
            setattr(self, name, getattr(state, name))

    def next_id(self) -> str:
        """Return the id of the next order that this step creates here."""
        (last, count), sequence = self._orders_of_step, self.journal.sequence
        self._orders_of_step = sequence, count + 1 if last == sequence else 1
        return self.journal.next_id()

    def find(self, order_id: str) -> Order | None:
        """Return the resting order with that id, or None."""
        if (order := self.order) is not None and order.order_id == order_id:
            return order
        return next((other for other in self.others if other.order_id == order_id), None)

    # ------------------------------------------------------------ changes of orders

    def note(self, order: Order) -> Order:
        """Record the new state of *order*, resting or ended, and return it."""
        self._keep(order)
        return self.journal.note(order)

    def add(self, order: Order) -> None:
        """Let the new *order* rest."""
        self.others += (self.journal.note(order),)

    def _keep(self, order: Order) -> None:
        ended = order.status in _ENDED
        if self.order is not None and order.order_id == self.order.order_id:
            self.order = None if ended else order
        else:
            kept = [other if other.order_id != order.order_id else order for other in self.others]
            self.others = tuple(other for other in kept if other.status not in _ENDED)
        if self.before_quotes:
            self.before_quotes = tuple(
                other for other in self.before_quotes if other.order_id != order.order_id
            )
        if self.canceling:
            resting = {other.order_id for other in self.others}
            self.canceling = tuple(key for key in self.canceling if key in resting)

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
            later = replace(later, quantity=order.quantity, trigger=_tighter(order, later))
            (self.note if order in self.journal else self._keep)(later)
            if order.created_ms <= opened_ms:  # else the order is newer than the bar
                self.before_quotes += (order,)

    def end(self, order: Order, reason: str, event: OrderEvent = OrderEvent.CANCEL) -> Order:
        """End *order* by *event* and return it.

        Its reason becomes *reason*; an order whose cancellation was on its way keeps that reason.
        """
        if event is OrderEvent.EXPIRE and order.order_id in self.canceling:
            reason = order.reason
        return self.note(after(order, event, reason=reason))

    def apply_fill(self, fill: Fill, held: int) -> Order:
        """Apply *fill*, after which the position is *held*, to its order and the orders beside it.

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
            self._close_first(order, held)
        elif not is_by_signal:
            bought = fill.side is Side.BUY
            self.target += fill.quantity - fill.fee_base if bought else -fill.quantity
        self.resize(held)
        return filled_order

    def _close_first(self, order: Order, held: int) -> None:
        """Shrink or end the order by signal after *order* reduced the position to *held*.

        The order by signal was computed for another position, so it ends. If *order* is protective
        and the order by signal reverses the position, the rest of the reversal stays.
        """
        signed_target = self.target if order.side is Side.BUY else -self.target
        reverses = order.role in PROTECTIVE and signed_target > 0
        needed = self.filters.round_down(abs(self.target - held)) if reverses else 0
        if not needed:
            self.target = held
        self._shrink(needed)

    def shrink_to_target(self, held: int) -> None:
        """Shrink the net order to what still leads to the target, with the position at *held*."""
        if self.order is not None:
            sign = 1 if self.order.side is Side.BUY else -1
            self._shrink(self._quantity_of(sign * max(sign * (self.target - held), 0)))

    def _shrink(self, needed: int) -> None:
        """Shrink the order by signal to the quantity *needed*, or end it where that is 0."""
        if (rest := self.order) is None or needed >= rest.quantity - rest.filled:
            return
        if needed:
            self.note(after(rest, OrderEvent.REPLACE, quantity=rest.filled + needed))
        else:
            self.end(rest, "another order closed the position first")

    def resize(self, held: int) -> None:
        """Shrink reduce-only orders to the position *held*, and cancel those it leaves nothing."""
        for order in self.others:
            if not order.reduce_only:
                continue
            most = self._closable_by(order.side, held)
            if most == 0:
                self.end(order, "the position that it was to close is gone")
            elif order.quantity - order.filled > most:
                self.note(after(order, OrderEvent.REPLACE, quantity=order.filled + most))

    def _closable_by(self, side: Side, held: int) -> int:
        """Return how much of *held* an order of *side* can close, in whole steps."""
        closes = held < 0 if side is Side.BUY else held > 0
        return self.filters.round_down(abs(held)) if closes else 0

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
                and order.role in _EXPIRES_UNFILLED
                and market_ms - order.eligible_ms > self._fill_within_ms
            ):
                within = f"no quote filled it within {self._fill_within_ms:,} ms"
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
        held, price, cash = context.held, context.price, context.cash
        is_ordered = self.order is not None and target == self.target
        if target != self.target:
            self.target, self.reason, self.shortfall = target, reason, ""
            self.journal.has_changes = True
        if is_ordered:
            return None
        if self.shortfall and target * held > 0 and not self.is_reached(target, held):
            return self.shortfall
        if (order := self.order) is not None:
            self.end(order, "another target")
        if self.is_reached(target, held):
            return None
        needed = target - held
        role = OrderRole.COMMAND if by_command else OrderRole.SIGNAL
        filters, quantity = self.filters, self._quantity_of(needed)
        placed = self._new_order(_side(needed), quantity, reason, context, role=role)
        placed = self._in_place_of(order, placed)
        refusal = filters.refusal(placed, price, reduces=target == 0)
        refusal = refusal or filters.tier_refusal(held, target, price)
        is_accepted, shortfall = refusal is None, refusal
        if is_accepted:
            covered = filters.affordable(placed.side, placed.quantity, held, price, cash)
            if covered < placed.quantity:
                closes = target * held < 0 and covered == abs(held)
                placed, shortfall = replace(placed, quantity=covered), filters.no_funds
                is_accepted = filters.refusal(placed, price, reduces=closes) is None
        self.journal.has_changes |= (shortfall or "") != self.shortfall
        self.shortfall = shortfall or ""
        if is_accepted:
            self.order = self.journal.note(after(placed, OrderEvent.ACCEPT))
        elif by_command:
            self.journal.note(after(placed, OrderEvent.REJECT, reason=shortfall))
        return shortfall

    def _in_place_of(self, order: Order | None, placed: Order) -> Order:
        """Return *placed*; one that only changes the size of the delayed *order* is not later.

        Otherwise a target that changes at every bar would never be reached.
        """
        if order is None or order.side is not placed.side or not self._latency.bars:
            return placed
        return replace(placed, eligible_ms=min(placed.eligible_ms, order.eligible_ms))

    def is_reached(self, target: int, held: int) -> bool:
        """Return whether *held* is *target*; on spot within one step, since fees are in base."""
        near = self.filters.instrument.quantity_step if self._spot else 0
        return abs(target - held) <= near

    def affordable(self, target: int, held: int, price: int, funds: int) -> int:
        """Return *target*, or as much of it as *funds* pay for at *price*, starting from *held*.

        *funds* is cash, on margin only what no position binds.
        """
        side, quantity = _side(target - held), self._quantity_of(target - held)
        covered = self.filters.affordable(side, quantity, held, price, funds)
        return target if covered == quantity else self._position_after(side, covered, held)

    def _position_after(self, side: Side, quantity: int, held: int) -> int:
        """Return the position to which a market order of *quantity* leads from *held*."""
        if side is Side.SELL:
            return held - quantity
        rate = RATE_SCALE - (self._costs.taker_fee if self._spot else 0)
        return held + self.filters.round_down(quantity * rate // RATE_SCALE)

    def _quantity_of(self, needed: int) -> int:
        """Return the quantity of a market order that moves a position by *needed*, signed."""
        quantity = abs(needed)
        if self._spot and needed > 0:
            # The fee is paid in base: *needed* must be left after it.
            step = self.filters.instrument.quantity_step
            gross = -(-quantity * RATE_SCALE // (RATE_SCALE - self._costs.taker_fee))
            quantity = -(-gross // step) * step
        return self.filters.round_down(quantity)

    def _new_order(
        self,
        side: Side,
        quantity: int,
        reason: str,
        context: OrderContext,
        **terms: Any,  # noqa: ANN401
    ) -> Order:
        """Return a new order of a decision; it reaches the exchange after the latency."""
        order_id, key = self.next_id(), self.filters.instrument.id
        eligible_ms = self._latency.eligible_ms(
            context.at_ms, key, context.opened_ms, self._orders_of_step[1] - 1
        )
        return Order(
            order_id, key, side, quantity, 0, OrderStatus.NEW, reason, context.at_ms,
            eligible_ms, position_side=self._side, **terms,
        )  # fmt: skip

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
                self.cancel_listed(request.tag, "canceled by the strategy", sent_ms=context.at_ms)
            else:
                self._place(request, reason, context)

    def cancel_listed(
        self, tag: str, reason: str, *, opening_only: bool = False, sent_ms: int = 0
    ) -> None:
        """Cancel the orders by list with *tag*; with an empty one all of them.

        A cancellation that a strategy sends, at *sent_ms*, takes effect after its latency.
        """
        for order in self._listed() if sent_ms and self._cancel_ms else self.others:
            if order.role is not OrderRole.LIST or (tag and order.tag != tag):
                continue
            if sent_ms and self._cancel_ms:
                arrives_ms = sent_ms + self._cancel_ms
                until_ms = min(arrives_ms, order.until_ms or arrives_ms)
                self.canceling += (order.order_id,)
                self.note(after(order, OrderEvent.REPLACE, until_ms=until_ms, reason=reason))
            elif not (opening_only and order.reduce_only):
                self.end(order, reason)

    def _place(self, request: OrderRequest, reason: str, context: OrderContext) -> None:
        order, refusal = self._order_of(request, reason, context)
        if refusal is not None:
            self.journal.note(after(order, OrderEvent.REJECT, reason=refusal))
            return
        if request.tag:
            same = [other for other in self._listed() if other.tag == request.tag]
            if any(_terms_of(other) == _terms_of(order) for other in same):
                return
            self.cancel_listed(request.tag, "replaced", sent_ms=context.at_ms)
        self.add(order)

    def _listed(self) -> list[Order]:
        """Return the orders by list that are not being canceled."""
        return [
            order
            for order in self.others
            if order.role is OrderRole.LIST and order.order_id not in self.canceling
        ]

    def _order_of(
        self, request: OrderRequest, reason: str, context: OrderContext
    ) -> tuple[Order, str | None]:
        """Return the order of *request*, and why the exchange would refuse it, or None."""
        # For an owner's share, limits and margin are those of the account's position.
        filters, held = (self._net or self).filters, context.position
        terms = filters.terms(request)
        # Spot and shares cannot be sold short.
        reduce_only = request.reduce_only or (self._is_cash and request.side is Side.SELL)
        closing = self._closable_by(request.side, context.held)
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
            owner=self._owner,
        )
        if terms.refusal is not None:
            return order, terms.refusal
        if reduce_only and not closing:
            return order, "it is reduce-only, and there is no position for it to close"
        if request.until is not None and request.until <= context.at_ms:
            return order, "its time is over already"
        listed = [other for other in self._listed() if not request.tag or other.tag != request.tag]
        if len(listed) >= RESTING_MOST:
            return order, f"{RESTING_MOST} orders by list rest already"
        price = order.price or order.trigger or context.price
        refusal = filters.stop_refusal(order, context.price)
        refusal = refusal or filters.refusal(order, price, reduces=reduce_only)
        if refusal is None and not reduce_only:
            signed = order.quantity if order.side is Side.BUY else -order.quantity
            refusal = filters.tier_refusal(held, held + signed, price)
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
            if refusal is None and not filters.covers(
                order.side, order.quantity, held, price, funds
            ):
                refusal = filters.no_funds
        return order, refusal

    def opens(self, requests: Iterable[OrderRequest | Cancel]) -> tuple[int, int, bool]:
        """Return the quantities that *requests* and resting orders could buy and sell to open.

        The third value says whether all of *requests* can only reduce.
        """
        sides = {Side.BUY: 0, Side.SELL: 0}
        only_reduces = True
        requests = tuple(requests)
        replaced = {request.tag for request in requests if request.tag}
        cancels_all = any(isinstance(request, Cancel) and not request.tag for request in requests)
        for order in () if cancels_all else self._listed():
            if not order.reduce_only and order.tag not in replaced:
                sides[order.side] += order.quantity - order.filled
        for request in requests:
            if isinstance(request, Cancel) or request.reduce_only:
                continue
            if self._is_cash and request.side is Side.SELL:
                continue
            only_reduces = False
            sides[request.side] += self.filters.terms(request).quantity
        return sides[Side.BUY], sides[Side.SELL], only_reduces

    # ------------------------------------------------------------ exit orders

    def exit_order(
        self,
        held: int,
        *,
        role: OrderRole,
        reason: str,
        at_ms: int,
        quantity: int,
        price: int | None = None,
        trigger: int | None = None,
    ) -> Order:
        """Return a new order, not yet accepted, that closes *quantity* of *held*."""
        return Order(
            self.next_id(), self.filters.instrument.id,
            Side.SELL if held > 0 else Side.BUY, quantity, 0, OrderStatus.NEW, reason, at_ms, at_ms,
            kind_of(price, trigger), role, price, trigger, reduce_only=True,
            position_side=self._side, owner=self._owner,
        )  # fmt: skip

    def protective(self, role: OrderRole) -> Order | None:
        """Return the resting protective or liquidation order of *role*, or None."""
        return next((order for order in self.others if order.role is role), None)

    def closable(self, held: int) -> int:
        """Return how much of *held* can be closed, unsigned: less than a step cannot."""
        return self.filters.round_down(abs(held))


_ENDED: Final = frozenset({OrderStatus.FILLED, OrderStatus.CANCELED, OrderStatus.REJECTED})
_EXPIRES_UNFILLED: Final = frozenset({OrderRole.SIGNAL, OrderRole.LIST})
"""Roles whose market orders are canceled if no quote fills them in time."""


def _side(needed: int) -> Side:
    return Side.BUY if needed > 0 else Side.SELL


def kind_of(price: int | None, trigger: int | None) -> OrderKind:
    """Return the kind of an order with limit *price* and stop price *trigger*."""
    if trigger is not None:
        return OrderKind.STOP if price is None else OrderKind.STOP_LIMIT
    return OrderKind.MARKET if price is None else OrderKind.LIMIT


def _tighter(order: Order, other: Order) -> int | None:
    """Return the trigger that is met first, of *order* and *other*, two states of an order."""
    if order.trigger is None or other.trigger is None:
        return other.trigger
    tightest = max if order.side is Side.SELL else min
    return tightest(order.trigger, other.trigger)


def urgency(order: Order) -> int:
    """Return the rank in which *order* meets the market: 0 is first."""
    if order.role is OrderRole.TARGET:
        return 2
    return 0 if order.role in PROTECTIVE or order.role is OrderRole.LIQUIDATION else 1


def _taken_over(order: Order) -> Order:
    return replace(order, order_id=taken_over_id(order.order_id))


_carried: Final = attrgetter(*OrdersState.__struct_fields__)
_terms_of: Final = attrgetter(
    "side", "kind", "quantity", "price", "trigger", "post_only", "reduce_only", "until_ms"
)
"""The fields in which a repeated request must equal the resting order to leave it unchanged."""
