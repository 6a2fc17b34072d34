"""The leaves of a log and the dates of witnesses, read without a key: since when a step is dated.

The folder beside the database has ``leaves`` and, for each witness, ``dates/NAME+ID``: records of
one length, of which the disk may have lost a part of the last. Each token of a public clock is a
file ``clocks/DAY+LEAVES+ADDRESS``: ``.tsr`` of RFC 3161, ``.ots`` of OpenTimestamps, and
``.pending`` while that is on its way into Bitcoin.
"""

from __future__ import annotations

import os
import sqlite3
from collections import defaultdict
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt

Records = npt.NDArray[np.void]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
LEAVES: Final = np.dtype([("run", ">u4"), ("first", ">u4"), ("last", ">u4"), ("root", "V32")])
DATES: Final = np.dtype([("size", ">u4"), ("at_s", ">u8"), ("signature", "V64")])
"""The leaves that a witness dated, its second, and its signature."""


def witness_folder(database: Path) -> Path:
    """Return the folder of the log of *database*."""
    return database.with_name(database.name + ".witness")


def split(size: int) -> int:
    """Return the size of the left subtree of a tree of *size* leaves, two or more."""
    return 1 << (size - 1).bit_length() - 1


def read_records(path: Path, kind: np.dtype[Any]) -> Records:
    """Return the whole records of *path*; none without the file."""
    return np.fromfile(path, kind) if path.exists() else np.empty(0, kind)


def append_records(path: Path, data: bytes, size: int) -> None:
    """Add *data* behind the last whole record of *size* bytes, and bring it to the disk."""
    path.parent.mkdir(exist_ok=True)
    with path.open("ab") as file:
        file.truncate(file.tell() // size * size)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


class LoggedCommits:
    """The commits in the log of *database*, and what dates them; empty without a log."""

    def __init__(self, database: Path) -> None:
        self.folder = witness_folder(database)

    @classmethod
    def beside(cls, connection: sqlite3.Connection) -> LoggedCommits:
        """Return the log of the database that *connection* reads."""
        (_, _, file) = connection.execute("PRAGMA database_list").fetchone()
        return cls(Path(file or ":memory:"))

    @cached_property
    def leaves(self) -> Records:
        """Each leaf, as this process found them."""
        return read_records(self.folder / "leaves", LEAVES)

    @cached_property
    def dates(self) -> dict[str, Records]:
        """The dates of each witness, by name and id of its key, as this process found them."""
        files = sorted((self.folder / "dates").glob("*"))
        return {unquote(path.name): read_records(path, DATES) for path in files}

    @cached_property
    def stamped(self) -> dict[int, list[Path]]:
        """The tokens of public clocks, by the leaves that they date, as this process found them."""
        tokens = defaultdict(list)
        clocks = self.folder / "clocks"
        for path in sorted([*clocks.glob("*.tsr"), *clocks.glob("*.ots")]):
            tokens[int(path.name.split("+")[1])].append(path)
        return tokens

    @property
    def witnessed(self) -> int:
        """How many leaves the newest date of a witness covers."""
        return max((int(each["size"][-1]) for each in self.dates.values() if each.size), default=0)

    @property
    def dated(self) -> int:
        """How many leaves the newest date of a witness or a clock covers."""
        return max(self.witnessed, *self.stamped, 0)

    def find(self, number: int, steps: Ints) -> Ints:
        """Return the index of the leaf with each of the *steps* of run *number*; -1 if none."""
        of_run = np.flatnonzero(self.leaves["run"] == number)
        at = np.searchsorted(self.leaves["first"][of_run], steps, side="right") - 1
        indices = np.append(of_run, -1)[at]
        return np.where(steps <= np.append(self.leaves["last"][of_run], 0)[at], indices, -1)

    def first_dates(self, index: int) -> list[tuple[int, int, str]]:
        """Return second, size and witness of the first date by each that covers leaf *index*."""
        rows = (
            (name, each[each["size"].searchsorted(index, side="right") :][:1])
            for name, each in self.dates.items()
        )
        return sorted(
            (int(row["at_s"][0]), int(row["size"][0]), name) for name, row in rows if row.size
        )

    def dates_s(self, number: int, steps: Ints) -> Floats:
        """Return the Unix second before which each of *steps* was logged; infinite if undated.

        It is that of the witness's signature, which was checked when the date was kept.
        """
        indices = self.find(number, steps)
        seconds = np.full(steps.shape, np.inf)
        for each in self.dates.values():
            at = each["size"].searchsorted(indices, side="right")
            seconds = np.minimum(seconds, np.append(each["at_s"].astype(float), np.inf)[at])
        return np.where(indices < 0, np.inf, seconds)

    def sentence(self, number: int, step: int, end_ms: int, end: str) -> str:
        """Return who dated *step*, and whether before its *end*; empty without a dated log."""
        if not self.dates:
            return ""
        (index,) = self.find(number, np.array([step])).tolist()
        if index < 0 or not (dates := self.first_dates(index)):
            return "No witness has dated this decision yet."
        at_s, _, name = dates[0]
        when = "after" if at_s * 1000 >= end_ms else "before"
        return (
            f"In the log before {datetime.fromtimestamp(at_s, UTC):%Y-%m-%d %H:%M:%S} UTC by the "
            f"clock of {name.partition('+')[0]}, {when} {end}."
        )
