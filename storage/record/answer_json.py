"""The JSON of a strategy's note, and of what each of several strategies decided; pure."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct, json

from tracepaper.strategies.types.decisions import (
    Action,
    DecisionOutcome,
    GateSet,
    Regime,
    StrategyDecision,
)


class KeptDecision(Struct, array_like=True):
    """The decision of one strategy of several as ``twin_steps.decided`` stores it: an array.

    Nulls at its end are left out. ``gate_set`` is a place among the gate sets that the run was
    opened with; ``measures`` has those by gate that the account's own decision lacks, or has
    otherwise.
    """

    action: Action
    reason: str
    target: int | None
    gate_set: int
    passed: int
    refused_by: str | None = None
    unfilled_reason: str | None = None
    measures: dict[str, float | None] | None = None
    note: dict[str, float | str | None] | None = None
    regime: Regime | None = None
    regime_cell: int | None = None
    size_factor: float | None = None

    def decision(self, strategy: str, gates: GateSet) -> StrategyDecision:
        """Return it as the step had it, of the *strategy*, judged by *gates*."""
        outcome = DecisionOutcome(
            self.action, self.reason, self.refused_by is None, self.refused_by, gates, self.passed,
            self.regime or Regime.UNKNOWN, self.unfilled_reason, self.regime_cell, self.size_factor,
        )  # fmt: skip
        measures = tuple((self.measures or {}).items())
        return StrategyDecision(strategy, outcome, self.target, self.gate_set, measures, self.note)


_encode = json.Encoder().encode
read_decided = json.Decoder(KeptDecision).decode


def note_text(note: Mapping[str, float | str | None]) -> str:
    """Write the *note* of a decision."""
    return _encode(note).decode()


def decided_text(decided: StrategyDecision) -> str:
    """Write what a strategy *decided*."""
    outcome = decided.outcome
    values = [
        outcome.action, outcome.reason, decided.target_quantity, decided.gate_set, outcome.passed,
        outcome.refused_by, outcome.unfilled_reason, dict(decided.measures) or None, decided.note,
        None if outcome.regime is Regime.UNKNOWN else outcome.regime, outcome.regime_cell,
        outcome.size_factor,
    ]  # fmt: skip
    while values[-1] is None:
        del values[-1]
    return _encode(values).decode()
