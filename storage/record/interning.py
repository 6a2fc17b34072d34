"""Rows that steps share and that are stored once: gate sets, outcomes, holdings."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Final

import msgspec

from tracepaper.storage.record.columns import (
    ANSWER_GATES,
    PLAUSIBLE,
    STEADY_GATES,
    STEP_GATES,
    Row,
    usual_measure,
)
from tracepaper.strategies.errors import InvariantBroken

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracepaper.strategies.types.decisions import Account, DecisionOutcome, GateSet, Position

Rows = dict[str, list[Row]]
"""The rows of an unfinished commit, by table."""

OUTCOMES_KEPT: Final = 4096
"""Most outcomes kept in memory; a strategy may give a new reason with every decision."""

_NO_POSITION: Final[Row] = (None,) * 7
_OF_POSITION: Final = attrgetter(
    "quantity", "entry_notional", "realized_pnl", "fees_paid", "funding_paid"
)
_OF_ACCOUNT: Final = attrgetter("cash", "realized_pnl", "fees_paid", "funding_paid")


class GateSetPlan:
    """Where the measures of one gate set are stored."""

    def __init__(self, gate_set: GateSet, key: int) -> None:
        gates = gate_set.gates
        if len(set(gates)) != len(gates) or len(gates) != len(gate_set.thresholds):
            raise InvariantBroken("A gate set needs one threshold per gate, and no gate twice.")
        if unknown := set(gates) - {PLAUSIBLE, *STEP_GATES, *ANSWER_GATES}:
            raise InvariantBroken(
                f"Gate {min(unknown)} has no column: declare it before storage is imported."
            )
        if not all(isfinite(threshold) for threshold in gate_set.thresholds):
            raise InvariantBroken("A gate's threshold must be a finite number.")
        self.gate_set = gate_set
        self.key = key
        self.length = len(gates)
        places = {gate: place for place, gate in enumerate(gates)}
        # Index -1 is a null that ``StepEncoder`` puts after the measures: for gates not in the set.
        self.plausible_at = places.get(PLAUSIBLE, -1)
        self.pick_step = itemgetter(*(places.get(gate, -1) for gate in STEP_GATES))
        thresholds = dict(zip(gates, gate_set.thresholds, strict=True))
        self.usual = tuple(
            usual_measure(gate, thresholds[gate])
            if gate in places and gate in STEADY_GATES
            else None
            for gate in STEP_GATES
        )
        width = max((at for at, gate in enumerate(ANSWER_GATES, 1) if gate in places), default=0)
        self.judges_answer = width > 0
        # Ends with the last gate of the set. At least two: ``itemgetter`` of one returns no tuple.
        self.pick_answer = itemgetter(
            *(places.get(gate, -1) for gate in ANSWER_GATES[: max(width, 2)])
        )

    def measures(self, picked: tuple[float | None, ...]) -> str | None:
        """Return the column ``steps.measures`` for measures *picked* by ``pick_step``."""
        if picked == self.usual:
            return None
        compared = zip(STEP_GATES, picked, self.usual, strict=True)
        return json_text({gate: number for gate, number, usual in compared if number != usual})

    def rows(self, run_key: int, sequence: int | None) -> list[Row]:
        """Return the rows of the set, first used by step *sequence*; None: by the opening."""
        pairs = zip(self.gate_set.gates, self.gate_set.thresholds, strict=True)
        return [
            (run_key, self.key, place, gate, threshold + 0.0, sequence)
            for place, (gate, threshold) in enumerate(pairs)
        ]


def json_text(values: Mapping[str, float | str | None] | None) -> str | None:
    """Return *values* as JSON; None for None."""
    return None if values is None else msgspec.json.encode(values).decode()


def buckets_text(buckets: bytes) -> str | None:
    """Return ``Explanation.buckets`` as JSON; None where there are none."""
    return msgspec.json.encode(memoryview(buckets).cast("i").tolist()).decode() if buckets else None


def buckets_texts(each: Sequence[bytes]) -> list[str]:
    """Return :func:`buckets_text` of *each*, which have one length above 0."""
    shape = len(each), len(each[0]) // 4
    weights = memoryview(b"".join(each)).cast("B").cast("i", shape).tolist()
    every = msgspec.json.encode(weights).decode()
    return [f"[{text}]" for text in every[2:-2].split("],[")]


StoredOutcome = tuple["DecisionOutcome", GateSetPlan, int]
"""An outcome, the plan of its gate set, and the sequence of its row."""


class Outcomes:
    """Interns gate sets and outcomes of one run."""

    def __init__(self, run_key: int, gate_sets: Sequence[GateSet]) -> None:
        self._run_key = run_key
        self._plans: dict[GateSet, GateSetPlan] = {}
        self._sequences: dict[Row, int] = {}  # by the outcome's row
        self._stored: dict[int, StoredOutcome] = {}  # by the outcome's id
        for gate_set in gate_sets:
            self._plans[gate_set] = GateSetPlan(gate_set, len(self._plans))

    def opening_rows(self) -> list[Row]:
        """Return the rows of the gate sets with which the run is opened, in the order of keys."""
        return [row for plan in self._plans.values() for row in plan.rows(self._run_key, None)]

    def store(self, outcome: DecisionOutcome, sequence: int, rows: Rows) -> tuple[GateSetPlan, int]:
        """Return the plan of the gate set of *outcome*, and the sequence of its row.

        New rows of either are appended to *rows*, with the *sequence* of the present step.
        """
        stored = self._stored.get(id(outcome))
        if stored is not None:
            return stored[1], stored[2]
        plan = self._plans.get(outcome.gate_set)
        if plan is None:
            plan = self._plans[outcome.gate_set] = GateSetPlan(outcome.gate_set, len(self._plans))
            rows["gate_sets"] += plan.rows(self._run_key, sequence)
        if outcome.passed >> plan.length:
            raise InvariantBroken("A decision needs one bit for each of its gates.")
        row: Row = (
            outcome.action.value,
            outcome.reason,
            int(outcome.allowed),
            outcome.refused_by,
            plan.key,
            outcome.passed,
            outcome.regime.value,
            outcome.unfilled_reason,
            outcome.regime_cell,
            outcome.size_factor,
        )
        row_sequence = self._sequences.get(row)
        if row_sequence is None:
            if len(self._sequences) >= OUTCOMES_KEPT:
                self._sequences.clear()
            row_sequence = self._sequences[row] = sequence
            rows["outcomes"].append((self._run_key, sequence, *row))
        if len(self._stored) >= OUTCOMES_KEPT:
            self._stored.clear()
        # The entry keeps the outcome alive, so that no other object can get its id.
        self._stored[id(outcome)] = (outcome, plan, row_sequence)
        return plan, row_sequence

    def forget(self) -> None:
        """Forget every outcome; gate sets keep their keys."""
        self._sequences.clear()
        self._stored.clear()


class HeldRows:
    """Interns the holdings of an account between two fills: position and cash, without marks."""

    def __init__(self) -> None:
        # By account and instrument: position, account, the columns of both, the row's sequence.
        self._last: dict[
            tuple[int, int | None], tuple[Position | None, Account, tuple[Row, Row], int]
        ] = {}

    def forget(self) -> None:
        """Forget what every account holds."""
        self._last.clear()

    def hold(
        self,
        key: tuple[int, int],
        place: tuple[int, int | None],
        shadow: str | None,
        position: Position | None,
        account: Account,
        rows: Rows,
    ) -> int:
        """Return the sequence of the row with *position* and *account*; append it if it is new.

        *key* is run and sequence of the present step, *place* the account and the instrument.
        """
        last = self._last.get(place)
        if last is not None and last[0] is position and last[1] is account:
            return last[3]
        parts = (
            _NO_POSITION
            if position is None
            else (*_OF_POSITION(position), position.margin or None),
            _OF_ACCOUNT(account),
        )
        if last is not None and last[2] == parts:
            sequence = last[3]
        else:
            sequence = key[1]
            rows["holdings"].append(
                (*key, place[0], shadow, place[1], *parts[0][:5], *parts[1], *parts[0][5:])
            )
        self._last[place] = position, account, parts, sequence
        return sequence
