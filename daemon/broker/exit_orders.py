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

from collections.abc import Collection
from typing import Final

from msgspec.structs import replace

from tracepaper.daemon.broker.exit_plans import Level, Plan, nearest
from tracepaper.daemon.broker.line import Line
from tracepaper.daemon.broker.orders import PROTECTIVE, OrderEvent, after
from tracepaper.strategies.api.context import Signal
from tracepaper.strategies.types.decisions import (
    Action,
    Liquidity,
    OrderKind,
    OrderRole,
    OrderStatus,
)
from tracepaper.strategies.types.market import Quote, Side


def waits_after(role: OrderRole) -> str:
    """Return why an entry has to wait after an exit order of *role* closed the position."""
    return f"closed by its {role.label}; it enters again after another signal"


NO_NEXT_PLAN: Final = Plan(0)
"""Marks, as the following plan, that the position is being closed and not reversed."""


def is_timed(line: Line) -> bool:
    """Whether the plan ends or changes at some time."""
    plan = line.protection.plan
    return plan is not None and (plan.until_ms is not None or _has_time_limits(line))


def _has_time_limits(line: Line) -> bool:
    return line.exits is not None and bool(line.exits.roi or line.exits.time_limit_ms)


def _protects(line: Line, plan: Plan) -> bool:
    """Return whether the position has the side of *plan* and at least one step to close."""
    held = line.held
    return held * plan.sign > 0 and line.closable > 0


def due_from_ms(line: Line, quote: Quote) -> int | None:
    """Return the market time from which *quote* applies a time limit that is due, or None."""
    plan = line.protection.plan
    if plan is None or not is_timed(line):  # as at most quotes
        return None
    due_times = [] if plan.until_ms is None else [plan.until_ms]
    opened_ms = line.holding.opened_ms
    if line.exits is not None and opened_ms:
        age_ms = line.exits.next_age_ms(plan, line.entry_price)
        due_times += [] if age_ms is None else [opened_ms + age_ms]
    first = min(due_times, default=None)
    return None if first is None or quote.market_ms < first else first


# ------------------------------------------------------------ entries after an exit


def on_signal(line: Line, action: Action) -> None:
    """End the wait after an exit if *action* is another signal."""
    closed = line.protection.closed
    if closed and (action is Action.FLAT or _sign(action) * closed < 0):
        line.protect_by(replace(line.protection, closed=0, closed_by=None))


def entry_refusal(line: Line, signal: Signal) -> str | None:
    """Return why the entry *signal* has to wait for another signal first, or None."""
    if (
        not line.protection.closed
        or signal.reenter
        or _sign(signal.action) != line.protection.closed
    ):
        return None
    if line.exits is not None and line.exits.reenter:
        return None
    assert line.protection.closed_by is not None
    return waits_after(line.protection.closed_by)


# ------------------------------------------------------------ resting orders


def place_protection(
    line: Line,
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
    held, quantity = line.held, line.closable
    kind = OrderKind.of(price, trigger)
    armed = line.protective(role)
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
            line.note(amended)
            return
    if armed is not None:
        line.end(armed, "replaced")
    order = line.exit_order(
        role=role, reason=reason, at_ms=at_ms, quantity=quantity, price=price,
        trigger=trigger,
    )  # fmt: skip
    line.add(after(order, OrderEvent.ACCEPT) if rests else order)


def cancel_protection(line: Line, reason: str, roles: Collection[OrderRole] = PROTECTIVE) -> None:
    """Cancel the protective orders of *roles*."""
    for order in line.others:
        if order.role in roles:
            line.end(order, reason)


# ------------------------------------------------------------ plans


def follow(line: Line, plan: Plan, price: int, at_ms: int) -> None:
    """Protect the position, or the coming entry, by *plan*, which replaces the plan before.

    Orders that the plan does not name are canceled, except for a trailing stop that is nearer.
    A plan of the other side waits until the position is closed. *price* is the newest close.
    """
    before, held = line.protection.plan, line.held
    if before is not None and before.sign != plan.sign and before.sign * held > 0:
        line.protect_by(replace(line.protection, next_plan=plan))
        return
    is_nearer = True
    if before is not None and before.sign == plan.sign:
        is_nearer = _is_nearer(line, plan.trailing, before.trailing)
        if not is_nearer:
            plan = replace(plan, trailing=before.trailing)
    line.protect_by(
        replace(
            line.protection,
            plan=None if plan.is_empty and not _has_time_limits(line) else plan,
            closed=0,
            closed_by=None,
            next_plan=None,
        )
    )
    _place(line, plan, price, at_ms, is_nearer=is_nearer)


def _is_nearer(line: Line, named: Level | None, before: Level | None) -> bool:
    """Return whether the trailing stop *named* by a repeated signal replaces the one *before*.

    It does if its distance is smaller, or if the one before is not resting yet.
    """
    if named is None or before is None:
        return named is not None
    is_armed = line.protective(OrderRole.TRAILING) is not None
    return not is_armed or line.planner.to_tick(named.distance(line.entry_price)) < (
        line.protection.trail
    )


def protect_fills(line: Line, first: int) -> None:
    """Update plan and exit orders of *line* after the fills of a pass.

    *first* is the number of the account's fills before the pass.
    """
    ledger, state, plan = line.ledger, line.protection, line.protection.plan
    if plan is None:
        return
    fills = [entry.fill for entry in ledger.fills[first:] if entry.fill.instrument == line.key]
    if not fills:
        return
    filled = [ledger.orders[fill.order_id] for fill in fills]
    closing = next((order for order in filled if order.role in PROTECTIVE), None)
    if closing is not None and state.next_plan is None:
        line.protect_by(replace(state, closed=plan.sign, closed_by=closing.role))
    is_by_signal = any(order.role is OrderRole.SIGNAL for order in filled)
    if not _protects(line, plan) and (state.next_plan is not None or not is_by_signal):
        # The fill that closed the position has already canceled its exit orders.
        plan = state.next_plan
        if plan is not None and (
            plan == NO_NEXT_PLAN or (plan.is_empty and not _has_time_limits(line))
        ):
            plan = None
        line.protect_by(replace(line.protection, plan=plan, trail=0, next_plan=None))
    elif not is_by_signal:
        return
    if plan is not None:
        # The market stands at a taker's price; a resting limit was only passed on the way.
        takers = (fill.reference_price for fill in fills if fill.liquidity is Liquidity.TAKER)
        market = next(takers, fills[-1].reference_price)
        _place(line, plan, market, fills[-1].filled_ms)


def leave(line: Line, reason: str) -> None:
    """End the plan: at once without a position, else when the position is closed.

    *reason* is that of the orders which are canceled at once.
    """
    plan = line.protection.plan
    if plan is None:
        return
    if not _protects(line, plan):
        line.protect_by(replace(line.protection, plan=None, trail=0, next_plan=None))
        cancel_protection(line, reason)
    elif line.protection.next_plan != NO_NEXT_PLAN:
        line.protect_by(replace(line.protection, next_plan=NO_NEXT_PLAN))


def act_if_due(line: Line, market_ms: int, bid: int, ask: int) -> None:
    """Apply the time limits of a plan that are reached, with the market at *bid* and *ask*.

    They close the position, end a plan that was never entered, or set the target that
    minimal_roi has for the position's age.
    """
    plan = line.protection.plan
    assert plan is not None
    is_over = plan.until_ms is not None and market_ms >= plan.until_ms
    if not _protects(line, plan):
        if is_over and line.order is None:
            line.target = line.held  # the entry never filled
            line.protect_by(replace(line.protection, plan=None, next_plan=None))
        return
    reason, target = ("until" if is_over else ""), plan.target
    if line.exits is not None:
        age_ms = market_ms - line.holding.opened_ms
        if not is_over and 0 < line.exits.time_limit_ms <= age_ms:
            reason = line.exits.limit_reason
        target = nearest((target, line.exits.roi_at(age_ms)), line.entry_price, plan.sign)
    if reason:
        place_protection(line, OrderRole.UNTIL, market_ms, reason)
    elif target is not plan.target:
        plan = replace(plan, target=target)
        line.protect_by(replace(line.protection, plan=plan))
        _place_target(line, plan, bid if line.held > 0 else ask, market_ms)


def _place_target(line: Line, plan: Plan, market: int, at_ms: int) -> None:
    if (level := plan.target) is not None:
        price = line.planner.to_tick(level.at(line.entry_price, plan.sign))
        place_protection(line, OrderRole.TARGET, at_ms, level.reason, price=price, market=market)


def _place(
    line: Line, plan: Plan, market: int, at_ms: int, *, is_nearer: bool | None = None
) -> None:
    """Place all orders of *plan* for the position on its side, with the market at *market*.

    A resting trailing stop keeps its trigger, unless the new one *is_nearer* and follows the
    market from here. After an entry (None) a new trailing stop begins at the entry price.
    """
    if not _protects(line, plan):
        return
    entry = line.entry_price
    unwanted = []
    closing = line.protective(OrderRole.UNTIL)
    is_over = plan.until_ms is not None and at_ms >= plan.until_ms
    limit = None if line.exits is None else line.exits.limit_reason
    if closing is not None and (is_over or closing.reason == limit):
        place_protection(line, OrderRole.UNTIL, at_ms, closing.reason)
    elif not is_over:
        unwanted.append(OrderRole.UNTIL)
    if plan.stop is None:
        unwanted.append(OrderRole.STOP)
    else:
        stop = line.planner.to_tick(plan.stop.at(entry, -plan.sign))
        place_protection(line, OrderRole.STOP, at_ms, plan.stop.reason, trigger=stop)
    if plan.target is None:
        unwanted.append(OrderRole.TARGET)
    _place_target(line, plan, market, at_ms)
    if plan.trailing is not None:
        armed = line.protective(OrderRole.TRAILING)
        trigger = None if armed is None else armed.trigger
        if trigger is None or is_nearer:
            distance = line.planner.to_tick(plan.trailing.distance(entry))
            line.protect_by(replace(line.protection, trail=distance))
            basis = entry if is_nearer is None else market
            tightest = max if plan.sign > 0 else min
            new = line.planner.to_tick(basis - plan.sign * distance)
            trigger = new if trigger is None else tightest(trigger, new)
        place_protection(line, OrderRole.TRAILING, at_ms, plan.trailing.reason, trigger=trigger)
    if unwanted:
        cancel_protection(line, "the signal no longer asks for it", unwanted)


def _is_ahead(side: Side, price: int | None, market: int | None) -> bool:
    """Return whether a limit at *price* is still ahead of the *market*."""
    if price is None or market is None:
        return False
    return price > market if side is Side.SELL else price < market


def _sign(action: Action) -> int:
    if action is Action.LONG:
        return 1
    return -1 if action is Action.SHORT else 0
