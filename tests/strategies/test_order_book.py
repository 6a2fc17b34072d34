"""Books that are packed together come back as they were; a record never reaches over a gap."""

from __future__ import annotations

import zlib

import depth_cases as cases
import numpy as np
import pytest
from builders import present
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.order_book import (
    LATER_BOOKS,
    Books,
    OrderBookHistory,
    books_in,
    books_of,
    packed_books,
)
from tracepaper.strategies.types.market import Depths

EVERY_MS = 1_000


def event(count: int, *, first: int = 0, cause: str = "", levels: int = 5, seed: int = 1) -> Depths:
    first_ms = cases.FIRST_MS + first * EVERY_MS
    books = books_of(list(cases.walk(count, levels=levels, seed=seed, first_ms=first_ms)), levels)
    at_ms = int(books.seen_ms[-1])
    return packed_books(cases.BTC.id, books, every_ms=EVERY_MS, cause=cause, seen_ms=at_ms)


def same(books: Books, other: Books) -> bool:
    pairs = zip(vars(books).values(), vars(other).values(), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


@given(
    count=st.integers(1, 64),
    levels=st.sampled_from((1, 3, 50)),
    deep=st.integers(1, 50),
    seed=st.integers(0, 2**16),
)
def test_what_is_packed_comes_back(count: int, levels: int, deep: int, seed: int) -> None:
    walked = list(cases.walk(count, levels=min(levels, deep), seed=seed))
    books = books_of(walked, levels)  # levels that a side lacks are empty
    packed = packed_books("linear:BTCUSDT", books, every_ms=EVERY_MS, cause="stale", seen_ms=7)
    assert same(books_in(packed), books)
    assert (packed.count, packed.levels, packed.cause) == (count, levels, "stale")
    assert packed.market_ms == int(books.seen_ms[-1])
    assert packed.next_ms == packed.market_ms + EVERY_MS


@pytest.mark.parametrize(
    "change",
    [
        {"count": 4},
        {"levels": 4},
        {"count": 0},
        {"count": 10_000_000},
        {"market_ms": cases.FIRST_MS},
        {"books": b""},
        {"books": zlib.compress(b"no books")},
        {"books": zlib.compress(bytes(8 * (5 + 2 * 2 * 5 * 5)))},  # sizes of 0 at the touch
    ],
)
def test_an_event_that_holds_other_books_than_it_says_is_refused(change: dict[str, object]) -> None:
    whole = event(5)
    assert len(books_in(whole)) == 5
    with pytest.raises(DataInvalid, match=r"which no recording writes"):
        books_in(structs.replace(whole, **change))


def test_a_minute_of_fifty_levels_is_kept_compactly() -> None:
    # Of the exchange's own frames it took 78 bytes a book; a seeded walk changes more.
    assert len(event(60, levels=50).books) < 60 * 450


@pytest.mark.parametrize("last", [100, 118])
def test_the_newest_books_until_a_close_are_seen(last: int) -> None:
    record = OrderBookHistory(70)
    for part in range(3):
        record.add(event(60, first=60 * part, seed=part))
    close_ms = cases.FIRST_MS + last * EVERY_MS
    books = present(record.until(close_ms))
    times = (books.seen_ms - cases.FIRST_MS) // EVERY_MS
    assert times.tolist() == list(range(last - 69, last + 1))  # none later, and no more
    assert record.until(cases.FIRST_MS - 1) is None


@pytest.mark.parametrize(("cause", "first"), [("disconnected", 60), ("", 61)])
def test_nothing_from_before_a_gap_is_seen(cause: str, first: int) -> None:
    record = OrderBookHistory(100)
    record.add(event(60))
    record.add(event(5, first=first, cause=cause))
    books = present(record.until(cases.FIRST_MS + 1_000 * EVERY_MS))
    assert len(books) == 5


def test_a_restarted_process_knows_no_book() -> None:
    record = OrderBookHistory(100)
    record.add(event(60))
    record.forget()
    assert record.until(cases.FIRST_MS + 1_000 * EVERY_MS) is None


def test_how_books_were_cut_into_events_changes_nothing() -> None:
    whole, cut = OrderBookHistory(50), OrderBookHistory(50)
    whole.add(event(64))
    books = books_in(event(64))
    for start in range(0, 64, 16):
        part = books.part(start, start + 16)
        cut.add(packed_books(cases.BTC.id, part, every_ms=EVERY_MS, seen_ms=0))
    close_ms = cases.FIRST_MS + 55 * EVERY_MS
    together, two = whole.until(close_ms), cut.until(close_ms)
    assert together is not None
    assert two is not None
    for name in ("seen_ms", "market_ms", "price", "size"):
        assert np.array_equal(getattr(together, name), getattr(two, name))


def test_the_memory_of_a_record_is_bounded() -> None:
    record = OrderBookHistory(10)
    for part in range(20):
        record.add(event(64, first=64 * part, seed=part))
    assert len(record._events) <= 2 + LATER_BOOKS // 64  # noqa: SLF001 - its memory
    assert len(record._unpacked) <= len(record._events)  # noqa: SLF001
