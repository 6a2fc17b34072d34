"""The sampled order books of a recording, kept packed in memory and unpacked on demand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracepaper.replay.archive.recordings import BooksFile, RecordingHeader
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.order_book import Books, Integers, books_in, joined
from tracepaper.strategies.types.market import Depths


class Units(NamedTuple):
    """The largest integers that divide every price and every size."""

    price: int
    size: int


def units_of(books: Books) -> Units:
    """Return the greatest common divisors of all prices and of all sizes of *books*."""
    return Units(
        int(np.gcd.reduce(books.price, axis=None)), int(np.gcd.reduce(books.size, axis=None))
    )


@dataclass(frozen=True, eq=False)
class RecordedDepth:
    """A file's books, checked once and kept packed; parts are unpacked on demand.

    ``lookahead`` removes those after ``until_ms``, and falsifies those after ``known_ms``: prices
    tenfold, sizes of asks × 1,000.
    """

    header: RecordingHeader
    blocks: Sequence[Depths]
    units: Units  # greatest common divisors of all prices and of all sizes
    file_sha256: str
    torn: str = ""  # the part left out at the end, in words; empty if none
    until_ms: int | None = None
    known_ms: int | None = None
    _newest: dict[int, Books] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def times(self) -> Integers:
        """The time of every book."""
        times: Integers = np.concatenate(
            [np.arange(block.first_ms, block.next_ms, block.every_ms) for block in self.blocks]
        )
        if self.until_ms is not None:
            times = times[: np.searchsorted(times, self.until_ms, side="right")]
        return times

    @cached_property
    def _firsts(self) -> Integers:
        """The index of each block's first book."""
        return np.cumsum([0, *(block.count for block in self.blocks[:-1])])

    @cached_property
    def _begins(self) -> list[tuple[int, str]]:
        firsts = zip(self._firsts.tolist(), self.blocks, strict=True)
        begins = [(at, block.cause) for at, block in firsts if block.cause or not at]
        return [(at, cause) for at, cause in begins if at < len(self.times)]

    @property
    def starts(self) -> NDArray[np.int64]:
        """The index of the first book of each stretch without a hole."""
        return np.array([at for at, _ in self._begins], dtype=np.int64)

    @property
    def causes(self) -> tuple[str, ...]:
        """The cause of the gap before each stretch."""
        return tuple(cause for _, cause in self._begins)

    @property
    def sha256(self) -> str:
        """The hash of the file and of the changes."""
        if self.until_ms is None and self.known_ms is None:
            return self.file_sha256
        return sha256(f"{self.file_sha256} {self.until_ms} {self.known_ms}".encode()).hexdigest()

    def read_all(self) -> Books:
        """Return all books, in memory; each call unpacks the whole file."""
        return self.part(0, len(self.times))

    def stretches(self) -> list[Books]:
        """Return the books between gaps."""
        starts = self.starts.tolist()
        ends = [*starts[1:], len(self.times)]
        return [self.part(start, end) for start, end in zip(starts, ends, strict=True)]

    def part(self, start: int, stop: int) -> Books:
        """Return the books in [*start*, *stop*); reading forwards unpacks each block once."""
        ends = (start, max(start, stop - 1))
        first, last = np.searchsorted(self._firsts, ends, side="right").tolist()
        parts = []
        for number in range(first - 1, last):
            begin = int(self._firsts[number])
            books = self._block(number)
            parts.append(books.part(max(start - begin, 0), min(stop - begin, len(books))))
        whole = parts[0] if len(parts) == 1 else joined(parts)
        if self.known_ms is None:
            return whole
        price, size, later = whole.price.copy(), whole.size.copy(), whole.seen_ms > self.known_ms
        price[later] *= 10
        size[later, 1] *= 1_000
        return Books(whole.seen_ms, whole.market_ms, price, size)

    def _block(self, number: int) -> Books:
        if number not in self._newest:
            self._newest.clear()
            self._newest[number] = books_in(self.blocks[number])
        return self._newest[number]


def read_depth(path: Path) -> RecordedDepth:
    """Read a file of books; raise ``DataInvalid`` if it has none or is damaged."""
    file = BooksFile(path)
    blocks, units = [], Units(0, 0)
    for block, books in file.blocks():
        blocks.append(block)
        units = Units(*map(math.gcd, units, units_of(books)))
    if not blocks:
        raise DataInvalid(f"{path} holds no books yet; record some by `tracepaper data record`.")
    return RecordedDepth(file.header, blocks, units, file.sha256, file.torn)
