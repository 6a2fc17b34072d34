"""``Gate`` and the ``@gate`` decorator; the inputs of a calibrated confidence.

Entropies are those of every layer and head, which an explanation carries. An input that should rise
with confidence is marked, and its weight is never below zero.

The rules are docs/decisions.md, G32 and G33.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Collection, Sequence
from enum import StrEnum
from typing import Final

from msgspec import Struct

from tracepaper.strategies.errors import InvariantBroken
from tracepaper.strategies.types.calibration import FittedConfidence
from tracepaper.strategies.types.decisions import (
    Action,
    Explanation,
    Forecast,
    HeadForecasts,
    Regime,
)
from tracepaper.strategies.units import NOTHING, duration, number

Reader = Callable[[Forecast, int], float | None]
"""``(forecast, place of the horizon) -> value``; None where it is not known."""
HEAD: Final = "entropy_"
"""The name of a head's entropy confidence, before its number (layer-major)."""
_FLOAT_BYTES: Final = 4


class ConfidenceInput(Struct, frozen=True):
    """One input of the fitted confidence."""

    read: Reader
    rises: bool  # more of it never means less confidence in the sign
    of_attention: bool


def mean_over_stdev(forecast: Forecast, at: int) -> float | None:
    """Return abs(mean) ÷ standard deviation of the return to the horizon."""
    return abs(forecast.mean_return[at]) / forecast.stdev_return[at]


def margin(forecast: Forecast, at: int) -> float | None:
    """Return the distance of the two directions' probabilities over their sum."""
    up, down = forecast.p_up[at], forecast.p_down[at]
    return abs(up - down) / (up + down) if up + down > 0 else None


def _of_attention(read: Callable[[Explanation], float | None]) -> ConfidenceInput:
    def of_explanation(forecast: Forecast, at: int) -> float | None:  # noqa: ARG001 - of every horizon
        return None if forecast.explanation is None else read(forecast.explanation)

    return ConfidenceInput(of_explanation, rises=False, of_attention=True)


def _excess(explanation: Explanation) -> float | None:
    if explanation.confidence is None or explanation.content_free is None:
        return None
    return explanation.confidence - explanation.content_free


INPUTS: Final = {
    "mean_over_stdev": ConfidenceInput(mean_over_stdev, rises=True, of_attention=False),
    "margin": ConfidenceInput(margin, rises=True, of_attention=False),
    "excess": _of_attention(_excess),
    "shift": _of_attention(lambda explanation: explanation.shift),
    "recent_mass": _of_attention(lambda explanation: explanation.recent_mass),
}
"""Every input but the heads' entropies, by its name."""


def heads_of(explanation: Explanation | None) -> tuple[float, ...]:
    """Return the entropy confidence of every layer and head, layer-major; none of other models."""
    if explanation is None:
        return ()
    return struct.unpack(f"<{len(explanation.entropy) // _FLOAT_BYTES}f", explanation.entropy)


def names_for(forecast: Forecast) -> tuple[str, ...]:
    """Return the names of the inputs that forecasts like this one give."""
    explained = forecast.explanation is not None
    plain = [name for name, reader in INPUTS.items() if explained or not reader.of_attention]
    return (*plain, *(f"{HEAD}{i}" for i in range(len(heads_of(forecast.explanation)))))


def is_of_attention(name: str) -> bool:
    """Return whether the input *name* comes from the attention."""
    return name not in INPUTS or INPUTS[name].of_attention


def rises(name: str) -> bool:
    """Return whether more of the input *name* never means less confidence in the sign."""
    return name in INPUTS and INPUTS[name].rises


def is_known(name: str) -> bool:
    """Return whether *name* is that of an input."""
    return name in INPUTS or (name.startswith(HEAD) and name.removeprefix(HEAD).isdecimal())


def values_of(names: Sequence[str], forecast: Forecast, at: int) -> list[float | None]:
    """Return the inputs *names* at the horizon in place *at*; None for what is not known."""
    heads = heads_of(forecast.explanation)
    values: list[float | None] = []
    for name in names:
        if (reader := INPUTS.get(name)) is not None:
            values.append(reader.read(forecast, at))
        else:
            number = int(name.removeprefix(HEAD))
            values.append(heads[number] if number < len(heads) else None)
    return values


def sign_confidence(fitted: FittedConfidence, forecast: Forecast, at: int) -> float | None:
    """Return the fitted probability that the sign of the mean is right."""
    return fitted.sign.probability(values_of(fitted.sign.names, forecast, at))


def volatility_confidence(fitted: FittedConfidence, forecast: Forecast, at: int) -> float | None:
    """Return the fitted probability that the volatility's error is under its median."""
    return fitted.volatility.probability(values_of(fitted.volatility.names, forecast, at))


def size_factor(fitted: FittedConfidence, forecast: Forecast | None, at: int) -> float:
    """Return the multiplier of a size, in (0, 1]: 1 ÷ the widening of the interval.

    It is 1 where the forecast is surer than usual, and where nothing is known.
    """
    if forecast is None:
        return 1.0
    sure = volatility_confidence(fitted, forecast, at)
    return 1.0 if sure is None else min(1.0, 1.0 / fitted.spread_of(sure))


UNIVERSE: Final = "market.universe"
"""The key whose gate exists only where it is set."""
YES_OR_NO: Final = "yes or no"
MILLISECONDS: Final = "ms"
QUOTE_CURRENCY: Final = "quote currency"
SHARE_OF_PEAK: Final = "share of the peak"
SHARE_OF_EQUITY: Final = "share of equity"
BASIS_POINTS: Final = "basis points"
_SHARES: Final = {SHARE_OF_PEAK: "of the peak", SHARE_OF_EQUITY: "of equity"}
"""Units that are shown per cent, and the words after it."""
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
    learned_regimes: frozenset[int] = frozenset()
    reduces: bool = False  # the target lowers the exposure: no risk limit stands in its way
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
    is_outside: bool = False  # the symbol was not chosen into the universe


class GateKind(StrEnum):
    """What a gate asks; a refusal is named by the first gate that fails, in this order."""

    INTEGRITY = "integrity"  # may the inputs be believed? Refused, the position stays as it is
    JUDGEMENT = (
        "judgement"  # is the forecast worth it? Refused, ``gate.on_refusal`` says what to do
    )
    RISK = "risk"  # does the account allow it? Declared only where its limit is configured


DROPPABLE: Final = (GateKind.JUDGEMENT, GateKind.RISK)
"""Kinds of gates that ``gate.drop`` may leave out: never one that says what may be believed."""


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
    # A state of the run: measured, and failed, at every bar; it still refuses new exposure alone.
    is_lasting: bool
    # Of ``MEASURES`` and ``HEAD_MEASURES``: a model that does not give them has no such gate.
    needs: frozenset[str]
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
HEAD_MEASURES: Final = frozenset(HeadForecasts.__struct_fields__)
"""What only networks with such a head give."""

GATES: Final[dict[str, Gate]] = {}
"""Every gate by its name."""


def _is_off_without_key(threshold: object) -> bool:
    """Return whether nothing says the threshold where its key is not set: a time has one."""
    return (
        isinstance(threshold, ThresholdKey)
        and threshold.default is None
        and threshold.form is not ThresholdForm.MILLISECONDS
    )


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
    is_lasting: bool = False,
    needs: Collection[str] = (),
    chosen_by: str = "",
) -> Callable[[Measure], Gate]:
    """Declare the decorated function as a gate with one threshold, *at_least* or *at_most*.

    It bears the function's name, and its docstring says what it measures. Configuration and storage
    are made from what is declared when they are imported, so it must happen before.
    """

    def declare(measure: Measure) -> Gate:
        threshold = at_most if at_least is None else at_least
        name = measure.__name__
        if kind is GateKind.RISK:
            name = f"risk.{name.removeprefix('risk_')}"
        if threshold is None:
            raise InvariantBroken(f"Gate {name} has no threshold: give at_least or at_most.")
        if name in GATES:
            raise InvariantBroken(f"Gate {name} is declared already: choose another name.")
        if kind is not GateKind.RISK and _is_off_without_key(threshold):
            raise InvariantBroken(f"Gate {name} of {kind} needs a default of its key.")
        if not (MEASURES | HEAD_MEASURES).issuperset(needs):
            raise InvariantBroken(f"Gate {name} needs {sorted(needs)}, not all of them measures.")
        GATES[name] = Gate(
            name=name,
            kind=kind,
            words=(measure.__doc__ or "").strip().rstrip("."),
            unit=unit,
            measure=measure,
            threshold=threshold,
            at_least=at_least is not None,
            of_prediction=of_prediction,
            is_timing=is_timing,
            of_quotes=of_quotes,
            starts_at=starts_at,
            is_capped=is_capped,
            only_with=only_with,
            is_lasting=is_lasting,
            needs=frozenset(needs),
            chosen_by=chosen_by,
        )
        return GATES[name]

    return declare


def gate_order(*kinds: GateKind) -> tuple[str, ...]:
    """Return the names of all gates, or of those of *kinds*, in the order in which they refuse."""
    places = list(GateKind)
    ordered = sorted(GATES.values(), key=lambda gate: places.index(gate.kind))
    return tuple(gate.name for gate in ordered if not kinds or gate.kind in kinds)


def gates_left_out() -> dict[str, str]:
    """Return the gate of a forecast that each shadow account ``no_GATE`` leaves out, by its name.

    Only gates that measure a forecast: what others measure of the account is the run's own.
    """
    names = gate_order(GateKind.JUDGEMENT, GateKind.RISK)
    return {f"no_{name.removeprefix('risk.')}": name for name in names if GATES[name].of_prediction}


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
    if unit in _SHARES:
        return f"{100 * value:{sign}.1f} %"
    return f"{value:{sign},.2f}" if unit == QUOTE_CURRENCY else number(value, signed=signed)


def unit_beside(name: str) -> str:
    """Return the unit to write after :func:`measured` of gate *name*; empty where it has one."""
    unit = unit_of(name)
    return {MILLISECONDS: "", YES_OR_NO: "", **_SHARES}.get(unit, unit)


def verdict(action: Action, refused_by: str | None, reason: str) -> str:
    """Say the gates' verdict on a decision in a few words.

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
