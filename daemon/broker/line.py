"""``Line``: one instrument in one book, in exact integers.

A line is a position at the exchange, or one owner's share of it. It has the holding, the resting
orders and the plan of its exit orders, and it books fills and settlements.

Linear: cash = start + realized - fees - funding; equity = cash + unrealized. Spot and shares: cash
is the quote balance, start + realized - fees - entry notional of the holding; equity = cash + the
holding's value at the mark. A position stores its entry notional, since its average price may not
be a finite decimal.

The rules are docs/money.md, M6 to M21, and docs/one_account.md, J12 to J20.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

from msgspec import Struct
from msgspec.structs import replace

from tracepaper.daemon.broker.book_fills import Queues, QueueState
from tracepaper.daemon.broker.execution import Executor, MeanRange
from tracepaper.daemon.broker.exit_plans import Planner, ProtectionState
from tracepaper.daemon.broker.journal import FillEntry
from tracepaper.daemon.broker.orders import (
    OrderEvent,
    OrdersState,
    RestingOrders,
    after,
)
from tracepaper.daemon.broker.rules import NO_CASH, MarginRules
from tracepaper.daemon.broker.totals import Totals
from tracepaper.strategies.apportion import apportion
from tracepaper.strategies.corporate_actions import ShareTerms
from tracepaper.strategies.errors import InvariantBroken
from tracepaper.strategies.holding import Holding
from tracepaper.strategies.types.decisions import (
    Fill,
    FillModel,
    LedgerKind,
    Order,
    OrderRole,
    Position,
)
from tracepaper.strategies.types.market import (
    Category,
    Instrument,
    Side,
)
from tracepaper.strategies.units import RATE_SCALE, divide_half_even


class LineState(Struct, frozen=True, array_like=True):
    """The stored state of a line."""

    holding: Holding
    orders: OrdersState
    protection: ProtectionState = ProtectionState()
    queues: QueueState | None = None  # None where no order book fills orders

    def taken_over(self) -> LineState:
        """Return the state for a run that continues another one."""
        queues = None if self.queues is None else self.queues.taken_over()
        return replace(self, orders=self.orders.taken_over(), queues=queues)


def signed_quantity(fill: Fill) -> int:
    """Return the quantity of *fill*, negative for a sale."""
    return fill.quantity if fill.side is Side.BUY else -fill.quantity


class Line:
    """One instrument in one book."""

    __slots__ = (
        "book", "executor", "exits", "holding", "is_cash", "is_cross", "is_guarded",
        "isolated_rules", "item", "journal", "key", "margin_rules", "mark", "mean_range",
        "notional", "orders", "owner", "parent", "planner", "position", "protection", "queues",
        "shares", "terms",
    )  # fmt: skip
    orders: RestingOrders
    executor: Executor
    planner: Planner

    def __init__(
        self,
        book: Totals,
        item: Instrument,
        parent: Line | None = None,
        *,
        queues: Queues | None = None,
        mean_range: MeanRange | None = None,
    ) -> None:
        """Open the line of *item* in *book*; a share has the line of its position, *parent*.

        *queues* are those of the account, where order books fill orders.
        """
        settings = book.settings
        self.book, self.key, self.owner, self.journal = book, item.id, book.owner, book.journal
        self.parent = parent
        self.shares: list[Line] = []
        if parent is not None:
            parent.shares.append(self)
        self.is_cash = item.category.is_cash
        self.is_cross = settings.leverage is not None and settings.is_cross
        self.terms = ShareTerms.of(item)
        self.notional = self.terms.notional
        self.holding = Holding()
        self.mark = 0  # 0 before the first price
        self.position = Position()  # the holding, valued at the mark
        self.margin_rules: MarginRules | None = None  # by which orders are accepted
        self.isolated_rules: MarginRules | None = (
            None  # by which an isolated position is liquidated
        )
        self.queues, self.mean_range = queues, mean_range
        net = None if parent is None else parent.orders
        self.orders = RestingOrders(item, settings, book=book, net=net)
        self.exits = settings.exits
        self.protection = ProtectionState()  # the plan of the exit orders
        self.is_guarded = False  # an exit plan is active, or an entry waits for another signal
        self.change(item)

    def change(self, item: Instrument) -> None:
        """Use the exchange's new filters and risk tiers for orders and prices from now on."""
        self.item, settings = item, self.book.settings
        costs = settings.costs_for(self.key)
        if (
            self.parent is None
            and settings.leverage is not None
            and item.category is Category.LINEAR
        ):
            self.margin_rules = MarginRules(
                item, settings.leverage, costs.taker_fee, is_cross=settings.is_cross
            )
            self.isolated_rules = None if settings.is_cross else self.margin_rules
        self.orders.change(item, self.margin_rules)
        self.planner = Planner(item, self.exits)
        self.executor = Executor(item, costs, self.mean_range)

    def protect_by(self, state: ProtectionState) -> None:
        """Replace the plan of the exit orders and what belongs to it by *state*."""
        if state == self.protection:
            return  # a repeated entry names the same plan: no new state to store
        self.protection = state
        self.is_guarded = state.plan is not None or state.closed != 0
        self.journal.has_changes = True

    # ------------------------------------------------------------ the holding and its value

    @property
    def held(self) -> int:
        """The quantity of the holding, signed."""
        return self.holding.quantity

    @property
    def entry_price(self) -> int:
        """The average entry price of the holding, half-even; 0 without one."""
        held = self.holding
        if not held.quantity:
            return 0
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

    def profits_at(self, prices: Sequence[int]) -> list[int]:
        """Return the unrealized profit of the holding at each of *prices*, in money."""
        quantity, entry, value_at = self.held, self.holding.entry_notional, self.notional
        if not quantity:
            return [0] * len(prices)
        return [value_at(price, quantity) - entry for price in prices]

    def _revalue(self) -> None:
        """Value the holding at the mark; before the first price, as taken over, at its entry."""
        holding = self.holding
        (unrealized,) = self.profits_at((self.mark,)) if self.mark else (0,)
        self.book.unrealized += unrealized - self.position.unrealized_pnl
        self.position = Position(
            holding.quantity,
            holding.entry_notional,
            holding.realized_pnl,
            unrealized,
            holding.fees_paid,
            holding.funding_paid,
            holding.margin,
            holding.funding_paid if self.book.sign > 0 else 0,
        )
        self.book.forget_balance()

    def post_holding(self) -> None:
        """Value the holding, and add its changes to the sums of the book."""
        holding, before, book = self.holding, self.position, self.book
        self._revalue()
        book.realized += holding.realized_pnl - before.realized_pnl
        book.fees += holding.fees_paid - before.fees_paid
        book.funding += holding.funding_paid - before.funding_paid
        book.ledger.bound += holding.margin - before.margin
        if self.is_cash:
            book.paid_entries += holding.entry_notional - before.entry_notional

    # ------------------------------------------------------------ fills and funding

    def apply(self, fill: Fill) -> Order:
        """Apply *fill* to the position and its shares; return the order after it.

        The order rests in the position itself or in one of its shares. A fill of a share's order
        is also a fill of the position; one of the position's order is apportioned to the shares.
        """
        line = next(
            (share for share in self.shares if share.orders.find(fill.order_id) is not None), self
        )
        before = self.position
        self.post(fill)
        if line is not self:
            line.post_part(fill)
        order = line.orders.apply_fill(fill, line.held)
        if line is not self:
            self.sum_share_targets()
            self.orders.resize(self.held)
            self.orders.shrink_to_target(self.held)
        elif self.shares:
            self._apportion(fill, order)
        self.journal.entries.append(FillEntry(fill, order, before, self.position))
        # The rest of the event meets the changed position.
        self.set_liquidation_price(fill.filled_ms, amends_only=True)
        return order

    def _apportion(self, fill: Fill, order: Order) -> None:
        """Apportion *fill* of the position's *order* to the shares.

        The weights are the distances to the targets in the direction of the fill. If there are
        none, or the order only reduces, the weights are the holdings that the fill reduces. After
        a reduction, by liquidation for instance, the targets are set to what is left.
        """
        shares, sign = self.shares, 1 if fill.side is Side.BUY else -1
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
                notional = self.executor.notional(fill.price, quantity)
                part = replace(
                    fill, quantity=quantity, notional=notional, fee=fee, fee_base=fee_base
                )
                share.post_part(part)
                share.orders.resize(share.held)
            if order.reduce_only:
                share.set_target(share.held, "liquidated")

    def post(self, fill: Fill) -> None:
        """Book *fill* in this line alone: holding, cash and fees."""
        holding, book = self.holding, self.book
        before = holding.quantity
        if self.is_cash and -signed_quantity(fill) > before:
            raise InvariantBroken(f"sold {fill.quantity} of {before} held")
        for kind, amount in holding.fill(
            signed_quantity(fill),
            fill.notional,
            fill.fee,
            fill.fee_base,
            is_cash=self.is_cash,
            is_liquidation=fill.model is FillModel.LIQUIDATION,
            required=None if self.isolated_rules is None else self.isolated_rules.required,
        ):
            book.move(kind, amount, self.key, fill.order_id)
        if before * holding.quantity <= 0:
            holding.opened_ms = fill.filled_ms if holding.quantity else 0
        if holding.quantity * book.sign < 0:
            raise InvariantBroken(
                f"order {fill.order_id} closed more of {self.key} than its {book.side} side held"
            )
        if self.key in book.fills:
            book.fills[self.key].append(fill)
        self.post_holding()

    def pay_funding(self, rate: int) -> int:
        """Settle funding of *rate* (10⁻¹⁰ of the value at the mark); return the paid amount.

        An isolated position pays from the available balance first, then from its margin. It never
        pays more than both.
        """
        holding = self.holding
        if not holding.quantity or self.is_cash:
            return 0
        paid = divide_half_even(self.value(holding.quantity) * rate, RATE_SCALE)
        if self.isolated_rules is not None:
            available = max(self.book.ledger.available, 0)
            paid = min(paid, available + holding.margin)
            holding.margin -= max(paid - available, 0)
        self.post_funding(paid)
        return paid

    def post_funding(self, paid: int) -> None:
        """Book *paid* as funding."""
        self.holding.funding_paid += paid
        self.book.move(LedgerKind.FUNDING, -paid, self.key)
        self.post_holding()

    def unpaid(self, fill: Fill) -> str | None:
        """Return why the cash cannot pay for *fill*, or None; margin is the account's alone."""
        is_paid = not self.is_cash or fill.side is Side.SELL
        return None if is_paid or fill.notional + fill.fee <= self.book.cash else NO_CASH

    def post_part(self, part: Fill) -> None:
        """Book *part* in this share: its part of an order's fill, or a crossing."""
        self.post(part)
        self.journal.share_fills.append((self.owner, part))
        self.journal.has_changes = True

    def sum_share_targets(self) -> None:
        """Set the target to the sum of the shares' targets."""
        self.orders.target = sum(share.orders.target for share in self.shares)

    def set_target(self, target: int, reason: str) -> None:
        """Set the *target* and its *reason* without an order."""
        orders = self.orders
        if (orders.target, orders.reason) != (target, reason):
            orders.target, orders.reason = target, reason
            self.journal.has_changes = True

    # ------------------------------------------------------------ orders

    @property
    def waits(self) -> bool:
        """Whether an event can change anything here or in a share.

        It can where an order rests, an exit plan is active, or a position is on cross margin.
        """
        if self.orders.rests or self.protection.plan is not None:
            return True
        if self.is_cross and self.holding.quantity:
            return True  # a bar may liquidate the account
        for share in self.shares:  # noqa: SIM110 - at every bar; a generator costs more
            if share.waits:
                return True
        return False

    def set_liquidation_price(self, at_ms: int, *, amends_only: bool = False) -> None:
        """Place or amend the liquidation order of an isolated position.

        It triggers like a stop, at the liquidation price, and closes the position at the
        bankruptcy price wherever the market is. With *amends_only* no new order is placed.
        """
        if (rules := self.isolated_rules) is None:
            return
        resting, holding, held = self.orders, self.holding, self.held
        bounds = rules.bounds(holding.entry_notional, held, holding.margin) if held else None
        armed = resting.protective(OrderRole.LIQUIDATION)
        quantity = resting.closable(held)
        if bounds is None or not quantity:
            if armed is not None and not amends_only:  # the exchange's step grew
                resting.end(armed, "nothing is held")
        elif armed is not None:
            amended = replace(
                armed, quantity=armed.filled + quantity, trigger=bounds.liquidation,
                price=bounds.bankruptcy, reason=bounds.reason, triggered=False,
            )  # fmt: skip
            if amended != armed:
                resting.note(after(amended, OrderEvent.REPLACE))
        elif not amends_only:
            order = resting.exit_order(
                held, role=OrderRole.LIQUIDATION, reason=bounds.reason, at_ms=at_ms,
                quantity=quantity, price=bounds.bankruptcy, trigger=bounds.liquidation,
            )  # fmt: skip
            resting.add(after(order, OrderEvent.ACCEPT))

    # ------------------------------------------------------------ state

    def state(self) -> LineState:
        """Return the state to store; the first line of the account stores the queues."""
        is_first = self.parent is None and self.book.sign >= 0
        queues = self.queues.state() if self.queues is not None and is_first else None
        return LineState(self.holding, self.orders.state(), self.protection, queues)

    def restore(self, state: LineState) -> None:
        """Restore the stored *state*; the bars that are fed again set the mark."""
        self.hold(state.holding)
        self.orders.restore(state.orders)
        self.protect_by(state.protection)
        if state.queues is not None and self.queues is not None:
            self.queues.restore(state.queues)

    def hold(self, holding: Holding) -> None:
        """Replace the holding by *holding*, which may come from an account with another margin."""
        held = self.holding = copy(holding)
        if self.isolated_rules is None:
            held.margin = 0
        elif held.quantity and not held.margin:  # taken over from a run without margin
            needed = self.isolated_rules.required(held.entry_notional)
            held.margin = max(min(needed, self.book.ledger.available), 0)
        self.post_holding()
