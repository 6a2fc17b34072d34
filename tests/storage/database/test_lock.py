"""What is done to the files under a writer: noticed before the next step is acknowledged."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from itertools import chain
from pathlib import Path

import pytest
import storage_cases as cases
from waiting import deadline_s

from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.chain.verify import verify_chain
from tracepaper.storage.database.connection import open_reader
from tracepaper.storage.database.lock import (
    FileWatch,
    Holder,
    InstanceLock,
    holder_of,
    last_holder,
    lock_file,
)
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.writer import open_writer
from tracepaper.strategies.errors import AuditUnwritable, ConfigInvalid, DataInvalid
from tracepaper.strategies.types.decisions import Step

STEPS = cases.plain_steps(120)


def sibling(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


def stored(path: Path) -> list[Step]:
    with Reader.open(path) as reader:
        assert verify_chain(reader.connection, "r-1").passes
        return list(reader.steps("r-1"))


def log_of(path: Path, *, checkpoint_pages: int = 1_000) -> SqlAuditLog:
    writer = open_writer(path)
    writer.driver.execute(f"PRAGMA wal_autocheckpoint = {checkpoint_pages}")
    log = SqlAuditLog(writer, group_steps=1)
    log.begin(cases.run())
    return log


def elsewhere(code: str, *arguments: Path) -> str:
    """Run *code* in another process; SQLite's locks are a process's own."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
        timeout=deadline_s(),
    )
    return done.stdout


# ---------------------------------------------------------------- what ends the run


def replace_by_copy(path: Path) -> None:
    shutil.copy(path, sibling(path, ".copy"))
    sibling(path, ".copy").rename(path)


def replace_by_shorter(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: len(content) // 2])


def halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def refill(path: Path) -> None:
    """Cut the file and write it further back, as a writer does that does not look."""
    size = path.stat().st_size
    os.truncate(path, size // 2)
    os.truncate(path, size)


DAMAGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "file deleted": ("", Path.unlink, "deleted, moved or replaced"),
    "file moved": ("", lambda file: file.rename(sibling(file, ".old")), "deleted, moved"),
    "file replaced by its copy": ("", replace_by_copy, "deleted, moved or replaced"),
    "file emptied": ("", empty, r"was cut from \d+ to 0 bytes"),
    "file halved": ("", halve, r"was cut from \d+ to \d+ bytes"),
    "log deleted": ("-wal", Path.unlink, "saved into .*: start again"),
    "log moved": ("-wal", lambda file: file.rename(sibling(file, ".old")), "saved into"),
    "log replaced by its copy": ("-wal", replace_by_copy, "saved into .*: start again"),
    "log replaced by half of it": ("-wal", replace_by_shorter, "saved into .*: start again"),
    "log emptied": ("-wal", empty, "was cut"),
    "log halved": ("-wal", halve, "was cut"),
    "log halved and grown again": ("-wal", refill, "was cut"),
    "index deleted": ("-shm", Path.unlink, "saved into .*: start again"),
    "index replaced": ("-shm", replace_by_copy, "saved into .*: start again"),
    "index emptied": ("-shm", empty, "saved into .*: start again"),
    "index halved": ("-shm", halve, "saved into .*: start again"),
}
MAPPED = {"index emptied", "index halved"}
"""Within a commit these end SQLite by a signal: it has the pages mapped."""


BEYOND_USE = {"log emptied", "log halved", "log halved and grown again"}
"""Where checkpoints come often, these cut what the database holds already."""


@pytest.mark.parametrize(
    ("name", "checkpoint_pages"),
    [
        *((name, 1_000) for name in DAMAGES),
        *((name, 10) for name in sorted(DAMAGES.keys() - BEYOND_USE)),
    ],
)
def test_no_step_is_acknowledged_after_a_file_was_taken_away(
    tmp_path: Path, name: str, checkpoint_pages: int
) -> None:
    ending, damage, words = DAMAGES[name]
    path = tmp_path / "a.db"
    log = log_of(path, checkpoint_pages=checkpoint_pages)
    for step in STEPS[:40]:
        log.append_now(step)
    damage(sibling(path, ending))
    for _ in range(2):
        with pytest.raises(AuditUnwritable, match=words):
            log.append_now(STEPS[40])
    log.close()
    if "saved" in words:
        assert stored(path) == STEPS[:40]
    elif ending == "-wal":
        with pytest.raises(DataInvalid, match=r"40 were committed|restore a backup"):
            open_reader(path)


@pytest.mark.parametrize("name", sorted(DAMAGES.keys() - {"file halved", *MAPPED}))
def test_nor_where_it_happens_while_a_step_is_committed(tmp_path: Path, name: str) -> None:
    ending, damage, words = DAMAGES[name]
    path = tmp_path / "a.db"
    log = log_of(path)
    for step in STEPS[:40]:
        log.append_now(step)

    def at(statement: str) -> None:
        if statement == "COMMIT":
            damage(sibling(path, ending))

    raw = log._driver  # noqa: SLF001 - where a statement begins, only SQLite knows
    raw.set_trace_callback(at)
    with pytest.raises(AuditUnwritable, match=words):
        log.append_now(STEPS[40])
    raw.set_trace_callback(None)
    with pytest.raises(AuditUnwritable, match=words):
        log.append_now(STEPS[41])
    log.close()
    if "saved" in words:
        assert stored(path) == STEPS[:41]  # the one in hand as well: it was committed


def test_another_log_is_laid_aside_before_it_can_be_read_over_what_was_saved(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.db"
    log = log_of(path)
    for step in STEPS[:40]:
        log.append_now(step)
    with Reader.open(path) as reader:  # so that the close below is not the last one
        replace_by_shorter(sibling(path, "-wal"))
        with pytest.raises(AuditUnwritable, match="saved into"):
            log.append_now(STEPS[40])
        log.close()
        assert not sibling(path, "-wal").exists()
        assert sibling(path, "-wal.replaced").exists()
        assert reader.connection.execute("SELECT count(*) FROM runs").fetchone() == (1,)
    assert stored(path) == STEPS[:40]


READER = """
import sqlite3, sys
db = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True, isolation_level=None)
db.execute("BEGIN")
print(db.execute("SELECT count(*) FROM steps").fetchone(), flush=True)
for statement in sys.stdin:
    print(db.execute(statement).fetchone(), flush=True)
"""


@pytest.mark.parametrize("damage", [Path.unlink, replace_by_copy, replace_by_shorter])
def test_a_restart_goes_on_beside_a_reader_of_the_log_that_was_deleted(
    tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    path = tmp_path / "a.db"
    log = log_of(path)
    for step in STEPS[:40]:
        log.append_now(step)
    command = [sys.executable, "-c", READER, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdin is not None
        assert reader.stdout is not None
        assert reader.stdout.readline()
        damage(sibling(path, "-wal"))
        with pytest.raises(AuditUnwritable, match=r"saved into .*: start again"):
            log.append_now(STEPS[40])
        log.close()
        # Its transaction needs the log that is gone, so no other may begin in its place.
        with pytest.raises(AuditUnwritable, match=r"still reads .*every stored step is kept"):
            open_writer(path, reader_attempts=1)
        reader.stdin.write("COMMIT\n")
        reader.stdin.flush()
        assert reader.stdout.readline()
        for first in (40, 60):
            log = SqlAuditLog(open_writer(path), group_steps=1)
            log.resume("r-1")
            for step in STEPS[first : first + 20]:
                log.append_now(step)
            log.close()
        reader.stdin.close()
    assert stored(path) == STEPS[:80]


def test_a_long_query_delays_a_start_which_names_it_and_succeeds_after_it(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    log = log_of(path)
    for step in STEPS[:40]:
        log.append_now(step)
    command = [sys.executable, "-c", READER, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdin is not None
        assert reader.stdout is not None
        assert reader.stdout.readline()
        log.close()  # it leaves the log, which the query reads
        assert sibling(path, "-wal").stat().st_size > 0
        with pytest.raises(
            AuditUnwritable, match=rf"^Process {reader.pid} \(python.*\) still reads"
        ):
            open_writer(path, reader_attempts=1)
        reader.stdin.write("COMMIT\n")
        reader.stdin.flush()
        assert reader.stdout.readline()
        open_writer(path, reader_attempts=1).close()  # though the process has the file open
        assert sibling(path, "-wal").stat().st_size == 0
        reader.stdin.close()
    assert stored(path) == STEPS[:40]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [Path.unlink, halve, empty, flip])
def test_what_a_killed_writer_committed_is_missed(
    tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    path, killed = tmp_path / "a.db", tmp_path / "killed.db"
    log = log_of(path)
    for step in STEPS[:40]:
        log.append_now(step)
    for ending in ("", "-wal", ".lock"):
        shutil.copy(sibling(path, ending), sibling(killed, ending))
    log.close()
    assert last_holder(path) is None
    damage(sibling(killed, "-wal"))
    for opening in (open_reader, open_writer, open_reader):
        with pytest.raises(
            DataInvalid, match=r"r-1, and 40 were committed: .* killed\.db\.lock to"
        ):
            opening(killed)
    shutil.copy(path, killed)  # closed, and so whole without a log
    sibling(killed, "-wal").unlink(missing_ok=True)
    assert stored(killed) == STEPS[:40]
    writer = open_writer(killed)
    assert last_holder(killed) == Holder(os.getpid(), "", "r-1", 40)  # it may be killed again
    writer.close()
    assert last_holder(killed) is None


def test_what_a_reader_kept_in_the_log_of_an_orderly_end_is_missed(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    log = log_of(path)
    log.append_now(STEPS[0])
    with Reader.open(path):
        log.close()
    sibling(path, "-wal").unlink()
    with pytest.raises(DataInvalid, match=r"of run r-1, and 1 were committed"):
        open_reader(path)


# ---------------------------------------------------------------- what does not


def no_harm(_path: Path) -> None:
    """Do nothing: our own checkpoints must not alarm."""


def foreign_checkpoint(path: Path) -> None:
    elsewhere(
        "import sqlite3, sys\n"
        "with sqlite3.connect(sys.argv[1]) as db:\n"
        "    print(db.execute('PRAGMA wal_checkpoint(TRUNCATE)').fetchone())",
        path,
    )
    assert sibling(path, "-wal").stat().st_size == 0


def foreign_visit(path: Path) -> None:
    elsewhere(
        "import sqlite3, sys\n"
        "db = sqlite3.connect(sys.argv[1])\n"
        "print(db.execute('SELECT count(*) FROM runs').fetchone())\n"
        "db.close()",
        path,
    )


def copy(path: Path) -> None:
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(":memory:")) as target:
        source.backup(target)


def forbid(path: Path) -> None:
    path.chmod(0)
    sibling(path, "-wal").chmod(0o400)


@pytest.mark.parametrize("checkpoint_pages", [1, 10, 1_000])
@pytest.mark.parametrize(
    "visit", [no_harm, foreign_checkpoint, foreign_visit, copy, forbid], ids=lambda f: f.__name__
)
def test_what_loses_nothing_ends_nothing(
    tmp_path: Path, visit: Callable[[Path], None], checkpoint_pages: int
) -> None:
    path = tmp_path / "a.db"
    log = log_of(path, checkpoint_pages=checkpoint_pages)
    for number, step in enumerate(STEPS):
        if number in {40, 41}:
            visit(path)
        log.append_now(step)
    log.close()
    path.chmod(0o600)
    assert stored(path) == STEPS


# ---------------------------------------------------------------- one writer, whatever the name


def named(path: Path, way: str) -> Path:
    """Return another name of the database *path*."""
    other = path.parent / "elsewhere" / "b.db"
    other.parent.mkdir()
    if way == "hard link":
        os.link(path, other)
    elif way == "symbolic link":
        other.symlink_to(path)
    elif way == "link of its folder":
        other = path.parent / "folder" / path.name
        other.parent.symlink_to(path.parent)
    else:
        lock_file(path).unlink()
        other = path
    return other


WAYS = ["hard link", "symbolic link", "link of its folder", "deleted lock file"]
SECOND = """
import sys
from pathlib import Path
from tracepaper.storage.database.writer import open_writer
from tracepaper.strategies.errors import ConfigInvalid
try:
    open_writer(Path(sys.argv[1]))
except ConfigInvalid as error:
    print(error)
"""


@pytest.mark.parametrize("way", WAYS)
def test_a_second_writer_is_refused_under_any_name(tmp_path: Path, way: str) -> None:
    path = tmp_path / "a.db"
    log = log_of(path)
    log.append_now(STEPS[0])
    other = named(path, way)
    holder = f"process {os.getpid()}" if holder_of(other) else "another process"
    assert f"in use by {holder}; stop it" in elsewhere(SECOND, other)
    with pytest.raises(ConfigInvalid, match=f"in use by process {os.getpid()}; stop it"):
        open_writer(other)
    foreign_visit(path)  # had our locks gone, its close would delete the log
    log.append_now(STEPS[1])
    log.close()
    assert stored(path) == STEPS[:2]


def test_a_count_that_lost_power_wrote_in_part_counts_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    log = log_of(path)
    contents = []
    for steps in (29, 30):
        log.lock.acknowledge("r-1", steps)
        contents.append(lock_file(path).read_bytes())
    older, newer = contents
    for cut in range(len(newer)):
        lock_file(path).write_bytes(newer[:cut] + older[cut:])
        last = last_holder(path)
        assert last is None or last.steps in (29, 30), cut
    log.close()


def test_the_lock_goes_with_the_writer(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    open_writer(path).close()
    file = FileWatch.open(path)
    with pytest.raises(ConfigInvalid, match=f"in use by process {os.getpid()}"):
        open_writer(path)
    file.close()
    file.close()
    open_writer(path).close()


def test_an_orderly_end_leaves_the_database_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    open_writer(path).close()
    assert [file.name for file in tmp_path.iterdir()] == ["a.db"]


def test_writers_in_turn_are_all_seen_though_each_removes_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a.db"

    def take_turns(_worker: int) -> list[bool]:
        seen: list[bool] = []
        while len(seen) < 100:
            with suppress(ConfigInvalid):  # another has it
                lock = InstanceLock.acquire(path)
                seen.append(holder_of(path) is not None)
                lock.release()
        return seen

    with ThreadPoolExecutor(4) as workers:
        assert all(chain.from_iterable(workers.map(take_turns, range(4))))


# ---------------------------------------------------------------- a foreign write lock


async def test_a_foreign_write_lock_is_waited_for_without_end(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    log = log_of(path)
    log.append_now(STEPS[0])
    raw = log._driver  # noqa: SLF001 - a second is long for a test
    raw.execute("PRAGMA busy_timeout = 1")
    waits = 0
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as shell:
        shell.execute("BEGIN IMMEDIATE")

        def waiting() -> None:
            nonlocal waits
            waits += 1
            assert log.is_blocked
            if waits == 20:
                shell.execute("ROLLBACK")

        log.report_waits(waiting)
        await log.append(STEPS[1])
    assert (waits, log.is_blocked) == (20, False)
    log.close()
    assert stored(path) == STEPS[:2]


def blocked(path: Path, work: Callable[[], object]) -> str:
    """Return what *work* says while another process has *path* locked."""
    with closing(sqlite3.connect(path, isolation_level=None)) as shell:
        shell.execute("BEGIN IMMEDIATE")
        with pytest.raises(AuditUnwritable) as caught:
            work()
    return str(caught.value)


def test_what_nobody_watches_does_not_wait_for_ever_nor_speak_of_a_full_disk(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.db"
    log = log_of(path)
    log.append_now(STEPS[0])
    log._driver.execute("PRAGMA busy_timeout = 1")  # noqa: SLF001 - a second is long for a test
    error = blocked(path, lambda: log.append_now(STEPS[1]))
    assert "locked); end the transaction of the other process" in error
    log.close()
