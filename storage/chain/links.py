"""Opening, prune and end of a chain, and the diagnosis of a broken link."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from heapq import merge
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct

from tracepaper.storage.database.chunks import StoredRow, run_span, select
from tracepaper.storage.record.decode import OUTCOME, STEP, StoredRows
from tracepaper.storage.record.digest import Covered, chain_digest
from tracepaper.storage.record.rows import (
    BYTE,
    KEPT_TABLES,
    NO_GATES,
    SPARSE_TABLES,
    At,
    StepShape,
    canonical,
    laid_row,
    sequence_of,
)

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator

    from tracepaper.storage.record.rows import LaidRow

# ---------------------------------------------------------------- what was done to a chain

CANDIDATES_MOST: Final = 16
"""Broken steps that are looked at to tell an exchange of rows from a change."""


class ChainProblem(Struct, frozen=True):
    """The first thing that does not hold."""

    sequence: int | None  # of the step; None where it is the run's own row
    tables: tuple[str, ...]  # where: one table, or those of which one was changed
    what: str  # changed, missing, extra, swapped, cut or rewritten
    sentence: str


class Broken(Struct, frozen=True):
    """A step whose rows do not give its digest, or (without rows) one that is missing."""

    step: int
    previous: bytes  # the digest before it, as stored
    covered: Covered  # what the link before it covers, as stored
    core: tuple[Any, ...] = ()  # its ``steps`` row, without the digest
    digest: bytes = b""
    gate_set_sha256: bytes | None = None  # of its gate set, as that is stored
    sparse: Mapping[str, Sequence[tuple[Any, ...]]] = {}

    def rows(self, table: str) -> Sequence[tuple[Any, ...]]:
        """Return the step's rows in *table*."""
        if table == "steps":
            return [self.core] if self.core else []
        return self.sparse.get(table, ())

    def tables(self) -> tuple[str, ...]:
        """Return the tables in which the step has rows."""
        names = ("steps", *SPARSE_TABLES)
        return tuple(table for table in names if self.rows(table))

    def digest_with(self, table: str, other: Broken) -> bytes:
        """Return the digest the step would have with the rows of *other* in *table*."""
        moved: list[tuple[Any, ...]] = [(self.step, *row[1:]) for row in other.rows(table)]
        core = moved[0] if table == "steps" else self.core
        gates = other.gate_set_sha256 if table == "steps" else self.gate_set_sha256
        sparse = {**self.sparse, table: moved} if table in SPARSE_TABLES else self.sparse
        rows = StoredRows(core, sparse)
        covered = self.covered.copy()
        covered.follow(rows.kept_sha256, rows.state)
        return step_digest(self.previous, covered, rows, gates)


def laid_of(rows: StoredRows) -> list[LaidRow]:
    """Return the sparse rows of a step in the order in which the chain hashes them."""
    return [laid_row(table, row) for table, stored in rows.sparse.items() for row in stored]


def step_digest(
    previous: bytes, covered: Covered, rows: StoredRows, gate_set_sha256: bytes | None
) -> bytes:
    """Return the link that the *rows* of a step give after *previous*."""
    layouts, payload = canonical(laid_row("steps", rows.core), laid_of(rows))
    prefix = layouts + (gate_set_sha256 or NO_GATES)
    return chain_digest(previous, covered.content, prefix, payload)


def diagnose(broken: Broken, others: Sequence[Broken], named: str) -> ChainProblem:
    """Name the damage to *broken*, the first of all; *others* are broken too, *named* its bar."""
    at = sequence_of(broken.step)
    if not broken.core:
        return ChainProblem(
            at, ("steps",), "missing", f"Step {at} is missing: its row of steps was removed."
        )
    # An exchange is proved by its digest, so it is looked for before anything else is believed.
    if (other := _exchanged(broken, others)) is not None:
        table, sequence = other
        return ChainProblem(
            at,
            (table,),
            "swapped",
            f"The rows of steps {at}{named} and {sequence} in {table} were exchanged.",
        )
    for table, due in StepShape.unpack(broken.core[STEP.shape]).counts().items():
        count = len(broken.rows(table))
        if min(count, BYTE) != due:
            what = "missing" if count < due else "extra"
            done = "removed" if count < due else "added"
            return ChainProblem(
                at,
                (table,),
                what,
                f"Step {at}{named} has {count} rows in {table} where {due} were written: "
                f"a row was {done}.",
            )
    for outcome in broken.rows("outcomes"):
        if outcome[OUTCOME.gate_set_sha256] != broken.gate_set_sha256:
            return ChainProblem(
                at,
                ("gate_sets",),
                "changed",
                f"Gate set {outcome[OUTCOME.gate_set]}, first used by step {at}{named}, was "
                "changed.",
            )
    tables = broken.tables()
    return ChainProblem(
        at,
        tables,
        "changed",
        f"Step {at}{named} was changed: its rows in {', '.join(tables)} do not give its digest.",
    )


def _exchanged(broken: Broken, others: Sequence[Broken]) -> tuple[str, int] | None:
    """Return the table and the step with which *broken* exchanged its rows, if it did."""
    for other in others:
        for table in other.tables():
            digest = other.digest if table == "steps" else broken.digest
            if broken.rows(table) and broken.digest_with(table, other) == digest:
                return table, sequence_of(other.step)
    return None


CUT: Final = At("prunes")
_PRUNED: Final = (
    "SELECT content FROM events WHERE step BETWEEN ? AND ? AND kind = 'prune' "
    "ORDER BY step DESC LIMIT 1"
)
DROPPED_TABLES: Final = ("twin_steps", "answers", "states", "steps")
"""Tables of which a prune drops every row, children first."""


def check_prune(
    connection: sqlite3.Connection, run_key: int, pruned: StoredRow | None
) -> ChainProblem | None:
    """Check the rows that a prune left, and its row against its event."""
    events = connection.execute(_PRUNED, run_span(run_key)).fetchone()
    if pruned is None:
        if events is None:
            return None
        return ChainProblem(
            None, ("prunes",), "missing", "The run was pruned, and its row in prunes was removed."
        )
    _, until, pruned_at_ms, digest, kept_sha256, state = pruned
    content = {
        "until_sequence": until,
        "pruned_at_ms": pruned_at_ms,
        "digest": digest.hex(),
        "kept_sha256": kept_sha256.hex(),
        "state_sha256": "" if state is None else sha256(state).hexdigest(),
    }
    if events is None or events[0] != msgspec.json.encode(content).decode():
        return ChainProblem(
            until,
            ("prunes",),
            "changed",
            f"The row in prunes, which ends at step {until}, is not what the prune itself said.",
        )
    span = run_span(run_key, until)
    for table in DROPPED_TABLES:
        query = f"SELECT min(step) FROM {table} WHERE step BETWEEN ? AND ?"
        (step,) = connection.execute(query, span).fetchone()
        if step is not None:
            return ChainProblem(
                sequence_of(step), (table,), "extra", f"A row was added to {table} at "
                f"{sequence_of(step)}, whose rows were pruned.",
            )  # fmt: skip
    if covered_until(connection, run_key, pruned).kept == kept_sha256:
        return None
    return ChainProblem(
        until,
        ("events", *KEPT_TABLES),
        "changed",
        f"A row up to step {until}, kept when the run was pruned, was changed: it is in one of "
        f"events, {', '.join(KEPT_TABLES)}.",
    )


def covered_until(connection: sqlite3.Connection, run_key: int, pruned: StoredRow) -> Covered:
    """Derive from the rows that were kept what the last link that was *pruned* covers."""
    span = run_span(run_key, pruned[CUT.until_sequence])

    def rows(place: int, table: str) -> Iterator[tuple[int, int, LaidRow]]:
        for row in connection.cursor().execute(select(table, "step BETWEEN ? AND ?"), span):
            yield row[0], place, laid_row(table, row)

    sources = [rows(place, table) for place, table in enumerate(("events", *KEPT_TABLES))]
    covered = Covered()
    merged = merge(*sources, key=itemgetter(0, 1))
    for _, of_step in groupby(merged, key=itemgetter(0)):
        covered.take([pair for _, _, pair in of_step], None)
    covered.follow(None, pruned[CUT.state])
    return covered
