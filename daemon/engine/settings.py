"""The settings of an engine and of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from msgspec import Struct

from tracepaper.daemon.broker.settings import BrokerSettings
from tracepaper.daemon.engine.price_checks import AGREE_WITHIN_MS, USUAL_RANGES
from tracepaper.strategies.api.sizing import Sizer
from tracepaper.strategies.api.strategy import Strategy
from tracepaper.strategies.gates.declared import gap, late, plausible, stale
from tracepaper.strategies.gates.evaluator import GateEvaluator, RegimeBounds
from tracepaper.strategies.gates.gate import GateKind, gate_order
from tracepaper.strategies.sessions import Calendar
from tracepaper.strategies.types.calibration import FittedConfidence, MeasuredTails, RegimeCells
from tracepaper.strategies.types.decisions import Regime

INTEGRITY: Final = frozenset(gate_order(GateKind.INTEGRITY))
EXITS_PASS: Final = frozenset({late.name, gap.name, plausible.name, stale.name})
"""Gates of integrity that refuse no exit: in a crash, or after an outage, an exit cannot wait for a
calmer bar, or for one in time; a strategy may ask for it at one bar alone."""
BLOCKING: Final = INTEGRITY - EXITS_PASS
JUDGEMENT: Final = frozenset(gate_order(GateKind.JUDGEMENT))
LIMITS: Final = frozenset(gate_order(GateKind.RISK))


class EngineSettings(Struct, frozen=True):
    """The settings of an engine; times in milliseconds of market time."""

    broker: BrokerSettings
    interval_ms: int
    period_start_ms: int
    model: ModelTerms
    flat_on_refusal: bool = False
    regimes: frozenset[Regime] = frozenset()
    learned_regimes: frozenset[int] = frozenset()
    hysteresis: float = 0.1  # the distance beyond its bounds at which a cell is left
    risk: dict[str, float] = {}  # limits by gate
    book_days: int = 0  # days of the book's shortfall; 0 without that limit
    ignores_few_days: bool = False  # whether it leaves symbols out that have too few days
    flatten_on_breach: bool = False
    calendars: Mapping[str, Calendar] = {}  # of sessions or months, by instrument id; else none
    usual_ranges: float = USUAL_RANGES  # a jump beyond this waits for another source
    agree_within_ms: int = AGREE_WITHIN_MS


class ModelTerms(Struct, frozen=True):
    """The engine's settings from a model's card."""

    gates: dict[str, GateEvaluator]  # by instrument
    horizon_index: int
    slope: float
    bounds: RegimeBounds | None
    cells: RegimeCells | None  # the card's learned regimes
    fitted: FittedConfidence | None
    tails: MeasuredTails | None  # of the card, at the horizon
    passing: dict[str, float]  # by instrument: the share of bars that passed on the card's slice

    @property
    def sizing_slope(self) -> float:
        """The slope that scales sizes: a card may shrink a mean return but not raise it."""
        return min(self.slope, 1.0)


class EngineTerms(NamedTuple):
    """The strategies, sizers and settings of an engine."""

    strategies: Mapping[str, Strategy]  # by instrument id
    sizers: Mapping[str, Sizer]  # by instrument id
    settings: EngineSettings
