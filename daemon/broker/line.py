"""``Line``: one instrument in one book, in exact integers.

A line is a position at the exchange, or one owner's share of it. It has the holding, the resting
orders and the exit orders, and it books fills, settlements and splits.

Linear: cash = start + realized - fees - funding; equity = cash + unrealized. Spot and shares: cash
is the quote balance, start + realized - fees - entry notional of the holding; equity = cash + the
holding's value at the mark. A position stores its entry notional, since its average price may not
be a finite decimal.

The rules are docs/money.md, M6 to M21, and docs/one_account.md, J12 to J20.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from tracepaper.daemon.broker import splits
from tracepaper.daemon.broker.book_fills import QueueState
from tracepaper.daemon.broker.execution import Executor
from tracepaper.daemon.broker.exit_orders import ProtectionState, Protector
from tracepaper.daemon.broker.orders import OrderContext, OrdersState, RestingOrders
from tracepaper.daemon.broker.rules import NO_CASH, MarginRules
from tracepaper.strategies.api.context import Orders
from tracepaper.strategies.corporate_actions import (
    Entitlement,
    ShareTerms,
    adjusted_price,
    entitlement,
    entitlement_parts,
)
from tracepaper.strategies.errors import InvariantBroken
from tracepaper.strategies.holding import Holding
from tracepaper.strategies.types.decisions import (
    Fill,
    FillModel,
    LedgerKind,
    Liquidity,
    Position,
)
from tracepaper.strategies.types.market import (
    Bar,
    CorporateAction,
    Instrument,
    Side,
)
from tracepaper.strategies.units import RATE_SCALE, divide_half_even

if TYPE_CHECKING:
    from tracepaper.daemon.broker.book import Book
    from tracepaper.daemon.broker.positions import Positions


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
        "book", "executor", "holding", "is_cash", "isolated_rules", "item", "journal",
        "key", "margin_rules", "mark", "notional", "orders", "owner", "parent",
        "position", "positions", "protector", "shares", "terms",
    )  # fmt: skip
    orders: RestingOrders
    executor: Executor
    positions: Positions
    """The account's positions in this instrument, which events meet together."""

    def __init__(self, book: Book, item: Instrument, parent: Line | None = None) -> None:
        """Open the line of *item* in *book*; a share has the line of its position, *parent*."""
        account, settings = book.account, book.settings
        self.book, self.key, self.owner = book, item.id, book.owner
        self.parent = parent
        self.shares: list[Line] = []
        if parent is not None:
            parent.shares.append(self)
        self.is_cash = item.category.is_cash
        self.terms = ShareTerms.of(item)
        self.notional = self.terms.notional
        self.holding = Holding()
        self.mark = 0  # 0 before the first price
        self.position = Position()  # the holding, valued at the mark
        self.margin_rules: MarginRules | None = None  # by which orders are accepted
        self.isolated_rules: MarginRules | None = (
            None  # by which an isolated position is liquidated
        )
        self.journal = account.journal
        net = None if parent is None else parent.orders
        self.orders = RestingOrders(item, settings, book=book, net=net)
        self.protector = Protector(self, settings.exits)
        self.change(item)

    def change(self, item: Instrument) -> None:
        """Use the exchange's new filters and risk tiers for orders and prices from now on."""
        self.item, account = item, self.book.account
        if self.parent is None:
            self.margin_rules = account.policy.rules(item) or self.margin_rules
            self.isolated_rules = self.margin_rules if account.policy.is_isolated else None
        self.orders.change(item, self.margin_rules)
        self.protector.change(item)
        costs = self.book.settings.costs_for(self.key)
        self.executor = Executor(item, costs, account.ranges.get(self.key))

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

    def _post_holding(self) -> None:
        """Value the holding, and add its changes to the sums of the book."""
        holding, before, book = self.holding, self.position, self.book
        self._revalue()
        book.realized += holding.realized_pnl - before.realized_pnl
        book.fees += holding.fees_paid - before.fees_paid
        book.funding += holding.funding_paid - before.funding_paid
        book.bound += holding.margin - before.margin
        if self.is_cash:
            book.paid_entries += holding.entry_notional - before.entry_notional

    # ------------------------------------------------------------ fills, funding, corporate actions

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
        self._post_holding()

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
            available = max(self.book.account.available, 0)
            paid = min(paid, available + holding.margin)
            holding.margin -= max(paid - available, 0)
        self.post_funding(paid)
        return paid

    def post_funding(self, paid: int) -> None:
        """Book *paid* as funding."""
        self.holding.funding_paid += paid
        self.book.move(LedgerKind.FUNDING, -paid, self.key)
        self._post_holding()

    def apply_action(self, action: CorporateAction) -> None:
        """Book a split or a dividend on the holding at the close before it, and adjust orders.

        Cash in lieu and dividends count as realized profit. After a split the mark is the adjusted
        close. Each owner's share gets its part.
        """
        lines = (self, *self.shares)
        total, *parts = [(line.held, line.holding.entry_notional) for line in lines]
        entitled = entitlement(action, *total, self.terms)
        entitled_parts = entitlement_parts(action, entitled, parts, self.terms)
        for line, due in zip(lines, (entitled, *entitled_parts), strict=True):
            line._post_action(action, due)  # noqa: SLF001 - of the same class
        if action.is_split:
            for line, (before, _) in zip((*self.shares, self), (*parts, total), strict=True):
                splits.adjust_orders(line, action, before)

    def _post_action(self, action: CorporateAction, entitled: Entitlement) -> None:
        self.book.move(*self.holding.act(action, entitled), self.key)
        if action.is_split:
            self.mark = adjusted_price(action, action.close)
        self._post_holding()

    def refusal(self, fill: Fill) -> str | None:
        """Return why the account cannot pay for *fill*, or None; it can always close a position."""
        if self.is_cash and fill.side is Side.BUY and fill.notional + fill.fee > self.book.cash:
            return NO_CASH
        is_trial = self.positions.active_trial is not None
        return None if is_trial else self.book.account.policy.refusal(self, fill)

    # ------------------------------------------------------------ market events

    @property
    def waits(self) -> bool:
        """Whether an event can change anything here or in a share.

        It can where an order rests, an exit plan is active, or a position is on cross margin.
        """
        if self.orders.rests or self.protector.is_active:
            return True
        if self.positions.cross is not None and self.held:
            return True  # a bar may liquidate the account
        for share in self.shares:  # noqa: SIM110 - at every bar; a generator costs more
            if share.waits:
                return True
        return False

    def update_exits(self, fills: Sequence[Fill]) -> None:
        """Update the exit orders after *fills* of this line."""
        if not fills or not self.protector.is_active:
            return
        # The market stands at a taker's price; a resting limit was only passed on the way.
        taker_prices = (fill.reference_price for fill in fills if fill.liquidity is Liquidity.TAKER)
        market = next(taker_prices, fills[-1].reference_price)
        filled = [self.journal.order_of(fill) for fill in fills]
        self.protector.on_fills(filled, market, fills[-1].filled_ms)

    def post_part(self, part: Fill) -> None:
        """Book *part* in this share: its part of an order's fill, or a crossing."""
        self.post(part)
        self.journal.share_fills.append((self.owner, part))
        self.journal.has_changes = True

    def sum_share_targets(self) -> None:
        """Set the target to the sum of the shares' targets."""
        self.orders.target = sum(share.orders.target for share in self.shares)

    # ------------------------------------------------------------ targets and orders

    def submit(
        self, target: int, reason: str, context: OrderContext, *, by_command: bool = False
    ) -> str | None:
        """Order what leads to *target*; return why the exchange accepts no order for it, or None.

        A share only records its target: the position's order fills it.
        """
        if self.parent is not None:
            if target != self.orders.target:
                self.set_target(target, reason)
            return None
        cash = self.book.account.spendable(self, is_reversal=target * context.held < 0)
        return self.orders.submit(
            target, reason, context._replace(cash=cash), by_command=by_command
        )

    def affordable(self, target: int, price: int) -> int:
        """Return *target*, or as much of it as the account can pay for at *price*."""
        held = self.held
        funds = self.book.account.spendable(self, is_reversal=target * held < 0)
        return self.orders.affordable(target, held, price, funds)

    def set_target(self, target: int, reason: str) -> None:
        """Set the *target* and its *reason* without an order."""
        orders = self.orders
        if (orders.target, orders.reason) != (target, reason):
            orders.target, orders.reason = target, reason
            self.journal.has_changes = True

    def send(self, orders: Orders, bar: Bar, at_ms: int) -> None:
        """Send the list of *orders*, which were decided at the close of *bar*."""
        position = self.parent or self
        payer = self if self.is_cash else position  # margin is the account's alone
        cash = self.book.account.spendable(payer, is_reversal=False)
        context = OrderContext(at_ms, bar.open_time_ms, bar.close, self.held, cash, position.held)
        self.orders.send(orders.requests, orders.reason, context)

    # ------------------------------------------------------------ state

    def state(self) -> LineState:
        """Return the state to store."""
        queues = self.positions.queues
        state = None
        if queues is not None and self is self.positions.lines[0]:
            # After a restart each line gets the ids of all lines, and uses those of its orders.
            canceling = {
                order.order_id
                for line in self.positions.every_line
                for order in line.orders.others
                if order.order_id in line.orders.canceling
            }
            state = queues.state(sorted(canceling))
        return LineState(self.holding, self.orders.state(), self.protector.state, state)

    def restore(self, state: LineState) -> None:
        """Restore the stored *state*; the bars that are fed again set the mark."""
        self.hold(state.holding)
        self.orders.restore(state.orders)
        self.protector.state = state.protection
        if state.queues is not None and self.positions.queues is not None:
            self.positions.queues.restore(state.queues)
            for line in self.positions.every_line:
                line.orders.canceling = frozenset(state.queues.canceling)

    def hold(self, holding: Holding) -> None:
        """Replace the holding by *holding*, which may come from an account with another margin."""
        held = self.holding = copy(holding)
        if self.isolated_rules is None:
            held.margin = 0
        elif held.quantity and not held.margin:  # taken over from a run without margin
            needed = self.isolated_rules.required(held.entry_notional)
            held.margin = max(min(needed, self.book.account.available), 0)
        self._post_holding()
