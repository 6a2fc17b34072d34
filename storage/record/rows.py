"""The layout of a step's rows; pure.

A row is a tuple in the column order of its table in ``columns.TABLES``, so that it can be inserted,
hashed and compared as it stands. ``steps`` rows leave out their last column, the digest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from hashlib import sha256
from itertools import compress
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Struct

from tracepaper.storage.record.columns import (
    OPENED_UNTIL,
    SEQUENCE_BITS,
    SEQUENCE_LIMIT,
    TABLES,
    Row,
    Value,
    place,
    stored_columns,
)
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.types.decisions import Run
from tracepaper.strategies.types.market import (
    Bar,
    BookUpdate,
    Category,
    Closed,
    Command,
    CorporateAction,
    CovariatesRead,
    Depths,
    Event,
    FrameBar,
    Funding,
    Gap,
    Instrument,
    InstrumentChange,
    Mark,
    ModelChange,
    ParityCheck,
    Prune,
    Quote,
    Retrained,
    RiskTier,
    RunEnd,
    RunKind,
    Trade,
    UniverseChange,
)

SparseRow = tuple[str, Row]
"""A row and the name of its table."""

SPARSE_TABLES: Final = (
    "events",
    "states",
    "answers",
    "outcomes",
    "holdings",
    "orders",
    "fills",
    "twin_steps",
    "twin_fills",
    "ledger",
    "halts",
)
"""The tables of which a step has rows only now and then, in the order in which it is hashed."""

KEPT_TABLES: Final = (
    "outcomes", "holdings", "orders", "fills", "twin_fills", "ledger", "halts",
)  # fmt: skip
"""Sparse tables of which a prune keeps every row: trades, halts, what later steps refer to."""

RUN_TABLES: Final = ("steps", *SPARSE_TABLES)
"""The tables keyed by step, in the order in which a step's rows are written."""
OF_A_RUN: Final = ("instruments", "gate_sets", "prunes")
"""The other tables of which every row belongs to a run."""
OF_A_STEP: Final = ("states", "answers", "twin_steps")
"""The tables of which no row outlives its step."""

INDEXED_EVENTS: Final = (
    "funding",
    "gap",
    "command",
    "instrument_change",
    "model_change",
    "end",
    "prune",
    "covariates",
)
"""Kinds of events that are found by their place in their run without reading those between."""
INDEXED_KINDS: Final = f"kind IN ({', '.join(repr(kind) for kind in INDEXED_EVENTS)})"
"""The condition of their index."""
KEPT_EVENTS: Final = (*INDEXED_EVENTS, "retrained", "parity", "corporate_action", "universe")
"""Kinds of events that a prune keeps."""

EVENT_TYPES: Final[Mapping[str, type[Event]]] = {
    "bar": Bar,
    "quote": Quote,
    "depth": Depths,
    "book": BookUpdate,
    "trade": Trade,
    "mark": Mark,
    "funding": Funding,
    "corporate_action": CorporateAction,
    "instrument_change": InstrumentChange,
    "model_change": ModelChange,
    "gap": Gap,
    "command": Command,
    "closed": Closed,
    "frame_bar": FrameBar,
    "end": RunEnd,
    "prune": Prune,
    "covariates": CovariatesRead,
    "retrained": Retrained,
    "parity": ParityCheck,
    "universe": UniverseChange,
}
HALTED: Final = "halted"
"""The kind under which ``v_events`` shows a row of ``halts``."""
EVENT_KINDS: Final[Mapping[type[Struct], str]] = {
    type_: kind for kind, type_ in EVENT_TYPES.items()
}


def step_key(run_key: int, sequence: int) -> int:
    """Return the key of step *sequence* of run *run_key* in every table."""
    return (run_key << SEQUENCE_BITS) | sequence


def sequence_of(step: int) -> int:
    """Return the sequence that the key *step* names."""
    return step & (SEQUENCE_LIMIT - 1)


class At:
    """Where each column stands in a row of a table, by its name: ``At("steps").open``."""

    def __init__(self, table: str) -> None:
        self.__dict__.update({name: at for at, name in enumerate(stored_columns(table))})

    def __getattr__(self, name: str) -> int:
        raise AttributeError(f"no column {name}")


class RowLayout:
    """Which columns of a table a row fills: what is null is neither hashed nor inserted."""

    __slots__ = ("columns", "is_whole", "present", "sha256", "table")

    def __init__(self, table: str, present: tuple[bool, ...]) -> None:
        names = stored_columns(table)
        self.table = table
        self.present = present
        self.is_whole = all(present)
        self.columns = tuple(compress(names, present))
        self.sha256 = sha256(f"{table}({','.join(self.columns)})".encode()).digest()

    def values(self, row: Sequence[Value]) -> Row:
        """Return the values of *row* without its nulls."""
        return tuple(row) if self.is_whole else tuple(compress(row, self.present))

    def row(self, values: Sequence[Value]) -> Row:
        """Return the row of those *values*, with its nulls."""
        filled = iter(values)
        return tuple([next(filled) if is_present else None for is_present in self.present])


@lru_cache(maxsize=4096)
def layout(table: str, present: tuple[bool, ...]) -> RowLayout:
    """Return the one layout of *table* with the columns that are *present*."""
    return RowLayout(table, present)


_NULLABLE: Final = {
    table: tuple(at for at, column in enumerate(columns) if column.null)
    for table, columns in TABLES.items()
}
_LAYOUTS: Final[dict[tuple[str, int, tuple[bool, ...]], RowLayout]] = {}


def layout_of(table: str, row: Sequence[Value]) -> RowLayout:
    """Return the layout of *row*, which may leave out the last columns of its table."""
    key = (table, len(row), tuple([row[at] is None for at in _NULLABLE[table]]))
    row_layout = _LAYOUTS.get(key)
    if row_layout is None:
        present = tuple([value is not None for value in row])
        row_layout = _LAYOUTS[key] = layout(table, present)
    return row_layout


LaidRow = tuple[RowLayout, Row]
"""The layout of a row of a sparse table, and the row's values without its nulls."""


def laid_row(table: str, row: Sequence[Value]) -> LaidRow:
    """Return layout and values of one row."""
    row_layout = layout_of(table, row)
    return row_layout, row_layout.values(row)


def laid(sparse: Iterable[SparseRow]) -> list[LaidRow]:
    """Return layouts and values of the *sparse* rows of a step."""
    return [laid_row(table, row) for table, row in sparse]


class StepShape(NamedTuple):
    """What a step consists of, kept in ``steps.shape`` so that a missing row has a name.

    Bits 0 to 4 are the flags, then each count takes one byte, whose 255 says 255 or more. An
    accepted bar with nothing else is 1, which SQLite stores without a byte.
    """

    accepted: bool
    events: bool  # the event is in ``events``; it is the bar in ``steps`` otherwise
    states: bool
    answers: bool
    outcomes: bool
    twin_steps: int
    holdings: int
    orders: int
    fills: int
    twin_fills: int
    ledger: int
    halts: int

    @classmethod
    def unpack(cls, number: int) -> StepShape:
        """Return the shape that *number* encodes."""
        flags = (bool(number >> bit & 1) for bit in range(5))
        counts = (number >> bit & 255 for bit in range(5, 61, 8))
        return cls(*flags, *counts)

    def counts(self) -> dict[str, int]:
        """Return how many rows each sparse table holds for the step; 255 is 255 or more."""
        return {table: int(getattr(self, table)) for table in SPARSE_TABLES}


BYTE: Final = 255
SHAPE_UNITS: Final = {
    "events": 1 << 1,
    "states": 1 << 2,
    "answers": 1 << 3,
    "outcomes": 1 << 4,
    "twin_steps": 1 << 5,
    "holdings": 1 << 13,
    "orders": 1 << 21,
    "fills": 1 << 29,
    "twin_fills": 1 << 37,
    "ledger": 1 << 45,
    "halts": 1 << 53,
}
"""What one row of each sparse table adds to ``steps.shape``, up to 255 of them."""


@lru_cache(maxsize=4096)
def shape_of(tables: tuple[str, ...]) -> int:
    """Return the shape of rows in these sparse *tables*, each named once a row: not accepted."""
    counts = Counter(tables)
    return sum(min(count, BYTE) * SHAPE_UNITS[table] for table, count in counts.items())


class StepRows(Struct, frozen=True, gc=False):
    """The rows of one step, ready to be hashed and inserted."""

    values: Row  # of ``steps``, without nulls and without its digest
    layout: RowLayout
    sparse: tuple[SparseRow, ...]  # in the order of ``SPARSE_TABLES``
    gate_set: tuple[Row, ...]  # rows of a gate set met for the first time
    covered: bytes  # what the chain covers besides the step's own rows
    prefix: bytes  # the hash of the rows' layouts, and the hash of the decision's gate set
    payload: Row  # all values of its rows, which the chain hashes

    @property
    def core(self) -> Row:
        """The row of ``steps``, without its digest."""
        return self.layout.row(self.values)


@lru_cache(maxsize=4096)
def layouts_sha256(layouts: tuple[RowLayout, ...]) -> bytes:
    """Return the hash of the layouts of a step's rows: it says what each hashed value is."""
    return sha256(b"".join([row_layout.sha256 for row_layout in layouts])).digest()


NO_GATES: Final = bytes(32)
"""Stands for the hash of a gate set where a step decided nothing."""


def canonical(core: LaidRow, sparse: Iterable[LaidRow]) -> tuple[bytes, Row]:
    """Return the hash of the layouts of a step's rows, and all of their values.

    The key of a sparse row is left out: it is the step's own.
    """
    layouts, payload = [core[0]], list(core[1])
    for row_layout, values in sparse:
        layouts.append(row_layout)
        payload += values[1:]
    return layouts_sha256(tuple(layouts)), tuple(payload)


_KIND_AT: Final = place("events", "kind")  # among the values too: no null comes before it
_KEPT: Final = frozenset(KEPT_TABLES)


def kept_rows(sparse: Iterable[LaidRow]) -> list[LaidRow]:
    """Return those of the *sparse* rows of a step that a prune keeps."""
    return [
        (row_layout, values)
        for row_layout, values in sparse
        if row_layout.table in _KEPT
        or (row_layout.table == "events" and values[_KIND_AT] in KEPT_EVENTS)
    ]


# ---------------------------------------------------------------- the run and its instruments


class Previous(NamedTuple):
    """The run opened before in the same database, as it stood then."""

    run_id: str | None = None
    step_count: int | None = None
    head: bytes | None = None


FIRST: Final = Previous()
OPENED_AT: Final = place("runs", OPENED_UNTIL)
"""Where the columns of ``runs`` end that never change."""
_OF_RUN: Final = TABLES["runs"][:OPENED_AT]


def run_row(run: Run, run_key: int, opened_gate_sets: int, previous: Previous = FIRST) -> Row:
    """Return the row of *run* as opened: the columns that never change."""
    of_opening: dict[str, Value] = {
        "run_key": run_key,
        "warnings": msgspec.json.encode(run.warnings).decode(),
        "previous_run_id": previous.run_id,
        "previous_step_count": previous.step_count,
        "previous_head": previous.head,
        "opened_gate_sets": opened_gate_sets,
    }
    return tuple(
        [
            of_opening[column.name] if column.name in of_opening else column.value(run)
            for column in _OF_RUN
        ]
    )


def run_of(row: Sequence[Any], instruments: Iterable[Sequence[Any]]) -> Run:
    """Return the run of its row as opened and the rows of its instruments, in their order."""
    named = dict(zip(stored_columns("runs"), row, strict=False))
    try:
        fields = {name: named[name] for name in Run.__struct_fields__ if name in named}
        fields["kind"] = RunKind(named["kind"])
        fields["sees_account"] = bool(named.get("sees_account"))
        fields["interval_ms"] = _length(named["interval_ms"])
        fields["warnings"] = tuple(msgspec.json.decode(named["warnings"]))
        fields["instruments"] = tuple(instrument_of(instrument) for instrument in instruments)
        return Run(**fields)
    except (ValueError, TypeError, msgspec.MsgspecError) as error:
        raise DataInvalid(
            f"The row of run {named['run_id']} holds what no run has ({error}); run `tracepaper "
            "audit verify` and restore a backup."
        ) from error


def instrument_row(instrument: Instrument, run_key: int, at: int) -> Row:
    """Return the row of *instrument*, the run's instrument number *at*."""
    columns = TABLES["instruments"][2:]
    return (run_key, at, *[column.value(instrument) for column in columns])


def instrument_of(row: Sequence[Any]) -> Instrument:
    """Return the instrument of its row."""
    named = dict(zip(stored_columns("instruments"), row, strict=True))
    fields = {
        name: named[name] for name in Instrument.__struct_fields__ if named.get(name) is not None
    }
    if "risk_tiers" in fields:
        fields["risk_tiers"] = msgspec.json.decode(fields["risk_tiers"], type=tuple[RiskTier, ...])
    return Instrument(**{**fields, "category": Category(named["category"])})


def _length(interval_ms: int) -> int:
    if interval_ms <= 0:
        raise ValueError(f"an interval of {interval_ms} ms")
    return interval_ms
