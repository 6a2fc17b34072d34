"""``Grid``: limit orders on both sides of a price.

All of them are post-only, so each fill pays the maker's fee. The report shows what followed them.
"""

from __future__ import annotations

from collections.abc import Mapping

from tracepaper.strategies.api.context import (
    BarContext,
    Cancel,
    OrderRequest,
    Orders,
    Signal,
    buy,
    sell,
)
from tracepaper.strategies.api.strategy import Strategy
from tracepaper.strategies.months import place_of
from tracepaper.strategies.types.decisions import Action
from tracepaper.strategies.units import to_step, to_tick


class Grid(Strategy):
    """Every ``bars`` bars: take back what rests, close what is held, and begin at the close anew.

    ``levels`` buys below and as many sales above, ``spacing`` percent apart, each of ``quantity``.
    No level is sent twice, so that no more than ``levels`` times ``quantity`` is ever held.
    """

    def __init__(self, options: Mapping[str, float]) -> None:
        self._bars = int(options.get("bars", 240))
        self._levels = int(options.get("levels", 4))
        self._spacing = options.get("spacing", 0.1) / 100
        self._quantity = options.get("quantity", 0.01)
        if self._bars < 4:
            raise ValueError(f"bars {self._bars} leave no time to trade; give at least 4")

    def decide(self, context: BarContext) -> Signal | Orders:
        """Do what this bar of the round is for; which it is follows from its time."""
        bar = context.exact
        place = place_of(bar.open_time_ms, bar.interval_ms) % self._bars
        if place == self._bars - 1:
            return Orders((Cancel(),), "the round ends")
        if place == 0:
            return Signal(Action.FLAT, "the round is over")
        if place == 1:
            return Orders(self._requests(context), "a new round")
        return Orders((), "the grid rests")

    def _requests(self, context: BarContext) -> tuple[OrderRequest, ...]:
        quantity = to_step(self._quantity, context.instrument)
        requests = []
        for level in range(1, self._levels + 1):
            away = level * self._spacing * context.close
            below, above = (
                to_tick(context.close + sign * away, context.instrument) for sign in (-1, 1)
            )
            requests += [
                buy(quantity, limit=below, post_only=True, tag=f"buy {level}"),
                sell(quantity, limit=above, post_only=True, tag=f"sell {level}"),
            ]
        return tuple(requests)
