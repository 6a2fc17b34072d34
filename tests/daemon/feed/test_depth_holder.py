"""Sampled books become events: whole blocks, each gap with its cause, none within a block."""

from __future__ import annotations

import depth_cases as cases
import numpy as np
import pytest

from tracepaper.daemon.feed.state import DepthHolder
from tracepaper.strategies.order_book import BLOCK_BOOKS, books_in, books_of
from tracepaper.strategies.types.market import Depth, Depths

EVERY_MS = 1_000


def holder() -> DepthHolder:
    return DepthHolder(cases.BTC.id, 5, EVERY_MS)


def of_holder(given: list[tuple[Depth, str]]) -> list[Depths]:
    """Return the events of all books, including the flush before a bar."""
    depth_holder = holder()
    events = [event for depth, cause in given for event in depth_holder.add(depth, cause)]
    return [*events, *depth_holder.flush()]


def walked(count: int) -> list[Depth]:
    return list(cases.walk(count))


def test_books_in_a_row_become_blocks_and_come_back() -> None:
    books = walked(150)
    events = of_holder([(book, "" if number else "stopped") for number, book in enumerate(books)])
    assert [event.count for event in events] == [BLOCK_BOOKS, BLOCK_BOOKS, 22]
    assert [event.cause for event in events] == ["stopped", "", ""]
    wanted = books_of(books, 5)
    for name in ("seen_ms", "market_ms", "price", "size"):
        held = np.concatenate([getattr(books_in(event), name) for event in events])
        assert (held == getattr(wanted, name)).all()


def test_a_gap_ends_a_block_and_begins_one_with_its_cause() -> None:
    books = walked(10)
    events = of_holder(
        [(book, "disconnected" if number == 4 else "") for number, book in enumerate(books)]
    )
    assert [(depths.count, depths.cause) for depths in events] == [(4, ""), (6, "disconnected")]


def test_a_book_that_found_no_room_in_the_queue_is_a_gap() -> None:
    books = walked(10)
    del books[3]
    events = of_holder([(book, "") for book in books])
    assert [(depths.count, depths.cause) for depths in events] == [(3, ""), (6, "overflow")]


@pytest.mark.parametrize("cut", [1, 5])
def test_what_came_before_a_bar_is_never_handed_on_twice(cut: int) -> None:
    books, books_held = walked(8), holder()
    first = [event for book in books[:cut] for event in books_held.add(book, "")] + [
        *books_held.flush()
    ]
    assert [*books_held.flush()] == []
    second = [event for book in books[cut:] for event in books_held.add(book, "")] + [
        *books_held.flush()
    ]
    assert [depths.count for depths in first + second] == [cut, 8 - cut]
    assert second[0].first_ms == first[0].next_ms
    assert second[0].cause == ""
