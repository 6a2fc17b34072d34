"""``Trend``: long above a moving average, sized to constant risk.

The size is the configuration's: ``strategies/examples/trend.toml`` asks for a target volatility
from closed bars. Neither was fitted to anything.
"""

from __future__ import annotations

from collections.abc import Mapping

from tracepaper.strategies.api.context import BarContext, Signal
from tracepaper.strategies.api.strategy import Strategy
from tracepaper.strategies.types.decisions import Action


class Trend(Strategy):
    """Long while the close stands above the mean of the last ``bars`` closes, else flat."""

    def __init__(self, options: Mapping[str, int]) -> None:
        self.warmup = options.get("bars", 672)

    def decide(self, context: BarContext) -> Signal:
        """Compare the close with the mean of the history."""
        mean = context.history.close.mean()
        note = {"mean": float(mean)}
        if context.close > mean:
            return Signal(Action.LONG, "above the mean", note=note)
        return Signal(Action.FLAT, "not above the mean", note=note)
