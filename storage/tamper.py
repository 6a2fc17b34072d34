"""What was done to a chain that does not hold: named from the first broken step; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec import Struct

from tracepaper.storage.decode import KEPT_AT, STATE_AT
from tracepaper.storage.digest import Covered, chain_digest
from tracepaper.storage.rows import SPARSE_TABLES, Shape, sequence_of

SUSPECTS: Final = 16
"""Broken steps that are looked at to tell an exchange of rows from a change."""

_GATE_SET_AT: Final = 5  # gate_set in an ``outcomes`` row; its hash follows


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
    bar: tuple[Any, ...] | None = None
    event: tuple[Any, ...] | None = None
    gate_set_sha256: bytes | None = None  # of its gate set, as that is stored
    sparse: Mapping[str, Sequence[tuple[Any, ...]]] = {}

    def rows(self, table: str) -> Sequence[tuple[Any, ...]]:
        """Return the step's rows in *table*."""
        if table == "steps":
            return [self.core] if self.core else []
        if table in {"bars", "events"}:
            row = self.bar if table == "bars" else self.event
            return [] if row is None else [row]
        return self.sparse.get(table, ())

    def tables(self) -> tuple[str, ...]:
        """Return the tables in which the step has rows."""
        names = ("steps", "bars", "events", *SPARSE_TABLES)
        return tuple(table for table in names if self.rows(table))

    def digest_with(self, table: str, other: Broken) -> bytes:
        """Return the digest the step would have with the rows of *other* in *table*."""
        moved = [(self.step, *row[1:]) for row in other.rows(table)]
        core = moved[0] if table == "steps" else self.core
        gates = other.gate_set_sha256 if table == "steps" else self.gate_set_sha256
        event = moved[0] if table in {"bars", "events"} else self.bar or self.event
        sparse = {**self.sparse, table: moved} if table in SPARSE_TABLES else self.sparse
        covered = self.covered.copy()
        covered.follow(core[KEPT_AT], core[STATE_AT])
        payload = (core, event, gates, *sparse_pairs(sparse))
        return chain_digest(self.previous, covered.content, payload)


def sparse_pairs(
    sparse: Mapping[str, Sequence[tuple[Any, ...]]],
) -> list[tuple[str, tuple[Any, ...]]]:
    """Return the sparse rows of a step as the chain hashes them."""
    return [(table, row) for table in SPARSE_TABLES for row in sparse.get(table, ())]


def diagnose(broken: Broken, others: Sequence[Broken], named: str) -> ChainProblem:
    """Say what was done to *broken*, the first of all; *others* are broken too, *named* its bar."""
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
    for table, due in Shape.unpack(broken.core[1]).counts().items():
        found = len(broken.rows(table))
        if found != due:
            what = "missing" if found < due else "extra"
            done = "removed" if found < due else "added"
            return ChainProblem(
                at,
                (table,),
                what,
                f"Step {at}{named} has {found} rows in {table} where {due} were written: "
                f"a row was {done}.",
            )
    for outcome in broken.rows("outcomes"):
        if outcome[_GATE_SET_AT + 1] != broken.gate_set_sha256:
            return ChainProblem(
                at,
                ("gate_sets",),
                "changed",
                f"Gate set {outcome[_GATE_SET_AT]}, first used by step {at}{named}, was changed.",
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


class ChainReport(Struct, frozen=True):
    """What ``audit verify`` found."""

    run_id: str
    steps: int  # links that were recomputed and hold
    head: bytes  # the last of them
    pruned_until: int | None  # the last step whose rows were pruned; the chain holds from the next
    head_sequence: int | None  # where the head kept elsewhere stands in the chain
    problem: ChainProblem | None

    @property
    def holds(self) -> bool:
        """Whether nothing was found."""
        return self.problem is None
