"""Integrity of a database beyond its chains: pages, schema, linked runs, cards.

``audit verify`` runs these checks. They need no torch and read no file but the database.

docs/storage.md, S10 to S13, has the rules.
"""

from __future__ import annotations

import sqlite3
from bisect import bisect_left, bisect_right
from contextlib import closing
from functools import cache
from itertools import chain, compress, pairwise
from operator import itemgetter, ne
from typing import TYPE_CHECKING, Any, Final

from msgspec import MsgspecError, Struct

from tracepaper.storage.chain.verify import ChainProblem, ChainReport, verify_chain
from tracepaper.storage.checkpoints import ID_DIGITS, Identity
from tracepaper.storage.database.chunks import select, snapshot
from tracepaper.storage.database.writer import in_memory
from tracepaper.storage.record.columns import SEQUENCE_LIMIT, place
from tracepaper.storage.record.rows import SPARSE_TABLES
from tracepaper.strategies.units import MONEY_DECIMALS, unscaled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from tracepaper.storage.record.hashing import Commit

_OBJECTS: Final = "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY rowid"
_RUNS: Final = (
    "SELECT run_key, run_id, opened_digest, previous_run_id, previous_step_count, previous_head "
    "FROM runs ORDER BY run_key"
)
_DIGEST: Final = "SELECT digest FROM commits WHERE run_key = ? AND last_sequence = ?"
_HOLDING: Final = itemgetter(place("steps", "holding"))

_MODELS: Final = "SELECT run_id, model_id, model_sha256 FROM runs ORDER BY run_key"

_OF_RUN: Final = "run_key = (SELECT run_key FROM runs WHERE run_id = ?)"
_MOVED: Final = (
    f"SELECT sequence, amount, balance FROM ledger WHERE {_OF_RUN} ORDER BY sequence, ordinal"
)
_CASH: Final = f"SELECT sequence, cash FROM holdings WHERE {_OF_RUN} AND account = 0"

_STEP_OF_ROW: Final = (
    "(SELECT 1 FROM steps s WHERE s.run_key = a.run_key AND s.sequence = a.sequence)"
)

_UNREADABLE: Final = (
    sqlite3.Error,
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    MsgspecError,
)
"""Exceptions of SQLite, and of decoding values, that a damaged file can cause."""

NEVER_FOUND: Final = (
    "Only a head kept elsewhere shows whether the newest run was deleted, a run's end was cut off "
    "or a run was computed again."
)
ADDED_SINCE: Final = "Even that head does not show steps or runs that were added after it."


class AuditResult(Struct, frozen=True):
    """The result of ``audit verify`` for the file and the chain of one run."""

    chain: ChainReport
    problem: ChainProblem | None  # the first problem of the file or the run
    warnings: tuple[str, ...] = ()  # harmless findings, such as tables of other programs

    @property
    def passes(self) -> bool:
        """Whether the run has steps, and no problem was found."""
        return self.problem is None and self.chain.steps > 0


def audit(connection: sqlite3.Connection, run_id: str, *, head: bytes | None = None) -> AuditResult:
    """Check the file and the chain of *run_id*; see ``verify_chain`` for *head*."""
    (audited,) = audit_runs(connection, [run_id], head=head)
    return audited


def audit_runs(
    connection: sqlite3.Connection, run_ids: Iterable[str], *, head: bytes | None = None
) -> list[AuditResult]:
    """Check the file, once, and the chain of every run of *run_ids*.

    A page that SQLite cannot read is reported as a problem; it raises no exception.
    """
    try:
        problem, warnings = check_database(connection)
    except _UNREADABLE as error:
        problem, warnings = _damaged(str(error)), ()
    audits = []
    for run_id in run_ids:
        report = ChainReport(run_id, 0, b"", None, None)
        first_problem = problem
        if problem is None:
            try:
                with snapshot(connection):
                    cash = _Cash(connection, run_id)
                    report = verify_chain(connection, run_id, head=head, take=cash.take)
                    first_problem = report.problem or check_cash(connection, run_id, cash.changes)
            except _UNREADABLE as error:
                first_problem = _damaged(str(error))
        audits.append(AuditResult(report, first_problem, warnings))
    return audits


def check_database(connection: sqlite3.Connection) -> tuple[ChainProblem | None, tuple[str, ...]]:
    """Return the first problem of the file itself, and warnings."""
    warnings: list[str] = []
    checks: tuple[Callable[[], Iterator[ChainProblem]], ...] = (
        lambda: check_pages(connection),
        lambda: _check_schema(connection, warnings),
        lambda: check_keys(connection),
        lambda: _check_links(connection),
        lambda: _check_models(connection),
    )
    first = next((problem for check in checks for problem in check()), None)
    return first, tuple(warnings)


class _Cash:
    """The account's cash during a run: (step, cash) at each step whose commit changes it."""

    def __init__(self, connection: sqlite3.Connection, run_id: str) -> None:
        self._of_holding = dict(connection.execute(_CASH, (run_id,)).fetchall())
        self.changes: list[tuple[int, int | None]] = [(-1, None)]  # None: unknown

    def take(self, commit: Commit) -> None:
        """Add the changes of the steps of *commit*."""
        cash = [*map(self._of_holding.get, map(_HOLDING, commit.rows["steps"]))]
        changed = map(ne, cash, chain([self.changes[-1][1]], cash))
        places = compress(range(len(cash)), changed)
        self.changes += [(commit.first + at, cash[at]) for at in places]


def check_cash(
    connection: sqlite3.Connection, run_id: str, changes: Sequence[tuple[int, int | None]]
) -> ChainProblem | None:
    """Return the first step of a run at which the cash in *changes* is not its ledger's sum."""
    moved = connection.execute(_MOVED, (run_id,)).fetchall()
    steps = [step for step, _ in changes]
    added = 0
    entries: list[tuple[Any, ...]] = [*moved, (SEQUENCE_LIMIT,)]
    for (step, amount, balance), (following, *_) in pairwise(entries):
        added += amount
        if balance != added:
            statement = f"the balance of its entry is {_money(balance)}"
            return _unbalanced(step, added, statement, "ledger")
        if step == following:
            continue
        for since, cash in changes[bisect_right(steps, step) - 1 : bisect_left(steps, following)]:
            if cash is not None and cash != added:
                statement = f"the account's cash is {_money(cash)}"
                return _unbalanced(max(since, step), added, statement, "ledger", "holdings")
    return None


def _money(amount: int) -> str:
    return unscaled(amount, MONEY_DECIMALS)


def _unbalanced(at: int, added: int, statement: str, *tables: str) -> ChainProblem:
    sentence = f"The ledger adds up to {_money(added)} at step {at}, and {statement}: one of the "
    return ChainProblem(at, tables, "changed", sentence + "two was changed.")


def _damaged(verdict: str) -> ChainProblem:
    where = " ".join(verdict.replace("*", "").split())
    return ChainProblem(None, (), "damaged", f"The file is damaged ({where}); restore a backup.")


def check_pages(connection: sqlite3.Connection) -> Iterator[ChainProblem]:
    """Let SQLite check every page."""
    (verdict,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    if verdict != "ok":
        yield _damaged(str(verdict))


def check_keys(connection: sqlite3.Connection) -> Iterator[ChainProblem]:
    """Find rows that refer to a missing row."""
    tables = [str(table) for table, *_ in connection.execute("PRAGMA foreign_key_check")]
    # Their foreign key to ``steps`` is not declared, which saves a look-up per row written.
    for table in SPARSE_TABLES:
        query = f"SELECT 1 FROM {table} a WHERE NOT EXISTS {_STEP_OF_ROW} LIMIT 1"
        if connection.execute(query).fetchone():
            tables.append(table)
    for table in tables:
        sentence = f"A row of {table} belongs to a row that was removed."
        yield ChainProblem(None, (table,), "missing", sentence)


@cache
def expected_schema() -> dict[tuple[str, str], tuple[str, str | None]]:
    """Return table and statement of every object of a new database, by type and name."""
    with closing(in_memory()) as writer:
        objects = writer.driver.execute(_OBJECTS).fetchall()
    return {(kind, name): (table, sql) for kind, name, table, sql in objects}


def _check_schema(connection: sqlite3.Connection, warnings: list[str]) -> Iterator[ChainProblem]:
    """Compare the SQL of tables, indexes and views with that of a new database."""
    expected = dict(expected_schema())
    for kind, name, table, sql in connection.execute(_OBJECTS):
        definition = expected.pop((kind, name), None)
        if kind == "trigger":
            sentence = f"The trigger {name} can change rows of the record: drop it."
            yield ChainProblem(None, (str(table),), "extra", sentence)
        elif definition is None:
            warnings.append(f"The {kind} {name} does not belong to tracepaper.")
        elif definition != (table, sql):
            yield _redefined(kind, name)
    for kind, name in expected:
        sentence = f"The {kind} {name} is missing: restore a backup."
        yield ChainProblem(None, (name,), "missing", sentence)


def _redefined(kind: str, name: str) -> ChainProblem:
    sentence = f"The {kind} {name} differs from the one that this version creates, so it may show "
    sentence += "wrong values: restore a backup."
    return ChainProblem(None, (name,), "changed", sentence)


def _check_links(connection: sqlite3.Connection) -> Iterator[ChainProblem]:
    """Check each run's stored id, step count and head of the run opened before it."""
    before_key, before_id, before_opened = 0, None, None
    for key, run_id, opened, previous, count, head in connection.execute(_RUNS).fetchall():
        if previous != before_id:
            gone = "none" if previous is None else previous
            sentence = f"Run {run_id} was opened after {gone}, but the run before it is "
            sentence += (
                f"{before_id or 'none'}: a run was removed or added, or its row was changed."
            )
            yield ChainProblem(None, ("runs",), "missing", sentence)
        elif before_id is None:
            if (count, head) != (None, None):
                yield _unlinked(run_id, "none")
        elif not isinstance(count, int) or not isinstance(head, bytes):
            yield _unlinked(run_id, before_id)
        elif count == 0:
            if head != before_opened:
                yield _unlinked(run_id, before_id)
        else:
            digest = connection.execute(_DIGEST, (before_key, count - 1)).fetchone()
            if digest != (head,):
                yield _unlinked(run_id, before_id)
        before_key, before_id, before_opened = key, run_id, opened


def _check_models(connection: sqlite3.Connection) -> Iterator[ChainProblem]:
    """Check that each card matches its id, and that each run's model has a card."""
    cards = connection.execute(select("models", "TRUE")).fetchall()
    for row in cards:
        if not Identity(*row).is_true:
            sentence = (
                f"The card of model {row[0][:ID_DIGITS]} was changed: it does not match its id."
            )
            yield ChainProblem(None, ("models",), "changed", sentence)
    stored = {row[0] for row in cards}
    used = set()
    for run_id, model_id, sha256 in connection.execute(_MODELS):
        used.add(sha256)
        if sha256 and sha256 not in stored:
            sentence = f"The card of model {model_id}, which run {run_id} used, is missing."
            yield ChainProblem(None, ("models",), "missing", sentence)
        elif model_id != sha256[:ID_DIGITS]:
            sentence = f"Run {run_id} stores model {model_id} with the hash of another model."
            yield ChainProblem(None, ("runs",), "changed", sentence)
    if stored - used:
        yield ChainProblem(None, ("models",), "extra", "A card was added: no run used its model.")


def _unlinked(run_id: str, before: str) -> ChainProblem:
    sentence = f"Run {run_id} does not hold the head that run {before} had when it was opened: "
    sentence += "one of the two was changed."
    return ChainProblem(None, ("runs",), "changed", sentence)
