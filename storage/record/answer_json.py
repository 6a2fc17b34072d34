"""The JSON of ``answers``: a strategy's note, and what each of several strategies decided; pure.

``strategies`` is one array a decided bar, an object for each strategy in the order of their names.
What is absent is null. A gate set is its place among those that the run was opened with, and
``measures`` are of its gates, in their order.
"""

from __future__ import annotations

from collections.abc import Callable

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


class _Kept(Struct, omit_defaults=True):
    """One strategy's decision as it is stored."""

    strategy: str
    action: Action
    reason: str
    target: int | None
    gate_set: int
    passed: int
    measures: tuple[float | None, ...]
    sha256: str
    refused_by: str | None = None
    regime: Regime = Regime.UNKNOWN
    unfilled_reason: str | None = None
    regime_cell: int | None = None
    size_factor: float | None = None
    note: dict[str, float | str | None] | None = None


_encode = json.Encoder().encode
_decoder = json.Decoder(list[_Kept])


def note_text(step: Step) -> str | None:
    """Write the note of the decision of *step*; None without one."""
    if step.decision is None or step.decision.note is None:
        return None
    return _encode(step.decision.note).decode()


def strategies_text(step: Step) -> str | None:
    """Write what each of several strategies decided; None where one alone decides."""
    if not step.strategies:
        return None
    return _encode([_kept(one) for one in step.strategies]).decode()


def _kept(one: StrategyDecision) -> _Kept:
    decision, outcome = one.decision, one.decision.outcome
    return _Kept(
        one.strategy, outcome.action, outcome.reason, decision.target_quantity, one.gate_set,
        outcome.passed, decision.measures, one.decision_sha256.hex(),
        outcome.refused_by, outcome.regime, outcome.unfilled_reason, outcome.regime_cell,
        outcome.size_factor, decision.note,
    )  # fmt: skip


def strategies_of(
    text: str | None, gate_set: Callable[[int], GateSet]
) -> tuple[StrategyDecision, ...]:
    """Read what :func:`strategies_text` wrote; *gate_set* looks one up by its place."""
    if text is None:
        return ()
    return tuple(
        StrategyDecision(
            kept.strategy,
            Decision(
                DecisionOutcome(
                    kept.action, kept.reason, kept.refused_by is None, kept.refused_by,
                    gate_set(kept.gate_set), kept.passed, kept.regime, kept.unfilled_reason,
                    kept.regime_cell, kept.size_factor,
                ),
                kept.target,
                kept.measures,
                kept.note,
            ),
            bytes.fromhex(kept.sha256),
            kept.gate_set,
        )
        for kept in _decoder.decode(text)
    )  # fmt: skip
