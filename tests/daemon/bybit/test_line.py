"""The bounded queue refuses quotes before bars and never what is insisted on."""

from __future__ import annotations

import asyncio

from tracepaper.daemon.bybit.line import Line


async def test_items_leave_in_order_of_arrival() -> None:
    line: Line[int] = Line(10)
    for item in range(5):
        assert line.offer(item)
    assert [await line.get() for _ in range(5)] == list(range(5))


async def test_quotes_cannot_take_the_place_of_bars() -> None:
    line: Line[int] = Line(4)
    assert [line.offer(item, share=0.5) for item in range(4)] == [True, True, False, False]
    assert line.offer(9)
    assert line.offer(9)
    assert not line.offer(9)


async def test_what_is_insisted_on_finds_a_place() -> None:
    line: Line[int] = Line(1)
    line.offer(1)
    line.insist(2)
    assert len(line) == 2


async def test_a_waiting_reader_gets_what_comes_later() -> None:
    line: Line[str] = Line(1)
    reader = asyncio.create_task(line.get())
    await asyncio.sleep(0)
    line.offer("late")
    async with asyncio.timeout(5):
        assert await reader == "late"
