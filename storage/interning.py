"""Rows that are stored once and named by the step that first used them; pure."""

from __future__ import annotations

from math import isfinite
from operator import itemgetter
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from tracepaper.storage.digest import finite, rows_digest
from tracepaper.storage.rows import (
    ANSWER_GATES,
    MEASURE_COLUMNS,
    STEP_GATES,
    Row,
    sequence_of,
)
from tracepaper.strategies.errors import InvariantBroken

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracepaper.storage.rows import SparseRow
    from tracepaper.strategies.types import Account, Decision, GateSet, Position

OUTCOMES_KEPT: Final = 4096
"""Outcomes remembered at a time; reasons without end must not fill the memory."""

NO_MEASURES: Final[Row] = (None,) * len(STEP_GATES)
COMPACT_HEAD: Final = (
    "step",
    "shape",
    "window_sha256",
    "decision_sha256",
    "outcome",
    "target_quantity",
)
COMPACT_TAIL: Final = ("holding", "unrealized_pnl", "digest")


class GateSetPlan:
    """Where the measures of one gate set are stored."""

    def __init__(self, gate_set: GateSet, run_key: int, key: int) -> None:
        gates = gate_set.gates
        if len(set(gates)) != len(gates) or len(gates) != len(gate_set.thresholds):
            raise InvariantBroken("A gate set needs one threshold a gate, and no gate twice.")
        self.key = key
        self.rows: tuple[Row, ...] = tuple(
            (run_key, key, place, gate.value, threshold + 0.0)
            for place, (gate, threshold) in enumerate(zip(gates, gate_set.thresholds, strict=True))
        )
        if not all(isfinite(threshold) for threshold in gate_set.thresholds):
            raise InvariantBroken("A gate's threshold must be a finite number.")
        self.sha256 = rows_digest(self.rows)
        self.length = len(gates)
        places = {gate: place for place, gate in enumerate(gates)}
        # The last place is a null that stands behind the measures, for gates not declared.
        self.pick_step = itemgetter(*(places.get(gate, -1) for gate in STEP_GATES))
        self.pick_answer = itemgetter(*(places.get(gate, -1) for gate in ANSWER_GATES))
        self.judges_answer = any(gate in places for gate in ANSWER_GATES)
        stored = tuple(places[gate] for gate in STEP_GATES if gate in places)
        self.is_dense = stored == tuple(range(self.length))
        self.compact_columns = (
            *COMPACT_HEAD,
            *(
                column
                for column, gate in zip(MEASURE_COLUMNS, STEP_GATES, strict=True)
                if gate in places
            ),
            *COMPACT_TAIL,
        )


class Judged(Struct, frozen=True, gc=False):
    """What a decision adds to a step's rows."""

    plan: GateSetPlan | None
    outcome: int | None
    measures: Row  # of STEP_GATES
    answer_measures: Row | None  # of ANSWER_GATES; None where all are null
    dense: Row | None  # the declared measures as given, where no other column is needed
    gate_set: tuple[Row, ...]  # rows of a gate set met for the first time


NOT_JUDGED: Final = Judged(None, None, NO_MEASURES, None, None, ())


class Outcomes:
    """Interns gate sets and outcomes of one run."""

    def __init__(self, run_key: int, gate_sets: Sequence[GateSet]) -> None:
        self._run_key = run_key
        self._plans: dict[GateSet, GateSetPlan] = {}
        self._known: dict[tuple[object, ...], int] = {}
        for gate_set in gate_sets:
            self._plans[gate_set] = GateSetPlan(gate_set, run_key, len(self._plans))

    def gate_set_rows(self) -> tuple[Row, ...]:
        """Return the rows of every gate set known, in the order of their keys."""
        return tuple(row for plan in self._plans.values() for row in plan.rows)

    def judge(self, decision: Decision, key: int, sequence: int, born: list[SparseRow]) -> Judged:
        """Return what *decision* stores; a new outcome is appended to *born*."""
        new_set: tuple[Row, ...] = ()
        plan = self._plans.get(decision.gate_set)
        if plan is None:
            plan = GateSetPlan(decision.gate_set, self._run_key, len(self._plans))
            self._plans[decision.gate_set] = plan
            new_set = plan.rows
        measures, is_complete = _stored_measures(decision, plan)
        outcome = (
            decision.action,
            decision.reason,
            decision.allowed,
            decision.refused_by,
            plan.key,
            decision.passed,
            decision.regime,
            decision.unfilled_reason,
        )
        known = self._known.get(outcome)
        if known is None:
            known = sequence
            self._remember(outcome, sequence)
            refused_by = decision.refused_by
            row: Row = (
                key,
                decision.action.value,
                decision.reason,
                int(decision.allowed),
                None if refused_by is None else refused_by.value,
                plan.key,
                plan.sha256,
                decision.passed,
                decision.regime.value,
                decision.unfilled_reason,
            )
            born.append(("outcomes", row))
        padded = (*measures, None)
        answer_measures: Row | None = None
        if plan.judges_answer:
            answer_measures = plan.pick_answer(padded)
            if answer_measures.count(None) == len(ANSWER_GATES):
                answer_measures = None
        dense = measures if is_complete and plan.is_dense else None
        return Judged(plan, known, plan.pick_step(padded), answer_measures, dense, new_set)

    def forget(self) -> None:
        """Forget every outcome; gate sets keep their keys."""
        self._known.clear()

    def _remember(self, outcome: tuple[object, ...], sequence: int) -> None:
        if len(self._known) >= OUTCOMES_KEPT:
            self._known.clear()
        self._known[outcome] = sequence


def _stored_measures(decision: Decision, plan: GateSetPlan) -> tuple[Row, bool]:
    """Return the measures as stored, and whether none of them is null."""
    given = decision.measures
    if len(given) != plan.length or decision.passed >> plan.length:
        raise InvariantBroken("A decision needs one measure and one bit for each of its gates.")
    try:
        # The usual case, without a test a number: a sum is finite only if every term is.
        measures = tuple([number + 0.0 for number in given])  # type: ignore[operator]
        if isfinite(sum(measures)):
            return measures, True
    except TypeError:
        pass
    stored = tuple(finite(number) for number in given)
    return stored, None not in stored


Held = tuple[int, tuple[int, int | None], str | None]
"""Whose holding it is: the step's key, (book, place of the instrument), the twin's name."""


class Holdings:
    """Interns what a book holds between two fills: position and cash, but not their marks."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int | None], tuple[Row, int]] = {}

    def forget(self) -> None:
        """Forget what every book holds."""
        self._known.clear()

    def hold(
        self, held: Held, position: Position | None, account: Account, born: list[SparseRow]
    ) -> int:
        """Return the sequence of the row of *position* and *account*; a new one goes to *born*."""
        key, place, twin = held
        row: Row
        if position is None:
            row = (
                twin, place[1], None, None, None, None, None,
                account.cash, account.realized_pnl, account.fees_paid, account.funding_paid,
            )  # fmt: skip
        else:
            row = (
                twin, place[1], position.quantity, position.entry_notional,
                position.realized_pnl, position.fees_paid, position.funding_paid,
                account.cash, account.realized_pnl, account.fees_paid, account.funding_paid,
            )  # fmt: skip
        known = self._known.get(place)
        if known is not None and known[0] == row:
            return known[1]
        sequence = sequence_of(key)
        self._known[place] = (row, sequence)
        born.append(("holdings", (key, place[0], *row)))
        return sequence


def marks(position: Position | None, account: Account) -> tuple[int | None, int | None, int | None]:
    """Return unrealized_pnl, account_unrealized_pnl and equity as stored (see ``schema.py``)."""
    unrealized = None if position is None else position.unrealized_pnl
    of_account: int | None = account.unrealized_pnl
    equity = None if account.equity == account.cash + account.unrealized_pnl else account.equity
    return unrealized, None if of_account == unrealized else of_account, equity
