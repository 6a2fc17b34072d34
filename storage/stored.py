"""Stored rows of a run, read in chunks of steps: what the reader and the chain's check share."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from tracepaper.storage.decode import Interned, StoredRows
from tracepaper.storage.rows import SEQUENCE_LIMIT, SPARSE_TABLES, step_key
from tracepaper.storage.schema import metadata, stored_columns
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.types import Gate, GateSet

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator, Sequence

CHUNK_STEPS: Final = 2048
CACHED_ROWS: Final = 4096

StoredRow = tuple[Any, ...]
_Rows = TypeVar("_Rows", StoredRow, list[StoredRow])


# The interned row of a step lies in its run, under the sequence that the step names.
_OWN_CONFIRMED: Final = (
    "SELECT NULL, b.instrument, max(b.open_time_ms) FROM steps s "
    f"JOIN outcomes o ON o.step = (s.step & ~{SEQUENCE_LIMIT - 1}) | s.outcome "
    "JOIN bars b ON b.step = s.step WHERE s.step BETWEEN ? AND ? AND s.outcome IS NOT NULL "
    "AND o.allowed AND o.action IN ('LONG', 'SHORT') GROUP BY 2"
)
_TWINS_CONFIRMED: Final = (
    "SELECT h.twin, b.instrument, max(b.open_time_ms) FROM twin_steps t "
    f"JOIN holdings h ON h.step = (t.step & ~{SEQUENCE_LIMIT - 1}) | t.holding "
    "AND h.book = t.book JOIN bars b ON b.step = t.step "
    "WHERE t.step BETWEEN ? AND ? AND t.confirmed GROUP BY 1, 2"
)


def select(table: str, where: str) -> str:
    """Return the query for all columns of *table* where *where*, in the order of its key."""
    columns = ", ".join(stored_columns(table))
    keys = ", ".join(column.name for column in metadata.tables[table].primary_key.columns)
    return f"SELECT {columns} FROM {table} WHERE {where} ORDER BY {keys}"


def _range(table: str) -> str:
    return select(table, "step BETWEEN ? AND ?")


_STEPS: Final = _range("steps")
_BARS: Final = _range("bars")
_EVENTS: Final = _range("events")
_SPARSE: Final = tuple((table, _range(table)) for table in SPARSE_TABLES)
_OUTCOME: Final = select("outcomes", "step = ?")
_HOLDING: Final = select("holdings", "step = ? AND book = ?")
_GATE_SETS: Final = select("gate_sets", "run_key = ?")
_GATE_SET: Final = select("gate_sets", "run_key = ? AND gate_set = ?")


class Chunk(NamedTuple):
    """All rows of a range of steps, found by step."""

    last: int  # key of the range's last step
    steps: list[StoredRow]
    bars: dict[int, StoredRow]
    events: dict[int, StoredRow]
    sparse: dict[int, dict[str, list[StoredRow]]]

    def event(self, step: int) -> StoredRow | None:
        """Return the event's row of *step*, if there is one."""
        return self.bars.get(step) or self.events.get(step)

    def rows(self, row: StoredRow) -> StoredRows:
        """Return the rows that belong to the ``steps`` row *row*."""
        event = self.event(row[0])
        if event is None:
            raise DataInvalid(
                f"The event of step {row[0]} is missing; run `tracepaper audit verify`."
            )
        return StoredRows(row[:-1], event, self.sparse.get(row[0], {}))


def run_span(run_key: int) -> tuple[int, int]:
    """Return the first and the last key that a step of the run can have."""
    return step_key(run_key, 0), step_key(run_key + 1, 0) - 1


def confirmed_since(
    connection: sqlite3.Connection, first: int, last: int
) -> Iterator[tuple[str | None, int, int]]:
    """Yield (twin, instrument, open time) of each position's last confirmation in some steps.

    The steps have the keys *first* to *last*; the run's own account has no twin's name.
    """
    for query in (_OWN_CONFIRMED, _TWINS_CONFIRMED):
        yield from connection.execute(query, (first, last))


def latest(
    connection: sqlite3.Connection, run_key: int, column: str, until: int | None = None
) -> bytes | None:
    """Return what the run's last step (up to *until*) with a value in *column* holds there."""
    first, last = run_span(run_key)
    row = connection.execute(
        f"SELECT {column} FROM steps WHERE step BETWEEN ? AND ? AND {column} IS NOT NULL "
        "ORDER BY step DESC LIMIT 1",
        (first, last if until is None else step_key(run_key, until)),
    ).fetchone()
    return None if row is None else row[0]


def read_chunk(connection: sqlite3.Connection, first: int, last: int) -> Chunk:
    """Return the rows of the steps with keys *first* to *last*."""
    span = (first, last)
    # Rows up to *last* never change while a run grows, so the selects need not be one snapshot.
    sparse: dict[int, dict[str, list[StoredRow]]] = {}
    for table, query in _SPARSE:
        for row in connection.execute(query, span):
            sparse.setdefault(row[0], {}).setdefault(table, []).append(row)
    return Chunk(
        last,
        connection.execute(_STEPS, span).fetchall(),
        {row[0]: row for row in connection.execute(_BARS, span)},
        {row[0]: row for row in connection.execute(_EVENTS, span)},
        sparse,
    )


def chunks(connection: sqlite3.Connection, run_key: int, first: int, last: int) -> Iterator[Chunk]:
    """Yield the chunks of run *run_key* from sequence *first* to *last*, both included."""
    for start in range(first, last + 1, CHUNK_STEPS):
        end = min(start + CHUNK_STEPS - 1, last)
        yield read_chunk(connection, step_key(run_key, start), step_key(run_key, end))


def gate_set_rows(connection: sqlite3.Connection, run_key: int) -> dict[int, list[StoredRow]]:
    """Return the rows of every gate set of the run, by the set's key."""
    found: dict[int, list[StoredRow]] = {}
    for row in connection.execute(_GATE_SETS, (run_key,)):
        found.setdefault(row[1], []).append(row)
    return found


def gate_set_of(rows: Sequence[StoredRow]) -> GateSet:
    """Return the gate set of its rows."""
    try:
        return GateSet(tuple(Gate(row[3]) for row in rows), tuple(row[4] for row in rows))
    except ValueError as error:
        raise DataInvalid(
            f"A gate set names a gate that does not exist ({error}); run `tracepaper audit verify` "
            "and restore a backup."
        ) from error


def interned(connection: sqlite3.Connection, run_key: int) -> Interned:
    """Return the look-ups of the rows that steps share; the latest answers are remembered."""

    @lru_cache(maxsize=CACHED_ROWS)
    def outcome(sequence: int) -> StoredRow:
        key = (step_key(run_key, sequence),)
        return _found(connection.execute(_OUTCOME, key).fetchone(), "outcomes", sequence)

    @lru_cache(maxsize=CACHED_ROWS)
    def holding(sequence: int, book: int) -> StoredRow:
        key = (step_key(run_key, sequence), book)
        return _found(connection.execute(_HOLDING, key).fetchone(), "holdings", sequence)

    @lru_cache(maxsize=CACHED_ROWS)
    def gate_set(key: int) -> GateSet:
        rows = connection.execute(_GATE_SET, (run_key, key)).fetchall()
        return gate_set_of(_found(rows, "gate_sets", key))

    return Interned(outcome, holding, gate_set)


def _found(row: _Rows | None, table: str, named: int) -> _Rows:
    if not row:
        raise DataInvalid(
            f"Row {named} of {table} is missing; run `tracepaper audit verify` to see what is."
        )
    return row
