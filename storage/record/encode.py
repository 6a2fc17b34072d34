"""``Step`` to rows; pure."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from tracepaper.storage.record.answer_json import DecidedTexts
from tracepaper.storage.record.columns import (
    BAR_COLUMNS,
    BAR_FIELDS,
    EXPLANATION_COLUMNS,
    FORECAST_COLUMNS,
    HEAD_COLUMNS,
    SEQUENCE_LIMIT,
    SOURCE_CODES,
    TABLES,
    Row,
    Value,
)
from tracepaper.storage.record.digest import Covered, all_finite, finite
from tracepaper.storage.record.interning import (
    HAS_PROFIT,
    NO_ANSWER,
    NO_ANSWER_MEASURES,
    NO_MEASURES,
    READ_COLUMNS,
    GateSetPlan,
    HeldRows,
    Judged,
    Marked,
    Outcomes,
    read_values,
)
from tracepaper.storage.record.rows import (
    BYTE,
    EVENT_KINDS,
    NO_GATES,
    SHAPE_UNITS,
    SPARSE_TABLES,
    StepRows,
    canonical,
    kept_rows,
    laid,
    layout_of,
    shape_of,
    step_key,
)
from tracepaper.strategies.errors import DataInvalid, InvariantBroken
from tracepaper.strategies.types.decisions import (
    Fill,
    Forecast,
    LedgerEntry,
    Order,
    PredictionTimeout,
)
from tracepaper.strategies.types.market import (
    Bar,
    BookUpdate,
    Close,
    Depths,
    Instrument,
    InstrumentChange,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tracepaper.storage.record.rows import SparseRow
    from tracepaper.strategies.types.decisions import (
        GateSet,
        Prediction,
        QuietStretch,
        Run,
        Step,
        TwinStep,
    )
    from tracepaper.strategies.types.market import Event


# ---------------------------------------------------------------- steps

_TABLE_ORDER: Final = {table: place for place, table in enumerate(SPARSE_TABLES)}
_NO_BAR: Final[Row] = (None,) * len(BAR_COLUMNS)
_NO_FORECAST: Final[Row] = (None,) * (3 + len(FORECAST_COLUMNS))
_NO_HEADS: Final[Row] = (None,) * len(HEAD_COLUMNS)
_NO_EXPLANATION: Final[Row] = (None,) * len(EXPLANATION_COLUMNS)
_OF_BAR: Final = attrgetter(*BAR_FIELDS)
_OF_BAR_WITHOUT_TURNOVER: Final = attrgetter(*(n for n in BAR_FIELDS if n != "turnover"))
_OF_FORECAST: Final = attrgetter(*FORECAST_COLUMNS)
_OF_EXPLANATION: Final = attrgetter(*EXPLANATION_COLUMNS)
_BARE: Final = 1
_NOTED: Final = _BARE | SHAPE_UNITS["answers"]
_TWIN: Final = SHAPE_UNITS["twin_steps"]
"""The shapes of an accepted bar by itself, and with a note."""
_ABSENT: Final = {
    (False, False): (),
    (True, False): ("turnover",),
    (False, True): ("account_unrealized_pnl",),
    (True, True): ("turnover", "account_unrealized_pnl"),
}


class _PlainBars(Struct, frozen=True, gc=False):
    """What the rows of a stretch's bars of one instrument repeat."""

    plan: GateSetPlan
    before: Row  # outcome, target, and the measures before ``plausible``
    after: Row  # the measures behind it, and the place of the instrument
    holding: int
    interval_ms: int
    is_measured: bool  # whether ``plausible`` is among the measures

    def rows(
        self,
        key: int,
        bar: Bar,
        plausible: float,
        unrealized: int,
        of_account: int,
        covered: bytes,
    ) -> StepRows:
        """Return the rows of the step *key* of *bar*."""
        turnover_absent, is_alone = bar.turnover is None, of_account == unrealized
        market_ms = bar.market_ms
        values: Row = (
            key, _BARE, *self.before, *((plausible,) if self.is_measured else ()),
            *self.after, *(_OF_BAR_WITHOUT_TURNOVER(bar) if turnover_absent else _OF_BAR(bar)),
            market_ms - bar.open_time_ms - self.interval_ms, bar.seen_ms - market_ms,
            SOURCE_CODES[bar.source], self.holding, unrealized,
        )  # fmt: skip
        if not is_alone:
            values = (*values, of_account)
        of_row, prefix = self.plan.plain(_ABSENT[turnover_absent, is_alone], ())
        return StepRows(values, of_row, (), (), covered, prefix, values)


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
        self._holdings, self._decided = HeldRows(), DecidedTexts()

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
            if event.interval_ms != self._interval_ms:
                raise InvariantBroken(
                    f"A bar of {event.interval_ms} ms came to a run of {self._interval_ms} ms."
                )
            place = self._place(event.instrument)
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

    def encode_stretch(self, stretch: QuietStretch) -> Iterator[StepRows]:
        """Yield the rows of each step of *stretch*, as :meth:`encode` returns them.

        After the first bar of an instrument only numbers change, where its row alone holds it all.
        """
        if stretch.next_sequence > SEQUENCE_LIMIT:
            raise InvariantBroken(f"A run holds {SEQUENCE_LIMIT} steps; open a new run.")
        plain: dict[str, _PlainBars | None] = {}
        sequence, number = stretch.first, 0
        for place, unit in enumerate(stretch.units):
            bars: Sequence[Bar] = (unit,) if isinstance(unit, Bar) else unit.bars
            if isinstance(unit, Close):
                yield self.encode(stretch.closed_at(sequence, place, unit))
                sequence += 1
            of_account = stretch.account_unrealized[place]
            for bar in bars:
                key = bar.instrument
                if (of_bars := plain.get(key)) is not None:
                    yield of_bars.rows(
                        self._first_step + sequence, bar, stretch.plausible[number],
                        stretch.unrealized[number], of_account, self._covered.content,
                    )  # fmt: skip
                else:
                    account = stretch.account_at(of_account)
                    yield self.encode(step := stretch.step_at(sequence, bar, number, account))
                    if key not in plain:
                        at = stretch.repeats[key].plausible_at
                        plain[key] = self._plain_after(step, self._place(key), at)
                sequence, number = sequence + 1, number + 1

    def _plain_after(self, step: Step, place: int, plausible_at: int | None) -> _PlainBars | None:
        """Return what bars repeat after *step*, which was encoded; None where more rows follow."""
        decision, position = step.decision, step.position
        assert decision is not None
        assert position is not None
        judged = self.outcomes.judged_before(decision)
        marked = self._holdings.unchanged((0, place), position, step.account)
        if judged is None or marked is None or marked.equity is not None or READ_COLUMNS["steps"]:
            return None
        plan, outcome, measures = judged
        if not plan.is_dense or None in measures:
            return None
        at = len(measures) if plausible_at is None else plausible_at
        before = outcome, decision.target_quantity, *measures[:at]
        after = *measures[at + 1 :], place
        is_measured = plausible_at is not None
        return _PlainBars(plan, before, after, marked.holding, self._interval_ms, is_measured)

    def _plain_bar(self, step: Step, bar: Bar, place: int) -> StepRows | None:
        """Return the rows of a bar with a decision and no trade; None where it may have more.

        Nearly every step of a run without a model is one, so a single tuple is hashed and inserted.
        """
        decision, position = step.decision, step.position
        if (
            decision is None or position is None or step.prediction is not None
            or step.state is not None or step.orders or step.fills
            or not step.accepted or step.ledger or READ_COLUMNS["steps"]
            or decision.target_quantity is None or step.halted is not None
        ):  # fmt: skip
            return None
        noted = () if decision.note is None else read_values("answers", step)
        judged = self.outcomes.judged_before(decision)
        marked = self._holdings.unchanged((0, place), position, step.account)
        if judged is None or marked is None:
            return None
        plan, outcome, measures = judged
        if marked.equity is not None or not plan.is_dense or None in measures:
            return None
        key, market_ms = self._first_step + step.sequence, bar.market_ms
        twins: list[SparseRow] = []
        of_twins: list[Value] = []
        marks: tuple[int, ...] = ()
        if step.twins:
            found = self._plain_twins(twins, of_twins, step.twins, key, place)
            if found is None:
                return None
            marks = found
        turnover_absent, of_account = bar.turnover is None, marked.account_unrealized
        prices = _OF_BAR_WITHOUT_TURNOVER(bar) if turnover_absent else _OF_BAR(bar)
        absent = _ABSENT[turnover_absent, of_account is None]
        filled = tuple([value is not None for value in noted]) if noted else ()
        of_row, prefix = plan.plain(absent, filled, marks)
        # The driver binds a bytearray in a fraction of what bytes cost it.
        values: Row = (
            key, (_NOTED if noted else _BARE) + len(twins) * _TWIN, outcome,
            decision.target_quantity, *measures, place, *prices,
            market_ms - bar.open_time_ms - self._interval_ms, bar.seen_ms - market_ms,
            SOURCE_CODES[bar.source], marked.holding, marked.unrealized,
        )  # fmt: skip
        if of_account is not None:
            values = (*values, of_account)
        covered = self._covered.content
        if not noted:
            payload = (*values, *of_twins) if twins else values
            return StepRows(values, of_row, tuple(twins), (), covered, prefix, payload)
        sparse: list[SparseRow] = [("answers", (key, *NO_ANSWER, *noted)), *twins]
        payload = (*values, *[value for value in noted if value is not None], *of_twins)
        return StepRows(values, of_row, tuple(sparse), (), covered, prefix, payload)

    def _plain_twins(
        self,
        rows: list[SparseRow],
        values: list[Value],
        twins: Sequence[TwinStep],
        key: int,
        place: int,
    ) -> tuple[int, ...] | None:
        """Append the rows of *twins* to *rows*, and what they fill but their key to *values*.

        Return which of their columns that may be null are not; None where one may have more.
        """
        if READ_COLUMNS["twin_steps"] or READ_COLUMNS["holdings"] or len(twins) >= BYTE:
            return None
        marks = []
        last_held, last_decided = self._holdings.last, self._decided.last
        for book, twin in enumerate(twins, start=1):
            whose, position, account = (book, place), twin.position, twin.account
            last = last_held.get(whose)
            if last is None or twin.fills or not last.is_still(position, account):
                return None
            of_account, unrealized = account.unrealized_pnl, position.unrealized_pnl
            if account.equity != account.cash + of_account:
                return None
            text, decided, holding = None, twin.decided, last.holding
            if decided is not None:
                known = last_decided.get(whose)
                is_known = known is not None and known[0] is decided
                text = known[1] if known and is_known else self._decided.of(whose, decided)
            confirmed = 1 if twin.confirmed else 0
            if of_account == unrealized:
                row: Row = (key, book, holding, unrealized, None, None, confirmed, text)
                values += (book, holding, unrealized, confirmed)
            else:
                row = (key, book, holding, unrealized, of_account, None, confirmed, text)
                values += (book, holding, unrealized, of_account, confirmed)
            rows.append(("twin_steps", row))
            if text is not None:
                values.append(text)
            marks.append((HAS_PROFIT if of_account != unrealized else 0) | (text is not None))
        return tuple(marks)

    def _rows(
        self,
        step: Step,
        place: int | None,
        judged: Judged | None,
        marked: Marked,
        sparse: list[SparseRow],
    ) -> StepRows:
        key, event = self._first_step + step.sequence, step.event
        measures = None if judged is None else judged.answer_measures
        noted = step.decision is not None and step.decision.note is not None
        if noted or step.prediction is not None or measures is not None:
            sparse.append(("answers", self._answer_row(key, step, measures)))
        if step.orders or step.fills or step.twins:
            self._add_trades(step, key, place, sparse)
        for ordinal, entry in enumerate(step.ledger):
            sparse.append(("ledger", self._ledger_row(key, ordinal, entry, event.market_ms)))
        if (halted := step.halted) is not None:
            times = event.market_ms, event.seen_ms
            sparse.append(("halts", (key, *times, *msgspec.structs.astuple(halted))))
        sparse.sort(key=_in_order)
        laid_rows = laid(sparse)
        kept = self._covered.take(kept_rows(laid_rows), step.state)
        if step.state is not None or kept is not None or marked.equity is not None:
            state_row = (key, marked.equity, step.state, kept, *read_values("states", step))
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
        shape = shape_of(tuple([table for table, _ in sparse])) | step.accepted
        core: Row = (
            key, shape,
            None if judged is None else judged.outcome,
            None if decision is None else decision.target_quantity,
            *(NO_MEASURES if judged is None else judged.step_measures), *bar,
            marked.holding, marked.unrealized, marked.account_unrealized,
            *read_values("steps", step),
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

    def _event_row(self, event: Event, key: int, belief: str | None) -> tuple[Row, int | None]:
        """Return the row of *event*, with its *belief*, and the place of its instrument."""
        content = msgspec.to_builtins(event)
        place: int | None = None
        if isinstance(event, InstrumentChange):
            instrument = event.instrument
            place = self._place(instrument.id)
            # Every number of the run is counted in the decimals that it was opened with.
            if scales(instrument) != self._scales[instrument.id]:
                raise DataInvalid(
                    f"The exchange changed the decimals of {instrument.id}, and a run keeps the "
                    "ones it was opened with; restart to open a new run."
                )
        elif "instrument" in content:
            place = self._place(content.pop("instrument"))
        market_ms, seen_ms = content.pop("market_ms"), content.pop("seen_ms")
        books = None
        if isinstance(event, Depths | BookUpdate):
            del content["books"]
            books = event.books
        text = msgspec.json.encode(content).decode()
        kind = EVENT_KINDS[type(event)]
        return (key, kind, place, market_ms, seen_ms, text, books, belief), place

    # ------------------------------------------------------------ predictions and trades

    def _answer_row(self, key: int, step: Step, measures: Row | None) -> Row:
        """Return the ``answers`` row: the forecast at the gates' horizon, all others in a blob."""
        prediction: Prediction = step.prediction
        deadline = model_id = None
        forecast, explained = _NO_FORECAST, _NO_EXPLANATION
        match prediction:
            case PredictionTimeout():
                deadline = prediction.deadline_ms
            case Forecast():
                model_id = None if prediction.model_id == self._model_id else prediction.model_id
                forecast = _forecast_columns(prediction, self._horizon)
                if prediction.explanation is not None:
                    explained = tuple(
                        [
                            value if isinstance(value, bytes) else finite(value)
                            for value in _OF_EXPLANATION(prediction.explanation)
                        ]
                    )
            case None:
                pass
        return (
            key, deadline, model_id, *forecast, *explained, *(measures or NO_ANSWER_MEASURES),
            *self._head_columns(prediction), *read_values("answers", step),
        )  # fmt: skip

    def _head_columns(self, prediction: Prediction) -> Row:
        """Pack the auxiliary heads, with their figures at the gates' horizon."""
        if not isinstance(prediction, Forecast) or prediction.heads is None:
            return _NO_HEADS
        at = _place(prediction.horizons, self._horizon)
        return (
            msgspec.msgpack.encode(prediction.heads.stored()),
            prediction.expected_shortfall(at, is_short=False),
            prediction.expected_shortfall(at, is_short=True),
            prediction.expected_drawdown(at),
            prediction.learned_regime(at),
            prediction.allocation(at),
            prediction.dropout_spread(at),
        )

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
                marked.equity, int(twin.confirmed), self._decided.of((book, place), twin.decided),
                *read_values("twin_steps", twin),
            )  # fmt: skip
            sparse.append(("twin_steps", row))
            for ordinal, fill in enumerate(twin.fills):
                columns = self._columns("twin_fills", fill, 4)
                sparse.append(("twin_fills", (key, book, ordinal, twin.twin, *columns)))

    def _ledger_row(self, key: int, ordinal: int, entry: LedgerEntry, market_ms: int) -> Row:
        place = None if entry.instrument is None else self._place(entry.instrument)
        moved = (entry.kind.value, place, entry.amount, entry.balance, entry.order_id, market_ms)
        return (key, ordinal, *moved, *read_values("ledger", entry))

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


def _forecast_columns(forecast: Forecast, preferred: int | None) -> Row:
    """Return horizon, the six columns at it, the msgpack of the others, the further outputs."""
    horizons = forecast.horizons
    columns = _OF_FORECAST(forecast)
    if not horizons or any(column and len(column) != len(horizons) for column in columns):
        raise InvariantBroken("A forecast needs one number a horizon in every column it gives.")
    at = _place(horizons, preferred)
    stored = [all_finite(column) for column in columns]
    # A column that the model does not give is null in both places.
    others = [column[:at] + column[at + 1 :] if column else None for column in stored]
    content = msgspec.msgpack.encode((horizons, *others))
    at_horizon = [column[at] if column else None for column in stored]
    return (horizons[at], *at_horizon, content, forecast.further or None)


def _place(horizons: Sequence[int], preferred: int | None) -> int:
    return horizons.index(preferred) if preferred in horizons else 0


def scales(instrument: Instrument) -> tuple[int, int, int, int]:
    """Return the decimals in which the numbers of *instrument* are counted."""
    return (
        instrument.price_decimals,
        instrument.quantity_decimals,
        instrument.volume_decimals,
        instrument.turnover_decimals,
    )
