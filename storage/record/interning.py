"""Rows that steps share and that are stored once: gate sets, outcomes, holdings."""

from __future__ import annotations

from math import isfinite
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from tracepaper.storage.record.columns import (
    ANSWER_GATES,
    STEP_GATES,
    TABLES,
    Row,
    Value,
    measure_name,
    stored_columns,
)
from tracepaper.storage.record.digest import all_finite, gates_digest
from tracepaper.storage.record.rows import (
    RowLayout,
    layout,
    layouts_sha256,
    sequence_of,
)
from tracepaper.strategies.errors import InvariantBroken

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracepaper.storage.record.columns import Column
    from tracepaper.storage.record.rows import SparseRow
    from tracepaper.strategies.types.decisions import (
        Account,
        Decision,
        DecisionOutcome,
        GateSet,
        Position,
    )

_CORE: Final = stored_columns("steps")[:-1]  # all but the digest
_MEASURES: Final = frozenset(measure_name(gate) for gate in STEP_GATES)


def _read_columns(table: str) -> tuple[Column, ...]:
    columns = [column for column in TABLES[table] if column.name != "digest"]
    made = [column for column in columns if column.is_made]
    # Rows are made by place: what is read stands behind what is made.
    assert columns[: len(made)] == made, f"a new column of {table} does not stand last"
    return tuple(columns[len(made) :])


READ_COLUMNS: Final = {
    table: _read_columns(table)
    for table in ("steps", "answers", "outcomes", "holdings", "states", "ledger", "twin_steps")
}
"""The columns that a row takes from the value stored as they are defined; the others are made."""


def read_values(table: str, stored: object) -> Sequence[Value]:
    """Return the values of ``READ_COLUMNS`` of *table*."""
    columns = READ_COLUMNS[table]
    return [column.value(stored) for column in columns] if columns else ()


OUTCOMES_KEPT: Final = 4096
"""Outcomes remembered at a time; reasons without end must not fill the memory."""

NO_MEASURES: Final[Row] = (None,) * len(STEP_GATES)
NO_ANSWER_MEASURES: Final[Row] = (None,) * len(ANSWER_GATES)
NO_ANSWER: Final[Row] = (None,) * (
    len(TABLES["answers"]) - len(READ_COLUMNS["answers"]) - 1  # all but the key
)
_NO_POSITION: Final[Row] = (None,) * 5
_OF_POSITION: Final = attrgetter(
    "quantity", "entry_notional", "realized_pnl", "fees_paid", "funding_paid"
)
_OF_ACCOUNT: Final = attrgetter("cash", "realized_pnl", "fees_paid", "funding_paid")


HAS_PROFIT: Final = 2
"""The bit of a plain bar's twin whose account's profit is stored; 1 is that of what was decided."""
_Present = tuple[tuple[str, ...], tuple[bool, ...], tuple[int, ...]]
"""What the rows of a plain bar lack in ``steps``, and have in ``answers`` and ``twin_steps``."""


class GateSetPlan:
    """Where the measures of one gate set are stored."""

    def __init__(self, gate_set: GateSet, run_key: int, key: int) -> None:
        gates = gate_set.gates
        if len(set(gates)) != len(gates) or len(gates) != len(gate_set.thresholds):
            raise InvariantBroken("A gate set needs one threshold a gate, and no gate twice.")
        if strange := set(gates) - {*STEP_GATES, *ANSWER_GATES}:
            raise InvariantBroken(
                f"Gate {min(strange)} has no column: declare it before storage is imported."
            )
        self.key = key
        self.rows: tuple[Row, ...] = tuple(
            (run_key, key, place, gate, threshold + 0.0)
            for place, (gate, threshold) in enumerate(zip(gates, gate_set.thresholds, strict=True))
        )
        if not all(isfinite(threshold) for threshold in gate_set.thresholds):
            raise InvariantBroken("A gate's threshold must be a finite number.")
        self.sha256 = gates_digest(self.rows)
        self.length = len(gates)
        places = {gate: place for place, gate in enumerate(gates)}
        # The last place is a null that stands behind the measures, for gates not declared.
        self.pick_step = itemgetter(*(places.get(gate, -1) for gate in STEP_GATES))
        self.pick_answer = itemgetter(*(places.get(gate, -1) for gate in ANSWER_GATES))
        self.judges_answer = any(gate in places for gate in ANSWER_GATES)
        stored = tuple(places[gate] for gate in STEP_GATES if gate in places)
        self.is_dense = stored == tuple(range(self.length))
        self._declared = frozenset(measure_name(gate) for gate in gates)
        self._plain: dict[_Present, tuple[RowLayout, bytes]] = {}

    def plain(
        self, absent: tuple[str, ...], noted: tuple[bool, ...], twins: tuple[int, ...] = ()
    ) -> tuple[RowLayout, bytes]:
        """Return layout and prefix of a plain bar's row, whose columns *absent* are null.

        One that is *noted* also has a row in ``answers``, which fills those of ``READ_COLUMNS``
        alone that *noted* says. Each of its *twins* has its account's profit, and what its strategy
        decided, where that says so.
        """
        plain = self._plain.get((absent, noted, twins))
        if plain is None:
            row_layout = layout(
                "steps",
                tuple(
                    name not in absent and (name in self._declared or name not in _MEASURES)
                    for name in _CORE
                ),
            )
            layouts = [row_layout]
            if noted:
                layouts.append(layout("answers", (True, *(False,) * len(NO_ANSWER), *noted)))
            layouts += [
                layout("twin_steps", (True, True, True, True, bits > 1, False, True, bits % 2 > 0))
                for bits in twins
            ]
            sha256 = layouts_sha256(tuple(layouts)) + self.sha256
            plain = self._plain[absent, noted, twins] = row_layout, sha256
        return plain


class Judged(Struct, frozen=True, gc=False):
    """The part of a step's rows that a decision fills."""

    plan: GateSetPlan
    outcome: int  # sequence of its row
    measures: Row  # of the gates of the set, in their order
    gate_set: tuple[Row, ...]  # rows of a gate set met for the first time

    @property
    def step_measures(self) -> Row:
        """The measures of ``STEP_GATES``."""
        row: Row = self.plan.pick_step((*self.measures, None))
        return row

    @property
    def answer_measures(self) -> Row | None:
        """The measures of ``ANSWER_GATES``; None where all are null."""
        if not self.plan.judges_answer:
            return None
        picked = self.plan.pick_answer((*self.measures, None))
        return None if picked.count(None) == len(ANSWER_GATES) else picked


StoredOutcome = tuple["DecisionOutcome", GateSetPlan, int]
"""An outcome, the plan of its gate set, and the sequence of its row."""


class Outcomes:
    """Interns gate sets and outcomes of one run."""

    def __init__(self, run_key: int, gate_sets: Sequence[GateSet]) -> None:
        self._run_key = run_key
        self._plans: dict[GateSet, GateSetPlan] = {}
        self._sequences: dict[Row, int] = {}  # by the outcome's row
        self._stored: dict[int, StoredOutcome] = {}  # by the outcome's id
        self._last: StoredOutcome | None = None  # of the outcome that was asked for last
        for gate_set in gate_sets:
            self._plans[gate_set] = GateSetPlan(gate_set, run_key, len(self._plans))

    def gate_set_rows(self) -> tuple[Row, ...]:
        """Return the rows of every gate set known, in the order of their keys."""
        return tuple(row for plan in self._plans.values() for row in plan.rows)

    def judge(self, decision: Decision, key: int, born: list[SparseRow]) -> Judged:
        """Return the part of the rows that *decision* fills; append a new outcome to *born*."""
        new_set: tuple[Row, ...] = ()
        outcome = decision.outcome
        stored = self._stored.get(id(outcome))
        if stored is None:
            gate_set = outcome.gate_set
            known_plan = self._plans.get(gate_set)
            if known_plan is None:
                known_plan = GateSetPlan(gate_set, self._run_key, len(self._plans))
                self._plans[gate_set], new_set = known_plan, known_plan.rows
            stored = self._store(outcome, known_plan, key, born)
        _, plan, sequence = stored
        if len(decision.measures) != plan.length:
            raise InvariantBroken("A decision needs one measure for each of its gates.")
        return Judged(plan, sequence, all_finite(decision.measures), new_set)

    def judged_before(self, decision: Decision) -> tuple[GateSetPlan, int, Row] | None:
        """Return plan, outcome and measures of *decision* where its outcome is known."""
        stored = self._last
        if stored is None or stored[0] is not decision.outcome:
            # Every call of ``id`` is an audit event, which a hook in Python hears.
            stored = self._last = self._stored.get(id(decision.outcome))
        if stored is None or len(decision.measures) != stored[1].length:
            return None
        return stored[1], stored[2], all_finite(decision.measures)

    def _store(
        self, outcome: DecisionOutcome, plan: GateSetPlan, key: int, born: list[SparseRow]
    ) -> StoredOutcome:
        """Find the row of *outcome*, or append a new one to *born*."""
        if outcome.passed >> plan.length:
            raise InvariantBroken("A decision needs one bit for each of its gates.")
        row: Row = (
            outcome.action.value,
            outcome.reason,
            int(outcome.allowed),
            outcome.refused_by,
            plan.key,
            plan.sha256,
            outcome.passed,
            outcome.regime.value,
            outcome.unfilled_reason,
            *read_values("outcomes", outcome),
        )
        sequence = self._sequences.get(row)
        if sequence is None:
            if len(self._sequences) >= OUTCOMES_KEPT:
                self._sequences.clear()
            sequence = self._sequences[row] = sequence_of(key)
            born.append(("outcomes", (key, *row)))
        if len(self._stored) >= OUTCOMES_KEPT:
            self._stored.clear()
            self._last = None
        # The entry holds the outcome: while it exists, no other object can get its id.
        stored = self._stored[id(outcome)] = (outcome, plan, sequence)
        return stored

    def forget(self) -> None:
        """Forget every outcome; gate sets keep their keys."""
        self._sequences.clear()
        self._stored.clear()
        self._last = None


Held = tuple[int, tuple[int, int | None], str | None]
"""Whose holding it is: the step's key, (book, place of the instrument), the twin's name."""


class Marked(Struct, frozen=True, gc=False):
    """The row of a holding, and its marks as ``steps`` stores them (see ``columns``)."""

    holding: int  # sequence of its row
    unrealized: int | None
    account_unrealized: int | None
    equity: int | None
    held: tuple[Row, Row]  # of position and account, what the row holds
    position: Position | None
    account: Account

    def is_still(self, position: Position, account: Account) -> bool:
        """Return whether a later *position* and *account* are stored by the same row."""
        if self.position is position and self.account is account:  # as while nothing is held
            return True
        held = self.held
        return held[0] == _OF_POSITION(position) and held[1] == _OF_ACCOUNT(account)


class HeldRows:
    """Interns the holdings of a book between two fills: position and cash, but not their marks."""

    def __init__(self) -> None:
        self._stored: dict[tuple[int, int | None], tuple[Row, int]] = {}  # row and sequence
        self.last: dict[tuple[int, int | None], Marked] = {}  # of each book and instrument

    def forget(self) -> None:
        """Forget what every book holds."""
        self._stored.clear()
        self.last.clear()

    def hold(
        self, held: Held, position: Position | None, account: Account, born: list[SparseRow]
    ) -> Marked:
        """Return where *position* and *account* are stored; a new row is appended to *born*."""
        key, place, twin = held
        parts = (_NO_POSITION if position is None else _OF_POSITION(position), _OF_ACCOUNT(account))
        margin = None if position is None else position.margin or None
        row = (twin, place[1], *parts[0], *parts[1], margin, *read_values("holdings", account))
        stored = self._stored.get(place)
        if stored is None or stored[0] != row:
            stored = self._stored[place] = (row, sequence_of(key))
            born.append(("holdings", (key, place[0], *row)))
        marked = self.last[place] = _marked(stored[1], position, account, parts)
        return marked

    def unchanged(
        self, place: tuple[int, int | None], position: Position, account: Account
    ) -> Marked | None:
        """Return the result of ``hold`` where no new row is needed; None where one may be."""
        last = self.last.get(place)
        if last is None or READ_COLUMNS["holdings"]:
            return None
        if last.position is position and last.account is account:  # as while nothing is held
            return last
        if last.held[0] != _OF_POSITION(position) or last.held[1] != _OF_ACCOUNT(account):
            return None
        marked = self.last[place] = _marked(last.holding, position, account, last.held)
        return marked


def _marked(
    sequence: int, position: Position | None, account: Account, held: tuple[Row, Row]
) -> Marked:
    unrealized = None if position is None else position.unrealized_pnl
    of_account, equity = account.unrealized_pnl, account.equity
    return Marked(
        sequence,
        unrealized,
        None if of_account == unrealized else of_account,
        None if equity == account.cash + of_account else equity,
        held,
        position,
        account,
    )
