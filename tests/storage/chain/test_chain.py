"""Whatever is done to a stored row is found, and named by commit and table: here a step each."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import storage_cases as cases
from forging import literal, rechain
from msgspec.structs import replace
from records import rows, tamper

from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.chain.integrity import audit
from tracepaper.storage.chain.verify import ChainProblem, ChainReport, verify_chain
from tracepaper.storage.database.schema import metadata
from tracepaper.storage.record.rows import CHAINED_TABLES, RUN_TABLES, SPARSE_TABLES
from tracepaper.strategies.types.decisions import GateSet, Step
from tracepaper.strategies.types.market import CovariatesRead

STEPS = cases.rich_steps()
LINK = "SELECT digest FROM commits WHERE run_key = 2 AND last_sequence = ?"
FIRST_BAR = len(cases.other_events())  # the bars come after one event of every other kind
LAST = len(STEPS) - 1


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a database of two equal runs."""
    path = tmp_path_factory.mktemp("chain") / "run.db"
    cases.write_run(path, STEPS, of=cases.run("untouched"), group_steps=1)
    cases.write_run(path, STEPS, group_steps=1)
    return path


@pytest.fixture
def path(original: Path, tmp_path: Path) -> Path:
    """Return a copy of the database, whose second run is tampered with."""
    return Path(shutil.copy(original, tmp_path / "run.db"))


def verify(path: Path, *, head: bytes | None = None, run_id: str = "r-1") -> ChainReport:
    with closing(sqlite3.connect(path)) as connection:
        return verify_chain(connection, run_id, head=head)


def problem_of(path: Path, *, head: bytes | None = None) -> ChainProblem:
    problem = verify(path, head=head).problem
    assert problem is not None
    return problem


def test_the_recomputed_head_is_the_one_the_log_returned(tmp_path: Path) -> None:
    head = cases.write_run(tmp_path / "a.db", cases.plain_steps(200))
    assert verify(tmp_path / "a.db").head == head


def test_a_chain_of_decisions_without_a_gate_holds_and_one_that_was_added_is_found(
    tmp_path: Path,
) -> None:
    def ungated(step: Step) -> Step:
        decision = step.decision
        if decision is None:
            return step
        outcome = replace(decision.outcome, gate_set=GateSet((), ()), passed=0)
        return replace(step, decision=replace(decision, outcome=outcome, measures=()))

    path = tmp_path / "a.db"
    cases.write_run(path, [ungated(step) for step in cases.plain_steps(20)])
    assert verify(path).passes
    tamper(path, "INSERT INTO gate_sets VALUES (1, 1, 0, 'warm', 1.0, NULL)")
    assert not verify(path).passes


class Meanwhile(sqlite3.Connection):
    """A connection on which something else happens once, amid a check."""

    happens: Callable[[], None] | None = None

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        if "FROM commits" in sql and (happens := self.happens) is not None:
            self.happens = None
            happens()
        return super().execute(sql, parameters)


def test_a_run_that_grows_while_it_is_checked_holds(tmp_path: Path) -> None:
    steps = cases.plain_steps(60)
    log = SqlAuditLog.open(tmp_path / "a.db", group_steps=10)
    log.begin(cases.run())
    for step in steps[:30]:
        log.append_now(step)

    def grow() -> None:
        for step in steps[30:]:
            log.append_now(step)

    connection = sqlite3.connect(tmp_path / "a.db", factory=Meanwhile, isolation_level=None)
    connection.happens = grow
    audited = audit(connection, "r-1")  # the cash and the ledger are those of the same moment
    assert (audited.problem, audited.chain.steps) == (None, 30)
    assert audit(connection, "r-1").chain.steps == 60
    connection.close()
    log.close()


def test_a_run_that_no_run_can_be_is_a_broken_chain_and_no_error(tmp_path: Path) -> None:
    cases.write_run(tmp_path / "a.db", cases.plain_steps(20))
    with closing(sqlite3.connect(tmp_path / "a.db", isolation_level=None)) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute("UPDATE runs SET kind = 'zz'")
        connection.execute("PRAGMA ignore_check_constraints = OFF")
        problem = audit(connection, "r-1").problem
    assert problem is not None
    assert "runs" in problem.sentence


def columns_of_steps() -> list[tuple[str, str]]:
    """Return every column of every table that the chain covers, apart from the keys."""
    return [
        (table, column.name)
        for table in RUN_TABLES
        for column in metadata.tables[table].columns
        if not column.primary_key and column.computed is None
    ]


def another(value: object) -> object:
    """Return a value of the same type that is not *value*."""
    match value:
        case None:
            return None
        case bytes():
            return bytes([value[0] ^ 1]) + value[1:] if value else b"x"
        case str():
            return value + "x"
        case _:
            return value + 1  # type: ignore[operator]


@pytest.mark.parametrize(("table", "column"), columns_of_steps())
def test_a_changed_column_is_found_and_named(path: Path, table: str, column: str) -> None:
    text = f"FROM {table} WHERE run_key = 2"
    held = rows(path, f"SELECT sequence, {column} {text} AND {column} IS NOT NULL ORDER BY 1")
    if not held:  # every row has null here: put something in its place
        kind = str(metadata.tables[table].columns[column].type)
        value = b"" if kind == "BLOB" else 0
        held = [(step, value) for (step,) in rows(path, f"SELECT min(sequence) {text}")]
    step, value = held[0]
    tamper(
        path,
        f"UPDATE {table} SET {column} = {literal(another(value))} "
        f"WHERE run_key = 2 AND sequence = {step}",
    )
    report = verify(path)
    assert report.problem is not None
    assert report.problem.sequence == step
    assert report.steps == step
    assert table in report.problem.tables


@pytest.mark.parametrize(
    ("table", "column"),
    [
        (table, column.name)
        for table in ("runs", "instruments")
        for column in metadata.tables[table].columns
        if column.computed is None and column.name not in {"run_key", "run_id", "instrument"}
    ],
)
def test_a_changed_run_is_found(path: Path, table: str, column: str) -> None:
    (value,) = rows(path, f"SELECT {column} FROM {table} WHERE run_key = 2")[0]
    fresh = {int: 1, str: "r-0", bytes: b"r-0"}
    kind = metadata.tables[table].columns[column].type.python_type
    changed = fresh[kind] if value is None else another(value)
    tamper(path, f"UPDATE {table} SET {column} = {literal(changed)} WHERE run_key = 2")
    report = verify(path)
    assert report.problem is not None
    if column == "step_count":
        assert report.problem.what == "cut"
    else:
        assert table in report.problem.tables
        assert report.problem.sequence is None


@pytest.mark.parametrize("column", ["gate", "threshold"])
def test_a_changed_gate_set_is_found_and_named(path: Path, column: str) -> None:
    value = "'edge'" if column == "gate" else "99.0"
    tamper(path, f"UPDATE gate_sets SET {column} = {value} WHERE run_key = 2 AND ordinal = 3")
    problem = problem_of(path)
    assert (problem.what, problem.tables, problem.sequence) == (
        "changed",
        ("gate_sets",),
        FIRST_BAR,
    )


@pytest.mark.parametrize("table", ["steps", *SPARSE_TABLES])
def test_a_removed_row_is_found_and_named(path: Path, table: str) -> None:
    query = f"SELECT sequence FROM {table} WHERE run_key = 2 ORDER BY sequence = 0, sequence"
    (step,) = rows(path, query)[0]
    tamper(path, f"DELETE FROM {table} WHERE run_key = 2 AND sequence = {step}")
    problem = problem_of(path)
    assert (problem.what, problem.tables) == ("missing", (table,))
    assert problem.sequence == step
    assert table in problem.sentence


def copy_row(path: Path, table: str, source: int | str, target: int) -> None:
    """Copy the row of step *source* to the step *target*."""
    columns = [column for column in metadata.tables[table].columns if column.computed is None]
    names = ", ".join(of.name for of in columns if of.name not in ("run_key", "sequence"))
    tamper(
        path,
        f"INSERT INTO {table} (run_key, sequence, {names}) "
        f"SELECT 2, {target}, {names} FROM {table} WHERE run_key = 2 AND sequence = {source}",
    )


@pytest.mark.parametrize("table", SPARSE_TABLES)
def test_an_added_row_is_found_and_named(path: Path, table: str) -> None:
    """Copy a row to a step that has none in this table."""
    if table == "states":  # every rich step has a state
        path = path.with_name("plain.db")
        cases.write_run(path, STEPS, of=cases.run("untouched"))
        cases.write_run(path, cases.plain_steps(len(STEPS)), group_steps=1)
    have = {step for (step,) in rows(path, f"SELECT sequence FROM {table} WHERE run_key = 2")}
    free = next(at for at in range(1, len(STEPS)) if at not in have)
    copy_row(path, table, min(step for step in have if step > 0), free)
    problem = problem_of(path)
    assert (problem.what, problem.sequence, problem.tables) == ("extra", free, (table,))


@pytest.mark.parametrize("cut", [1, 5, len(STEPS)])
def test_a_cut_tail_is_found(path: Path, cut: int) -> None:
    first = len(STEPS) - cut
    tamper(path, f"DELETE FROM {RUN_TABLES[0]} WHERE run_key = 2 AND sequence >= {first}")
    problem = problem_of(path)
    assert (problem.what, problem.sequence) == ("missing", len(STEPS) - cut)


def cut_off(path: Path, first: int) -> None:
    """Delete all rows of the steps from *first* on."""
    keys = dict.fromkeys(CHAINED_TABLES, "sequence") | {"commits": "first_sequence"}
    with closing(sqlite3.connect(path)) as raw, raw:
        for table, key in keys.items():
            raw.execute(f"DELETE FROM {table} WHERE run_key = 2 AND {key} >= {first}")


def test_a_tail_cut_in_every_table_is_found(path: Path) -> None:
    first = len(STEPS) - 3
    cut_off(path, first)
    problem = problem_of(path)
    assert problem.what == "cut"


def test_a_tail_cut_with_the_runs_row_made_to_fit_is_found_by_a_head_kept_elsewhere(
    path: Path,
) -> None:
    kept = verify(path).head
    last = len(STEPS) - 4
    cut_off(path, last + 1)
    (head,) = rows(path, LINK, last)[0]
    tamper(
        path,
        f"UPDATE runs SET step_count = {last + 1}, head_digest = {literal(head)} WHERE run_key = 2",
    )
    assert verify(path).passes
    problem = problem_of(path, head=kept)
    assert problem.what == "rewritten"


def test_a_step_of_neither_bar_nor_event_is_found_in_a_rewritten_chain(path: Path) -> None:
    reading = next(step.sequence for step in STEPS if isinstance(step.event, CovariatesRead))
    tamper(path, f"DELETE FROM events WHERE run_key = 2 AND sequence = {reading}")
    rechain(path)
    problem = problem_of(path)
    assert (problem.sequence, problem.what) == (reading, "changed")


def test_an_older_head_is_found_in_a_chain_that_went_on(path: Path) -> None:
    report = verify(path, head=rows(path, LINK, LAST - 2)[0][0])
    assert report.passes
    assert report.head_at == LAST - 2


def test_one_step_more_than_the_runs_row_counts_is_found(path: Path) -> None:
    tamper(
        path,
        "UPDATE runs SET step_count = step_count - 1, head_digest = "
        f"({LINK.replace('?', str(LAST - 1))}) WHERE run_key = 2",
    )
    problem = problem_of(path)
    assert (problem.what, problem.sequence, problem.tables) == ("extra", LAST, ("steps",))


def test_a_gate_set_that_no_outcome_names_is_found(path: Path) -> None:
    tamper(
        path,
        "INSERT INTO gate_sets (run_key, gate_set, ordinal, gate, threshold) "
        "SELECT run_key, 99, ordinal, gate, threshold FROM gate_sets "
        "WHERE run_key = 2 AND gate_set = (SELECT max(gate_set) FROM gate_sets WHERE run_key = 2)",
    )
    problem = problem_of(path)
    assert problem.what == "changed"
    assert "gate_sets" in problem.tables


@pytest.mark.parametrize("table", RUN_TABLES)
def test_rows_behind_the_end_are_found(path: Path, table: str) -> None:
    copy_row(path, table, f"(SELECT min(sequence) FROM {table} WHERE run_key = 2)", LAST + 3)
    problem = problem_of(path)
    assert (problem.what, problem.tables) == ("extra", (table,))


@pytest.mark.parametrize(
    "change",
    [
        lambda: (
            f"UPDATE commits SET digest = zeroblob(32) WHERE run_key = 2 AND last_sequence = {LAST}"
        ),
        lambda: "UPDATE runs SET head_digest = zeroblob(32) WHERE run_key = 2",
    ],
)
def test_a_changed_head_is_found(path: Path, change: Callable[[], str]) -> None:
    tamper(path, change())
    assert not verify(path).passes
