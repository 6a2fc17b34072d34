"""``verify_chain`` recomputes the chain of a run, commit by commit, from its rows.

docs/storage.md, S5 to S10, has the rules.
"""

from __future__ import annotations

from bisect import bisect_right
from operator import itemgetter
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
from msgspec import Struct

from tracepaper.storage.database.chunks import (
    CHUNK_STEPS,
    INSTRUMENT_ROWS,
    RUN_ROW,
    WITHIN,
    Span,
    StoredRow,
    chain_head,
    commit_at,
    gate_set_rows,
    select,
    snapshot,
)
from tracepaper.storage.record.columns import SEQUENCE_LIMIT, TABLES, place
from tracepaper.storage.record.hashing import SEQUENCE_AT, Commit, opened_digest, sealed
from tracepaper.storage.record.rows import (
    CHAINED_TABLES,
    EVENT_KINDS,
    OPENED_AT,
    Previous,
    instrument_row,
    run_of,
    run_row,
)
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.types.market import Bar

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterator, Sequence

    from tracepaper.storage.record.interning import Rows


class ChainProblem(Struct, frozen=True):
    """The first problem that an audit found."""

    sequence: int | None  # of the step; None if it is in the run's row
    tables: tuple[str, ...]  # the table, or several of which one was changed
    what: str  # changed, missing, extra, cut or rewritten
    sentence: str


class ChainReport(Struct, frozen=True):
    """The result of recomputing a run's chain."""

    run_id: str
    steps: int  # steps of the commits that passed
    head: bytes  # the digest of the last commit that passed
    head_at: int | None  # the first step of the commit with the digest kept elsewhere
    problem: ChainProblem | None

    @property
    def passes(self) -> bool:
        """Whether there is no problem."""
        return self.problem is None


_SEQUENCE: Final = {table: itemgetter(at) for table, at in SEQUENCE_AT.items()}
_OPENS_AT: Final = place("steps", "open_time_ms")
_KIND_AT: Final = place("events", "kind")


def _width_query(table: str) -> str:
    """Return the query for the last column of *table* that is not null in some steps, from 1."""
    cases = [
        f"WHEN {column.name} IS NOT NULL THEN {width}"
        for width, column in enumerate(TABLES[table], start=1)
    ]
    return f"SELECT max(CASE {' '.join(reversed(cases))} END) FROM {table} WHERE {WITHIN}"


_WIDTHS: Final = {table: _width_query(table) for table in CHAINED_TABLES}
_COMMITS: Final = select("commits", "run_key = ? AND first_sequence >= ? AND first_sequence < ?")
_MISPLACED_SET: Final = (
    "SELECT gate_set FROM gate_sets g WHERE sequence IS NOT NULL AND sequence IS NOT "
    "(SELECT min(o.sequence) FROM outcomes o WHERE o.run_key = g.run_key "
    "AND o.gate_set = g.gate_set) AND run_key = ? LIMIT 1"
)
_HOLED_SET: Final = (
    "SELECT gate_set FROM gate_sets WHERE run_key = ? GROUP BY gate_set "
    "HAVING max(ordinal) <> count(*) - 1 OR count(DISTINCT ifnull(sequence, -1)) > 1 LIMIT 1"
)


def verify_chain(
    connection: sqlite3.Connection,
    run_id: str,
    *,
    head: bytes | None = None,
    take: Callable[[Commit], object] = lambda _commit: None,
    first: int = 0,
    last: int | None = None,
) -> ChainReport:
    """Check the chain of *run_id*, and that a *head* kept elsewhere is one of its links.

    *take* is called with each commit that passes. All is read from one snapshot, so the run may
    grow meanwhile. With *first* and *last* only the commits of these steps are walked.
    ``DataInvalid`` is raised only if the run is missing; the report has any damage.
    """
    with snapshot(connection):
        row = connection.execute(RUN_ROW, (run_id,)).fetchone()
        if row is None:
            raise DataInvalid(f"There is no run {run_id} in the database.")
        opened, step_count, head_digest = row[OPENED_AT:]
        commit_bounds = commit_at(connection, row[0], first)
        walk = Walk.begin(connection, row[0], opened, commit_bounds[0] if commit_bounds else 0)
        begin, head_at = walk.due, None
        problem = _check_opening(connection, row)
        if problem is None:
            for commit in walk.commits(SEQUENCE_LIMIT if last is None else last + 1):
                if commit.digest == head:
                    head_at = commit.first
                take(commit)
            problem = walk.problem
            if problem is None and (last is None or walk.due <= last):
                problem = _check_end(walk, step_count, head_digest)
            problem = problem or _check_gate_sets(connection, row[0])
        if problem is None and head is not None and head_at is None:
            problem = _rewritten(run_id, head)
        return ChainReport(run_id, walk.due - begin, walk.head, head_at, problem)


class StoredCommit(NamedTuple):
    """A row of ``commits``."""

    run_key: int
    first: int
    last: int
    digest: bytes
    contents: str

    @classmethod
    def of(cls, run_key: int, commit: Commit) -> StoredCommit:
        """Return the row of *commit*."""
        return cls(run_key, commit.first, commit.last, commit.digest, commit.contents)


class Walk:
    """Recomputes the commits of one run after *head*; the next step is *due*."""

    def __init__(self, connection: sqlite3.Connection, run_key: int, head: bytes, due: int) -> None:
        self._connection = connection
        self.run_key = run_key
        self.head = head
        self.due = due
        self.problem: ChainProblem | None = None

    @classmethod
    def begin(
        cls, connection: sqlite3.Connection, run_key: int, opened: bytes, first: int = 0
    ) -> Walk:
        """Return the walk from step *first* on; *opened* is the chain's first link."""
        before = chain_head(connection, run_key, first - 1)
        return cls(connection, run_key, opened if before is None else before[1], first)

    def commits(self, before: int = SEQUENCE_LIMIT) -> Iterator[Commit]:
        """Yield the commits that begin before step *before*, until one does not pass.

        Then ``problem`` has the reason. The rows have no nulls at their ends.
        """
        stored = self._connection.execute(_COMMITS, (self.run_key, self.due, before)).fetchall()
        waiting = [StoredCommit(*row) for row in stored]
        at = 0
        while at < len(waiting) and self.problem is None:
            end = at + 1
            while end < len(waiting) and waiting[end].last - waiting[at].first < CHUNK_STEPS:
                end += 1
            yield from self._recomputed(waiting[at:end])
            at = end

    def has_rows_left(self, table: str) -> bool:
        """Return whether *table* has a row of a step from ``due`` on."""
        query = f"SELECT 1 FROM {table} WHERE run_key = ? AND sequence >= ? LIMIT 1"
        return self._connection.execute(query, (self.run_key, self.due)).fetchone() is not None

    def _recomputed(self, stored: Sequence[StoredCommit]) -> Iterator[Commit]:
        """Yield the commits of *stored* that pass; their rows are read together."""
        span = (self.run_key, stored[0].first, stored[-1].last)
        ranges = {
            table: of_table for table in CHAINED_TABLES if (of_table := self._read(table, span))
        }
        begins = dict.fromkeys(ranges, 0)
        for stored_commit in stored:
            if stored_commit.first != self.due:
                self.problem = missing_commit(self.due)
                return
            rows: Rows = {}
            for table, of_table in ranges.items():
                begin, sequence_of = begins[table], _SEQUENCE[table]
                if begin < len(of_table) and sequence_of(of_table[begin]) <= stored_commit.last:
                    end = begins[table] = bisect_right(
                        of_table, stored_commit.last, begin, key=sequence_of
                    )
                    rows[table] = of_table[begin:end]
            commit = sealed(self.head, stored_commit.first, stored_commit.last, rows)
            self.problem = _difference(stored_commit, commit)
            if self.problem is not None:
                return
            self.head, self.due = commit.digest, stored_commit.last + 1
            yield commit

    def _read(self, table: str, span: Span) -> list[StoredRow]:
        """Return the rows of some steps without the last columns that are null in all of them.

        Reading a null costs as much as reading a number.
        """
        (width,) = self._connection.execute(_WIDTHS[table], span).fetchone()
        query = select(table, WITHIN, width)
        return [] if width is None else self._connection.execute(query, span).fetchall()


def missing_commit(due: int) -> ChainProblem:
    """Return the problem that no commit begins at step *due*."""
    sentence = f"The commit that begins at step {due} is missing: its row was removed or changed."
    return ChainProblem(due, ("commits",), "missing", sentence)


def _difference(stored: StoredCommit, commit: Commit) -> ChainProblem | None:
    """Return how a commit differs from its rows, or its rows from those of an intact run."""
    first, last = stored.first, stored.last
    if stored == StoredCommit.of(stored.run_key, commit):
        return _misfit(commit)
    try:
        written = msgspec.json.decode(stored.contents, type=dict[str, tuple[int, str]])
    except (msgspec.MsgspecError, TypeError):
        written = {}
    present = msgspec.json.decode(commit.contents, type=dict[str, tuple[int, str]])
    tables = [table for table in {**written, **present} if written.get(table) != present.get(table)]
    if not tables:
        sentence = f"The commit of steps {first} to {last} was changed."
        return ChainProblem(first, ("commits",), "changed", sentence)
    counts = {
        table: (present.get(table, (0, ""))[0], written.get(table, (0, ""))[0]) for table in tables
    }
    named = ", ".join(
        table if a == b else f"{table} ({a:,} rows, {b:,} written)"
        for table, (a, b) in counts.items()
    )
    what = {"missing"} if any(a < b for a, b in counts.values()) else set()
    what |= {"extra"} if any(a > b for a, b in counts.values()) else set()
    sentence = f"Steps {first} to {last} do not match the digest of their commit (tables: {named})."
    return ChainProblem(first, tuple(tables), what.pop() if len(what) == 1 else "changed", sentence)


def _misfit(commit: Commit) -> ChainProblem | None:
    """Return the first step of a commit without exactly one row, with either a bar or an event."""
    rows = commit.rows.get("steps", ())
    due = range(commit.first, commit.last + 1)
    present = [*map(_SEQUENCE["steps"], rows)]
    if present != [*due]:
        missing = next((at for at, step in zip(due, present, strict=False) if at != step), None)
        return _hole(commit.first + len(present) if missing is None else missing)
    without_bar = [
        step
        for step, row in zip(due, rows, strict=True)
        if len(row) <= _OPENS_AT or row[_OPENS_AT] is None
    ]
    # What is said of a bar stands in an event beside it.
    events = [
        _SEQUENCE["events"](row)
        for row in commit.rows.get("events", ())
        if row[_KIND_AT] != EVENT_KINDS[Bar]
    ]
    if without_bar == events:
        return None
    at = min({*without_bar} ^ {*events})
    sentence = f"Step {at} has neither a bar nor an event, or both: a row was changed."
    return ChainProblem(at, ("steps", "events"), "changed", sentence)


def _hole(at: int) -> ChainProblem:
    sentence = f"Step {at} is missing: its row of steps was removed."
    return ChainProblem(at, ("steps",), "missing", sentence)


def _check_opening(connection: sqlite3.Connection, row: StoredRow) -> ChainProblem | None:
    """Check the first link: the run as opened, its instruments and the gate sets of its start."""
    opened = row[:OPENED_AT]
    instruments = connection.execute(INSTRUMENT_ROWS, (row[0],)).fetchall()
    sets = gate_set_rows(connection, row[0])
    at_opening = [line for key in sorted(sets) for line in sets[key] if line[-1] is None]
    if opened_digest(opened, instruments, at_opening) == row[OPENED_AT]:
        for number, instrument in enumerate(instruments):
            if instrument[1:3] != (number, f"{instrument[3]}:{instrument[4]}"):
                sentence = (
                    f"Instrument {number} of the run was changed: its row contradicts itself."
                )
                return ChainProblem(None, ("instruments",), "changed", sentence)
        if len({line[1] for line in at_opening}) != opened[-1]:
            sentence = "The number of gate sets at the opening is not the one in the run's row."
            return ChainProblem(None, ("runs", "gate_sets"), "changed", sentence)
        return _check_values(opened, instruments)
    tables = ("runs", "instruments", *(("gate_sets",) if opened[-1] or at_opening else ()))
    return ChainProblem(
        None,
        tables,
        "changed",
        f"The run was changed: its rows in {', '.join(tables)} do not give its first link.",
    )


def _check_values(opened: StoredRow, instruments: list[StoredRow]) -> ChainProblem | None:
    """Check that decoding and encoding leaves the rows of a run and its instruments unchanged."""
    try:
        run = run_of(opened, instruments)
    except DataInvalid as error:
        return ChainProblem(None, ("runs",), "changed", str(error))
    due = [instrument_row(item, opened[0], at) for at, item in enumerate(run.instruments)]
    row = run_row(run, opened[0], opened[-1], Previous(*opened[-4:-1]))
    for table, stored, derived in (("runs", [opened], [row]), ("instruments", instruments, due)):
        if stored != derived:
            sentence = f"The run was changed: its rows in {table} hold values that no run writes."
            return ChainProblem(None, (table,), "changed", sentence)
    return None


def _check_gate_sets(connection: sqlite3.Connection, run_key: int) -> ChainProblem | None:
    """Check that every gate set is complete and stored with the first outcome that uses it."""
    if row := connection.execute(_HOLED_SET, (run_key,)).fetchone():
        sentence = f"Gate set {row[0]} was changed: its gates are not numbered from 0 on, or "
        sentence += "they are of several steps."
    elif row := connection.execute(_MISPLACED_SET, (run_key,)).fetchone():
        sentence = f"Gate set {row[0]} was added or moved: its step is not that of its first use."
    else:
        return None
    return ChainProblem(None, ("gate_sets",), "changed", sentence)


def _rewritten(run_id: str, head: bytes) -> ChainProblem:
    sentence = (
        f"No commit of run {run_id} has the digest {head.hex()}: the chain was rewritten, or an "
        "older copy was put back."
    )
    return ChainProblem(None, (), "rewritten", sentence)


def _check_end(walk: Walk, step_count: int, head_digest: bytes) -> ChainProblem | None:
    """Check count and head in the run's row, and that no rows follow the last commit."""
    due = walk.due
    if due < step_count:
        return ChainProblem(
            due,
            ("steps",),
            "cut",
            f"The run's row counts {step_count} steps, and the last one stored is {due - 1}: "
            "the tail was cut off.",
        )
    if due > step_count:
        return ChainProblem(
            step_count,
            ("steps",),
            "extra",
            f"The run's row counts {step_count} steps and {due} are stored: steps were added or "
            "the row was changed.",
        )
    strays = [table for table in CHAINED_TABLES if walk.has_rows_left(table)]
    if strays:
        sentence = f"Rows of {', '.join(strays)} from step {due} on belong to no step."
        return ChainProblem(due, tuple(strays), "extra", sentence)
    if walk.head != head_digest:
        return ChainProblem(
            None,
            ("runs",),
            "changed",
            "The head in the run's row is not the digest of its last commit: the row was changed.",
        )
    return None
