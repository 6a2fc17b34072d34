"""Order books of several levels as exact columns; packing and checks.

Books stay packed until a strategy reads them.

The rule is docs/orderbook.md, D14.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.types.market import Depth, Depths
from tracepaper.strategies.units import MINUTE_MS

LEVELS_MAX: Final = 1_000
"""Maximum levels per side of any depth of the exchange."""
BLOCK_BOOKS: Final = 64
"""Maximum number of books packed together."""
EVERY_MS_MIN: Final = 10
EVERY_MS_MAX: Final = 3_600_000
SILENT_MS: Final = MINUTE_MS
"""After this time (market ms) without a message, a book counts as lost, not as unchanged."""
LATER_BOOKS: Final = 128
"""Additional books kept, since a bar may arrive after books that are later than its close."""


class OrderBookHistory:
    """The last *length* books before a close, without those from before a gap."""

    def __init__(self, length: int) -> None:
        self.length: Final = length
        self._events: deque[Depths] = deque()
        self._unpacked: dict[int, Books] = {}  # by the time of an event's first book
        self._count = 0

    def add(self, depths: Depths) -> None:
        """Add the next books; after a gap forget the earlier ones."""
        if depths.cause or (self._events and depths.first_ms != self._events[-1].next_ms):
            self.forget()
        self._events.append(depths)
        self._count += depths.count
        while self._count - self._events[0].count >= self.length + LATER_BOOKS:
            oldest = self._events.popleft()
            self._count -= oldest.count
            self._unpacked.pop(oldest.first_ms, None)

    def books_of(self, event: Depths) -> Books:
        """Return the unpacked books of *event*, from a cache."""
        books = self._unpacked.get(event.first_ms)
        if books is None:
            books = self._unpacked[event.first_ms] = books_in(event)
        return books

    def forget(self) -> None:
        """Drop all books, as a restarted process does."""
        self._events.clear()
        self._unpacked.clear()
        self._count = 0

    def until(self, close_ms: int, limit: int | None = None) -> Books | None:
        """Return the last books at or before *close_ms*; None without any.

        There are at most *limit* of them (by default ``length``).
        """
        length = self.length if limit is None else limit
        parts: list[Books] = []
        count = 0
        for event in reversed(self._events):
            if event.first_ms > close_ms:
                continue
            books = self.books_of(event)
            if event.market_ms > close_ms:
                books = books.part(0, (close_ms - event.first_ms) // event.every_ms + 1)
            parts.append(books)
            count += len(books)
            if count >= length:
                break
        if not parts:
            return None
        recent = joined(parts[::-1])
        return recent.part(max(count - length, 0), count)


SIDES: Final = ("bid", "ask")
"""The sides, in the order of every array."""
KIND: Final = "orderbook"
"""The kind of model that reads order books instead of bars, as on its card."""

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Books:
    """Books of one instrument, oldest first; a missing level has size 0.

    ``price`` and ``size`` are int64 [book, side, level], from the touch outwards.
    """

    seen_ms: Integers  # [book]: time of the snapshot
    market_ms: Integers  # [book]: of the newest frame applied
    price: Integers
    size: Integers

    def __len__(self) -> int:
        """Return the number of books."""
        return len(self.seen_ms)

    @property
    def levels(self) -> int:
        """Levels per side."""
        return int(self.price.shape[2])

    def part(self, start: int, stop: int) -> Books:
        """Return the books in [start, stop), as views."""
        cut = slice(start, stop)
        return Books(self.seen_ms[cut], self.market_ms[cut], self.price[cut], self.size[cut])

    def shallower(self, levels: int) -> Books:
        """Return the books with at most *levels* per side, as views."""
        return Books(
            self.seen_ms, self.market_ms, self.price[..., :levels], self.size[..., :levels]
        )

    @property
    def doubled_mid(self) -> Integers:
        """Twice the mid price of each book, exactly."""
        return self.price[:, 0, 0] + self.price[:, 1, 0]


def books_of(depths: Sequence[Depth], levels: int) -> Books:
    """Return *depths* as columns of *levels* per side."""
    price = np.zeros((len(depths), 2, levels), dtype=np.int64)
    size = np.zeros_like(price)
    for row, depth in enumerate(depths):
        for side, packed in enumerate((depth.bids, depth.asks)):
            pairs = np.frombuffer(packed, dtype="<i8").reshape(-1, 2)[:levels]
            price[row, side, : len(pairs)] = pairs[:, 0]
            size[row, side, : len(pairs)] = pairs[:, 1]
    return Books(
        np.array([depth.seen_ms for depth in depths], dtype=np.int64),
        np.array([depth.market_ms for depth in depths], dtype=np.int64),
        price,
        size,
    )


def joined(parts: Sequence[Books]) -> Books:
    """Concatenate the books of *parts*."""
    return Books(
        np.concatenate([part.seen_ms for part in parts]),
        np.concatenate([part.market_ms for part in parts]),
        np.concatenate([part.price for part in parts]),
        np.concatenate([part.size for part in parts]),
    )


def check_books(books: Books, where: str) -> None:
    """Raise ``DataInvalid``, which names *where*, for impossible books."""
    exists = books.size > 0
    steps = np.diff(books.price, axis=2) * np.array([-1, 1])[:, None]
    rules = (
        books.size >= 0,
        books.price >= exists,  # at least 1 where there is a level
        exists[:, :, 0],
        exists[:, :, :-1] | ~exists[:, :, 1:],  # no level behind a missing one
        books.price[:, 0, 0] < books.price[:, 1, 0],  # not crossed
        (steps > 0) | ~exists[:, :, 1:],  # levels lead away from the touch
        books.market_ms <= books.seen_ms,
    )
    if not all(rule.all() for rule in rules):
        raise _impossible(where, "holds an impossible book")


def _impossible(where: str, what: str) -> DataInvalid:
    return DataInvalid(f"{where} {what}, which no recording writes; restore it or record anew.")


# ---------------------------------------------------------------- packing

_PLANES: Final = 8  # bytes of an int64


def planes(numbers: Integers) -> bytes:
    """Return int64 *numbers* as byte planes (all first bytes, then all second …), to compress."""
    plain = np.ascontiguousarray(numbers, dtype="<i8").reshape(-1)
    return plain.view(np.uint8).reshape(-1, _PLANES).T.tobytes()


def from_planes(packed: bytes, shape: tuple[int, ...], where: str) -> Integers:
    """Return the numbers of *packed* in *shape*; raise ``DataInvalid``, which names *where*."""
    count = int(np.prod(shape))
    if len(packed) != count * _PLANES:
        raise DataInvalid(f"{where} holds other numbers than it says; restore the file.")
    columns = np.frombuffer(packed, dtype=np.uint8).reshape(_PLANES, count)
    return np.ascontiguousarray(columns.T).view("<i8").reshape(shape).astype(np.int64)


def packed_books(
    instrument: str, books: Books, *, every_ms: int, cause: str = "", seen_ms: int
) -> Depths:
    """Return *books*, *every_ms* apart, packed in an event that was seen at *seen_ms*.

    Prices are stored as differences along the levels; all numbers as compressed byte planes.
    """
    price = np.diff(books.price, axis=2, prepend=0)
    arrays = (books.seen_ms - books.market_ms, price, books.size)
    return Depths(
        instrument,
        cause,
        int(books.seen_ms[0]),
        every_ms,
        len(books),
        books.levels,
        zlib.compress(b"".join(map(planes, arrays)), 9),
        market_ms=int(books.seen_ms[-1]),
        seen_ms=seen_ms,
    )


def books_in(depths: Depths, where: str = "") -> Books:
    """Return the books in *depths*; raise ``DataInvalid``, which names *where*, if damaged."""
    where = where or f"The event of books of {depths.instrument} at {depths.first_ms}"
    count, levels = depths.count, depths.levels
    if not (1 <= count <= BLOCK_BOOKS and 1 <= levels <= LEVELS_MAX and depths.every_ms > 0):
        raise _impossible(where, f"holds {count} books of {levels} levels")
    if depths.market_ms != depths.next_ms - depths.every_ms:
        raise _impossible(where, "is of another time than its books")
    cells = 2 * count * levels
    expected = _PLANES * (count + 2 * cells)
    unpacker = zlib.decompressobj()
    try:
        data = unpacker.decompress(depths.books, expected + 1)
    except zlib.error:
        data = b""
    if len(data) != expected or not unpacker.eof or unpacker.unused_data:
        raise _impossible(where, "is damaged")
    ages, end = _PLANES * count, _PLANES * (count + cells)
    shape = (count, 2, levels)
    seen_ms = depths.first_ms + depths.every_ms * np.arange(count, dtype=np.int64)
    books = Books(
        seen_ms,
        seen_ms - from_planes(data[:ages], (count,), where),
        np.cumsum(from_planes(data[ages:end], shape, where), axis=2),
        from_planes(data[end:], shape, where),
    )
    check_books(books, where)
    return books


# ---------------------------------------------------------------- a network's input

COLUMNS: Final = (
    "distance",  # of the price from the mid, basis points ÷ 10, bids below 0
    "size",  # log(size) minus the book's mean
    "share",  # of its side's size at this level and nearer the touch
    "grown",  # log(size ÷ size of the level in the previous book)
    "moved",  # the mid since the previous book, basis points
    "age",  # of the newest frame, log(1 + seconds)
    "absent",  # 1 if the side has no such level
)
"""The columns of a level's token; in a window's first book "grown" and "moved" are 0."""
_CLIP: Final = 10.0


def tokens_of(books: Books) -> NDArray[np.float32]:
    """Return the tokens [book, side * level, column] of a window of *books*, by ``COLUMNS``.

    Bids come first, each side from the touch outwards. Each row depends only on its book and the
    previous one. Tokens are scale-free, so one network reads books of any instrument.
    """
    exists = books.size > 0
    price, mid = books.price.astype(np.float64), books.doubled_mid / 2.0
    distance = np.where(exists, (price / mid[:, None, None] - 1.0) * 1e3, 0.0)
    log_size = np.log(np.maximum(books.size, 1).astype(np.float64))
    count = exists.sum(axis=(1, 2))
    mean_size = np.where(exists, log_size, 0.0).sum(axis=(1, 2)) / count
    nearer = np.cumsum(books.size, axis=2, dtype=np.float64)
    grown = np.zeros_like(log_size)
    grown[1:] = np.where(exists[1:] & exists[:-1], log_size[1:] - log_size[:-1], 0.0)
    moved = np.zeros(len(books))
    moved[1:] = (mid[1:] / mid[:-1] - 1.0) * 1e4
    age = np.log1p((books.seen_ms - books.market_ms) / 1e3)
    columns = (
        distance,
        np.where(exists, log_size - mean_size[:, None, None], 0.0),
        nearer / nearer[:, :, -1:],
        grown,
        np.broadcast_to(moved[:, None, None], price.shape),
        np.broadcast_to(age[:, None, None], price.shape),
        (~exists).astype(np.float64),
    )
    tokens = np.stack(columns, axis=-1).reshape(len(books), -1, len(COLUMNS))
    return tokens.clip(-_CLIP, _CLIP).astype(np.float32)
