"""Whether two derived steps judge the same, and the first field in which they do not."""

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
"""What the strategy signalled; of several on one account each, None without equity."""


@dataclass(frozen=True)
class DerivedStep:
    """A step, and what the strategy signalled at it."""

    step: Step
    signal: Signal | Orders | None
    parts: tuple[Signal | Orders | None, ...] = ()
    """What each of several strategies on one account signalled; None without equity."""
    columns: tuple[tuple[str, Any], ...] = ()
    """The newest value of each declared column."""

    @property
    def by_strategy(self) -> tuple[DerivedStep, ...]:
        """The step as each of several strategies that are asked decided it, or itself.

        What they want together changes with what they hold, and is no strategy's signal.
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
    """Return the decision of a strategy, with the measures that it shares with the account's."""
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
    """Return *same* as it holds for each of several strategies that both steps asked."""

    @wraps(same)
    def every(mine: DerivedStep, theirs: DerivedStep) -> bool:
        if not mine.step.strategies or not theirs.step.strategies:
            return same(mine, theirs)
        pairs = zip(mine.by_strategy, theirs.by_strategy, strict=True)
        return all(a.signal is None or b.signal is None or same(a, b) for a, b in pairs)

    return every


@of_each_strategy
def same_judgement(mine: DerivedStep, other: DerivedStep) -> bool:
    """Return whether two steps forecast, measure and signal the same, whatever was held before.

    What stands, what a limit of the account refuses and what a horizon closes are the account's;
    the signal before all that is the strategy's alone, and HOLD is a signal like the others.
    """
    a, b = mine.step.decision, other.step.decision
    if a is None or b is None:
        return a is b
    if not same_signal(mine, other) or not _notes_agree(mine, other):
        return False
    gates = a.gate_set.gates
    kept = [place for place, gate in enumerate(gates) if gate not in _RISK]
    # The limits of the account measure what was held before.
    if gates != b.gate_set.gates or not all(
        near_measure(a.measures[at], b.measures[at]) for at in kept
    ):
        return False
    judged = a.refused_by not in _RISK and b.refused_by not in _RISK
    same = (a.refused_by, a.regime) == (b.refused_by, b.regime)
    return same or not judged or _at_threshold(a, b)


@of_each_strategy
def same_signal(mine: DerivedStep, other: DerivedStep) -> bool:
    """Return whether the strategy signalled the same of forecasts that agree."""
    a, b = mine.signal, other.signal
    if a is None or b is None:
        return a is b
    if isinstance(a, Orders) or isinstance(b, Orders):
        return a == b and predictions_agree(mine.step.prediction, other.step.prediction)
    same = a.action is b.action and abs(a.strength - b.strength) <= SHARES
    return same and predictions_agree(mine.step.prediction, other.step.prediction)


def _notes_agree(mine: DerivedStep, other: DerivedStep) -> bool:
    """Return whether the strategy noted the same: exactly, or of forecasts within 1e-4."""
    a, b = mine.step.decision, other.step.decision
    assert a is not None
    assert b is not None
    if a.note == b.note or a.note is None or b.note is None or mine.step.prediction is None:
        return a.note == b.note
    return list(a.note) == list(b.note) and all(
        near_measure(first, second)
        if not isinstance(first, str) and not isinstance(second, str)
        else first == second
        for first, second in zip(a.note.values(), b.note.values(), strict=True)
    )


def _at_threshold(a: Decision, b: Decision) -> bool:
    """Return whether a gate that only one of the two passes stands within 1e-4 of its threshold."""
    for place, threshold in enumerate(a.gate_set.thresholds):
        bit = 1 << place
        if (a.passed ^ b.passed) & bit:
            first, second = a.measures[place], b.measures[place]
            if first is None or second is None or not near_measure(first, threshold):
                return False
    return True


def _shown(signal: Signal | Orders) -> str:
    if isinstance(signal, Signal):
        return signal.action.value
    return f"{len(signal.requests)} requests, {short_text(signal.requests)}"


def difference_of(mine: DerivedStep, other: DerivedStep) -> Difference:
    """Return the first field in which two steps differ: columns, then the signal, then others."""
    for (name, first), (_, second) in zip(mine.columns, other.columns, strict=False):
        if repr(first) != repr(second):
            return Difference.of(mine.step, f"column {name!r}", str(first), str(second))
    every = zip(mine.by_strategy, other.by_strategy, strict=True)
    mine, other = next((pair for pair in every if not same_judgement(*pair)), (mine, other))
    step, a, b = mine.step, mine.signal, other.signal
    if a is not None and b is not None:
        if isinstance(a, Orders) or isinstance(b, Orders):
            return Difference.of(step, "signal", _shown(a), _shown(b))
        if a.action is not b.action:
            return Difference.of(step, "signal", a.action, b.action)
        if a.strength != b.strength:
            return Difference.of(step, "strength", str(a.strength), str(b.strength))
        if step.decision is not None and other.step.decision is not None:
            for name, first, second in decision_differences(step.decision, other.step.decision):
                return Difference.of(step, name, first, second)
    fields = next(differences_of(step, other.step), ("step", "", ""))
    return Difference.of(step, *fields)
