"""Matching: when orders are triggered and filled at a quote, at a bar's open or along its path.

Quotes. An order meets the first quote after its latency. A limit that crosses the far side takes
there. Otherwise it rests, and is filled as maker once the far side is strictly through its price,
because earlier orders at that price are served first. A stop triggers on the side at which it
would be filled, and at once becomes a market or a limit order.

Bars. The order of the prices within a bar is unknown. Both paths are tried, open-high-low-close
and open-low-high-close, and the path that leaves the account with less equity counts.

Positions. One event meets all orders of an account's positions in an instrument in one pass. In
hedge mode these are the orders of both sides. If several strategies share a position, they are its
net order and the exit orders of every share. A fill of a share's order is also a fill of the
position. A fill of the position's order is apportioned to the shares at once.

The rules are docs/money.md, M11 to M14, and docs/orders.md, B2 to B4.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from functools import partial
from itertools import pairwise
from operator import attrgetter
from typing import TYPE_CHECKING, Final, Self

from msgspec.structs import replace

from tracepaper.daemon.broker.journal import FillEntry
from tracepaper.daemon.broker.orders import OrderEvent, RestingOrders, after, urgency
from tracepaper.daemon.broker.rules import largest_multiple
from tracepaper.strategies.apportion import apportion
from tracepaper.strategies.errors import InvariantBroken
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

if TYPE_CHECKING:
    from tracepaper.daemon.broker.line import Line
    from tracepaper.daemon.broker.positions import Positions

WOULD_TAKE: Final = "post-only, and it would have taken"
LIQUIDATED_FIRST: Final = "the position was liquidated first"
_DECIDED: Final = frozenset({OrderRole.SIGNAL, OrderRole.LIST})
"""Roles of the orders that decisions send."""


class MarketPass:
    """Matches one event against the resting orders of positions and of their shares."""

    def __init__(self, positions: Positions) -> None:
        """Match against the orders of *positions*."""
        self.journal = positions.journal
        self._lines, self._every_line = positions.lines, positions.every_line
        self._positions = positions
        self._executor = positions.lines[0].executor
        self._younger: set[str] = set()  # ids of orders that are younger than the bar
        self._is_quote = False  # whether the event is newer than bars that may still arrive

    @property
    def _orders(self) -> tuple[Order, ...]:
        """Every resting order, in the order in which they meet the market."""
        if len(self._every_line) == 1:
            return self._every_line[0].orders.orders
        signalled = (line.orders.order for line in self._lines)
        first = [order for order in signalled if order is not None]
        others = (order for line in self._every_line for order in line.orders.others)
        return tuple(sorted((*first, *others), key=urgency))

    def _line_of(self, order_id: str) -> Line:
        """Return the position or share in which the order with that id rests."""
        for line in self._every_line[1:]:
            if line.orders.find(order_id) is not None:
                return line
        return self._every_line[0]

    def _position_of(self, order: Order) -> Line:
        """Return the position to which the resting *order* belongs."""
        line = self._line_of(order.order_id)
        return line.parent or line

    def _find(self, order_id: str) -> Order | None:
        """Return the resting order with that id, or None."""
        return self._line_of(order_id).orders.find(order_id)

    # ------------------------------------------------------------ quotes

    def match_quote(self, quote: Quote) -> None:
        """Match every order that has reached the exchange; all of them share the quote's sizes."""
        self._is_quote = True
        left = {Side.BUY: quote.ask_size, Side.SELL: quote.bid_size}
        for resting in self._orders:
            order = self._find(resting.order_id)  # an earlier fill may have changed it
            if order is None or quote.market_ms < order.eligible_ms:
                continue
            if order.role is OrderRole.LIQUIDATION:
                continue  # only the mark price triggers it
            far = quote.ask if order.side is Side.BUY else quote.bid
            arrives = order.status is OrderStatus.NEW
            if arrives and order.post_only and _reaches(order, far):
                self._end(order, WOULD_TAKE, OrderEvent.REJECT)
                continue
            order = self._accepted(order)
            if is_waiting_stop(order):
                if not touched(order, far):
                    continue
                order, arrives = self._triggered(order), True
            if order.price is None or (arrives and _reaches(order, far)):
                fill = self._executor.at_quote(order, quote, left[order.side])
            else:
                quantity = min(order.quantity - order.filled, left[order.side])
                if arrives or quantity <= 0 or not _is_through(order, far):
                    continue
                fill = self._executor.fill_resting(
                    order, quantity, FillModel.QUOTE, quote.market_ms
                )
            if fill is not None and self._apply_fill(order, fill):
                left[order.side] = max(left[order.side] - fill.quantity, 0)
        self._trail(quote.bid, quote.ask)

    # ------------------------------------------------------------ bars

    def match_open(self, bar: Bar, *, is_missed: bool) -> None:
        """Fill every market order at the open of *bar*, after the liquidations at that price.

        If the bar *is_missed*, market orders of decisions keep waiting for a quote.
        """
        at_ms = bar.open_time_ms
        self.match_mark(bar.open, at_ms)
        for resting in self._orders:
            if is_missed and resting.role in _DECIDED:
                continue
            if resting.kind is OrderKind.MARKET and not _is_younger(resting, bar):
                order = self._find(resting.order_id)
                if order is not None:
                    self._take_all(self._accepted(order), bar.open, at_ms, FillModel.NEXT_OPEN)

    def match_mark(self, mark: int, at_ms: int) -> None:
        """Liquidate the positions whose liquidation price *mark* has reached, or the account."""
        self._liquidate_account(mark, mark, at_ms)
        for line in self._lines:
            order = line.orders.protective(OrderRole.LIQUIDATION)
            if order is not None and touched(order, mark):
                self._liquidate(order, mark, at_ms)

    def _liquidate_account(self, start: int, end: int, at_ms: int) -> int | None:
        """Liquidate an account on cross margin if a price from *start* to *end* requires it.

        Returns that price, or None.
        """
        positions, cross = self._positions, self._positions.cross
        if cross is None or (at := cross.first_liquidation(positions, start, end)) is None:
            return None
        cross.liquidate(positions, at, at_ms)
        return at

    def _liquidate(self, order: Order, mark: int, at_ms: int) -> None:
        """Reduce the position at *mark* to a lower risk tier, or else close all of it."""
        line = self._position_of(order)
        holding, rules, reduction = line.holding, line.isolated_rules, None
        if rules is not None and holding.quantity:
            reduction = rules.reduction(
                holding.entry_notional, holding.quantity, holding.margin, mark
            )
        if reduction is not None:
            quantity, tier = reduction
            reduced = replace(order, reason=f"{order.reason}: reduced to risk tier {tier}")
            fill = self._executor.taken(reduced, mark, FillModel.LIQUIDATION, at_ms)
            assert order.price is not None
            if fill.price >= order.price if order.side is Side.SELL else fill.price <= order.price:
                reduced = self._triggered(reduced)
                self._apply_fill(reduced, self._executor.part(reduced, fill, quantity))
                return
        self._take_over(order, mark, at_ms)

    def _take_over(self, order: Order, mark: int, at_ms: int) -> None:
        order = self._triggered(order)
        self._apply_fill(order, self._executor.liquidated(order, mark, at_ms))

    def walk(self, bar: Bar, path: int) -> None:
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

        They exist if quotes filled an order before a missed bar arrived late.
        """
        self._younger = {resting.order_id for resting in self._orders if _is_younger(resting, bar)}

    def arrive(self, bar: Bar) -> None:
        """Let orders arrive at the open of *bar*, and match those whose price the open passed.

        An arriving order takes at the open. A resting limit is filled at its own price, which the
        market passed on its way to the open.
        """
        self._skip_younger(bar)
        price, at_ms = bar.open, bar.open_time_ms
        for resting in self._orders:
            order = self._find(resting.order_id)
            if order is None or order.kind is OrderKind.MARKET or _waits(order, at_ms):
                continue
            if order.order_id in self._younger:
                continue
            far = self._executor.far_side(price, order.side)
            arrives = order.status is OrderStatus.NEW
            if arrives and order.post_only and _reaches(order, far):
                self._end(order, WOULD_TAKE, OrderEvent.REJECT)
                continue
            order = self._accepted(order)
            if is_waiting_stop(order):
                if touched(order, price):
                    self._match(order, price, at_ms)
            elif (arrives and _reaches(order, far)) or (order.triggered and order.price is None):
                self._take_all(order, price, at_ms)
            elif not arrives and _is_through(order, price):
                self._make(order, at_ms)
        self._trail(price, price)

    def _next(self, start: int, end: int, opened_ms: int) -> tuple[Order, int] | None:
        """Return the order that a move from *start* to *end* meets first, and its price."""
        first: tuple[tuple[int, bool], Order, int] | None = None
        for order in self._orders:
            at = _price_met(order, start, end)
            if at is None or _waits(order, opened_ms) or order.order_id in self._younger:
                continue
            rank = (abs(at - start), order.price is not None)
            if first is None or rank < first[0]:
                first = rank, order, at
        return None if first is None else (first[1], first[2])

    def _match(self, order: Order, price: int, at_ms: int) -> None:
        """Fill the limit that the path passed, or trigger the stop that it touched."""
        if order.role is OrderRole.LIQUIDATION:
            self._liquidate(order, price, at_ms)
            return
        if not is_waiting_stop(order):
            self._make(order, at_ms)
            return
        order = self._triggered(order)
        if order.price is None or _reaches(order, self._executor.far_side(price, order.side)):
            self._take_all(order, price, at_ms)

    def _take_all(
        self, order: Order, price: int, at_ms: int, model: FillModel = FillModel.BAR_PATH
    ) -> None:
        """Fill all of *order* as taker, with the market at *price*."""
        self._apply_fill(order, self._executor.taken(order, price, model, at_ms))

    def _make(self, order: Order, at_ms: int) -> None:
        """Fill a resting limit as maker."""
        quantity = order.quantity - order.filled
        self._apply_fill(
            order, self._executor.fill_resting(order, quantity, FillModel.BAR_PATH, at_ms)
        )

    # ------------------------------------------------------------ quotes and bars

    def _trail(self, bid: int, ask: int) -> None:
        """Let trailing stops follow the market at *bid* and *ask*; they only become tighter."""
        for line in self._every_line:
            if line.orders.trail:
                self._trail_by(line.orders, bid, ask)

    def _trail_by(self, resting: RestingOrders, bid: int, ask: int) -> None:
        order = resting.protective(OrderRole.TRAILING)
        if order is None or order.order_id in self._younger:
            return
        if moved := _trailed(order, bid, ask, resting.trail):
            tick = self._executor.tick
            trigger = moved // tick * tick if order.side is Side.SELL else -(-moved // tick) * tick
            if trigger != order.trigger:
                self._moved(order, after(order, OrderEvent.REPLACE, trigger=trigger))

    def _accepted(self, order: Order) -> Order:
        """Accept *order* if it is new, and return it."""
        if order.status is not OrderStatus.NEW:
            return order
        return self._note(after(order, OrderEvent.ACCEPT))

    def _triggered(self, order: Order) -> Order:
        return self._moved(order, after(order, OrderEvent.TRIGGER, triggered=True))

    def _moved(self, order: Order, moved: Order) -> Order:
        """Replace *order* by *moved*, its state after a move or a trigger.

        After a quote the old state is kept, since an older bar may still arrive.
        """
        if not self._is_quote:
            return self._note(moved)
        return self._line_of(order.order_id).orders.move(order, moved)

    def _note(self, order: Order) -> Order:
        return self._line_of(order.order_id).orders.note(order)

    def _end(self, order: Order, reason: str, event: OrderEvent = OrderEvent.CANCEL) -> None:
        self._line_of(order.order_id).orders.end(order, reason, event)

    def _apply_fill(self, order: Order, fill: Fill) -> bool:
        """Book *fill* of *order*, cut to what the account can pay; return whether it booked any."""
        position = self._position_of(order)
        if self._liquidates_instead(position, order, fill):
            return False
        if (refusal := position.refusal(fill)) is not None:
            affordable = None
            if order.role is not OrderRole.LIST:
                affordable = self._affordable(position, order, fill)
            if affordable is None:
                self._end_short(position, order, refusal)
                return False
            fill = affordable
        cross = self._positions.cross
        if cross is not None and cross.liquidates_instead(position, fill):
            if (left := self._find(order.order_id)) is not None:
                self._end(left, LIQUIDATED_FIRST)
            return False
        filled = self.book(fill)
        if refusal is not None:
            self._end_short(position, filled, refusal)
        return True

    def book(self, fill: Fill) -> Order:
        """Book *fill* of a resting order in position and shares; return the order after it."""
        line = self._line_of(fill.order_id)
        position = line.parent or line
        before = position.position
        position.post(fill)
        if line is not position:
            line.post_part(fill)
        order = line.orders.apply_fill(fill, line.held)
        if line is not position:
            position.sum_share_targets()
            position.orders.resize(position.held)
            position.orders.shrink_to_target(position.held)
        elif position.shares:
            self._apportion(position.shares, fill, order)
        self.journal.entries.append(FillEntry(fill, order, before, position.position))
        # The rest of the event meets the changed position.
        position.protector.set_liquidation_price(fill.filled_ms, amends_only=True)
        return order

    def _apportion(self, shares: Sequence[Line], fill: Fill, order: Order) -> None:
        """Apportion *fill* of the position's *order* to *shares*.

        The weights are the distances to the targets in the direction of the fill. If there are
        none, or the order only reduces, the weights are the holdings that the fill reduces. After
        a reduction, by liquidation for instance, the targets are set to what is left.
        """
        sign = 1 if fill.side is Side.BUY else -1
        weights = [max(sign * (line.orders.target - line.held), 0) for line in shares]
        if order.reduce_only or not any(weights):
            weights = [max(-sign * line.held, 0) for line in shares]
        if not any(weights):  # on spot an order includes the fee, which may exceed the targets
            weights = [max(sign * line.held, 0) for line in shares]
        if not any(weights):
            raise InvariantBroken(f"a fill of {fill.instrument} that no strategy ordered")
        quantities = apportion(fill.quantity, weights)
        fees, fees_base = apportion(fill.fee, quantities), apportion(fill.fee_base, quantities)
        for share, quantity, fee, fee_base in zip(shares, quantities, fees, fees_base, strict=True):
            if quantity:
                notional = self._executor.notional(fill.price, quantity)
                part = replace(
                    fill, quantity=quantity, notional=notional, fee=fee, fee_base=fee_base
                )
                share.post_part(part)
                share.orders.resize(share.held)
            if order.reduce_only:
                share.set_target(share.held, "liquidated")

    def _end_short(self, position: Line, order: Order, refusal: str) -> None:
        """End *order*, which the account cannot pay; its rest is not ordered again."""
        self._end(order, refusal)
        if order.role is OrderRole.SIGNAL:
            position.orders.shortfall = refusal

    def _affordable(self, position: Line, order: Order, fill: Fill) -> Fill | None:
        """Return the largest part of *fill* that the account can pay, in whole steps; or None."""
        part = partial(self._executor.part, order, fill)
        most = largest_multiple(
            fill.quantity,
            self._executor.step,
            lambda quantity: position.refusal(part(quantity)) is None,
        )
        return part(most) if most else None

    def _liquidates_instead(self, position: Line, order: Order, fill: Fill) -> bool:
        """Liquidate *position* instead if *fill* is beyond its bankruptcy price; return whether so.

        Nobody can close at a price beyond the bankruptcy price.
        """
        bound = position.orders.protective(OrderRole.LIQUIDATION)
        if bound is None or order.role is OrderRole.LIQUIDATION or fill.side is not bound.side:
            return False
        assert bound.price is not None
        sells = fill.side is Side.SELL
        if not (fill.price < bound.price if sells else fill.price > bound.price):
            return False
        self._take_over(bound, fill.reference_price, fill.filled_ms)
        if (left := self._find(order.order_id)) is not None:
            self._end(left, LIQUIDATED_FIRST)
        return True


# ---------------------------------------------------------------- an order and a price


def is_waiting_stop(order: Order) -> bool:
    """Return whether *order* is a stop that has not triggered."""
    return order.trigger is not None and not order.triggered


def _reaches(order: Order, far: int) -> bool:
    """Return whether the limit *order* could take with the far side at *far*."""
    if order.price is None or is_waiting_stop(order):
        return False
    return order.price >= far if order.side is Side.BUY else order.price <= far


def _is_through(order: Order, far: int) -> bool:
    """Return whether *far* is strictly through the price of the limit *order*."""
    if order.price is None:
        return False
    return far < order.price if order.side is Side.BUY else far > order.price


def touched(order: Order, far: int) -> bool:
    """Return whether *far* has reached the trigger of the stop *order*."""
    assert order.trigger is not None
    return far >= order.trigger if order.side is Side.BUY else far <= order.trigger


def _is_younger(order: Order, bar: Bar) -> bool:
    """Return whether *order* began to rest inside *bar*, because of a quote's fill or a command.

    An order by a decision belongs to the close before, even if that bar was observed late.
    """
    return order.role not in _DECIDED and order.created_ms > bar.open_time_ms


def _waits(order: Order, opened_ms: int) -> bool:
    """Return whether *order* is the target of a position that was entered inside the bar.

    Whether the bar reached that price before or after the entry is unknown.
    """
    return order.role is OrderRole.TARGET and order.created_ms > opened_ms


def _trailed(order: Order, bid: int, ask: int, trail: int) -> int | None:
    """Return the new trigger of the trailing stop *order*; None if it does not move."""
    if order.role is not OrderRole.TRAILING or order.triggered or order.trigger is None:
        return None
    if order.side is Side.SELL:
        return bid - trail if bid - trail > order.trigger else None
    return ask + trail if ask + trail < order.trigger else None


def _price_met(order: Order, start: int, end: int) -> int | None:
    """Return the price at which a move from *start* to *end* meets *order*, or None.

    A stop is met if its trigger is touched, a limit only if the move goes beyond its price.
    """
    if is_waiting_stop(order):
        at, reaches = order.trigger, touched(order, end)
    else:
        at, reaches = order.price, _is_through(order, end)
    if at is None or not reaches:
        return None
    ahead = start <= at <= end if end >= start else end <= at <= start
    return at if ahead else None


# ---------------------------------------------------------------- whole events


_PATHS: Final = (
    attrgetter("open", "high", "low", "close"),
    attrgetter("open", "low", "high", "close"),
)


class TrialFills:
    """A context in which orders of one instrument are filled on trial, without margin checks.

    On exit the account and its positions are as before.
    """

    def __init__(self, positions: Positions) -> None:
        self._positions, self._account = positions, positions.account
        self.is_over = False  # the account was liquidated: no path leaves less

    def __enter__(self) -> Self:
        """Save the state; until the exit neither ledger nor strategies learn of fills."""
        account, lines = self._account, self._positions.every_line
        self._journal = account.journal.take()
        books = (line.book for line in lines)
        self._saved = [(owner, vars(owner).copy()) for owner in (account, *books)]
        self._lines = [(line, line.holding, line.position, line.orders.state()) for line in lines]
        account.entries = None
        for line in lines:
            line.holding, line.book.fills = copy(line.holding), {}
        self._positions.active_trial = self
        return self

    def __exit__(self, *_: object) -> None:
        """Restore the state."""
        self._positions.active_trial = None
        for owner, values in self._saved:
            vars(owner).update(values)
        for line, holding, position, orders in self._lines:
            line.holding, line.position = holding, position
            line.orders.restore(orders)
        self._account.journal.swap(self._journal)

    def equity(self, price: int) -> int:
        """Return the equity with the instrument at *price*.

        If the account was liquidated it is the least possible number.
        """
        if self.is_over:
            return -MONEY_LIMIT
        lines = self._positions.lines
        return sum(
            line.book.cash
            + line.notional(price, line.held)
            - (0 if line.is_cash else line.holding.entry_notional)
            for line in lines
        )


def worse_path(positions: Positions, bar: Bar) -> int | None:
    """Return the path of *bar*, 0 or 1, that leaves less equity; 0 if both leave the same.

    None if neither path meets a resting order.
    """
    if positions.is_passed_by(bar):
        return None
    equities = []
    for path in (0, 1):
        with TrialFills(positions) as trial:
            MarketPass(positions).walk(bar, path)
            equities.append(trial.equity(bar.close))
    return 0 if equities[0] <= equities[1] else 1


def matters_from(order: Order, quote: Quote, trail: int = 0) -> int | None:
    """Return the market time from which a quote like *quote* can change the resting *order*.

    None if it cannot: it touches no stop, is not through a resting limit, and moves no trailing
    stop. *trail* is the distance of a trailing stop.
    """
    if order.role is OrderRole.LIQUIDATION:
        return None
    if order.until_ms is not None and quote.market_ms >= order.until_ms:
        return order.until_ms
    far = quote.ask if order.side is Side.BUY else quote.bid
    is_due = order.status is OrderStatus.NEW or (order.price is None and not is_waiting_stop(order))
    return order.eligible_ms if is_due or _is_met(order, far, far, trail) else None


def passes(resting: RestingOrders, bar: Bar) -> bool:
    """Return whether *bar* changes no resting order, as most bars under a stop do.

    An order with a time limit may always change.
    """
    if resting.order is not None:
        return False
    for order in resting.others:
        if order.kind is OrderKind.MARKET or order.until_ms is not None:
            return False
        if order.status is OrderStatus.NEW or (order.triggered and order.price is None):
            return False  # it arrives, or takes at once
        if _is_met(order, bar.low, bar.high, resting.trail):
            return False
    return True


def _is_met(order: Order, low: int, high: int, trail: int) -> bool:
    """Return whether a market from *low* to *high* fills, triggers or moves *order*."""
    if trail and _trailed(order, high, low, trail) is not None:
        return True
    is_stop = is_waiting_stop(order)
    best = high if (order.side is Side.BUY) is is_stop else low
    return touched(order, best) if is_stop else _is_through(order, best)
