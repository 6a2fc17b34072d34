"""An instrument without past bars begins with its first bar, whichever side brings it first."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from bybit_feed import Live, live
from bybit_server import MINUTE, START_MS, ScriptedServer, SteppedClock
from structlog.testing import capture_logs

from tracepaper.daemon.feed.client import FeedStart

START = FeedStart(interval_ms=MINUTE, period_start_ms=START_MS, warmup_bars=3)
CERTAIN_S = 30.0


async def stream(run: Live, minutes: Sequence[int], *, rest: bool = True) -> None:
    """Let *minutes* close, of which the stream brings each and REST those that it knows."""
    for minute in minutes:
        await run.close_bar(minute, rest=rest)


def serve(server: ScriptedServer, *minutes: int) -> None:
    for minute in minutes:
        server.add_candle(START_MS + minute * MINUTE)


async def test_bars_that_close_between_the_two_questions_of_the_start_are_not_lost() -> None:
    """They open at the end that the start has fixed before both; the stream does not bring them."""
    clock = SteppedClock(START_MS)
    async with ScriptedServer() as server:
        server.server_ms = START_MS + MINUTE
        clock.synchronise(server.server_ms)
        async with live(server, start=START, clock=clock) as run:
            await run.expect(lambda: len(server.queries("kline")) > 2)  # two are of the warm-up
            serve(server, *range(1, 100))
            await stream(run, [100])
            await run.expect(partial(run.has_bars, 100))
            assert run.opens() == list(range(1, 101))


async def test_a_listing_is_known_a_second_after_rest_has_its_first_bar() -> None:
    async with ScriptedServer() as server, live(server, start=START) as run:
        await stream(run, [5])
        run.move_to(START_MS + 6 * MINUTE + 2_500)  # final by REST
        asked_s = run.clock.network_s()
        await run.expect(run.bars)
        assert run.clock.network_s() - asked_s < 3
        await stream(run, [6])
        await run.expect(partial(run.has_bars, 2))
        assert (run.opens(), run.gaps()) == ([5, 6], [])


async def test_a_symbol_that_rest_never_knows_begins_with_the_stream() -> None:
    async with ScriptedServer() as server, live(server, start=START) as run:
        await stream(run, [5, 6], rest=False)
        asked_s = run.clock.network_s()
        with capture_logs() as lines:
            await run.expect(run.bars)
        assert CERTAIN_S <= run.clock.network_s() - asked_s < CERTAIN_S + 3
        await run.expect(partial(run.has_bars, 2))
        await stream(run, [7], rest=False)
        await run.expect(partial(run.has_bars, 3))
        assert (run.opens(), run.gaps()) == ([5, 6, 7], [])
        assert [line["instrument"] for line in lines if line["event"] == "unknown to REST"] == [
            "linear:BTCUSDT"
        ]
