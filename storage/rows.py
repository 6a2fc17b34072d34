"""The layout of a step's rows, shared by everything that writes or reads them; pure.

A row is a tuple in the column order of its table in ``schema.py``, so that it can be inserted,
hashed and compared as it stands. ``steps`` rows leave out their last column, the digest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
from msgspec import Struct

from tracepaper.strategies.errors import DataInvalid, InvariantBroken
from tracepaper.strategies.gates import GATES, gate_order
from tracepaper.strategies.types import (
    Bar,
    Category,
    Command,
    Event,
    Funding,
    Gap,
    Instrument,
    InstrumentChange,
    Mark,
    ModelChange,
    Prune,
    Quote,
    Reading,
    Run,
    RunEnd,
    RunKind,
    Source,
    Timer,
    Trade,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

Value = int | float | str | bytes | bytearray | None
Row = tuple[Value, ...]
SparseRow = tuple[str, Row]
"""A row and the name of its table."""

SEQUENCE_BITS: Final = 28
SEQUENCE_LIMIT: Final = 2**SEQUENCE_BITS
"""Steps that one run can hold: 268 million."""

ANSWER_GATES: Final = tuple(name for name in gate_order() if GATES[name].of_prediction)
"""Gates that judge what the forecaster answered; their measures lie in ``answers``."""

STEP_GATES: Final = tuple(name for name in gate_order() if not GATES[name].of_prediction)
"""Gates that judge bar, quote and account; their measures lie in ``steps``."""

MEASURE_COLUMNS: Final = tuple(f"measure_{gate.replace('.', '_')}" for gate in STEP_GATES)
"""The columns of ``steps`` that hold the measures of ``STEP_GATES``."""

SOURCES: Final = tuple(Source)
SOURCE_CODES: Final = {source: code for code, source in enumerate(SOURCES)}

EVENT_TYPES: Final[Mapping[str, type[Event]]] = {
    "bar": Bar,
    "quote": Quote,
    "trade": Trade,
    "mark": Mark,
    "funding": Funding,
    "instrument_change": InstrumentChange,
    "model_change": ModelChange,
    "gap": Gap,
    "command": Command,
    "timer": Timer,
    "end": RunEnd,
    "prune": Prune,
    "reading": Reading,
}
EVENT_KINDS: Final = {type_: kind for kind, type_ in EVENT_TYPES.items()}


def step_key(run_key: int, sequence: int) -> int:
    """Return the key of step *sequence* of run *run_key* in every table."""
    return (run_key << SEQUENCE_BITS) | sequence


def sequence_of(step: int) -> int:
    """Return the sequence that the key *step* names."""
    return step & (SEQUENCE_LIMIT - 1)


class Shape(NamedTuple):
    """What a step consists of, kept in ``steps.shape`` so that a missing row has a name.

    Bits 0 to 3 are the flags, then each count takes one byte. An accepted bar with nothing
    else is 1, which SQLite stores without a byte.
    """

    accepted: bool
    other_event: bool  # the event is in ``events``; in ``bars`` otherwise
    answers: bool
    outcomes: bool
    holdings: int
    orders: int
    fills: int
    twin_steps: int
    twin_fills: int

    @classmethod
    def unpack(cls, number: int) -> Shape:
        """Return the shape that *number* encodes."""
        flags = (bool(number >> bit & 1) for bit in range(4))
        counts = (number >> bit & 255 for bit in range(4, 44, 8))
        return cls(*flags, *counts)

    def pack(self) -> int:
        """Return the shape as one number; raise ``InvariantBroken`` beyond 255 rows of a kind."""
        number = self.accepted | self.other_event << 1 | self.answers << 2 | self.outcomes << 3
        for bit, count in zip(range(4, 44, 8), self[4:], strict=True):
            if count > 255:  # one byte
                raise InvariantBroken(f"A step holds at most 255 rows of a kind, not {count}.")
            number |= count << bit
        return number

    def counts(self) -> dict[str, int]:
        """Return how many rows each table holds for the step, apart from ``steps``."""
        return {
            "bars": int(not self.other_event),
            "events": int(self.other_event),
            "answers": int(self.answers),
            "outcomes": int(self.outcomes),
            "holdings": self.holdings,
            "orders": self.orders,
            "fills": self.fills,
            "twin_steps": self.twin_steps,
            "twin_fills": self.twin_fills,
        }


SHAPE_UNITS: Final = {
    "answers": 1 << 2,
    "outcomes": 1 << 3,
    **{table: 1 << 4 + 8 * place for place, table in enumerate(
        ("holdings", "orders", "fills", "twin_steps", "twin_fills")
    )},
}  # fmt: skip
"""What one row of each sparse table adds to ``steps.shape``."""


class StepRows(Struct, frozen=True, gc=False):
    """The rows of one step, ready to be hashed and inserted."""

    core: Row  # of ``steps``, without its digest
    event: Row  # of ``bars`` or of ``events``
    gate_set_sha256: bytes | None  # of the decision's gate set
    sparse: tuple[SparseRow, ...]  # in the order of ``SPARSE_TABLES``
    compact: Row | None  # of ``steps`` without nulls and digest, where that can be
    compact_columns: tuple[str, ...]
    gate_set: tuple[Row, ...]  # rows of a gate set met for the first time

    covered: bytes  # what the chain covers besides the step's own rows

    @property
    def payload(self) -> tuple[object, ...]:
        """What the chain hashes of the step itself."""
        return (self.core, self.event, self.gate_set_sha256, *self.sparse)


SPARSE_TABLES: Final = (
    "answers",
    "outcomes",
    "holdings",
    "orders",
    "fills",
    "twin_steps",
    "twin_fills",
)
"""The tables of which a step has rows only now and then, in the order in which it is hashed."""

KEPT_TABLES: Final = ("outcomes", "holdings", "orders", "fills", "twin_fills")
"""Sparse tables of which a prune keeps every row: trades, and what later steps refer to."""

KEPT_EVENTS: Final = (
    "funding",
    "gap",
    "command",
    "instrument_change",
    "model_change",
    "end",
    "prune",
    "reading",
)
"""Kinds of events that a prune keeps."""


def kept_rows(event: Row | None, sparse: Iterable[SparseRow]) -> list[SparseRow]:
    """Return those rows of a step that a prune keeps; *event* is its row in ``events``, if any."""
    kept = [pair for pair in sparse if pair[0] in KEPT_TABLES]
    if event is not None and event[1] in KEPT_EVENTS:
        kept.insert(0, ("events", event))
    return kept


# ---------------------------------------------------------------- the run and its instruments


class Previous(NamedTuple):
    """The run opened before in the same database, as it stood then."""

    run_id: str | None = None
    step_count: int | None = None
    head: bytes | None = None


FIRST: Final = Previous()


def run_row(run: Run, run_key: int, opened_gate_sets: int, previous: Previous = FIRST) -> Row:
    """Return the row of *run* as opened: the columns that never change."""
    return (
        run_key,
        run.run_id,
        run.kind.value,
        run.started_at_ms,
        run.parent_run_id,
        run.period_start_ms,
        run.interval_ms,
        run.config,
        run.config_sha256,
        run.code_version,
        run.strategy,
        run.strategy_sha256,
        run.model_id,
        run.model_sha256,
        run.path,
        run.device,
        run.dtype,
        run.threads,
        run.backend,
        run.torch_version,
        run.instruction_set,
        run.libraries,
        msgspec.json.encode(run.warnings).decode(),
        *previous,
        opened_gate_sets,
    )


def run_of(row: Sequence[Any], instruments: Iterable[Sequence[Any]]) -> Run:
    """Return the run of its row as opened and the rows of its instruments, in their order."""
    try:
        return Run(
            run_id=row[1],
            kind=RunKind(row[2]),
            started_at_ms=row[3],
            parent_run_id=row[4],
            period_start_ms=row[5],
            instruments=tuple(instrument_of(instrument) for instrument in instruments),
            interval_ms=_length(row[6]),
            config=row[7],
            config_sha256=row[8],
            code_version=row[9],
            strategy=row[10],
            strategy_sha256=row[11],
            model_id=row[12],
            model_sha256=row[13],
            path=row[14],
            device=row[15],
            dtype=row[16],
            threads=row[17],
            backend=row[18],
            torch_version=row[19],
            instruction_set=row[20],
            libraries=row[21],
            warnings=tuple(msgspec.json.decode(row[22])),
        )
    except (ValueError, TypeError, msgspec.MsgspecError) as error:
        raise DataInvalid(
            f"The row of run {row[1]} holds what no run has ({error}); run `tracepaper audit "
            "verify` and restore a backup."
        ) from error


def instrument_row(instrument: Instrument, run_key: int, place: int) -> Row:
    """Return the row of *instrument*, the run's instrument number *place*."""
    return (
        run_key,
        place,
        instrument.id,
        instrument.category.value,
        instrument.symbol,
        instrument.base_coin,
        instrument.quote_coin,
        instrument.price_decimals,
        instrument.quantity_decimals,
        instrument.volume_decimals,
        instrument.turnover_decimals,
        instrument.tick_size,
        instrument.quantity_step,
        instrument.min_quantity,
        instrument.max_quantity,
        instrument.min_notional,
        instrument.funding_interval_minutes,
        instrument.status,
    )


def instrument_of(row: Sequence[Any]) -> Instrument:
    """Return the instrument of its row."""
    _, _, _, category, *fields = row
    return Instrument(Category(category), *fields)


def _length(interval_ms: int) -> int:
    if interval_ms <= 0:
        raise ValueError(f"an interval of {interval_ms} ms")
    return interval_ms
