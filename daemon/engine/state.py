"""The stored state of the engine, and the names of the shadow accounts.

``ungated`` follows every signal. ``random_gate`` follows randomly drawn signals, as many as the
judgement gates let through on the card's calibration slice or in the run so far. ``held``
holds the run's mean exposure so far, with its sign. ``fixed_band`` replaces a signal's band by the
default of ``sizing.rebalance``. ``sized_by_forecast`` sizes by the model's volatility.
``uncorrelated`` weighs by the run's rule as if no two symbols were correlated. ``full_size`` and
``no_GATE`` differ from the run in one thing: they always take a full position, or ignore that gate.

The rules are docs/decisions.md, G18.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from tracepaper.daemon.broker.account import AccountState
from tracepaper.daemon.broker.settlements import Note
from tracepaper.daemon.engine.risk import RiskState
from tracepaper.strategies.errors import InvariantBroken
from tracepaper.strategies.gates.gate import gates_left_out
from tracepaper.strategies.types.decisions import DecisionOutcome, Order, Regime
from tracepaper.strategies.types.market import Funding

UNGATED: Final = "ungated"
RANDOM_GATE: Final = "random_gate"
HELD: Final = "held"
FIXED_BAND: Final = "fixed_band"
SIZED_BY_FORECAST: Final = "sized_by_forecast"
FULL_SIZE: Final = "full_size"
UNCORRELATED: Final = "uncorrelated"
WITHOUT: Final = gates_left_out()
"""The gate that each shadow account ``no_GATE`` leaves out."""
SHADOWS: Final = {
    UNGATED: "the same forecasts without the judgement gates",
    RANDOM_GATE: (
        "the same forecasts, let through by chance as often as the run's gates did so far, or as "
        "the card counted on its calibration slice, where a warning of the run says so"
    ),
    HELD: "held at the run's mean exposure so far, short where that is below zero",
    FIXED_BAND: "the same signals, traded where a target has moved by more than a quarter",
    SIZED_BY_FORECAST: "the same trend, sized by the model's volatility",
    FULL_SIZE: "the same decisions, each with a full position",
    UNCORRELATED: "weights by the same rule, as if no two symbols moved together",
    **{name: f"the same decisions without the gate {gate}" for name, gate in WITHOUT.items()},
}
"""The description of every shadow account, by its name."""


LIMITED: Final = frozenset({FULL_SIZE, *WITHOUT})
"""Shadow accounts to which the limits apply, as to the run."""
BASED_ON_RUN: Final = frozenset({RANDOM_GATE, HELD})
"""Shadow accounts that depend on the run's earlier steps."""
FOLLOWING: Final = SHADOWS.keys() - LIMITED - BASED_ON_RUN
"""Shadow accounts whose intents depend on signals and their sizes alone."""
RANDOM_SEED: Final = 1
_DRAWN: Final = 1 << 64


class ShadowBasis(Struct, frozen=True, array_like=True):
    """Totals of the run's bars in one instrument, without warm-up, for shadow accounts."""

    bars: int = 0
    judged: int = 0  # bars that no integrity gate refused
    passed: int = 0  # judged bars that no judgement gate refused
    exposure: float = 0.0  # sum of position value / equity, below zero where short

    def passes(self, instrument: str, open_time_ms: int, share: float | None = None) -> bool:
        """Return whether the signal of a bar passes at random, as a function of the arguments.

        It passes with the probability *share*, or with the share of the run so far. Without both,
        at the first signal, it passes.
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
        """The mean exposure; 0 before the first bar."""
        return self.exposure / self.bars if self.bars else 0.0


class EngineState(Struct, frozen=True, array_like=True):
    """The whole stored state of the engine, except for the bars that a start feeds again.

    A change of regime alone stores no state, since the decision at that bar holds the regime.
    """

    halted: bool
    regimes: dict[str, Regime]
    risk: RiskState
    account: AccountState
    shadows: dict[str, AccountState]
    settled: dict[str, int] = {}  # market time of each instrument's newest settlement
    bases: dict[str, ShadowBasis] = {}  # by instrument, if a shadow account depends on it
    declared: dict[str, bytes] = {}  # ``State`` of strategies, by instrument; "": a portfolio's
    cells: dict[str, int] = {}  # by instrument: its cell among the card's learned regimes
    unsettled: dict[str, list[Funding]] = {}  # by instrument: settlements that wait for their time
    first_ms: dict[str, int] = {}  # by instrument: its first bar, where the period begins later
    notes: dict[str, list[Note]] = {}  # by instrument: what was held, until the rate is known

    def after(self, verdicts: Mapping[str, DecisionOutcome]) -> EngineState:
        """Return this state with the regimes of later *verdicts*, by instrument."""
        cells = {key: outcome.regime_cell for key, outcome in verdicts.items()}
        return replace(
            self,
            regimes=self.regimes | {key: outcome.regime for key, outcome in verdicts.items()},
            cells=self.cells | {key: cell for key, cell in cells.items() if cell is not None},
        )


def decode_state(state: bytes) -> EngineState:
    """Decode the engine's state from a step; raise ``InvariantBroken`` if that is impossible."""
    try:
        return msgspec.msgpack.decode(state, type=EngineState)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise InvariantBroken(f"the stored engine state does not decode: {error}") from error


def resting_orders(state: EngineState) -> list[Order]:
    """Return the orders that rest in the run's account."""
    return [
        order
        for line in state.account.lines.values()
        for order in (line.orders.order, *line.orders.others)
        if order is not None
    ]
