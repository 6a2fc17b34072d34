"""A file of vectors that grows: of lines, those are read that were added, while the rest stands.

A line without an end is left for the next reading. A file that is written anew, as Parquet always
is, is read whole.

The rule is docs/models.md, L65.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tracepaper.storage.vectors import (
    VectorFile,
    file_bytes,
    is_text,
    read_vectors,
    rows_in,
    text_table,
)
from tracepaper.strategies.errors import DataInvalid


@dataclass(frozen=True)
class ReadLines:
    """The lines of a file that were read: bytes, rows, their hash, and by symbol the newest."""

    header: bytes
    size: int
    rows: int
    sha256: str
    newest_ms: Mapping[str, int]


class Growth(NamedTuple):
    """What was read of a file: all of it, or what was *added* to the lines that were read."""

    file: VectorFile
    is_whole: bool
    lines: ReadLines | None  # None of a file that has none


class GrowingFile:
    """A file of vectors that is read again and again."""

    def __init__(self, path: Path) -> None:
        """Begin with nothing read."""
        self.path = path
        self._stamp: tuple[int, int, int] | None = None
        self._lines: ReadLines | None = None

    def has_changed(self) -> bool:
        """Return whether it is not there, or another by its size or times, since this was asked."""
        before = self._stamp
        try:
            found = self.path.stat()
        except OSError:
            self._stamp = None
            return True
        self._stamp = found.st_size, found.st_mtime_ns, found.st_ino
        return self._stamp != before

    def read(self) -> Growth:
        """Return what is new since what was taken in; raise ``DataInvalid`` as a reading does."""
        if not is_text(self.path):
            return Growth(read_vectors(self.path), is_whole=True, lines=None)
        found = file_bytes(self.path)
        raw = memoryview(found)[: found.rfind(b"\n") + 1]
        known = self._lines
        if known is None or hashlib.sha256(raw[: known.size]).hexdigest() != known.sha256:
            known = _header(self.path, found[: found.find(b"\n") + 1])
        added = known.header + bytes(raw[known.size :])
        table = text_table(self.path, added, before=known.rows)
        columns, rows = rows_in(self.path, table, before=known.rows, newest=known.newest_ms)
        count = known.rows + sum(map(len, rows.values()))
        if not count:
            raise DataInvalid(f"{self.path} has no rows; give vectors.")
        sha256 = hashlib.sha256(raw).hexdigest()
        newest = {symbol: int(own.time_ms[-1]) for symbol, own in rows.items()}
        return Growth(
            VectorFile(self.path, sha256, columns, rows),
            is_whole=not known.rows,
            lines=ReadLines(known.header, len(raw), count, sha256, {**known.newest_ms, **newest}),
        )

    def take(self, growth: Growth) -> None:
        """Read no line of *growth* again, while it stands."""
        self._lines = growth.lines

    def forget(self) -> None:
        """Read all of it the next time."""
        self._stamp, self._lines = None, None


def _header(path: Path, header: bytes) -> ReadLines:
    """Return the first line as all that was read."""
    if not header:
        raise DataInvalid(f"{path} has no rows; give vectors.")
    return ReadLines(header, len(header), 0, hashlib.sha256(header).hexdigest(), {})
