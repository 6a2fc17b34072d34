"""Opening: one writer, readers that cannot write, schemas that are not ours, the library."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
import storage_cases as cases
from builders import present

from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.database.connection import PAGE_BYTES, open_reader, sqlite_problem
from tracepaper.storage.database.lock import Holder, InstanceLock, holder_of, lock_file
from tracepaper.storage.database.views import FILE_SCHEMA
from tracepaper.storage.database.writer import open_writer
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid


def test_a_new_database_has_the_promised_settings(tmp_path: Path) -> None:
    writer = open_writer(tmp_path / "new" / "a.db")
    settings = {
        name: writer.driver.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout", "page_size")
    }
    tables = writer.driver.execute(
        "SELECT name, strict FROM pragma_table_list WHERE type = 'table' AND schema = 'main'"
    ).fetchall()
    writer.close()
    full = 2
    assert settings == {
        "journal_mode": "wal",
        "synchronous": full,
        "foreign_keys": 1,
        "busy_timeout": 1_000,
        "page_size": PAGE_BYTES,
    }
    ours = {name for name, strict in tables if strict}
    assert {name for name, _ in tables} - ours == {"sqlite_schema"}


def test_a_record_on_read_only_media_is_read_unless_somebody_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.db"
    log = SqlAuditLog.open(path)
    log.begin(cases.run())
    for step in cases.plain_steps(5):
        log.append_now(step)
    log.close()
    # As there, SQLite can make no file beside the record.
    (tmp_path / "a.db-shm").symlink_to(tmp_path / "missing" / "shm")
    with pytest.raises(DataInvalid, match="folder that it can write in"):
        open_reader(path)  # a folder may have a writer that this user is not
    mounted = os.statvfs(path)
    only_read = SimpleNamespace(f_flag=mounted.f_flag | os.ST_RDONLY)
    monkeypatch.setattr(os, "statvfs", lambda _path: only_read)
    with closing(open_reader(path)) as reader:
        assert reader.execute("SELECT count(*) FROM steps").fetchone() == (5,)
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            reader.execute("DELETE FROM runs")
    reader = open_reader(path)
    os.utime(path, ns=(1, 1))
    with pytest.raises(DataInvalid, match="the rows may be inconsistent"):
        reader.close()
    (tmp_path / "a.db-wal").write_bytes(b"rows")  # which would be left out
    with pytest.raises(DataInvalid, match="folder that it can write in"):
        open_reader(path)


def test_a_reader_can_neither_write_nor_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    log = SqlAuditLog.open(path)
    log.begin(cases.run())
    for step in cases.plain_steps(5):
        log.append_now(step)
    log.flush()
    reader = open_reader(path)
    for statement in ("DELETE FROM runs", "CREATE TABLE x (y)", "PRAGMA user_version = 5"):
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            reader.execute(statement)
    size = (tmp_path / "a.db-wal").stat().st_size
    reader.close()
    assert (tmp_path / "a.db-wal").stat().st_size == size > 0
    log.close()


# ---------------------------------------------------------------- the lock


def test_the_lock_file_names_the_daemons_address(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    writer = open_writer(path)
    present(writer.lock).publish("http://127.0.0.1:8787")
    assert json.loads(lock_file(path).read_text().splitlines()[0]) == {
        "pid": os.getpid(),
        "http": "http://127.0.0.1:8787",
    }
    assert holder_of(path) == Holder(os.getpid(), "http://127.0.0.1:8787")
    present(writer.lock).publish("")
    assert holder_of(path) == Holder(os.getpid(), "")
    writer.close()
    assert holder_of(path) is None


def test_the_lock_that_a_killed_process_leaves_is_taken_over(tmp_path: Path) -> None:
    path, killed = tmp_path / "a.db", tmp_path / "killed.db"
    lock = InstanceLock.acquire(path)
    lock.publish("http://127.0.0.1:1")
    with pytest.raises(ConfigInvalid, match=f"process {os.getpid()}"):
        InstanceLock.acquire(path)
    shutil.copy(lock_file(path), lock_file(killed))
    lock.release()
    lock.release()
    assert holder_of(killed) is None
    again = InstanceLock.acquire(killed)
    assert holder_of(killed) == Holder(os.getpid(), "")
    again.release()


# ---------------------------------------------------------------- what is not ours


def test_a_missing_database_is_not_made_by_a_reader(tmp_path: Path) -> None:
    with pytest.raises(DataInvalid, match="no database"):
        open_reader(tmp_path / "a.db")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("opening", [open_reader, open_writer])
@pytest.mark.parametrize("table", ["notes (text)", "runs (run_id)"])
def test_a_strange_database_is_refused_untouched(
    tmp_path: Path, opening: Callable[[Path], object], table: str
) -> None:
    path = tmp_path / "a.db"
    strange = sqlite3.connect(path)
    strange.execute(f"CREATE TABLE {table}")
    strange.commit()
    strange.close()
    before = path.read_bytes()
    with pytest.raises(DataInvalid, match="not a tracepaper database"):
        opening(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("opening", [open_reader, open_writer])
def test_another_schema_is_rejected_with_what_to_do(
    tmp_path: Path, opening: Callable[[Path], object]
) -> None:
    """Public reports: brewtarget#36, marvin#195, buildbot#4978, pangolin#2327, focalboard#4461."""
    path = tmp_path / "a.db"
    open_writer(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 1")
    connection.close()
    before = path.read_bytes()
    words = rf"has schema 1, and this version reads {FILE_SCHEMA}: .* \(`mv {path}\* FOLDER`\)\.$"
    with pytest.raises(DataInvalid, match=words):
        opening(path)
    assert (holder_of(path), path.read_bytes()) == (None, before)


def test_another_schema_names_the_version_that_wrote_it(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    cases.write_run(path, cases.plain_steps(3))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 1")
    with pytest.raises(DataInvalid, match=r"use the tracepaper that made it \(0\.1\.0\), name"):
        open_reader(path)


@pytest.mark.parametrize("opening", [open_reader, open_writer])
def test_a_gate_that_was_declared_since_is_named(
    tmp_path: Path, opening: Callable[[Path], object]
) -> None:
    path = tmp_path / "a.db"
    open_writer(path).close()
    with closing(sqlite3.connect(path, isolation_level=None)) as raw:
        views = raw.execute("SELECT name FROM sqlite_schema WHERE type = 'view'").fetchall()
        for (view,) in views:
            raw.execute(f"DROP VIEW {view}")
        raw.execute("ALTER TABLE answers DROP COLUMN measure_risk_tail")
    with pytest.raises(
        DataInvalid, match=r"made before gate risk\.tail was declared .* begin anew"
    ):
        opening(path)


# ---------------------------------------------------------------- configuration, library


@pytest.mark.parametrize(("version", "is_usable"), [((3, 36, 9), False), ((3, 37, 0), True)])
def test_a_library_without_strict_tables_is_too_old(
    version: tuple[int, ...], is_usable: bool
) -> None:
    assert (not sqlite_problem(version)) is is_usable
