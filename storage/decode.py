"""Rows to ``Step``, ``Run`` and ``Event``: the exact inverse of ``encode.py``; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from tracepaper.storage.rows import (
    ANSWER_GATES,
    EVENT_TYPES,
    SOURCES,
    STEP_GATES,
    Shape,
    sequence_of,
)
from tracepaper.strategies.errors import DataInvalid, shown
from tracepaper.strategies.types import (
    Account,
    Action,
    Bar,
    Decision,
    DecisionOutcome,
    Explanation,
    Fill,
    FillModel,
    Forecast,
    GateSet,
    Liquidity,
    Order,
    OrderStatus,
    Position,
    PredictionTimeout,
    Regime,
    Run,
    Side,
    Step,
    TwinStep,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tracepaper.strategies.types import Event, Prediction

MEASURES_FROM: Final = 6  # first measure in a ``steps`` row
MARKS_FROM: Final = MEASURES_FROM + len(STEP_GATES)  # holding, unrealized, account's, equity
STATE_AT: Final = MARKS_FROM + 4
KEPT_AT: Final = STATE_AT + 1  # the running hash of what a prune keeps
ANSWER_MEASURES_FROM: Final = 19  # first measure in an ``answers`` row


class StoredRows(NamedTuple):
    """The rows of one step as read; the ``steps`` row still without its digest."""

    core: Sequence[Any]
    event: Sequence[Any]
    sparse: Mapping[str, Sequence[Sequence[Any]]]


class Interned(NamedTuple):
    """Where the rows that steps share are found, by the sequence (and book) that names them."""

    outcome: Callable[[int], Sequence[Any]]
    holding: Callable[[int, int], Sequence[Any]]
    gate_set: Callable[[int], GateSet]


_IMPOSSIBLE: Final = (ValueError, LookupError, TypeError, AttributeError, msgspec.MsgspecError)
"""What decoding raises for values that no step has; ours are sentences already."""


def _damaged(step: object, error: Exception) -> DataInvalid:
    named = sequence_of(step) if isinstance(step, int) else shown(step)
    return DataInvalid(
        f"Step {named} holds what no step can hold ({error}); run `tracepaper audit "
        "verify` and restore a backup."
    )


class StepDecoder:
    """Turns the rows of one run back into steps."""

    def __init__(self, run: Run, interned: Interned) -> None:
        self._instruments = [instrument.id for instrument in run.instruments]
        self._interval_ms = run.interval_ms
        self._model_id = run.model_id
        self._interned = interned

    def step(self, rows: StoredRows) -> Step:
        """Return the step that *rows* hold; raise ``DataInvalid`` where they hold none."""
        try:
            return self._step(rows)
        except _IMPOSSIBLE as error:
            raise _damaged(rows.core[0], error) from error

    def _step(self, rows: StoredRows) -> Step:
        core = rows.core
        shape = Shape.unpack(core[1])
        answers = rows.sparse.get("answers", ())
        answer_row = answers[0] if answers else None
        holding, *own_marks = core[MARKS_FROM:STATE_AT]
        position, account = self._book(0, holding, own_marks)
        return Step(
            sequence=sequence_of(core[0]),
            event=self.event(rows.event, other_event=shape.other_event),
            accepted=shape.accepted,
            decision=self._decision(core, answer_row),
            prediction=None if answer_row is None else self.prediction(answer_row),
            orders=tuple(self.order(row) for row in rows.sparse.get("orders", ())),
            fills=tuple(self.fill(row[2:]) for row in rows.sparse.get("fills", ())),
            position=position,
            account=account,
            twins=tuple(
                self._twin(row, rows.sparse.get("twin_fills", ()))
                for row in rows.sparse.get("twin_steps", ())
            ),
            window_sha256=core[2],
            decision_sha256=core[3],
            state=core[STATE_AT],
        )

    def event(self, row: Sequence[Any], *, other_event: bool) -> Event:
        """Return the event of a ``bars`` row, or of an ``events`` row where *other_event*."""
        if not other_event:
            return self.bar(row)
        try:
            _, kind, place, market_ms, seen_ms, content = row
            fields = msgspec.json.decode(content)
            fields["market_ms"], fields["seen_ms"] = market_ms, seen_ms
            if place is not None:
                fields.setdefault("instrument", self._instruments[place])
            return msgspec.convert(fields, EVENT_TYPES[kind])
        except _IMPOSSIBLE as error:
            raise _damaged(row[0], error) from error

    def bar(self, row: Sequence[Any]) -> Bar:
        """Return the bar of a ``bars`` row."""
        try:
            market_ms = row[2] + self._interval_ms + row[9]
            seen_ms = market_ms + row[10]
            instrument, source = self._instruments[row[1]], SOURCES[row[11]]
        except _IMPOSSIBLE as error:
            raise _damaged(row[0], error) from error
        return Bar(
            instrument,
            open_time_ms=row[2],
            interval_ms=self._interval_ms,
            open=row[3],
            high=row[4],
            low=row[5],
            close=row[6],
            volume=row[7],
            turnover=row[8],
            market_ms=market_ms,
            seen_ms=seen_ms,
            source=source,
        )

    def prediction(self, row: Sequence[Any]) -> Prediction:
        """Return what the forecaster answered, from an ``answers`` row."""
        try:
            return self._answer(row)
        except _IMPOSSIBLE as error:
            raise _damaged(row[0], error) from error

    def _answer(self, row: Sequence[Any]) -> Prediction:
        if row[1] is not None:
            return PredictionTimeout(row[1])
        horizon = row[3]
        if horizon is None:
            return None
        horizons, *others = msgspec.msgpack.decode(row[10])
        at = horizons.index(horizon)
        mean, stdev, down, flat, up, volatility = (
            tuple(_number(number) for number in (*rest[:at], row[4 + column], *rest[at:]))
            for column, rest in enumerate(others)
        )
        model_id = self._model_id if row[2] is None else row[2]
        explanation = _explanation(row[11:19])
        return Forecast(
            tuple(horizons), mean, stdev, down, flat, up, volatility, model_id, explanation
        )

    def order(self, row: Sequence[Any]) -> Order:
        """Return the order of an ``orders`` row."""
        _, _, order_id, place, side, quantity, filled, status, *rest = row
        return Order(
            order_id,
            self._instruments[place],
            Side(side),
            quantity,
            filled,
            OrderStatus(status),
            *rest,
        )

    def fill(self, columns: Sequence[Any]) -> Fill:
        """Return the fill of a row of ``fills`` or ``twin_fills`` without its key."""
        return Fill(
            order_id=columns[0],
            instrument=self._instruments[columns[1]],
            side=Side(columns[2]),
            quantity=columns[3],
            price=columns[4],
            reference_price=columns[5],
            notional=columns[6],
            fee=columns[7],
            fee_base=columns[8],
            liquidity=Liquidity(columns[9]),
            model=FillModel(columns[10]),
            reason=columns[11],
            filled_ms=columns[12],
        )

    def _decision(self, core: Sequence[Any], answer_row: Sequence[Any] | None) -> Decision | None:
        if core[4] is None:
            return None
        outcome = self._interned.outcome(core[4])
        _, action, reason, allowed, refused_by, gate_set_key, _, passed, regime, unfilled = outcome
        measures = dict(zip(STEP_GATES, core[MEASURES_FROM:MARKS_FROM], strict=True))
        if answer_row is not None:
            judged = answer_row[ANSWER_MEASURES_FROM:]
            measures.update(zip(ANSWER_GATES, judged, strict=True))
        gate_set = self._interned.gate_set(gate_set_key)
        return Decision(
            DecisionOutcome(
                Action(action),
                reason,
                bool(allowed),
                refused_by,
                gate_set,
                passed,
                Regime(regime),
                unfilled,
            ),
            core[5],
            tuple(measures.get(gate) for gate in gate_set.gates),
        )

    def _book(
        self, book: int, holding: int, marked: Sequence[Any]
    ) -> tuple[Position | None, Account]:
        row = self._interned.holding(holding, book)
        quantity, entry_notional, realized, fees, funding, cash, *sums = row[4:]
        unrealized, account_unrealized, equity = marked
        position = None
        if quantity is not None:
            position = Position(quantity, entry_notional, realized, unrealized, fees, funding)
        if account_unrealized is None:
            account_unrealized = unrealized
        if equity is None:
            equity = cash + account_unrealized
        account_realized, account_fees, account_funding = sums
        return position, Account(
            cash, equity, account_realized, account_unrealized, account_fees, account_funding
        )

    def _twin(self, row: Sequence[Any], fills: Sequence[Sequence[Any]]) -> TwinStep:
        _, book, holding, *marked, confirmed = row
        position, account = self._book(book, holding, marked)
        name = self._interned.holding(holding, book)[2]
        return TwinStep(
            name,
            position or Position(),
            account,
            tuple(self.fill(fill[4:]) for fill in fills if fill[1] == book),
            bool(confirmed),
        )


def _number(stored: float | None) -> float:
    """Return a number that was stored as null where it was not finite."""
    return nan if stored is None else stored


def _explanation(columns: Sequence[Any]) -> Explanation | None:
    """Return the explanation of an answer's columns; None where there is no entropy blob."""
    confidence, content_free, recent, older, shift, error, entropy, buckets = columns
    if entropy is None:
        return None
    return Explanation(
        _number(confidence),
        _number(content_free),
        _number(recent),
        _number(older),
        shift,
        _number(error),
        entropy,
        buckets,
    )
