"""A strategy whose actions are drawn."""

from __future__ import annotations

import random
from typing import Any

from tracepaper.strategies.api.context import BarContext, Percent, Signal
from tracepaper.strategies.api.strategy import Strategy
from tracepaper.strategies.types.decisions import Action


class DrawnActions(Strategy):
    """Says what a seed and the bar's volume draw: all actions, with protection now and then."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._seed = int(options.get("seed", 0))

    def decide(self, context: BarContext) -> Signal:
        """Draw an answer."""
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


DRAWN = f"{__name__}:DrawnActions"
