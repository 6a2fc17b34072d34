"""Hedge mode: strategies that are drawn, an account kept by itself, and the laws of both sides."""

from __future__ import annotations

import random
from typing import Any

from builders import START_MS, bars, present, quote

from tracepaper.daemon.config.loading import Config, load
from tracepaper.strategies.api.context import (
    BarContext,
    Cancel,
    OrderRequest,
    Orders,
    Percent,
    Signal,
    buy,
    sell,
)
from tracepaper.strategies.api.strategy import Strategy
from tracepaper.strategies.types.decisions import Action, PositionSide
from tracepaper.strategies.types.market import Event, Funding, Mark, Side

MINUTE = 60_000
LONG, SHORT = PositionSide.LONG, PositionSide.SHORT
OPENS = {LONG: buy, SHORT: sell}
CLOSES = {LONG: sell, SHORT: buy}


class DrawnHedge(Strategy):
    """Says what a seed and the bar's volume draw: signals for either side, protected, or lists."""

    sees_account = True

    def __init__(self, options: dict[str, Any]) -> None:
        self._seed = int(options.get("seed", 0))
        self._lists = bool(options.get("lists", True))
        self.shadows = tuple(options.get("shadows", ()))

    def decide(self, context: BarContext) -> Signal | Orders:
        """Draw an answer; note what the account shows."""
        account = present(context.account)
        assert account.long is not None
        assert account.long.quantity >= 0 >= present(account.short).quantity
        note: dict[str, float | str | None] = {
            "long": account.long.quantity,
            "short": present(account.short).quantity,
            "net": account.position.quantity,
            "held": float(account.long.bars_held),
            "sides": " ".join(str(fill.exact.position_side) for fill in account.fills),
        }
        rng = random.Random(context.exact.volume * 31 + self._seed)
        roll = rng.random()
        if roll < 0.4:
            return Signal(Action.HOLD, "drawn to hold", note=note)
        if roll < 0.5:
            side = rng.choice((LONG, SHORT, None))
            return Signal(Action.FLAT, "drawn to leave", position_side=side, note=note)
        if roll < 0.75 and self._lists:
            return Orders(tuple(self._listed(rng, context)), "drawn to list", note=note)
        stop = Percent(rng.choice((0.1, 1))) if rng.random() < 0.5 else None
        target = Percent(0.4) if rng.random() < 0.3 else None
        return Signal(
            rng.choice((Action.LONG, Action.SHORT)),
            "drawn",
            rng.choice((1.0, 0.5, 0.3)),
            stop=stop,
            target=target,
            reenter=True,
            note=note,
        )

    @staticmethod
    def _listed(rng: random.Random, context: BarContext) -> list[OrderRequest | Cancel]:
        requests: list[OrderRequest | Cancel] = []
        for _ in range(rng.randint(1, 3)):
            side = rng.choice((LONG, SHORT))
            make = rng.choice((OPENS, CLOSES, OPENS))[side]
            limit = None
            if rng.random() < 0.5:
                limit = round(context.close * (1 + rng.uniform(-0.002, 0.002)), 1)
            tag = rng.choice(("", "a", "b"))
            quantity = rng.choice((0.4, 1.1, 2.5))
            requests.append(make(quantity, limit, position_side=side, tag=tag))
        if rng.random() < 0.2:
            requests.append(Cancel(rng.choice(("", "a"))))
        return requests


class ScriptedHedge(Strategy):
    """Says at each bar, counted from the first, what ``says`` holds; else it holds.

    The same words are the same object each time.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self._says: dict[str, Any] = options["says"]
        self.horizon = options.get("horizon")
        self._signals: dict[str, Signal | Orders] = {}

    def decide(self, context: BarContext) -> Signal | Orders:
        """Return the answer of this bar: [action, side, stop in percent, strength], or orders."""
        answer = self._says.get(str((context.exact.open_time_ms - START_MS) // MINUTE), ["HOLD"])
        return self._signals.setdefault(repr(answer), self._answer(*answer))

    @staticmethod
    def _answer(
        action: str, side: Any = None, stop: float | None = None, strength: float = 1.0
    ) -> Signal | Orders:
        if action == "ORDERS":
            requests = [
                OrderRequest(
                    side=Side(of["side"]),
                    quantity=of["quantity"],
                    position_side=None if of["of"] is None else PositionSide(of["of"]),
                )
                for of in side
            ]
            return Orders(tuple(requests), "scripted")
        return Signal(
            Action(action),
            "scripted",
            strength,
            stop=None if stop is None else Percent(stop),
            position_side=None if side is None else PositionSide(side),
        )


DRAWN = f"{__name__}:DrawnHedge"
SCRIPTED = f"{__name__}:ScriptedHedge"


def configured(options: dict[str, Any], *, of: str = DRAWN, **sections: dict[str, Any]) -> Config:
    """Return a configuration in hedge mode, on isolated margin unless *sections* say otherwise."""
    account = {"cash": "100000", "position_mode": "hedge", "margin": "isolated", "leverage": "10"}
    given: dict[str, Any] = {
        "strategy": {"name": of, "options": options},
        "sizing": {"mode": "notional", "notional": "40000"},
        **sections,
    }
    given["execution"] = {
        "plausible": 1_000,
        **sections.get("execution", {}),
    }  # shocks are believed
    given["account"] = account | sections.get("account", {})
    return load(None, given)


def walk(seed: int, count: int = 120, *, quotes: bool = False, shocks: bool = False) -> list[Event]:
    """Return bars, settlements and mark prices, quotes where they fill, and *shocks* of the mark.

    A mark of a shock is far enough away that it liquidates one side.
    """
    events: list[Event] = []
    for at, bar in enumerate(bars(count, seed=seed)):
        if quotes:
            for ms in (1_000, 20_000, 59_000):
                price = bar.open + (bar.close - bar.open) * ms // MINUTE
                size = 400 + 100 * (at % 9)
                events.append(quote(price - 5, price + 5, at_ms=bar.open_time_ms + ms, size=size))
        events.append(bar)
        at_ms = bar.close_time_ms
        if at % 10 == 9:
            events += [
                Mark(bar.instrument, bar.close + 13, at_ms, at_ms),
                Funding(bar.instrument, (-1) ** (at // 10) * 1_234_567, at_ms, at_ms),
            ]
        if shocks and at % 25 == 24:
            far = bar.close * (87 if at % 50 == 24 else 113) // 100
            events.append(Mark(bar.instrument, far, at_ms + 5, at_ms + 5))
    return events
