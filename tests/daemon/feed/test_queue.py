"""The bounded queue refuses quotes before bars and never what is insisted on."""

from __future__ import annotations

import asyncio

from waiting import deadline

from tracepaper.daemon.feed.client import EventQueue


async def test_items_leave_in_order_of_arrival() -> None:
    queue: EventQueue[int] = EventQueue(10)
    for item in range(5):
        assert queue.try_put(item)
    assert [await queue.get() for _ in range(5)] == list(range(5))


async def test_quotes_cannot_take_the_place_of_bars() -> None:
    queue: EventQueue[int] = EventQueue(4)
    assert [queue.try_put(item, share=0.5) for item in range(4)] == [True, True, False, False]
    assert queue.try_put(9)
    assert queue.try_put(9)
    assert not queue.try_put(9)


async def test_what_is_insisted_on_finds_a_place() -> None:
    queue: EventQueue[int] = EventQueue(1)
    queue.try_put(1)
    queue.put(2)
    assert len(queue) == 2


async def test_a_waiting_reader_gets_what_comes_later() -> None:
    queue: EventQueue[str] = EventQueue(1)
    reader = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.try_put("late")
    async with deadline():
        assert await reader == "late"
