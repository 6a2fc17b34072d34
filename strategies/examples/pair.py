"""``Pair``: a spread of two symbols, traded back to its mean."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tracepaper.strategies.api.context import BarContext, Signal
from tracepaper.strategies.api.strategy import PortfolioStrategy
from tracepaper.strategies.types.decisions import Action


class Pair(PortfolioStrategy):
    """Trade the z-score of the log price ratio of the run's first two symbols.

    Above ``enter`` the first is sold and the second bought, below ``-enter`` the other way round,
    inside ``leave`` both are closed; in between everything stays as it is. The score is that of
    the newest close among the last ``window`` at which both had a bar, by their deviation.
    """

    def __init__(self, options: Mapping[str, float]) -> None:
        self.warmup = int(options.get("window", 240))
        self._enter = float(options.get("enter", 2.0))
        self._leave = float(options.get("leave", 0.5))
        if not self._leave < self._enter:
            raise ValueError(f"leave {self._leave:g} must be under enter {self._enter:g}")

    def decide(self, contexts: Mapping[str, BarContext]) -> Mapping[str, Signal]:
        """Answer for both, where both have closed."""
        first, second = self.symbols[:2]
        if not {first, second} <= contexts.keys():
            return {}
        score = _score(contexts[first], contexts[second])
        if abs(score) > self._enter:
            dear, cheap = (first, second) if score > 0 else (second, first)
            return {
                dear: Signal(Action.SHORT, "dear beside the other"),
                cheap: Signal(Action.LONG, "cheap beside the other"),
            }
        if abs(score) < self._leave:
            both = Signal(Action.FLAT, "the two belong together again")
            return {first: both, second: both}
        return {}


def _score(first: BarContext, second: BarContext) -> float:
    """Return the newest log price ratio in deviations from its mean; 0 where it never moved."""
    history, other = first.history, second.history
    prices, others = history.close, other.close
    if not np.array_equal(history.time, other.time):  # a bar that one of them lacks is left out
        _, at, there = np.intersect1d(history.time, other.time, return_indices=True)
        prices, others = prices[at], others[there]
    ratio = np.log(prices / others)
    deviation = float(ratio.std())
    return float(ratio[-1] - ratio.mean()) / deviation if deviation > 0 else 0.0
