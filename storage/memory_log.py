"""``MemoryLog``: a run in this process's memory, for figures and checks that keep no record."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from tracepaper.storage.audit import GROUP_STEPS
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.writer import in_memory, insert_rows
from tracepaper.storage.record.encode import StepEncoder
from tracepaper.strategies.errors import InvariantBroken
from tracepaper.strategies.types.decisions import quiet_step
from tracepaper.strategies.types.market import RunEnd

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from tracepaper.storage.checkpoints import Identity
    from tracepaper.strategies.types.decisions import GateSet, QuietStretch, Run, Step

IN_MEMORY: Final = Path(":memory:")
"""Stands where a record has the path of its database."""
_RUN_KEY: Final = 1
_COUNT: Final = "UPDATE runs SET step_count = ?"


class MemoryLog:
    """The steps of one run as rows in memory: no file, no chain, and gone with the object.

    It takes what ``SqlAuditLog`` takes, a step or a stretch after the other. ``reader`` and
    ``RunColumns`` read it as they read a record.
    """

    def __init__(self, model: Identity | None = None) -> None:
        """Take what the run's *model* is known by."""
        self._connection = in_memory()
        insert_rows(self._connection, {"models": [] if model is None else [tuple(model)]})
        self._taken: list[Sequence[Step] | QuietStretch] = []
        self._due = 0  # the sequence of the next step

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def begin(self, run: Run, gate_sets: Sequence[GateSet]) -> None:
        """Open *run*, the one of this log, with the *gate_sets* known at its start."""
        self.run = run
        self._encoder = StepEncoder(run, _RUN_KEY, gate_sets)
        insert_rows(self._connection, self._encoder.opening(run, len(gate_sets)))

    @property
    def reader(self) -> Reader:
        """What reads the steps so far; it is closed with the log."""
        self.flush()
        return Reader(self._connection)

    @property
    def room(self) -> int:
        """Steps until a group is full, which is then encoded."""
        return GROUP_STEPS - (self._due - self._encoder.first)

    def append_now(self, *steps: Step) -> None:
        """Take *steps*, which follow the last one."""
        for due, step in enumerate(steps, start=self._due):
            if step.sequence != due:
                raise InvariantBroken(f"Step {step.sequence} came where step {due} was due.")
        self._take(steps, self._due + len(steps))

    def append_stretch(self, stretch: QuietStretch) -> None:
        """Take the steps of *stretch*, of no more than :attr:`room`."""
        if stretch.first != self._due:
            raise InvariantBroken(f"Step {stretch.first} came where step {self._due} was due.")
        self._take(stretch, stretch.next_sequence)

    def _take(self, steps: Sequence[Step] | QuietStretch, due: int) -> None:
        self._taken.append(steps)
        self._due = due
        if self.room <= 0:
            self.flush()

    def flush(self) -> None:
        """Turn what was taken into rows."""
        encoder, taken, self._taken = self._encoder, self._taken, []
        for steps in taken:
            encoder.add_together(steps)
        encoder.first = self._due
        self._connection.execute("BEGIN")
        insert_rows(self._connection, encoder.take())
        self._connection.execute(_COUNT, (self._due,))
        self._connection.execute("COMMIT")

    def end(self, ended_at_ms: int) -> None:
        """Take the event that the run ended (wall time); none where it has no step."""
        self.flush()
        if self._due:
            last = self.reader.step(self.run.run_id, self._due - 1)
            event = RunEnd(ended_at_ms, last.event.market_ms, last.event.market_ms)
            self.append_now(quiet_step(self._due, event, last.account))
            self.flush()

    def close(self) -> None:
        """Forget the run."""
        self._connection.close()
