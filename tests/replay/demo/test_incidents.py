"""An incident ends as it should however long it takes."""

from __future__ import annotations

import asyncio
import io
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from builders import bar, decision, step
from exchange_client import candles, walk_rows
from msgspec import structs
from rich.console import Console, ConsoleDimensions
from waiting import deadline

from tracepaper.replay.demo.incidents import cut_the_stream
from tracepaper.replay.demo.stage import SLOW, SLOWER, Demo, RaceScreen, ShowFiles
from tracepaper.replay.exchange.server import EmbeddedExchange, ExchangeSettings
from tracepaper.strategies.errors import DataInvalid, FeedLost
from tracepaper.strategies.types.market import Gap, GapCause

pytestmark = pytest.mark.sockets

MINUTE = 60_000
BARS = 600
BEGUN = 20
SPEED = 1_000.0
NAMES = ("linear:BTCUSDT", "linear:SOLUSDT")


@asynccontextmanager
async def on_stage(folder: Path) -> AsyncIterator[tuple[Demo, EmbeddedExchange, Console]]:
    """Begin a demo beside a real exchange; the test is its daemon."""
    served = candles(walk_rows(BARS))
    settings = ExchangeSettings(candles=(served,), speed=SPEED, start=BEGUN)
    console = Console(file=io.StringIO(), force_terminal=True, width=120, height=40)
    async with EmbeddedExchange(settings) as exchange:
        demo = Demo(
            exchange,
            ShowFiles(folder / "show.db"),
            RaceScreen(console),
            MINUTE,
            until_ms=exchange.venue.end_ms,
            speed=SPEED,
            seconds=1.0,
        )
        store_bars(demo, exchange.clock.now_ms())
        demo.go_on()
        yield demo, exchange, console
        demo.screen.close()


def store_bars(demo: Demo, close_ms: int) -> None:
    """Store a decided bar of each symbol."""
    for name in NAMES:
        closed = structs.replace(bar(), instrument=name, open_time_ms=close_ms - MINUTE)
        demo.race.observe(step(closed, sequence=demo.race.sequence + 1, decided=decision()))


async def test_a_cut_that_missed_no_bar_is_made_again_for_longer(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as (demo, exchange, _):
        refusals = exchange.faults.tally("refuse")
        incident = asyncio.create_task(cut_the_stream(demo))
        await demo.until(lambda: refusals.scheduled == 1)
        cut_ms = exchange.clock.now_ms()
        # The daemon was back before a bar closed: bars go on, and there is no gap.
        store_bars(demo, cut_ms + 30 * MINUTE)
        await demo.until(lambda: refusals.scheduled == 1 + 2)
        for name in NAMES:
            gap = Gap(name, cut_ms, cut_ms + MINUTE, GapCause.DISCONNECTED, "rest", 1, 1)
            demo.race.observe(step(gap, sequence=demo.race.sequence + 1))
        store_bars(demo, exchange.clock.now_ms() + 60 * MINUTE)
        async with deadline():
            await incident
        (outcome,) = demo.outcomes
        assert outcome.endswith("read the 2 bars that it had missed by REST; none is missing.")


async def test_market_time_is_slow_from_a_late_bar_until_the_machine_has_caught_up(
    tmp_path: Path,
) -> None:
    async with on_stage(tmp_path) as (demo, exchange, _):
        clock, lower = exchange.clock, SPEED * SLOWER
        for minutes, speed in ((0, SPEED), (10, SLOW), (2, SLOW), (1, lower), (3, lower)):
            demo.race.now_ms = clock.now_ms() - (minutes + 1) * MINUTE + 30_000
            demo.keep_pace()
            assert clock.speed == pytest.approx(speed), minutes


async def test_the_screen_is_drawn_through_a_resize(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as (demo, _, console):
        demo.poll()
        console.size = ConsoleDimensions(40, 12)
        signal.raise_signal(signal.SIGWINCH)
        demo.poll()
        assert isinstance(console.file, io.StringIO)
        assert "tracepaper demo" in console.file.getvalue()


async def test_a_daemon_that_ends_early_is_no_end_of_the_race(tmp_path: Path) -> None:
    async with on_stage(tmp_path) as (demo, _, _console):
        demo.process = await asyncio.create_subprocess_exec(sys.executable, "-c", "")
        await demo.process.wait()
        with pytest.raises(FeedLost, match="ended early; its log is"):
            await demo.reach(0.5)
        store_bars(demo, demo.until_ms)
        await demo.reach(1.0)


def test_a_demo_takes_no_name_that_is_there(here: Path) -> None:
    files = ShowFiles.at(None, 1_748_538_720_000)
    assert files.database.name == "demo-20250529-171200.db"
    files.config.write_text("[market]\n", encoding="utf-8")
    with pytest.raises(DataInvalid, match="exists already"):
        ShowFiles.at(None, 1_748_538_720_000)
