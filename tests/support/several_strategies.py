"""Several strategies on one account: strategies that are told, an own ledger of parts, its laws."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from tracepaper.daemon.broker.account import SIDES
from tracepaper.daemon.config.loading import Config, load
from tracepaper.daemon.engine.state import SHADOWS
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
from tracepaper.strategies.types.decisions import Action, Fill, FillModel, PositionSide, Step
from tracepaper.strategies.types.market import Bar


class DrawnActions(Strategy):
    """Says what a seed and the bar's volume draw: all actions, with protection now and then."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._seed = int(options.get("seed", 0))
        self._fails_at = int(options.get("fails_at", -1))
        self._count = 0

    def observe(self, bar: Bar) -> None:
        """Count bars."""
        self._count += 1

    def decide(self, context: BarContext) -> Signal:
        """Draw an answer."""
        if context.exact.open_time_ms // 60_000 % 1_000 == self._fails_at:
            raise RuntimeError(f"told to fail by {self!r}, \ud800\0")
        rng = random.Random(context.exact.volume * 31 + self._seed)
        roll = rng.random()
        if roll < 0.5:
            return Signal(Action.HOLD, "drawn to hold")
        if roll < 0.65:
            return Signal(Action.FLAT, "drawn to leave")
        stop = Percent(rng.choice((0.02, 0.1))) if rng.random() < 0.5 else None
        target = Percent(0.1) if rng.random() < 0.3 else None
        action = Action.LONG if rng.random() < 0.5 else Action.SHORT
        return Signal(
            action, "drawn", rng.choice((1.0, 0.5, 0.3)), stop=stop, target=target, reenter=True
        )


class AccountReader(DrawnActions):
    """Remembers what it was told of its own account."""

    sees_account = True

    def decide(self, context: BarContext) -> Signal:
        """Note what its own account is."""
        answer = super().decide(context)
        assert context.account is not None
        note = {
            "held": context.account.position.quantity,
            "equity": context.account.equity,
            "fills": float(len(context.account.fills)),
            "verdict": "" if context.verdict is None else context.verdict.action.value,
        }
        return Signal(
            answer.action, answer.reason, answer.strength, stop=answer.stop, target=answer.target,
            reenter=True, note=note,
        )  # fmt: skip


class TurningStrategy(DrawnActions):
    """Turns what it holds, now and then, with every kind of protection; some is impossible."""

    sees_account = True

    def decide(self, context: BarContext) -> Signal:
        """Draw an answer."""
        rng = random.Random(context.exact.volume * 31 + self._seed)
        assert context.account is not None
        held = context.account.position.quantity or rng.choice((1, -1))
        if rng.random() < 0.5:
            return Signal(Action.HOLD, "drawn to hold")
        levels: dict[str, Any] = {
            name: Percent(rng.choice(levels))
            for name, levels in (
                ("stop", (0.3, 2, 6)), ("target", (0.3, 1, 4)), ("trailing", (0.2, 1)),
            )
            if rng.random() < 0.5
        }  # fmt: skip
        until = context.exact.closed_ms + 120_000 if rng.random() < 0.3 else None
        if rng.random() < 0.2:
            levels["stop"] = context.close * (1.01 if held < 0 else 0.99)
        return Signal(
            Action.LONG if held < 0 else Action.SHORT, "drawn", rng.choice((1.0, 0.5)),
            until=until, reenter=True, **levels,
        )  # fmt: skip


class OrderListing(Strategy):
    """Asks for lists of orders of all kinds besides what ``TurningStrategy`` does."""

    sees_account = True

    def __init__(self, options: dict[str, Any]) -> None:
        self._turning, self._seed = TurningStrategy(options), int(options.get("seed", 0))

    def decide(self, context: BarContext) -> Signal | Orders:
        """Draw an answer."""
        rng = random.Random(context.exact.volume * 7 + self._seed)
        if rng.random() < 0.6:
            return self._turning.decide(context)
        requests = list[OrderRequest | Cancel]()
        sides: Sequence[PositionSide | None] = (None,)
        if context.account is not None and context.account.long is not None:
            sides = SIDES
        for _ in range(rng.randint(1, 3)):
            level = round(context.close * (1 + rng.uniform(-0.01, 0.01)), 1)
            kinds: tuple[dict[str, Any], ...] = {}, {"limit": level}, {"stop": level}
            kind = rng.choice(kinds)
            until = context.exact.closed_ms + 90_000 if kind and rng.random() < 0.3 else None
            requests.append(
                rng.choice((buy, sell))(
                    rng.choice((0.4, 3.0)), **kind, until=until, tag=rng.choice(("", "a")),
                    reduce_only=rng.random() < 0.3, position_side=rng.choice(sides),
                )
            )  # fmt: skip
        if rng.random() < 0.2:
            requests.append(Cancel(rng.choice(("", "a"))))
        return Orders(tuple(requests), "listed")


class ScriptedActions(Strategy):
    """Says at each bar, counted from the first, what ``says`` holds; else it holds.

    What it says is an action and the distance of a stop in percent, perhaps a target's too; or
    ``ORDERS``, and of each its size, signed, its limit and whether it may only reduce. At ``FAIL``
    it raises.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self._says: dict[str, list[Any]] = options["says"]
        self._first: int | None = None

    def decide(self, context: BarContext) -> Signal | Orders:
        """Return the answer of this bar."""
        opened = context.exact.open_time_ms
        self._first = opened if self._first is None else self._first
        answer = self._says.get(str((opened - self._first) // 60_000), ["HOLD"])
        assert answer[0] != "FAIL"
        if answer[0] == "ORDERS":
            return Orders(
                tuple(
                    (buy if size > 0 else sell)(abs(size), limit, reduce_only=reduces)
                    for size, limit, reduces in answer[1:]
                ),
                "scripted",
            )
        action, stop, target = (*answer, None, None)[:3]
        return Signal(
            Action(action), "scripted",
            stop=None if stop is None else Percent(stop),
            target=None if target is None else Percent(target),
        )  # fmt: skip


SCRIPTED = f"{__name__}:ScriptedActions"
DRAWN = f"{__name__}:DrawnActions"
ACCOUNTING = f"{__name__}:AccountReader"
TURNING = f"{__name__}:TurningStrategy"
LISTING = f"{__name__}:OrderListing"


def configured(
    names: Sequence[str] = ("a", "b", "c"),
    shares: Sequence[str] = ("0.5", "0.3", "0.1"),
    *,
    of: Sequence[str] = (DRAWN, DRAWN, DRAWN),
    options: Sequence[dict[str, Any]] = ({"seed": 1}, {"seed": 2}, {"seed": 3}),
    reset: str = "never",
    shadows: Sequence[str] = (),
    **sections: dict[str, Any],
) -> Config:
    """Return a configuration of strategies that are drawn, sized by their equity."""
    strategies: dict[str, Any] = {
        name: {"name": made_of, "share": share, "options": given, "shadows": list(shadows)}
        for name, share, made_of, given in zip(names, shares, of, options, strict=False)
    }
    given: dict[str, Any] = {
        "sizing": {"mode": "equity", "fraction": "1"},
        "account": {"cash": "100000"},
        **sections,
        "strategies": {**strategies, "reset": reset},
    }
    return load(None, given)


def fills_of(step: Step) -> list[tuple[str, Fill]]:
    """Return every part that *step* filled, with its strategy."""
    of_owners = [of for of in step.shadows if of.shadow not in {*SIDES, *SHADOWS}]
    return [(shadow.shadow, fill) for shadow in of_owners for fill in shadow.fills]


def crossed_in(step: Step) -> list[tuple[str, Fill]]:
    """Return the crossings of *step*."""
    return [pair for pair in fills_of(step) if pair[1].model is FillModel.CROSSED]
