"""A sound copy beside a log, a journal or an index that is older or of another file."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import storage_cases as cases

from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.database.connection import open_reader
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.writer import open_writer
from tracepaper.storage.maintenance import backup
from tracepaper.storage.sweeps import SweepFile, read_sweep
from tracepaper.strategies.errors import DataInvalid

STEPS = cases.plain_steps(700)
OPENERS = [open_reader, open_writer]


def killed(path: Path, *, copied_at: int, steps: int, pages: int) -> None:
    """Make *path* as a writer of *steps* leaves it that is killed, and a copy of an earlier time.

    The log is moved into the database each time that it has *pages*.
    """
    alive = path.with_name("alive.db")
    writer = open_writer(alive)
    writer.driver.execute(f"PRAGMA wal_autocheckpoint = {pages}")
    log = SqlAuditLog(writer, group_steps=1)
    log.begin(cases.run())
    for step in STEPS[:steps]:
        if step.sequence == copied_at:
            backup(alive, path.with_name("copy.db"))
        log.append_now(step)
    for ending in ("", "-wal", "-shm", ".lock"):
        shutil.copy(f"{alive}{ending}", f"{path}{ending}")
    log.close()


def files_of(path: Path) -> dict[str, bytes]:
    files = (path.with_name(path.name + ending) for ending in ("", "-wal", "-journal"))
    return {file.name: file.read_bytes() for file in files if file.exists()}


def check_restored(path: Path, opening: Callable[[Path], object], steps: int) -> None:
    """Check that *path* is refused for what lies beside it, and holds *steps* without that."""
    before = files_of(path)
    with pytest.raises(
        DataInvalid, match=r"is sound without .*: move (\S+, )*a\.db\S+ away"
    ) as error:
        opening(path)
    assert files_of(path) == before
    for name in str(error.value).partition(": move ")[2].partition(" away")[0].split(", "):
        path.with_name(name).rename(path.with_name(f"moved {name}"))
    opened = opening(path)
    opened.close()  # type: ignore[attr-defined]
    with Reader.open(path) as reader:
        assert list(reader.steps("r-1")) == STEPS[:steps]


@pytest.mark.parametrize("opening", OPENERS)
@pytest.mark.parametrize(
    ("pages", "copied_at", "steps"),
    [(1_000, 5, 300), (1_000, 100, 690), (220, 100, 120), (50, 100, 120), (10, 100, 250)],
)
def test_a_copy_beside_an_older_log_is_not_called_damaged(
    tmp_path: Path, opening: Callable[[Path], object], pages: int, copied_at: int, steps: int
) -> None:
    path = tmp_path / "a.db"
    killed(path, copied_at=copied_at, steps=steps, pages=pages)
    shutil.copy(tmp_path / "copy.db", path)
    check_restored(path, opening, copied_at)


@pytest.mark.parametrize("opening", OPENERS)
def test_a_copy_beside_a_journal_of_another_file_is_not_undone(
    tmp_path: Path, opening: Callable[[Path], object]
) -> None:
    path = tmp_path / "a.db"
    cases.write_run(path, STEPS[:20])
    with closing(sqlite3.connect(tmp_path / "other.db", isolation_level=None)) as other:
        other.execute("CREATE TABLE notes (text)")
        other.execute("PRAGMA cache_size = 1")  # so that pages are written before the commit
        other.execute("BEGIN")
        other.executemany("INSERT INTO notes VALUES (?)", [("x" * 900,)] * 50)
        shutil.copy(tmp_path / "other.db-journal", tmp_path / "a.db-journal")
        other.execute("ROLLBACK")
    check_restored(path, opening, 20)


def test_a_log_that_belongs_to_its_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    killed(path, copied_at=100, steps=120, pages=1_000)
    shutil.copy(tmp_path / "copy.db", path)  # the log has every change since the beginning
    (tmp_path / "a.db-shm").write_bytes(b"of another file" * 3_000)
    open_writer(path).close()
    with Reader.open(path) as reader:
        assert list(reader.steps("r-1")) == STEPS[:120]


def test_a_sweep_that_was_killed_while_it_stored_a_run_says_to_start_it_again(
    tmp_path: Path,
) -> None:
    path, left = tmp_path / "sweep.db", tmp_path / "left.db"
    with SweepFile(path, {"of": "a test"}) as sweep:
        sweep.store((0, "whole", 0), {"figures": []})
    with closing(sqlite3.connect(path, isolation_level=None)) as raw:
        raw.execute("PRAGMA cache_size = 1")  # so that pages are written before the commit
        raw.execute("BEGIN")
        raw.executemany(
            "INSERT INTO cells VALUES (0, 'whole', ?, ?)", [(at, "x" * 900) for at in range(1, 50)]
        )
        for ending in ("", "-journal"):
            shutil.copy(f"{path}{ending}", f"{left}{ending}")
        raw.execute("ROLLBACK")
    with pytest.raises(DataInvalid, match="start it again, which resumes it"):
        read_sweep(left)
    with SweepFile(left, {"of": "a test"}) as again:
        assert [key for key, _ in again.cells()] == [(0, "whole", 0)]
    assert read_sweep(left).cells == 1
