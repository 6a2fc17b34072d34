"""``InstrumentState``: what the engine knows of one instrument, and what it shows the gates."""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from tracepaper.daemon.engine.orders import Broker
from tracepaper.daemon.engine.state import EngineSettings
from tracepaper.storage.digest import DecisionHash, WindowHash
from tracepaper.strategies.gate_evaluator import GateEvaluator, Plausibility, is_finite_forecast
from tracepaper.strategies.gates import GateInputs, GateKind, gate_order, plausible
from tracepaper.strategies.market import unscaled
from tracepaper.strategies.regime import next_regime
from tracepaper.strategies.sizing import Sizer
from tracepaper.strategies.strategy import Outlook, Strategy, remembered
from tracepaper.strategies.types import (
    Action,
    Bar,
    Category,
    Decision,
    Forecast,
    Instrument,
    Prediction,
    PredictionTimeout,
    Quote,
    Regime,
    Signal,
)

INTEGRITY: Final = frozenset(gate_order(GateKind.INTEGRITY))
_JUDGEMENT: Final = frozenset(gate_order(GateKind.JUDGEMENT))
_ENTRIES: Final = frozenset({Action.LONG, Action.SHORT})


class InstrumentState:
    """What the engine knows of one instrument."""

    def __init__(
        self,
        instrument: Instrument,
        strategy: Strategy,
        sizer: Sizer,
        bench: GateEvaluator,
        settings: EngineSettings,
    ) -> None:
        self.instrument = instrument
        self.strategy = strategy
        self.sizer = sizer
        self.bench = bench
        self.remembered = remembered(strategy)
        self.window = WindowHash(instrument, settings.interval_ms, self.remembered)
        self._plausibility = Plausibility() if plausible.name in bench.gate_set.gates else None
        self._bounds = settings.bounds
        self._flat_on_refusal = settings.flat_on_refusal
        self.hash = DecisionHash(instrument)
        self.canonical = b""  # of the newest bar
        self.evidence = GateInputs(
            horizon_index=settings.horizon_index,
            slope=settings.slope,
            round_trip_cost=settings.terms.round_trip,
            regimes=settings.regimes,
        )
        self.bars = 0
        self.last: Bar | None = None
        self.quote: Quote | None = None
        self.marked = False
        self.regime = Regime.UNKNOWN
        self.signal: Signal | None = None  # the newest wish, whatever became of it
        self.decision: Decision | None = None

    def change(self, instrument: Instrument) -> None:
        """Take the exchange's new filters; decimals stay for as long as a run lasts."""
        self.instrument = instrument
        self.sizer.change(instrument)

    def observe(self, bar: Bar) -> None:
        """Take *bar* into the strategy, the window and the count."""
        self.strategy.observe(bar)
        if self._plausibility is not None:
            self.evidence.plausible = self._plausibility.add(bar, self.instrument.tick_size)
        self.canonical = self.window.push(bar)
        self.last = bar
        if self.bars < self.strategy.warmup:
            self.bars += 1

    def wish(self, bar: Bar, forecast: Forecast | None) -> Signal:
        """Return the strategy's signal; on spot nothing can be sold short: SHORT becomes FLAT."""
        signal = self.strategy.decide(Outlook(bar, forecast, self.regime))
        if signal.action is Action.SHORT and self.instrument.category is Category.SPOT:
            signal = Signal(Action.FLAT, "spot")
        self.signal = signal
        return signal

    def expired(self, bar: Bar, broker: Broker) -> bool:
        """Return whether what *broker* wants has outlived the horizon of its forecast."""
        horizon = self.strategy.horizon
        if horizon is None or broker.wanted == 0:
            return False
        return bar.open_time_ms - broker.confirmed_ms >= horizon * bar.interval_ms

    def judge(self, signal: Signal, target: int, wanted: int, *, expired: bool) -> Decision:
        """Put *signal*, which asks for *target*, to the gates; *wanted* is what stands until now.

        Refused by an integrity gate, everything stays as it is; refused by judgement, as
        configured. What is *expired* is closed wherever the inputs could be believed.
        """
        measures, passed = self.bench.judge(self.evidence)
        refused = self.bench.first_failed(passed)
        action, reason = signal.action, signal.reason
        if refused is not None:
            flat = self._flat_on_refusal and refused in _JUDGEMENT
            action = Action.FLAT if flat else Action.HOLD
            reason = f"refused by {refused}"
            target = 0 if flat else wanted
        if expired and action is Action.HOLD and refused not in INTEGRITY:
            action, target, reason = Action.FLAT, 0, "horizon"
        last = self.decision
        if (
            last is not None
            and last.action is action
            and last.target_quantity == target
            and last.measures == measures
            and last.reason == reason
            and last.regime is self.regime
        ):
            return last  # most decisions repeat the last: one object is hashed and stored once
        self.decision = Decision(
            action,
            target,
            reason,
            refused is None,
            refused,
            self.bench.gate_set,
            measures,
            passed,
            self.regime,
        )
        return self.decision

    def unfilled(self, decision: Decision, refusal: str | None) -> Decision:
        """Return *decision* with the reason why its target is neither reached nor ordered."""
        if refusal is None and decision.target_quantity == 0 and decision.action in _ENTRIES:
            step = unscaled(self.instrument.quantity_step, self.instrument.quantity_decimals)
            refusal = f"size below the step {step}"
        if decision.unfilled_reason != refusal:
            self.decision = decision = replace(decision, unfilled_reason=refusal)
        return decision

    def see(
        self,
        bar: Bar,
        last: Bar | None,
        prediction: Prediction,
        *,
        running: bool,
        finite: bool | None,
    ) -> bool:
        """Lay out what the gates judge; return whether the regime changed.

        The risk measures follow when the target is known.
        """
        seen = self.evidence
        seen.running = running
        seen.bars = self.bars
        seen.late_ms = max(bar.seen_ms - bar.open_time_ms - bar.interval_ms, 0)
        missing = 0
        if last is not None:
            missing = (bar.open_time_ms - last.open_time_ms) // bar.interval_ms - 1
        seen.missing_bars = missing
        quote = self.quote
        # The age of a quote that is dated after this bar was seen cannot be told.
        told = quote is not None and quote.market_ms <= bar.seen_ms
        seen.quote_age_ms = bar.seen_ms - quote.market_ms if quote is not None and told else None
        if not self.strategy.needs_forecast:
            return False
        seen.answered = not isinstance(prediction, PredictionTimeout)
        seen.finite = finite
        seen.forecast = prediction if isinstance(prediction, Forecast) else None
        explanation = seen.explanation = seen.forecast.explanation if seen.forecast else None
        before = self.regime
        if explanation is not None and self._bounds is not None:
            self.regime = next_regime(before, explanation.recent_mass, self._bounds)
        seen.regime = self.regime
        return self.regime is not before


def checked(prediction: Prediction) -> tuple[Prediction, bool | None]:
    """Return *answer* as it may be used and stored, and whether it was finite (None: unknown)."""
    if not isinstance(prediction, Forecast):
        return prediction, None
    if is_finite_forecast(prediction):
        return prediction, True
    return None, False
