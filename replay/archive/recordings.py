"""Recordings: what recorders append to, of sampled order books or of every frame as it came.

A file is a gzip file of many members, each of which is written whole. The first holds a header as
one JSON line, each other one a block: sampled books (``books``) or lines of a session (``events``).
Each begins with a mark: gzip's head, with letters where it has a time. So none is overseen, and a
killed recorder leaves at most one torn member at the end.

The rules are docs/orderbook.md, D4.
"""

from __future__ import annotations

import fcntl
import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Final, Self

import msgspec
from msgspec import Struct

from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.order_book import EVERY_MS_MAX, EVERY_MS_MIN, LEVELS_MAX
from tracepaper.strategies.types.market import Instrument
from tracepaper.strategies.units import iso

MARK: Final = b"\x1f\x8b\x08\x00TPRC\x00\xff"
"""The head of every member."""
HEADER_BYTES_MAX: Final = 64 * 1024
MEMBER_BYTES_MAX: Final = 64 * 1024 * 1024
NEWEST_BYTES: Final = 16 * 1024 * 1024
"""What is read of a file that goes on: many blocks, for one torn and one whole are enough."""
FORMAT: Final = "tracepaper recording"
VERSION: Final = 1


class RecordingHeader(Struct, frozen=True, kw_only=True):
    """What a file holds, and whence: ``exchange``, ``loopback`` or ``frames``.

    Sampled books have *levels* a side each ``every_ms``. Else all frames of *topics* are held, but
    those dated more than ``ahead_ms`` after their receipt.
    """

    t: str = "recording"  # the kind of line, as each line of a session has one
    format: str = FORMAT
    version: int = VERSION
    instrument: Instrument
    source: str
    levels: int = 0
    every_ms: int = 0
    topics: tuple[str, ...] = ()
    ahead_ms: int = 0

    @property
    def is_sampled(self) -> bool:
        """Whether the file holds sampled books, and not every frame."""
        return not self.topics

    def words(self) -> str:
        """Return it as people read it."""
        if self.is_sampled:
            return f"{self.instrument.id}, {self.levels} levels a side each {self.every_ms:,} ms"
        return f"{' and '.join(self.topics)} of {self.instrument.category}"

    def holds(self) -> tuple[object, ...]:
        """List what may not change within a file; an exchange changes other filters."""
        instrument = self.instrument
        decimals = (
            instrument.price_decimals,
            instrument.quantity_decimals,
            instrument.volume_decimals,
        )
        pace = self.levels, self.every_ms
        return instrument.id, decimals, self.topics, pace, self.source


_encode: Final = msgspec.json.Encoder().encode
_decode_header: Final = msgspec.json.Decoder(RecordingHeader).decode
_KINDS: Final = ("events", "order books")
_MADE_BY: Final = (
    "name a file of `tracepaper data record --events`",
    "make them of it by `tracepaper data record SYMBOL --from FILE --out NEW`",
)


@dataclass(frozen=True)
class RecordingGap:
    """Where nothing was recorded: after ``from_ms``, until ``until_ms``."""

    from_ms: int
    until_ms: int
    cause: str


@dataclass(frozen=True, kw_only=True)
class RecordingQuality:
    """What a recording holds; times are UTC milliseconds, those of frames of their receipt."""

    path: str
    instrument: str
    levels: int
    every_ms: int
    topics: tuple[str, ...]
    source: str
    books: int = 0
    thin: int = 0  # books with fewer levels than asked for, on a side
    frames: int = 0
    changes: int = 0  # levels that frames of the book set, those of snapshots too
    trades: int = 0
    first_ms: int | None
    last_ms: int | None
    recorded_ms: int  # without the gaps
    gaps: tuple[RecordingGap, ...]
    bytes: int
    bytes_each: float | None  # a book; of frames an event: a changed level or a trade
    late_p50_ms: float | None = None  # from the exchange's date of a frame to its receipt
    late_p99_ms: float | None = None
    torn: str  # what is left out at the end; empty where nothing is


class RecordingFile(ABC):
    """A file read member by member.

    Once all were read, ``torn`` is the sentence about what a killed recorder left at the end, and
    ``whole`` where the last whole member ends.
    """

    is_sampled: ClassVar[bool]
    """Whether it holds sampled books; a file of the other kind is refused."""
    torn = ""
    whole: int | None = None

    def __init__(self, path: Path, *, newest: int | None = None) -> None:
        """Open *path*; raise ``DataInvalid`` where it is no recording of this kind.

        Of a file of more than *newest* bytes the first member is read, and the last of the others.
        """
        self.path: Final = path
        self._left_out = 0
        try:
            self._content = self._bytes_of(newest)
        except OSError as error:
            raise DataInvalid(
                f"{path} cannot be read ({error.strerror}); name a file that `tracepaper data "
                "record` wrote."
            ) from None
        first = next(self.members(), None)
        if first is None:
            raise DataInvalid(
                f"{path} is no file of `tracepaper data record`; name another (recorded frames "
                "become one by its --from)."
            )
        self.header: Final = _header(path, first[0])
        if self.header.is_sampled != self.is_sampled:
            raise DataInvalid(
                f"{path} holds {_KINDS[self.header.is_sampled]}, and {_KINDS[self.is_sampled]} are "
                f"wanted here; {_MADE_BY[self.is_sampled]}."
            )
        self.begin: Final = first[1]
        """The byte at which the second member begins."""

    def _bytes_of(self, newest: int | None) -> bytes:
        with self.path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            if newest is None or size <= newest:
                return file.read()
            self._content = file.read(newest)
            if (first := self._member(0)) is None:
                return self._content
            begin = max(size - newest, first[1])
            file.seek(begin)
            head, self._content = self._content[: first[1]], file.read()
        at = self._content.find(MARK)
        while at >= 0 and self._member(at) is None:  # it stands in a member by chance
            at = self._content.find(MARK, at + 1)
        at = len(self._content) if at < 0 else at
        self._left_out = begin + at - len(head)
        return head + self._content[at:]

    @property
    def sha256(self) -> str:
        """The hash of all its bytes."""
        return sha256(self._content).hexdigest()

    def members(self, start: int = 0) -> Iterator[tuple[bytes, int]]:
        """Yield the content and end of each whole member from byte *start*; stop at a torn last.

        Raises ``DataInvalid`` where a whole one follows a torn one.
        """
        content, end = self._content, start
        while end < len(content):
            member = self._member(end)
            if member is None:
                if (later := content.find(MARK, end + 1)) >= 0:
                    begin, later = end + self._left_out, later + self._left_out
                    raise DataInvalid(
                        f"{self.path} is damaged between its bytes {begin:,} and {later:,}; "
                        "restore it from a copy."
                    )
                self.whole = end + self._left_out
                self.torn = (
                    f"The last {len(content) - end:,} bytes of {self.path} are no whole block, as "
                    "a recorder that was killed leaves them; they are left out."
                )
                return
            yield member
            end = member[1]

    def _member(self, start: int) -> tuple[bytes, int] | None:
        """Return content and end of the member at byte *start*; None where it is torn."""
        content = self._content
        if not content.startswith(MARK, start):
            return None
        reader, held, stop = zlib.decompressobj(wbits=31), b"", start
        view = memoryview(content)
        # By marks, for what is handed over beyond its end a reader copies. One may stand in a
        # member.
        while not reader.eof and stop < len(content):
            begin, stop = stop, content.find(MARK, stop + len(MARK))
            stop = len(content) if stop < 0 else stop
            try:
                held += reader.decompress(view[begin:stop], MEMBER_BYTES_MAX)
            except zlib.error:
                return None
            if len(held) >= MEMBER_BYTES_MAX:
                return None
        return (held, stop - len(reader.unused_data)) if reader.eof else None

    @abstractmethod
    def times(self) -> Iterator[float]:
        """Yield the UTC milliseconds of what is held, in order; raise ``DataInvalid``."""

    @abstractmethod
    def quality(self) -> RecordingQuality:
        """Summarise what is held, all of it checked; raise ``DataInvalid``."""

    def _quality(self, *, items: int, **figures: Any) -> RecordingQuality:  # noqa: ANN401 - fields
        """Return the quality of *figures*, and of what is the same of every recording."""
        header, size = self.header, len(self._content)
        return RecordingQuality(
            path=str(self.path),
            instrument=header.instrument.id,
            levels=header.levels,
            every_ms=header.every_ms,
            topics=header.topics,
            source=header.source,
            bytes=size,
            bytes_each=size / items if items else None,
            torn=self.torn,
            **figures,
        )


def _header(path: Path, content: bytes) -> RecordingHeader:
    try:
        header = _decode_header(content)
    except msgspec.MsgspecError as error:
        raise DataInvalid(f"{path} has no header of a recording ({error}).") from None
    if (header.format, header.version) != (FORMAT, VERSION):
        raise DataInvalid(
            f"{path} is of version {header.version} and this one reads {VERSION}; use a newer "
            "tracepaper."
        )
    has_pace = 1 <= header.levels <= LEVELS_MAX and EVERY_MS_MIN <= header.every_ms <= EVERY_MS_MAX
    if header.is_sampled and not has_pace:
        raise DataInvalid(f"{path} has a header that no recorder writes; restore it from a copy.")
    return header


def recording_header(path: Path) -> RecordingHeader | None:
    """Return the header of the file at *path*; None where it is no recording.

    Raises ``DataInvalid`` where it is damaged.
    """
    try:
        with path.open("rb") as file:
            begun = file.read(HEADER_BYTES_MAX)
    except OSError:
        return None
    if not begun.startswith(MARK):
        return None
    try:
        return _header(path, zlib.decompressobj(wbits=31).decompress(begun))
    except zlib.error:
        raise DataInvalid(f"{path} has no header of a recording (damaged).") from None


def member(content: bytes) -> bytes:
    """Return *content* as one gzip member that begins with the mark."""
    packer = zlib.compressobj(9, wbits=31)
    return MARK + (packer.compress(content) + packer.flush())[len(MARK) :]


class RecordingWriter(ABC):
    """Appends to one file, whole blocks at a time; the only writer of it.

    ``says`` is the sentence about an older writer's torn end. Raises ``ConfigInvalid`` where the
    file holds something else or has a writer already, ``DataInvalid`` where it is no recording.
    """

    reader: ClassVar[type[RecordingFile]]

    def __init__(self, path: Path, header: RecordingHeader) -> None:
        self.path: Final = path
        self.header: Final = header
        self.says = ""
        self.last_ms = 0.0
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            begun = os.pread(self._file, len(MARK), 0)
            if begun != MARK and MARK.startswith(begun):
                os.ftruncate(self._file, 0)
                self.append(_encode(header) + b"\n")
            else:
                self._resume()
        except BlockingIOError:
            os.close(self._file)
            raise ConfigInvalid(
                f"{path} is being recorded to already; end that or give another --out."
            ) from None
        except BaseException:
            os.close(self._file)
            raise

    def _resume(self) -> None:
        """Find where the file ends, and cut off what is no whole block."""
        stored = self.reader(self.path, newest=NEWEST_BYTES)
        held, header = stored.header, self.header
        if held.holds() != header.holds():
            raise ConfigInvalid(
                f"{self.path} holds {held.words()} from {held.source}, not {header.words()} from "
                f"{header.source} with the same decimals; give another --out."
            )
        if held.ahead_ms < header.ahead_ms:
            raise ConfigInvalid(
                f"{self.path} holds frames dated at most {held.ahead_ms:,} ms after their "
                f"receipt, and exchange.ahead_ms is {header.ahead_ms:,}; lower it or "
                "give another --out."
            )
        for self.last_ms in stored.times():
            pass
        if stored.whole is not None:
            self.says = stored.torn
            os.ftruncate(self._file, stored.whole)

    def reject_earlier(self, at_ms: float, *, again: bool = True) -> None:
        """Raise ``DataInvalid`` where *at_ms* is earlier than what is stored, or *again* of it."""
        if at_ms < self.last_ms or (again and at_ms == self.last_ms):
            raise DataInvalid(
                f"{self.path} is recorded until {iso(int(self.last_ms))} and the next is of "
                f"{iso(int(at_ms))}; give another --out."
            )

    def append(self, content: bytes) -> None:
        """Append *content* as one member, and have it on the disk.

        A member that finds no room leaves nothing behind.
        """
        left, before = memoryview(member(content)), os.fstat(self._file).st_size
        try:
            while left:
                left = left[os.write(self._file, left) :]
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, before)
            error.filename = str(self.path)
            raise

    @abstractmethod
    def flush(self) -> None:
        """Write what is held as one block."""

    def __enter__(self) -> Self:
        """Write."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write what is held, and let others write."""
        try:
            self.flush()
        finally:
            os.close(self._file)
