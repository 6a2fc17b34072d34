"""What would have flipped one decision: how far every gate, and the side itself, was from turning.

Read from the stored rows alone. A margin is positive where the gate passed: it says by how much,
in the units of its measure, and as a share of its threshold (of ``direction``, which is never
under one half, of what the threshold asks beyond that).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from tracepaper.replay.explaining.stored import StoredDecision
from tracepaper.strategies.gate import AT_LEAST
from tracepaper.strategies.types import Gate
from tracepaper.strategies.words import UNITS, with_unit

SWITCHES: Final = frozenset({Gate.OPERATOR, Gate.DEADLINE, Gate.FINITE, Gate.REGIME})
"""Gates that answer yes or no: they turn, but are never near to turning."""

LEAST: Final[Mapping[Gate, float]] = {Gate.DIRECTION: 0.5}
"""Where a measure begins, if not at 0: shares are taken of the threshold's distance from there."""


@dataclass(frozen=True)
class GateMargin:
    """How far one gate was from turning; ``margin`` is null where its measure is."""

    gate: str
    measure: float | None
    threshold: float
    passed: bool
    unit: str
    margin: float | None  # by how much it passed; negative where it failed
    share: float | None  # the margin over the threshold, from ``LEAST`` on; null where that is 0

    @property
    def is_gradual(self) -> bool:
        """Whether its distance can be held against another gate's.

        The count of bars stops at the warm-up, so a warm model is never near to being cold.
        """
        gate = Gate(self.gate)
        is_settled = gate in SWITCHES or (gate is Gate.WARM and self.passed)
        return self.share is not None and not is_settled


@dataclass(frozen=True)
class Side:
    """Which way the forecast pointed at the gates' horizon, and how far it was from turning."""

    horizon: int  # bars
    side: str  # LONG, SHORT, or HOLD where the two disagree
    mean_return: float  # log return; its sign would have to turn
    mean_over_stdev: float
    lean: float  # p_up - p_down; its sign would have to turn as well


@dataclass(frozen=True)
class Flips:
    """What would have had to differ for the other verdict.

    A refusal turns when every gate of ``must_pass`` passes; an allowed decision turns when any
    one gate fails. ``nearest`` is the gradual gate that was closest to its threshold among them.
    """

    allowed: bool
    must_pass: tuple[str, ...]
    nearest: str | None
    gates: tuple[GateMargin, ...]
    side: Side | None
    sentence: str


def flips_of(stored: StoredDecision) -> Flips:
    """Return how far one decision was from the other verdict and from the other side."""
    gates = tuple(_margin(row) for row in stored.gates)
    allowed = bool(stored.decision["allowed"])
    failed = tuple(gate for gate in gates if not gate.passed)
    near = [gate for gate in (gates if allowed else failed) if gate.is_gradual]
    nearest = min(near, key=lambda gate: abs(gate.share or 0.0), default=None)
    return Flips(
        allowed,
        tuple(gate.gate for gate in failed),
        None if nearest is None else nearest.gate,
        gates,
        _side(stored.decision),
        _allowed_sentence(nearest) if allowed else _refused_sentence(failed, nearest),
    )


def _margin(row: Mapping[str, Any]) -> GateMargin:
    """Return the margin of one row of ``v_gates``."""
    gate, measure, threshold = Gate(row["gate"]), row["measure"], float(row["threshold"])
    margin = None
    if measure is not None:
        margin = measure - threshold if gate in AT_LEAST else threshold - measure
    span = abs(threshold - LEAST.get(gate, 0.0))
    share = None if margin is None or span == 0 else margin / span
    return GateMargin(
        gate.value, measure, threshold, bool(row["passed"]), UNITS[gate], margin, share
    )


def _side(decision: Mapping[str, Any]) -> Side | None:
    """Return the side on which mean return and class probabilities agree, None without them."""
    mean, stdev = decision["mean_return"], decision["stdev_return"]
    up, down = decision["p_up"], decision["p_down"]
    if mean is None or stdev is None or up is None or down is None:
        return None
    lean = up - down
    side = "HOLD"
    if mean * lean > 0:
        side = "LONG" if mean > 0 else "SHORT"
    return Side(decision["horizon"], side, mean, mean / stdev if stdev > 0 else 0.0, lean)


def _refused_sentence(failed: tuple[GateMargin, ...], nearest: GateMargin | None) -> str:
    if len(failed) == 1:
        return f"Only {failed[0].gate} refused, {_shortfall(failed[0])}."
    names = ", ".join(gate.gate for gate in failed)
    if nearest is None:
        return f"All of {names} would have had to pass."
    return (
        f"All of {names} would have had to pass; the nearest was {nearest.gate}, "
        f"{_shortfall(nearest)}."
    )


def _allowed_sentence(nearest: GateMargin | None) -> str:
    if nearest is None:
        return "Every gate passed, and none of them moves by degrees."
    return (
        f"Every gate passed; the nearest to refusing was {nearest.gate}, by {_distance(nearest)}."
    )


def _shortfall(gate: GateMargin) -> str:
    if gate.margin is None:
        return "whose measure could not be computed"
    if Gate(gate.gate) in SWITCHES:
        return "which answers yes or no"
    return f"short by {_distance(gate)}"


def _distance(gate: GateMargin) -> str:
    """Return a margin in its unit and, where there is one, as a share of the threshold."""
    assert gate.margin is not None
    distance = with_unit(Gate(gate.gate), abs(gate.margin))
    if gate.share is None:
        return distance
    least = LEAST.get(Gate(gate.gate))
    above = "" if least is None else f" above {least:g}"
    return f"{distance} ({abs(gate.share):.1%} of its threshold{above})"
