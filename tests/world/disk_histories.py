"""Histories of file operations: first starts, lives, backups, exports and failures.

A history is made in this process by the product's own log. A kill leaves the files as the kernel
shows them: the next life goes on in a copy of them.
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final, NamedTuple

import storage_cases as cases
from exchange_client import candles, walk_rows
from msgspec.structs import replace
from recordings import crossing, record
from world.disk import (
    FOREVER,
    FULL,
    IOERR,
    Disk,
    Faults,
    Operation,
    Outage,
    Recorder,
    installed,
    os_error,
)
from world.images import (
    Files,
    RecordedHistory,
    Verdict,
    check,
    drawn_cuts,
    heads_of,
    unrecorded,
    verdicts,
)

from tracepaper.storage import maintenance
from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.covariates import kept_covariates, write_whole
from tracepaper.storage.database import exports
from tracepaper.storage.database import writer as writer_module
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.remedies import remedy_of
from tracepaper.storage.database.writer import open_writer
from tracepaper.strategies.errors import AuditUnwritable, TracepaperError
from tracepaper.strategies.types.decisions import Step

HOUR_MS: Final = 3_600_000
COPY: Final = "copy.db"
_EXPORT: Final = "export"


class FolderRecorder(Recorder):
    """The history of the files below one folder, by their names in it."""

    def __init__(self, folder: Path, faults: Disk | None = None) -> None:
        super().__init__()
        self.folder = folder
        self.faults = faults or Disk()
        self._written: set[str] = set()  # by SQLite or the lock, and so recorded already
        folder.mkdir(parents=True, exist_ok=True)

    def before(self, kind: str, path: str, offset: int, size: int) -> int | None:
        name = self._name(path)
        if name is None:
            return None
        self.faults.operations += 1
        return self.faults.before(kind, name, offset, size)

    def done(self, operation: Operation) -> None:
        if operation.kind == "acknowledge":
            self.history.append(operation)
        elif (name := self._name(operation.path)) is not None:
            self._written.add(name)
            self.history.append(operation._replace(path=name))

    def _name(self, path: object) -> str | None:
        """Return the name of *path* in the folder; None outside."""
        text = os.path.abspath(os.fspath(path)) if isinstance(path, str | Path) else ""  # noqa: PTH100
        root = os.fspath(self.folder)
        return text[len(root) + 1 :] if text == root or text.startswith(f"{root}/") else None

    def made(self, heads: dict[str, dict[int, bytes]], **options: Any) -> RecordedHistory:
        """Return the history with the *heads* of its commits; see that nothing went past it."""
        recorded = RecordedHistory(self.history, heads, **options)
        assert not (names := unrecorded(recorded, self.folder)), names
        return recorded

    def promise(self, path: Path) -> None:
        """Note that the product has said here that the file *path* is there."""
        self._note("promise", path)

    def kill(self, folder: Path, close: Callable[[], object]) -> None:
        """Go on in a copy of the files in the new *folder*, as after a kill.

        What *close* does to the old files is not recorded.
        """
        shutil.copytree(self.folder, folder, ignore=shutil.ignore_patterns("*-shm"))
        self.folder = folder
        known = len(self.history)
        close()
        del self.history[known:]

    # ------------------------------------------------------------ files that Python writes

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Record also what Python syncs, renames and removes; a file's content with that."""
        usual = {name: getattr(os, name) for name in ("fsync", "rename", "replace", "unlink")}

        def fsync(descriptor: int) -> None:
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            if (code := self.before("sync", str(path), 0, 0)) is not None:
                raise os_error(code, str(path))
            if path.is_dir():
                self._note("folder", path)
            else:
                self._take_content(path)
                self._note("sync", path)

        def rename(source: Any, target: Any, **options: Any) -> None:
            self._take_content(source)
            usual["rename"](source, target, **options)
            new = self._name(target)
            if new is not None:
                self._note("rename", source, new.encode())
                self._written.discard(self._name(source) or "")
                self._written.add(new)

        def unlink(path: Any, **options: Any) -> None:
            usual["unlink"](path, **options)
            if not options:  # else a path in the tree that is removed
                self._note("delete", path)

        try:
            for name, function in (
                ("fsync", fsync),
                ("rename", rename),
                ("replace", rename),
                ("unlink", unlink),
            ):
                setattr(os, name, function)
            yield
        finally:
            for name, function in usual.items():
                setattr(os, name, function)

    def _note(self, kind: str, path: Any, data: bytes = b"") -> None:
        if (name := self._name(path)) is not None:
            self.history.append(Operation(kind, name, 0, data))

    def _take_content(self, path: Any) -> None:
        """Record the content of a file of which nothing is recorded."""
        name = self._name(path)
        if name is not None and name not in self._written:
            self._written.add(name)
            self.history.append(Operation("create", name))
            self.history.append(Operation("write", name, 0, Path(path).read_bytes()))


@contextmanager
def without_views() -> Iterator[None]:
    """Let records be made without views, so that they are opened six times as fast."""
    views = vars(writer_module)["VIEWS"]
    vars(writer_module)["VIEWS"] = ()
    try:
        yield
    finally:
        vars(writer_module)["VIEWS"] = views


@contextmanager
def recording(recorder: FolderRecorder) -> Iterator[None]:
    """Record what the block writes."""
    with installed(recorder), recorder.watching():
        yield


# ---------------------------------------------------------------- lives


def drawn_steps(rng: random.Random, count: int) -> list[Step]:
    """Return *count* steps: of every event, answer and table first, then plain ones."""
    rich = cases.rich_steps() if rng.random() < 0.5 else []
    steps = [*rich, *cases.plain_steps(count, seed=rng.randint(1, 999))][:count]
    return [replace(step, sequence=number) for number, step in enumerate(steps)]


def opened_log(path: Path, *, pages: int, group_steps: int = 1) -> SqlAuditLog:
    """Open the record *path*, whose log is moved into it each time that it has *pages*."""
    writer = open_writer(path)
    try:
        writer.driver.execute(f"PRAGMA wal_autocheckpoint = {pages}")
    except BaseException:
        writer.close()
        raise
    return SqlAuditLog(writer, group_steps, path=path)


def begin(log: SqlAuditLog, run_id: str = "r-1") -> int:
    """Open the run, or resume it; return the number of its steps."""
    if run_id in Reader(log._driver).run_ids():
        return log.resume(run_id).next_sequence
    log.begin(cases.run(run_id))
    return 0


def first_start(folder: Path, seed: int) -> RecordedHistory:
    """Return a first start with all tables and views, and a few steps."""
    recorder = FolderRecorder(folder / "first")
    steps = drawn_steps(random.Random(seed), 4)
    with recording(recorder):
        assert not life(recorder.folder / "a.db", steps)
    return recorder.made(heads_of(recorder.folder / "a.db"))


def lives(folder: Path, seed: int) -> RecordedHistory:
    """Return two or three lives, with frequent checkpoints; some are killed."""
    rng = random.Random(seed)
    recorder = FolderRecorder(folder / "life 1")
    steps = drawn_steps(rng, rng.randint(60, 120))
    pages = rng.choice((8, 20, 40))
    groups = rng.choice((1, 1, 3))
    count = rng.randint(2, 3)
    ends = [len(steps) * life // count for life in range(1, count + 1)]
    with recording(recorder):
        for life, end in enumerate(ends, start=2):
            log = opened_log(recorder.folder / "a.db", pages=pages, group_steps=groups)
            for step in steps[begin(log) : end]:
                log.append_now(step)
            if life <= count and rng.random() < 0.5:
                recorder.kill(folder / f"life {life}", log.close)
            else:
                log.close()
    return recorder.made(heads_of(recorder.folder / "a.db"))


def traded(folder: Path, rng: random.Random, hours: int) -> str:
    """Record a strategy over drawn candles of hours, with a commit each step; return the run."""
    market = candles(walk_rows(hours, seed=rng.randint(1, 999)), interval_ms=HOUR_MS)
    config = crossing("BTCUSDT", interval="60")
    return record(folder / "a.db", config, [market], group_steps=1)


def engine(folder: Path, seed: int) -> RecordedHistory:
    """Return a strategy's run over drawn candles."""
    recorder = FolderRecorder(folder / "run")
    with recording(recorder):
        traded(recorder.folder, random.Random(seed), 48)
    return recorder.made(heads_of(recorder.folder / "a.db"))


# ---------------------------------------------------------------- commands between lives


_CONTENTS: Final = (b"time,rate\n", b"time,rate\n1,2\n")
"""Of a file beside the record, which is written whole and once more."""


def backed_up(folder: Path, seed: int) -> RecordedHistory:
    """Return a life in which a backup is made: no file, or a whole one; it can be made again."""
    rng = random.Random(seed)
    recorder = FolderRecorder(folder / "run")
    path, steps = recorder.folder / "a.db", drawn_steps(rng, 40)
    with recording(recorder):
        log = opened_log(path, pages=20)
        for step in steps[begin(log) : 25]:
            log.append_now(step)
        begun = len(recorder.history)
        rows = kept_covariates(path) / "a.csv"
        for content in _CONTENTS:
            write_whole((content,), rows)
            recorder.promise(rows)
        for copy in (path.with_name(COPY), *maintenance.backup(path, path.with_name(COPY))):
            recorder.promise(copy)
        ended = len(recorder.history)
        for step in steps[25:]:
            log.append_now(step)
        log.close()
    heads = heads_of(path)

    def further(folder: Path, files: Files, *, is_thorough: bool) -> str:
        target, kept = folder / COPY, kept_covariates(folder / "a.db") / "a.csv"
        if kept.exists() and kept.read_bytes() not in _CONTENTS:
            return f"{kept.name} is cut"
        if not target.exists():
            if is_thorough and "r-1" in files.acknowledged:
                maintenance.backup(folder / "a.db", target)
            return ""
        before = Files()
        before.acknowledged["r-1"] = 25
        return check(RecordedHistory([], heads, COPY), folder, before, is_thorough=is_thorough)

    hot = list(range(begun, ended + 1)) * 4
    return recorder.made(heads, further=further, hot=hot)


def exported(folder: Path, seed: int) -> RecordedHistory:
    """Return two exports of a growing run: each file is absent or whole, a third has them all."""
    rng = random.Random(seed)
    recorder = FolderRecorder(folder / "run")
    path, steps = recorder.folder / "a.db", drawn_steps(rng, 50)
    target = recorder.folder / _EXPORT
    whole: list[dict[str, bytes]] = [{}]
    with recording(recorder):
        log = opened_log(path, pages=1000)
        for step in steps[begin(log) : 30]:
            log.append_now(step)
        _export(path, target)
        whole.append(_contents(target))
        for step in steps[30:]:
            log.append_now(step)
        _export(path, target)
        whole.append(_contents(target))
        log.close()

    def further(folder: Path, files: Files, *, is_thorough: bool) -> str:
        held = _contents(folder / _EXPORT)
        for name, content in held.items():
            if content not in [state.get(name) for state in whole]:
                return f"{name} is cut"
        if is_thorough and files.acknowledged.get("r-1", 0) >= 30:
            _export(folder / "a.db", folder / _EXPORT)
            is_last = files.acknowledged["r-1"] == len(steps)
            if is_last and _contents(folder / _EXPORT) != whole[-1]:
                return "the export that was made again differs"
        return ""

    moves = (at for at, of in enumerate(recorder.history) if of.path.startswith(_EXPORT))
    return recorder.made(heads_of(path), further=further, hot=[*moves] * 20, thorough=3)


_VIEWS: Final = "v_bars,v_fills,v_ledger"


def _export(path: Path, target: Path) -> None:
    with Reader.open(path) as reader:
        exports.export(reader, "r-1", target, exports.views_of(_VIEWS))


def _contents(folder: Path) -> dict[str, bytes]:
    """Return the files of an export by their names."""
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("rows.parquet")
    }


# ---------------------------------------------------------------- operations that fail


ERRORS: Final = {"EIO": IOERR, "ENOSPC": FULL, "short write": -100}


def ending(work: Callable[[], object]) -> str:
    """Return the sentence by which *work* ended; "" if it was done.

    Raises ``AssertionError`` if the program would have ended by a traceback, or by an exit code
    after which nobody starts it again.
    """
    try:
        work()
    except (TracepaperError, sqlite3.DatabaseError, OSError) as error:
        cause = error if not isinstance(error, TracepaperError) else error.__cause__
        is_told = isinstance(cause, sqlite3.DatabaseError | OSError) and remedy_of(cause).may_heal
        if not is_told and not isinstance(error, AuditUnwritable):
            raise AssertionError(f"{type(error).__name__}: {error}") from error
        return str(error) or type(error).__name__
    return ""


def life(path: Path, steps: Sequence[Step], *, pages: int = 1000) -> str:
    """Store those of *steps* that the record lacks; return the sentence by which that ended."""

    def live() -> None:
        with closing(opened_log(path, pages=pages)) as log:
            for step in steps[begin(log) :]:
                log.append_now(step)

    return ending(live)


def faulted(folder: Path, seed: int) -> RecordedHistory:
    """Return lives of which the first meets an error at a drawn operation, and ends or goes on.

    After a failed sync the disk lacks what the kernel shows.
    """
    rng = random.Random(seed)
    code = rng.choice([*ERRORS.values(), IOERR, IOERR])
    span = rng.choice((1, 1, 3, FOREVER))
    faults = Faults(errors=Outage(rng.randint(1, 400), code, span))
    recorder = FolderRecorder(folder / "life 1", faults)
    steps = drawn_steps(rng, 40)
    pages = rng.choice((8, 20, 1000))
    with recording(recorder):
        is_killed = rng.random() < 0.5
        path = recorder.folder / "a.db"
        first = _kept_life(path, steps[:25], pages) if is_killed else life(path, steps[:25])
        faults.errors = {}
        if not isinstance(first, str):
            recorder.kill(folder / "life 2", first)
        begun = len(recorder.history)
        path = recorder.folder / "a.db"
        assert not life(path, steps, pages=pages)
    hot = list(range(begun, len(recorder.history)))
    return recorder.made(heads_of(path), hot=hot)


def _kept_life(path: Path, steps: Sequence[Step], pages: int) -> Callable[[], None] | str:
    """Live as ``life`` does, but let the log be open at the end: return what closes it."""
    log: SqlAuditLog | None = None
    try:
        log = opened_log(path, pages=pages)
        for step in steps[begin(log) :]:
            log.append_now(step)
    except (TracepaperError, sqlite3.DatabaseError, OSError) as error:
        if log is None:
            return str(error)
    return log.close


def refused(folder: Path, seed: int) -> RecordedHistory:
    """Return a backup that meets an error, and is repeated."""
    rng = random.Random(seed)
    faults = Faults()
    recorder = FolderRecorder(folder / "run", faults)
    path, target = recorder.folder / "a.db", recorder.folder / COPY
    with recording(recorder):
        run_id = traded(recorder.folder, rng, 100)
        heads = heads_of(path)

        def command() -> None:
            maintenance.backup(path, target)
            recorder.promise(target)

        begun = len(recorder.history)
        code, span = rng.choice([*ERRORS.values()]), rng.choice((1, 3, FOREVER))
        faults.errors = Outage(faults.operations + rng.randint(1, 100), code, span)
        end = ending(command)
        assert not end or not [*recorder.folder.glob(f"{COPY}*")], "of a backup that failed"
        faults.errors = {}
        if end:
            command()
    after = heads_of(path)
    heads[run_id] |= after[run_id]
    hot = list(range(begun, len(recorder.history))) * 2
    return recorder.made(heads, hot=hot)


HISTORIES: Final[Mapping[str, Callable[[Path, int], RecordedHistory]]] = {
    "first start": first_start,
    "lives": lives,
    "engine": engine,
    "backup": backed_up,
    "export": exported,
    "errors": faulted,
    "commands": refused,
}
HAVE_VIEWS: Final = ("first start", "export")
"""The kinds of histories whose records are made with views."""
READ_WHOLE: Final = 12
"""Most images of a history that are read whole, where its kind reads many."""
FROM_THE_START: Final = ("first start", "errors")
"""The kinds of histories that are cut also before their first step is acknowledged."""


def played(name: str, seed: int, folder: Path, images: int, *, only: int | None = None) -> Played:
    """Make the history *name* of *seed* in *folder*, and check *images* of it, or *only* one."""
    with nullcontext() if name in HAVE_VIEWS else without_views():
        recorded = HISTORIES[name](folder, seed)
        recorded.thorough = max(recorded.thorough, images // READ_WHOLE)
        kinds = [operation.kind for operation in recorded.history]
        first = 0 if name in FROM_THE_START else kinds.index("acknowledge")
        cuts = drawn_cuts(recorded, seed, images, first=first)
        if only is not None:
            cuts = [cut for cut in cuts if cut.number == only]
        return Played(recorded, [*verdicts(recorded, cuts, seed, folder / "image")])


class Played(NamedTuple):
    """A history and what was found in images of it."""

    recorded: RecordedHistory
    verdicts: list[Verdict]

    @property
    def problems(self) -> list[Verdict]:
        """The images with which something is wrong."""
        return [verdict for verdict in self.verdicts if verdict.problem]
