"""Adjust the targets, resting orders and exit orders of an account to a split.

The rules are docs/stocks.md, K19 and K20.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from tracepaper.daemon.broker.exit_plans import Level, Plan
from tracepaper.daemon.broker.orders import OrderEvent, after
from tracepaper.strategies.corporate_actions import adjusted_price, whole_steps
from tracepaper.strategies.types.decisions import OrderRole
from tracepaper.strategies.types.market import CorporateAction
from tracepaper.strategies.units import divide_half_even

if TYPE_CHECKING:
    from tracepaper.daemon.broker.line import Line

SPLIT: Final = "split"
"""The reason on an order that a split cancels."""


def adjust_orders(line: Line, action: CorporateAction, before: int) -> None:
    """Adjust the orders of *line* to a split, which is already applied to its position.

    *before* is the signed quantity before the split. The order by signal leads to the adjusted
    target. Exit orders move to the adjusted prices. Orders by list are canceled.
    """
    resting, protector, instrument, held = line.orders, line.protector, line.item, line.held
    target = whole_steps(action, resting.target, instrument.quantity_step)
    if line.shares:
        line.sum_share_targets()
    elif resting.target == before:
        resting.target = held
    else:  # rounding may give a share more than it had: its order keeps its side
        resting.target = (max if resting.target > before else min)(target, held)
    if (order := resting.order) is not None:
        needed = abs(resting.target - held)
        if needed:
            quantity = order.filled + needed
            resting.note(after(order, OrderEvent.REPLACE, quantity=quantity))
        else:
            resting.end(order, SPLIT)
    closable = resting.closable(held)
    for order in resting.others:
        if order.role is OrderRole.LIST or not closable:
            resting.end(order, SPLIT)
            continue
        amended = after(
            order,
            OrderEvent.REPLACE,
            quantity=order.filled + closable,
            price=_price(action, order.price, instrument.tick_size),
            trigger=_price(action, order.trigger, instrument.tick_size),
        )
        resting.note(amended)
    state = protector.state
    protector.state = replace(
        state,
        plan=_plan(state.plan, action),
        trail=_price(action, state.trail or None, instrument.tick_size) or 0,
        next_plan=_plan(state.next_plan, action),
    )


def _plan(plan: Plan | None, action: CorporateAction) -> Plan | None:
    if plan is None:
        return None
    return replace(
        plan,
        stop=_level(plan.stop, action),
        target=_level(plan.target, action),
        trailing=_level(plan.trailing, action),
    )


def _level(level: Level | None, action: CorporateAction) -> Level | None:
    """Adjust a price or a distance; a share of the entry price needs no adjustment."""
    if level is None or level.is_share:
        return level
    return replace(level, value=adjusted_price(action, level.value))


def _price(action: CorporateAction, price: int | None, tick: int) -> int | None:
    """Adjust *price* and round it half to even, to at least one tick."""
    if price is None:
        return None
    return max(divide_half_even(price * action.old, action.new * tick), 1) * tick
