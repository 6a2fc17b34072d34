"""``audit verify``: recomputes every link of a chain and names what does not hold.

The check reads stored rows and nothing else. It finds rows that were changed, removed, added,
exchanged or cut off. Who rewrites the whole chain is found only by a head kept elsewhere:
``tracepaper audit head`` prints it, ``tracepaper audit verify --head`` looks for it.

The rules are docs/storage.md, S5 to S8.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from hashlib import sha256
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from msgspec import Struct

from tracepaper.storage.chain.links import (
    CANDIDATES_MOST,
    CUT,
    Broken,
    ChainProblem,
    check_prune,
    covered_until,
    diagnose,
    laid_of,
)
from tracepaper.storage.database.chunks import (
    CHUNK_STEPS,
    INSTRUMENT_ROWS,
    PRUNE_ROW,
    RUN_ROW,
    Chunk,
    StoredRow,
    chunks,
    gate_set_rows,
    latest,
    read_chunk,
    run_span,
    select,
)
from tracepaper.storage.record.columns import stored_columns
from tracepaper.storage.record.decode import STEP, StoredRows
from tracepaper.storage.record.digest import (
    HASH_BYTES,
    NOTHING,
    Covered,
    chain_digest,
    gates_digest,
    kept_digest,
    opened_digest,
    pack,
)
from tracepaper.storage.record.rows import (
    NO_GATES,
    OPENED_AT,
    RUN_TABLES,
    SPARSE_TABLES,
    Previous,
    canonical,
    instrument_row,
    kept_rows,
    laid_row,
    layout_of,
    layouts_sha256,
    run_of,
    run_row,
    sequence_of,
    shape_of,
    step_key,
)
from tracepaper.strategies.errors import DataInvalid

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator

    from tracepaper.storage.record.rows import RowLayout


class ChainReport(Struct, frozen=True):
    """The result of walking a run's chain."""

    run_id: str
    steps: int  # links that were recomputed and hold
    head: bytes  # the last of them
    pruned_until: int | None  # the last step whose rows were pruned; the chain holds from the next
    head_sequence: int | None  # where the head kept elsewhere stands in the chain
    problem: ChainProblem | None

    @property
    def holds(self) -> bool:
        """Whether there is no problem."""
        return self.problem is None


_NAMED: Final = (
    "SELECT ' (' || i.instrument_id || ' ' || "
    "strftime('%Y-%m-%dT%H:%MZ', s.open_time_ms / 1000, 'unixepoch') || ')' "
    "FROM steps s JOIN instruments i ON i.run_key = ? AND i.instrument = s.instrument "
    "WHERE s.step = ?"
)
_OUTCOME_SETS: Final = (
    "SELECT step, gate_set, gate_set_sha256 FROM outcomes WHERE step BETWEEN ? AND ?"
)


def verify_chain(
    connection: sqlite3.Connection, run_id: str, *, head: bytes | None = None
) -> ChainReport:
    """Check the chain of *run_id*, and that a *head* kept elsewhere is one of its links.

    The run may grow meanwhile: all of it is read from one snapshot. Raises ``DataInvalid`` only
    where there is no such run; any damage is in the report.
    """
    connection.execute("BEGIN")
    try:
        row = connection.execute(RUN_ROW, (run_id,)).fetchone()
        if row is None:
            raise DataInvalid(f"There is no run {run_id} in the database.")
        opened, step_count, head_digest = row[OPENED_AT:]
        pruned = connection.execute(PRUNE_ROW, (row[0],)).fetchone()
        until: int | None = None
        start = _Start(0, opened, Covered())
        if pruned is not None:
            cut: int = pruned[CUT.until_sequence]
            until = cut
            covered = covered_until(connection, row[0], pruned)
            start = _Start(cut + 1, pruned[CUT.digest], covered)
        walk = _Walk(connection, row[0], start, head)
        problem = _check_opening(connection, row)
        problem = problem or check_prune(connection, row[0], pruned)
        problem = problem or walk.first_problem(step_count)
        problem = problem or _check_end(walk, step_count, head_digest)
        problem = problem or _check_gate_sets(connection, row, walk.gates)
        if problem is None and head is not None and walk.head_at is None:
            problem = _rewritten(head, until)
        return ChainReport(run_id, walk.held, walk.previous, until, walk.head_at, problem)
    finally:
        connection.rollback()


class _Start(NamedTuple):
    """Where a walk begins."""

    sequence: int  # of the first step
    digest: bytes  # the link before it
    covered: Covered  # what that link covers


class _UnusualStep(Exception):
    """A step does not hold, or not in the way of the usual ones."""


SMALL_STEPS: Final = 256
"""Steps that are walked row by row where the quick walk over them fails."""
_GATE_SET: Final = select("gate_sets", "run_key = ? AND gate_set = ?")
_HEAD: Final = "SELECT step FROM steps WHERE step BETWEEN ? AND ? AND digest = ?"
_JOINED: Final = frozenset({"answers", "twin_steps"})
"""Sparse tables that are read together with ``steps`` where nearly every step has rows there."""
_REST: Final = tuple(table for table in SPARSE_TABLES if table not in _JOINED)
_SPAN: Final = "step BETWEEN ?1 AND ?2"


class _Usual:
    """How the steps of one layout are read: all of their values in one row of one query."""

    def __init__(self, layouts: tuple[RowLayout, ...], shape: int) -> None:
        core, *joined = layouts
        self.layouts = layouts_sha256(layouts)
        self.outcome_at = core.columns.index("outcome")
        # Rows of a step in each joined table.
        self._rows = Counter(row_layout.table for row_layout in joined)
        self._counts: dict[str, int] = {}  # rows of the range in hand in each of them
        names = [f"s.{name}" for name in core.columns]
        joins, tests = [], [f"s.shape >> 1 = {shape}", *_nulls("s", core)]
        for number, row_layout in enumerate(joined):
            alias = f"j{number}"
            names += [f"{alias}.{name}" for name in row_layout.columns[1:]]
            on = f"{alias}.step = s.step"
            if row_layout.table == "twin_steps":
                book = sum(before.table == row_layout.table for before in joined[:number]) + 1
                on += f" AND {alias}.book = {book}"
            joins.append(f"CROSS JOIN {row_layout.table} {alias} ON {on}")
            tests += _nulls(alias, row_layout)
        where = f"s.{_SPAN} AND {' AND '.join(tests)}"
        self.query = f"SELECT {', '.join(names)}, s.digest FROM steps s {' '.join(joins)} "
        self.query += f"WHERE {where} ORDER BY s.step"
        # Neither query reads a step that is usual in ``steps`` and odd elsewhere: the quick walk
        # then fails, and the slow one follows.
        is_usual = " AND ".join((f"shape >> 1 = {shape}", *_nulls("steps", core)))
        odd_steps = f"(SELECT step FROM steps WHERE {_SPAN} AND NOT ({is_usual}))"
        self._odd = {table: select(table, f"{_SPAN} AND step IN {odd_steps}") for table in _JOINED}
        self._odd_steps = select("steps", f"{_SPAN} AND NOT ({is_usual})")

    def odd(self, connection: sqlite3.Connection, first: int, last: int) -> Chunk:
        """Return the rows from step *first* to *last* that the query leaves out."""
        span = (first, last)
        self._counts = {
            table: connection.execute(_COUNT[table], span).fetchone()[0] for table in _JOINED
        }
        sparse: dict[int, dict[str, list[StoredRow]]] = {}
        for table in SPARSE_TABLES:
            if table in _JOINED and not self._counts[table]:
                continue
            query = self._odd[table] if table in _JOINED else _WHOLE[table]
            for row in connection.execute(query, span):
                sparse.setdefault(row[0], {}).setdefault(table, []).append(row)
        return Chunk(last, connection.execute(self._odd_steps, span).fetchall(), sparse)

    def is_all(self, steps: int, odd: Chunk) -> bool:
        """Return whether *steps* usual ones and the *odd* ones have all rows of the range."""
        if not odd.sparse.keys() <= {row[0] for row in odd.steps}:
            return False
        read = Counter(
            {
                table: sum(len(rows.get(table, ())) for rows in odd.sparse.values())
                for table in _JOINED
            }
        )
        return all(
            count == steps * self._rows[table] + read[table]
            for table, count in self._counts.items()
        )


_COUNT: Final = {table: f"SELECT count(*) FROM {table} WHERE {_SPAN}" for table in _JOINED}
_WHOLE: Final = {table: select(table, _SPAN) for table in _REST}


def _nulls(alias: str, layout: RowLayout) -> list[str]:
    """Return the conditions that the columns outside *layout* are null."""
    absent = [name for name in stored_columns(layout.table) if name not in layout.columns]
    return [f"{alias}.{name} IS NULL" for name in absent if name != "digest"]


_usual_of: Final = lru_cache(maxsize=64)(_Usual)


class _Walk:
    """A walk along the links of one run."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        run_key: int,
        start: _Start,
        head: bytes | None,
    ) -> None:
        self._connection = connection
        self._run_key = run_key
        self._head = head
        self.first, self.previous, self._covered = start
        self.held = 0  # links that hold
        self.head_at = self.first - 1 if head == self.previous else None
        sets = gate_set_rows(connection, run_key)
        hashes = {key: gates_digest(rows) for key, rows in sets.items()}
        query = "SELECT step, gate_set FROM outcomes WHERE step BETWEEN ? AND ?"
        outcomes = connection.execute(query, run_span(run_key))
        empty = gates_digest(())  # a class could once declare no gate, so its set has no rows
        self.gates = {sequence_of(step): hashes.get(key, empty) for step, key in outcomes}

    def first_problem(self, step_count: int) -> ChainProblem | None:
        """Walk up to the first problem."""
        last = max(step_count - 1, *(self._newest(table) for table in RUN_TABLES))
        for at in range(self.first, last + 1, CHUNK_STEPS):
            first = step_key(self._run_key, at)
            until = step_key(self._run_key, min(at + CHUNK_STEPS - 1, last))
            if (problem := self._problem_in(first, until, step_count)) is not None:
                return problem
        return None

    def _problem_in(self, first: int, last: int, step_count: int) -> ChainProblem | None:
        """Walk from step *first* to *last*: quickly, else in halves, else row by row."""
        if self._passes(first, last):
            return None
        if last - first < SMALL_STEPS:
            return self._walk(read_chunk(self._connection, first, last), step_count)
        middle = (first + last) // 2
        problem = self._problem_in(first, middle, step_count)
        return problem or self._problem_in(middle + 1, last, step_count)

    def _walk(self, chunk: Chunk, step_count: int) -> ChainProblem | None:
        """Walk along the links of *chunk*; return the first problem."""
        due = step_key(self._run_key, self.first + self.held)
        previous, covered = self.previous, self._covered
        for row in chunk.steps:
            if row[0] != due:
                return self._name(Broken(due, previous, covered))
            before = covered.content
            digest = self._link(chunk, row, previous, covered)
            if digest != row[-1]:
                at = Covered(before[:HASH_BYTES], before[HASH_BYTES:])
                return self._name(self._broken(chunk, row, previous, at))
            if digest == self._head:
                self.head_at = sequence_of(due)
            self.previous = previous = digest
            self.held += 1
            due += 1
        if due <= chunk.last:
            return self._ended(due, step_count)
        return _stray_rows(chunk)

    def _passes(self, first: int, last: int) -> bool:
        """Walk along the links from step *first* to *last* by one query for the usual steps.

        False, and nothing walked, where any of them does not hold or no step is usual.
        """
        usual = self._usual(first, last)
        if usual is None:
            return False
        odd, covered = usual.odd(self._connection, first, last), self._covered.copy()
        try:
            previous = self._follow(usual, odd, range(first, last + 1), covered)
        except _UnusualStep:
            return False
        if self._head is not None:
            at = self._connection.execute(_HEAD, (first, last, self._head)).fetchone()
            self.head_at = self.head_at if at is None else sequence_of(at[0])
        self._covered, self.previous = covered, previous
        self.held += last + 1 - first
        return True

    def _follow(self, usual: _Usual, odd: Chunk, steps: range, covered: Covered) -> bytes:
        """Return the link of the last of *steps*; raise ``_UnusualStep`` where one does not hold.

        *covered* moves on as the *odd* steps say: the usual ones leave it as it is.
        """
        unusual = {row[0]: row for row in odd.steps}
        previous, due, outcome_at = self.previous, steps.start, usual.outcome_at
        middles: dict[int, bytes] = {}
        for row in self._connection.execute(usual.query, (steps.start, steps.stop - 1)):
            if row[0] != due:
                previous = self._follow_odd(odd, unusual, range(due, row[0]), previous, covered)
                due = row[0]
                middles.clear()
            try:
                middle = middles[row[outcome_at]]
            except KeyError:
                gates = self.gates.get(row[outcome_at]) or b""
                middle = middles[row[outcome_at]] = covered.content + usual.layouts + gates
            # ``chain_digest``, with the parts that rarely change joined once.
            previous = sha256(previous + middle + pack(row[:-1])).digest()
            if previous != row[-1]:
                raise _UnusualStep
            due += 1
        previous = self._follow_odd(odd, unusual, range(due, steps.stop), previous, covered)
        if not usual.is_all(len(steps) - len(odd.steps), odd):
            raise _UnusualStep
        return previous

    def _follow_odd(
        self,
        odd: Chunk,
        unusual: dict[int, StoredRow],
        steps: range,
        previous: bytes,
        covered: Covered,
    ) -> bytes:
        """Return the link of the last of *steps*, which are all *unusual*, after *previous*."""
        for step in steps:
            row = unusual.get(step)
            if row is None or self._link(odd, row, previous, covered) != row[-1]:
                raise _UnusualStep
            previous = row[-1]
        return previous

    def _usual(self, first: int, last: int) -> _Usual | None:
        """Return the reader of the usual steps of a range: those like the one in its middle."""
        middle = (first + last) // 2
        chunk = read_chunk(self._connection, middle, middle)
        if not chunk.steps:
            return None
        rows = chunk.rows(chunk.steps[0])
        if rows.sparse.keys() - _JOINED or rows.core[STEP.outcome] is None:
            return None
        joined = [row_layout for row_layout, _ in laid_of(rows)]
        return _usual_of((layout_of("steps", rows.core), *joined), rows.core[STEP.shape] >> 1)

    def _link(self, chunk: Chunk, row: StoredRow, previous: bytes, covered: Covered) -> bytes:
        """Return the digest that the rows of the step of *row* give after *previous*.

        *covered* follows the step's rows. Empty where these do not fit the shape in ``steps``.
        """
        rows = chunk.rows(row)
        laid_rows = laid_of(rows)
        kept = kept_rows(laid_rows)
        expected = kept_digest(covered.kept, kept) if kept else None
        kept_sha256 = rows.kept_sha256
        covered.follow(kept_sha256, rows.state)
        shape = shape_of(tuple([layout.table for layout, _ in laid_rows]))
        has_bar = row[STEP.open_time_ms] is not None
        if (
            kept_sha256 != expected
            or row[STEP.shape] >> 1 != shape >> 1
            or has_bar == ("events" in rows.sparse)
        ):
            return b""
        layouts, payload = canonical(laid_row("steps", rows.core), laid_rows)
        prefix = layouts + (self._gate_set(row) or NO_GATES)
        return chain_digest(previous, covered.content, prefix, payload)

    def _gate_set(self, row: StoredRow) -> bytes | None:
        """Return the stored hash of the gate set that judged the step of *row*."""
        outcome = row[STEP.outcome]
        return None if outcome is None else self.gates.get(outcome)

    def _broken(self, chunk: Chunk, row: StoredRow, previous: bytes, covered: Covered) -> Broken:
        return Broken(
            step=row[0],
            previous=previous,
            covered=covered,
            core=row[:-1],
            digest=row[-1],
            gate_set_sha256=self._gate_set(row),
            sparse=chunk.sparse.get(row[0], {}),
        )

    def _later_broken(self, broken: Broken) -> Iterator[Broken]:
        """Yield the broken steps after *broken*, each judged by the stored step before it."""
        previous, covered = broken.digest, broken.covered.copy()
        rows = StoredRows(broken.core, broken.sparse)
        covered.follow(rows.kept_sha256, rows.state)
        first, last = sequence_of(broken.step) + 1, self._newest("steps")
        for chunk in chunks(self._connection, self._run_key, first, last):
            for row in chunk.steps:
                before = covered.copy()
                if self._link(chunk, row, previous, covered) != row[-1]:
                    yield self._broken(chunk, row, previous, before)
                previous = row[-1]

    def _name(self, broken: Broken) -> ChainProblem:
        others = list(islice(self._later_broken(broken), CANDIDATES_MOST)) if broken.core else []
        named = self._connection.execute(_NAMED, (self._run_key, broken.step)).fetchone()
        return diagnose(broken, others, (named and named[0]) or "")

    def _ended(self, due: int, step_count: int) -> ChainProblem:
        """Say why the stored steps do not reach *due*."""
        at = sequence_of(due)
        if self._newest("steps") > at:
            return self._name(Broken(due, self.previous, self._covered))
        if at < step_count:
            return ChainProblem(
                at,
                ("steps",),
                "cut",
                f"The run's row counts {step_count} steps, and the last one stored is {at - 1}: "
                "the tail was cut off.",
            )
        strays = [table for table in RUN_TABLES if self._newest(table) >= at]
        return ChainProblem(
            at, tuple(strays), "extra", f"Rows of {', '.join(strays)} belong to no step after {at}."
        )

    def _newest(self, table: str) -> int:
        """Return the sequence of the last step with a row in *table*, or -1."""
        query = f"SELECT max(step) FROM {table} WHERE step BETWEEN ? AND ?"
        (step,) = self._connection.execute(query, run_span(self._run_key)).fetchone()
        return -1 if step is None else sequence_of(step)


class GrowingWalk(_Walk):
    """A walk along the links of a run that grows, range by range, after a link that is known.

    It reads over *connection*; *after* is the last step that was walked before, or -1.
    """

    def __init__(
        self, connection: sqlite3.Connection, run_key: int, after: int, digest: bytes
    ) -> None:
        pruned = connection.execute(PRUNE_ROW, (run_key,)).fetchone()
        if pruned is not None and pruned[CUT.until_sequence] >= after:
            after, digest = pruned[CUT.until_sequence], pruned[CUT.digest]
            covered = covered_until(connection, run_key, pruned)
        else:
            state = latest(connection, run_key, "state", after)
            kept = latest(connection, run_key, "kept_sha256", after)
            if pruned is not None:
                state, kept = state or pruned[CUT.state], kept or pruned[CUT.kept_sha256]
            covered = Covered(kept or NOTHING)
            covered.follow(None, state)
        super().__init__(connection, run_key, _Start(after + 1, digest, covered), None)

    @property
    def next(self) -> int:
        """The sequence of the next step to walk."""
        return self.first + self.held

    def walk_to(self, last: int) -> ChainProblem | None:
        """Walk on to step *last*; return the first problem."""
        span = step_key(self._run_key, self.next), step_key(self._run_key, last)
        for step, gate_set, _ in self._connection.execute(_OUTCOME_SETS, span):
            rows = self._connection.execute(_GATE_SET, (self._run_key, gate_set)).fetchall()
            self.gates[sequence_of(step)] = gates_digest(rows)
        for first in range(span[0], span[1] + 1, CHUNK_STEPS):
            until = min(first + CHUNK_STEPS - 1, span[1])
            if (problem := self._problem_in(first, until, last + 1)) is not None:
                return problem
        return None


def _stray_rows(chunk: Chunk) -> ChainProblem | None:
    """Return the first row of *chunk* that belongs to no step."""
    steps = {row[0] for row in chunk.steps}
    if steps.issuperset(chunk.sparse):
        return None
    step = min(chunk.sparse.keys() - steps)
    table, at = next(iter(chunk.sparse[step])), sequence_of(step)
    return ChainProblem(
        at, (table,), "extra", f"A row was added to {table} at {at}: it belongs to no step."
    )


def _check_opening(connection: sqlite3.Connection, row: StoredRow) -> ChainProblem | None:
    """Check the first link: the run as opened, its instruments and the gate sets of its start."""
    opened = row[:OPENED_AT]
    instruments = connection.execute(INSTRUMENT_ROWS, (row[0],)).fetchall()
    sets = gate_set_rows(connection, row[0])
    at_opening = [line for key in sorted(sets) if key < opened[-1] for line in sets[key]]
    if opened_digest(opened, instruments, at_opening) == row[OPENED_AT]:
        for place, instrument in enumerate(instruments):
            if instrument[1:3] != (place, f"{instrument[3]}:{instrument[4]}"):
                sentence = f"Instrument {place} of the run was changed: its row contradicts itself."
                return ChainProblem(None, ("instruments",), "changed", sentence)
        return _check_values(opened, instruments)
    tables = ("runs", "instruments", *(("gate_sets",) if opened[-1] else ()))
    return ChainProblem(
        None,
        tables,
        "changed",
        f"The run was changed: its rows in {', '.join(tables)} do not give its first link.",
    )


def _check_values(opened: StoredRow, instruments: list[StoredRow]) -> ChainProblem | None:
    """Check that the rows of a run and its instruments hold what a run writes, to the letter."""
    try:
        run = run_of(opened, instruments)
    except DataInvalid as error:
        return ChainProblem(None, ("runs",), "changed", str(error))
    due = [instrument_row(item, opened[0], place) for place, item in enumerate(run.instruments)]
    row = run_row(run, opened[0], opened[-1], Previous(*opened[-4:-1]))
    for table, said, made in (("runs", [opened], [row]), ("instruments", instruments, due)):
        if said != made:
            sentence = f"The run was changed: its {table} hold what no run writes."
            return ChainProblem(None, (table,), "changed", sentence)
    return None


def _check_gate_sets(
    connection: sqlite3.Connection, row: StoredRow, gates: Mapping[int, bytes]
) -> ChainProblem | None:
    """Check that every gate set is one that the run began with or that an outcome names."""
    run_key, opened_gate_sets = row[0], row[OPENED_AT - 1]
    used = set()
    for step, gate_set, stored in connection.execute(_OUTCOME_SETS, run_span(run_key)):
        used.add(gate_set)
        if gates[sequence_of(step)] != stored:
            at = sequence_of(step)
            sentence = f"Gate set {gate_set}, first used by step {at}, was changed."
            return ChainProblem(at, ("gate_sets",), "changed", sentence)
    for key in gate_set_rows(connection, run_key):
        if key >= opened_gate_sets and key not in used:
            sentence = f"Gate set {key} was added: no outcome names it."
            return ChainProblem(None, ("gate_sets",), "extra", sentence)
    return None


def _rewritten(head: bytes, pruned_until: int | None) -> ChainProblem:
    older = ""
    if pruned_until is not None:
        older = f" (or the head is older than step {pruned_until}, pruned since)"
    sentence = f"No step has the digest {head.hex()}: the chain was rewritten, or an older copy "
    sentence += f"was put back{older}."
    return ChainProblem(None, (), "rewritten", sentence)


def _check_end(walk: _Walk, step_count: int, head_digest: bytes) -> ChainProblem | None:
    """Check the count and the head in the run's row."""
    stored = walk.first + walk.held
    if stored > step_count:
        return ChainProblem(
            step_count,
            ("steps",),
            "extra",
            f"The run's row counts {step_count} steps and {stored} are stored: steps were added "
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
