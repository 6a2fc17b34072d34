"""The leaves of a log and its cosigned notes, read without a key: since when a step is dated."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from tracepaper.storage.witness.judge import LEAF, Note

LeafRow = tuple[int, int, int, bytes]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
_COLUMNS: Final = np.dtype([("run", ">u4"), ("first", ">u4"), ("last", ">u4"), ("root", "V32")])


def witness_folder(database: Path) -> Path:
    """Return the folder of the log of *database*."""
    return database.with_name(database.name + ".witness")


class LoggedCommits:
    """The commits in the log of *database*, and the notes that date them; empty without a log."""

    def __init__(self, database: Path) -> None:
        self.folder = witness_folder(database)
        data = self._read("leaves")
        self._data = bytearray(data[: len(data) // LEAF.size * LEAF.size])

    @classmethod
    def beside(cls, connection: sqlite3.Connection) -> LoggedCommits:
        """Return the log of the database that *connection* reads."""
        (_, _, file) = connection.execute("PRAGMA database_list").fetchone()
        return cls(Path(file or ":memory:"))

    def _read(self, name: str) -> bytes:
        path = self.folder / name
        return path.read_bytes() if path.exists() else b""

    def leaves(self) -> Iterator[LeafRow]:
        """Yield number of the run, first and last step, and root of the entries of each leaf."""
        return LEAF.iter_unpack(bytes(self._data))

    def find(self, number: int, steps: Ints) -> Ints:
        """Return the index of the leaf with each of the *steps* of run *number*; -1 if none."""
        columns = np.frombuffer(bytes(self._data), _COLUMNS)
        of_run = np.flatnonzero(columns["run"] == number)
        at = np.searchsorted(columns["first"][of_run], steps, side="right") - 1
        indices = np.append(of_run, -1)[at]
        return np.where(steps <= np.append(columns["last"][of_run], 0)[at], indices, -1)

    def _whole_lines(self) -> bytes:
        """Return the lines of the notes; lost power may tear the last one."""
        lines = self._read("notes")
        return lines[: lines.rfind(b"\n") + 1]

    @cached_property
    def notes(self) -> list[tuple[int, str]]:
        """The size and the text of each cosigned note, as this process found them."""
        notes = map(json.loads, self._whole_lines().decode().splitlines())
        return [(size_of(note), note) for note in notes]

    def covering(self, index: int) -> str | None:
        """Return the earliest cosigned note that covers the leaf *index*; None without one."""
        lines = self._whole_lines()  # half a kilobyte a bar: a few of a year's are parsed
        begin, end = 0, len(lines)
        while begin < end:
            start = lines.rfind(b"\n", begin, (begin + end) // 2) + 1 or begin
            stop = lines.index(b"\n", start)
            if size_of(json.loads(lines[start:stop])) > index:
                end = start
            else:
                begin = stop + 1
        return json.loads(lines[begin : lines.index(b"\n", begin)]) if begin < len(lines) else None

    def dates_s(self, number: int, steps: Ints) -> Floats:
        """Return the Unix second before which each of *steps* was logged; infinite if undated.

        It is that of the witness's signature, which was checked when the note was kept.
        """
        dates = np.array([*(date_of(note)[0] for _, note in self.notes), math.inf])
        indices = self.find(number, steps)
        at = np.searchsorted([size for size, _ in self.notes], indices, side="right")
        return np.where(indices < 0, math.inf, dates[at])

    def sentence(self, number: int, step: int, end_ms: int) -> str:
        """Return who dated *step*, whose forecast ends at *end_ms*; empty without a dated log."""
        if not (self.folder / "notes").exists():
            return ""
        (index,) = self.find(number, np.array([step])).tolist()
        note = None if index < 0 else self.covering(index)
        if note is None:
            return "No witness has dated this decision yet."
        at_s, name = date_of(note)
        is_late = at_s * 1000 >= end_ms
        return (
            f"In the log before {datetime.fromtimestamp(at_s, UTC):%Y-%m-%d %H:%M:%S} UTC by the "
            f"clock of {name}, {'after' if is_late else 'before'} the forecast's end."
        )


def size_of(note: str) -> int:
    """Return the number of leaves that *note* covers."""
    return int(note.split("\n")[1])


def date_of(note: str) -> tuple[int, str]:
    """Return the earliest second at which a witness signed *note*, and its name."""
    _, *cosignatures = Note.parse(note).signatures
    return min((int.from_bytes(value[4:12], "big"), name) for name, value in cosignatures)
