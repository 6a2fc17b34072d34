"""``Step`` to rows: interned, with normal numbers, and quickly for the plain bar; pure."""

from __future__ import annotations

from functools import lru_cache
from math import isfinite
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from tracepaper.storage.columns import (
    ANSWER_GATES,
    BAR_COLUMNS,
    BAR_COLUMNS_MADE,
    EXPLANATION_COLUMNS,
    FORECAST_COLUMNS,
    SEQUENCE_LIMIT,
    SOURCE_CODES,
    STEP_GATES,
    TABLES,
    Row,
    Value,
    measure_name,
    stored_columns,
)
from tracepaper.storage.digest import Covered, all_finite, finite, gates_digest
from tracepaper.storage.rows import (
    EVENT_KINDS,
    NO_GATES,
    SPARSE_TABLES,
    RowLayout,
    StepRows,
    StepShape,
    canonical,
    kept_rows,
    laid,
    layout,
    layout_of,
    layouts_sha256,
    sequence_of,
    step_key,
)
from tracepaper.strategies.errors import DataInvalid, InvariantBroken
from tracepaper.strategies.types import (
    Bar,
    Depths,
    Explanation,
    Fill,
    Forecast,
    Instrument,
    InstrumentChange,
    LedgerEntry,
    Order,
    PredictionTimeout,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracepaper.storage.columns import Column
    from tracepaper.storage.rows import SparseRow
    from tracepaper.strategies.types import (
        Account,
        Decision,
        DecisionOutcome,
        Event,
        GateSet,
        Position,
        Prediction,
        Run,
        Step,
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


# ---------------------------------------------------------------- steps

_TABLE_ORDER: Final = {table: place for place, table in enumerate(SPARSE_TABLES)}
_NO_BAR: Final[Row] = (None,) * len(BAR_COLUMNS)
_NO_FORECAST: Final[Row] = (None,) * (3 + len(FORECAST_COLUMNS))
_NO_EXPLANATION: Final[Row] = (None,) * len(EXPLANATION_COLUMNS)
_NO_ANSWER_MEASURES: Final[Row] = (None,) * len(ANSWER_GATES)
_NO_ANSWER: Final[Row] = (None,) * (len(_MADE["answers"]) - 1)  # all but the key
_OF_NOTE: Final = layout(
    "answers", (True, *(False,) * len(_NO_ANSWER), *(True,) * len(_EXTRA["answers"]))
)
_BAR_FIELDS: Final = tuple(name for name in BAR_COLUMNS if name not in BAR_COLUMNS_MADE)
_OF_BAR: Final = attrgetter(*_BAR_FIELDS)
_OF_BAR_WITHOUT_TURNOVER: Final = attrgetter(*(n for n in _BAR_FIELDS if n != "turnover"))
_OF_FORECAST: Final = attrgetter(*FORECAST_COLUMNS)
_ABSENT: Final = {
    (False, False): (),
    (True, False): ("turnover",),
    (False, True): ("account_unrealized_pnl",),
    (True, True): ("turnover", "account_unrealized_pnl"),
}


class StepEncoder:
    """Turns the steps of one run into rows; remembers only what interning needs.

    A fresh one on an old run is correct as well: it stores what it meets once more.
    """

    def __init__(
        self,
        run: Run,
        run_key: int,
        gate_sets: Sequence[GateSet] = (),
        covered: Covered | None = None,
    ) -> None:
        """Take the *gate_sets* that the run already holds, and what its last link covers."""
        self._covered = covered or Covered()
        self.outcomes = Outcomes(run_key, gate_sets)
        self._first_step = step_key(run_key, 0)
        self._interval_ms = run.interval_ms
        self._model_id = run.model_id
        self._horizon = run.gate_horizon
        self._places = {instrument.id: i for i, instrument in enumerate(run.instruments)}
        self._scales = {instrument.id: scales(instrument) for instrument in run.instruments}
        self._holdings = Holdings()

    def forget(self) -> None:
        """Forget the rows that steps share: the next step brings its own again."""
        self.outcomes.forget()
        self._holdings.forget()

    def encode(self, step: Step) -> StepRows:
        """Return the rows of *step*; raise ``InvariantBroken`` for what no row can hold."""
        sequence = step.sequence
        if not 0 <= sequence < SEQUENCE_LIMIT:
            raise InvariantBroken(f"A run holds {SEQUENCE_LIMIT} steps; open a new run.")
        key = self._first_step + sequence
        event = step.event
        place: int | None
        sparse: list[SparseRow] = []
        if type(event) is Bar:
            place = self._place_of_bar(event)
            plain = self._plain_bar(step, event, place)
            if plain is not None:
                return plain
        else:
            row, place = self._event_row(event, key, step.belief)
            sparse.append(("events", row))
        judged: Judged | None = None
        if step.decision is not None:
            judged = self.outcomes.judge(step.decision, key, sparse)
        marked = self._holdings.hold((key, (0, place), None), step.position, step.account, sparse)
        return self._rows(step, place, judged, marked, sparse)

    def _plain_bar(self, step: Step, bar: Bar, place: int) -> StepRows | None:
        """Return the rows of a step that has one row, and its note; None where it may have more.

        One tuple is hashed and inserted: nearly every step of a run without a model is such a bar.
        """
        decision, position = step.decision, step.position
        if (
            decision is None or position is None or step.prediction is not None
            or step.state is not None or step.orders or step.fills or step.twins
            or not step.accepted or step.ledger or _EXTRA["steps"]
            or decision.target_quantity is None
        ):  # fmt: skip
            return None
        noted = () if decision.note is None else _extra("answers", step)
        judged = self.outcomes.judged_before(decision)
        marked = self._holdings.unchanged((0, place), position, step.account)
        window, decided = step.window_sha256, step.decision_sha256
        if judged is None or marked is None or window is None or decided is None:
            return None
        plan, outcome, measures = judged
        if marked.equity is not None or not plan.is_dense or None in measures or None in noted:
            return None
        turnover_absent, of_account = bar.turnover is None, marked.account_unrealized
        prices = _OF_BAR_WITHOUT_TURNOVER(bar) if turnover_absent else _OF_BAR(bar)
        absent = _ABSENT[turnover_absent, of_account is None]
        of_row, prefix = plan.plain(absent, noted=bool(noted))
        key, market_ms = self._first_step + step.sequence, bar.market_ms
        # The driver binds a bytearray in a fraction of what bytes cost it.
        values: Row = (
            key, _NOTED if noted else _BARE, bytearray(window), bytearray(decided),
            outcome, decision.target_quantity, *measures, place, *prices,
            market_ms - bar.open_time_ms - self._interval_ms, bar.seen_ms - market_ms,
            SOURCE_CODES[bar.source], marked.holding, marked.unrealized,
        )  # fmt: skip
        if of_account is not None:
            values = (*values, of_account)
        covered = self._covered.content
        if not noted:
            return StepRows(values, of_row, (), (), covered, prefix, values)
        answer = ("answers", (key, *_NO_ANSWER, *noted))
        return StepRows(values, of_row, (answer,), (), covered, prefix, (*values, *noted))

    def _rows(
        self,
        step: Step,
        place: int | None,
        judged: Judged | None,
        marked: Marked,
        sparse: list[SparseRow],
    ) -> StepRows:
        """Return the rows of any step."""
        key, event = self._first_step + step.sequence, step.event
        measures = None if judged is None else judged.answer_measures
        noted = step.decision is not None and step.decision.note is not None
        if noted or step.prediction is not None or measures is not None:
            sparse.append(("answers", self._answer_row(key, step, measures)))
        if step.orders or step.fills or step.twins:
            self._add_trades(step, key, place, sparse)
        for ordinal, entry in enumerate(step.ledger):
            sparse.append(("ledger", self._ledger_row(key, ordinal, entry, event.market_ms)))
        sparse.sort(key=_in_order)
        laid_rows = laid(sparse)
        kept = self._covered.take(kept_rows(laid_rows), step.state)
        if step.state is not None or kept is not None or marked.equity is not None:
            state_row = (key, marked.equity, step.state, kept, *_extra("states", step))
            sparse.append(("states", state_row))
            sparse.sort(key=_in_order)
            laid_rows = laid(sparse)
        bar = _NO_BAR
        if isinstance(event, Bar):
            bar = (
                place, *_OF_BAR(event), event.market_ms - event.open_time_ms - self._interval_ms,
                event.seen_ms - event.market_ms, SOURCE_CODES[event.source],
            )  # fmt: skip
        decision = step.decision
        shape = _shape(tuple([table for table, _ in sparse]), accepted=step.accepted)
        core: Row = (
            key, shape, step.window_sha256, step.decision_sha256,
            None if judged is None else judged.outcome,
            None if decision is None else decision.target_quantity,
            *(NO_MEASURES if judged is None else judged.step_measures), *bar,
            marked.holding, marked.unrealized, marked.account_unrealized, *_extra("steps", step),
        )  # fmt: skip
        of_core = layout_of("steps", core)
        values = of_core.values(core)
        layouts_hash, payload = canonical((of_core, values), laid_rows)
        prefix = layouts_hash + (NO_GATES if judged is None else judged.plan.sha256)
        return StepRows(
            values, of_core, tuple(sparse), () if judged is None else judged.gate_set,
            self._covered.content, prefix, payload,
        )  # fmt: skip

    # ------------------------------------------------------------ events

    def _place(self, instrument: str) -> int:
        place = self._places.get(instrument)
        if place is None:
            raise InvariantBroken(f"{instrument} is not an instrument of this run.")
        return place

    def _place_of_bar(self, bar: Bar) -> int:
        if bar.interval_ms != self._interval_ms:
            raise InvariantBroken(
                f"A bar of {bar.interval_ms} ms came to a run of {self._interval_ms} ms."
            )
        return self._place(bar.instrument)

    def _event_row(self, event: Event, key: int, belief: str | None) -> tuple[Row, int | None]:
        """Return the row of *event*, with its *belief*, and the place of its instrument."""
        content = msgspec.to_builtins(event)
        named: int | None = None
        if isinstance(event, InstrumentChange):
            named = self._place(event.instrument.id)
            self._check_scales(event.instrument)
        elif "instrument" in content:
            named = self._place(content.pop("instrument"))
        market_ms, seen_ms = content.pop("market_ms"), content.pop("seen_ms")
        books = None
        if isinstance(event, Depths):
            del content["books"]
            books = event.books
        text = msgspec.json.encode(content).decode()
        return (
            key,
            EVENT_KINDS[type(event)],
            named,
            market_ms,
            seen_ms,
            text,
            books,
            belief,
        ), named

    def _check_scales(self, instrument: Instrument) -> None:
        """Refuse new decimals: every number of the run counts in the old ones."""
        if scales(instrument) != self._scales[instrument.id]:
            raise DataInvalid(
                f"The exchange changed the decimals of {instrument.id}, and a run keeps the "
                "ones it was opened with; restart to open a new run."
            )

    # ------------------------------------------------------------ predictions and trades

    def _answer_row(self, key: int, step: Step, measures: Row | None) -> Row:
        """Return the ``answers`` row: the forecast at the gates' horizon, the rest in one blob."""
        prediction: Prediction = step.prediction
        deadline = model_id = None
        forecast, explained = _NO_FORECAST, _NO_EXPLANATION
        match prediction:
            case PredictionTimeout():
                deadline = prediction.deadline_ms
            case Forecast():
                model_id = None if prediction.model_id == self._model_id else prediction.model_id
                forecast = _forecast_columns(prediction, self._horizon)
                explained = _explanation_columns(prediction.explanation)
            case None:
                pass
        return (
            key, deadline, model_id, *forecast, *explained, *(measures or _NO_ANSWER_MEASURES),
            *_extra("answers", step),
        )  # fmt: skip

    def _add_trades(self, step: Step, key: int, place: int | None, sparse: list[SparseRow]) -> None:
        """Append the rows of orders, fills and twins to *sparse*."""
        for ordinal, order in enumerate(step.orders):
            sparse.append(("orders", (key, ordinal, *self._columns("orders", order, 2))))
        for ordinal, fill in enumerate(step.fills):
            sparse.append(("fills", (key, ordinal, *self._columns("fills", fill, 2))))
        for book, twin in enumerate(step.twins, start=1):
            held = (key, (book, place), twin.twin)
            marked = self._holdings.hold(held, twin.position, twin.account, sparse)
            row = (
                key, book, marked.holding, marked.unrealized, marked.account_unrealized,
                marked.equity, int(twin.confirmed), *_extra("twin_steps", twin),
            )  # fmt: skip
            sparse.append(("twin_steps", row))
            for ordinal, fill in enumerate(twin.fills):
                columns = self._columns("twin_fills", fill, 4)
                sparse.append(("twin_fills", (key, book, ordinal, twin.twin, *columns)))

    def _ledger_row(self, key: int, ordinal: int, entry: LedgerEntry, market_ms: int) -> Row:
        place = None if entry.instrument is None else self._place(entry.instrument)
        moved = (entry.kind.value, place, entry.amount, entry.balance, entry.order_id, market_ms)
        return (key, ordinal, *moved, *_extra("ledger", entry))

    def _columns(self, table: str, stored: Order | Fill, first: int) -> Row:
        """Return the columns of *table* from place *first* on, of the order or fill *stored*."""
        return tuple(
            [
                self._place(stored.instrument)
                if column.name == "instrument"
                else column.value(stored)
                for column in TABLES[table][first:]
            ]
        )


def _in_order(row: SparseRow) -> int:
    return _TABLE_ORDER[row[0]]


@lru_cache(maxsize=4096)
def _shape(tables: tuple[str, ...], *, accepted: bool) -> int:
    """Return the shape of a step that has one row in each of the sparse *tables*."""
    counts = {table: tables.count(table) for table in SPARSE_TABLES}
    return StepShape(accepted=accepted, **counts).pack()  # type: ignore[arg-type]


_BARE: Final = _shape((), accepted=True)
_NOTED: Final = _shape(("answers",), accepted=True)


def _forecast_columns(forecast: Forecast, preferred: int | None) -> Row:
    """Return horizon, the six columns at it, the msgpack of all others, and what is further."""
    horizons = forecast.horizons
    columns = _OF_FORECAST(forecast)
    if not horizons or any(column and len(column) != len(horizons) for column in columns):
        raise InvariantBroken("A forecast needs one number a horizon in every column it gives.")
    at = horizons.index(preferred) if preferred in horizons else 0
    stored = [all_finite(column) for column in columns]
    # A column that the model does not give is null in both places.
    others = [column[:at] + column[at + 1 :] if column else None for column in stored]
    content = msgspec.msgpack.encode((horizons, *others))
    of_one = [column[at] if column else None for column in stored]
    return (horizons[at], *of_one, content, forecast.further or None)


def _explanation_columns(explanation: Explanation | None) -> Row:
    if explanation is None:
        return _NO_EXPLANATION
    return tuple(
        [
            value if isinstance(value, bytes) else finite(value)
            for value in _OF_EXPLANATION(explanation)
        ]
    )


_OF_EXPLANATION: Final = attrgetter(*EXPLANATION_COLUMNS)


def scales(instrument: Instrument) -> tuple[int, int, int, int]:
    """Return the decimals in which the numbers of *instrument* are counted."""
    return (
        instrument.price_decimals,
        instrument.quantity_decimals,
        instrument.volume_decimals,
        instrument.turnover_decimals,
    )
