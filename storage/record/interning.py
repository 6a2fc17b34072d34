"""What repeats between steps and is stored once: gate sets, outcomes, holdings."""

from __future__ import annotations

from math import isfinite
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from tracepaper.storage.record.columns import (
    ANSWER_GATES,
    BAR_COLUMNS,
    EXPLANATION_COLUMNS,
    FORECAST_COLUMNS,
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
_MADE: Final = {
    "steps": (
        "step", "shape", "window_sha256", "decision_sha256", "outcome", "target_quantity",
        *(measure_name(gate) for gate in STEP_GATES),
        *BAR_COLUMNS,
        "holding", "unrealized_pnl", "account_unrealized_pnl", "digest",
    ),
    "answers": (
        "step", "late_deadline_ms", "model_id", "horizon", *FORECAST_COLUMNS, "horizons", "halves",
        *EXPLANATION_COLUMNS,
        *(measure_name(gate) for gate in ANSWER_GATES),
    ),
    "outcomes": (
        "step", "action", "reason", "allowed", "refused_by", "gate_set", "gate_set_sha256",
        "passed", "regime", "unfilled_reason",
    ),
    "holdings": (
        "step", "book", "twin", "instrument", "quantity", "entry_notional", "realized_pnl",
        "fees_paid", "funding_paid", "cash", "account_realized_pnl", "account_fees_paid",
        "account_funding_paid", "margin",
    ),
    "states": ("step", "equity", "state", "kept_sha256"),
    "ledger": (
        "step", "ordinal", "kind", "instrument", "amount", "balance", "order_id", "market_ms",
    ),
    "twin_steps": (
        "step", "book", "holding", "unrealized_pnl", "account_unrealized_pnl", "equity",
        "confirmed",
    ),
}  # fmt: skip
"""The columns that are made below, in this order; any other column is read as it is defined."""


def _others(table: str) -> tuple[Column, ...]:
    """Return the columns of *table* that are not made here; they follow the others."""
    columns = tuple(column for column in TABLES[table] if column.name not in _MADE[table])
    rest = [column.name for column in TABLES[table] if column not in columns]
    assert rest == list(_MADE[table]), f"{table} has {rest}"
    return columns


_EXTRA: Final = {table: _others(table) for table in _MADE}


def _extra(table: str, stored: object) -> Sequence[Value]:
    """Return the values of the columns of *table* that are read as they are defined."""
    columns = _EXTRA[table]
    return [column.value(stored) for column in columns] if columns else ()


# ---------------------------------------------------------------- rows that are stored once

OUTCOMES_KEPT: Final = 4096
"""Outcomes remembered at a time; reasons without end must not fill the memory."""

NO_MEASURES: Final[Row] = (None,) * len(STEP_GATES)


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
        self._plain: dict[tuple[tuple[str, ...], bool], tuple[RowLayout, bytes]] = {}

    def plain(self, absent: tuple[str, ...], *, noted: bool) -> tuple[RowLayout, bytes]:
        """Return layout and prefix of a plain bar's row, whose columns *absent* are null.

        One that is *noted* has a row in ``answers``, which fills all of ``_EXTRA`` and no more.
        """
        found = self._plain.get((absent, noted))
        if found is None:
            of_row = layout(
                "steps",
                tuple(
                    name not in absent and (name in self._declared or name not in _MEASURES)
                    for name in _CORE
                ),
            )
            layouts = (of_row, _OF_NOTE) if noted else (of_row,)
            found = self._plain[absent, noted] = of_row, layouts_sha256(layouts) + self.sha256
        return found


class Judged(Struct, frozen=True, gc=False):
    """What a decision adds to a step's rows."""

    plan: GateSetPlan
    outcome: int  # sequence of its row
    measures: Row  # of the gates of the set, in their order
    gate_set: tuple[Row, ...]  # rows of a gate set met for the first time

    @property
    def step_measures(self) -> Row:
        """The measures of ``STEP_GATES``."""
        picked: Row = self.plan.pick_step((*self.measures, None))
        return picked

    @property
    def answer_measures(self) -> Row | None:
        """The measures of ``ANSWER_GATES``; None where all are null."""
        if not self.plan.judges_answer:
            return None
        picked = self.plan.pick_answer((*self.measures, None))
        return None if picked.count(None) == len(ANSWER_GATES) else picked


Seen = tuple["DecisionOutcome", GateSetPlan, int]
"""An outcome, the plan of its gate set, and the sequence of its row."""


class Outcomes:
    """Interns gate sets and outcomes of one run."""

    def __init__(self, run_key: int, gate_sets: Sequence[GateSet]) -> None:
        self._run_key = run_key
        self._plans: dict[GateSet, GateSetPlan] = {}
        self._known: dict[Row, int] = {}
        self._seen: dict[int, Seen] = {}  # by the outcome's id
        self._last: Seen | None = None  # of the outcome that was asked for last
        for gate_set in gate_sets:
            self._plans[gate_set] = GateSetPlan(gate_set, run_key, len(self._plans))

    def gate_set_rows(self) -> tuple[Row, ...]:
        """Return the rows of every gate set known, in the order of their keys."""
        return tuple(row for plan in self._plans.values() for row in plan.rows)

    def judge(self, decision: Decision, key: int, born: list[SparseRow]) -> Judged:
        """Return what *decision* stores; a new outcome is appended to *born*."""
        new_set: tuple[Row, ...] = ()
        outcome = decision.outcome
        seen = self._seen.get(id(outcome))
        if seen is None:
            plan, new_set = self._plan(outcome.gate_set)
            seen = self._look_up(outcome, plan, key, born)
        _, plan, known = seen
        if len(decision.measures) != plan.length:
            raise InvariantBroken("A decision needs one measure for each of its gates.")
        return Judged(plan, known, all_finite(decision.measures), new_set)

    def judged_before(self, decision: Decision) -> tuple[GateSetPlan, int, Row] | None:
        """Return plan, outcome and measures of *decision* where its outcome is known."""
        seen = self._last
        if seen is None or seen[0] is not decision.outcome:
            # Every call of ``id`` is an audit event, which a hook in Python hears.
            seen = self._last = self._seen.get(id(decision.outcome))
        if seen is None or len(decision.measures) != seen[1].length:
            return None
        return seen[1], seen[2], all_finite(decision.measures)

    def _plan(self, gate_set: GateSet) -> tuple[GateSetPlan, tuple[Row, ...]]:
        """Return the plan of *gate_set* and, where it is met for the first time, its rows."""
        plan = self._plans.get(gate_set)
        if plan is not None:
            return plan, ()
        plan = self._plans[gate_set] = GateSetPlan(gate_set, self._run_key, len(self._plans))
        return plan, plan.rows

    def _look_up(
        self, outcome: DecisionOutcome, plan: GateSetPlan, key: int, born: list[SparseRow]
    ) -> Seen:
        """Return what is known of *outcome*; a new one is appended to *born*."""
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
            *_extra("outcomes", outcome),
        )
        known = self._known.get(row)
        if known is None:
            if len(self._known) >= OUTCOMES_KEPT:
                self._known.clear()
            known = self._known[row] = sequence_of(key)
            born.append(("outcomes", (key, *row)))
        if len(self._seen) >= OUTCOMES_KEPT:
            self._seen.clear()
            self._last = None
        # The outcome is kept with its entry: its id is its own for as long as it exists.
        seen = self._seen[id(outcome)] = (outcome, plan, known)
        return seen

    def forget(self) -> None:
        """Forget every outcome; gate sets keep their keys."""
        self._known.clear()
        self._seen.clear()
        self._last = None


Held = tuple[int, tuple[int, int | None], str | None]
"""Whose holding it is: the step's key, (book, place of the instrument), the twin's name."""


class Marked(Struct, frozen=True, gc=False):
    """The row of a holding, and what is stored of its marks (see ``columns``)."""

    holding: int  # sequence of its row
    unrealized: int | None
    account_unrealized: int | None
    equity: int | None
    held: tuple[Row, Row]  # of position and account, what the row holds
    position: Position | None
    account: Account


class Holdings:
    """Interns what a book holds between two fills: position and cash, but not their marks."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int | None], tuple[Row, int]] = {}
        self._last: dict[tuple[int, int | None], Marked] = {}

    def forget(self) -> None:
        """Forget what every book holds."""
        self._known.clear()
        self._last.clear()

    def hold(
        self, held: Held, position: Position | None, account: Account, born: list[SparseRow]
    ) -> Marked:
        """Return where *position* and *account* are stored; a new row is appended to *born*."""
        key, place, twin = held
        parts = (_NO_POSITION if position is None else _OF_POSITION(position), _OF_ACCOUNT(account))
        margin = None if position is None else position.margin or None
        row = (twin, place[1], *parts[0], *parts[1], margin, *_extra("holdings", account))
        marked = _marked(self._row(key, place, row, born), position, account, parts)
        self._last[place] = marked
        return marked

    def unchanged(
        self, place: tuple[int, int | None], position: Position, account: Account
    ) -> Marked | None:
        """Return what ``hold`` would where it needs no new row; None where it may."""
        last = self._last.get(place)
        if last is None or _EXTRA["holdings"]:
            return None
        if last.position is position and last.account is account:  # as while nothing is held
            return last
        if last.held[0] != _OF_POSITION(position) or last.held[1] != _OF_ACCOUNT(account):
            return None
        marked = self._last[place] = _marked(last.holding, position, account, last.held)
        return marked

    def _row(self, key: int, place: tuple[int, int | None], row: Row, born: list[SparseRow]) -> int:
        """Return the sequence under which *row* is stored; a new one is appended to *born*."""
        known = self._known.get(place)
        if known is not None and known[0] == row:
            return known[1]
        sequence = sequence_of(key)
        self._known[place] = (row, sequence)
        born.append(("holdings", (key, place[0], *row)))
        return sequence


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


_NO_POSITION: Final[Row] = (None,) * 5
_OF_POSITION: Final = attrgetter(
    "quantity", "entry_notional", "realized_pnl", "fees_paid", "funding_paid"
)
_OF_ACCOUNT: Final = attrgetter("cash", "realized_pnl", "fees_paid", "funding_paid")
_NO_ANSWER_MEASURES: Final[Row] = (None,) * len(ANSWER_GATES)
_NO_ANSWER: Final[Row] = (None,) * (len(_MADE["answers"]) - 1)  # all but the key
_OF_NOTE: Final = layout(
    "answers", (True, *(False,) * len(_NO_ANSWER), *(True,) * len(_EXTRA["answers"]))
)
