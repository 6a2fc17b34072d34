"""``db``: backup and prune, as they are typed."""

from __future__ import annotations

import json
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import storage_cases as cases
from report_cases import typed

from tracepaper.storage.audit import SqlAuditLog


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    cases.write_run(tmp_path / "a.db", cases.plain_steps(24 * 60 + 100))
    return tmp_path / "a.db"


def test_another_schema_is_rejected_alike_by_every_command(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 2")
    before = path.read_bytes()
    errors = set()
    for words in ("audit head", "audit verify", "verify last", "db prune --keep 1"):
        code, out, err = typed(capsys, *words.split(), "--db", path)
        assert (code, out) == (1, "")
        errors.add(err)
    (sentence,) = errors
    assert "has schema 2, and this version reads 1: use the tracepaper that made it" in sentence
    assert sentence.count("\n") == 1
    assert path.read_bytes() == before


def test_backup_copies_and_never_replaces(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = path.with_name("copy.db")
    code, out, _ = typed(capsys, "db", "backup", copy, "--db", path)
    assert code == 0
    assert out.startswith(f"Copied {path} to {copy} (")
    assert typed(capsys, "audit", "verify", "--db", copy)[0] == 0
    code, out, err = typed(capsys, "db", "backup", copy, "--db", path)
    assert (code, out) == (1, "")
    assert "exists already" in err


def test_prune_says_from_where_the_chain_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "long.db"
    cases.write_run(path, cases.plain_steps(2 * 24 * 60 + 300))
    code, out, err = typed(capsys, "db", "prune", "--keep", 1, "--db", path)
    assert code == 0
    # A run without a model kept: as many bars as its record says.
    assert err.startswith("Warning: how far run r-1 looks back was derived from its record alone")
    (steps,) = re.findall(r"Run r-1: (\d+) steps dropped; the chain holds from step \d+\.", out)
    until = int(steps) - 1
    assert 150 < until < 300
    code, out, _ = typed(capsys, "audit", "verify", "--db", path)
    assert code == 0
    assert f"is pruned until step {until} and holds from there: {3_180 - until:,} steps" in out
    code, out, _ = typed(capsys, "db", "prune", "--keep", 1, "--db", path, "--json")
    assert json.loads(out)["runs"] == [{"run_id": "r-1", "until_sequence": until, "steps": 0}]


def test_prune_waits_for_the_daemon_to_stop(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = SqlAuditLog.open(path)
    code, out, err = typed(capsys, "db", "prune", "--keep", 1, "--db", path)
    assert (code, out) == (2, "")
    assert "in use by process" in err
    log.close()
