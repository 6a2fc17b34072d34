"""Files of recorded order books: whole blocks, marked gaps, exact levels.

A file is a gzip file of many members. The first holds a header as one JSON line. Each other one
holds a block: up to ``BLOCK_BOOKS`` books, ``every_ms`` apart without a hole, and the cause of the
gap before it (empty where it goes on). So a killed recorder leaves at most one torn member at the
end, and no reader bridges what was not heard.

The rules are docs/orderbook.md, D1 to D5.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from tracepaper.replay.archive.members import (
    BOOKS_MARK,
    BlockWriter,
    MemberFile,
    MemberWriter,
    begins_with,
)
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.order_book import (
    BLOCK_BOOKS,
    EVERY_MS_MAX,
    EVERY_MS_MIN,
    LEVELS_MAX,
    Books,
    Integers,
    books_of,
    check_books,
    from_planes,
    joined,
    planes,
)
from tracepaper.strategies.types.market import Depth
from tracepaper.strategies.units import iso

FORMAT: Final = "tracepaper depth"
VERSION: Final = 1
BLOCK_MS: Final = 60_000
"""A block is written when it spans so long: what a kill can cost at most, beside one book."""


class DepthHeader(Struct, frozen=True, kw_only=True):
    """What a file holds books of, and whence: ``exchange``, ``loopback`` or ``frames``."""

    format: str = FORMAT
    version: int = VERSION
    instrument: str
    price_decimals: int
    quantity_decimals: int
    levels: int
    every_ms: int
    source: str

    def words(self) -> str:
        """Return it as people read it."""
        return f"{self.instrument}, {self.levels} levels a side each {self.every_ms:,} ms"


class _Block(Struct, array_like=True):
    """Books in a row; every array is int64, differences along its last axis, by byte planes."""

    cause: str
    first_ms: int
    count: int
    age: bytes  # [book]: how much older than the book its newest frame is
    price: bytes  # [book, side, level]
    size: bytes  # [book, side, level], as it is


_encode: Final = msgspec.msgpack.Encoder().encode
_decode_block: Final = msgspec.msgpack.Decoder(_Block).decode
_decode_header: Final = msgspec.json.Decoder(DepthHeader).decode


@dataclass(frozen=True)
class DepthBlock:
    """Books without a hole, and why they do not go on from those before; empty where they do."""

    cause: str
    books: Books
    byte: int  # of the file, where it begins


class DepthFile(MemberFile):
    """A file read block by block; ``torn`` is known once all were read."""

    def __init__(self, path: Path) -> None:
        """Open *path*; raise ``DataInvalid`` where it is no file of books."""
        super().__init__(path, BOOKS_MARK)
        self.header: Final = _header(path, self.head)

    def blocks(self) -> Iterator[DepthBlock]:
        """Yield every whole block, each checked; raise ``DataInvalid`` for one that is damaged."""
        header, expected = self.header, 0
        end = self.begin
        for content, stop in self.members(end):
            where = f"{self.path}, the block at byte {end:,},"
            block = _unpacked(content, header, where, end)
            first_ms = int(block.books.seen_ms[0])
            if first_ms < expected or (expected and not block.cause and first_ms != expected):
                raise DataInvalid(
                    f"{where} does not go on from the one before; restore the file or record anew."
                )
            expected = int(block.books.seen_ms[-1]) + header.every_ms
            end = stop
            yield block

    def block_at(self, byte: int) -> DepthBlock:
        """Return the block that begins at *byte*, one of those that :meth:`blocks` yielded."""
        content, _ = next(self.members(byte))
        return _unpacked(content, self.header, f"{self.path}, the block at byte {byte:,},", byte)


def _header(path: Path, content: bytes) -> DepthHeader:
    try:
        header = _decode_header(content)
    except msgspec.MsgspecError as error:
        raise DataInvalid(f"{path} has no header of a file of books ({error}).") from None
    if header.format != FORMAT or header.version != VERSION:
        raise DataInvalid(
            f"{path} is of version {header.version} and this one reads {VERSION}; use a newer "
            "tracepaper."
        )
    if not (1 <= header.levels <= LEVELS_MAX and EVERY_MS_MIN <= header.every_ms <= EVERY_MS_MAX):
        raise DataInvalid(f"{path} has a header that no recorder writes; restore it from a copy.")
    return header


def is_depth_file(path: Path) -> bool:
    """Return whether *path* begins as a file of books does."""
    return begins_with(path, BOOKS_MARK)


def _packed(cause: str, books: Books) -> bytes:
    price = np.diff(books.price, axis=2, prepend=0)
    block = _Block(
        cause,
        int(books.seen_ms[0]),
        len(books),
        planes(books.seen_ms - books.market_ms),
        planes(price),
        planes(books.size),
    )
    return _encode(block)


def _unpacked(content: bytes, header: DepthHeader, where: str, byte: int) -> DepthBlock:
    """Return the block that *content* holds, checked; raise ``DataInvalid``."""
    try:
        block = _decode_block(content)
    except msgspec.MsgspecError as error:
        raise DataInvalid(f"{where} is no block of books ({error}); restore the file.") from None
    if not 1 <= block.count <= BLOCK_BOOKS or block.first_ms % header.every_ms:
        raise DataInvalid(f"{where} is off its own grid of times; restore the file.")
    shape = (block.count, 2, header.levels)
    seen_ms = block.first_ms + header.every_ms * np.arange(block.count, dtype=np.int64)
    price = np.cumsum(from_planes(block.price, shape, where), axis=2)
    age = from_planes(block.age, shape[:1], where)
    books = Books(seen_ms, seen_ms - age, price, from_planes(block.size, shape, where))
    check_books(books, where)
    return DepthBlock(block.cause, books, byte)


class DepthWriter(BlockWriter):
    """Appends books to one file, whole blocks at a time; the only writer of it.

    ``says`` is what was found of an older writer's torn end. Raises ``ConfigInvalid`` where the
    file holds other books or has a writer already, ``DataInvalid`` where it is none.
    """

    def __init__(self, path: Path, header: DepthHeader) -> None:
        self.path: Final = path
        self._header: Final = header
        self._held: list[Depth] = []
        self._cause = ""
        self.last_ms = 0
        self.says = ""
        self._file = MemberWriter(path, BOOKS_MARK)
        try:
            if self._file.is_new:
                self._file.append(msgspec.json.encode(header) + b"\n")
            else:
                self._resume()
        except BaseException:
            self._file.close()
            raise

    def _resume(self) -> None:
        """Find where the file ends, and cut off what is no whole block."""
        stored = DepthFile(self.path)
        if stored.header != self._header:
            raise ConfigInvalid(
                f"{self.path} holds {stored.header.words()} from {stored.header.source}, not "
                f"{self._header.words()} from {self._header.source}; give another --out."
            )
        for block in stored.blocks():
            self.last_ms = int(block.books.seen_ms[-1])
        if stored.torn is not None:
            self.says = stored.torn_sentence()
            self._file.cut(stored.torn)

    def add(self, depth: Depth, cause: str) -> None:
        """Take the next book; *cause* says why it does not go on from the one before.

        Raises ``DataInvalid`` where it is not later than all that is stored.
        """
        if depth.seen_ms <= self.last_ms:
            raise DataInvalid(
                f"{self.path} holds books until {iso(self.last_ms)} and the next is of "
                f"{iso(depth.seen_ms)}; give another --out."
            )
        if cause:
            self.flush()
            self._cause = cause
        self._held.append(depth)
        self.last_ms = depth.seen_ms
        spanned = depth.seen_ms - self._held[0].seen_ms + self._header.every_ms
        if len(self._held) == BLOCK_BOOKS or spanned >= BLOCK_MS:
            self.flush()

    def flush(self) -> None:
        """Write what is held as one block."""
        if not self._held:
            return
        self._file.append(_packed(self._cause, books_of(self._held, self._header.levels)))
        self._held.clear()
        self._cause = ""


@dataclass(frozen=True)
class DepthGap:
    """Where nothing was recorded: after the book of ``from_ms``, until that of ``until_ms``."""

    from_ms: int
    until_ms: int
    cause: str


@dataclass(frozen=True)
class DepthQuality:
    """What a file of books holds; times are UTC milliseconds."""

    path: str
    instrument: str
    levels: int
    every_ms: int
    source: str
    books: int
    first_ms: int | None
    last_ms: int | None
    recorded_ms: int  # without the gaps
    gaps: tuple[DepthGap, ...]
    bytes: int
    bytes_a_book: float | None
    thin: int  # books with fewer levels than asked for, on a side
    torn: str  # what is left out at the end; empty where nothing is


class Units(NamedTuple):
    """The largest integers that divide every price and every size."""

    price: int
    size: int


def units_of(books: Books) -> Units:
    """Return the greatest common divisors of all prices and of all sizes of *books*."""
    return Units(
        int(np.gcd.reduce(books.price, axis=None)), int(np.gcd.reduce(books.size, axis=None))
    )


@dataclass(frozen=True)
class RecordedDepth:
    """A whole file in memory: its books, and where the stretches without a hole begin."""

    header: DepthHeader
    books: Books
    starts: NDArray[np.int64]
    causes: tuple[str, ...]  # of the gap before each of them; empty before a file's first
    torn: str

    @property
    def times(self) -> Integers:
        """The time of every book."""
        return self.books.seen_ms

    @property
    def units(self) -> Units:
        """What divides every price and every size."""
        return units_of(self.books)

    @property
    def sha256(self) -> str:
        """The hash of the header and the books."""
        digest = hashlib.sha256(msgspec.json.encode((self.header, self.causes)))
        books = self.books
        for column in (self.starts, books.seen_ms, books.market_ms, books.price, books.size):
            digest.update(column.tobytes())
        return digest.hexdigest()

    def loaded(self) -> RecordedDepth:
        """Return it."""
        return self

    def part(self, start: int, stop: int) -> Books:
        """Return the books from *start* until *stop*."""
        return self.books.part(start, stop)

    def stretches(self) -> list[Books]:
        """Return the books between gaps."""
        ends = [*self.starts[1:].tolist(), len(self.books)]
        return [
            self.books.part(start, end)
            for start, end in zip(self.starts.tolist(), ends, strict=True)
        ]

    @property
    def recorded_ms(self) -> int:
        """How long was recorded, without the gaps."""
        return len(self.books) * self.header.every_ms


def read_depth(path: Path) -> RecordedDepth:
    """Read a file of books whole; raise ``DataInvalid`` where it holds none or is damaged."""
    return StoredDepth(path).loaded()


class StoredDepth:
    """A file that was read once to its end and is read again a block at a time.

    It keeps the file as it is, packed, and the time of each book. Raises ``DataInvalid`` where the
    file holds no books or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._file = DepthFile(path)
        self.header: Final = self._file.header
        causes: list[str] = []
        starts: list[int] = []
        firsts: list[int] = []  # of each block, its first book
        bytes_at: list[int] = []
        times: list[Integers] = []
        count, units = 0, Units(0, 0)
        for block in self._file.blocks():
            if block.cause or not firsts:
                starts.append(count)
                causes.append(block.cause)
            firsts.append(count)
            bytes_at.append(block.byte)
            times.append(block.books.seen_ms)
            count += len(block.books)
            units = Units(*map(math.gcd, units, units_of(block.books)))
        if not firsts:
            raise DataInvalid(
                f"{path} holds no books yet; record some by `tracepaper data record`."
            )
        self.torn: Final = self._file.torn_sentence()
        self.times: Final = np.concatenate(times)
        self.starts: Final = np.array(starts, dtype=np.int64)
        self.causes: Final = tuple(causes)
        self.units: Final = units
        self._firsts: Final = np.array(firsts, dtype=np.int64)
        self._bytes: Final = bytes_at
        self._newest: tuple[int, Books] | None = None

    @property
    def sha256(self) -> str:
        """The hash of the whole file."""
        return self._file.sha256

    def loaded(self) -> RecordedDepth:
        """Return all of it in memory."""
        books = self.part(0, len(self.times))
        return RecordedDepth(self.header, books, self.starts, self.causes, self.torn)

    def part(self, start: int, stop: int) -> Books:
        """Return the books from *start* until *stop*; forwards each block is unpacked once."""
        first, last = np.searchsorted(self._firsts, (start, stop - 1), side="right").tolist()
        parts = []
        for number in range(first - 1, last):
            begin = int(self._firsts[number])
            books = self._block(number)
            parts.append(books.part(max(start - begin, 0), min(stop - begin, len(books))))
        return parts[0] if len(parts) == 1 else joined(parts)

    def _block(self, number: int) -> Books:
        if self._newest is None or self._newest[0] != number:
            self._newest = number, self._file.block_at(self._bytes[number]).books
        return self._newest[1]


DepthSource = RecordedDepth | StoredDepth
"""Recorded books that can be had a part at a time: all in memory, or of a file."""


def depth_quality(path: Path) -> DepthQuality:
    """Summarise the file at *path*, read block by block; raise ``DataInvalid``."""
    file = DepthFile(path)
    first = last = None
    books = thin = 0
    gaps: list[DepthGap] = []
    for block in file.blocks():
        begin = int(block.books.seen_ms[0])
        if last is None:
            first = begin
        elif block.cause:
            gaps.append(DepthGap(last, begin, block.cause))
        last = int(block.books.seen_ms[-1])
        books += len(block.books)
        thin += int((block.books.size[:, :, -1] == 0).any(axis=1).sum())
    header = file.header
    return DepthQuality(
        path=str(path),
        instrument=header.instrument,
        levels=header.levels,
        every_ms=header.every_ms,
        source=header.source,
        books=books,
        first_ms=first,
        last_ms=last,
        recorded_ms=books * header.every_ms,
        gaps=tuple(gaps),
        bytes=file.size,
        bytes_a_book=file.size / books if books else None,
        thin=thin,
        torn=file.torn_sentence(),
    )
