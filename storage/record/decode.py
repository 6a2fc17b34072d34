"""Rows to ``Step``, ``RunRow`` and ``Event``, the inverse of ``encode``; pure."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from functools import lru_cache
from math import nan
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
from msgspec import Struct

from tracepaper.storage.record.columns import (
    ANSWER_GATES,
    BAR_FIELDS,
    EXPLANATION_COLUMNS,
    FLAG,
    FORECAST_COLUMNS,
    GIVEN_BITS,
    HORIZONS,
    PLAUSIBLE,
    SOURCE_CODES,
    STEADY_GATES,
    TABLES,
    measure_name,
    usual_measure,
)
from tracepaper.storage.record.interning import OUTCOMES_KEPT
from tracepaper.storage.record.rows import EVENT_TYPES, At, gather, money_factor
from tracepaper.strategies.errors import DataInvalid, shown
from tracepaper.strategies.types.decisions import (
    Account,
    Decision,
    DecisionOutcome,
    Explanation,
    Fill,
    Forecast,
    GateSet,
    HeadForecasts,
    LedgerEntry,
    LimitBreach,
    Order,
    Position,
    PredictionTimeout,
    RunRow,
    ShadowStep,
    Step,
)
from tracepaper.strategies.types.market import Bar, CloseStart

if TYPE_CHECKING:
    from tracepaper.strategies.types.decisions import Prediction
    from tracepaper.strategies.types.market import Event

STEP: Final = At("steps")
EVENT: Final = At("events")
STATE: Final = At("states")
ANSWER: Final = At("answers")
OUTCOME: Final = At("outcomes")
HOLDING: Final = At("holdings")
SHADOW_STEP: Final = At("shadow_steps")
FILL: Final = At("fills")
HALT: Final = At("halts")
SOURCES: Final = {code: source for source, code in SOURCE_CODES.items()}


_FORECAST: Final = gather("answers", *FORECAST_COLUMNS)
_EXPLANATION: Final = gather("answers", *EXPLANATION_COLUMNS[:-1])
_ANSWER_MEASURES: Final = gather("answers", *map(measure_name, ANSWER_GATES))
_FINITE: Final[int] = getattr(ANSWER, measure_name("finite"))
BAR_READ: Final = (
    *("sequence", "ignored", *BAR_FIELDS),
    *("instrument", "market_delay_ms", "seen_delay_ms", "source"),
)
"""The columns of ``steps`` from which a bar is decoded, and the step's sequence."""
_BAR: Final = gather("steps", *BAR_READ)


_Field = tuple[str, int, type[StrEnum] | type[bool] | None]
"""A column's name, its index in the row, and the type to convert to; None: no conversion."""


def _fields(table: str, record_type: type[Struct]) -> tuple[_Field, ...]:
    """Return the fields of *record_type* that are columns of *table*."""
    at = At(table)
    return tuple(
        (column.name, getattr(at, column.name), bool if column.scale == FLAG else column.enum)
        for column in TABLES[table]
        if column.name in record_type.__struct_fields__
    )


_ORDER: Final = _fields("orders", Order)
_FILL: Final = _fields("fills", Fill)
_ENTRY: Final = _fields("ledger", LedgerEntry)
_OUTCOME: Final = _fields("outcomes", DecisionOutcome)


_measures: Final = msgspec.json.Decoder(dict[str, float | None]).decode


class StoredRows(NamedTuple):
    """The rows of one step, as read from the database."""

    core: Sequence[Any]
    sparse: Mapping[str, Sequence[Sequence[Any]]]  # by table, in the order of ``SPARSE_TABLES``

    def row(self, table: str) -> Sequence[Any] | None:
        """Return the step's first row in *table*, if it has one."""
        rows = self.sparse.get(table, ())
        return rows[0] if rows else None

    @property
    def state(self) -> bytes | None:
        """The engine's state after the step; None if the step did not change it."""
        row = self.row("states")
        return None if row is None else row[STATE.state]


class InternedRows(NamedTuple):
    """Look-ups of the rows that steps share."""

    outcome: Callable[[int], Sequence[Any]]  # by sequence
    holding: Callable[[int, int], Sequence[Any]]  # by sequence and account
    shadows: Callable[[int], Sequence[Sequence[Any]]]  # rows of ``shadow_steps`` by sequence
    gate_set: Callable[[int], GateSet]


def heads_of(packed: bytes | None) -> HeadForecasts | None:
    """Read the column ``answers.heads``."""
    return None if packed is None else msgspec.msgpack.decode(packed, type=HeadForecasts)


def buckets_of(text: str | None) -> bytes:
    """Read the column ``answers.buckets``."""
    return b"" if text is None else array("i", msgspec.json.decode(text)).tobytes()


def _explanation(row: Sequence[Any]) -> Explanation:
    fields = [*_EXPLANATION(row), buckets_of(row[ANSWER.buckets])]
    return Explanation(*fields)


def _noted(text: str | None) -> dict[str, float | str | None] | None:
    return None if text is None else msgspec.json.decode(text, type=dict[str, float | str | None])


@lru_cache(64)
def _layout_of(given: int, size: int) -> tuple[int, Callable[[bytes], tuple[Any, ...]]]:
    """Return the number of horizons in *size* bytes of ``answers.horizons``, and their unpacker.

    *given* holds the ``GIVEN_BITS`` of the columns.
    """
    columns = given.bit_count()
    count = (size - 1 + 8 * columns) // (4 + 8 * columns)
    layout = HORIZONS.format(horizons=count, numbers=columns * (count - 1))
    return count, struct.Struct(layout.replace("B", "x")).unpack


_NOT_FINITE: Final = Forecast((1,), (nan,), (nan,), (nan,), (nan,), (nan,), (nan,))
_IMPOSSIBLE: Final = (
    *(ValueError, LookupError, TypeError, AttributeError),
    *(struct.error, msgspec.MsgspecError),
)
"""Exceptions that decoding a damaged row can raise; our own errors are none of them."""


def _damaged(step: object, error: Exception) -> DataInvalid:
    return DataInvalid(
        f"Step {shown(step)} holds what no step can hold ({error}); run `tracepaper audit "
        "verify` and restore a backup."
    )


class StepDecoder:
    """Turns the rows of one run back into steps."""

    def __init__(self, run: RunRow, interned: InternedRows) -> None:
        self._instruments = [instrument.id for instrument in run.instruments]
        self._factors = [money_factor(instrument) for instrument in run.instruments]
        self._interval_ms = run.interval_ms
        self._interned = interned
        self.outcome = lru_cache(OUTCOMES_KEPT)(self._read_outcome)  # many steps share an outcome

    def step(self, rows: StoredRows) -> Step:
        """Return the step that *rows* hold; raise ``DataInvalid`` if they are damaged."""
        try:
            return self._step(rows)
        except _IMPOSSIBLE as error:
            raise _damaged(rows.core[STEP.sequence], error) from error

    def _step(self, rows: StoredRows) -> Step:
        core = rows.core
        answer_row, event_row = rows.row("answers"), rows.row("events")
        event: Event
        if core[STEP.open_time_ms] is not None:
            event = self.unit_of(_BAR(core))
        elif event_row is None:
            raise LookupError("its event is missing")
        else:
            event = self.event(event_row)
        position, account = self._account(0, core, STEP, core)
        fills = rows.sparse.get("fills", ())
        return Step(
            sequence=core[STEP.sequence],
            event=event,
            accepted=core[STEP.ignored] is None,
            decision=self._decision(core, answer_row),
            prediction=None if answer_row is None else self.prediction(answer_row),
            orders=tuple(self.order(row) for row in rows.sparse.get("orders", ())),
            fills=self._fills(fills, 0),
            position=position,
            account=account,
            shadows=tuple(self._shadow(row, core, fills) for row in self.shadow_rows(core)),
            state=rows.state,
            ledger=tuple(map(self.entry, rows.sparse.get("ledger", ()))),
            price_verdict=None if event_row is None else event_row[EVENT.price_verdict],
            halted=None
            if (halt := rows.row("halts")) is None
            else LimitBreach(*halt[HALT.breached :]),
        )

    def shadow_rows(self, core: Sequence[Any]) -> Sequence[Sequence[Any]]:
        """Return the rows of ``shadow_steps`` that *core*, a row of ``steps``, refers to."""
        sequence = core[STEP.shadows]
        return () if sequence is None else self._interned.shadows(sequence)

    def event(self, row: Sequence[Any]) -> Event:
        """Return the event of an ``events`` row; raise ``DataInvalid`` if it is damaged."""
        try:
            fields = msgspec.json.decode(row[EVENT.content])
            fields["market_ms"], fields["seen_ms"] = row[EVENT.market_ms], row[EVENT.seen_ms]
            place = row[EVENT.instrument]
            if place is not None:
                fields.setdefault("instrument", self._instruments[place])
            if (books := row[EVENT.books]) is not None:
                fields["books"] = books
            return msgspec.convert(fields, EVENT_TYPES[row[EVENT.kind]])
        except _IMPOSSIBLE as error:
            raise _damaged(row[EVENT.sequence], error) from error

    def unit_of(self, values: Sequence[Any]) -> Bar | CloseStart:
        """Return the bar or close of a step from *values*, its columns ``BAR_READ``."""
        try:
            (
                _, _, opened_ms, first, high, low, close, volume, turnover,
                place, market_delay_ms, seen_delay_ms, code,
            ) = values  # fmt: skip
            market_ms = opened_ms + self._interval_ms + (market_delay_ms or 0)
            if place is None:
                seen_ms = market_ms + (seen_delay_ms or 0)
                return CloseStart(opened_ms, len(self._instruments), (), market_ms, seen_ms)
            # ``None in (…)`` would take three times as long.
            if first is None or high is None or low is None or close is None or volume is None:
                raise ValueError("a bar without a number")
            # Positional arguments: keywords would take twice as long.
            return Bar(
                self._instruments[place], opened_ms, self._interval_ms, first, high, low, close,
                volume, turnover, market_ms, market_ms + (seen_delay_ms or 0), SOURCES[code],
            )  # fmt: skip
        except _IMPOSSIBLE as error:
            raise _damaged(values[0], error) from error

    def prediction(self, row: Sequence[Any]) -> Prediction:
        """Return the prediction that an ``answers`` row holds."""
        try:
            return self._prediction(row)
        except _IMPOSSIBLE as error:
            raise _damaged(row[ANSWER.sequence], error) from error

    def given(self, row: Sequence[Any]) -> Prediction:
        """Return the prediction as the engine received it.

        A non-finite forecast is stored without its numbers; it is returned as a forecast of NaN.
        """
        is_missing = row[ANSWER.horizon] is None and row[ANSWER.late_deadline_ms] is None
        return _NOT_FINITE if is_missing and row[_FINITE] == 0 else self.prediction(row)

    def _prediction(self, row: Sequence[Any]) -> Prediction:
        if row[ANSWER.late_deadline_ms] is not None:
            return PredictionTimeout(row[ANSWER.late_deadline_ms])
        horizon = row[ANSWER.horizon]
        if horizon is None:
            return None
        packed = row[ANSWER.horizons]
        count, unpack = _layout_of(packed[0], len(packed))
        numbers = unpack(packed)
        horizons, start = numbers[:count], count
        at = horizons.index(horizon)
        columns: list[tuple[float, ...]] = []
        for bit, at_horizon in zip(GIVEN_BITS, _FORECAST(row), strict=True):
            if not packed[0] & bit:
                columns.append(())
                continue
            between, end = start + at, start + count - 1
            number = nan if at_horizon is None else at_horizon  # null: it was not finite
            columns.append((*numbers[start:between], number, *numbers[between:end]))
            start = end
        mean, stdev, down, flat, up, volatility = columns
        # Positional arguments are faster than keywords.
        return Forecast(
            horizons, mean, stdev, down, flat, up, volatility,
            None if row[ANSWER.entropy] is None else _explanation(row),
            row[ANSWER.members] or b"",
            heads_of(row[ANSWER.heads]),
        )  # fmt: skip

    def order(self, row: Sequence[Any]) -> Order:
        """Return the order of an ``orders`` row."""
        return Order(**self._named(_ORDER, row))

    def fill(self, row: Sequence[Any]) -> Fill:
        """Return the fill of a ``fills`` row."""
        return Fill(**self._named(_FILL, row))

    def entry(self, row: Sequence[Any]) -> LedgerEntry:
        """Return the movement of cash of a ``ledger`` row."""
        return LedgerEntry(**self._named(_ENTRY, row))

    def _fills(self, rows: Sequence[Sequence[Any]], number: int) -> tuple[Fill, ...]:
        return tuple(self.fill(row) for row in rows if row[FILL.account] == number)

    def _named(self, fields: Sequence[_Field], row: Sequence[Any]) -> dict[str, Any]:
        """Return the fields of a row by name, without nulls, which stand for the default."""
        try:
            named: dict[str, Any] = {
                name: row[at] if convert is None else convert(row[at])
                for name, at, convert in fields
                if row[at] is not None
            }
        except ValueError as error:  # a word that no run writes
            raise _damaged(row[FILL.sequence], error) from error
        if "instrument" in named:
            named["instrument"] = self._instruments[named["instrument"]]
        return named

    def _decision(self, core: Sequence[Any], answer_row: Sequence[Any] | None) -> Decision | None:
        if core[STEP.outcome] is None:
            return None
        outcome = self.outcome(core[STEP.outcome])
        gate_set, note = outcome.gate_set, None
        pairs = zip(gate_set.gates, gate_set.thresholds, strict=True)
        measures: dict[str, float | None]
        measures = {
            gate: usual_measure(gate, threshold)
            for gate, threshold in pairs
            if gate in STEADY_GATES
        }
        measures[PLAUSIBLE] = core[STEP.measure_plausible]
        if (stored := core[STEP.measures]) is not None:
            measures |= _measures(stored)
        if answer_row is not None:
            note = _noted(answer_row[ANSWER.note])
            measures.update(zip(ANSWER_GATES, _ANSWER_MEASURES(answer_row), strict=True))
        return Decision(
            outcome,
            core[STEP.target_quantity],
            tuple(measures.get(gate) for gate in gate_set.gates),
            note,
        )

    def _read_outcome(self, sequence: int) -> DecisionOutcome:
        named = self._named(_OUTCOME, self._interned.outcome(sequence))
        named["gate_set"] = self._interned.gate_set(named["gate_set"])
        return DecisionOutcome(**{"refused_by": None, **named})

    def _account(
        self, number: int, marks: Sequence[Any], at: At, core: Sequence[Any]
    ) -> tuple[Position | None, Account]:
        """Return position and account of the account *number*, valued by the row *marks*.

        Marks that are null are computed from the close of the step, its row *core* of ``steps``.
        """
        row = self._interned.holding(marks[at.holding], number)
        unrealized, account_unrealized = marks[at.unrealized_pnl], marks[at.account_unrealized_pnl]
        equity = marks[at.equity]
        if unrealized is None and marks is not core:
            worth = core[STEP.close] * row[HOLDING.quantity] * self._factors[core[STEP.instrument]]
            unrealized = worth - row[HOLDING.entry_notional]
        position = None
        if row[HOLDING.quantity] is not None:
            if unrealized is None:
                raise ValueError("a position without its profit")
            position = Position(
                row[HOLDING.quantity],
                row[HOLDING.entry_notional],
                row[HOLDING.realized_pnl],
                unrealized,
                row[HOLDING.fees_paid],
                row[HOLDING.funding_paid],
                row[HOLDING.margin] or 0,
            )
        marked = unrealized if account_unrealized is None else account_unrealized
        if marked is None:
            raise ValueError("an account without its profit")
        cash = row[HOLDING.cash]
        return position, Account(
            cash,
            cash + marked if equity is None else equity,
            row[HOLDING.account_realized_pnl],
            marked,
            row[HOLDING.account_fees_paid],
            row[HOLDING.account_funding_paid],
        )

    def _shadow(
        self, row: Sequence[Any], core: Sequence[Any], fills: Sequence[Sequence[Any]]
    ) -> ShadowStep:
        number = row[SHADOW_STEP.account]
        position, account = self._account(number, row, SHADOW_STEP, core)
        return ShadowStep(
            self._interned.holding(row[SHADOW_STEP.holding], number)[HOLDING.shadow],
            position or Position(),
            account,
            self._fills(fills, number),
            bool(row[SHADOW_STEP.confirmed]),
        )
