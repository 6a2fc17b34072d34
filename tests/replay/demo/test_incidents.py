"""An incident ends as it should however long it takes, and market time waits for it."""

from __future__ import annotations

import asyncio
import io
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import ClientSession
from exchange_client import candles, walk_rows
from rich.console import Console, ConsoleDimensions
from waiting import deadline

from tracepaper.daemon.clock import SystemClock
from tracepaper.replay.demo.playback import (
    SPEED_MAX,
    SPEED_MIN,
    BarMessage,
    GapMessage,
    Pacer,
    Race,
    ShowFiles,
)
from tracepaper.replay.demo.processes import Cast
from tracepaper.replay.demo.screen import RaceScreen
from tracepaper.replay.demo.show import INCIDENTS, cut_the_stream, paced
from tracepaper.replay.exchange.server import EmbeddedExchange, ExchangeSettings
from tracepaper.strategies.errors import FeedLost

MINUTE = 60_000
BARS = 600
BEGUN = 20
NAMES = ("linear:BTCUSDT", "linear:SOLUSDT")


@asynccontextmanager
async def on_stage(folder: Path) -> AsyncIterator[tuple[Cast, EmbeddedExchange, Console]]:
    """Set the stage beside a real exchange; the test tells what a daemon would tell."""
    served = candles(walk_rows(BARS))
    settings = ExchangeSettings(candles=(served,), speed=500.0, start=BEGUN)
    console = Console(file=io.StringIO(), force_terminal=True, width=120, height=40)
    stage = RaceScreen(console)
    async with EmbeddedExchange(settings) as exchange, ClientSession() as http:
        cast = Cast(
            {**exchange.announcement(), "symbols": list(NAMES)},
            ShowFiles(folder / "show.db"),
            stage,
            Race(),
            Pacer(exchange.venue.end_ms, 1.0, MINUTE),
            SystemClock(),
            http,
            {},
            exchange.venue.end_ms,
        )
        tell_bars(cast, exchange.clock.now_ms())
        await cast.follow()
        yield cast, exchange, console
    stage.close()


def tell_bars(cast: Cast, close_ms: int) -> None:
    """Tell a decided bar of each symbol."""
    for name in NAMES:
        sequence = cast.race.sequence + 1
        equities = {"": 100.0}
        cast.race.observe(
            BarMessage(sequence, name, close_ms, 1.0, True, "", 0.0, equities, (), {})
        )


async def follow(cast: Cast) -> None:
    """Follow each pace at once."""
    while True:
        cast.followed.set()
        await cast.clock.sleep(0.01)


async def test_a_cut_that_missed_no_bar_is_made_again_for_longer(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as (cast, exchange, _):
        refusals = exchange.faults.tally("refuse")
        incident = asyncio.create_task(cut_the_stream(cast))
        await cast.until(lambda: refusals.scheduled == 1)
        cut_ms = exchange.clock.now_ms()
        # The daemon was back before a bar closed: bars go on, and there is no gap.
        tell_bars(cast, cut_ms + 30 * MINUTE)
        await cast.until(lambda: refusals.scheduled == 1 + 2)
        for name in NAMES:
            cast.race.observe(GapMessage(name, cut_ms, cut_ms + MINUTE, "disconnected", "rest"))
        async with deadline():
            await incident
        (said,) = cast.outcomes
        assert said.endswith("read the 2 bars that it had missed by REST; none is missing.")


async def test_market_time_waits_for_a_long_incident_through_a_resize(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as (cast, exchange, console):
        cast.speed, cast.pacer.ceiling = SPEED_MIN, SPEED_MAX
        await cast.follow()
        waits_ms = exchange.clock.now_ms() + 60 * MINUTE
        cast.pacer.waits_ms, cast.pacer.expects_silence = waits_ms, True
        beside = [asyncio.create_task(work) for work in (paced(cast), follow(cast))]
        # Nothing is told: as of a daemon that takes long to connect again.
        await cast.until(lambda: exchange.clock.now_ms() > waits_ms - 55 * MINUTE)
        console.size = ConsoleDimensions(40, 12)
        signal.raise_signal(signal.SIGWINCH)
        cast.stage.show(cast.race, speed=cast.speed, until_ms=cast.until_ms, now="cut")
        await cast.until(lambda: cast.speed < 600)
        assert exchange.clock.now_ms() < waits_ms
        cast.pacer.waits_ms = None  # the incident is over, and market time goes on
        await cast.until(lambda: exchange.clock.now_ms() > waits_ms)
        for task in beside:
            task.cancel()


async def test_a_daemon_that_ends_early_is_no_end_of_the_race(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as (cast, _, _console):
        cast.files.log.write_text("memory ran out", encoding="utf-8")
        cast.reading = asyncio.create_task(asyncio.sleep(0))
        await cast.reading
        with pytest.raises(FeedLost, match="memory ran out"):
            await cast.reach(0.5)
        tell_bars(cast, cast.until_ms)
        assert not await cast.reach(0.5)  # nothing is left in which an incident could happen


def test_incidents_follow_one_another_before_the_end() -> None:
    ends = [0.0, *(each.until for each in INCIDENTS)]
    assert all(
        before <= each.at < each.until < 1 for before, each in zip(ends, INCIDENTS, strict=False)
    )
