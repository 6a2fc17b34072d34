"""The restoring of an engine from a record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tracepaper.daemon.engine.engine import Engine
from tracepaper.daemon.engine.price_checks import Price
from tracepaper.daemon.engine.state import EngineState
from tracepaper.strategies.types.decisions import Confirmation, LastDecision, Regime
from tracepaper.strategies.types.market import (
    Bar,
    Depths,
    Event,
    FrameBar,
    Gap,
    InstrumentChange,
    Mark,
    ModelChange,
    Quote,
    Trade,
)


class Restart:
    """Restores an engine from a record: first the stored state, then the bars fed again.

    None of this creates a step.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def restore(
        self,
        state: EngineState,
        *,
        next_sequence: int,
        confirmed: Iterable[Confirmation] = (),
        since: Mapping[str, LastDecision] = {},
        taken_over: bool = False,
    ) -> None:
        """Restore the state of a run's last step; the bars follow by :meth:`recall`.

        *confirmed* are the confirmations after that state was stored, oldest first. *since* has the
        outcome of each instrument's last decision in this run. *taken_over* means that the state
        is another run's; the first step then stores it anew. Raises ``ConfigInvalid`` if a strategy
        now declares another kind of state.
        """
        engine = self._engine
        engine.halted = state.halted
        for key, market in engine.markets.items():
            market.accepted_prices.settled_ms = state.settled.get(key, -1)
            market.regimes.regime = state.regimes.get(key, Regime.UNKNOWN)
            market.regimes.cell = state.cells.get(key)
            market.first_ms = state.first_ms.get(key, market.first_ms)
        if taken_over:
            engine.risk.take_over(state.risk)
        else:
            engine.risk.state = state.risk
        fills = {key: decided.fills for key, decided in since.items()}
        engine.broker.restore(
            state.account,
            state.shadows,
            confirmed=confirmed,
            fills=fills,
            taken_over=taken_over,
        )
        # Pyright sees this module under two names, and takes their structs for different types.
        waiting: dict[str, Any] = state.unsettled
        notes: dict[str, Any] = state.notes
        engine.broker.restore_settlements(waiting, notes)
        bases: dict[str, Any] = state.bases
        if engine.shadows.counts:
            engine.shadows.bases.update(bases)
        for key, encoded in state.declared.items():
            if key in engine.declared:
                engine.declared[key].restore(encoded)
        for key, decided in since.items():
            engine.deciders[key].restored = decided.verdict
        engine.begin(next_sequence)

    def recall(self, bar: Bar) -> None:
        """Observe a bar of an earlier step, without effects."""
        self._engine.recall(bar)
        self._engine.broker.follow((bar,))

    def recall_frame(self, event: FrameBar | Depths) -> None:
        """Add a candle of a higher timeframe, or order books, of an earlier step."""
        self._engine.markets[event.instrument].take(event)

    def recall_range(self, bar: Bar) -> None:
        """Add a bar before those of :meth:`recall`, for the mean range of a day."""
        self._engine.markets[bar.instrument].day_range.push(bar)

    def repeat(self, event: Event) -> None:
        """Apply an *event* of an earlier step to what is observed, without fills or decisions.

        After :meth:`restore`, the re-derivation of a run from its middle feeds its first events
        this way. The engine already has the terms of the newest model, so a model change only
        does what a start does.
        """
        engine = self._engine
        match event:
            case Bar():
                last = engine.markets[event.instrument].last_bar
                if last is None or event.open_time_ms > last.open_time_ms:
                    engine.recall(event)
                    engine.broker.warm_up(event)
            case Quote() | Mark() | Trade():
                self._repeat_price(event)
            case FrameBar() | Depths():
                self.recall_frame(event)
            case Gap():
                engine.broker.on_gap(event)
            case ModelChange():
                engine.clear_transient()
            case InstrumentChange():
                engine.mark_at_closes()
            case _:
                pass

    def _repeat_price(self, price: Price) -> None:
        """Remember a quote, believed or not, and value positions at believed mark prices."""
        engine, market = self._engine, self._engine.markets[price.instrument]
        verdict = market.accepted_prices.take(price)
        for tick in (price, *verdict.released):
            if isinstance(tick, Quote):
                market.quote = tick
            elif isinstance(tick, Mark) and (tick is not price or verdict.is_believed):
                engine.broker.mark(tick)
