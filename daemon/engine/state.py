"""What the engine is given once, and what it carries from step to step."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from tracepaper.daemon.engine.account import AccountState
from tracepaper.daemon.engine.execution import ExecutionCosts
from tracepaper.daemon.engine.orders import FILL_WITHIN_MS
from tracepaper.daemon.engine.risk import RiskState
from tracepaper.strategies.errors import InvariantBroken
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
    risk: dict[str, float] = {}


class EngineState(Struct, frozen=True, array_like=True):
    """All that the engine carries from step to step besides the bars it can be fed again."""

    halted: bool
    regimes: dict[str, Regime]
    risk: RiskState
    account: AccountState
    twins: dict[str, AccountState]


def decode_state(state: bytes) -> EngineState:
    """Return the engine's state as a step stored it; raise ``InvariantBroken`` if it is none."""
    try:
        return msgspec.msgpack.decode(state, type=EngineState)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise InvariantBroken(f"the stored engine state does not decode: {error}") from error
