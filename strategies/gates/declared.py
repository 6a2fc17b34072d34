"""All gates, with their thresholds, units and descriptions.

A gate is a function of :class:`GateInputs` decorated by a :class:`Gate`. The first paragraph of its
docstring describes the measure, the second the key of its threshold. Everything that lists gates is
generated from ``GATES``: the sections ``[gate]`` and ``[risk]`` of the configuration, the columns
of the record, ``explain``, the report, the status and the quantiles on a model's card.
"""

from __future__ import annotations

from typing import Final

from tracepaper.strategies.gates.gate import (
    AUTO,
    BASIS_POINTS,
    MILLISECONDS,
    QUOTE_CURRENCY,
    SHARE_OF_EQUITY,
    SHARE_OF_PEAK,
    YES_OR_NO,
    Gate,
    GateInputs,
    GateKind,
    StrategyWarmup,
    ThresholdForm,
    ThresholdKey,
    at_least,
    at_most,
    margin,
    sign_confidence,
)
from tracepaper.strategies.types.calibration import CALIBRATED, ENTROPY, MARGIN
from tracepaper.strategies.units import MONEY_SCALE

INTEGRITY, JUDGEMENT, RISK = GateKind
TIME, NUMBER, QUANTILE, SHARE, COUNT = ThresholdForm


CONFIDENCE: Final = ThresholdKey(
    "confidence",
    QUANTILE,
    "At least this confidence, as measured by gate.confidence_by; auto is q0.5 if the card says "
    "that this measure is credible on two holdouts, else q0.01.",
    default=AUTO,
    uncalibrated="0",
    strict="q0.5",
)
"""The key that the three confidences share."""


@Gate(INTEGRITY, YES_OR_NO, at_least(1.0))
def operator(inputs: GateInputs) -> float | None:
    """Whether the operator allows trading: no after HALT or FLATTEN, yes after RESUME."""
    return 1.0 if inputs.running else 0.0


@Gate(INTEGRITY, "bars", at_least(StrategyWarmup()), is_capped=True)
def warm(inputs: GateInputs) -> float | None:
    """Known bars, counted up to the strategy's warm-up."""
    return float(inputs.bars)


@Gate(
    INTEGRITY, MILLISECONDS, at_most(ThresholdKey("late_ms", TIME, example=60_000)), is_timing=True
)
def late(inputs: GateInputs) -> float | None:
    """Market time from the bar's close to its decision.

    At most this many market milliseconds from a bar's close to its decision; one interval if
    absent.
    """
    return float(inputs.late_ms)


@Gate(INTEGRITY, "bars", at_most(0.0))
def gap(inputs: GateInputs) -> float | None:
    """Bars missing directly before this bar."""
    return float(inputs.missing_bars)


@Gate(INTEGRITY, "usual ranges", at_most(ThresholdKey("plausible", NUMBER, default="100")))
def plausible(inputs: GateInputs) -> float | None:
    """Distance between this close and the last, in median true ranges of the last 60 bars.

    At most this many usual ranges (median of high - low) between a close and the last one.
    """
    return inputs.plausible


@Gate(
    INTEGRITY,
    MILLISECONDS,
    at_most(ThresholdKey("stale_ms", TIME, example=60_000)),
    is_timing=True,
    of_quotes=True,
)
def stale(inputs: GateInputs) -> float | None:
    """Age of the newest quote at the decision; declared only if quotes fill orders.

    The newest quote may be at most this old (market ms); one interval if absent.
    """
    return None if inputs.quote_age_ms is None else float(inputs.quote_age_ms)


@Gate(INTEGRITY, YES_OR_NO, at_least(1.0), is_timing=True, of_quotes=True)
def tradable(inputs: GateInputs) -> float | None:
    """Whether the symbol trades at the exchange; declared only if quotes fill orders."""
    return 1.0 if inputs.is_tradable else 0.0


@Gate(INTEGRITY, YES_OR_NO, at_least(1.0), of_prediction=True, is_timing=True)
def deadline(inputs: GateInputs) -> float | None:
    """Whether the forecaster answered within model.deadline_ms."""
    return 1.0 if inputs.answered else 0.0


@Gate(INTEGRITY, YES_OR_NO, at_least(1.0), of_prediction=True)
def finite(inputs: GateInputs) -> float | None:
    """Whether every number of the forecast is finite and in range."""
    return None if inputs.finite is None else float(inputs.finite)


@Gate(
    JUDGEMENT,
    "of full entropy",
    at_least(CONFIDENCE),
    needs=frozenset({"confidence_entropy"}),
    chosen_by=ENTROPY,
)
def confidence_entropy(inputs: GateInputs) -> float | None:
    """1 less the mean normalised attention entropy of the decided row."""
    return None if inputs.explanation is None else inputs.explanation.confidence_entropy


@Gate(
    JUDGEMENT,
    "probability",
    at_least(CONFIDENCE),
    needs=frozenset({"mean_return", "stdev_return", "probabilities"}),
    chosen_by=CALIBRATED,
)
def confidence_calibrated(inputs: GateInputs) -> float | None:
    """Probability, fitted on the calibration slice, that the sign at gate.horizon is right."""
    if inputs.forecast is None or inputs.fitted is None:
        return None
    return sign_confidence(inputs.fitted, inputs.forecast, inputs.horizon_index)


@Gate(
    JUDGEMENT,
    "of both",
    at_least(CONFIDENCE),
    needs=frozenset({"probabilities"}),
    chosen_by=MARGIN,
)
def confidence_margin(inputs: GateInputs) -> float | None:
    """Difference of both directions' probabilities ÷ their sum, at gate.horizon."""
    return None if inputs.forecast is None else margin(inputs.forecast, inputs.horizon_index)


@Gate(
    JUDGEMENT,
    "of full entropy",
    at_least(ThresholdKey("collapse", QUANTILE, default="q0.01", uncalibrated="0")),
    needs=frozenset({"confidence_entropy", "content_free"}),
)
def collapsed(inputs: GateInputs) -> float | None:
    """Confidence less the confidence of mask and encoding alone.

    At least this confidence above what mask and encoding alone give.
    """
    explanation = inputs.explanation
    if (
        explanation is None
        or explanation.confidence_entropy is None
        or explanation.content_free is None
    ):
        return None
    return explanation.confidence_entropy - explanation.content_free


@Gate(
    JUDGEMENT,
    "JS distance",
    at_most(
        ThresholdKey("shift", QUANTILE, default="q0.99", uncalibrated="1", calibrated_as="shift")
    ),
    needs=frozenset({"shift"}),
)
def shifted(inputs: GateInputs) -> float | None:
    """Jensen-Shannon distance between the rollouts of this bar and of the last, by age.

    At most this distance between this bar's rollout and the last one's.
    """
    return None if inputs.explanation is None else inputs.explanation.shift


@Gate(JUDGEMENT, YES_OR_NO, at_least(1.0), needs=frozenset({"recent_mass"}))
def regime(inputs: GateInputs) -> float | None:
    """Whether the regime is one of gate.regimes."""
    if inputs.explanation is None or inputs.explanation.recent_mass is None:
        return None
    return 1.0 if inputs.regime in inputs.regimes else 0.0


@Gate(JUDGEMENT, YES_OR_NO, at_least(1.0), needs=frozenset({"regimes"}))
def learned_regime(inputs: GateInputs) -> float | None:
    """Whether the network's most probable regime is one of gate.learned_regimes."""
    if inputs.forecast is None:
        return None
    learned = inputs.forecast.learned_regime(inputs.horizon_index)
    return None if learned is None else float(learned in inputs.learned_regimes)


@Gate(
    JUDGEMENT,
    "probability",
    at_least(ThresholdKey("direction", QUANTILE, default="q0.01", uncalibrated="0.5")),
    starts_at=0.5,
    needs=frozenset({"probabilities"}),
)
def direction(inputs: GateInputs) -> float | None:
    """Probability of the likelier direction ÷ that of both, at gate.horizon.

    At least this share of the more probable direction in p_up + p_down.
    """
    if (forecast := inputs.forecast) is None:
        return None
    up, down = forecast.p_up[inputs.horizon_index], forecast.p_down[inputs.horizon_index]
    return max(up, down) / (up + down) if up + down > 0 else None


@Gate(
    JUDGEMENT,
    "standard deviations",
    at_most(ThresholdKey("max_dropout_spread", NUMBER, default="0.5")),
    needs=frozenset({"dropout_spread", "stdev_return"}),
)
def dropout_spread(inputs: GateInputs) -> float | None:
    """Spread of the mean return over dropout passes, in units of stdev_return, at gate.horizon.

    At most this standard deviation of the mean over passes with dropout (model.dropout_passes),
    in standard deviations of the return.
    """
    forecast = inputs.forecast
    spread = None if forecast is None else forecast.dropout_spread(inputs.horizon_index)
    if forecast is None or spread is None:
        return None
    deviation = forecast.stdev_return[inputs.horizon_index]
    return spread / deviation if deviation > 0 else None


@Gate(
    JUDGEMENT,
    "round-trip costs",
    at_least(ThresholdKey("edge", QUANTILE, default="1")),
    needs=frozenset({"mean_return"}),
)
def edge(inputs: GateInputs) -> float | None:
    """Absolute calibrated mean return at gate.horizon, in round-trip costs.

    At least this many round-trip costs of expected return.
    """
    if inputs.forecast is None or inputs.round_trip_cost <= 0:
        return None
    # Raw means are overconfident: the calibration slope may shrink them, but never enlarge them.
    mean = inputs.forecast.mean_return[inputs.horizon_index] * min(1.0, inputs.slope)
    return abs(mean) / inputs.round_trip_cost


@Gate(RISK, QUOTE_CURRENCY, at_most(ThresholdKey("max_notional", NUMBER, example="50000")))
def risk_notional(inputs: GateInputs) -> float | None:
    """Notional of the target; 0 if it lowers the exposure, as for every limit.

    Largest position, in quote currency.
    """
    return inputs.notional / MONEY_SCALE


@Gate(RISK, SHARE_OF_PEAK, at_most(ThresholdKey("max_drawdown", SHARE, example="0.2")))
def risk_drawdown(inputs: GateInputs) -> float | None:
    """Fall of equity from its peak.

    Largest fall of equity from its peak, as a fraction.
    """
    return inputs.drawdown


@Gate(RISK, QUOTE_CURRENCY, at_most(ThresholdKey("max_daily_loss", NUMBER, example="2000")))
def risk_daily_loss(inputs: GateInputs) -> float | None:
    """Loss since the first bar of the UTC day, or of the session of shares.

    Largest loss in one day, in quote currency: a UTC day, or a session of shares.
    """
    return inputs.daily_loss


@Gate(RISK, "trades", at_most(ThresholdKey("max_daily_trades", COUNT, example=50)))
def risk_daily_trades(inputs: GateInputs) -> float | None:
    """Trades of the day or session, including the judged one.

    Most trades in one day (or session): orders of which at least a part was filled.
    """
    return float(inputs.daily_trades)


@Gate(
    RISK, YES_OR_NO, at_most(0.0), only_with=("risk.drawdown", "risk.daily_loss"), is_lasting=True
)
def risk_halt(inputs: GateInputs) -> float | None:
    """Whether drawdown or daily loss exceeded its limit since the operator's last RESUME."""
    return 1.0 if inputs.is_breached else 0.0


@Gate(RISK, QUOTE_CURRENCY, at_most(ThresholdKey("max_exposure", NUMBER, example="200000")))
def risk_exposure(inputs: GateInputs) -> float | None:
    """Notional of the target and of all other positions, without signs.

    Largest sum of the absolute values of all positions, in quote currency.
    """
    return inputs.gross / MONEY_SCALE


@Gate(RISK, "times equity", at_most(ThresholdKey("max_leverage", NUMBER, example="2")))
def risk_leverage(inputs: GateInputs) -> float | None:
    """Notional of the target and of all other positions ÷ equity; none without equity.

    Largest sum of the absolute values of all positions, in multiples of equity.
    """
    return inputs.gross / inputs.equity if inputs.equity > 0 else None


@Gate(RISK, "bars", at_least(ThresholdKey("cooldown", COUNT, example=30)), is_capped=True)
def risk_cooldown(inputs: GateInputs) -> float | None:
    """Bars since the last fill of a stop of this symbol, counted up to the limit.

    Bars without new exposure in a symbol after one of its stops was filled.
    """
    return float(inputs.since_stop)


@Gate(RISK, "losses", at_most(ThresholdKey("max_losing_streak", COUNT, example=5)))
def risk_losing_streak(inputs: GateInputs) -> float | None:
    """Losing positions in a row in the day, after costs, and one more for the next.

    After so many losses in a row in one day (or session), no new exposure until the next.
    """
    return float(inputs.losing_streak + 1)


@Gate(RISK, "orders", at_most(ThresholdKey("max_hourly_orders", COUNT, example=20)))
def risk_hourly_orders(inputs: GateInputs) -> float | None:
    """Orders of the clock hour, including the judged one.

    Most orders sent in one clock hour.
    """
    return float(inputs.hourly_orders)


@Gate(
    RISK, BASIS_POINTS, at_most(ThresholdKey("max_spread_bp", NUMBER, example="5")), of_quotes=True
)
def risk_spread(inputs: GateInputs) -> float | None:
    """Ask less bid of the newest quote ÷ their middle.

    Widest spread of the newest quote, in basis points of its middle.
    """
    return inputs.spread_bp


@Gate(RISK, BASIS_POINTS, at_most(ThresholdKey("max_range_bp", NUMBER, example="50")))
def risk_volatility(inputs: GateInputs) -> float | None:
    """Median true range of the last 60 bars, in basis points of the close.

    Largest usual range of a bar (median of high - low over 60 bars), in basis points.
    """
    return inputs.range_bp


@Gate(
    RISK,
    QUOTE_CURRENCY,
    at_most(ThresholdKey("max_tail", NUMBER, example="500")),
    of_prediction=True,
    needs=frozenset({"tails"}),
)
def risk_tail(inputs: GateInputs) -> float | None:
    """Mean loss of the target in its worst 2.5 % of cases over gate.horizon, without fees.

    Largest expected shortfall of a position in its worst 2.5 % of cases over gate.horizon, in
    quote currency, by the network's tails or those that the model's card measured.
    """
    if inputs.forecast is None:
        return None
    loss = inputs.forecast.expected_shortfall(
        inputs.horizon_index, is_short=inputs.is_short, measured=inputs.tails
    )
    return None if loss is None else inputs.notional / MONEY_SCALE * loss


@Gate(
    RISK,
    SHARE_OF_EQUITY,
    at_most(ThresholdKey("max_tail_share", SHARE, example="0.01")),
    of_prediction=True,
    needs=frozenset({"tails"}),
)
def risk_tail_share(inputs: GateInputs) -> float | None:
    """Mean loss of the target in its worst 2.5 % of cases ÷ equity; none without equity.

    The same limit as a share of equity.
    """
    loss = risk_tail.measure(inputs)
    return None if loss is None or inputs.equity <= 0 else loss * MONEY_SCALE / inputs.equity


@Gate(
    RISK,
    SHARE_OF_EQUITY,
    at_most(ThresholdKey("max_expected_drawdown", SHARE, example="0.01")),
    of_prediction=True,
    needs=frozenset({"drawdown"}),
)
def risk_expected_drawdown(inputs: GateInputs) -> float | None:
    """Median of the target's largest loss within gate.horizon ÷ equity; none without equity.

    Largest interim loss of the position over gate.horizon that the network expects, as a share
    of equity; without a run-up head shorts are refused.
    """
    if inputs.forecast is None or inputs.equity <= 0:
        return None
    loss = inputs.forecast.expected_drawdown(inputs.horizon_index, is_short=inputs.is_short)
    return None if loss is None else inputs.notional * loss / inputs.equity


@Gate(
    RISK,
    SHARE_OF_EQUITY,
    at_most(ThresholdKey("max_book_shortfall", SHARE, example="0.05")),
    unknown="too few days",
)
def risk_book_shortfall(inputs: GateInputs) -> float | None:
    """Mean loss of the whole book in the worst 2.5 % of days ÷ equity; 0 if the target adds none.

    Largest expected shortfall of all positions in a day, as a share of equity, by the last
    risk.book_days days.
    """
    loss = inputs.book_shortfall
    return None if loss is None or inputs.equity <= 0 else loss / inputs.equity
