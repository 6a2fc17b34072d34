"""Every gate, declared once: what it measures, its threshold, unit and words.

A gate is one function of :class:`GateInputs` under the decorator :func:`gate`; its docstring says
what it measures. Elsewhere a gate goes by its name. Whatever lists gates is made from ``GATES``:
the sections ``[gate]`` and ``[risk]`` of the configuration, the columns of the record, the views,
``explain``, the report, the live view and the quantiles on a model's card.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from enum import StrEnum
from typing import Final

from msgspec import Struct

from tracepaper.strategies.confidence import margin, sign_confidence
from tracepaper.strategies.errors import InvariantBroken
from tracepaper.strategies.fitted import CALIBRATED, ENTROPY, MARGIN, FittedConfidence
from tracepaper.strategies.types import MONEY_SCALE, Action, Explanation, Forecast, Regime
from tracepaper.strategies.words import NOTHING, duration, number

YES_OR_NO: Final = "yes or no"
MILLISECONDS: Final = "ms"
QUOTE_CURRENCY: Final = "quote currency"
SHARE_OF_PEAK: Final = "share of the peak"
BASIS_POINTS: Final = "basis points"
AUTO: Final = "auto"
"""A threshold that the model's card decides: strict where it has earned it, else the mildest."""
MILDEST: Final = "q0.01"


class GateInputs(Struct, gc=False):
    """What the gates judge at one bar; the engine fills one in and reuses it."""

    running: bool = True
    bars: int = 0
    late_ms: int = 0
    missing_bars: int = 0
    plausible: float = 0.0
    quote_age_ms: int | None = None
    answered: bool = True  # False after ``PredictionTimeout``
    finite: bool | None = None
    forecast: Forecast | None = None
    explanation: Explanation | None = None
    horizon_index: int = 0
    slope: float = 1.0
    fitted: FittedConfidence | None = None
    round_trip_cost: float = 0.0
    regime: Regime = Regime.UNKNOWN
    regimes: frozenset[Regime] = frozenset()
    reduces: bool = False  # the target lowers the exposure: no risk limit stands in its way
    notional: int = 0
    drawdown: float = 0.0
    daily_loss: float = 0.0
    daily_trades: int = 0
    is_tradable: bool = True
    gross: int = 0
    equity: int = 0
    is_breached: bool = False
    since_stop: int = 0
    losing_streak: int = 0
    hourly_orders: int = 0
    spread_bp: float | None = None
    range_bp: float | None = None


class GateKind(StrEnum):
    """What a gate asks; a refusal is named by the first gate that fails, in this order."""

    INTEGRITY = "integrity"  # may the inputs be believed? Refused, the position stays as it is
    JUDGEMENT = (
        "judgement"  # is the forecast worth it? Refused, ``gate.on_refusal`` says what to do
    )
    RISK = "risk"  # does the account allow it? Declared only where its limit is configured


class ThresholdForm(StrEnum):
    """How a threshold is written in the configuration, and what it means where it is absent."""

    MILLISECONDS = "milliseconds"  # a whole number from 0; one interval if absent
    NUMBER = "number"  # an exact number above 0
    QUANTILE = "quantile"  # a number, or qX: the quantile X of the model's calibration slice
    SHARE = "share"  # an exact number above 0, at most 1
    COUNT = "count"  # a whole number from 1


class ThresholdKey(Struct, frozen=True):
    """The configuration key of a threshold; its field, check and documentation follow from it."""

    name: str
    form: ThresholdForm
    words: str  # the documentation of the key: one sentence
    default: str | None = None
    uncalibrated: str = ""  # stands for a default qX where the model has no calibration
    example: int | str | None = None  # what a key that is absent by default could be set to
    calibrated_as: str = ""  # its measure on a model's card, if that is not the gate's name
    strict: str = ""  # of a default ``auto``: what the card must have earned


class StrategyWarmup(Struct, frozen=True):
    """The threshold is the strategy's own: its warm-up, in bars."""


Threshold = float | ThresholdKey | StrategyWarmup
Measure = Callable[[GateInputs], float | None]


class Gate(Struct, frozen=True, eq=False, kw_only=True):
    """One gate; made by :func:`gate` alone."""

    name: str
    kind: GateKind
    words: str  # what it measures
    unit: str  # of measure and threshold
    measure: Measure  # None where it should exist and cannot be computed; that fails
    threshold: Threshold
    at_least: bool  # True: passes at or above its threshold; False: at or below it
    of_prediction: bool  # measured on what the forecaster answered, and stored beside that
    is_timing: bool  # what only time explains: decisions that differ in it alone are equal
    starts_at: float  # the least value of its measure
    of_quotes: bool  # measured on quotes, and declared only where they fill orders
    is_capped: bool  # its measure stops at the threshold, so that it is never far above it
    only_with: tuple[str, ...]  # a limit that exists only where one of these is configured
    needs: frozenset[str]  # of ``MEASURES``: a model that does not give them has no such gate
    chosen_by: str  # of ``CONFIDENCES`` (``fitted``): the ``gate.confidence_by`` that declares it

    @property
    def is_switch(self) -> bool:
        """Whether it answers yes or no: it turns, but is never near to turning."""
        return self.unit == YES_OR_NO

    @property
    def calibrated_as(self) -> str:
        """Its measure's name on a model's card; empty where its threshold is no quantile."""
        key = self.threshold
        if not isinstance(key, ThresholdKey) or key.form is not ThresholdForm.QUANTILE:
            return ""
        return key.calibrated_as or self.name

    @property
    def section(self) -> str:
        """The section of the configuration that holds its key."""
        return "risk" if self.kind is GateKind.RISK else "gate"


MEASURES: Final = frozenset({
    "mean_return", "stdev_return", "probabilities", "volatility",
    "confidence", "content_free", "recent_mass", "shift",
})  # fmt: skip
"""What a model can give beside the bare fact that it answered; one of ours gives all of it."""

GATES: Final[dict[str, Gate]] = {}
"""Every gate by its name."""


def gate(  # noqa: PLR0913 - what a gate declares, each by its keyword
    kind: GateKind,
    unit: str,
    *,
    at_least: Threshold | None = None,
    at_most: Threshold | None = None,
    of_prediction: bool = False,
    is_timing: bool = False,
    of_quotes: bool = False,
    starts_at: float = 0.0,
    is_capped: bool = False,
    only_with: tuple[str, ...] = (),
    needs: Collection[str] = (),
    chosen_by: str = "",
) -> Callable[[Measure], Gate]:
    """Declare the decorated function as a gate with one threshold, *at_least* or *at_most*.

    It bears the function's name, and its docstring says what it measures. A gate of risk with a
    most measures 0 where the target lowers the exposure, whatever its function says. Configuration
    and storage are made from what is declared when they are imported, so it must happen before.
    """

    def declare(measure: Measure) -> Gate:
        threshold = at_most if at_least is None else at_least
        name, measured_as = measure.__name__, measure
        if kind is GateKind.RISK:
            name = f"risk.{name.removeprefix('risk_')}"
            measured_as = measure if at_most is None else _of_more_risk(measure)
        if threshold is None or name in GATES:
            raise InvariantBroken(f"Gate {name} needs one threshold and a name of its own.")
        if not MEASURES.issuperset(needs):
            raise InvariantBroken(f"Gate {name} needs {sorted(needs)}, not all of them measures.")
        GATES[name] = Gate(
            name=name,
            kind=kind,
            words=(measure.__doc__ or "").strip().rstrip("."),
            unit=unit,
            measure=measured_as,
            threshold=threshold,
            at_least=at_least is not None,
            of_prediction=of_prediction,
            is_timing=is_timing,
            of_quotes=of_quotes,
            starts_at=starts_at,
            is_capped=is_capped,
            only_with=only_with,
            needs=frozenset(needs),
            chosen_by=chosen_by,
        )
        return GATES[name]

    return declare


def _of_more_risk(measure: Measure) -> Measure:
    """Return *measure* as a risk gate has it: 0 where the target lowers the exposure."""

    def measured_as(seen: GateInputs) -> float | None:
        return 0.0 if seen.reduces else measure(seen)

    return measured_as


def gate_order(*kinds: GateKind) -> tuple[str, ...]:
    """Return the names of all gates, or of those of *kinds*, in the order in which they refuse."""
    places = list(GateKind)
    ordered = sorted(GATES.values(), key=lambda one: places.index(one.kind))
    return tuple(one.name for one in ordered if not kinds or one.kind in kinds)


# ---------------------------------------------------------------- every gate, in order


@gate(GateKind.INTEGRITY, YES_OR_NO, at_least=1.0)
def operator(seen: GateInputs) -> float | None:
    """Whether the operator lets it run: no after HALT and FLATTEN, yes after RESUME."""
    return 1.0 if seen.running else 0.0


@gate(GateKind.INTEGRITY, "bars", at_least=StrategyWarmup(), is_capped=True)
def warm(seen: GateInputs) -> float | None:
    """Bars known, counted up to the strategy's warm-up."""
    return float(seen.bars)


@gate(
    GateKind.INTEGRITY,
    MILLISECONDS,
    at_most=ThresholdKey(
        "late_ms",
        ThresholdForm.MILLISECONDS,
        "Most market milliseconds from a bar's close to its decision; one interval if absent.",
        example=60_000,
    ),
    is_timing=True,
)
def late(seen: GateInputs) -> float | None:
    """Market time from the bar's close to its decision."""
    return float(seen.late_ms)


@gate(GateKind.INTEGRITY, "bars", at_most=0.0)
def gap(seen: GateInputs) -> float | None:
    """Bars missing directly before this bar."""
    return float(seen.missing_bars)


@gate(
    GateKind.INTEGRITY,
    "usual ranges",
    at_most=ThresholdKey(
        "plausible",
        ThresholdForm.NUMBER,
        "At most this many usual ranges (median of high - low) between a close and the last one.",
        default="100",
    ),
)
def plausible(seen: GateInputs) -> float | None:
    """Distance of the close from the last one, in median ranges of the last 60 bars."""
    return seen.plausible


@gate(
    GateKind.INTEGRITY,
    MILLISECONDS,
    at_most=ThresholdKey(
        "stale_ms",
        ThresholdForm.MILLISECONDS,
        "Most market milliseconds of age of the newest quote; one interval if absent.",
        example=60_000,
    ),
    is_timing=True,
    of_quotes=True,
)
def stale(seen: GateInputs) -> float | None:
    """Age of the newest quote at the decision; declared only where execution is by quotes."""
    return None if seen.quote_age_ms is None else float(seen.quote_age_ms)


@gate(GateKind.INTEGRITY, YES_OR_NO, at_least=1.0, is_timing=True, of_quotes=True)
def tradable(seen: GateInputs) -> float | None:
    """Whether the exchange lets the symbol trade; declared only where execution is by quotes."""
    return 1.0 if seen.is_tradable else 0.0


@gate(GateKind.INTEGRITY, YES_OR_NO, at_least=1.0, of_prediction=True, is_timing=True)
def deadline(seen: GateInputs) -> float | None:
    """Whether the forecaster answered within model.deadline_ms."""
    return 1.0 if seen.answered else 0.0


@gate(GateKind.INTEGRITY, YES_OR_NO, at_least=1.0, of_prediction=True)
def finite(seen: GateInputs) -> float | None:
    """Whether every number of the forecast is finite and in range."""
    return None if seen.finite is None else float(seen.finite)


def _confidence_key(measure: str) -> ThresholdKey:
    """Return the one key of the three confidences, whose *measure* the card has quantiles of."""
    return ThresholdKey(
        "confidence",
        ThresholdForm.QUANTILE,
        "At least this confidence, of gate.confidence_by; auto is q0.5 where the card says that "
        "it has earned that, else q0.01.",
        default=AUTO,
        uncalibrated="0",
        calibrated_as=measure,
        strict="q0.5",
    )


@gate(
    GateKind.JUDGEMENT,
    "of full entropy",
    at_least=_confidence_key("confidence"),
    of_prediction=True,
    needs={"confidence"},
    chosen_by=ENTROPY,
)
def confidence(seen: GateInputs) -> float | None:
    """1 less the mean normalised entropy of the attention of the decided row."""
    return None if seen.explanation is None else seen.explanation.confidence


@gate(
    GateKind.JUDGEMENT,
    "probability",
    at_least=_confidence_key("confidence_calibrated"),
    of_prediction=True,
    needs={"mean_return", "stdev_return", "probabilities"},
    chosen_by=CALIBRATED,
)
def confidence_calibrated(seen: GateInputs) -> float | None:
    """Probability, fitted on the calibration slice, that the sign at gate.horizon is right."""
    if seen.forecast is None or seen.fitted is None:
        return None
    return sign_confidence(seen.fitted, seen.forecast, seen.horizon_index)


@gate(
    GateKind.JUDGEMENT,
    "of both",
    at_least=_confidence_key("confidence_margin"),
    of_prediction=True,
    needs={"probabilities"},
    chosen_by=MARGIN,
)
def confidence_margin(seen: GateInputs) -> float | None:
    """Distance of the two directions' probabilities over their sum, at gate.horizon."""
    return None if seen.forecast is None else margin(seen.forecast, seen.horizon_index)


@gate(
    GateKind.JUDGEMENT,
    "of full entropy",
    at_least=ThresholdKey(
        "collapse",
        ThresholdForm.QUANTILE,
        "At least this confidence above what mask and encoding alone give.",
        default="q0.01",
        uncalibrated="0",
    ),
    of_prediction=True,
    needs={"confidence", "content_free"},
)
def collapsed(seen: GateInputs) -> float | None:
    """Confidence less what mask and encoding alone give."""
    explanation = seen.explanation
    if explanation is None or explanation.confidence is None or explanation.content_free is None:
        return None
    return explanation.confidence - explanation.content_free


@gate(
    GateKind.JUDGEMENT,
    "JS distance",
    at_most=ThresholdKey(
        "shift",
        ThresholdForm.QUANTILE,
        "At most this distance between this bar's rollout and the last one's.",
        default="q0.99",
        uncalibrated="1",
        calibrated_as="shift",
    ),
    of_prediction=True,
    needs={"shift"},
)
def shifted(seen: GateInputs) -> float | None:
    """Jensen-Shannon distance of this bar's rollout from the last bar's, both by age."""
    return None if seen.explanation is None else seen.explanation.shift


@gate(GateKind.JUDGEMENT, YES_OR_NO, at_least=1.0, of_prediction=True, needs={"recent_mass"})
def regime(seen: GateInputs) -> float | None:
    """Whether the regime is one of gate.regimes."""
    if seen.explanation is None or seen.explanation.recent_mass is None:
        return None
    return 1.0 if seen.regime in seen.regimes else 0.0


@gate(
    GateKind.JUDGEMENT,
    "probability",
    at_least=ThresholdKey(
        "direction",
        ThresholdForm.QUANTILE,
        "At least this share of the likelier direction.",
        default="q0.01",
        uncalibrated="0.5",
    ),
    of_prediction=True,
    starts_at=0.5,
    needs={"probabilities"},
)
def direction(seen: GateInputs) -> float | None:
    """Probability of the likelier direction over that of both, at gate.horizon."""
    if (forecast := seen.forecast) is None:
        return None
    up, down = forecast.p_up[seen.horizon_index], forecast.p_down[seen.horizon_index]
    return max(up, down) / (up + down) if up + down > 0 else None


@gate(
    GateKind.JUDGEMENT,
    "round-trip costs",
    at_least=ThresholdKey(
        "edge",
        ThresholdForm.QUANTILE,
        "At least this many round-trip costs of expected return.",
        default="1",
    ),
    of_prediction=True,
    needs={"mean_return"},
)
def edge(seen: GateInputs) -> float | None:
    """Calibrated mean return at gate.horizon, without its sign, in round-trip costs."""
    if seen.forecast is None or seen.round_trip_cost <= 0:
        return None
    # Raw means are too sure: the slope fitted on the calibration slice shrinks them, and never
    # stretches them.
    mean = seen.forecast.mean_return[seen.horizon_index] * min(1.0, seen.slope)
    return abs(mean) / seen.round_trip_cost


@gate(
    GateKind.RISK,
    QUOTE_CURRENCY,
    at_most=ThresholdKey(
        "max_notional",
        ThresholdForm.NUMBER,
        "Largest position, in quote currency.",
        example="50000",
    ),
)
def risk_notional(seen: GateInputs) -> float | None:
    """Notional of the target; 0 where it lowers the exposure, as for every limit."""
    return seen.notional / MONEY_SCALE


@gate(
    GateKind.RISK,
    SHARE_OF_PEAK,
    at_most=ThresholdKey(
        "max_drawdown",
        ThresholdForm.SHARE,
        "Largest fall of equity from its peak, as a fraction.",
        example="0.2",
    ),
)
def risk_drawdown(seen: GateInputs) -> float | None:
    """Fall of equity from its peak."""
    return seen.drawdown


@gate(
    GateKind.RISK,
    QUOTE_CURRENCY,
    at_most=ThresholdKey(
        "max_daily_loss",
        ThresholdForm.NUMBER,
        "Largest loss in one day, in quote currency: a UTC day, or a session of market.calendar.",
        example="2000",
    ),
)
def risk_daily_loss(seen: GateInputs) -> float | None:
    """Loss since the first bar of the day: of UTC, or the session with a calendar."""
    return seen.daily_loss


@gate(
    GateKind.RISK,
    "trades",
    at_most=ThresholdKey(
        "max_daily_trades",
        ThresholdForm.COUNT,
        "Most trades in one day (or session): orders of which at least a part was filled.",
        example=50,
    ),
)
def risk_daily_trades(seen: GateInputs) -> float | None:
    """Trades of the day, or the session, the one being judged among them."""
    return float(seen.daily_trades)


@gate(GateKind.RISK, YES_OR_NO, at_most=0.0, only_with=("risk.drawdown", "risk.daily_loss"))
def risk_halt(seen: GateInputs) -> float | None:
    """Whether drawdown or daily loss went beyond its limit since the operator last said RESUME."""
    return 1.0 if seen.is_breached else 0.0


@gate(
    GateKind.RISK,
    QUOTE_CURRENCY,
    at_most=ThresholdKey(
        "max_exposure",
        ThresholdForm.NUMBER,
        "Largest sum of all positions without their signs, in quote currency.",
        example="200000",
    ),
)
def risk_exposure(seen: GateInputs) -> float | None:
    """Notional of the target and of all other positions, without their signs."""
    return seen.gross / MONEY_SCALE


@gate(
    GateKind.RISK,
    "times equity",
    at_most=ThresholdKey(
        "max_leverage",
        ThresholdForm.NUMBER,
        "Largest sum of all positions without their signs, in multiples of equity.",
        example="2",
    ),
)
def risk_leverage(seen: GateInputs) -> float | None:
    """Notional of the target and of all other positions over equity; none without equity."""
    return seen.gross / seen.equity if seen.equity > 0 else None


@gate(
    GateKind.RISK,
    "bars",
    at_least=ThresholdKey(
        "cooldown",
        ThresholdForm.COUNT,
        "Bars of a symbol without new exposure after one of its stops was filled.",
        example=30,
    ),
    is_capped=True,
)
def risk_cooldown(seen: GateInputs) -> float | None:
    """Bars since a stop of this symbol was filled, counted up to the limit."""
    return float(seen.since_stop)


@gate(
    GateKind.RISK,
    "losses",
    at_most=ThresholdKey(
        "max_losing_streak",
        ThresholdForm.COUNT,
        "So many losses in a row in one day (or session) end new exposure until the next.",
        example=5,
    ),
)
def risk_losing_streak(seen: GateInputs) -> float | None:
    """Positions closed with a loss after costs in a row in the day, the next one counted."""
    return float(seen.losing_streak + 1)


@gate(
    GateKind.RISK,
    "orders",
    at_most=ThresholdKey(
        "max_hourly_orders",
        ThresholdForm.COUNT,
        "Most orders sent in one clock hour.",
        example=20,
    ),
)
def risk_hourly_orders(seen: GateInputs) -> float | None:
    """Orders of the clock hour, the one being judged among them."""
    return float(seen.hourly_orders)


@gate(
    GateKind.RISK,
    BASIS_POINTS,
    at_most=ThresholdKey(
        "max_spread_bp",
        ThresholdForm.NUMBER,
        "Widest spread of the newest quote, in basis points of its middle.",
        example="5",
    ),
    of_quotes=True,
)
def risk_spread(seen: GateInputs) -> float | None:
    """Ask less bid of the newest quote over their middle."""
    return seen.spread_bp


@gate(
    GateKind.RISK,
    BASIS_POINTS,
    at_most=ThresholdKey(
        "max_range_bp",
        ThresholdForm.NUMBER,
        "Largest usual range of a bar (median of high - low over 60 bars), in basis points.",
        example="50",
    ),
)
def risk_volatility(seen: GateInputs) -> float | None:
    """Median of high - low over the last 60 bars, in basis points of the close."""
    return seen.range_bp


# ---------------------------------------------------------------- words


def unit_of(name: str) -> str:
    """Return the unit of gate *name*; empty where a record names a gate that is not known here."""
    return GATES[name].unit if name in GATES else ""


def measured(name: str, value: float | None, *, signed: bool = False) -> str:
    """Return a measure, a threshold or a margin of gate *name* as people read it.

    A duration has its unit and a share its per cent; other units are :func:`unit_beside` it.
    """
    if value is None or not math.isfinite(value):
        return NOTHING
    sign, unit = "+" if signed else "", unit_of(name)
    if unit == MILLISECONDS:
        return duration(value, signed=signed)
    if unit == YES_OR_NO:
        return NOTHING if signed else {1.0: "yes", 0.0: "no"}.get(value, number(value))
    if unit == SHARE_OF_PEAK:
        return f"{100 * value:{sign}.1f} %"
    return f"{value:{sign},.2f}" if unit == QUOTE_CURRENCY else number(value, signed=signed)


def unit_beside(name: str) -> str:
    """Return what stands beside a measure of gate *name* that :func:`measured` wrote."""
    unit = unit_of(name)
    return {MILLISECONDS: "", YES_OR_NO: "", SHARE_OF_PEAK: "of the peak"}.get(unit, unit)


def with_unit(name: str, value: float) -> str:
    """Return a measure of gate *name* with its unit, as it is written inside a sentence."""
    return f"{measured(name, value)} {unit_beside(name)}".rstrip()


def verdict(action: Action, refused_by: str | None, reason: str) -> str:
    """Return in a few words what the gates made of a decision.

    A FLAT that a gate refused went on where no judgement gate holds up an exit, and where its
    horizon was over; with the refusal as its *reason* it is what ``gate.on_refusal`` asks for
    (docs/decisions.md, G13 and G14).
    """
    if refused_by is None:
        return "allowed"
    if action is not Action.FLAT:
        return refusal(refused_by)
    if reason == refusal(refused_by):
        return f"since {refused_by} refused"
    return f"{refused_by} refused, which holds up no exit"


def refusal(gate_name: str) -> str:
    """Return the reason of a decision that gate *gate_name* refused."""
    return f"refused by {gate_name}"
