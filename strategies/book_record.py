"""``BookRecord``: the newest order books of an instrument, back to the last gap at most.

They wait as they came, packed, until a strategy looks at them: nobody else needs numpy.

The rule is docs/orderbook.md, D14.
"""

from __future__ import annotations

from collections import deque
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from tracepaper.strategies.types import Depths

if TYPE_CHECKING:
    from tracepaper.strategies.books import Books

LEVELS_MAX: Final = 1_000
"""Of a side, the most that any depth of the exchange has."""
BLOCK_BOOKS: Final = 64
"""Books that are packed together at most."""
EVERY_MS_MIN: Final = 10
EVERY_MS_MAX: Final = 3_600_000
LATER_BOOKS: Final = 128
"""Kept beyond those that are wanted: a bar may come after books that are later than its close."""


class BookRecord:
    """The last *length* books before a close, none from before a gap or one that is false."""

    def __init__(self, length: int) -> None:
        self.length: Final = length
        self._events: deque[Depths] = deque()
        self._unpacked: dict[int, Books] = {}  # by the time of an event's first book
        self._count = 0
        self._false_ms = -1  # of the newest book that was not believed

    def add(self, depths: Depths) -> None:
        """Take in the next books; those before a gap are forgotten."""
        if depths.cause or (self._events and depths.first_ms != self._events[-1].next_ms):
            self.forget()
        self._events.append(depths)
        self._count += depths.count
        while self._count - self._events[0].count >= self.length + LATER_BOOKS:
            oldest = self._events.popleft()
            self._count -= oldest.count
            self._unpacked.pop(oldest.first_ms, None)

    def hide(self, false_ms: int) -> None:
        """Show no book up to the one of *false_ms*, which is not believed."""
        self._false_ms = max(self._false_ms, false_ms)

    def books_of(self, event: Depths) -> Books:
        """Return the books of *event*, which is held, unpacked once."""
        from tracepaper.strategies.books import books_in

        books = self._unpacked.get(event.first_ms)
        if books is None:
            books = self._unpacked[event.first_ms] = books_in(event)
        return books

    def forget(self) -> None:
        """Drop all books, as a restarted process does."""
        self._events.clear()
        self._unpacked.clear()
        self._count = 0

    def until(self, close_ms: int) -> Books | None:
        """Return the last books that stood so at *close_ms* or before; None without any."""
        from tracepaper.strategies.books import joined

        parts: list[Books] = []
        held = 0
        for event in reversed(self._events):
            if event.first_ms > close_ms:
                continue
            if event.market_ms <= self._false_ms:
                break
            books = self.books_of(event)
            if event.market_ms > close_ms:
                books = books.part(0, (close_ms - event.first_ms) // event.every_ms + 1)
            parts.append(books)
            held += len(books)
            if held >= self.length:
                break
        if not parts:
            return None
        found = joined(parts[::-1])
        first = int((found.seen_ms <= self._false_ms).sum())
        if first == held:
            return None
        return found.part(max(held - self.length, first), held)

    def digest(self, close_ms: int) -> bytes:
        """Return the hash of what :meth:`until` returns."""
        books = self.until(close_ms)
        if books is None:
            return sha256(b"").digest()
        arrays = (books.seen_ms, books.market_ms, books.price, books.size)
        return sha256(b"".join(array.tobytes() for array in arrays)).digest()
