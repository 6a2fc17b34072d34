"""The show: what is started, what is shown while it races, and the order of its incidents."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp

from tracepaper.daemon.clock import SystemClock
from tracepaper.daemon.config.loading import load
from tracepaper.daemon.config.sections import NO_MODEL
from tracepaper.replay.demonstration.cast import Cast
from tracepaper.replay.demonstration.exchange import (
    LOOKED_AT_EVERY_S,
    ServedExchange,
    exchange_beside,
)
from tracepaper.replay.demonstration.files import ShowFiles, claimed
from tracepaper.replay.demonstration.incidents import INCIDENTS
from tracepaper.replay.demonstration.pace import Pacer
from tracepaper.replay.demonstration.process import PaceSaid
from tracepaper.replay.demonstration.race import Race
from tracepaper.replay.demonstration.stage import Stage, opened
from tracepaper.replay.samples import DEMO_CONFIG, MONTH_CANDLES
from tracepaper.storage.checkpoints import is_checkpoint, locate
from tracepaper.strategies.errors import ConfigInvalid, FeedLost, TracepaperError
from tracepaper.strategies.market import DAY_MS, INTERVALS, interval_start
from tracepaper.strategies.trend import TREND

SHOWN_EVERY_S: Final = 0.2
PACED_EVERY_S: Final = 0.1
SERVED_SPEED: Final = 20_000.0
"""For which the exchange thins its frames."""
MODEL: Final = "flash-15m"
"""The checkpoint that the configuration names."""
WARM_UP_BARS: Final = 700
"""Bars of the bundled month before the first that is decided."""


@dataclass(frozen=True)
class Show:
    """The options of one ``tracepaper demo``."""

    days: float | None = None  # of market time; None is all of them
    seconds: float = 90.0  # that the race should take
    model: str | None = None  # bundled, or a folder; None is the configuration's
    has_incidents: bool = True
    database: Path | None = None
    as_json: bool = False


def perform(show: Show) -> None:
    """Carry *show* out and print its summary; a signal ends it in good order.

    Raises ``DataInvalid`` or ``ConfigInvalid`` where it cannot begin, ``FeedLost`` where its
    daemon ends before its time: after the summary, where anything was decided.
    """
    clock = SystemClock()
    text = configured(show.model)
    files = claimed(show.database, wall_ms=clock.wall_ms())
    stage = opened()
    try:
        files.config.write_text(text, encoding="utf-8")
        cast = asyncio.run(_played(show, files, stage, clock))
    except BaseException:
        stage.close()
        _clean(files)
        raise
    stage.close()
    if not cast.race.decisions:
        _clean(files)
        raise FeedLost("The demo was stopped before its first decision; start it again.")
    files.drop_changed()
    from tracepaper.replay.demonstration.ending import Played, sum_up

    played = Played(cast.race, tuple(cast.outcomes), cast.pacer.slowest_s)
    sum_up(files, played, as_json=show.as_json)
    if cast.failure is not None:
        raise cast.failure


def configured(model: str | None) -> str:
    """Return the text of the show's configuration, with *model* in place of its own.

    Raises ``ConfigInvalid`` where there is no such checkpoint.
    """
    text = DEMO_CONFIG.read_text(encoding="utf-8")
    if model is None:
        # A source tree without its bundled models still has a demo, which says what it lacks.
        model = MODEL if is_checkpoint(locate(MODEL)) else NO_MODEL
    if model != NO_MODEL and not is_checkpoint(locate(model)):
        raise ConfigInvalid(
            f"--model {model} is no checkpoint; `tracepaper models` lists the bundled ones."
        )
    is_folder = model != NO_MODEL and locate(model) == Path(model)
    folder = str(Path(model).resolve()) if is_folder else model
    return re.sub(r'(?m)^checkpoint = ".*"$', lambda _: f'checkpoint = "{folder}"', text)


def _clean(files: ShowFiles) -> None:
    """Remove what is of no use to anybody, and say what is kept."""
    files.drop_changed()
    if files.database.exists():
        kept = f"Kept: the record {files.database}, its configuration {files.config}, "
        sys.stderr.write(f"{kept}the daemon's log {files.log}.\n")
        return
    files.config.unlink(missing_ok=True)
    files.log.unlink(missing_ok=True)


async def _played(show: Show, files: ShowFiles, stage: Stage, clock: SystemClock) -> Cast:
    """Play the show to its end, or until the viewer has seen enough; return what was on stage."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    candles = [str(path) for path in MONTH_CANDLES]
    with exchange_beside(candles, SERVED_SPEED, start=WARM_UP_BARS) as beside:
        served = beside.served
        interval_ms, until_ms = INTERVALS[served["interval"]], served["end_ms"]
        if show.days is not None:
            begin_ms = interval_start(served["start_ms"], interval_ms)
            until_ms = min(until_ms, begin_ms + round(show.days * DAY_MS))
        async with aiohttp.ClientSession() as http:
            pacer = Pacer(until_ms, show.seconds, interval_ms)
            cast = Cast(
                served, files, stage, Race(), pacer, clock, http, _pointed(served), until_ms
            )
            await cast.control("speed", PaceSaid(cast.speed))
            try:
                await _raced(cast, beside, stop, has_incidents=show.has_incidents)
            except TracepaperError as error:
                if not cast.race.decisions:
                    raise
                cast.failure = error  # what was played is summed up all the same
    return cast


def _pointed(served: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the settings that point the daemon at the exchange and at what it serves."""
    return {
        "market": {"symbols": served["symbols"], "interval": served["interval"]},
        "exchange": {"rest_url": served["rest_url"], "stream_url": served["stream_url"]},
        "http": {"port": 0},
    }


async def _raced(
    cast: Cast, beside: ServedExchange, stop: asyncio.Event, *, has_incidents: bool
) -> None:
    """Let the script run while it is shown and paced; end the daemon in good order."""
    script = _script(cast, has_incidents=has_incidents)
    works = (_watched(beside), script, stop.wait(), _shown(cast), paced(cast))
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        beside.require_alive()
        for task in done:
            task.result()  # what went wrong is raised here
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await cast.stop_daemon()
        if cast.reading is not None:
            await cast.reading
        _draw(cast)


def prologue(cast: Cast) -> Iterator[str]:
    """Yield what the viewer is told before it begins."""
    symbols = " and ".join(cast.served["symbols"])
    days = (cast.until_ms - cast.served["start_ms"]) / DAY_MS
    yield (
        f"Real candles of {symbols} of May 2025 are served over Bybit's protocol on this machine: "
        f"a week to warm up, then {days:.1f} days of trading on paper, four bars an hour."
    )
    config = load(cast.files.config)
    if config.strategy.name == TREND:
        windows = ", ".join(config.strategy.windows)
        yield (
            f"The strategy follows the trend of closed hours over {windows} (the shipped one looks "
            "at 8 to 64 days, for which a month is too short); the model's volatility sizes it and "
            "its gates judge it."
        )
    if not config.model.is_given:
        yield (
            f"No checkpoint {MODEL} is bundled: sizes follow the volatility of closed hours, and "
            "no model judges."
        )


async def _script(cast: Cast, *, has_incidents: bool) -> None:
    """Start the daemon, let each incident happen at its place, and wait for the end."""
    race = cast.race
    for sentence in prologue(cast):
        cast.say(sentence)
    await cast.start_daemon()
    await cast.until(lambda: race.begun is not None)
    assert race.begun is not None
    cast.say(
        f"The daemon is process {race.begun.pid}. From another terminal: "
        f"tracepaper status --db {cast.files.database}"
    )
    for warning in race.begun.warnings:
        cast.say(f"Warning: {warning}.")
    await cast.until(lambda: race.decisions > 0)
    await cast.follow()
    for incident in INCIDENTS if has_incidents else ():
        if not await cast.reach(incident.at):
            return
        cast.pacer.waits_ms = cast.place(incident.until)
        await incident.happen(cast)
        cast.pacer.waits_ms = None
    await cast.reach(1.0)
    cast.now = "the last bar is stored; the daemon ends"
    assert cast.reading is not None
    await asyncio.wait({cast.reading})


async def _watched(beside: ServedExchange) -> None:
    """Raise ``FeedLost`` once the exchange's process has ended."""
    while True:
        beside.require_alive()
        await asyncio.sleep(LOOKED_AT_EVERY_S)


async def _shown(cast: Cast) -> None:
    while True:
        _draw(cast)
        await asyncio.sleep(SHOWN_EVERY_S)


def _draw(cast: Cast) -> None:
    cast.stage.show(cast.race, speed=cast.speed, until_ms=cast.until_ms, now=cast.now)


async def paced(cast: Cast) -> None:
    """Choose the pace of market time anew, from how late bars are stored."""
    while True:
        await asyncio.sleep(PACED_EVERY_S)
        if cast.race.decisions and not cast.is_held:
            now_ms, now_s = cast.market_ms, cast.clock.network_s()
            speed = cast.pacer.choose(cast.speed, now_ms=now_ms, now_s=now_s)
            if speed != cast.speed:
                await cast.run_at(speed)
