"""``RsiReversion``: buys oversold bars under a stop, and pauses after losses in a row.

An example of declared state, notes and protection (docs/protection.md).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from tracepaper.strategies.api.arrays import BarArrays
from tracepaper.strategies.api.context import BarContext, Percent, Signal
from tracepaper.strategies.api.strategy import Strategy
from tracepaper.strategies.indicators import rsi
from tracepaper.strategies.types.decisions import Action


class Losses(Struct):
    """What no window of bars rebuilds."""

    bought_at: float = 0.0  # the close at which it signalled to buy; 0 while it is out
    streak: int = 0  # losses in a row
    pause: int = 0  # bars without an entry that are left


class RsiReversion(Strategy):
    """Long where the RSI is low, flat where it has recovered; a stop bounds each loss.

    ``stop`` is in per cent of the entry price; after ``losses`` in a row nothing is bought for
    ``pause`` bars. The losses are its own estimate, by closes and lows: it need not see the
    account, so its decisions are the same on any account.
    """

    State = Losses
    state: Losses

    def __init__(self, options: Mapping[str, float]) -> None:
        self._bars = int(options.get("bars", 14))
        self._low, self._high = options.get("low", 30), options.get("high", 55)
        self._stop = options.get("stop", 0.5)
        self._losses, self._pause = int(options.get("losses", 3)), int(options.get("pause", 60))
        self.warmup = 4 * self._bars

    def columns(self, history: BarArrays) -> Mapping[str, npt.NDArray[np.float64]]:
        """Return the RSI of every bar."""
        return {"rsi": rsi(history.close, self._bars, window=self.warmup)}

    def decide(self, context: BarContext) -> Signal:
        """Say what to hold, with the RSI as a note."""
        strength = float(context.columns["rsi"][-1])
        note = {"rsi": strength, "streak": self.state.streak}
        self._count(context, strength)
        if self.state.pause:
            return Signal(Action.FLAT, "pauses after losses in a row", note=note)
        if strength > self._high:
            return Signal(Action.FLAT, "recovered", note=note)
        if strength < self._low:
            self.state.bought_at = self.state.bought_at or context.close
            return Signal(Action.LONG, "fell too fast", stop=Percent(self._stop), note=note)
        return Signal(Action.HOLD, "in between", note=note)

    def _count(self, context: BarContext, strength: float) -> None:
        """Count losses in a row and the bars of the pause that follows them."""
        state = self.state
        state.pause = max(state.pause - 1, 0)
        if not state.bought_at:
            return
        stopped = context.low < state.bought_at * (1 - self._stop / 100)
        if not stopped and strength <= self._high:
            return
        lost = stopped or context.close < state.bought_at
        state.streak = state.streak + 1 if lost else 0
        state.bought_at = 0.0
        if state.streak >= self._losses:
            state.streak, state.pause = 0, self._pause
