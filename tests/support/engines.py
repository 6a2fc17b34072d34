"""The one way to make an engine in tests: every argument has a plain default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from builders import instrument

from tracepaper.daemon.config.loading import Config, load
from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.session.build import build_engine
from tracepaper.strategies.api.context import BarContext, Orders, Signal
from tracepaper.strategies.api.strategy import CORE_GATES, Strategy
from tracepaper.strategies.types.decisions import Action, FillModel
from tracepaper.strategies.types.market import Instrument


class Says(Strategy):
    """Says each of what it was made with at a bar, in order, and then HOLD."""

    gates = CORE_GATES

    def __init__(self, *answers: Signal | Orders) -> None:
        self._left = list(answers)

    def decide(self, context: BarContext) -> Signal | Orders:
        del context
        return self._left.pop(0) if self._left else Signal(Action.HOLD, "done")


def engine_of(
    given: Config | Mapping[str, Any],
    items: Sequence[Instrument] = (),
    *,
    strategy: Strategy | None = None,
    **terms: Any,
) -> Engine:
    """Return the engine of a configuration, or of sections of one, before its first event.

    It trades BTCUSDT where no *items* are given, with *strategy* for each where that is given.
    """
    items = list(items or [instrument()])
    if strategy is not None:
        terms["strategies"] = {item.symbol: strategy for item in items}
    config = given if isinstance(given, Config) else load(None, dict(given))
    plain = {"execution": FillModel.NEXT_OPEN, "period_start_ms": 0, "forecaster": None}
    return build_engine(config, items, **{**plain, **terms})
