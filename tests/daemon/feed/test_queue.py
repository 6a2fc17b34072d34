"""The bounded queue drops quotes before bars, and nothing that must not be dropped."""

from __future__ import annotations

from tracepaper.daemon.feed.client import EventQueue


async def test_quotes_cannot_take_the_place_of_bars_and_what_is_insisted_on_finds_one() -> None:
    queue: EventQueue[int] = EventQueue(4)
    assert [queue.try_put(item, share=0.5) for item in range(4)] == [True, True, False, False]
    assert [queue.try_put(item) for item in (9, 9, 9)] == [True, True, False]
    queue.put_nowait(10)
    assert [await queue.get() for _ in range(5)] == [0, 1, 9, 9, 10]
