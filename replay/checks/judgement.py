"""Compares two derived steps by judgement or signal, and finds the first field that differs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, Final

from msgspec import structs

from tracepaper.replay.backtest.predictors import SHARES, near_measure, predictions_agree
from tracepaper.replay.checks.compare import Difference, decision_differences, differences_of
from tracepaper.replay.checks.memory import short_text
from tracepaper.strategies.api.context import Orders, Signal
from tracepaper.strategies.gates.gate import GateKind, gate_order
from tracepaper.strategies.types.decisions import Decision, Step, StrategyDecision

_RISK: Final = frozenset(gate_order(GateKind.RISK))

Signals = tuple[Signal | Orders | None, tuple[Signal | Orders | None, ...]]
"""The account's signal, and that of each of several strategies; None without equity."""


@dataclass(frozen=True)
class DerivedStep:
    """A step with the strategy's signal and columns."""

    step: Step
    signal: Signal | Orders | None
    parts: tuple[Signal | Orders | None, ...] = ()
    """The signal of each of several strategies on one account; None without equity."""
    columns: tuple[tuple[str, Any], ...] = ()
    """The newest value of each declared column."""

    @property
    def by_strategy(self) -> tuple[DerivedStep, ...]:
        """The step as decided by each of several strategies, or the step itself.

        Their combined target depends on what they hold, so it is no strategy's signal.
        """
        decisions = self.step.strategies
        if not decisions:
            return (self,)
        return tuple(
            DerivedStep(
                structs.replace(self.step, decision=_decision_of(decision, self.step), shadows=()),
                signal,
            )
            for decision, signal in zip(decisions, self.parts, strict=True)
        )


def _decision_of(decision: StrategyDecision, step: Step) -> Decision:
    """Return a strategy's decision, with the measures that it shares with the account."""
    account_decision, gates = step.decision, decision.outcome.gate_set.gates
    assert account_decision is not None
    measures = dict(
        zip(account_decision.gate_set.gates, account_decision.measures, strict=True)
    ) | dict(decision.measures)
    return Decision(
        decision.outcome, decision.target_quantity, tuple(map(measures.get, gates)), decision.note
    )


def of_each_strategy(
    same: Callable[[DerivedStep, DerivedStep], bool],
) -> Callable[[DerivedStep, DerivedStep], bool]:
    """Return *same* applied to each strategy where both steps have several."""

    @wraps(same)
    def every(base: DerivedStep, other: DerivedStep) -> bool:
        if not base.step.strategies or not other.step.strategies:
            return same(base, other)
        pairs = zip(base.by_strategy, other.by_strategy, strict=True)
        return all(a.signal is None or b.signal is None or same(a, b) for a, b in pairs)

    return every


@of_each_strategy
def same_judgement(base: DerivedStep, other: DerivedStep) -> bool:
    """Return whether two steps forecast, measure and signal the same, whatever was held before.

    Positions, refusals by account limits and closes at a horizon belong to the account; the signal
    before them is the strategy's alone, and HOLD is a signal like the others.
    """
    a, b = base.step.decision, other.step.decision
    if a is None or b is None:
        return a is b
    if not same_signal(base, other) or not _notes_agree(base, other):
        return False
    gates = a.gate_set.gates
    kept = [place for place, gate in enumerate(gates) if gate not in _RISK]
    # The measures of account limits depend on what was held before.
    if gates != b.gate_set.gates or not all(
        near_measure(a.measures[at], b.measures[at]) for at in kept
    ):
        return False
    judged = a.refused_by not in _RISK and b.refused_by not in _RISK
    same = (a.refused_by, a.regime) == (b.refused_by, b.regime)
    return same or not judged or _at_threshold(a, b)


@of_each_strategy
def same_signal(base: DerivedStep, other: DerivedStep) -> bool:
    """Return whether forecasts agree and the strategy's signals are the same."""
    a, b = base.signal, other.signal
    if a is None or b is None:
        return a is b
    if isinstance(a, Orders) or isinstance(b, Orders):
        return a == b and predictions_agree(base.step.prediction, other.step.prediction)
    same = a.action is b.action and abs(a.strength - b.strength) <= SHARES
    return same and predictions_agree(base.step.prediction, other.step.prediction)


def _notes_agree(base: DerivedStep, other: DerivedStep) -> bool:
    """Return whether the notes are equal, or with a forecast equal within 1e-4."""
    a, b = base.step.decision, other.step.decision
    assert a is not None
    assert b is not None
    if a.note == b.note or a.note is None or b.note is None or base.step.prediction is None:
        return a.note == b.note
    return list(a.note) == list(b.note) and all(
        near_measure(first, second)
        if not isinstance(first, str) and not isinstance(second, str)
        else first == second
        for first, second in zip(a.note.values(), b.note.values(), strict=True)
    )


def _at_threshold(a: Decision, b: Decision) -> bool:
    """Return whether each gate that only one decision passes is within 1e-4 of its threshold."""
    for place, threshold in enumerate(a.gate_set.thresholds):
        bit = 1 << place
        if (a.passed ^ b.passed) & bit:
            first, second = a.measures[place], b.measures[place]
            if first is None or second is None or not near_measure(first, threshold):
                return False
    return True


def _signal_text(signal: Signal | Orders) -> str:
    if isinstance(signal, Signal):
        return signal.action.value
    return f"{len(signal.requests)} requests, {short_text(signal.requests)}"


def difference_of(base: DerivedStep, other: DerivedStep) -> Difference:
    """Return the first field in which two steps differ: columns, then the signal, then others."""
    for (name, first), (_, second) in zip(base.columns, other.columns, strict=False):
        if repr(first) != repr(second):
            return Difference.of(base.step, f"column {name!r}", str(first), str(second))
    every = zip(base.by_strategy, other.by_strategy, strict=True)
    base, other = next((pair for pair in every if not same_judgement(*pair)), (base, other))
    step, a, b = base.step, base.signal, other.signal
    if a is not None and b is not None:
        if isinstance(a, Orders) or isinstance(b, Orders):
            return Difference.of(step, "signal", _signal_text(a), _signal_text(b))
        if a.action is not b.action:
            return Difference.of(step, "signal", a.action, b.action)
        if a.strength != b.strength:
            return Difference.of(step, "strength", str(a.strength), str(b.strength))
        if step.decision is not None and other.step.decision is not None:
            for name, first, second in decision_differences(step.decision, other.step.decision):
                return Difference.of(step, name, first, second)
    fields = next(differences_of(step, other.step), ("step", "", ""))
    return Difference.of(step, *fields)
