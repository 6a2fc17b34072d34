"""When orders and stops are triggered and filled: at a quote, an open, along a bar's path.

Quotes. An order meets the first quote after its latency. A limit that the far side already
reaches takes there; else it rests, and is filled as maker once the far side stands strictly
through its price: whoever waited at that price before it was served first. A stop is touched by
the side at which it would be filled, and is then a market order, or a limit, at once.

Bars. Nobody knows in which order a bar's prices came. Both paths are tried, open-high-low-close
and open-low-high-close, and the one that leaves the account with less at the close is believed.

Positions. One event meets all orders of an account's positions in an instrument in one pass: in
hedge mode those of both sides, and where several strategies share a position, its net order and the
protection of every share. A fill of a share's order is one of the position too; a fill of the
position's own order is apportioned to the shares at once.

The rules are docs/money.md, M11 to M14, and docs/orders.md, B2 to B4.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from operator import attrgetter
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from tracepaper.daemon.broker.journal import FillEntry
from tracepaper.daemon.broker.orders import OrderEvent, RestingOrders, after, urgency
from tracepaper.daemon.broker.rules import most_of
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

if TYPE_CHECKING:
    from tracepaper.daemon.broker.line import Line
    from tracepaper.daemon.broker.positions import Positions

WOULD_TAKE: Final = "post-only, and it would have taken"
LIQUIDATED_FIRST: Final = "the position was liquidated first"


_DECIDED: Final = frozenset({OrderRole.SIGNAL, OrderRole.LIST})
"""Roles of the orders that decisions send."""


class MarketPass:
    """The resting orders of positions and of their shares, while one event passes them."""

    def __init__(self, positions: Positions) -> None:
        """Let events pass *positions*."""
        self.journal = positions.journal
        self._lines, self._parts = positions.lines, positions.parts
        self._positions = positions
        self._executor = positions.lines[0].executor
        self._younger: set[str] = set()  # than the bar that passes: ids of orders
        self._is_quote = False  # what passes

    @property
    def _orders(self) -> tuple[Order, ...]:
        """Every order that rests, in the order in which they meet the market."""
        if len(self._parts) == 1:
            return self._parts[0].orders.orders
        signalled = (line.orders.order for line in self._lines)
        first = [order for order in signalled if order is not None]
        others = (order for part in self._parts for order in part.orders.others)
        return tuple(sorted((*first, *others), key=urgency))

    def _line_of(self, order_id: str) -> Line:
        """Return the position or the share in which the order with that id rests."""
        for part in self._parts[1:]:
            if part.orders.find(order_id) is not None:
                return part
        return self._parts[0]

    def _position_of(self, order: Order) -> Line:
        """Return the position that *order*, which rests, is of."""
        line = self._line_of(order.order_id)
        return line.whole or line

    def _find(self, order_id: str) -> Order | None:
        """Return the resting order with that id, if there is one."""
        return self._line_of(order_id).orders.find(order_id)

    # ------------------------------------------------------------ quotes

    def match_quote(self, quote: Quote) -> None:
        """Let every order that has reached the exchange meet *quote*; its sizes are shared."""
        self._is_quote = True
        left = {Side.BUY: quote.ask_size, Side.SELL: quote.bid_size}
        for resting in self._orders:
            order = self._find(resting.order_id)  # a fill before it may have changed it
            if order is None or quote.market_ms < order.eligible_ms:
                continue
            if order.role is OrderRole.LIQUIDATION:
                continue  # the mark price decides
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
        """Fill every market order at the open of *bar*; a position that it liquidates is gone.

        Where quotes fill orders and those of the bar were missed, what a decision sent waits on.
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
        """Liquidate the position, or the account, where *mark* has reached that price."""
        self._called(mark, mark, at_ms)
        for line in self._lines:
            order = line.orders.protective(OrderRole.LIQUIDATION)
            if order is not None and touched(order, mark):
                self._liquidate(order, mark, at_ms)

    def _called(self, start: int, end: int, at_ms: int) -> int | None:
        """Liquidate an account on cross margin where the way to *end* calls it; return where."""
        positions, cross = self._positions, self._positions.cross
        if cross is None or (at := cross.called_at(positions, start, end)) is None:
            return None
        cross.liquidate(positions, at, at_ms)
        return at

    def _liquidate(self, order: Order, mark: int, at_ms: int) -> None:
        """Reduce the position at *mark* to a lower risk tier, or let all of it be taken over."""
        line = self._position_of(order)
        held, rules, reduction = line.holding, line.binds, None
        if rules is not None and held.quantity:
            reduction = rules.reduction(held.entry_notional, held.quantity, held.margin, mark)
        if reduction is not None:
            quantity, tier = reduction
            reduced = replace(order, reason=f"{order.reason}: reduced to risk tier {tier}")
            whole = self._executor.taken(reduced, mark, FillModel.LIQUIDATION, at_ms)
            assert order.price is not None
            if (
                whole.price >= order.price
                if order.side is Side.SELL
                else whole.price <= order.price
            ):
                reduced = self._triggered(reduced)
                self._apply_fill(reduced, self._executor.part(reduced, whole, quantity))
                return
        self._take_over(order, mark, at_ms)

    def _take_over(self, order: Order, mark: int, at_ms: int) -> None:
        order = self._triggered(order)
        self._apply_fill(order, self._executor.liquidated(order, mark, at_ms))

    def walk(self, bar: Bar, path: int) -> None:
        """Let limits and stops meet the open of *bar*, then every price on *path*, 0 or 1.

        What came to rest only after the bar had opened meets nothing: quotes bore it, and the bar
        is one that is missed and comes late.
        """
        self._younger = {resting.order_id for resting in self._orders if _is_younger(resting, bar)}
        self._open(bar)
        self._trail(bar.open, bar.open)
        for start, end in pairwise(_PATHS[path](bar)):
            at = start
            while True:
                first = self._next(at, end, bar.open_time_ms)
                called = self._called(at, end if first is None else first[1], bar.close_time_ms - 1)
                if called is not None:
                    at = called
                elif first is not None:
                    order, at = first
                    self._match(order, at, bar.close_time_ms - 1)
                else:
                    break
            self._trail(end, end)

    def _open(self, bar: Bar) -> None:
        """Let orders reach the exchange at *bar*'s open, and those act whose price it passed.

        What arrives there takes; what had rested is filled at its own price, which the market went
        through on its way to the open.
        """
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

    def _next(self, start: int, end: int, opened_ms: int) -> tuple[Order, int] | None:
        """Return the order that is met first on the way from *start* to *end*, and where."""
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
        """Fill the limit that the path went through, or let the stop that it touched fire."""
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
        """Fill all of an order where the bar stands at *price*."""
        self._apply_fill(order, self._executor.taken(order, price, model, at_ms))

    def _make(self, order: Order, at_ms: int) -> None:
        """Fill a limit that had rested."""
        quantity = order.quantity - order.filled
        self._apply_fill(
            order, self._executor.fill_resting(order, quantity, FillModel.BAR_PATH, at_ms)
        )

    # ------------------------------------------------------------ what both do

    def _trail(self, bid: int, ask: int) -> None:
        """Let a trailing stop follow the market, which stands at *bid* and *ask*; never back."""
        for part in self._parts:
            if part.orders.trail:
                self._trail_by(part.orders, bid, ask)

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
        """Return *order* as one that has reached the exchange."""
        if order.status is not OrderStatus.NEW:
            return order
        return self._note(after(order, OrderEvent.ACCEPT))

    def _triggered(self, order: Order) -> Order:
        return self._moved(order, after(order, OrderEvent.TRIGGER, triggered=True))

    def _moved(self, order: Order, moved: Order) -> Order:
        """Take *order* as it was *moved* or triggered; a quote may be newer than bars to come."""
        if not self._is_quote:
            return self._note(moved)
        return self._line_of(order.order_id).orders.move(order, moved)

    def _note(self, order: Order) -> Order:
        return self._line_of(order.order_id).orders.note(order)

    def _end(self, order: Order, reason: str, event: OrderEvent = OrderEvent.CANCEL) -> None:
        self._line_of(order.order_id).orders.end(order, reason, event)

    def _apply_fill(self, order: Order, fill: Fill) -> bool:
        """Book *fill* of *order*; return False where the account could not bear it."""
        position = self._position_of(order)
        if self._is_beyond_bankruptcy(position, order, fill):
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
        if cross is not None and cross.ruins(position, fill):
            if (left := self._find(order.order_id)) is not None:
                self._end(left, LIQUIDATED_FIRST)
            return False
        filled = self.book(fill)
        if refusal is not None:
            self._end_short(position, filled, refusal)
        return True

    def book(self, fill: Fill) -> Order:
        """Book *fill* of an order that rests, in position and shares; return the order after it."""
        line = self._line_of(fill.order_id)
        position = line.whole or line
        before = position.position
        position.post(fill)
        if line is not position:
            line.take_part(fill)
        order = line.orders.apply_fill(fill, line.held)
        if line is not position:
            position.agree()
            position.orders.resize(position.held)
            position.orders.serve(position.held)
        elif position.shares:
            self._apportion(position.shares, fill, order)
        self.journal.entries.append(FillEntry(fill, order, before, position.position))
        # What is left of the event meets the position as it is now.
        position.protector.set_liquidation_price(fill.filled_ms, amends_only=True)
        return order

    def _apportion(self, shares: Sequence[Line], fill: Fill, order: Order) -> None:
        """Share *fill* of the position's own *order* out to *shares*.

        It goes by what each still wants in that direction, else by what each holds on the other
        side. Where the order only reduces, by liquidation say, nobody wants more than is left.
        """
        sign = 1 if fill.side is Side.BUY else -1
        weights = [max(sign * (line.orders.target - line.held), 0) for line in shares]
        if order.reduce_only or not any(weights):
            weights = [max(-sign * line.held, 0) for line in shares]
        if not any(weights):  # on spot the fee of a buy may leave a step more than was wanted
            weights = [max(sign * line.held, 0) for line in shares]
        if not any(weights):
            raise InvariantBroken(f"a fill of {fill.instrument} that no strategy asked for")
        quantities = apportion(fill.quantity, weights)
        fees, of_base = apportion(fill.fee, quantities), apportion(fill.fee_base, quantities)
        for share, quantity, fee, fee_base in zip(shares, quantities, fees, of_base, strict=True):
            if quantity:
                notional = self._executor.notional(fill.price, quantity)
                part = replace(
                    fill, quantity=quantity, notional=notional, fee=fee, fee_base=fee_base
                )
                share.take_part(part)
                share.orders.resize(share.held)
            if order.reduce_only:
                share.want(share.held, "liquidated")

    def _end_short(self, position: Line, order: Order, refusal: str) -> None:
        """End *order*, which the account cannot bear; nothing asks again for what is missing."""
        self._end(order, refusal)
        if order.role is OrderRole.SIGNAL:
            position.orders.shortfall = refusal

    def _affordable(self, position: Line, order: Order, fill: Fill) -> Fill | None:
        """Return as much of *fill* of *order* as the account bears in whole steps, if any."""
        part = partial(self._executor.part, order, fill)
        most = most_of(
            fill.quantity, self._executor.step, lambda of: position.refusal(part(of)) is None
        )
        return part(most) if most else None

    def _is_beyond_bankruptcy(self, position: Line, order: Order, fill: Fill) -> bool:
        """Return whether *position* was liquidated instead: *fill* would lose more than it has.

        The exchange lets nobody close at a price beyond the bankruptcy price.
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
    """Whether *order* waits for its trigger."""
    return order.trigger is not None and not order.triggered


def _reaches(order: Order, far: int) -> bool:
    """Return whether the limit *order* could take where the far side stands at *far*."""
    if order.price is None or is_waiting_stop(order):
        return False
    return order.price >= far if order.side is Side.BUY else order.price <= far


def _is_through(order: Order, far: int) -> bool:
    """Return whether *far* lies strictly beyond the price of the limit *order*."""
    if order.price is None:
        return False
    return far < order.price if order.side is Side.BUY else far > order.price


def touched(order: Order, far: int) -> bool:
    """Return whether *far* has reached the trigger of the stop *order*."""
    assert order.trigger is not None
    return far >= order.trigger if order.side is Side.BUY else far <= order.trigger


def _is_younger(order: Order, bar: Bar) -> bool:
    """Return whether *order* came to rest inside *bar*, by a quote's fill or a command.

    What a decision sent came to rest at the close before, however long that took to be known.
    """
    return order.role not in _DECIDED and order.created_ms > bar.open_time_ms


def _waits(order: Order, opened_ms: int) -> bool:
    """Return whether *order* is a target of a position that was entered inside the bar.

    Nobody knows whether the price was there before or after.
    """
    return order.role is OrderRole.TARGET and order.created_ms > opened_ms


def _trailed(order: Order, bid: int, ask: int, trail: int) -> int | None:
    """Return where the trailing stop *order* would move to; None where it would not."""
    if order.role is not OrderRole.TRAILING or order.triggered or order.trigger is None:
        return None
    if order.side is Side.SELL:
        return bid - trail if bid - trail > order.trigger else None
    return ask + trail if ask + trail < order.trigger else None


def _price_met(order: Order, start: int, end: int) -> int | None:
    """Return where the way from *start* to *end* meets *order*; None where it does not.

    A stop is met where it is touched, a limit only where the way goes on beyond its price.
    """
    if is_waiting_stop(order):
        at, reaches = order.trigger, touched(order, end)
    else:
        at, reaches = order.price, _is_through(order, end)
    if at is None or not reaches:
        return None
    ahead = start <= at <= end if end >= start else end <= at <= start
    return at if ahead else None


# ---------------------------------------------------------------- one event


_PATHS: Final = (
    attrgetter("open", "high", "low", "close"),
    attrgetter("open", "low", "high", "close"),
)


def worse_path(positions: Positions, bar: Bar) -> int | None:
    """Return the number of the path of *bar* that leaves less, the first where both leave as much.

    None where neither meets anything that rests.
    """
    if positions.is_passed_by(bar):
        return None
    left = []
    for path in (0, 1):
        with positions.trial() as trial:
            MarketPass(positions).walk(bar, path)
            left.append(trial.equity(bar.close))
    return 0 if left[0] <= left[1] else 1


def matters_from(order: Order, quote: Quote, trail: int = 0) -> int | None:
    """Return the market time from which a quote such as *quote* can change the resting *order*.

    None where it cannot: it does not reach a stop, or does not stand beyond a limit that rests.
    A trailing stop follows by *trail*.
    """
    if order.role is OrderRole.LIQUIDATION:
        return None
    if order.until_ms is not None and quote.market_ms >= order.until_ms:
        return order.until_ms
    far = quote.ask if order.side is Side.BUY else quote.bid
    is_due = order.status is OrderStatus.NEW or (order.price is None and not is_waiting_stop(order))
    return order.eligible_ms if is_due or _is_met(order, far, far, trail) else None


def passes(resting: RestingOrders, bar: Bar) -> bool:
    """Return whether *bar* leaves all that rests as it is, as at most bars under a stop.

    What has a time at which it ends may end inside any bar.
    """
    if resting.order is not None:
        return False
    for order in resting.others:
        if order.kind is OrderKind.MARKET or order.until_ms is not None:
            return False
        if order.status is OrderStatus.NEW or (order.triggered and order.price is None):
            return False  # it has to arrive, or takes
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
