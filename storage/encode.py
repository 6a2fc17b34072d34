"""``Step`` to rows: interned, with normal numbers, and quickly for the plain bar; pure."""

from __future__ import annotations

from math import isfinite
from operator import itemgetter
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from tracepaper.storage.digest import Covered, all_finite, finite, rows_digest
from tracepaper.storage.rows import (
    ANSWER_GATES,
    EVENT_KINDS,
    MEASURE_COLUMNS,
    SEQUENCE_LIMIT,
    SOURCE_CODES,
    SPARSE_TABLES,
    STEP_GATES,
    Row,
    Shape,
    StepRows,
    kept_rows,
    sequence_of,
    step_key,
)
from tracepaper.strategies.errors import DataInvalid, InvariantBroken
from tracepaper.strategies.types import (
    Bar,
    Explanation,
    Fill,
    Forecast,
    Instrument,
    InstrumentChange,
    Order,
    PredictionTimeout,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

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

# ---------------------------------------------------------------- rows that are stored once

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
            (run_key, key, place, gate, threshold + 0.0)
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
        self._known: dict[Row, int] = {}
        self._seen: dict[int, tuple[DecisionOutcome, GateSetPlan, int]] = {}  # by the outcome's id
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
        measures = _stored_measures(decision, plan)
        padded = (*measures, None)
        answer_measures: Row | None = None
        if plan.judges_answer:
            picked = plan.pick_answer(padded)
            if picked.count(None) < len(ANSWER_GATES):
                answer_measures = picked
        dense = measures if plan.is_dense and None not in measures else None
        return Judged(plan, known, plan.pick_step(padded), answer_measures, dense, new_set)

    def _plan(self, gate_set: GateSet) -> tuple[GateSetPlan, tuple[Row, ...]]:
        """Return the plan of *gate_set* and, where it is met for the first time, its rows."""
        plan = self._plans.get(gate_set)
        if plan is not None:
            return plan, ()
        plan = self._plans[gate_set] = GateSetPlan(gate_set, self._run_key, len(self._plans))
        return plan, plan.rows

    def _look_up(
        self, outcome: DecisionOutcome, plan: GateSetPlan, key: int, born: list[SparseRow]
    ) -> tuple[DecisionOutcome, GateSetPlan, int]:
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
        )
        known = self._known.get(row)
        if known is None:
            if len(self._known) >= OUTCOMES_KEPT:
                self._known.clear()
            known = self._known[row] = sequence_of(key)
            born.append(("outcomes", (key, *row)))
        if len(self._seen) >= OUTCOMES_KEPT:
            self._seen.clear()
        # The outcome is kept with its entry: its id is its own for as long as it exists.
        seen = self._seen[id(outcome)] = (outcome, plan, known)
        return seen

    def forget(self) -> None:
        """Forget every outcome; gate sets keep their keys."""
        self._known.clear()
        self._seen.clear()


def _stored_measures(decision: Decision, plan: GateSetPlan) -> Row:
    """Return the measures as stored."""
    if len(decision.measures) != plan.length:
        raise InvariantBroken("A decision needs one measure for each of its gates.")
    return all_finite(decision.measures)


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


_TABLE_ORDER: Final = {table: place for place, table in enumerate(SPARSE_TABLES)}
_NO_FORECAST: Final[Row] = (None,) * 9
_NO_EXPLANATION: Final[Row] = (None,) * 8


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
        self._horizon = gate_horizon(run.config)
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
        is_bar = type(event) is Bar
        event_row, place = self._event_row(event, key)
        sparse: list[SparseRow] = []
        judged, target = NOT_JUDGED, None
        if (decision := step.decision) is not None:
            judged = self.outcomes.judge(decision, key, sparse)
            target = decision.target_quantity
        if step.prediction is not None or judged.answer_measures is not None:
            sparse.insert(
                0, ("answers", self._answer_row(key, step.prediction, judged.answer_measures))
            )
        held = (key, (0, place), None)
        holding = self._holdings.hold(held, step.position, step.account, sparse)
        if step.orders or step.fills or step.twins:
            self._add_trades(step, key, place, sparse)
        shape = 1 if is_bar and step.accepted and not sparse else _shape(step, sparse)
        unrealized, account_unrealized, equity = marks(step.position, step.account)
        window, decided, state = step.window_sha256, step.decision_sha256, step.state
        kept: bytes | None = None
        if sparse or state is not None or not is_bar:
            kept = self._covered.take(kept_rows(None if is_bar else event_row, sparse), state)
        core: Row = (
            key, shape, window, decided, judged.outcome, target, *judged.measures,
            holding, unrealized, account_unrealized, equity, state, kept,
        )  # fmt: skip
        compact: Row | None = None
        columns: tuple[str, ...] = ()
        if judged.dense is not None and window and decided:
            nothing_else = account_unrealized is None and equity is None
            nothing_else &= state is None and kept is None
            if nothing_else and unrealized is not None and judged.plan is not None:
                columns = judged.plan.compact_columns
                # The driver binds a bytearray in a fraction of what bytes or a null cost it.
                compact = (
                    key, shape, bytearray(window), bytearray(decided), judged.outcome, target,
                    *judged.dense, holding, unrealized,
                )  # fmt: skip
        gates_sha256 = None if judged.plan is None else judged.plan.sha256
        return StepRows(
            core, event_row, gates_sha256, tuple(sparse), compact, columns, judged.gate_set,
            self._covered.content,
        )  # fmt: skip

    # ------------------------------------------------------------ events

    def _place(self, instrument: str) -> int:
        place = self._places.get(instrument)
        if place is None:
            raise InvariantBroken(f"{instrument} is not an instrument of this run.")
        return place

    def _event_row(self, event: Event, key: int) -> tuple[Row, int | None]:
        """Return the row of *event* and the place of its instrument in the run."""
        if type(event) is Bar:
            place = self._place(event.instrument)
            if event.interval_ms != self._interval_ms:
                raise InvariantBroken(
                    f"A bar of {event.interval_ms} ms came to a run of {self._interval_ms} ms."
                )
            market_ms, seen_ms, open_time_ms = event.market_ms, event.seen_ms, event.open_time_ms
            return (
                key, place, open_time_ms,
                event.open, event.high, event.low, event.close, event.volume, event.turnover,
                market_ms - open_time_ms - self._interval_ms, seen_ms - market_ms,
                SOURCE_CODES[event.source],
            ), place  # fmt: skip
        content = msgspec.to_builtins(event)
        named: int | None = None
        if isinstance(event, InstrumentChange):
            named = self._place(event.instrument.id)
            self._check_scales(event.instrument)
        elif "instrument" in content:
            named = self._place(content.pop("instrument"))
        market_ms, seen_ms = content.pop("market_ms"), content.pop("seen_ms")
        text = msgspec.json.encode(content).decode()
        return (key, EVENT_KINDS[type(event)], named, market_ms, seen_ms, text), named

    def _check_scales(self, instrument: Instrument) -> None:
        """Refuse new decimals: every number of the run counts in the old ones."""
        if scales(instrument) != self._scales[instrument.id]:
            raise DataInvalid(
                f"The exchange changed the decimals of {instrument.id}, and a run keeps the "
                "ones it was opened with; restart to open a new run."
            )

    # ------------------------------------------------------------ answers and trades

    def _answer_row(self, key: int, prediction: Prediction, measures: Row | None) -> Row:
        """Return the ``answers`` row: the forecast at the gates' horizon, the rest in one blob."""
        deadline = model_id = None
        forecast, explained = _NO_FORECAST[1:], _NO_EXPLANATION
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
            key, deadline, model_id, *forecast, *explained,
            *(measures or (None,) * len(ANSWER_GATES)),
        )  # fmt: skip

    def _add_trades(self, step: Step, key: int, place: int | None, sparse: list[SparseRow]) -> None:
        """Append the rows of orders, fills and twins to *sparse*, in the order of the chain."""
        for ordinal, order in enumerate(step.orders):
            sparse.append(("orders", self._order_row(order, key, ordinal)))
        for ordinal, fill in enumerate(step.fills):
            sparse.append(("fills", (key, ordinal, *self._fill_columns(fill))))
        for book, twin in enumerate(step.twins, start=1):
            held = (key, (book, place), twin.twin)
            holding = self._holdings.hold(held, twin.position, twin.account, sparse)
            marked = marks(twin.position, twin.account)
            row = (key, book, holding, *marked, int(twin.confirmed))
            sparse.append(("twin_steps", row))
            for ordinal, fill in enumerate(twin.fills):
                columns = self._fill_columns(fill)
                sparse.append(("twin_fills", (key, book, ordinal, twin.twin, *columns)))
        sparse.sort(key=lambda table_row: _TABLE_ORDER[table_row[0]])

    def _order_row(self, order: Order, key: int, ordinal: int) -> Row:
        return (
            key, ordinal, order.order_id, self._place(order.instrument), order.side.value,
            order.quantity, order.filled, order.status.value, order.reason,
            order.created_ms, order.eligible_ms,
        )  # fmt: skip

    def _fill_columns(self, fill: Fill) -> Row:
        return (
            fill.order_id, self._place(fill.instrument), fill.side.value, fill.quantity,
            fill.price, fill.reference_price, fill.notional, fill.fee, fill.fee_base,
            fill.liquidity.value, fill.model.value, fill.reason, fill.filled_ms,
        )  # fmt: skip


def _shape(step: Step, sparse: list[SparseRow]) -> int:
    tables = [table for table, _ in sparse]
    return Shape(
        accepted=step.accepted,
        other_event=type(step.event) is not Bar,
        answers="answers" in tables,
        outcomes="outcomes" in tables,
        holdings=tables.count("holdings"),
        orders=len(step.orders),
        fills=len(step.fills),
        twin_steps=len(step.twins),
        twin_fills=tables.count("twin_fills"),
    ).pack()


def _forecast_columns(forecast: Forecast, preferred: int | None) -> Row:
    """Return horizon, the six columns at it, and the msgpack of all horizons and the rest."""
    horizons = forecast.horizons
    columns = (
        forecast.mean_return,
        forecast.stdev_return,
        forecast.p_down,
        forecast.p_flat,
        forecast.p_up,
        forecast.volatility,
    )
    if not horizons or any(len(column) != len(horizons) for column in columns):
        raise InvariantBroken("A forecast needs one number a horizon in every column.")
    at = horizons.index(preferred) if preferred in horizons else 0
    others = [[finite(number) for i, number in enumerate(c) if i != at] for c in columns]
    content = msgspec.msgpack.encode((horizons, *others))
    return (horizons[at], *(finite(column[at]) for column in columns), content)


def _explanation_columns(explanation: Explanation | None) -> Row:
    if explanation is None:
        return _NO_EXPLANATION
    return (
        finite(explanation.confidence),
        finite(explanation.content_free),
        finite(explanation.recent_mass),
        finite(explanation.older_mass),
        finite(explanation.shift),
        finite(explanation.l1_error),
        explanation.entropy,
        explanation.buckets,
    )


def scales(instrument: Instrument) -> tuple[int, int, int, int]:
    """Return the decimals in which the numbers of *instrument* are counted."""
    return (
        instrument.price_decimals,
        instrument.quantity_decimals,
        instrument.volume_decimals,
        instrument.turnover_decimals,
    )


def gate_horizon(config: str) -> int | None:
    """Return ``gate.horizon`` of a run's configuration, the horizon that the gates speak of."""
    try:
        gate = msgspec.json.decode(config).get("gate", {})
    except (msgspec.DecodeError, AttributeError):
        return None
    horizon = gate.get("horizon") if isinstance(gate, dict) else None
    return horizon if isinstance(horizon, int) else None
