"""A strategy that says what the volume of a bar tells it, so that a record alone says it again."""

from __future__ import annotations

import random

from tracepaper.strategies.api.context import (
    BarContext,
    Cancel,
    OrderRequest,
    Orders,
    Percent,
    Signal,
)
from tracepaper.strategies.api.strategy import CORE_GATES, Strategy
from tracepaper.strategies.types.decisions import Action, OrderKind
from tracepaper.strategies.types.market import Side
from tracepaper.strategies.units import to_step, to_tick

MINUTE = 60_000


class ByVolume(Strategy):
    """Says what the volume of the bar tells it: a signal with protection, or a list of orders."""

    gates = CORE_GATES
    shadows = ("ungated",)

    def decide(self, context: BarContext) -> Signal | Orders:
        """Return what *now* tells."""
        rng = random.Random(context.exact.volume)
        roll = rng.random()
        if roll < 0.25:
            return Signal(Action.HOLD, "told to hold")
        if roll < 0.35:
            return Signal(Action.FLAT, "told to leave")
        return _entry(rng, context) if roll < 0.7 else _listed(rng, context)


def _entry(rng: random.Random, context: BarContext) -> Signal:
    """Return an entry, mostly protected, now and then where no protection can stand."""
    side = rng.choice((1, 1, -1))
    away = rng.choice((0.002, 0.01, 0.05, -0.01 if rng.random() < 0.2 else 0.02))
    near = context.close * (1 - side * away)
    return Signal(
        Action.LONG if side > 0 else Action.SHORT,
        "told to enter",
        rng.choice((1.0, 1.0, 0.5, 0.3)),
        stop=rng.choice((None, near, Percent(away * 100))),
        target=rng.choice((None, None, context.close * (1 + side * away))),
        trailing=rng.choice((None, None, Percent(1), 0.5)),
        until=context.exact.close_time_ms + rng.randint(1, 5) * MINUTE
        if _by_chance(rng, 0.2)
        else None,
        reenter=_by_chance(rng, 0.5),
    )


def _by_chance(rng: random.Random, chance: float) -> bool:
    """Return whether chance says so."""
    return rng.random() < chance


def _listed(rng: random.Random, context: BarContext) -> Orders:
    """Return a list of up to three orders of any kind."""
    return Orders(tuple(_request(rng, context) for _ in range(rng.randint(1, 3))), "told to order")


def _request(rng: random.Random, context: BarContext) -> OrderRequest | Cancel:
    kind, tag = rng.choice(list(OrderKind)), rng.choice(("", "a", "b"))
    if _by_chance(rng, 0.1):
        return Cancel(tag)
    price, trigger = (
        to_tick(
            context.close * (1 + rng.choice((-1, 1)) * rng.choice((0.001, 0.01))),
            context.instrument,
        )
        for _ in range(2)
    )
    quantity = rng.choice((0.002, 0.1, 1.0, 4.0, 0.0031))
    return OrderRequest(
        side=rng.choice(list(Side)),
        quantity=quantity if _by_chance(rng, 0.1) else to_step(quantity, context.instrument),
        price=price if kind in {OrderKind.LIMIT, OrderKind.STOP_LIMIT} else None,
        trigger=trigger if kind in {OrderKind.STOP, OrderKind.STOP_LIMIT} else None,
        post_only=kind is OrderKind.LIMIT and _by_chance(rng, 0.3),
        reduce_only=_by_chance(rng, 0.3),
        until=context.exact.close_time_ms + rng.randint(0, 200_000)
        if _by_chance(rng, 0.2)
        else None,
        tag=tag,
    )
