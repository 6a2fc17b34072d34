"""Backups are consistent while a daemon writes."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import storage_cases as cases

from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.chain.verify import ChainReport, verify_chain
from tracepaper.storage.database.connection import PAGE_BYTES
from tracepaper.storage.database.lock import lock_file
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.maintenance import backup, copied_at_s
from tracepaper.strategies.errors import AuditUnwritable, DataInvalid
from tracepaper.strategies.types.decisions import Step

STEPS = cases.plain_steps(500)


def verify(path: Path) -> ChainReport:
    with Reader.open(path) as reader:
        return verify_chain(reader.connection, "r-1")


def stored(path: Path) -> list[Step]:
    with Reader.open(path) as reader:
        return list(reader.steps("r-1"))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("written") / "a.db"
    cases.write_run(path, STEPS, group_steps=1)
    return path.read_bytes()


@pytest.fixture
def path(written: bytes, tmp_path: Path) -> Path:
    """Return a database with a run."""
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
