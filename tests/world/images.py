"""What a power cut leaves of a history of file operations, opened by the product itself.

``Files`` replays a history. At a cut it draws an image: what was synced is whole, and of the later
changes an image keeps what its kind says. ``check`` opens an image as the next start does.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from world.disk import Operation

from tracepaper.storage.audit import read_resumed
from tracepaper.storage.chain.verify import verify_chain
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.writer import open_writer
from tracepaper.strategies.errors import TracepaperError

KINDS: Final = (
    "nothing",
    "all",
    "prefix",
    "writes",
    "sectors of 512",
    "sectors of 4096",
    "torn",
    "zeros",
    "garbage",
)
"""What an image keeps of the changes since a file's last sync.

``torn`` keeps all, but the last write in part. ``zeros`` and ``garbage`` keep sectors of 512 bytes,
and put these where a file grew and its data did not arrive.
"""
_SECTORS: Final = {"sectors of 512": 512, "sectors of 4096": 4096, "zeros": 512, "garbage": 512}
THOROUGH: Final = 50
"""One image of so many is read whole."""

Change = tuple[tuple[str, int | None], ...]
"""Names of a folder, each with its new file, or None where it is removed; they change together."""


class Files:
    """The files of a history so far: what the disk has, and what only the kernel has."""

    def __init__(self) -> None:
        self.acknowledged: dict[str, int] = {}  # steps by run
        self.promised: set[str] = set()  # names of files that the product said are there
        self._durable: list[bytearray] = []  # by the number of a file
        self._pending: list[list[Operation]] = []
        self._names: dict[str, int] = {}  # as the kernel shows them
        self._entries: dict[str, int] = {}  # as the disk has them
        self._changes: list[Change] = []  # of names, since their folder was synced

    def take(self, operation: Operation) -> None:
        """Apply the next operation of the history."""
        path = operation.path
        match operation.kind:
            case "acknowledge":
                self.acknowledged[path] = operation.offset
            case "promise":
                self.promised.add(path)
            case "create" | "delete" | "rename" | "folder":
                self._take_name(operation)
            case "sync":
                file = self._file(path)
                for change in self._pending[file]:
                    apply(self._durable[file], change)
                self._pending[file] = []
            case "failed sync":
                # The kernel counts the pages as written, so that no later sync writes them.
                self._pending[self._file(path)] = []
            case _:
                self._pending[self._file(path)].append(operation)

    def _take_name(self, operation: Operation) -> None:
        path, target = operation.path, operation.data.decode()
        match operation.kind:
            case "create":
                self._create(path)
            case "delete":
                if self._names.pop(path, None) is not None:
                    self._changes.append(((path, None),))
            case "rename":
                file = self._names.pop(path)
                self._names[target] = file
                self._changes.append(((path, None), (target, file)))
            case _:
                self._sync_names(path)

    def _create(self, path: str) -> int:
        file = len(self._durable)
        self._durable.append(bytearray())
        self._pending.append([])
        self._names[path] = file
        self._changes.append(((path, file),))
        return file

    def _file(self, path: str) -> int:
        file = self._names.get(path)
        return self._create(path) if file is None else file

    def _sync_names(self, folder: str) -> None:
        kept = []
        for change in self._changes:
            if any(_folder(path) == folder for path, _ in change):
                _rename(self._entries, change)
            else:
                kept.append(change)
        self._changes = kept

    def kernel(self) -> dict[str, bytearray]:
        """Return the files as a killed process leaves them."""
        return self.image("all", random.Random(0))

    def image(
        self, kind: str, rng: random.Random, *, loses_names: bool = False
    ) -> dict[str, bytearray]:
        """Return the files after a power cut, by path.

        If it *loses_names*, names of files since the last sync of their folder arrived up to a
        drawn one.
        """
        names = self._names
        if loses_names:
            names = dict(self._entries)
            for change in self._changes[: rng.randint(0, len(self._changes))]:
                _rename(names, change)
        return {
            path: _cut(self._durable[file], self._pending[file], kind, rng)
            for path, file in sorted(names.items())
        }


def apply(content: bytearray, change: Operation) -> None:
    """Apply a write or a truncation to *content*."""
    at = change.offset
    if len(content) < at:
        content.extend(bytes(at - len(content)))
    if change.kind == "truncate":
        del content[at:]
    else:
        content[at : at + len(change.data)] = change.data


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def _rename(names: dict[str, int], change: Change) -> None:
    for path, file in change:
        if file is None:
            names.pop(path, None)
        else:
            names[path] = file


def _cut(
    durable: bytearray, pending: Sequence[Operation], kind: str, rng: random.Random
) -> bytearray:
    """Return *durable* with what a cut of this *kind* keeps of the *pending* changes."""
    content = bytearray(durable)
    if kind == "nothing":
        return content
    if kind == "prefix":
        pending = pending[: rng.randint(0, len(pending))]
    if kind == "torn" and pending and (data := pending[-1].data):
        pending = [*pending[:-1], pending[-1]._replace(data=data[: rng.randint(0, len(data))])]
    is_kept = kind in {"all", "prefix", "torn"}
    for change in pending:
        for piece in _pieces(change, kind):
            if is_kept or rng.random() < 0.5:
                apply(content, piece)
            elif piece.offset >= len(durable):
                _lose(content, piece, kind, rng)
    return content


def _lose(content: bytearray, piece: Operation, kind: str, rng: random.Random) -> None:
    """Let the file grow by *piece*, whose data did not arrive, if the *kind* does that."""
    size = len(piece.data)
    if kind == "zeros":
        apply(content, piece._replace(data=bytes(size)))
    elif kind == "garbage":
        apply(content, piece._replace(data=rng.randbytes(size)))


def _pieces(change: Operation, kind: str) -> Iterator[Operation]:
    """Yield *change* in the pieces that arrive each alone: a write by the sectors it touches."""
    size = _SECTORS.get(kind)
    if size is None or change.kind == "truncate":
        yield change
        return
    place, end = change.offset, change.offset + len(change.data)
    while place < end:
        until = min((place // size + 1) * size, end)
        data = change.data[place - change.offset : until - change.offset]
        yield change._replace(offset=place, data=data)
        place = until


# ---------------------------------------------------------------- a history


class FurtherCheck(Protocol):
    """What a kind of history promises beside its steps."""

    def __call__(self, folder: Path, files: Files, *, is_thorough: bool) -> str:
        """Return what is wrong with the image in *folder*, which has been opened; else ""."""


def nothing_further(folder: Path, files: Files, *, is_thorough: bool) -> str:
    """Promise nothing beside the steps."""
    return ""


@dataclass
class RecordedHistory:
    """File operations of one or several lives, and the heads of their commits."""

    history: list[Operation]
    heads: dict[str, dict[int, bytes]]  # by run, and by the number of steps that the head covers
    database: str = "a.db"
    further: FurtherCheck = nothing_further
    hot: list[int] = field(default_factory=list)  # further cuts to draw often
    thorough: int = THOROUGH  # one image of so many is read whole


class Cut(NamedTuple):
    """One image of a history: before operation *at*, counted from 0."""

    number: int
    at: int
    kind: str
    loses_names: bool


class Verdict(NamedTuple):
    """An image, what is wrong with it ("" if nothing is), and whether it is the first of its kind.

    Equal images that have to hold the same are opened once.
    """

    cut: Cut
    problem: str
    is_first: bool


def is_hot(operation: Operation) -> bool:
    """Return whether a cut at *operation* is rare and telling.

    Those are changes of the main file, of a journal or of names, and the first frames of a log.
    """
    path, kind = operation.path, operation.kind
    if kind in {"acknowledge", "promise", "folder"} or path.endswith(".lock"):
        return False
    is_log = path.endswith("-wal")
    return (
        not is_log
        or kind in {"create", "delete", "truncate", "failed sync"}
        or (kind == "write" and operation.offset == 0)
    )


def drawn_cuts(recorded: RecordedHistory, seed: int, count: int, *, first: int = 0) -> list[Cut]:
    """Return *count* cuts from operation *first* on, in the order of the history.

    Half of them are where cuts are rare and telling.
    """
    history = recorded.history
    last = len(history)
    hot = [at for at in range(first, last) if is_hot(history[at])]
    hot += [at for at in recorded.hot if at >= first]
    cuts = []
    for number in range(count):
        rng = random.Random(f"{seed} cut {number}")
        at = rng.randint(first, last)
        if number % 2 and hot:
            at = min(rng.choice(hot) + rng.randint(0, 3), last)
        cuts.append(Cut(number, at, KINDS[number % len(KINDS)], rng.random() < 0.25))
    return sorted(cuts, key=lambda cut: cut.at)


def verdicts(
    recorded: RecordedHistory, cuts: Sequence[Cut], seed: int, folder: Path
) -> Iterator[Verdict]:
    """Make the image of each of the *cuts*, which are in order, in *folder*, and check it."""
    files, taken = Files(), 0
    problems: dict[bytes, str] = {}
    for cut in cuts:
        for operation in recorded.history[taken : cut.at]:
            files.take(operation)
        taken = max(taken, cut.at)
        rng = random.Random(f"{seed} image {cut.number}")
        image = files.image(cut.kind, rng, loses_names=cut.loses_names)
        is_thorough = cut.number % recorded.thorough == 0
        digest = _digest(image, files, is_thorough)
        if is_first := digest not in problems:
            put(image, folder)
            problems[digest] = check(recorded, folder, files, is_thorough=is_thorough)
        yield Verdict(cut, problems[digest], is_first)


def _digest(image: Mapping[str, bytes | bytearray], files: Files, is_thorough: bool) -> bytes:
    """Return the digest of all that the check of *image* depends on."""
    promised = sorted(files.promised)
    whole = hashlib.sha256(repr((files.acknowledged, promised, is_thorough)).encode())
    for name, content in image.items():
        whole.update(f"{name} {len(content)} ".encode())
        whole.update(content)
    return whole.digest()


def put(image: Mapping[str, bytes | bytearray], folder: Path) -> None:
    """Write the files of *image* into *folder*, which has no others afterwards."""
    for held in folder.iterdir() if folder.exists() else ():
        if held.is_dir():
            shutil.rmtree(held)
        else:
            held.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in image.items():
        path = folder / name
        if "/" in name:
            path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


# ---------------------------------------------------------------- an image


def check(recorded: RecordedHistory, folder: Path, files: Files, *, is_thorough: bool) -> str:
    """Return what is wrong with the image in *folder* that *files* left; "" if nothing is.

    The product opens it for writing. It holds all that was acknowledged, and heads that were.
    """
    try:
        writer = open_writer(folder / recorded.database)
        try:
            problem = _problem(writer.driver, recorded.heads, files.acknowledged)
            if is_thorough and not problem:
                problem = _hidden_problem(writer.driver)
        finally:
            writer.close()
        lost = [name for name in files.promised if not (folder / name).exists()]
        if lost and not problem:
            problem = f"LOST: {', '.join(lost)}, which had been written"
        if not problem:
            problem = recorded.further(folder, files, is_thorough=is_thorough)
    except TracepaperError as error:
        return f"refused: {error}".replace(f"{folder}/", "")
    except (sqlite3.Error, OSError, ValueError, AssertionError) as error:
        return f"raised {type(error).__name__}: {error}".replace(f"{folder}/", "")
    return problem


_RUNS: Final = (
    "SELECT run_id, step_count, head_digest, "
    "(SELECT coalesce(max(last_sequence), -1) + 1 FROM commits c WHERE c.run_key = r.run_key), "
    "(SELECT coalesce(max(sequence), -1) + 1 FROM steps s WHERE s.run_key = r.run_key) "
    "FROM runs r"
)


def _problem(
    driver: sqlite3.Connection,
    heads: Mapping[str, Mapping[int, bytes]],
    acknowledged: Mapping[str, int],
) -> str:
    """Return how the runs of a database are not those of the history."""
    held = dict.fromkeys(acknowledged, 0)
    for run_id, count, head, committed, newest in driver.execute(_RUNS):
        held[run_id] = count
        if count != committed or count < newest:
            return f"run {run_id}: {count} steps, {committed} of commits, {newest} by number"
        if heads[run_id].get(count) != head:
            return f"run {run_id}: the head of {count} steps was never written"
    for run_id, count in acknowledged.items():
        if held[run_id] < count:
            return f"run {run_id} LOST: {held[run_id]} steps, {count} were acknowledged"
    return ""


def _hidden_problem(driver: sqlite3.Connection) -> str:
    """Return what is wrong with pages, chains or the place where a run is resumed."""
    (verdict,) = driver.execute("PRAGMA integrity_check").fetchone()
    if verdict != "ok":
        return f"pages: {verdict}"
    for run_id, count in driver.execute("SELECT run_id, step_count FROM runs").fetchall():
        report = verify_chain(Reader(driver).connection, run_id)
        if not report.passes:
            return f"run {run_id}: {report.problem}"
        if read_resumed(driver, run_id).next_sequence != count:
            return f"run {run_id} of {count} steps is resumed elsewhere"
    return ""


def unrecorded(recorded: RecordedHistory, folder: Path) -> list[str]:
    """Return the files in *folder*, where the history ended, that it does not account for.

    An index of a log, a lock and the mark of a backup are not worth recording.
    """
    files = Files()
    for operation in recorded.history:
        files.take(operation)
    known = files.kernel()  # an empty log is what a reader of the heads leaves
    return [
        name
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(("-shm", ".lock", ".copied"))
        if known.get(name := path.relative_to(folder).as_posix(), b"") != path.read_bytes()
    ]


def heads_of(path: Path) -> dict[str, dict[int, bytes]]:
    """Return the heads of all commits in the database *path*, by run and by number of steps."""
    with Reader.open(path) as reader:
        heads: dict[str, dict[int, bytes]] = {}
        query = "SELECT run_id, opened_digest FROM runs"
        for run_id, opened in reader.connection.execute(query):
            heads[run_id] = {0: opened}
        query = "SELECT run_id, last_sequence + 1, digest FROM commits JOIN runs USING (run_key)"
        for run_id, count, digest in reader.connection.execute(query):
            heads[run_id][count] = digest
    return heads
