"""A failed sync, a cut of power, a kill and a full disk lose no acknowledged step."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
import storage_cases as cases
from faulty_disk import Disk, files_of, put

from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.chain.verify import verify_chain
from tracepaper.storage.database.connection import open_reader
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.writer import open_writer
from tracepaper.strategies.errors import AuditUnwritable, DataInvalid

STEPS = cases.plain_steps(105)
FIRST_PAGES = 16
"""So many kills of a first start come before it has its log, and a few after."""


def held_steps(path: Path) -> int:
    """Return how many steps *path* holds, whose chain must pass."""
    with closing(open_reader(path)) as reader:
        report = verify_chain(reader, "r-1")
    assert report.passes
    return report.steps


@pytest.mark.parametrize("is_killed", [True, False], ids=["killed", "ended"])
def test_no_step_is_lost_to_a_power_cut_after_a_failed_sync(
    tmp_path: Path, *, is_killed: bool
) -> None:
    """The disk lacks the last commit of the first life, though the kernel shows it."""
    disk, path = Disk(), tmp_path / "first" / "a.db"
    with disk.installed():
        log = SqlAuditLog.open(path, group_steps=1)
        log.begin(cases.run())
        for step in STEPS[:40]:
            log.append_now(step)
        disk.fails_sync = True
        with pytest.raises(AuditUnwritable, match="see that the disk works"):
            log.append_now(STEPS[40])
        left = files_of(path), dict(disk.durable)
        log.close()
        disk.fails_sync = False
    if is_killed:
        path = tmp_path / "second" / "a.db"
        put(left[0], path)
        disk.durable, disk.unwritten = left[1], {}
    images = []
    with disk.installed():
        again = SqlAuditLog.open(path, group_steps=1)
        first = again.resume("r-1").next_sequence
        for step in STEPS[first:50]:
            again.append_now(step)
            images += [(step.sequence + 1, disk.image(is_lucky=luck)) for luck in (False, True)]
        again.close()
    for number, (acknowledged, image) in enumerate(images):
        put(image, cut := tmp_path / f"cut {number}" / "a.db")
        assert held_steps(cut) >= acknowledged


def test_a_first_start_that_was_killed_anywhere_is_begun_again(tmp_path: Path) -> None:
    disk, path = Disk(), tmp_path / "first" / "a.db"
    kills: dict[tuple[tuple[str, bytes], ...], None] = {}
    disk.before = lambda: kills.setdefault(tuple(files_of(path).items()))
    with disk.installed():
        log = SqlAuditLog.open(path, group_steps=1)
        log.begin(cases.run())
        log.append_now(STEPS[0])
        disk.before = object
        log.close()
    assert any("-journal" in dict(left) for left in kills)
    early = [*kills][:FIRST_PAGES]  # later kills leave a log, as those of a commit do
    for number, left in enumerate([*early, *[*kills][FIRST_PAGES::25]]):
        put(dict(left), again := tmp_path / f"kill {number}" / "a.db")
        log = SqlAuditLog.open(again, group_steps=1)
        if log._driver.execute("SELECT count(*) FROM runs").fetchone() == (0,):  # noqa: SLF001
            log.begin(cases.run())
        else:
            log.resume("r-1")
        for step in STEPS[log.next_sequence : 5]:
            log.append_now(step)
        log.close()
        assert held_steps(again) == 5


def test_a_reader_of_a_first_start_that_was_killed_says_to_start_again(tmp_path: Path) -> None:
    disk, path = Disk(), tmp_path / "first" / "a.db"
    left: list[dict[str, bytes]] = []
    disk.before = lambda: left.append(files_of(path))
    with disk.installed():
        open_writer(path).close()
    half = next(files for files in left if files.get("-journal") and files[""])
    put(half, killed := tmp_path / "killed" / "a.db")
    with pytest.raises(DataInvalid, match="its first start was killed; start it again"):
        open_reader(killed)


@pytest.mark.parametrize("commits", [0, 99], ids=["first commit", "hundredth commit"])
def test_a_disk_that_is_still_full_may_heal_and_loses_nothing(tmp_path: Path, commits: int) -> None:
    disk, path = Disk(), tmp_path / "a.db"
    with disk.installed():
        log = SqlAuditLog.open(path, group_steps=1)
        log.begin(cases.run())
        for step in STEPS[:commits]:
            log.append_now(step)
        disk.is_full = True
        with pytest.raises(AuditUnwritable, match=r"has no room .*; free some of the disk, then"):
            log.append_now(STEPS[commits])
        log.close()
        if commits:  # else there is nothing to move
            for _ in range(2):
                with pytest.raises(AuditUnwritable, match=r"a\.db has no room"):
                    open_writer(path)
        disk.is_full = False
        log = SqlAuditLog.open(path, group_steps=1)
        if commits:
            assert log.resume("r-1").next_sequence == commits
        else:
            log.begin(cases.run())
        for step in STEPS[commits:]:
            log.append_now(step)
        log.close()
    with Reader.open(path) as reader:
        assert list(reader.steps("r-1")) == STEPS
    assert held_steps(path) == len(STEPS)
