"""Backups are consistent while a daemon writes; a prune keeps chain, trades and resume."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import storage_cases as cases
from builders import MINUTE, altered, present
from msgspec.structs import replace
from records import tamper
from storage_cases import prune

from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.chain.verify import ChainReport, verify_chain
from tracepaper.storage.database.connection import PAGE_BYTES
from tracepaper.storage.database.lock import lock_file
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.maintenance import Pruning, backup, copied_at_s
from tracepaper.storage.record.columns import stored_columns
from tracepaper.storage.record.rows import DROPPED_TABLES
from tracepaper.strategies.errors import AuditUnwritable, ConfigInvalid, DataInvalid
from tracepaper.strategies.types.decisions import GateSet, Position, ShadowStep, Step

DAY = 24 * 60
STEPS = cases.plain_steps(DAY + 500)


def write_run(path: Path, steps: list[Step]) -> None:
    """Write *steps* with a commit each, so that a prune can cut behind any of them."""
    cases.write_run(path, steps, group_steps=1)


def verify(path: Path) -> ChainReport:
    with Reader.open(path) as reader:
        return verify_chain(reader.connection, "r-1")


def stored(path: Path) -> list[Step]:
    with Reader.open(path) as reader:
        return list(reader.steps("r-1"))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("retention") / "a.db"
    write_run(path, STEPS)
    return path.read_bytes()


@pytest.fixture
def path(written: bytes, tmp_path: Path) -> Path:
    """Return a database with a run of one day and 500 minutes."""
    (tmp_path / "a.db").write_bytes(written)
    return tmp_path / "a.db"


# ---------------------------------------------------------------- backup


def test_a_backup_is_the_database_while_it_is_being_written(tmp_path: Path) -> None:
    path, copy = tmp_path / "a.db", tmp_path / "copy.db"
    log = SqlAuditLog.open(path, group_steps=10)
    log.begin(cases.run())
    for step in STEPS[:100]:
        log.append_now(step)
    assert copied_at_s(path) is None
    backup(path, copy)
    assert copied_at_s(path) is not None
    assert copied_at_s(copy) is None
    for step in STEPS[100:120]:
        log.append_now(step)
    log.close()
    assert stored(copy) == STEPS[:100]
    assert verify(copy).passes
    assert stored(path) == STEPS[:120]


def test_a_backup_does_not_take_up_what_another_database_left(path: Path, tmp_path: Path) -> None:
    rest = tmp_path / "copy.db-wal"
    with closing(sqlite3.connect(tmp_path / "copy.db")) as other:
        other.execute("PRAGMA journal_mode = WAL")
        other.execute("CREATE TABLE other (x)")
        other.commit()
        left = rest.read_bytes()
    (tmp_path / "copy.db").unlink()
    rest.write_bytes(left)
    with pytest.raises(DataInvalid, match=r"copy\.db-wal belongs to a database that is missing"):
        backup(path, tmp_path / "copy.db")
    assert rest.read_bytes() == left
    rest.unlink()
    lock_file(tmp_path / "copy.db").write_text('{"pid":1,"http":"","run_id":"gone","steps":9}')
    backup(path, tmp_path / "copy.db")
    assert verify(tmp_path / "copy.db").passes


def test_a_damaged_database_is_not_backed_up_as_if_it_were_whole(
    path: Path, tmp_path: Path
) -> None:
    content = bytearray(path.read_bytes())
    middle = len(content) // 2 // PAGE_BYTES * PAGE_BYTES
    content[middle : middle + PAGE_BYTES] = b"\xff" * PAGE_BYTES
    path.write_bytes(content)
    with pytest.raises((DataInvalid, AuditUnwritable)):
        backup(path, tmp_path / "copy.db")
    assert not (tmp_path / "copy.db").exists()


# ---------------------------------------------------------------- prune


UNTIL = 499
"""The last step before the bars of the last day."""


def test_a_pruned_chain_holds_from_where_it_was_cut(path: Path) -> None:
    size = path.stat().st_size
    assert prune(path, keep_days=1, pruned_at_ms=5) == [Pruning("r-1", UNTIL, UNTIL + 1)]
    report = verify(path)
    assert report.passes
    assert (report.pruned_until, report.steps) == (UNTIL, len(STEPS) - UNTIL)
    assert stored(path)[:-1] == STEPS[UNTIL + 1 :]
    assert path.stat().st_size < size * 0.9


def test_a_pruned_run_resumes_as_before(path: Path) -> None:
    log = SqlAuditLog.open(path)
    before = log.resume("r-1")
    log.close()
    prune(path, keep_days=1, pruned_at_ms=5)
    log = SqlAuditLog.open(path)
    resumed = log.resume("r-1")
    log.close()
    assert resumed.next_sequence == before.next_sequence + 1
    assert present(resumed.last).account == present(before.last).account
    for name in ("state", "last_open_ms"):
        assert getattr(resumed, name) == getattr(before, name), name


def test_a_state_from_before_the_cut_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    quiet = [replace(step, state=b"only" if step.sequence == 3 else None) for step in STEPS]
    write_run(path, quiet)
    prune(path, keep_days=1, pruned_at_ms=5)
    log = SqlAuditLog.open(path)
    assert log.resume("r-1").state == b"only"
    log.close()


def test_a_run_goes_on_after_a_prune_and_is_pruned_again(path: Path) -> None:
    prune(path, keep_days=1, pruned_at_ms=5)
    more = cases.plain_steps(len(STEPS) + 300)[len(STEPS) :]
    log = SqlAuditLog.open(path)
    log.resume("r-1")
    for step in more:
        log.append_now(replace(step, sequence=step.sequence + 1))
    log.close()
    assert verify(path).passes
    (again,) = prune(path, keep_days=1, pruned_at_ms=6)
    assert UNTIL + 250 < again.until_sequence < 800
    report = verify(path)
    assert report.passes
    assert report.pruned_until == again.until_sequence
    assert prune(path, keep_days=1, pruned_at_ms=7) == [Pruning("r-1", again.until_sequence, 0)]


def test_nothing_is_pruned_that_is_young_enough(path: Path) -> None:
    assert prune(path, keep_days=2, pruned_at_ms=5) == [Pruning("r-1", -1, 0)]
    assert stored(path) == STEPS
    assert verify(path).pruned_until is None


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE fills SET fee = fee + 1 WHERE sequence = 11",
        "DELETE FROM orders WHERE sequence = 11",
        "UPDATE holdings SET cash = cash + 1 WHERE sequence = 11",
        "UPDATE outcomes SET reason = 'x'",
        "UPDATE prunes SET digest = zeroblob(32)",
        "UPDATE prunes SET until_sequence = 498",
        "DELETE FROM prunes",
        "UPDATE steps SET close = close + 1 WHERE sequence = 700",
        "DELETE FROM steps WHERE sequence = 500",
    ],
)
def test_what_is_done_to_a_pruned_run_is_found(path: Path, statement: str) -> None:
    prune(path, keep_days=1, pruned_at_ms=5)
    connection = sqlite3.connect(path)
    assert connection.execute(statement).rowcount > 0
    connection.commit()
    connection.close()
    assert not verify(path).passes


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a pruned run whose last step has a row in every table that a prune empties."""
    path = tmp_path_factory.mktemp("pruned") / "a.db"
    shadow = ShadowStep("ungated", Position(), cases.ACCOUNT, ())
    prediction = cases.model_forecast(1)
    last = replace(STEPS[-1], prediction=prediction, shadows=(shadow,), state=b"last")
    write_run(path, [*STEPS[:-1], last])
    prune(path, keep_days=1, pruned_at_ms=5)
    return path


@pytest.mark.parametrize("table", DROPPED_TABLES)
def test_a_row_added_where_a_prune_dropped_all_is_found(
    pruned: Path, tmp_path: Path, table: str
) -> None:
    path = Path(shutil.copy(pruned, tmp_path / "a.db"))
    names = ", ".join(name for name in stored_columns(table) if name not in ("run_key", "sequence"))
    with closing(sqlite3.connect(path)) as raw:
        raw.execute("PRAGMA foreign_keys = OFF")
        added = raw.execute(
            f"INSERT INTO {table} (run_key, sequence, {names}) SELECT 1, 7, {names} FROM {table} "
            f"WHERE sequence = {len(STEPS) - 1}"
        )
        assert added.rowcount == 1
        raw.commit()
    problem = present(verify(path).problem)
    assert (problem.what, problem.tables, problem.sequence) == ("extra", (table,), 7)


def test_a_gate_set_that_only_pruned_steps_used_is_held_to_what_they_stored(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    before = GateSet(cases.CROSS_GATES.gates, (1.0, 99.0, 60_000.0, 0.0))
    early = [
        replace(step, decision=step.decision and altered(step.decision, gate_set=before))
        for step in STEPS[:15]
    ]
    write_run(path, [*early, *STEPS[15:]])
    prune(path, keep_days=1, pruned_at_ms=5)
    assert verify(path).passes
    tamper(path, "UPDATE gate_sets SET threshold = 98.0 WHERE threshold = 99.0")
    problem = present(verify(path).problem)
    assert problem.what == "changed"
    assert "gate_sets" in problem.tables


def test_a_broken_chain_is_not_pruned(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("UPDATE steps SET close = close + 1 WHERE sequence = 7")
    connection.commit()
    connection.close()
    with pytest.raises(DataInvalid, match="Steps 7 to 7"):
        prune(path, keep_days=1, pruned_at_ms=5)
    assert len(stored(path)) == len(STEPS)


def test_a_prune_is_refused_while_a_daemon_has_the_database(path: Path) -> None:
    log = SqlAuditLog.open(path)
    with pytest.raises(ConfigInvalid, match="in use by process"):
        prune(path, keep_days=1, pruned_at_ms=5)
    log.close()


def test_settlements_and_gaps_survive_a_prune(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    early = cases.rich_steps()[:9]
    late = [replace(step, sequence=step.sequence + 9) for step in STEPS]
    write_run(path, [*early, *late])
    assert prune(path, keep_days=1, pruned_at_ms=5)[0].until_sequence == UNTIL + 9
    with Reader.open(path) as reader:
        kinds = {kind for (kind,) in reader.connection.execute("SELECT kind FROM v_events")}
        resumed = reader.connection.execute("SELECT count(*) FROM v_gaps").fetchone()
    assert kinds == {
        "instrument_change",
        "model_change",
        "gap",
        "funding",
        "command",
        "bar",
        "prune",
    }
    assert resumed == (1,)
    assert verify(path).passes
    assert MINUTE == 60_000
