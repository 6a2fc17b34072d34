"""Whoever writes a file answers a failure from one table: by its sentence and by its exit code."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import storage_cases as cases

from tracepaper.daemon.http.client import write_token
from tracepaper.storage.database.connection import open_reader
from tracepaper.storage.database.remedies import unusable
from tracepaper.storage.database.writer import open_writer
from tracepaper.storage.maintenance import backup
from tracepaper.strategies.errors import AuditUnwritable, ConfigInvalid, DataInvalid

WRITERS: dict[str, Callable[[Path, Path], object]] = {
    "record": lambda folder, _sound: open_writer(folder / "a.db"),
    "token": lambda folder, _sound: write_token(folder / "a.db"),
    "backup": lambda folder, sound: backup(sound, folder / "copy.db"),
}


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    path = tmp_path / "sound.db"
    cases.write_run(path, cases.plain_steps(3))
    return path


@pytest.fixture
def full_folder(tmp_path: Path, sound: Path) -> Iterator[Path]:
    """Yield a folder with a record, on a file system of its own that has no byte left."""
    folder = tmp_path / "full"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this user may not mount a file system")
    try:
        shutil.copy(sound, folder)
        (folder / "rest").write_bytes(bytes(os.statvfs(folder).f_bavail * 4096))
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_exit_code_1_and_says_what_to_free(
    full_folder: Path, sound: Path, writer: str
) -> None:
    with pytest.raises(AuditUnwritable, match=r"has no room \([^)]*\); free some of the disk"):
        WRITERS[writer](full_folder, sound)


def test_sqlite_s_failed_read_is_a_full_disk_only_where_the_disk_is_full(
    full_folder: Path, sound: Path
) -> None:
    with pytest.raises(DataInvalid, match=r"has no room \(disk I/O error; 0 bytes are free\)"):
        open_reader(full_folder / "sound.db")
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_READ
    assert "see that the disk works" in unusable(sound, error)


@pytest.mark.parametrize("writer", WRITERS)
def test_a_place_that_only_the_owner_can_mend_is_exit_code_2(
    tmp_path: Path, sound: Path, writer: str
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigInvalid, match=r"choose another place\.$"):
        WRITERS[writer](tmp_path / "file" / "folder", sound)
