"""``Allocation``: a portfolio of all symbols, rebalanced every few bars."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import numpy as np
from msgspec import Struct

from tracepaper.strategies.allocation import (
    ERROR,
    GAINED,
    SOLVED,
    AllocationGoal,
    WeightRule,
    allocate,
    check_prices,
    covariance,
    expected_gain,
    require_solver,
    returns_of,
    volume_bounds,
)
from tracepaper.strategies.api.context import BarContext, Signal
from tracepaper.strategies.api.strategy import PortfolioStrategy
from tracepaper.strategies.months import place_of
from tracepaper.strategies.types.decisions import Action

_COMMON: Final = frozenset({"rule", "window", "every", "bound", "volume_share"})
_OPTIONS: Final = {
    WeightRule.EQUAL: _COMMON,
    WeightRule.INVERSE: _COMMON | {"half_life"},
    WeightRule.MINIMUM: _COMMON | {"half_life", "cost"},
    WeightRule.MEAN_VARIANCE: _COMMON | {"half_life", "cost", "aversion", "lean"},
}
"""What each rule makes something of."""
_PRICES: Final = {"bound": 1.0, "volume_share": 0.0, "aversion": 5.0, "cost": 0.0006}
"""Defaults of what ``check_prices`` checks."""


class Allocation(PortfolioStrategy):
    """Hold each symbol by its weight, its share of a full position (``[sizing]``).

    ``rule`` is equal, inverse, minimum or mean_variance; risk is the shrunk covariance of the last
    ``window`` bars, newer ones weighing more where ``half_life`` names bars. Weights are found anew
    at the first common close of each ``every`` bars, no weight above ``bound``, and no position
    above ``volume_share`` of what trades in ``every`` bars. The return that mean_variance expects
    is ``lean`` times the window's mean: one month says little of the next.
    ``aversion`` and ``cost`` are those of ``allocate``: turnover is priced from the shares of
    equity that the account holds then, whatever was asked for, refused, rounded or moved by prices.
    The notes of its decisions say what the new weights are expected to gain (``expected_gain``).
    """

    class State(Struct):
        """The period that weights were found in."""

        period: int = -1

    state: State

    def __init__(self, options: Mapping[str, float | str]) -> None:
        self._rule = WeightRule(str(options.get("rule", WeightRule.INVERSE)))
        allowed = _OPTIONS[self._rule]
        if unknown := sorted(set(options) - allowed):
            raise ValueError(
                f"{unknown[0]} is no option of the rule {self._rule}; use "
                f"{', '.join(sorted(allowed))}"
            )
        require_solver(self._rule)
        self.warmup = _bars(options, "window", default=240, least=3) + 1
        half_life = _bars(options, "half_life", default=0, least=0)
        self._half_life = float(half_life) if half_life else None
        self._every = _bars(options, "every", default=24, least=1)
        self._prices = {name: float(options.get(name, _PRICES[name])) for name in _PRICES}
        self.sees_account = self._rule in SOLVED or self._prices["volume_share"] > 0.0
        self._lean = float(options.get("lean", 0.1))
        if not math.isfinite(self._lean):
            raise ValueError(f"lean is {self._lean:g}; give a share of the mean such as 0.1")
        check_prices(**self._prices)
        self._volume_share = self._prices.pop("volume_share")

    def decide(self, contexts: Mapping[str, BarContext]) -> Mapping[str, Signal]:
        """Answer for all symbols where all have closed; elsewhere everything stays as it is."""
        if set(contexts) != set(self.symbols):
            return {}
        first = next(iter(contexts.values())).exact
        period = place_of(first.open_time_ms, first.interval_ms) // self._every
        if period == self.state.period:
            return {}
        times = [context.history.time for context in contexts.values()]
        if any(not np.array_equal(times[0], other) for other in times[1:]):
            return {}
        returns = returns_of([context.history.close for context in contexts.values()])
        risk = covariance(returns, half_life=self._half_life) * self._every
        if not risk.any():  # nothing has moved, so nothing can be weighed
            return {}
        held = np.array([context.share_of_equity for context in contexts.values()])
        weights = allocate(
            self._rule,
            risk,
            expected=self._lean * returns.mean(axis=0) * self._every,
            held=held,
            by_volume=volume_bounds(self._volume_share, contexts.values(), bars=self._every),
            **self._prices,
        )
        aversion, cost = self._prices["aversion"], self._prices["cost"]
        goal = AllocationGoal(self._rule, self._every, self._half_life, self._lean, aversion, cost)
        gained = expected_gain(goal, returns, held=held, weights=weights)
        note: dict[str, float] = {}
        if gained is not None:
            # To a hundredth of a millionth of equity, so that no processor's last digits are kept.
            name, (gain, error) = GAINED[self._rule], gained
            note = {name: round(1e4 * gain, 4), name + ERROR: round(1e4 * error, 4)}
        self.state.period = period
        return {
            symbol: _held(weight, note)
            for symbol, weight in zip(contexts, weights.tolist(), strict=True)
        }


def _bars(options: Mapping[str, float | str], name: str, *, default: int, least: int) -> int:
    """Return how many bars the option *name* says; raise ``ValueError`` for none."""
    bars = float(options.get(name, default))
    if not bars >= least or not bars.is_integer():
        raise ValueError(f"{name} is {bars:g}; it must be a whole number of at least {least}")
    return int(bars)


def _held(weight: float, note: Mapping[str, float]) -> Signal:
    note = {"weight": weight, **note}
    if weight == 0.0:
        return Signal(Action.FLAT, "no weight", note=note)
    return Signal(Action.LONG, "held by its weight", weight, note=note)
