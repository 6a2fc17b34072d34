"""Files of sampled order books that recorders append to.

A file is a gzip file of many members, each written whole. The first holds a header as one JSON
line. Each other member holds a block: up to ``BLOCK_BOOKS`` books without a hole, packed as in an
event of a run, and the cause of the gap before it. So no reader bridges a gap. A member begins with
a mark, a gzip header with letters in its time field. So a reader finds every member, and a killed
recorder leaves at most one torn member, at the end.

The rules are docs/orderbook.md, D1 to D5.
"""

from __future__ import annotations

import fcntl
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec
from msgspec import Struct

from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.order_book import BLOCK_BOOKS, Books, books_in, books_of, packed_books
from tracepaper.strategies.types.market import Depth, Depths, Instrument
from tracepaper.strategies.units import iso

MARK: Final = b"\x1f\x8b\x08\x00TPRC\x00\xff"
"""The first bytes of every member."""
HEADER_BYTES_MAX: Final = 64 * 1024
MEMBER_BYTES_MAX: Final = 64 * 1024 * 1024
NEWEST_BYTES: Final = 16 * 1024 * 1024
"""Bytes read at the end of a file to resume it: more than a whole and a torn block."""
BLOCK_MS: Final = 60_000
"""A block is written when it spans so long, the most that a kill can lose besides one book."""
FORMAT: Final = "tracepaper recording"
VERSION: Final = 1


class RecordingHeader(Struct, frozen=True, kw_only=True):
    """The content of a file and its source: ``exchange``, ``loopback`` or ``frames``.

    The books have *levels* per side, one book per ``every_ms``.
    """

    format: str = FORMAT
    version: int = VERSION
    instrument: Instrument
    source: str
    levels: int
    every_ms: int

    def words(self) -> str:
        """Return the content in words."""
        return f"{self.instrument.id}, {self.levels} levels a side each {self.every_ms:,} ms"

    def holds(self) -> tuple[object, ...]:
        """Return the fields that may not change within a file; other filters may."""
        instrument = self.instrument
        decimals = (
            instrument.price_decimals,
            instrument.quantity_decimals,
            instrument.volume_decimals,
        )
        return instrument.id, decimals, self.levels, self.every_ms, self.source


_encode: Final = msgspec.json.Encoder().encode
_decode_header: Final = msgspec.json.Decoder(RecordingHeader).decode
_encode_block: Final = msgspec.msgpack.Encoder().encode
_decode_block: Final = msgspec.msgpack.Decoder(Depths).decode


@dataclass(frozen=True)
class RecordingGap:
    """A time without recording: after ``from_ms``, until ``until_ms``."""

    from_ms: int
    until_ms: int
    cause: str


@dataclass(frozen=True, kw_only=True)
class RecordingQuality:
    """Figures of a recording; times are UTC milliseconds."""

    path: str
    instrument: str
    levels: int
    every_ms: int
    source: str
    books: int
    thin: int  # books with fewer levels than requested on a side
    first_ms: int | None
    last_ms: int | None
    recorded_ms: int  # without the gaps
    gaps: tuple[RecordingGap, ...]
    bytes: int
    bytes_each: float | None  # per book
    torn: str  # the part left out at the end, in words; empty if none


class BooksFile:
    """A file of sampled books, read block by block.

    After all were read, ``torn`` is a sentence about the torn end that a killed recorder left.
    """

    torn = ""

    def __init__(self, path: Path) -> None:
        """Open *path*; raise ``DataInvalid`` if it is no recording."""
        self.path: Final = path
        try:
            self._content: Final = path.read_bytes()
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
        self.begin: Final = first[1]
        """The byte at which the second member begins."""

    @property
    def sha256(self) -> str:
        """The hash of all its bytes."""
        return sha256(self._content).hexdigest()

    def members(self, start: int = 0) -> Iterator[tuple[bytes, int]]:
        """Yield the content and end of each whole member from byte *start*; skip a torn last one.

        Raises ``DataInvalid`` if a whole member follows a torn one.
        """
        content, end = self._content, start
        while end < len(content):
            if (member := _member(content, end)) is not None:
                yield member
                end = member[1]
                continue
            if (later := content.find(MARK, end + 1)) >= 0:
                raise DataInvalid(
                    f"{self.path} is damaged between its bytes {end:,} and {later:,}; restore it "
                    "from a copy."
                )
            self.torn = torn_sentence(self.path, len(content) - end)
            return

    def blocks(self) -> Iterator[tuple[Depths, Books]]:
        """Yield every whole block and its checked books; raise ``DataInvalid`` if damaged."""
        begin = self.begin
        for content, stop in self.members(begin):
            where = f"{self.path}, the block at byte {begin:,},"
            try:
                block = _decode_block(content)
            except msgspec.MsgspecError as error:
                raise DataInvalid(
                    f"{where} is no block of books ({error}); restore the file."
                ) from None
            yield block, books_in(block, where)
            begin = stop

    def quality(self) -> RecordingQuality:
        """Summarise the file, read block by block; raise ``DataInvalid``."""
        first = last = None
        count = thin = 0
        gaps: list[RecordingGap] = []
        for block, books in self.blocks():
            if last is None:
                first = block.first_ms
            elif block.cause:
                gaps.append(RecordingGap(last, block.first_ms, block.cause))
            last = block.market_ms
            count += block.count
            thin += int((books.size[:, :, -1] == 0).any(axis=1).sum())
        header, size = self.header, len(self._content)
        return RecordingQuality(
            path=str(self.path),
            instrument=header.instrument.id,
            levels=header.levels,
            every_ms=header.every_ms,
            source=header.source,
            books=count,
            thin=thin,
            first_ms=first,
            last_ms=last,
            recorded_ms=count * header.every_ms,
            gaps=tuple(gaps),
            bytes=size,
            bytes_each=size / count if count else None,
            torn=self.torn,
        )


def _member(content: bytes, start: int) -> tuple[bytes, int] | None:
    """Return content and end of the member at byte *start*; None if it is torn."""
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


def torn_sentence(path: Path, size: int) -> str:
    """Return what to know about a torn end of *size* bytes."""
    return (
        f"The last {size:,} bytes of {path} are no whole block, as a recorder that was killed "
        "leaves them; they are left out."
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
    return header


def recording_header(path: Path) -> RecordingHeader | None:
    """Return the header of the file at *path*; None if it is no recording.

    Raises ``DataInvalid`` if it is damaged.
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


class DepthWriter:
    """Appends blocks of sampled books to one file, as its only writer.

    ``says`` is a sentence about the torn end of a killed writer. Raises ``ConfigInvalid`` if the
    file has other content or another writer, and ``DataInvalid`` if it is no recording.
    """

    def __init__(self, path: Path, header: RecordingHeader) -> None:
        self.path: Final = path
        self.header: Final = header
        self.says = ""
        self.last_ms = 0  # the time of the newest book
        self._held: Final[list[Depth]] = []
        self._cause = ""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            begun = os.pread(self._file, len(MARK), 0)
            if begun != MARK and MARK.startswith(begun):
                os.ftruncate(self._file, 0)
                self._append(_encode(header) + b"\n")
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
        """Find the last whole block of the file, and cut off a torn one."""
        held, header = recording_header(self.path), self.header
        size = os.fstat(self._file).st_size
        begin = max(size - NEWEST_BYTES, 0)
        newest = os.pread(self._file, NEWEST_BYTES, begin)
        at, last = len(newest), None
        while last is None and at >= 0:  # the mark may stand in a block by chance
            at = newest.rfind(MARK, 0, at)
            last = _member(newest, at) if at >= 0 else None
        if held is None or last is None:
            raise DataInvalid(f"{self.path} ends with no whole block; name another --out.")
        if held.holds() != header.holds():
            raise ConfigInvalid(
                f"{self.path} holds {held.words()} from {held.source}, not {header.words()} from "
                f"{header.source} with the same decimals; give another --out."
            )
        block, end = last
        self.last_ms = _decode_block(block).market_ms if begin + at else 0  # 0: it is the header
        if begin + end < size:
            self.says = torn_sentence(self.path, size - begin - end)
            os.ftruncate(self._file, begin + end)

    def add(self, depth: Depth, cause: str) -> None:
        """Append a book; *cause* is that of the gap before it, empty without a gap.

        Raises ``DataInvalid`` if it is not later than all stored books.
        """
        if depth.seen_ms <= self.last_ms:
            raise DataInvalid(
                f"{self.path} is recorded until {iso(self.last_ms)} and the next is of "
                f"{iso(depth.seen_ms)}; give another --out."
            )
        if cause:
            self.flush()
            self._cause = cause
        self._held.append(depth)
        self.last_ms = depth.seen_ms
        spanned = depth.seen_ms - self._held[0].seen_ms + self.header.every_ms
        if len(self._held) == BLOCK_BOOKS or spanned >= BLOCK_MS:
            self.flush()

    def flush(self) -> None:
        """Write the buffered books as one block."""
        if not self._held:
            return
        header, last_ms = self.header, self._held[-1].seen_ms
        block = packed_books(
            header.instrument.id,
            books_of(self._held, header.levels),
            every_ms=header.every_ms,
            cause=self._cause,
            seen_ms=last_ms,
        )
        self._append(_encode_block(block))
        self._held.clear()
        self._cause = ""

    def _append(self, content: bytes) -> None:
        """Append *content* as one member, and sync it to disk.

        If the disk is full, nothing of the member remains.
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

    def __enter__(self) -> Self:
        """Write."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write the buffered books, and release the file."""
        try:
            self.flush()
        finally:
            os.close(self._file)
