"""What a database must be besides its chains: no flip, no trigger, no missing run goes unseen."""

from __future__ import annotations

import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import storage_cases as cases
from forging import rechain
from records import rows

from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.chain.integrity import AuditResult, audit
from tracepaper.storage.chain.verify import ChainReport
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.record.columns import stored_columns
from tracepaper.storage.record.rows import CHAINED_TABLES, SPARSE_TABLES
from tracepaper.strategies.errors import TracepaperError

FLIPS = 300


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a database of three runs, of which the second ended and the third did not."""
    path = tmp_path_factory.mktemp("integrity") / "run.db"
    cases.write_run(path, cases.rich_steps(), of=cases.run("first"))
    cases.write_run(path, cases.plain_steps(30), of=cases.run("second"), end=True)
    cases.write_run(path, cases.plain_steps(10), of=cases.run("third"))
    return path


@pytest.fixture
def path(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(original, tmp_path / "run.db"))


def done(path: Path, *statements: str) -> None:
    """Do *statements* with another tool, foreign keys off."""
    with closing(sqlite3.connect(path)) as raw:
        raw.execute("PRAGMA foreign_keys = OFF")
        for statement in statements:
            raw.execute(statement)
        raw.commit()


def audited(path: Path, run_id: str = "last", head: bytes | None = None) -> AuditResult:
    with Reader.open(path) as reader:
        return audit(reader.connection, reader.find(run_id), head=head)


def problem_of(path: Path, run_id: str = "last", head: bytes | None = None) -> str:
    """Return what is wrong, in one sentence; empty where nothing is."""
    problem = audited(path, run_id, head).problem
    return "" if problem is None else problem.sentence


def test_a_run_without_a_step_is_not_called_whole() -> None:
    assert not AuditResult(ChainReport("first", 0, b"", None, None), None).passes
    assert AuditResult(ChainReport("first", 1, b"", None, None), None).passes


# ---------------------------------------------------------------- the schema


@pytest.mark.parametrize(
    ("statement", "sentence"),
    [
        (
            "CREATE TRIGGER t AFTER INSERT ON steps BEGIN DELETE FROM fills; END",
            "trigger t can change rows",
        ),
        ("DROP VIEW v_fills", "view v_fills is missing"),
        ("DROP INDEX fills_order", "index fills_order is missing"),
        ("ALTER TABLE fills ADD COLUMN note TEXT", "table fills differs from the one"),
        ("ALTER TABLE fills RENAME COLUMN fee TO cost", "table fills differs from the one"),
    ],
)
def test_a_schema_that_is_not_ours_is_found(path: Path, statement: str, sentence: str) -> None:
    done(path, statement)
    assert sentence in problem_of(path)


def test_a_redefined_view_is_found(path: Path) -> None:
    (sql,) = rows(path, "SELECT sql FROM sqlite_schema WHERE name = 'v_fills'")[0]
    done(path, "DROP VIEW v_fills", sql.replace("f.fee", "0 * f.fee", 1))
    assert "view v_fills differs from the one" in problem_of(path)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE notes (text TEXT)",
        "CREATE VIEW v_mine AS SELECT * FROM v_fills",
        "CREATE INDEX mine ON fills (price)",
    ],
)
def test_what_others_added_is_a_warning(path: Path, statement: str) -> None:
    done(path, statement)
    audit_result = audited(path)
    assert audit_result.passes
    assert len(audit_result.warnings) == 1
    assert "does not belong to tracepaper" in audit_result.warnings[0]


def test_a_row_that_belongs_to_nothing_is_found(path: Path) -> None:
    done(path, "DELETE FROM runs WHERE run_id = 'third'")
    assert "belongs to a row that was removed" in problem_of(path)


@pytest.mark.parametrize("table", SPARSE_TABLES)
def test_a_row_without_its_step_is_found_in_every_run(path: Path, table: str) -> None:
    """SQLite holds no key of a step's rows: a row of a run that is not the one checked, too."""
    names = ", ".join(name for name in stored_columns(table) if name not in ("run_key", "sequence"))
    with closing(sqlite3.connect(path)) as raw:
        first = raw.execute(f"SELECT min(sequence) FROM {table}").fetchone()[0]
        assert raw.execute(f"PRAGMA foreign_key_list({table})").fetchall() == []
    done(
        path,
        f"INSERT INTO {table} (run_key, sequence, {names}) SELECT 99, 7, {names} FROM {table} "
        f"WHERE sequence = {first} LIMIT 1",
    )
    assert problem_of(path) == f"A row of {table} belongs to a row that was removed."


# ---------------------------------------------------------------- the links between runs


def removed(path: Path, run_key: int) -> None:
    """Remove a run from every table."""
    tables = (*CHAINED_TABLES, "commits", "instruments", "runs")
    done(path, *(f"DELETE FROM {table} WHERE run_key = {run_key}" for table in tables))


@pytest.mark.parametrize("run_key", [1, 2])
def test_a_deleted_run_is_found(path: Path, run_key: int) -> None:
    removed(path, run_key)
    assert "a run was removed" in problem_of(path)


def test_a_run_whose_tail_was_cut_since_is_found_by_the_run_after_it(path: Path) -> None:
    last = "run_key = 2 AND sequence = 30"
    done(
        path,
        f"DELETE FROM events WHERE {last}",
        f"DELETE FROM holdings WHERE {last}",
        f"DELETE FROM states WHERE {last}",
        f"DELETE FROM steps WHERE {last}",
        "DELETE FROM commits WHERE run_key = 2 AND first_sequence = 30",
        "UPDATE runs SET step_count = 30, head_digest = (SELECT digest FROM commits "
        "WHERE run_key = 2 AND last_sequence = 29) WHERE run_key = 2",
    )
    assert "does not hold the head that run second had" in problem_of(path)


@pytest.mark.parametrize("is_true", [True, False])
def test_a_run_opened_after_one_without_steps_is_linked_to_its_opening(
    path: Path, is_true: bool
) -> None:
    head = "(SELECT opened_digest FROM runs WHERE run_key = 2)" if is_true else "zeroblob(32)"
    done(path, f"UPDATE runs SET previous_step_count = 0, previous_head = {head} WHERE run_key = 3")
    rechain(path)
    unlinked = "Run third does not hold the head that run second had"
    assert problem_of(path).startswith(unlinked) is not is_true
    assert (problem_of(path) == "") is is_true


def test_runs_stay_linked_when_the_earlier_one_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    steps = cases.plain_steps(60)
    cases.write_run(path, steps[:40], of=cases.run("old"))
    cases.write_run(path, steps[:5], of=cases.run("new"))
    log = SqlAuditLog.open(path)
    log.resume("old")
    for step in steps[40:]:
        log.append_now(step)
    log.close()
    assert problem_of(path, "new") == problem_of(path, "old") == ""


# ---------------------------------------------------------------- damage


def dump(path: Path) -> list[str] | None:
    """Return all that can be read of a database; None where something cannot."""
    try:
        with closing(sqlite3.connect(path)) as raw:
            return list(raw.iterdump())
    except (sqlite3.Error, UnicodeDecodeError, OverflowError, ValueError):
        return None


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bit", "byte", "bytes"])
def test_no_damage_that_changes_what_can_be_read_is_passed(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "run.db"
    cases.write_run(path, [*cases.rich_steps()], end=True)
    content, whole = path.read_bytes(), dump(path)
    rng = random.Random(kind)
    passed = 0
    for _ in range(FLIPS // 3):
        changed = bytearray(content)
        for _ in range(rng.randint(2, 8) if kind == "bytes" else 1):
            at = rng.randrange(len(changed))
            changed[at] ^= 1 << rng.randrange(8) if kind == "bit" else rng.randrange(1, 256)
        path.write_bytes(changed)
        try:
            holds = problem_of(path) == ""
        except (TracepaperError, sqlite3.DatabaseError):
            holds = False  # one sentence, and exit 1, of which the commands take care
        if holds:
            assert dump(path) == whole
            passed += 1
    assert passed < FLIPS // 3
