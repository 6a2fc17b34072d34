"""Settings and state of the engine, and its shadow accounts.

``ungated`` follows every signal. ``random_gate`` follows as many as the judgement gates let through
on the card's calibration slice, or in the run so far, drawn by chance. ``buy_and_hold`` holds as
much as the run did so far, in the mean.

The rules are docs/decisions.md, G18.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Final

import msgspec
from msgspec import Struct

from tracepaper.daemon.broker.account import AccountState
from tracepaper.daemon.broker.execution import ExecutionCosts
from tracepaper.daemon.broker.orders import FILL_WITHIN_MS
from tracepaper.daemon.engine.price_checks import AGREE_WITHIN_MS, USUAL_RANGES
from tracepaper.daemon.engine.risk import RiskState
from tracepaper.strategies.errors import InvariantBroken
from tracepaper.strategies.gates.evaluator import GateEvaluator, RegimeBounds
from tracepaper.strategies.sessions import Calendar
from tracepaper.strategies.types.calibration import FittedConfidence, RegimeCells
from tracepaper.strategies.types.decisions import FillModel, Regime

UNGATED: Final = "ungated"
RANDOM_GATE: Final = "random_gate"
BUY_AND_HOLD: Final = "buy_and_hold"
TWINS: Final = {
    UNGATED: "the same forecasts without the judgement gates",
    RANDOM_GATE: (
        "the same forecasts, let through by chance as often as the run's gates did so far, or as "
        "the card counted on its calibration slice, where a warning of the run says so"
    ),
    BUY_AND_HOLD: "held long at the run's mean exposure so far",
}
"""Every twin by its name, and what it does."""
COUNTED: Final = frozenset({RANDOM_GATE, BUY_AND_HOLD})
"""Those that depend on what the run itself did before."""
RANDOM_SEED: Final = 1
_DRAWN: Final = 1 << 64


class TwinBasis(Struct, frozen=True, array_like=True):
    """What the run did with one instrument, over its bars so far that were no warm-up."""

    bars: int = 0
    judged: int = 0  # bars whose inputs could be believed
    passed: int = 0  # of them those that no judgement gate refused
    exposure: float = 0.0  # sum of the position's value by the equity, without its sign

    def passes(self, instrument: str, open_time_ms: int, share: float | None = None) -> bool:
        """Return whether chance lets the signal of a bar through: a function of these alone.

        It passes with *share*, or with the run's own so far; of that the first signal passes,
        since nothing was judged before it.
        """
        if share is None and not self.judged:
            return True
        drawn = sha256(f"{RANDOM_SEED}:{instrument}:{open_time_ms}:0".encode()).digest()[:8]
        number = int.from_bytes(drawn, "big")
        if share is not None:
            return number < int(share * _DRAWN)
        return number * self.judged < self.passed * _DRAWN

    @property
    def usual_exposure(self) -> float:
        """The mean of the position's value by the equity; 0 before the first bar."""
        return self.exposure / self.bars if self.bars else 0.0


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
