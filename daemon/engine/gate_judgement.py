"""``GateJudgement``: the gates of one instrument, and what they are shown of a bar."""

from __future__ import annotations

from typing import Final

from tracepaper.daemon.broker.account import PaperAccount
from tracepaper.daemon.engine.history import InstrumentHistory, RegimeTracker
from tracepaper.daemon.engine.risk import RiskWatch
from tracepaper.daemon.engine.state import (
    EngineSettings,
    ModelTerms,
)
from tracepaper.strategies.gates.evaluator import GateEvaluator
from tracepaper.strategies.gates.gate import GateInputs
from tracepaper.strategies.types.decisions import (
    FillModel,
    Forecast,
    Prediction,
    PredictionTimeout,
)
from tracepaper.strategies.types.market import Bar, Instrument, Quote

TRADING: Final = "Trading"
"""The exchange's status of a symbol whose orders it takes."""


class GateJudgement:
    """The gates of an instrument, and what they are shown of a bar."""

    __slots__ = ("_by_quotes", "_round_trip", "_share_fee", "evaluator", "inputs", "risk")

    def __init__(
        self,
        evaluator: GateEvaluator,
        risk: RiskWatch,
        instrument: Instrument,
        settings: EngineSettings,
    ) -> None:
        self.evaluator, self.risk = evaluator, risk
        self._by_quotes = settings.broker.execution is FillModel.QUOTE
        costs = settings.broker.costs_for(instrument.id)
        self._round_trip, self._share_fee = costs.round_trip, costs.per_share_of(instrument)
        self.inputs = GateInputs(
            horizon_index=settings.horizon_index,
            slope=settings.slope,
            round_trip_cost=self._round_trip,
            regimes=settings.regimes,
            learned_regimes=settings.learned_regimes,
            fitted=settings.fitted,
        )

    def change_model(self, evaluator: GateEvaluator, terms: ModelTerms) -> None:
        """Judge by another model's card from now on."""
        self.evaluator = evaluator
        self.inputs.horizon_index, self.inputs.slope = terms.horizon_index, terms.slope
        self.inputs.fitted = terms.fitted

    def see_bar(
        self,
        bar: Bar,
        history: InstrumentHistory,
        quote: Quote | None,
        status: str,
        *,
        is_running: bool,
    ) -> None:
        """Lay out *bar* for the gates: *quote* is the newest, *status* the exchange's word."""
        inputs = self.inputs
        inputs.running = is_running
        inputs.bars = history.warm_bars if history.frames else history.bars
        inputs.missing_bars, inputs.plausible = history.missing_bars, history.plausible
        inputs.late_ms = max(bar.seen_ms - bar.open_time_ms - bar.interval_ms, 0)
        if self._by_quotes:
            inputs.quote_age_ms = _age_ms(quote, bar)
            inputs.is_tradable = status == TRADING

    def see_forecast(
        self, bar: Bar, prediction: Prediction, regimes: RegimeTracker, *, is_finite: bool | None
    ) -> None:
        """Lay out what the model said, which the regime follows."""
        inputs = self.inputs
        inputs.finite = is_finite
        if self._share_fee:
            inputs.round_trip_cost = self._round_trip + 2 * self._share_fee / bar.close
        inputs.answered = not isinstance(prediction, PredictionTimeout)
        inputs.forecast = forecast = prediction if isinstance(prediction, Forecast) else None
        inputs.explanation = None if forecast is None else forecast.explanation
        regimes.follow(inputs.explanation)
        inputs.regime = regimes.regime

    def see_target(
        self,
        bar: Bar,
        target: int,
        account: PaperAccount,
        history: InstrumentHistory,
        quote: Quote | None,
        notional: int,
        *,
        reduces: bool | None = None,
    ) -> None:
        """Measure what the risk gates judge, now that the *target* is known, worth *notional*."""
        inputs, held = self.inputs, account.held(bar.instrument)
        if reduces is None:
            reduces = abs(target) <= abs(held) and target * held >= 0
        inputs.reduces = reduces
        inputs.notional, inputs.is_short = notional, target < 0
        if self.risk.sees_gross:
            inputs.gross = notional + account.gross_of_others(bar.instrument)
        if self._by_quotes and quote is not None:
            inputs.spread_bp = 20_000 * (quote.ask - quote.bid) / (quote.ask + quote.bid)
        if history.plausibility is not None:
            inputs.range_bp = history.plausibility.range_bp()
        self.risk.measure(
            inputs,
            account=account.balance(),
            market_ms=bar.market_ms,
            instrument=bar.instrument,
            interval_ms=bar.interval_ms,
        )


def _age_ms(quote: Quote | None, bar: Bar) -> int | None:
    """Return the age of *quote*; None where there is none, or it is dated after *bar*."""
    if quote is None or quote.market_ms > bar.seen_ms:
        return None
    return bar.seen_ms - quote.market_ms
