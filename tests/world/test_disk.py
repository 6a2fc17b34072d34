"""A power cut, a kill and a failed file operation lose no acknowledged step and lock no record."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import storage_cases as cases
from world.disk import FAILURES, FOREVER, FULL, IOERR, Disk, Faults, Operation, Outage
from world.disk_histories import (
    HISTORIES,
    FolderRecorder,
    begin,
    ending,
    life,
    opened_log,
    played,
    recording,
    without_views,
)
from world.images import (
    KINDS,
    Cut,
    Files,
    RecordedHistory,
    check,
    drawn_cuts,
    heads_of,
    put,
    verdicts,
)

from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.database.connection import open_reader
from tracepaper.storage.maintenance import backup, copied_at_s
from tracepaper.strategies.errors import AuditUnwritable, DataInvalid

STEPS = cases.plain_steps(60)
IMAGES = {"lives": 90, "engine": 30, "backup": 40, "export": 15, "errors": 50}


@pytest.fixture
def plain_records() -> Iterator[None]:
    with without_views():
        yield


@pytest.mark.parametrize("name", IMAGES)
def test_a_record_outlives_a_power_cut(tmp_path: Path, name: str) -> None:
    result = played(name, 3, tmp_path, IMAGES[name])
    assert len(result.verdicts) == IMAGES[name]
    assert not result.problems


def is_log_sync(operation: Operation) -> bool:
    return operation.kind == "sync" and operation.path.endswith("-wal")


def by_normal(history: Sequence[Operation]) -> list[Operation]:
    """Return *history* as ``synchronous=NORMAL`` writes it: the log is synced at checkpoints."""
    files = [operation for operation in history if not operation.path.endswith(".lock")]
    following = dict(zip(map(id, files), files[1:], strict=False))
    return [
        operation
        for operation in history
        if not is_log_sync(operation) or following[id(operation)].path == "a.db"
    ]


CONTROLS: dict[str, Callable[[Sequence[Operation]], list[Operation]]] = {
    "synchronous=NORMAL": by_normal,
    "ignored syncs": lambda history: [of for of in history if of.kind != "sync"],
    "main file not synced": lambda history: [
        of for of in history if (of.kind, of.path) != ("sync", "a.db")
    ],
}


@pytest.mark.usefixtures("plain_records")
@pytest.mark.parametrize("control", CONTROLS)
def test_a_disk_that_syncs_less_is_found(tmp_path: Path, control: str) -> None:
    recorded = HISTORIES["lives"](tmp_path, 3)
    broken = RecordedHistory(CONTROLS[control](recorded.history), recorded.heads)
    cuts = [cut._replace(loses_names=False) for cut in drawn_cuts(broken, 1, 60)]
    assert any(of.problem for of in verdicts(broken, cuts, 1, tmp_path / "image"))


@pytest.mark.usefixtures("plain_records")
def test_a_first_start_that_is_cut_anywhere_is_begun_again(tmp_path: Path) -> None:
    """Cut at every operation until there is a log, then at every eighth."""
    recorded = HISTORIES["first start"](tmp_path, 2)
    history = recorded.history
    log_at = next(at for at, of in enumerate(history) if of.path.endswith("-wal"))
    ends = [*range(log_at + 2), *range(log_at + 2, len(history), 8), len(history)]
    kills = [Cut(0, at, "all", loses_names=False) for at in ends]
    losses = [Cut(at, at, KINDS[at % len(KINDS)], loses_names=at % 2 == 0) for at in ends]
    cuts = sorted(kills + losses, key=lambda cut: cut.at)
    assert not [of for of in verdicts(recorded, cuts, 1, tmp_path / "image") if of.problem]


# ---------------------------------------------------------------- failures


class FailingSyncs(Disk):
    """A disk on which every sync fails from one of the log on, counted from 1."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.left = first

    def before(self, kind: str, path: str, offset: int, size: int) -> int | None:
        self.left -= kind == "sync" and path.endswith("-wal")
        return FAILURES[kind] if kind == "sync" and self.left <= 0 else None


def append_all(log: SqlAuditLog) -> None:
    for step in STEPS:
        log.append_now(step)


@pytest.mark.usefixtures("plain_records")
@pytest.mark.parametrize("is_killed", [True, False], ids=["killed", "ended"])
def test_what_follows_a_failed_sync_outlives_a_power_cut(tmp_path: Path, is_killed: bool) -> None:
    recorder = FolderRecorder(tmp_path / "life 1", FailingSyncs(30))
    with recording(recorder):
        log = opened_log(recorder.folder / "a.db", pages=1000)
        begin(log)
        with pytest.raises(AuditUnwritable, match="see that the disk works"):
            append_all(log)
        if is_killed:
            recorder.kill(tmp_path / "life 2", log.close)
        else:
            log.close()
        recorder.faults = Disk()
        begun = len(recorder.history)
        assert not life(recorder.folder / "a.db", STEPS)
    recorded = RecordedHistory(recorder.history, heads_of(recorder.folder / "a.db"))
    cuts = drawn_cuts(recorded, 1, 40, first=begun)
    assert not [of for of in verdicts(recorded, cuts, 1, tmp_path / "image") if of.problem]


class Noting(Faults):
    """Faults of a disk that keeps the kind of each operation."""

    def __init__(self, errors: Mapping[int, int]) -> None:
        super().__init__(errors=errors)
        self.kinds: list[str] = []

    def before(self, kind: str, path: str, offset: int, size: int) -> int | None:
        self.kinds.append(kind)
        return super().before(kind, path, offset, size)


class Killed(NamedTuple):
    """The files that a second life leaves which is killed after its third step, and all heads."""

    files: dict[str, bytearray]
    heads: dict[str, dict[int, bytes]]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    folder = tmp_path_factory.mktemp("killed")
    recorder, files = FolderRecorder(folder / "life 1"), Files()
    with without_views(), recording(recorder):
        assert not life(recorder.folder / "a.db", STEPS[:10])
        log = opened_log(recorder.folder / "a.db", pages=1000)
        for step in STEPS[begin(log) : 13]:
            log.append_now(step)
        recorder.kill(folder / "life 2", log.close)
    for operation in recorder.history:
        files.take(operation)
    assert not life(recorder.folder / "a.db", STEPS[:14])
    return Killed(files.kernel(), heads_of(recorder.folder / "a.db"))


def third_life(folder: Path, killed: Killed, errors: Mapping[int, int]) -> Noting:
    """Let a life of one step follow in *folder*; check what it leaves; return its disk."""
    put(killed.files, folder)
    disk, files = Noting(errors), Files()
    recorder = FolderRecorder(folder, disk)
    with recording(recorder):
        is_whole = not life(folder / "a.db", STEPS[:14])
    for operation in recorder.history:
        if operation.kind == "acknowledge":
            files.take(operation)
    assert is_whole == ("r-1" in files.acknowledged) or disk.fired
    files.acknowledged.setdefault("r-1", 13)
    history = RecordedHistory(recorder.history, killed.heads)
    assert not check(history, folder, files, is_thorough=False), errors
    return disk


@pytest.mark.usefixtures("plain_records")
def test_a_life_of_which_an_operation_fails_ends_by_a_sentence_and_loses_nothing(
    tmp_path: Path, killed: Killed, caplog: pytest.LogCaptureFixture
) -> None:
    """Each operation of a start, a commit and an end fails; every other write is cut short."""
    kinds = third_life(tmp_path / "whole", killed, {}).kinds
    for number, kind in enumerate(kinds, start=1):
        codes = [IOERR, (FULL, -100)[number % 2]] if kind == "write" else [IOERR]
        for code in codes:
            assert third_life(tmp_path / "failed", killed, {number: code}).fired == 1
    for number in [number for number, kind in enumerate(kinds, 1) if kind == "write"][::8]:
        third_life(tmp_path / "full", killed, Outage(number, FULL))
    assert not caplog.records  # no library writes a traceback beside the sentence


@pytest.mark.usefixtures("plain_records")
def test_a_backup_of_which_an_operation_fails_leaves_nothing(
    tmp_path: Path, killed: Killed
) -> None:
    path, target = tmp_path / "run" / "a.db", tmp_path / "run" / "copy.db"
    put(killed.files, path.parent)
    recorder = FolderRecorder(path.parent)
    for number in itertools.count(1):
        span = FOREVER if number % 4 < 2 else 1
        faults = Faults(errors=Outage(number, (IOERR, FULL)[number % 2], span))
        recorder.faults = faults
        with recording(recorder):
            is_made = not ending(lambda: backup(path, target))
        assert is_made == target.exists()
        if not is_made:
            assert not [*path.parent.glob("copy.db*")]
            assert copied_at_s(path) is None
        elif number > faults.operations:
            break
        else:
            path.with_name("a.db.copied").unlink()
            target.unlink()
    copied = RecordedHistory([], killed.heads, "copy.db")
    files = Files()
    files.acknowledged["r-1"] = 13
    assert not check(copied, path.parent, files, is_thorough=True)


@pytest.mark.usefixtures("plain_records")
def test_a_reader_of_a_first_start_that_was_cut_says_to_start_again(tmp_path: Path) -> None:
    files = Files()
    for operation in HISTORIES["first start"](tmp_path, 2).history:
        files.take(operation)
        if operation.path == "a.db" and operation.kind == "write":
            break
    put(files.kernel(), tmp_path / "image")
    with pytest.raises(DataInvalid, match="its first start was killed; start it again"):
        open_reader(tmp_path / "image" / "a.db")
