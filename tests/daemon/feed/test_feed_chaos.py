"""Despite all seeded faults of an exchange every bar arrives exactly once, or is a hole."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from bybit_feed import Live, live
from bybit_server import MINUTE, START_MS, ScriptedServer, book, kline, ticker
from waiting import until

BARS = 25
FAULTS = ("send", "send", "drop", "twice", "revise", "late", "malformed", "cut", "lost")


async def misbehave(run: Live, rng: random.Random) -> tuple[set[int], int]:
    """Close ``BARS`` minutes with faults; return the minutes without a bar, and the revisions."""
    holes: set[int] = set()
    revisions = 0
    held: list[int] = []
    for index in range(BARS):
        open_ms = START_MS + index * MINUTE
        fault = rng.choice(FAULTS) if 0 < index < BARS - 1 else "send"
        if fault == "cut":
            await run.server.drop()
        await run.close_bar(index, stream=False, rest=fault != "lost")
        if fault == "lost":
            holes.add(index)
        if fault in ("send", "twice", "revise"):
            await run.server.send(kline(open_ms))
        if fault == "twice":
            await run.server.send(kline(open_ms))
        if fault == "revise":
            await run.server.send(kline(open_ms, "101.5"), kline(open_ms, "101.5"))
            revisions += 1
        if fault == "malformed":
            await run.server.send(kline(open_ms, "-1"), b'{"topic":"kline.1.BTCUSDT"')
        at_ms = run.clock.market_ms()
        await run.server.send(book(at_ms, size=str(index + 1)), ticker(at_ms))
        for late in held:
            await run.server.send(kline(START_MS + late * MINUTE))
        held = [index] if fault == "late" else []
        run.clock.advance(network_s=rng.uniform(0, 0.2))
        if fault == "cut":
            await run.expect(lambda: run.server.sockets)
            await until(lambda: run.feed.counters["connects"] == run.server.connections)
    return holes, revisions


@pytest.mark.parametrize("seed", range(8))
async def test_every_bar_comes_once_in_order_or_is_a_hole(seed: int) -> None:
    rng = random.Random(seed)
    async with ScriptedServer() as server, live(server) as run:
        holes, _ = await misbehave(run, rng)
        wanted = [index for index in range(BARS) if index not in holes]
        # The stream may be cut as the last minute closes: REST has the bar after the grace.
        run.move_to(START_MS + BARS * MINUTE + 6_000)
        await run.expect(lambda: BARS - 1 in run.opens())
        first: list[int] = []
        for index in run.opens():
            if index not in first:
                first.append(index)
        assert first == wanted
        values = Counter((bar.open_time_ms, bar.close) for bar in run.bars())
        assert set(values.values()) == {1}
        missing = [
            minute
            for from_, until_, _, repaired_by in run.gaps()
            if not repaired_by
            for minute in range(from_, until_)
        ]
        assert missing == sorted(holes)
