"""The newest candle of a higher timeframe is not lost where REST holds it late."""

from __future__ import annotations

from typing import Final

import pytest
from bybit_feed import BITCOIN, live
from bybit_server import MINUTE, ScriptedServer

from tracepaper.daemon.feed.client import FeedStart
from tracepaper.strategies.api.timeframes import FrameRange
from tracepaper.strategies.types.market import FrameBar

HOUR: Final = 60 * MINUTE
START_MS: Final = 1_699_999_200_000  # a whole hour
LACK: Final = FrameRange(BITCOIN.id, HOUR, START_MS - 3 * HOUR, START_MS)
START: Final = FeedStart(
    interval_ms=MINUTE, period_start_ms=START_MS, warmup_bars=0, lacking_frames=lambda _: (LACK,)
)


async def frames(server: ScriptedServer, *, hours: int) -> tuple[list[int], int]:
    """Return the candles of a start by their hours before it, and how often REST was asked."""
    for hour in range(hours):
        server.add_candle(LACK.from_ms + hour * HOUR)
    async with live(server, start=START) as run:
        candles = [event for event in run.events if isinstance(event, FrameBar)]
    asked = [query for query in server.queries("kline") if query["interval"] == "60"]
    return [(bar.open_time_ms - START_MS) // HOUR for bar in candles], len(asked)


@pytest.mark.parametrize("without", [0, 1, 2])
async def test_the_candle_that_just_closed_is_asked_for_until_rest_holds_it(without: int) -> None:
    async with ScriptedServer() as server:
        server.server_ms = START_MS + 3_000
        older = [[str(START_MS - hour * HOUR), *["1.0"] * 6] for hour in (2, 3)]
        late = {"category": "linear", "symbol": "BTCUSDT", "list": older}
        server.answer_next("kline", *(server.reply(late) for _ in range(without)))
        assert await frames(server, hours=3) == ([-3, -2, -1], without + 1)


@pytest.mark.parametrize("hours", [0, 2])
async def test_a_candle_that_never_comes_delays_a_later_start_by_one_question(hours: int) -> None:
    async with ScriptedServer() as server:
        server.server_ms = START_MS + 30_000
        assert await frames(server, hours=hours) == ([-3, -2, -1][:hours], 2)
