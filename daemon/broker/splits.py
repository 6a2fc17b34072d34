"""Splits and dividends: what they change of a position, its shares and their orders.

The rules are docs/stocks.md, K16 to K25.
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from tracepaper.daemon.broker.exit_plans import Level, Plan
from tracepaper.daemon.broker.line import Line
from tracepaper.daemon.broker.orders import OrderEvent, after
from tracepaper.strategies.corporate_actions import (
    adjusted_price,
    entitlement,
    entitlement_parts,
    whole_steps,
)
from tracepaper.strategies.types.decisions import OrderRole
from tracepaper.strategies.types.market import CorporateAction
from tracepaper.strategies.units import divide_half_even

SPLIT: Final = "split"
"""The reason on an order that a split cancels."""


def apply_action(line: Line, action: CorporateAction) -> None:
    """Book a split or a dividend on the position at the close before it, and adjust orders.

    Cash in lieu and dividends count as realized profit. After a split the mark is the adjusted
    close. Each owner's share gets its part.
    """
    lines = (line, *line.shares)
    total, *parts = [(each.held, each.holding.entry_notional) for each in lines]
    entitled = entitlement(action, *total, line.terms)
    entitled_parts = entitlement_parts(action, entitled, parts, line.terms)
    for each, due in zip(lines, (entitled, *entitled_parts), strict=True):
        each.move_cash(each.holding.act(action, due))
        if action.is_split:
            each.mark = adjusted_price(action, action.close)
        each.post_holding()
    if action.is_split:
        for each, (before, _) in zip((*line.shares, line), (*parts, total), strict=True):
            _adjust_orders(each, action, before)


def _adjust_orders(line: Line, action: CorporateAction, before: int) -> None:
    """Adjust the orders of *line* to a split, which is already applied to its position.

    *before* is the signed quantity before the split. The order by signal leads to the adjusted
    target. Exit orders move to the adjusted prices. Orders by list are canceled.
    """
    instrument, held = line.item, line.held
    target = whole_steps(action, line.target, instrument.quantity_step)
    if line.shares:
        line.sum_share_targets()
    elif line.target == before:
        line.target = held
    else:  # rounding may give a share more than it had: its order keeps its side
        line.target = (max if line.target > before else min)(target, held)
    if (order := line.order) is not None:
        needed = abs(line.target - held)
        if needed:
            quantity = order.filled + needed
            line.note(after(order, OrderEvent.REPLACE, quantity=quantity))
        else:
            line.end(order, SPLIT)
    closable = line.closable
    for order in line.others:
        if order.role is OrderRole.LIST or not closable:
            line.end(order, SPLIT)
            continue
        amended = after(
            order,
            OrderEvent.REPLACE,
            quantity=order.filled + closable,
            price=_price(action, order.price, instrument.tick_size),
            trigger=_price(action, order.trigger, instrument.tick_size),
        )
        line.note(amended)
    state = line.protection
    line.protect_by(
        replace(
            state,
            plan=_plan(state.plan, action),
            trail=_price(action, state.trail or None, instrument.tick_size) or 0,
            next_plan=_plan(state.next_plan, action),
        )
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
