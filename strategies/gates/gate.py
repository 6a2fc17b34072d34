"""``Gate``, which is the decorator of its measure; the inputs of a fitted confidence.

The inputs include the entropy confidence of every layer and head. Inputs that should increase with
confidence are marked by ``rises``; the fit never gives them a negative weight.

The rules are docs/decisions.md, G32 and G33.
"""

from __future__ import annotations

import inspect
import math
import struct
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from tracepaper.strategies.errors import InvariantBroken
from tracepaper.strategies.types.calibration import FittedConfidence, MeasuredTails
from tracepaper.strategies.types.decisions import (
    Action,
    Explanation,
    Forecast,
    HeadForecasts,
    Regime,
)
from tracepaper.strategies.units import NOTHING, duration, money_text, number, percent

Reader = Callable[[Forecast, int], float | None]
"""``(forecast, horizon index) -> value``; None if unknown."""
_HEAD_PREFIX: Final = "entropy_"
"""Prefix of the input name of a head's entropy confidence; its number (layer-major) follows."""
_FLOAT_BYTES: Final = 4


class ConfidenceInput(Struct, frozen=True):
    """One input of the fitted confidence."""

    read: Reader
    rises: bool  # a higher value never means less confidence in the sign
    from_attention: bool


def mean_over_stdev(forecast: Forecast, at: int) -> float | None:
    """Return abs(mean) ÷ standard deviation of the return to the horizon."""
    return abs(forecast.mean_return[at]) / forecast.stdev_return[at]


def margin(forecast: Forecast, at: int) -> float | None:
    """Return abs(p_up - p_down) ÷ (p_up + p_down)."""
    up, down = forecast.p_up[at], forecast.p_down[at]
    return abs(up - down) / (up + down) if up + down > 0 else None


def _from_attention(read: Callable[[Explanation], float | None]) -> ConfidenceInput:
    def read_forecast(forecast: Forecast, at: int) -> float | None:  # noqa: ARG001 - same for all
        return None if forecast.explanation is None else read(forecast.explanation)

    return ConfidenceInput(read_forecast, rises=False, from_attention=True)


def _excess(explanation: Explanation) -> float | None:
    if explanation.confidence_entropy is None or explanation.content_free is None:
        return None
    return explanation.confidence_entropy - explanation.content_free


INPUTS: Final = {
    "mean_over_stdev": ConfidenceInput(mean_over_stdev, rises=True, from_attention=False),
    "margin": ConfidenceInput(margin, rises=True, from_attention=False),
    "excess": _from_attention(_excess),
    "shift": _from_attention(lambda explanation: explanation.shift),
    "recent_mass": _from_attention(lambda explanation: explanation.recent_mass),
}
"""The inputs by name, except the heads' entropies."""


def _head_confidences(explanation: Explanation | None) -> tuple[float, ...]:
    """Return the entropy confidence of every layer and head, layer-major; () without attention."""
    if explanation is None:
        return ()
    return struct.unpack(f"<{len(explanation.entropy) // _FLOAT_BYTES}f", explanation.entropy)


def input_names(forecast: Forecast) -> tuple[str, ...]:
    """Return the names of the inputs that forecasts like *forecast* provide."""
    explained = forecast.explanation is not None
    names = [name for name, each in INPUTS.items() if explained or not each.from_attention]
    heads = range(len(_head_confidences(forecast.explanation)))
    return (*names, *(f"{_HEAD_PREFIX}{head}" for head in heads))


def is_from_attention(name: str) -> bool:
    """Return whether the input *name* comes from the attention."""
    return name not in INPUTS or INPUTS[name].from_attention


def rises(name: str) -> bool:
    """Return whether a higher value of the input *name* never means less confidence."""
    return name in INPUTS and INPUTS[name].rises


def is_input(name: str) -> bool:
    """Return whether an input has this *name*."""
    head = name.removeprefix(_HEAD_PREFIX)
    return name in INPUTS or (head != name and head.isdecimal())


def input_values(names: Sequence[str], forecast: Forecast, at: int) -> list[float | None]:
    """Return the inputs *names* at horizon index *at*; None for unknown values."""
    heads = _head_confidences(forecast.explanation)
    values: list[float | None] = []
    for name in names:
        if (reader := INPUTS.get(name)) is not None:
            values.append(reader.read(forecast, at))
        else:
            head = int(name.removeprefix(_HEAD_PREFIX))
            values.append(heads[head] if head < len(heads) else None)
    return values


def sign_confidence(fitted: FittedConfidence, forecast: Forecast, at: int) -> float | None:
    """Return the fitted probability that the sign of the mean is right."""
    return fitted.sign.probability(input_values(fitted.sign.names, forecast, at))


def volatility_confidence(fitted: FittedConfidence, forecast: Forecast, at: int) -> float | None:
    """Return the fitted probability that the volatility's error is below its median."""
    return fitted.volatility.probability(input_values(fitted.volatility.names, forecast, at))


def size_factor(fitted: FittedConfidence, forecast: Forecast | None, at: int) -> float:
    """Return the multiplier of a size, in (0, 1]: 1 ÷ the widening of the interval.

    It is 1 for a forecast with above-average confidence, and if the confidence is unknown.
    """
    if forecast is None:
        return 1.0
    confidence = volatility_confidence(fitted, forecast, at)
    return 1.0 if confidence is None else min(1.0, 1.0 / fitted.widening(confidence))


YES_OR_NO: Final = "yes or no"
MILLISECONDS: Final = "ms"
QUOTE_CURRENCY: Final = "quote currency"
SHARE_OF_PEAK: Final = "share of the peak"
SHARE_OF_EQUITY: Final = "share of equity"
BASIS_POINTS: Final = "basis points"
_SHARES: Final = {SHARE_OF_PEAK: "of the peak", SHARE_OF_EQUITY: "of equity"}
"""Units that are displayed in per cent, and the words after the number."""
AUTO: Final = "auto"
"""A threshold chosen by the model's card: strict if its gain is credible, else the mildest."""
MILDEST: Final = "q0.01"


class GateInputs(Struct, gc=False):
    """The inputs of all gates at one bar; the engine reuses one object."""

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
    tails: MeasuredTails | None = None  # of the card, at the horizon
    round_trip_cost: float = 0.0
    regime: Regime = Regime.UNKNOWN
    regimes: frozenset[Regime] = frozenset()
    learned_regimes: frozenset[int] = frozenset()
    reduces: bool = False  # the target lowers the exposure, so risk limits do not apply
    notional: int = 0
    is_short: bool = False
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
    book_shortfall: float | None = None  # in money; None with too few days


class GateKind(StrEnum):
    """The kinds of gates, in the order in which they are checked; the first failure is reported."""

    INTEGRITY = "integrity"  # Are the inputs trustworthy? If not, the position stays.
    JUDGEMENT = "judgement"  # Is the forecast good enough? If not, see ``gate.on_refusal``.
    RISK = "risk"  # Does the account allow it? Declared only if its limit is configured.


DROPPABLE: Final = (GateKind.JUDGEMENT, GateKind.RISK)
"""The kinds of gates that ``gate.drop`` may remove."""


class ThresholdForm(StrEnum):
    """The format of a threshold in the configuration."""

    MILLISECONDS = "milliseconds"  # a whole number from 0; one interval if absent
    NUMBER = "number"  # an exact number above 0
    QUANTILE = "quantile"  # a number, or qX: the quantile X of the model's calibration slice
    SHARE = "share"  # an exact number above 0, at most 1
    COUNT = "count"  # a whole number from 1


class ThresholdKey(Struct, frozen=True):
    """The configuration key of a threshold: its field, check and documentation are generated."""

    name: str
    form: ThresholdForm
    description: str = (
        ""  # the documentation of the key: one sentence, by default of the gate's docstring
    )
    default: str | None = None
    uncalibrated: str = ""  # replaces a default qX if the model has no calibration
    example: int | str | None = None  # an example value of a key without a default
    calibrated_as: str = ""  # the measure's name on a model's card, if not the gate's name
    strict: str = ""  # replaces the default ``auto`` if the card's gain is credible


class StrategyWarmup(Struct, frozen=True):
    """Marks a threshold that is the strategy's warm-up, in bars."""


Threshold = float | ThresholdKey | StrategyWarmup
Measure = Callable[[GateInputs], float | None]


class Bound(Struct, frozen=True):
    """A threshold and its side: a measure passes at or above it, or at or below it."""

    threshold: Threshold
    is_lower: bool


def at_least(threshold: Threshold) -> Bound:
    """Return the bound that measures at or above *threshold* pass."""
    return Bound(threshold, is_lower=True)


def at_most(threshold: Threshold) -> Bound:
    """Return the bound that measures at or below *threshold* pass."""
    return Bound(threshold, is_lower=False)


class Gate(Struct, frozen=True, eq=False):
    """One gate: the decorator of the function that is its measure.

    The function gives the gate its name, the first paragraph of its docstring the meaning, and the
    second the documentation of the threshold's key. Declare gates before importing configuration
    or storage, which generate their fields and columns from ``GATES``.
    """

    kind: GateKind
    unit: str  # of measure and threshold
    bound: Bound
    of_prediction: bool = False  # measures the forecast, and is stored beside it
    is_timing: bool = False  # depends on timing: decisions that differ only in it count as equal
    starts_at: float = 0.0  # the minimum of its measure
    of_quotes: bool = False  # measures quotes; declared only if quotes fill orders
    is_capped: bool = False  # its measure is capped at the threshold
    only_with: tuple[str, ...] = ()  # declared only if one of these is configured
    is_lasting: bool = (
        False  # a state of the run that may fail at every bar, but only refuses new exposure
    )
    needs: frozenset[str] = frozenset()  # measures of the model without which it is not declared
    chosen_by: str = ""  # the ``gate.confidence_by`` that declares it; "" for other gates
    unknown: str = ""  # why its measure cannot be computed, in a few words
    name: str = ""
    meaning: str = ""  # of the measure, in one sentence
    measure: Measure = lambda _inputs: None  # None if it cannot be computed; the gate then fails

    def __call__(self, measure: Measure) -> Gate:
        """Declare *measure* as this gate, and return it."""
        name = measure.__name__
        if self.kind is GateKind.RISK:
            name = f"risk.{name.removeprefix('risk_')}"
        threshold = self.threshold
        if name in GATES:
            raise InvariantBroken(f"Gate {name} is already declared: choose another name.")
        if self.kind is not GateKind.RISK and _is_off_without_key(threshold):
            raise InvariantBroken(f"Gate {name} is not a risk gate: give its key a default.")
        if not (MEASURES | HEAD_MEASURES).issuperset(self.needs):
            raise InvariantBroken(f"Gate {name} needs {sorted(self.needs)}: name only measures.")
        meaning, _, description = (inspect.getdoc(measure) or "").partition("\n\n")
        if isinstance(threshold, ThresholdKey) and not threshold.description:
            threshold = replace(threshold, description=" ".join(description.split()))
        GATES[name] = replace(
            self,
            bound=replace(self.bound, threshold=threshold),
            of_prediction=self.of_prediction or self.kind is GateKind.JUDGEMENT,
            name=name,
            meaning=meaning.rstrip("."),
            measure=measure,
        )
        return GATES[name]

    @property
    def threshold(self) -> Threshold:
        """The threshold, or where it comes from."""
        return self.bound.threshold

    @property
    def at_least(self) -> bool:
        """Whether it passes at or above its threshold; else at or below it."""
        return self.bound.is_lower

    @property
    def is_switch(self) -> bool:
        """Whether the measure is yes or no."""
        return self.unit == YES_OR_NO

    @property
    def calibrated_as(self) -> str:
        """The measure's name on a model's card; empty if the threshold is not a quantile."""
        key = self.threshold
        if not isinstance(key, ThresholdKey) or key.form is not ThresholdForm.QUANTILE:
            return ""
        return key.calibrated_as or self.name

    @property
    def section(self) -> str:
        """The configuration section of the threshold."""
        return "risk" if self.kind is GateKind.RISK else "gate"


MEASURES: Final = frozenset({
    "mean_return", "stdev_return", "probabilities", "volatility",
    "confidence_entropy", "content_free", "recent_mass", "event_focus", "shift",
})  # fmt: skip
"""The measures that a model can give; the built-in networks give all."""
HEAD_MEASURES: Final = frozenset(HeadForecasts.__struct_fields__)
"""The measures that only networks with the head of that name give."""

GATES: Final[dict[str, Gate]] = {}
"""All gates by name."""


def _is_off_without_key(threshold: object) -> bool:
    """Return whether the gate has no threshold if its key is not set."""
    return (
        isinstance(threshold, ThresholdKey)
        and threshold.default is None
        and threshold.form is not ThresholdForm.MILLISECONDS
    )


def gate_order(*kinds: GateKind) -> tuple[str, ...]:
    """Return the names of all gates, or of those of *kinds*, in the order of their checks."""
    order = list(GateKind)
    ordered = sorted(GATES.values(), key=lambda gate: order.index(gate.kind))
    return tuple(gate.name for gate in ordered if not kinds or gate.kind in kinds)


def gates_left_out() -> dict[str, str]:
    """Return the gate that each shadow account ``no_GATE`` leaves out, by the account's name.

    Only gates that measure a forecast: the others measure the run's own account.
    """
    names = gate_order(GateKind.JUDGEMENT, GateKind.RISK)
    return {f"no_{name.removeprefix('risk.')}": name for name in names if GATES[name].of_prediction}


# ---------------------------------------------------------------- words


def unit_of(name: str) -> str:
    """Return the unit of gate *name*; empty for a recorded gate that no longer exists."""
    return GATES[name].unit if name in GATES else ""


def measured(name: str, value: float | None, *, signed: bool = False) -> str:
    """Return a measure, a threshold or a margin of gate *name* as text.

    Durations include their unit and shares "%"; for other units see :func:`unit_beside`.
    """
    if value is None or not math.isfinite(value):
        return (GATES[name].unknown if name in GATES and not signed else "") or NOTHING
    unit = unit_of(name)
    if unit == MILLISECONDS:
        return duration(value, signed=signed)
    if unit == YES_OR_NO:
        return NOTHING if signed else {1.0: "yes", 0.0: "no"}.get(value, number(value))
    if unit in _SHARES:
        return percent(value, 1, signed=signed)
    if unit == QUOTE_CURRENCY:
        return money_text(value, signed=signed)
    return number(value, signed=signed)


def unit_beside(name: str) -> str:
    """Return the unit to append to :func:`measured`; empty if that already includes it."""
    unit = unit_of(name)
    return {MILLISECONDS: "", YES_OR_NO: "", **_SHARES}.get(unit, unit)


def verdict(action: Action, refused_by: str | None, reason: str) -> str:
    """Return the gates' verdict on a decision in a few words.

    A refused FLAT is still executed if judgement gates do not block exits, or if its horizon is
    over. With the refusal as its *reason*, FLAT is the effect of ``gate.on_refusal``
    (docs/decisions.md, G13 and G14).
    """
    if refused_by is None:
        return "allowed"
    if action is not Action.FLAT:
        return refusal(refused_by)
    if reason == refusal(refused_by):
        return f"since {refused_by} refused"
    return f"{refused_by} refused; the exit is executed"


def refusal(gate_name: str) -> str:
    """Return the reason of a decision that gate *gate_name* refused."""
    return f"refused by {gate_name}"
