"""Exit orders: a signal's stop, target, trailing stop and time limit become resting orders.

A signal that passed its gates leaves a :class:`Plan` in each account that follows it. The plan's
orders are placed when the entry fills, and updated with every later fill to the size of the
position. If a signal closes or reverses the position, the plan stays until that order is filled.
Then the next plan takes its place. After an exit order closed a position, another entry on its
side has to wait for another signal.

``place_protection`` sets the only protective order of a role (STOP, TARGET, TRAILING or UNTIL).
Placing a role again amends the resting order, or leaves it if nothing differs. All these orders are
reduce-only and sized to the position: a fill that shrinks the position shrinks them, and the fill
that closes it cancels them.

The rules are docs/protection.md, E11 to E22.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Final

from msgspec import Struct
from msgspec.structs import replace

from tracepaper.daemon.broker.exit_plans import Exits, Level, Plan, Planner, nearest
from tracepaper.daemon.broker.orders import PROTECTIVE, OrderEvent, after, kind_of
from tracepaper.strategies.api.context import Signal
from tracepaper.strategies.types.decisions import Action, Order, OrderKind, OrderRole, OrderStatus
from tracepaper.strategies.types.market import Instrument, Quote, Side

if TYPE_CHECKING:
    from tracepaper.daemon.broker.line import Line


class ProtectionState(Struct, frozen=True, array_like=True):
    """The stored state of the exit orders of one line."""

    plan: Plan | None = None
    trail: int = 0  # distance of the resting trailing stop to the price; 0 without one
    closed: int = 0  # sign of the position that an exit order closed, until another signal; or 0
    closed_by: OrderRole | None = None  # the role of that exit order
    next_plan: Plan | None = None  # replaces the plan once the plan's position is closed


def waits_after(role: OrderRole) -> str:
    """Return why an entry has to wait after an exit order of *role* closed the position."""
    return f"closed by its {role.words}; it enters again after another signal"


NO_NEXT_PLAN: Final = Plan(0)
"""Marks, as the following plan, that the position is being closed and not reversed."""


class Protector:
    """The exit orders of one line, and its liquidation order."""

    def __init__(self, line: Line, exits: Exits | None = None) -> None:
        """Protect the position of *line*; *exits* are the [exits] of the configuration, if any."""
        self._line, self._resting = line, line.orders
        self.exits = exits
        self.planner: Planner
        self._state = ProtectionState()

    def change(self, instrument: Instrument) -> None:
        """Use the exchange's new filters for exit orders placed from now on."""
        self.planner = Planner(instrument, self.exits)

    @property
    def state(self) -> ProtectionState:
        """The state to store."""
        return self._state

    @state.setter
    def state(self, state: ProtectionState) -> None:
        self._state = state
        self._resting.trail = state.trail
        self._resting.is_guarded = state.plan is not None or state.closed != 0
        self._resting.journal.has_changes = True

    @property
    def is_active(self) -> bool:
        """Whether there is a plan, for a position or for a resting entry."""
        return self._state.plan is not None

    @property
    def is_timed(self) -> bool:
        """Whether the plan ends or changes at some time."""
        plan = self._state.plan
        return plan is not None and (plan.until_ms is not None or self._is_timed)

    @property
    def _is_timed(self) -> bool:
        return self.exits is not None and bool(self.exits.roi or self.exits.time_limit_ms)

    def _protects(self, plan: Plan) -> bool:
        """Return whether the position has the side of *plan* and at least one step to close."""
        held = self._line.held
        return held * plan.sign > 0 and self._resting.closable(held) > 0

    def matters_from(self, quote: Quote) -> int | None:
        """Return the market time from which *quote* applies a time limit that is due, or None."""
        plan = self._state.plan
        if plan is None or not self.is_timed:  # as at most quotes
            return None
        due_times = [] if plan.until_ms is None else [plan.until_ms]
        opened_ms = self._line.holding.opened_ms
        if self.exits is not None and opened_ms:
            age_ms = self.exits.next_age_ms(plan, self._line.entry_price)
            due_times += [] if age_ms is None else [opened_ms + age_ms]
        first = min(due_times, default=None)
        return None if first is None or quote.market_ms < first else first

    # ------------------------------------------------------------ entries after an exit

    def on_signal(self, action: Action) -> bool:
        """End the wait after an exit if *action* is another signal; return whether it ended."""
        closed = self._state.closed
        if not closed or (action is not Action.FLAT and _sign(action) * closed >= 0):
            return False
        self.state = replace(self._state, closed=0, closed_by=None)
        return True

    def refusal(self, signal: Signal) -> str | None:
        """Return why the entry *signal* has to wait for another signal first, or None."""
        if not self._state.closed or signal.reenter or _sign(signal.action) != self._state.closed:
            return None
        if self.exits is not None and self.exits.reenter:
            return None
        assert self._state.closed_by is not None
        return waits_after(self._state.closed_by)

    # ------------------------------------------------------------ resting orders

    def place_protection(
        self,
        role: OrderRole,
        at_ms: int,
        reason: str,
        *,
        trigger: int | None = None,
        price: int | None = None,
        market: int | None = None,
    ) -> None:
        """Place or amend the order of *role* that closes the position.

        With *trigger* alone it is a stop, with *price* alone a limit, with neither a market order;
        both are in units of the price and whole ticks. Exit orders have no latency. A limit that
        the *market* has not reached rests at once. If the market has reached the new price of a
        limit, the order is sent anew and takes.
        """
        resting, held = self._resting, self._line.held
        quantity = resting.closable(held)
        kind = kind_of(price, trigger)
        armed = resting.protective(role)
        side = Side.SELL if held > 0 else Side.BUY
        rests = kind is OrderKind.LIMIT and _is_ahead(side, price, market)
        if armed is not None and (armed.side, armed.kind) == (side, kind):
            total = armed.filled + quantity
            if armed.triggered:
                trigger, price, reason = armed.trigger, armed.price, armed.reason
            if (armed.quantity, armed.trigger, armed.price) == (total, trigger, price):
                return
            if rests or price == armed.price:
                amended = after(
                    armed,
                    OrderEvent.REPLACE,
                    quantity=total,
                    trigger=trigger,
                    price=price,
                    reason=reason,
                )
                if rests and amended.status is OrderStatus.NEW:
                    amended = after(amended, OrderEvent.ACCEPT)
                resting.note(amended)
                return
        if armed is not None:
            resting.end(armed, "replaced")
        order = resting.exit_order(
            held, role=role, reason=reason, at_ms=at_ms, quantity=quantity, price=price,
            trigger=trigger,
        )  # fmt: skip
        resting.add(after(order, OrderEvent.ACCEPT) if rests else order)

    def set_liquidation_price(self, at_ms: int, *, amends_only: bool = False) -> None:
        """Place or amend the liquidation order of an isolated position.

        It triggers like a stop, at the liquidation price, and closes the position at the
        bankruptcy price wherever the market is. With *amends_only* no new order is placed.
        """
        if (rules := self._line.isolated_rules) is None:
            return
        resting, holding, held = self._resting, self._line.holding, self._line.held
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

    def cancel_protection(self, reason: str, roles: Collection[OrderRole] = PROTECTIVE) -> None:
        """Cancel the protective orders of *roles*."""
        for order in self._resting.others:
            if order.role in roles:
                self._resting.end(order, reason)

    # ------------------------------------------------------------ plans

    def follow(self, plan: Plan, price: int, at_ms: int) -> None:
        """Protect the position, or the coming entry, by *plan*, which replaces the plan before.

        Orders that the plan does not name are canceled, except for a trailing stop that is nearer.
        A plan of the other side waits until the position is closed. *price* is the newest close.
        """
        before, held = self._state.plan, self._line.held
        if before is not None and before.sign != plan.sign and before.sign * held > 0:
            self.state = replace(self._state, next_plan=plan)
            return
        is_nearer = True
        if before is not None and before.sign == plan.sign:
            is_nearer = self._is_nearer(plan.trailing, before.trailing)
            if not is_nearer:
                plan = replace(plan, trailing=before.trailing)
        self.state = replace(
            self._state,
            plan=None if plan.is_empty and not self._is_timed else plan,
            closed=0,
            closed_by=None,
            next_plan=None,
        )
        self._place(plan, price, at_ms, is_nearer=is_nearer)

    def _is_nearer(self, named: Level | None, before: Level | None) -> bool:
        """Return whether the trailing stop *named* by a repeated signal replaces the one *before*.

        It does if its distance is smaller, or if the one before is not resting yet.
        """
        if named is None or before is None:
            return named is not None
        is_armed = self._resting.protective(OrderRole.TRAILING) is not None
        return not is_armed or self.planner.to_tick(named.distance(self._line.entry_price)) < (
            self._state.trail
        )

    def on_fills(self, filled: Sequence[Order], market: int, at_ms: int) -> None:
        """Update plan and exit orders after the orders *filled*, with the price at *market*."""
        state = self._state
        plan = state.plan
        if plan is None:
            return
        closing = next((order for order in filled if order.role in PROTECTIVE), None)
        if closing is not None and state.next_plan is None:
            self.state = replace(state, closed=plan.sign, closed_by=closing.role)
        is_by_signal = any(order.role is OrderRole.SIGNAL for order in filled)
        is_held = self._protects(plan)
        if not is_held and (state.next_plan is not None or not is_by_signal):
            # The fill that closed the position has already canceled its exit orders.
            plan = state.next_plan
            if plan is not None and (
                plan == NO_NEXT_PLAN or (plan.is_empty and not self._is_timed)
            ):
                plan = None
            self.state = replace(self._state, plan=plan, trail=0, next_plan=None)
        elif not is_by_signal:
            return
        if plan is not None:
            self._place(plan, market, at_ms)

    def leave(self, reason: str) -> None:
        """End the plan: at once without a position, else when the position is closed.

        *reason* is that of the orders which are canceled at once.
        """
        plan = self._state.plan
        if plan is None:
            return
        if not self._protects(plan):
            self.state = replace(self._state, plan=None, trail=0, next_plan=None)
            self.cancel_protection(reason)
        elif self._state.next_plan != NO_NEXT_PLAN:
            self.state = replace(self._state, next_plan=NO_NEXT_PLAN)

    def act_if_due(self, market_ms: int, bid: int, ask: int) -> None:
        """Apply the time limits that are reached, with the market at *bid* and *ask*.

        They close the position, end a plan that was never entered, or set the target that
        minimal_roi has for the position's age.
        """
        plan, line = self._state.plan, self._line
        if plan is None:
            return
        is_over = plan.until_ms is not None and market_ms >= plan.until_ms
        if not self._protects(plan):
            if is_over and not self._resting.leads_on(line.held):
                self._resting.target = line.held  # the entry never filled
                self.state = replace(self._state, plan=None, next_plan=None)
            return
        reason, target = ("until" if is_over else ""), plan.target
        if self.exits is not None:
            age_ms = market_ms - line.holding.opened_ms
            if not is_over and 0 < self.exits.time_limit_ms <= age_ms:
                reason = self.exits.limit_words
            target = nearest((target, self.exits.roi_at(age_ms)), line.entry_price, plan.sign)
        if reason:
            self.place_protection(OrderRole.UNTIL, market_ms, reason)
        elif target is not plan.target:
            plan = replace(plan, target=target)
            self.state = replace(self._state, plan=plan)
            self._place_target(plan, bid if line.held > 0 else ask, market_ms)

    def _place_target(self, plan: Plan, market: int, at_ms: int) -> None:
        if (level := plan.target) is not None:
            price = self.planner.to_tick(level.at(self._line.entry_price, plan.sign))
            self.place_protection(OrderRole.TARGET, at_ms, level.words, price=price, market=market)

    def _place(self, plan: Plan, market: int, at_ms: int, *, is_nearer: bool | None = None) -> None:
        """Place all orders of *plan* for the position on its side, with the market at *market*.

        A resting trailing stop keeps its trigger, unless the new one *is_nearer* and follows the
        market from here. After an entry (None) a new trailing stop begins at the entry price.
        """
        if not self._protects(plan):
            return
        entry = self._line.entry_price
        unwanted = []
        closing = self._resting.protective(OrderRole.UNTIL)
        is_over = plan.until_ms is not None and at_ms >= plan.until_ms
        limit = None if self.exits is None else self.exits.limit_words
        if closing is not None and (is_over or closing.reason == limit):
            self.place_protection(OrderRole.UNTIL, at_ms, closing.reason)
        elif not is_over:
            unwanted.append(OrderRole.UNTIL)
        if plan.stop is None:
            unwanted.append(OrderRole.STOP)
        else:
            stop = self.planner.to_tick(plan.stop.at(entry, -plan.sign))
            self.place_protection(OrderRole.STOP, at_ms, plan.stop.words, trigger=stop)
        if plan.target is None:
            unwanted.append(OrderRole.TARGET)
        self._place_target(plan, market, at_ms)
        if plan.trailing is not None:
            armed = self._resting.protective(OrderRole.TRAILING)
            trigger = None if armed is None else armed.trigger
            if trigger is None or is_nearer:
                distance = self.planner.to_tick(plan.trailing.distance(entry))
                if self._state.trail != distance:
                    self.state = replace(self._state, trail=distance)
                basis = entry if is_nearer is None else market
                tightest = max if plan.sign > 0 else min
                new = self.planner.to_tick(basis - plan.sign * distance)
                trigger = new if trigger is None else tightest(trigger, new)
            self.place_protection(OrderRole.TRAILING, at_ms, plan.trailing.words, trigger=trigger)
        if unwanted:
            self.cancel_protection("the signal no longer asks for it", unwanted)


def _is_ahead(side: Side, price: int | None, market: int | None) -> bool:
    """Return whether a limit at *price* is still ahead of the *market*."""
    if price is None or market is None:
        return False
    return price > market if side is Side.SELL else price < market


def _sign(action: Action) -> int:
    if action is Action.LONG:
        return 1
    return -1 if action is Action.SHORT else 0
