"""``MemoryLog``: a run in this process's memory, for figures and checks that keep no record."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from tracepaper.storage.audit import SqlAuditLog
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.writer import Writer, in_memory, insert_rows

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from tracepaper.storage.checkpoints import Identity
    from tracepaper.strategies.types.decisions import GateSet, Run

IN_MEMORY: Final = Path(":memory:")
"""Stands where a record has the path of its database."""


class MemoryLog(SqlAuditLog):
    """The log of one run in a database in memory, which is gone with the object."""

    def __init__(self, model: Identity | None = None) -> None:
        """Take what the run's *model* is known by."""
        super().__init__(Writer(in_memory()))
        insert_rows(self._connection, {"models": [] if model is None else [tuple(model)]})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def begin(self, run: Run, gate_sets: Sequence[GateSet] = ()) -> None:
        """Open *run*, the one of this log, with the *gate_sets* known at its start."""
        super().begin(run, gate_sets)
        self.run, self._has_decided = run, True  # nothing is kept of a start that fails

    @property
    def reader(self) -> Reader:
        """What reads the steps so far; it is closed with the log."""
        self.flush()
        return Reader(self._connection)
