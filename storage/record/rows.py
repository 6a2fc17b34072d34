"""The layout of a step's rows; pure.

A row is a tuple in the column order of ``columns.TABLES``. It is inserted, hashed and compared
without a conversion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from operator import itemgetter
from types import UnionType
from typing import Any, Final, NamedTuple, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Struct

from tracepaper.storage.record.columns import (
    ANSWER_GATES,
    GIVEN_BITS,
    HORIZONS,
    OPENED_UNTIL,
    SOURCE_CODES,
    TABLES,
    Column,
    Row,
    Value,
    measure_name,
    place,
    stored_columns,
)
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.types.decisions import HeadForecasts, RunRow
from tracepaper.strategies.types.market import (
    Bar,
    Category,
    CloseStart,
    Command,
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
    Quote,
    RiskTier,
    RunEnd,
    RunKind,
    Trade,
)
from tracepaper.strategies.units import Notional

SPARSE_TABLES: Final = (
    "events",
    "states",
    "answers",
    "outcomes",
    "holdings",
    "orders",
    "fills",
    "trades",
    "shadow_steps",
    "ledger",
    "halts",
)
"""The tables in which only some steps have rows."""

RUN_TABLES: Final = ("steps", *SPARSE_TABLES)
"""The tables keyed by step, in the order in which a step's rows are written."""
CHAINED_TABLES: Final = (*RUN_TABLES, "gate_sets")
"""The tables whose rows a commit covers, in the order in which they are hashed."""
INDEXED_EVENTS: Final = (
    "funding",
    "gap",
    "command",
    "instrument_change",
    "model_change",
    "end",
    "covariates",
)
"""Kinds of events that have an index by run and sequence."""
INDEXED_KINDS: Final = f"kind IN ({', '.join(repr(kind) for kind in INDEXED_EVENTS)})"
"""The condition of that partial index."""

EVENT_TYPES: Final[Mapping[str, type[Event]]] = {
    "bar": Bar,
    "quote": Quote,
    "depth": Depths,
    "trade": Trade,
    "mark": Mark,
    "funding": Funding,
    "instrument_change": InstrumentChange,
    "model_change": ModelChange,
    "gap": Gap,
    "command": Command,
    "closed": CloseStart,
    "frame_bar": FrameBar,
    "end": RunEnd,
    "covariates": CovariatesRead,
    "parity": ParityCheck,
}
HALTED: Final = "halted"
"""The kind under which ``v_events`` shows a row of ``halts``."""
EVENT_KINDS: Final[Mapping[type[Struct], str]] = {
    type_: kind for kind, type_ in EVENT_TYPES.items()
}


RULES: Final = 2
"""Increase it when a null gets another meaning, or a row is hashed differently."""


_OF_GATES: Final = frozenset(map(measure_name, ANSWER_GATES))


def layout_number(
    tables: Mapping[str, Sequence[Column]] = TABLES,
    events: Mapping[str, type[Struct]] = EVENT_TYPES,
    packings: object = (RULES, HORIZONS, GIVEN_BITS, SOURCE_CODES),
) -> int:
    """Return a number computed from all columns and from the formats packed in some.

    The columns of gates are left out, because a user's gate adds some.
    """
    columns = {
        table: [
            (column.name, column.kind, column.null, column.is_key, column.scale)
            for column in of_table
            if column.name not in _OF_GATES
        ]
        for table, of_table in tables.items()
    }
    fields = [(kind, _shape(event)) for kind, event in events.items()]
    return number_of((columns, fields, _shape(HeadForecasts), packings))


def number_of(layout: object) -> int:
    """Return the first 31 bits of a hash of the text of *layout*."""
    return int.from_bytes(sha256(repr(layout).encode()).digest()[:4], "big") >> 1


def _shape(of: Any) -> object:  # noqa: ANN401 - any annotation
    """Return the fields of a type with their types, recursively."""
    if isinstance(of, type) and issubclass(of, Struct):
        hints = get_type_hints(of)
        return of.__struct_config__.array_like, [
            (name, _shape(hints[name])) for name in of.__struct_fields__
        ]
    kind = get_origin(of) or of
    # The name of a union differs between Python versions.
    name = "" if kind in (Union, UnionType) else getattr(kind, "__name__", repr(kind))
    return name, *map(_shape, get_args(of))


SCHEMA: Final = layout_number()
"""The number of this layout; every digest covers it."""


class At:
    """The index of each column in a row of a table: ``At("steps").open``."""

    def __init__(self, table: str) -> None:
        self.__dict__.update({name: at for at, name in enumerate(stored_columns(table))})

    def __getattr__(self, name: str) -> int:
        raise AttributeError(f"no column {name}")


def gather(table: str, *names: str) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    """Return a function that gets the columns *names* of a row of *table*."""
    return itemgetter(*(place(table, name) for name in names))


# ---------------------------------------------------------------- the run and its instruments


class Previous(NamedTuple):
    """The run opened before in the same database, with its length when this run was opened."""

    run_id: str | None = None
    step_count: int | None = None
    head: bytes | None = None


FIRST: Final = Previous()
OPENED_AT: Final = place("runs", OPENED_UNTIL)
"""The number of leading columns of ``runs`` that never change."""
_OF_RUN: Final = TABLES["runs"][:OPENED_AT]


def run_row(run: RunRow, run_key: int, opened_gate_sets: int, previous: Previous = FIRST) -> Row:
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


def run_of(row: Sequence[Any], instruments: Iterable[Sequence[Any]]) -> RunRow:
    """Return the run of *row*, a row of ``runs``, with the rows of its instruments in order."""
    named = dict(zip(stored_columns("runs"), row, strict=False))
    try:
        fields = {name: named[name] for name in RunRow.__struct_fields__ if name in named}
        fields["kind"] = RunKind(named["kind"])
        fields["sees_account"] = bool(named.get("sees_account"))
        fields["interval_ms"] = _length(named["interval_ms"])
        fields["warnings"] = tuple(msgspec.json.decode(named["warnings"]))
        fields["instruments"] = tuple(instrument_of(instrument) for instrument in instruments)
        return RunRow(**fields)
    except (ValueError, TypeError, msgspec.MsgspecError) as error:
        raise DataInvalid(
            f"The row of run {named['run_id']} holds what no run has ({error}); run `tracepaper "
            "audit verify` and restore a backup."
        ) from error


def instrument_row(instrument: Instrument, run_key: int, at: int) -> Row:
    """Return the row of *instrument*, whose index in the run is *at*."""
    columns = TABLES["instruments"][2:]
    return (run_key, at, *[column.value(instrument) for column in columns])


def instrument_of(row: Sequence[Any]) -> Instrument:
    """Return the instrument of a row of ``instruments``."""
    named = dict(zip(stored_columns("instruments"), row, strict=True))
    fields = {
        name: named[name] for name in Instrument.__struct_fields__ if named.get(name) is not None
    }
    if "risk_tiers" in fields:
        fields["risk_tiers"] = msgspec.json.decode(fields["risk_tiers"], type=tuple[RiskTier, ...])
    return Instrument(**{**fields, "category": Category(named["category"])})


def money_factor(instrument: Instrument) -> int:
    """Return the factor from price x quantity of *instrument* to money; 0 if money is rounded."""
    notional = Notional.of(instrument)
    return notional.multiplier if notional.divisor == 1 else 0


def _length(interval_ms: int) -> int:
    if interval_ms <= 0:
        raise ValueError(f"an interval of {interval_ms} ms")
    return interval_ms
