"""``SqlAuditLog``: stores each step in a transaction before anything acts on the step.

Live, ``await append(step)`` commits the step in a single writer thread. In replay
``append_now(step)`` runs inline and commits ``GROUP_STEPS`` at a time.
"""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, Self, TypeVar

from msgspec import Struct
from sqlalchemy import bindparam, update
from sqlalchemy.dialects import sqlite

from tracepaper.storage.chain.verify import StoredCommit
from tracepaper.storage.checkpoints import kept_identity
from tracepaper.storage.database.chunks import chain_head, find_step, latest_state, run_span
from tracepaper.storage.database.connection import PAGE_BYTES, is_busy_error
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.remedies import refusal
from tracepaper.storage.database.schema import metadata
from tracepaper.storage.database.trade_rows import trades_until
from tracepaper.storage.database.writer import Writer, insert_rows, open_writer
from tracepaper.storage.record.encode import StepEncoder
from tracepaper.storage.record.hashing import Commit
from tracepaper.storage.record.rows import Previous
from tracepaper.strategies.errors import AuditUnwritable, DataInvalid, InvariantBroken
from tracepaper.strategies.types.decisions import (
    Account,
    GateSet,
    QuietStretch,
    RunRow,
    Step,
    quiet_step,
)
from tracepaper.strategies.types.market import (
    Bar,
    Command,
    Depths,
    Event,
    Mark,
    ModelChange,
    ParityCheck,
    Quote,
    RunEnd,
    RunKind,
    Trade,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tracepaper.storage.database.lock import InstanceLock
    from tracepaper.storage.record.columns import Row

# ---------------------------------------------------------------- resuming a run


class ResumePoint(Struct, frozen=True):
    """Everything needed to resume a run; ``state`` is the engine's state."""

    run: RunRow
    run_key: int
    gate_sets: tuple[GateSet, ...]
    next_sequence: int
    head: bytes
    state: bytes | None  # the newest stored state
    last_open_ms: dict[str, int]  # open time of the newest bar, by instrument
    last: Step | None  # None if there was no step yet


def read_resumed(connection: sqlite3.Connection, run_id: str) -> ResumePoint:
    """Return the resume point of *run_id*; raise ``DataInvalid`` if its record is damaged."""
    reader = Reader(connection)
    stored = reader.stored_run(run_id)
    if damage := reader.damage(run_id):
        raise DataInvalid(damage)
    chain_end = chain_head(connection, stored.run_key)
    sequence, head = (-1, stored.opened_digest) if chain_end is None else chain_end
    last = find_step(connection, *run_span(stored.run_key), "steps", newest=True)
    state = latest_state(connection, stored.run_key)
    return ResumePoint(
        run=stored.run,
        run_key=stored.run_key,
        gate_sets=reader.gate_sets(stored.run_key),
        next_sequence=sequence + 1,
        head=head,
        state=None if state is None else state[0],
        last_open_ms=reader.last_open_ms(run_id),
        last=None if last is None else reader.step(run_id, sequence),
    )


GROUP_STEPS: Final = 4000
"""Steps per commit in ``append_now``; a longer start is divided into commits of this size.

Each commit rewrites the last page of every table: with 1000 steps a replay takes a tenth longer.
"""
LOCK_ATTEMPTS: Final = 5
"""Attempts, of a second each, to get the write lock if nobody is notified of the wait."""
START_STEPS_MAX: Final = 100_000
"""Most steps that are buffered until the start event, with which they are stored."""

_RUNS: Final = metadata.tables["runs"]
_UPDATE_HEAD: Final = str(
    update(_RUNS)
    .where(_RUNS.c.run_key == bindparam("key"))
    .values(step_count=bindparam("count"), head_digest=bindparam("head"))
    .compile(dialect=sqlite.dialect())
)
"""Compiled once: each step that is committed live updates its run."""
_TAKEN_OVER: Final = (
    "DELETE FROM begins WHERE EXISTS (SELECT 1 FROM runs WHERE run_key = ? AND kind = ?)"
)
_PREVIOUS: Final = "SELECT run_id, step_count, head_digest FROM runs WHERE run_key = ?"

Result = TypeVar("Result")


_AT_ONCE: Final = (Command, ModelChange, ParityCheck)
"""Events without decision or trade that are committed at once nevertheless."""
_PRICES: Final = (Quote, Mark, Trade, Depths)
"""Events that may wait for the next bar if they change no money."""
COMMIT_WITHIN_MS: Final = 60_000
"""Market time that buffered steps may wait; the next step after it commits them."""


class SqlAuditLog:
    """The audit log of one run in one SQLite database."""

    def __init__(
        self, writer: Writer, group_steps: int | None = None, *, path: Path | None = None
    ) -> None:
        self._writer = writer
        self._connection, self._driver = writer.connection, writer.driver
        self._group_steps = GROUP_STEPS if group_steps is None else group_steps
        self._thread: ThreadPoolExecutor | None = None
        self._encoder: StepEncoder | None = None
        self._run_id, self._run_key = "", 0
        self._due = 0  # sequence of the next step
        # Steps that are not encoded yet, in the groups in which they were appended.
        self._buffer: list[Sequence[Step] | QuietStretch] = []
        self._last: tuple[Event, Account] | None = None  # of the last step appended
        self._opening: dict[str, list[Row]] = {}  # the rows of a run that is not stored yet
        self._models: dict[str, Row] = {}  # rows of models that are not stored yet, by their hash
        self._has_decided = False
        self._path = path  # the checkpoints are in the same folder
        self._refusal = ""  # why no more steps can be appended
        self._is_writable = True  # until a transaction fails
        self._on_wait: Callable[[], object] | None = None
        self.is_blocked = False  # whether another process holds the write lock
        self._is_leaving = False

    @classmethod
    def open(
        cls, path: Path, *, group_steps: int | None = None, page_bytes: int = PAGE_BYTES
    ) -> Self:
        """Open or create the database *path* and take its lock; raise as ``open_writer`` does."""
        return cls(open_writer(path, page_bytes=page_bytes), group_steps, path=path)

    def report_waits(self, on_wait: Callable[[], object]) -> None:
        """Call *on_wait*, in the writer's thread, for each second of waiting for the write lock.

        Then the wait has no limit; without a callback it ends after ``LOCK_ATTEMPTS`` attempts.
        """
        self._on_wait = on_wait

    @property
    def lock(self) -> InstanceLock:
        """The instance lock, on which the daemon publishes its HTTP address."""
        assert self._writer.lock is not None
        return self._writer.lock

    @property
    def is_open(self) -> bool:
        """Whether the present run is stored, or will be when the log is closed."""
        return self._encoder is not None and (not self._opening or self._has_decided)

    @property
    def head(self) -> bytes:
        """The digest of the last commit, or of the opened run."""
        assert self._encoder is not None
        return self._encoder.head

    # ------------------------------------------------------------ runs

    def begin(self, run: RunRow, gate_sets: Sequence[GateSet] = ()) -> None:
        """Open *run* with the *gate_sets* of its start; raise ``DataInvalid`` if its id is in use.

        Its rows are written with its first steps, so that a failed start leaves none. The start of
        a live run ends with its start event, that of a replay with its first decision.
        """
        if self.is_open:
            self.flush()
        row = self._driver.execute(
            "SELECT coalesce(max(run_key), 0), coalesce(max(run_id = ?), 0) FROM runs",
            (run.run_id,),
        ).fetchone()
        newest_key, is_used = int(row[0]), bool(row[1])
        if is_used:
            raise DataInvalid(f"Run {run.run_id} is in the database already; choose another id.")
        before = self._driver.execute(_PREVIOUS, (newest_key,)).fetchone()
        run_key = newest_key + 1
        encoder = StepEncoder(run, run_key, gate_sets)
        previous = Previous() if before is None else Previous(*before)
        self._opening = encoder.opening(run, len(gate_sets), previous)
        self._drop_buffers()
        self._add_model(run.model_id, run.model_sha256)
        self._has_decided = self._is_leaving = False
        self._encoder, self._run_id, self._run_key = encoder, run.run_id, run_key
        self._due = 0
        self._last = None

    def _add_model(self, model_id: str, sha256: str) -> None:
        """Buffer the row of a new model, read from its card kept beside the database."""
        if not sha256 or self._path is None or sha256 in self._models:
            return
        if (model := kept_identity(self._path, model_id)) is None:
            return
        query = "SELECT count(*) FROM models WHERE model_sha256 = ?"
        if self._driver.execute(query, (model.sha256,)).fetchone() == (0,):
            self._models[model.sha256] = tuple(model)

    def resume(self, run_id: str) -> ResumePoint:
        """Resume *run_id* after its last step.

        Raises ``DataInvalid`` if the run is missing or damaged.
        """
        if self.is_open:
            self.flush()
        resumed = read_resumed(self._driver, run_id)
        self._drop_buffers()
        self._opening = {}
        self._is_leaving = False
        self._run_id, self._run_key = run_id, resumed.run_key
        self._due = resumed.next_sequence
        self._encoder = StepEncoder(
            resumed.run,
            resumed.run_key,
            resumed.gate_sets,
            head=resumed.head,
            first=self._due,
            trades=trades_until(self._driver, resumed.run_key, resumed.run)[0],
        )
        last = resumed.last
        self._last = None if last is None else (last.event, last.account)
        return resumed

    def end(self, ended_at_ms: int) -> None:
        """Commit the buffers and the run's end event, with its wall time.

        A run whose start failed leaves nothing.
        """

        def write_end() -> None:
            if self.is_open and self._last is not None:
                event, account = self._last
                end = RunEnd(ended_at_ms, event.market_ms, event.market_ms)
                self.append_now(quiet_step(self._due, end, account))
                self.flush()

        self._is_leaving = True
        self._in_writer(write_end)

    def close(self) -> None:
        """Commit the buffers, close the database and release the lock."""
        self._is_leaving = True
        try:
            if self._is_writable and self.is_open:
                self._in_writer(self.flush)
        finally:
            self._refusal = self._refusal or "The log is closed; open it again to append."
            self._is_writable = False
            if self._thread is not None:
                self._thread.shutdown(wait=True)
                self._thread = None
            self._writer.close()

    # ------------------------------------------------------------ steps

    async def append(self, *steps: Step) -> None:
        """Store and commit *steps* before returning, or raise ``AuditUnwritable``.

        Steps that change no money may be buffered: a warm-up bar until the next decision, a price
        until the next bar, and steps before the start event until that event. So a closed bar is
        one commit, and a killed process loses only steps on which nothing acted.
        """
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="audit")
        await asyncio.get_running_loop().run_in_executor(self._thread, self._append_live, *steps)

    def _append_live(self, *steps: Step) -> None:
        self.append_now(*steps)
        if not all(map(self._may_wait, steps)):
            self.flush()

    def _may_wait(self, step: Step) -> bool:
        """Return whether *step* may be buffered: nothing acts on it before the next commit."""
        event = step.event
        if not _is_quiet(step) or isinstance(event, _AT_ONCE):
            return False
        if isinstance(event, Bar) or not self.is_open:
            return True
        is_moved = step.ledger or step.halted or any(shadow.fills for shadow in step.shadows)
        if is_moved or not isinstance(event, _PRICES) or not self._buffer:
            return False
        first = self._buffer[0]
        assert not isinstance(first, QuietStretch)
        return event.seen_ms - first[0].event.seen_ms < COMMIT_WITHIN_MS

    def append_now(self, *steps: Step) -> None:
        """Buffer *steps*, which are stored together or not at all; commit when a group is full.

        Raises ``AuditUnwritable`` if the log was closed or cannot be written.
        """
        if self._refusal:
            raise AuditUnwritable(self._refusal)
        for due, step in enumerate(steps, start=self._due):
            if self._encoder is None or step.sequence != due:
                raise InvariantBroken(f"Step {step.sequence} came where step {due} was due.")
        self._buffer.append(steps)
        self._due += len(steps)
        self._last = steps[-1].event, steps[-1].account
        if not self._has_decided:
            self._has_decided = not all(map(_is_quiet, steps))
        assert self._encoder is not None
        waiting = self._due - self._encoder.first
        if waiting >= self._group_steps and (self.is_open or waiting >= START_STEPS_MAX):
            self.flush()

    @property
    def next_sequence(self) -> int:
        """The sequence of the next step."""
        return self._due

    @property
    def room(self) -> int:
        """The number of steps until a group is full."""
        assert self._encoder is not None
        return max(self._group_steps - (self._due - self._encoder.first), 0)

    def append_stretch(self, stretch: QuietStretch) -> None:
        """Buffer the steps of *stretch*, at most :attr:`room`, as ``append_now`` does."""
        if self._refusal:
            raise AuditUnwritable(self._refusal)
        if stretch.first != self._due:
            raise InvariantBroken(f"Step {stretch.first} came where step {self._due} was due.")
        self._buffer.append(stretch)
        self._due = stretch.next_sequence
        self._last = stretch.last
        self._has_decided = True
        if not self.room:
            self.flush()

    def _seal(self) -> list[Commit]:
        """Return the commits of the buffered steps: one, or several for a long start.

        A group is encoded together, not step by step: the processor's caches then hold either the
        engine or the encoder, which saves a replay a tenth of its time.
        """
        encoder, commits = self._encoder, list[Commit]()
        if encoder is None:
            return commits
        groups, self._buffer = self._buffer, []
        try:
            for steps in groups:
                encoder.add_together(steps)
                if encoder.due - encoder.first >= self._group_steps:
                    commits.append(encoder.seal())
            if encoder.due > encoder.first:
                commits.append(encoder.seal())
        except BaseException as error:
            # The encoder may refer to rows that were not stored, so no step may follow.
            self._refusal = f"Step {encoder.due} could not be stored; restart to resume before it."
            if isinstance(error, OverflowError):
                self._refusal = "A number does not fit 64 bits; its source is wrong."
                raise InvariantBroken(self._refusal) from error
            raise
        return commits

    def _drop_buffers(self) -> None:
        self._models.clear()
        self._buffer.clear()

    # ------------------------------------------------------------ transactions

    def flush(self) -> None:
        """Commit the buffers in one transaction, or raise ``AuditUnwritable``.

        A failure rolls it back; the log then accepts no more steps.
        """
        commits = self._seal()
        if not commits:
            return
        if not self._is_writable:
            raise AuditUnwritable(self._refusal)
        self._is_writable = False
        self._check_file()
        try:
            self._begin_write()
            self._write(commits)
            self._connection.commit()
        except sqlite3.IntegrityError as error:
            self._roll_back()
            self._refusal = f"A row cannot be stored ({error}); its source is wrong."
            raise InvariantBroken(self._refusal) from error
        except sqlite3.Error as error:
            self._roll_back()
            then = ", then start again: the run resumes at its last committed step"
            watched = self._writer.file
            file = None if watched is None else watched.path
            refused = refusal("The audit log", error, then, file=file)
            self._refusal = str(refused)
            raise refused from error
        except OverflowError as error:
            self._roll_back()
            self._refusal = "A number does not fit 64 bits; its source is wrong."
            raise InvariantBroken(self._refusal) from error
        self._check_file()
        self._writer.settle(self._run_id, commits[-1].last + 1)
        self._is_writable = True
        self._opening = {}
        self._drop_buffers()

    def _write(self, commits: Sequence[Commit]) -> None:
        """Insert the rows of *commits* and update count and head in the run's row."""
        insert_rows(self._driver, {"models": [*self._models.values()], **self._opening})
        if self._opening:
            self._driver.execute(_TAKEN_OVER, (self._run_key, RunKind.LIVE.value))
        for commit in commits:
            link = StoredCommit.of(self._run_key, commit)
            insert_rows(self._driver, {**commit.rows, "commits": [link]})
        last = commits[-1]
        head = last.last + 1, last.digest, self._run_key
        self._driver.execute(_UPDATE_HEAD, head)

    def _begin_write(self) -> None:
        """Take the write lock; wait while another process (a shell, say) holds it.

        :meth:`report_waits` has how long it waits.
        """
        for waits in itertools.count(1):
            try:
                self._connection.begin()
            except sqlite3.OperationalError as error:
                may_wait = self._on_wait is not None or waits < LOCK_ATTEMPTS
                if not is_busy_error(error) or self._is_leaving or not may_wait:
                    raise
            else:
                self.is_blocked = False
                return
            self.is_blocked = True
            if self._on_wait is not None:
                self._on_wait()
            self._check_file()

    def _check_file(self) -> None:
        """Raise ``AuditUnwritable`` if the file changed since the last commit."""
        if refusal := self._writer.problem():
            self._refusal = refusal
            raise AuditUnwritable(refusal)

    def _roll_back(self) -> None:
        self._connection.rollback()
        if self._driver.in_transaction:  # SQLAlchemy rolls nothing back after a COMMIT that failed
            self._driver.rollback()

    def _in_writer(self, work: Callable[[], Result]) -> Result:
        """Run *work* in the writer thread, after the work queued there; inline without a thread."""
        return work() if self._thread is None else self._thread.submit(work).result()


def _is_quiet(step: Step) -> bool:
    """Return whether *step* has neither a decision nor an order nor a fill."""
    return step.decision is None and not step.orders and not step.fills
