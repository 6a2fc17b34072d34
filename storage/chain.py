"""``audit verify``: recompute every link of a run's chain, and name what does not hold.

The check reads stored rows and nothing else. It finds rows that were changed, removed, added,
exchanged or cut off. Who rewrites the whole chain is found only by a head kept elsewhere:
``tracepaper audit head`` prints it, ``tracepaper audit verify --head`` looks for it.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final

from tracepaper.storage.digest import chain_digest, opened_digest, rows_digest
from tracepaper.storage.rows import sequence_of, step_key
from tracepaper.storage.schema import RUN_TABLES, metadata
from tracepaper.storage.stored import Chunk, StoredRow, chunks, gate_set_rows, run_span, select
from tracepaper.storage.tamper import (
    SUSPECTS,
    Broken,
    ChainProblem,
    ChainReport,
    diagnose,
    sparse_pairs,
)
from tracepaper.strategies.errors import DataInvalid

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator

_RUN: Final = select("runs", "run_id = ?")
_INSTRUMENTS: Final = select("instruments", "run_key = ?")
_PRUNE: Final = select("prunes", "run_key = ?")
_OPENED_AT: Final = [c.name for c in metadata.tables["runs"].columns].index("opened_digest")
_NAMED: Final = (
    "SELECT ' (' || i.instrument_id || ' ' || "
    "strftime('%Y-%m-%dT%H:%MZ', b.open_time_ms / 1000, 'unixepoch') || ')' "
    "FROM bars b JOIN instruments i ON i.run_key = ? AND i.instrument = b.instrument "
    "WHERE b.step = ?"
)
KEPT_TABLES: Final = ("events", "outcomes", "holdings", "orders", "fills", "twin_fills")
"""Tables of which a prune keeps rows: trades, settlements, and what later steps refer to."""


def verify_chain(
    connection: sqlite3.Connection, run_id: str, *, head: bytes | None = None
) -> ChainReport:
    """Check the chain of *run_id*, and that a *head* kept elsewhere is one of its links.

    The run may grow meanwhile: all of it is read from one snapshot. Raises ``DataInvalid`` only
    where there is no such run; what is wrong is in the report.
    """
    connection.execute("BEGIN")
    try:
        return _verify(connection, run_id, head)
    finally:
        connection.rollback()


def _verify(connection: sqlite3.Connection, run_id: str, head: bytes | None) -> ChainReport:
    row = connection.execute(_RUN, (run_id,)).fetchone()
    if row is None:
        raise DataInvalid(f"There is no run {run_id} in the database.")
    opened, _, step_count, head_digest = row[_OPENED_AT:]
    pruned = connection.execute(_PRUNE, (row[0],)).fetchone()
    start = (0, opened) if pruned is None else (pruned[1] + 1, pruned[3])
    walk = _Walk(connection, row[0], start, head)
    problem = _check_opening(connection, row)
    if pruned is not None:
        problem = problem or _check_kept(connection, row[0], pruned[1], pruned[4])
    problem = problem or walk.first_problem(step_count)
    problem = problem or _check_end(walk, step_count, head_digest)
    if problem is None and head is not None and walk.head_at is None:
        problem = ChainProblem(
            None, (), "rewritten", f"No step has the digest {head.hex()}: the chain was rewritten."
        )
    until = None if pruned is None else pruned[1]
    return ChainReport(run_id, walk.held, walk.previous, until, walk.head_at, problem)


class _Walk:
    """A walk along the links of one run."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        run_key: int,
        start: tuple[int, bytes],
        head: bytes | None,
    ) -> None:
        self._connection = connection
        self._run_key = run_key
        self._head = head
        self.first, self.previous = start
        self.held = 0  # links that hold
        self.head_at = self.first - 1 if head == self.previous else None
        sets = gate_set_rows(connection, run_key)
        hashes = {key: rows_digest(rows) for key, rows in sets.items()}
        query = "SELECT step, gate_set FROM outcomes WHERE step BETWEEN ? AND ?"
        outcomes = connection.execute(query, run_span(run_key))
        self._gates = {sequence_of(step): hashes.get(key) for step, key in outcomes}

    def first_problem(self, step_count: int) -> ChainProblem | None:
        """Walk until the first thing that does not hold."""
        last = max(step_count - 1, *(self._newest(table.name) for table in RUN_TABLES))
        due = step_key(self._run_key, self.first)
        previous = self.previous
        for chunk in chunks(self._connection, self._run_key, self.first, last):
            for row in chunk.steps:
                if row[0] != due:
                    return self._name(Broken(due, previous))
                digest = self._link(chunk, row, previous)
                if digest != row[-1]:
                    return self._name(self._broken(chunk, row, previous))
                if digest == self._head:
                    self.head_at = sequence_of(due)
                self.previous = previous = digest
                self.held += 1
                due += 1
            if due <= chunk.last:
                return self._ended(due, step_count)
            if (stray := _stray_rows(chunk)) is not None:
                return stray
        return None

    def _link(self, chunk: Chunk, row: StoredRow, previous: bytes) -> bytes:
        """Return the digest that the rows of the step of *row* give after *previous*."""
        step = row[0]
        event = chunk.bars.get(step) or chunk.events.get(step)
        gate_set = None if row[4] is None else self._gates.get(row[4])
        rows = chunk.sparse.get(step)
        if rows is None:
            return chain_digest(previous, (row[:-1], event, gate_set))
        return chain_digest(previous, (row[:-1], event, gate_set, *sparse_pairs(rows)))

    def _broken(self, chunk: Chunk, row: StoredRow, previous: bytes) -> Broken:
        return Broken(
            step=row[0],
            previous=previous,
            core=row[:-1],
            digest=row[-1],
            bar=chunk.bars.get(row[0]),
            event=chunk.events.get(row[0]),
            gate_set_sha256=None if row[4] is None else self._gates.get(row[4]),
            sparse=chunk.sparse.get(row[0], {}),
        )

    def _later_broken(self, broken: Broken) -> Iterator[Broken]:
        """Yield the broken steps after *broken*, each judged by the stored digest before it."""
        previous = broken.digest
        first, last = sequence_of(broken.step) + 1, self._newest("steps")
        for chunk in chunks(self._connection, self._run_key, first, last):
            for row in chunk.steps:
                if self._link(chunk, row, previous) != row[-1]:
                    yield self._broken(chunk, row, previous)
                previous = row[-1]

    def _name(self, broken: Broken) -> ChainProblem:
        """Say what was done to *broken*."""
        others = list(islice(self._later_broken(broken), SUSPECTS)) if broken.core else []
        named = self._connection.execute(_NAMED, (self._run_key, broken.step)).fetchone()
        return diagnose(broken, others, named[0] if named else "")

    def _ended(self, due: int, step_count: int) -> ChainProblem:
        """Say why the stored steps do not reach *due*."""
        at = sequence_of(due)
        if self._newest("steps") > at:
            return self._name(Broken(due, self.previous))
        if at < step_count:
            return ChainProblem(
                at,
                ("steps",),
                "cut",
                f"The run's row counts {step_count} steps, and the last one stored is {at - 1}: "
                "the tail was cut off.",
            )
        strays = [t.name for t in RUN_TABLES if self._newest(t.name) >= at]
        return ChainProblem(
            at, tuple(strays), "extra", f"Rows of {', '.join(strays)} belong to no step after {at}."
        )

    def _newest(self, table: str) -> int:
        """Return the sequence of the last step with a row in *table*, or -1."""
        query = f"SELECT max(step) FROM {table} WHERE step BETWEEN ? AND ?"
        (step,) = self._connection.execute(query, run_span(self._run_key)).fetchone()
        return -1 if step is None else sequence_of(step)


def _stray_rows(chunk: Chunk) -> ChainProblem | None:
    """Return the first row of *chunk* that belongs to no step, or to one with another event."""
    known = {row[0] for row in chunk.steps}
    if len(chunk.bars) + len(chunk.events) == len(known) and known.issuperset(chunk.sparse):
        return None
    strays = [(step, "bars") for step in chunk.bars if step not in known]
    strays += [(step, "events") for step in chunk.events if step not in known or step in chunk.bars]
    strays += [(step, next(iter(chunk.sparse[step]))) for step in chunk.sparse.keys() - known]
    step, table = min(strays)
    at = sequence_of(step)
    return ChainProblem(
        at, (table,), "extra", f"A row was added to {table} at {at}: it belongs to no step."
    )


def _check_opening(connection: sqlite3.Connection, row: StoredRow) -> ChainProblem | None:
    """Check the first link: the run as opened, its instruments and the gate sets of its start."""
    opened = row[:_OPENED_AT]
    instruments = connection.execute(_INSTRUMENTS, (row[0],)).fetchall()
    sets = gate_set_rows(connection, row[0])
    known = [line for key in sorted(sets) if key < opened[-1] for line in sets[key]]
    if opened_digest(opened, instruments, known) == row[_OPENED_AT]:
        return None
    tables = ("runs", "instruments", *(("gate_sets",) if opened[-1] else ()))
    return ChainProblem(
        None,
        tables,
        "changed",
        f"The run was changed: its rows in {', '.join(tables)} do not give its first link.",
    )


def _check_kept(
    connection: sqlite3.Connection, run_key: int, until: int, sha256: bytes
) -> ChainProblem | None:
    """Check the rows that a prune kept against the hash that it left."""
    if kept_digest(connection, run_key, until) == sha256:
        return None
    return ChainProblem(
        until,
        KEPT_TABLES,
        "changed",
        f"A row up to step {until}, kept when the run was pruned, was changed: it is in one of "
        f"{', '.join(KEPT_TABLES)}.",
    )


def kept_digest(connection: sqlite3.Connection, run_key: int, until: int) -> bytes:
    """Return the hash of the rows of ``KEPT_TABLES`` up to sequence *until*."""
    span = (step_key(run_key, 0), step_key(run_key, until))
    return rows_digest(
        row
        for table in KEPT_TABLES
        for row in connection.execute(select(table, "step BETWEEN ? AND ?"), span)
    )


def _check_end(walk: _Walk, step_count: int, head_digest: bytes) -> ChainProblem | None:
    """Check what the run's row says of the chain's end."""
    found = walk.first + walk.held
    if found > step_count:
        return ChainProblem(
            step_count,
            ("steps",),
            "extra",
            f"The run's row counts {step_count} steps and {found} are stored: steps were added "
            "or the row was changed.",
        )
    if walk.previous != head_digest:
        return ChainProblem(
            None,
            ("runs",),
            "changed",
            "The head in the run's row is not the digest of its last step: the row was changed.",
        )
    return None
