"""Queries for ranges of steps and their interned rows, for the reader and the chain's audit."""

from __future__ import annotations

from contextlib import contextmanager
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from tracepaper.storage.record.columns import SEQUENCE_LIMIT, TABLES, stored_columns
from tracepaper.storage.record.decode import InternedRows, StoredRows
from tracepaper.storage.record.rows import CHAINED_TABLES, SPARSE_TABLES, At
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.gates.gate import GATES
from tracepaper.strategies.types.decisions import GateSet

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator, Sequence

    from tracepaper.strategies.types.decisions import RunRow


# ---------------------------------------------------------------- stored rows, in chunks of steps

WITHIN: Final = "run_key = ? AND sequence BETWEEN ? AND ?"
"""The condition for the rows of the steps of a ``Span``."""
Span = tuple[int, int, int]
"""A run, and the first and the last sequence of some of its steps."""

CHUNK_STEPS: Final = 2048
CACHED_ROWS: Final = 4096

StoredRow = tuple[Any, ...]
_Rows = TypeVar("_Rows", StoredRow, list[StoredRow])


@contextmanager
def snapshot(connection: sqlite3.Connection) -> Iterator[None]:
    """Read from one snapshot while a daemon may write: the open transaction's, or this block's.

    While it is open, the WAL cannot be fully checkpointed, so keep it short.
    """
    if connection.in_transaction:
        yield
        return
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.rollback()


_ACCOUNT_CONFIRMED: Final = (
    "SELECT NULL, s.instrument, max(s.open_time_ms) FROM steps s "
    "JOIN outcomes o ON o.run_key = s.run_key AND o.sequence = s.outcome "
    "WHERE s.run_key = ? AND s.sequence BETWEEN ? AND ? AND s.instrument IS NOT NULL "
    "AND o.allowed AND o.action IN ('LONG', 'SHORT') GROUP BY 2"
)
_SHADOWS_CONFIRMED: Final = (
    "SELECT h.shadow, s.instrument, max(s.open_time_ms) FROM steps s "
    "JOIN shadow_steps t ON t.run_key = s.run_key AND t.sequence = s.shadows "
    "JOIN holdings h ON h.run_key = t.run_key AND h.sequence = t.holding AND h.account = t.account "
    "WHERE s.run_key = ? AND s.sequence BETWEEN ? AND ? AND s.instrument IS NOT NULL "
    "AND t.confirmed GROUP BY 1, 2"
)


@cache
def select(table: str, where: str, width: int | None = None) -> str:
    """Return the query for the first *width* columns of *table*, or all, ordered by its key."""
    columns = ", ".join(stored_columns(table)[:width])
    keys = ", ".join(column.name for column in TABLES[table] if column.is_key)
    return f"SELECT {columns} FROM {table} WHERE {where} ORDER BY {keys}"


RANGES: Final = {table: select(table, WITHIN) for table in CHAINED_TABLES}
"""By table that a commit covers: the query for its rows of a ``Span``."""
_SEQUENCE: Final = At("steps").sequence
_OUTCOME: Final = select("outcomes", "run_key = ? AND sequence = ?")
_HOLDING: Final = select("holdings", "run_key = ? AND sequence = ? AND account = ?")
_SHADOWS: Final = select("shadow_steps", "run_key = ? AND sequence = ?")
_GATE: Final = At("gate_sets")
_GATE_SETS: Final = select("gate_sets", "run_key = ?")
_GATE_SET: Final = select("gate_sets", "run_key = ? AND gate_set = ?")

_CLOSED: Final = (
    "SELECT s.sequence, s.sequence + coalesce(e.content ->> 'bars', "
    "(SELECT count(*) FROM instruments i WHERE i.run_key = s.run_key)) FROM steps s "
    "LEFT JOIN events e ON e.run_key = s.run_key AND e.sequence = s.sequence "
    "WHERE s.run_key = ? AND s.sequence BETWEEN ? AND ? AND s.instrument IS NULL "
    "AND coalesce(e.kind, 'closed') = 'closed' ORDER BY s.sequence DESC LIMIT 1"
)
RUN_ROW: Final = select("runs", "run_id = ?")
INSTRUMENT_ROWS: Final = select("instruments", "run_key = ?")
_NEWEST_COMMIT: Final = (
    "SELECT last_sequence, digest FROM commits WHERE run_key = ? AND last_sequence <= ? "
    "ORDER BY first_sequence DESC LIMIT 1"
)
_COMMIT_AT: Final = (
    "SELECT first_sequence, last_sequence, digest FROM commits "
    "WHERE run_key = ? AND first_sequence <= ? AND last_sequence >= ? "
    "ORDER BY first_sequence DESC LIMIT 1"
)
_NEWEST_STATE: Final = (
    f"SELECT state, sequence FROM states WHERE {WITHIN} ORDER BY sequence DESC LIMIT 1"
)


def run_span(run_key: int, until: int | None = None) -> Span:
    """Return the span of the run's steps, up to *until* if given."""
    return run_key, 0, SEQUENCE_LIMIT - 1 if until is None else until


def commit_at(
    connection: sqlite3.Connection, run_key: int, sequence: int
) -> tuple[int, int, bytes] | None:
    """Return first step, last step and digest of the commit that holds step *sequence*."""
    row: tuple[int, int, bytes] | None
    row = connection.execute(_COMMIT_AT, (run_key, sequence, sequence)).fetchone()
    return row


def find_step(
    connection: sqlite3.Connection,
    run_key: int,
    first: int,
    last: int,
    table: str,
    where: str = "TRUE",
    *values: object,
    newest: bool = False,
    skip: int = 0,
) -> int | None:
    """Return the first or *newest* step of a span with a row of *table* that meets *where*.

    Skips the first *skip* such steps. None if there is no other.
    """
    query = (
        f"SELECT sequence FROM {table} WHERE {WITHIN} AND ({where}) "
        f"ORDER BY sequence {'DESC' if newest else ''} LIMIT 1 OFFSET ?"
    )
    row = connection.execute(query, (run_key, first, last, *values, skip)).fetchone()
    return None if row is None else int(row[0])


def confirmed_since(
    connection: sqlite3.Connection, span: Span
) -> Iterator[tuple[str | None, int, int]]:
    """Yield (shadow, instrument, open time) of each position's last confirmation in *span*.

    *shadow* is None for the run's account.
    """
    for query in (_ACCOUNT_CONFIRMED, _SHADOWS_CONFIRMED):
        yield from connection.execute(query, span)


def close_of(
    connection: sqlite3.Connection, run_key: int, sequence: int, most: int
) -> tuple[int, int]:
    """Return the first and the last step of the close that step *sequence* belongs to.

    A close has at most *most* bars. A step of no close is returned twice.
    """
    row = connection.execute(_CLOSED, (run_key, sequence - most, sequence)).fetchone()
    return row if row is not None and row[1] >= sequence else (sequence, sequence)


def latest_state(
    connection: sqlite3.Connection, run_key: int, until: int | None = None
) -> tuple[bytes, int] | None:
    """Return the engine's newest state (up to step *until*), and the step that stored it."""
    row: tuple[bytes, int] | None
    row = connection.execute(_NEWEST_STATE, run_span(run_key, until)).fetchone()
    return row


def chain_head(
    connection: sqlite3.Connection, run_key: int, until: int | None = None
) -> tuple[int, bytes] | None:
    """Return the last step of the newest commit (up to step *until*), and its digest, if any."""
    row: tuple[int, bytes] | None
    row = connection.execute(_NEWEST_COMMIT, run_span(run_key, until)[::2]).fetchone()
    return row


def step_rows(
    connection: sqlite3.Connection, run_key: int, first: int, last: int
) -> Iterator[StoredRows]:
    """Yield the rows of each step of run *run_key* from sequence *first* to *last*, in chunks."""
    for start in range(first, last + 1, CHUNK_STEPS):
        span = (run_key, start, min(start + CHUNK_STEPS - 1, last))
        # Rows up to *last* never change while a run grows, so no snapshot is needed.
        sparse: dict[int, dict[str, list[StoredRow]]] = {}
        for table in SPARSE_TABLES:
            for row in connection.execute(RANGES[table], span):
                sparse.setdefault(row[_SEQUENCE], {}).setdefault(table, []).append(row)
        for row in connection.execute(RANGES["steps"], span).fetchall():
            yield StoredRows(row, sparse.get(row[_SEQUENCE], {}))


def gate_set_rows(connection: sqlite3.Connection, run_key: int) -> dict[int, list[StoredRow]]:
    """Return the rows of every gate set of the run, by the set's key."""
    sets: dict[int, list[StoredRow]] = {}
    for row in connection.execute(_GATE_SETS, (run_key,)):
        sets.setdefault(row[1], []).append(row)
    return sets


def gate_set_of(rows: Sequence[StoredRow]) -> GateSet:
    """Return the gate set of *rows*, its rows of ``gate_sets``."""
    gates = tuple(row[_GATE.gate] for row in rows)
    if unknown := [gate for gate in gates if gate not in GATES]:
        raise DataInvalid(
            f"A gate set names a gate that does not exist ({unknown[0]}); run `tracepaper audit "
            "verify` and restore a backup."
        )
    return GateSet(gates, tuple(row[_GATE.threshold] for row in rows))


def interned(connection: sqlite3.Connection, run_key: int) -> InternedRows:
    """Return cached look-ups of the rows that steps share."""

    @lru_cache(maxsize=CACHED_ROWS)
    def outcome(sequence: int) -> StoredRow:
        row = connection.execute(_OUTCOME, (run_key, sequence)).fetchone()
        return _require(row, "outcomes", sequence)

    @lru_cache(maxsize=CACHED_ROWS)
    def holding(sequence: int, account: int) -> StoredRow:
        row = connection.execute(_HOLDING, (run_key, sequence, account)).fetchone()
        return _require(row, "holdings", sequence)

    @lru_cache(maxsize=CACHED_ROWS)
    def shadows(sequence: int) -> list[StoredRow]:
        rows = connection.execute(_SHADOWS, (run_key, sequence)).fetchall()
        return _require(rows, "shadow_steps", sequence)

    @lru_cache(maxsize=CACHED_ROWS)
    def gate_set(key: int) -> GateSet:
        rows = connection.execute(_GATE_SET, (run_key, key)).fetchall()
        return gate_set_of(_require(rows, "gate_sets", key))

    return InternedRows(outcome, holding, shadows, gate_set)


def _require(row: _Rows | None, table: str, key: int) -> _Rows:
    if not row:
        raise DataInvalid(
            f"Row {key} of {table} is missing; run `tracepaper audit verify` to see what is."
        )
    return row


class RunLocation(NamedTuple):
    """A run and its database."""

    path: Path
    run_id: str


class StoredRun(NamedTuple):
    """A run, with the further columns of its row."""

    run_key: int
    run: RunRow
    opened: tuple[Any, ...]  # the row as opened
    opened_digest: bytes
    step_count: int
    head_digest: bytes
