"""The JSON of ``answers``: a strategy's note, and what each of several strategies decided; pure.

``strategies`` is one array a decided bar, an object for each strategy in the order of their names.
What is absent is null. A gate set is its place among those that the run was opened with.
``measures`` has those by gate that the account's own decision lacks, or has otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from msgspec import Struct, json

from tracepaper.strategies.types.decisions import (
    Action,
    Decision,
    DecisionOutcome,
    GateSet,
    Regime,
    Step,
    StrategyDecision,
)

TEXTS_KEPT: Final = 256
"""Texts that are remembered at a time, one an instrument."""

Measure = float | None


class _Kept(Struct, omit_defaults=True):
    """One strategy's decision as it is stored."""

    strategy: str
    action: Action
    reason: str
    target: int | None
    gate_set: int
    passed: int
    refused_by: str | None = None
    regime: Regime = Regime.UNKNOWN
    unfilled_reason: str | None = None
    regime_cell: int | None = None
    size_factor: float | None = None
    measures: dict[str, Measure] | None = None
    note: dict[str, float | str | None] | None = None


_encode = json.Encoder().encode
_decoder = json.Decoder(list[_Kept])


def note_text(step: Step) -> str | None:
    """Write the note of the decision of *step*; None without one."""
    if step.decision is None or step.decision.note is None:
        return None
    return _encode(step.decision.note).decode()


class _Written(NamedTuple):
    """A text, and what it was written of."""

    own_gates: GateSet
    of: tuple[StrategyDecision, ...]
    text: str

    def is_of(self, own: Decision, given: tuple[StrategyDecision, ...]) -> bool:
        """Return whether *given*, netted as *own*, are written alike."""
        if own.outcome.gate_set is not self.own_gates or len(given) != len(self.of):
            return False
        measures = own.measures
        for one, before in zip(given, self.of, strict=True):
            decision, known = one.decision, before.decision
            if (
                decision.outcome is not known.outcome
                or decision.target_quantity != known.target_quantity
                or decision.measures != measures
                or decision.note is not None
                or one.gate_set != before.gate_set
                or one.strategy != before.strategy
            ):
                return False
        return True


_written: dict[str, _Written] = {}  # by instrument: the same objects are written alike


def strategies_text(step: Step) -> str | None:
    """Write what each of several strategies decided; None where one alone decides."""
    given, own = step.strategies, step.decision
    if not given or own is None:
        return None
    key: str = getattr(step.event, "instrument", "")
    known = _written.get(key)
    if known is not None and known.is_of(own, given):
        return known.text
    kept = [_kept(one, own) for one in given]
    text = _encode(kept).decode()
    gates = own.outcome.gate_set.gates
    if all(one.decision.outcome.gate_set.gates == gates for one in given) and all(
        one.measures is None and one.note is None for one in kept
    ):
        if len(_written) >= TEXTS_KEPT:
            _written.clear()
        _written[key] = _Written(own.outcome.gate_set, given, text)
    return text


def _kept(one: StrategyDecision, own: Decision) -> _Kept:
    decision, outcome = one.decision, one.decision.outcome
    known = measures_of(own)
    measures = {
        gate: measure
        for gate, measure in measures_of(decision).items()
        if gate not in known or known[gate] != measure
    }
    return _Kept(
        one.strategy, outcome.action, outcome.reason, decision.target_quantity, one.gate_set,
        outcome.passed, outcome.refused_by, outcome.regime, outcome.unfilled_reason,
        outcome.regime_cell, outcome.size_factor, measures or None, decision.note,
    )  # fmt: skip


def measures_of(decision: Decision) -> dict[str, Measure]:
    """Return the measures of *decision* by their gates."""
    return dict(zip(decision.outcome.gate_set.gates, decision.measures, strict=True))


def strategies_of(
    text: str | None, own: Mapping[str, Measure], gate_set: Callable[[int], GateSet]
) -> tuple[StrategyDecision, ...]:
    """Read what :func:`strategies_text` wrote beside the account's *own* measures, by gate.

    *gate_set* looks one up by its place.
    """
    if text is None:
        return ()
    return tuple(_read(kept, own, gate_set(kept.gate_set)) for kept in _decoder.decode(text))


def _read(kept: _Kept, own: Mapping[str, Measure], gates: GateSet) -> StrategyDecision:
    known = {**own, **(kept.measures or {})}
    outcome = DecisionOutcome(
        kept.action, kept.reason, kept.refused_by is None, kept.refused_by, gates, kept.passed,
        kept.regime, kept.unfilled_reason, kept.regime_cell, kept.size_factor,
    )  # fmt: skip
    measures = tuple(known[gate] for gate in gates.gates)
    decision = Decision(outcome, kept.target, measures, kept.note)
    return StrategyDecision(kept.strategy, decision, kept.gate_set)
