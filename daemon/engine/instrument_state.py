"""``InstrumentState``: what the engine knows of one instrument, and how it decides at a close."""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from tracepaper.daemon.engine.account import PaperAccount
from tracepaper.daemon.engine.orders import Broker
from tracepaper.daemon.engine.risk import RiskWatch
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
    DecisionOutcome,
    FillModel,
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

Intent = tuple[Action, int, str]
"""What an account is asked for: the action, the target quantity and the reason."""


class InstrumentState:
    """What the engine knows of one instrument.

    At each close the engine lets it :meth:`observe` the bar and :meth:`decide` for the run's own
    account; a twin's account follows the same signal by :meth:`follow`.
    """

    def __init__(
        self,
        instrument: Instrument,
        strategy: Strategy,
        sizer: Sizer,
        gates: GateEvaluator,
        settings: EngineSettings,
        risk: RiskWatch,
    ) -> None:
        self.instrument = instrument
        self.strategy = strategy
        self.gates = gates
        self.remembered = remembered(strategy)
        self.last_bar: Bar | None = None
        self.quote: Quote | None = None
        self.marked = False  # by a mark price, since the last bar
        self.regime = Regime.UNKNOWN
        self.signal: Signal | None = None  # the newest, whatever became of it
        self._sizer = sizer
        self._risk = risk
        self._bars = 0
        self._decision: Decision | None = None  # the newest decision that was not a repetition
        self._standing: int | None = None  # the target before it
        # Where a decision follows from the signal, the verdict and the standing target alone.
        self._repeats = (
            strategy.horizon is None
            and not strategy.needs_forecast
            and sizer.is_fixed
            and not risk.active
        )
        self._inputs = GateInputs(
            horizon_index=settings.horizon_index,
            slope=settings.slope,
            round_trip_cost=settings.costs.round_trip,
            regimes=settings.regimes,
        )
        self._plausibility = Plausibility() if plausible.name in gates.gate_set.gates else None
        self._by_quotes = settings.execution is FillModel.QUOTE
        self._is_spot = instrument.category is Category.SPOT
        self._bounds = settings.bounds
        self._flat_on_refusal = settings.flat_on_refusal
        self._window = WindowHash(instrument, settings.interval_ms, self.remembered)
        self._decision_hash = DecisionHash(instrument)
        self._canonical = b""  # the newest bar, as it is hashed

    def change(self, instrument: Instrument) -> None:
        """Use the exchange's new filters; decimals stay for as long as a run lasts."""
        self.instrument = instrument
        self._sizer.change(instrument)
        self._standing = None  # a repeated signal may have another size now

    # ------------------------------------------------------------ a bar, from top to bottom

    def observe(self, bar: Bar) -> None:
        """Show *bar* to the strategy; add it to the window, the yardstick and the count."""
        inputs, last = self._inputs, self.last_bar
        inputs.missing_bars = 0
        if last is not None:
            gap_ms = bar.open_time_ms - last.open_time_ms
            inputs.missing_bars = gap_ms // bar.interval_ms - 1
        if self._plausibility is not None:
            inputs.plausible = self._plausibility.add(bar, self.instrument.tick_size)
        self.strategy.observe(bar)
        self._canonical = self._window.push(bar)
        self.last_bar = bar
        if self._bars < self.strategy.warmup:
            self._bars += 1

    def decide(
        self,
        bar: Bar,
        prediction: Prediction,
        account: PaperAccount,
        *,
        is_running: bool,
        is_finite: bool | None,
    ) -> Decision:
        """Return what is decided for *account* at the close of *bar*, which was observed.

        *is_finite* says whether the model's numbers were, None where there are none.
        """
        orders = account.brokers[bar.instrument]
        inputs = self._inputs
        inputs.running = is_running
        inputs.bars = self._bars
        inputs.late_ms = max(bar.seen_ms - bar.open_time_ms - bar.interval_ms, 0)
        if self._by_quotes:
            inputs.quote_age_ms = self._quote_age_ms(bar)
        forecast = prediction if isinstance(prediction, Forecast) else None
        if self.strategy.needs_forecast:
            inputs.finite = is_finite
            self._consider(prediction, forecast)
        signal, before = self._signal(bar, forecast), self.signal
        standing, self._standing, self.signal = self._standing, orders.target, signal
        if self._risk.active:
            self._measure_risk(bar, self._target(signal, bar, forecast, orders), account)
        measures, passed = self.gates.judge(inputs)
        last = self._decision
        if (
            self._repeats
            and signal is before
            and orders.target == standing
            and last is not None
            and passed == last.outcome.passed
        ):
            return Decision(last.outcome, last.target_quantity, measures)
        refused = self.gates.first_failed(passed)
        action, target, reason = self._intent(signal, bar, forecast, orders, refused)
        outcome = self._outcome_of(action, reason, refused, passed)
        last = self._decision = Decision(outcome, target, measures)
        return last

    def follow(self, bar: Bar, forecast: Forecast | None, account: PaperAccount) -> Intent:
        """Return what *account* is asked for by the newest signal, as if every gate had passed."""
        orders, signal = account.brokers[bar.instrument], self.signal
        assert signal is not None
        return self._intent(signal, bar, forecast, orders, None)

    def hashes(self, prediction: Prediction, decision: Decision) -> tuple[bytes, bytes]:
        """Return the hash of the bars that *decision* depends on, and its own for parity."""
        decided = self._decision_hash.digest(self._canonical, prediction, decision)
        return self._window.digest(), decided

    # ------------------------------------------------------------ the steps of that line

    def _quote_age_ms(self, bar: Bar) -> int | None:
        """Return the newest quote's age; None where there is none, or it is dated after *bar*."""
        quote = self.quote
        if quote is None or quote.market_ms > bar.seen_ms:
            return None
        return bar.seen_ms - quote.market_ms

    def _consider(self, prediction: Prediction, forecast: Forecast | None) -> None:
        """Lay out what the model said for the gates, and follow the regime."""
        inputs = self._inputs
        inputs.answered = not isinstance(prediction, PredictionTimeout)
        inputs.forecast = forecast
        explanation = inputs.explanation = None if forecast is None else forecast.explanation
        if explanation is not None and self._bounds is not None:
            self.regime = next_regime(self.regime, explanation.recent_mass, self._bounds)
        inputs.regime = self.regime

    def _signal(self, bar: Bar, forecast: Forecast | None) -> Signal:
        """Return the strategy's signal; on spot nothing can be sold short: SHORT becomes FLAT."""
        signal = self.strategy.decide(Outlook(bar, forecast, self.regime))
        if self._is_spot and signal.action is Action.SHORT:
            return Signal(Action.FLAT, "spot")
        return signal

    def _target(self, signal: Signal, bar: Bar, forecast: Forecast | None, orders: Broker) -> int:
        """Return the quantity that *signal* asks for; HOLD asks for the standing target."""
        if signal.action is Action.HOLD:
            return orders.target
        return self._sizer.target(signal, bar, forecast, standing=orders.target)

    def _measure_risk(self, bar: Bar, target: int, account: PaperAccount) -> None:
        """Measure what the risk gates judge, now that the target is known."""
        inputs, portfolio = self._inputs, account.portfolio
        held = portfolio.held(bar.instrument)
        inputs.reduces = abs(target) <= abs(held) and target * held >= 0
        inputs.notional = self._sizer.notional(bar.close, abs(target))
        self._risk.measure(inputs, account=portfolio.account(), market_ms=bar.market_ms)

    def _intent(
        self,
        signal: Signal,
        bar: Bar,
        forecast: Forecast | None,
        orders: Broker,
        refused: str | None,
    ) -> Intent:
        """Return what becomes of *signal* in an account where gate *refused* failed first.

        Refused by an integrity gate, everything stays as it is; refused by judgement, as
        configured. What outlived its horizon is closed wherever the inputs could be believed.
        """
        action, reason = signal.action, signal.reason
        if refused is not None:
            is_flat = self._flat_on_refusal and refused in _JUDGEMENT
            action, reason = Action.FLAT if is_flat else Action.HOLD, f"refused by {refused}"
        if action is Action.HOLD:
            if refused not in INTEGRITY and self._expired(bar, orders):
                return Action.FLAT, 0, "horizon"
            return action, orders.target, reason
        if action is Action.FLAT:
            return action, 0, reason
        return action, self._target(signal, bar, forecast, orders), reason

    def _expired(self, bar: Bar, orders: Broker) -> bool:
        """Return whether the standing target has outlived the horizon of its forecast."""
        horizon = self.strategy.horizon
        if horizon is None or orders.target == 0:
            return False
        return bar.open_time_ms - orders.confirmed_ms >= horizon * bar.interval_ms

    def _outcome_of(
        self, action: Action, reason: str, refused: str | None, passed: int
    ) -> DecisionOutcome:
        """Return the last decision's outcome where it is the same again: it is stored once.

        Why a target was not filled is no part of the question: :meth:`unfilled` follows.
        """
        last = None if self._decision is None else self._decision.outcome
        if (
            last is not None
            and last.passed == passed
            and last.action is action
            and last.reason == reason
            and last.regime is self.regime
        ):
            return last
        return DecisionOutcome(
            action, reason, refused is None, refused, self.gates.gate_set, passed, self.regime
        )

    def unfilled(self, decision: Decision, refusal: str | None) -> Decision:
        """Return *decision* with the reason why its target is neither reached nor ordered."""
        outcome = decision.outcome
        if refusal is None and not decision.target_quantity and is_entry(outcome.action):
            step = unscaled(self.instrument.quantity_step, self.instrument.quantity_decimals)
            refusal = f"size below the step {step}"
        if outcome.unfilled_reason == refusal:
            return decision
        outcome = replace(outcome, unfilled_reason=refusal)
        self._decision = decision = replace(decision, outcome=outcome)
        return decision


def is_entry(action: Action) -> bool:
    """Return whether *action* asks for a position, and so confirms one for another horizon."""
    return action is Action.LONG or action is Action.SHORT


def checked(prediction: Prediction) -> tuple[Prediction, bool | None]:
    """Return *prediction* as it may be used and stored, and whether it was finite.

    None stands for a prediction without numbers.
    """
    if not isinstance(prediction, Forecast):
        return prediction, None
    if is_finite_forecast(prediction):
        return prediction, True
    return None, False
