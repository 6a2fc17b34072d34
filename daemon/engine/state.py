"""What the engine is given once, and what it carries from step to step."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from tracepaper.daemon.engine.account import AccountState
from tracepaper.daemon.engine.execution import ExecutionCosts
from tracepaper.daemon.engine.orders import FILL_WITHIN_MS
from tracepaper.daemon.engine.plausible import AGREE_WITHIN_MS, USUAL_RANGES
from tracepaper.daemon.engine.risk import RiskState
from tracepaper.daemon.engine.twins import TwinBasis
from tracepaper.strategies.calendar import Calendar
from tracepaper.strategies.errors import InvariantBroken
from tracepaper.strategies.fitted import FittedConfidence, RegimeCells
from tracepaper.strategies.gate_evaluator import GateEvaluator
from tracepaper.strategies.regime import RegimeBounds
from tracepaper.strategies.types import FillModel, Regime


class EngineSettings(Struct, frozen=True):
    """What the engine is given once; money in 10⁻¹⁰, times in milliseconds of market time."""

    execution: FillModel
    costs: ExecutionCosts
    cash: int
    interval_ms: int
    period_start_ms: int
    latency_ms: int = 100
    fill_within_ms: int = FILL_WITHIN_MS
    flat_on_refusal: bool = False
    horizon_index: int = 0
    slope: float = 1.0
    regimes: frozenset[Regime] = frozenset()
    bounds: RegimeBounds | None = None
    cells: RegimeCells | None = None  # the card's own regimes
    hysteresis: float = 0.1  # by which a cell is left late
    fitted: FittedConfidence | None = None
    passing: dict[str, float] = {}  # of an instrument's gates, by id, as its card counted them
    risk: dict[str, float] = {}
    flatten_on_breach: bool = False
    calendar: Calendar | None = None  # whose session bars are counted; None: every interval
    latency_jitter_ms: int = 0  # mean of an exponential draw on top of latency_ms
    seed: int = 0  # of every draw
    costs_of: dict[str, ExecutionCosts] = {}  # of the instruments that have others, by id

    leverage: int | None = None  # 10⁻² of isolated linear positions; None: no margin
    usual_ranges: float = USUAL_RANGES  # beyond which a price waits for another source
    agree_within_ms: int = AGREE_WITHIN_MS

    def costs_for(self, instrument: str) -> ExecutionCosts:
        """Return what trading *instrument* costs."""
        return self.costs_of.get(instrument, self.costs)


class ModelTerms(Struct, frozen=True):
    """All of the engine's settings that a model's card decides: what a promotion changes."""

    gates: dict[str, GateEvaluator]  # by instrument
    horizon_index: int
    slope: float
    bounds: RegimeBounds | None
    cells: RegimeCells | None
    fitted: FittedConfidence | None
    passing: dict[str, float]

    @property
    def sizing_slope(self) -> float:
        """The slope by which sizes are scaled: a card's may shrink a mean and not raise it."""
        return min(self.slope, 1.0)


class EngineState(Struct, frozen=True, array_like=True):
    """All that the engine carries from step to step besides the bars it can be fed again."""

    halted: bool
    regimes: dict[str, Regime]
    risk: RiskState
    account: AccountState
    twins: dict[str, AccountState]
    settled: dict[str, int] = {}  # market time of each instrument's newest settlement
    bases: dict[str, TwinBasis] = {}  # of each instrument, where a twin depends on it
    declared: dict[str, bytes] = {}  # by instrument, "" of a portfolio: their ``State``
    cells: dict[str, int] = {}  # by instrument, of the card's own regimes


def decode_state(state: bytes) -> EngineState:
    """Return the engine's state as a step stored it; raise ``InvariantBroken`` if it is none."""
    try:
        return msgspec.msgpack.decode(state, type=EngineState)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise InvariantBroken(f"the stored engine state does not decode: {error}") from error
