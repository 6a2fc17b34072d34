"""The demo on the bundled month, from start to end."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from tracepaper.daemon.clock import SystemClock
from tracepaper.daemon.config.loading import load
from tracepaper.daemon.config.values import NO_MODEL
from tracepaper.daemon.session.shutdown import signals_call
from tracepaper.replay.demo.ending import sum_up
from tracepaper.replay.demo.incidents import INCIDENTS
from tracepaper.replay.demo.race import ShowFiles, named_by_time
from tracepaper.replay.demo.screen import RaceScreen
from tracepaper.replay.demo.stage import FASTEST, SLOW, Demo
from tracepaper.replay.exchange.server import EmbeddedExchange, ExchangeSettings
from tracepaper.replay.samples import DEMO_CONFIG, MONTH_CANDLES
from tracepaper.storage.checkpoints import is_checkpoint, locate
from tracepaper.strategies.builtin import TREND
from tracepaper.strategies.errors import ConfigInvalid, FeedLost
from tracepaper.strategies.units import DAY_MS, INTERVALS, interval_start

SERVED_SPEED: Final = 20_000.0
"""The speed for which the exchange thins its frames."""
MODEL: Final = "flash-15m"
"""The checkpoint that the configuration names."""
WARM_UP_BARS: Final = 700
"""Bars of the bundled month before the first decided bar."""
SHARE_PLAYED: Final = 0.9
"""Share of the planned seconds in which market time passes; in the rest the daemon starts."""


@dataclass(frozen=True)
class Show:
    """The options of ``tracepaper demo``."""

    days: float | None = None  # of market time; None is the whole month
    seconds: float = 90.0  # planned duration of the race
    model: str | None = None  # a bundled name or a folder; None is the configuration's
    has_incidents: bool = True
    database: Path | None = None
    as_json: bool = False
    listening: Callable[[str], None] | None = None  # called with the address of the daemon's page


def perform(show: Show) -> None:
    """Run the demo and print its summary; a signal ends it cleanly.

    Raises ``DataInvalid`` or ``ConfigInvalid`` if it cannot start, and ``FeedLost`` if its daemon
    ends early; if anything was decided, the summary is printed first.
    """
    files = ShowFiles(show.database or named_by_time(SystemClock().wall_ms()))
    files.create(config_text(show.model))
    demo, failure = asyncio.run(_play(show, files))
    if not demo.race.decisions:
        if not files.database.exists():
            files.config.unlink()
        raise failure or FeedLost("The demo was stopped before its first decision; start it again.")
    sum_up(files.database, demo, as_json=show.as_json)
    if failure is not None:
        raise failure


def config_text(model: str | None) -> str:
    """Return the text of the demo's configuration, with *model* as its checkpoint.

    Raises ``ConfigInvalid`` if there is no such checkpoint.
    """
    text = DEMO_CONFIG.read_text(encoding="utf-8")
    if model is None:
        # A source tree without bundled models still has a demo; its prologue says so.
        model = MODEL if is_checkpoint(locate(MODEL)) else NO_MODEL
    if model == NO_MODEL:
        text = text.replace(', "sized_by_forecast"', "")  # a shadow account that needs a forecast
    elif not is_checkpoint(locate(model)):
        raise ConfigInvalid(
            f"--model {model} is no checkpoint; `tracepaper models` lists the bundled ones."
        )
    elif locate(model) == Path(model):
        model = str(Path(model).resolve())
    return re.sub(r'(?m)^checkpoint = ".*"$', lambda _: f'checkpoint = "{model}"', text)


async def _play(show: Show, files: ShowFiles) -> tuple[Demo, FeedLost | None]:
    """Run the demo to its end or until a signal; return it, with the error that ended it early."""
    logging.getLogger(EmbeddedExchange.__module__).setLevel(logging.ERROR)  # the screen is ours
    settings = ExchangeSettings(
        data=tuple(map(str, MONTH_CANDLES)), speed=SERVED_SPEED, start=WARM_UP_BARS, hold=True
    )
    stop = asyncio.Event()
    screen = RaceScreen()
    with signals_call(stop.set):
        async with EmbeddedExchange(settings) as exchange:
            served = exchange.announcement()
            interval_ms = INTERVALS[served["interval"]]
            begin_ms, until_ms = interval_start(served["start_ms"], interval_ms), served["end_ms"]
            if show.days is not None:
                until_ms = min(until_ms, begin_ms + round(show.days * DAY_MS))
            speed = (until_ms - begin_ms) / 1_000 / (show.seconds * SHARE_PLAYED)
            speed = min(FASTEST, max(SLOW, speed))
            demo = Demo(exchange, files, screen, interval_ms, until_ms, speed, show.seconds)
            try:
                return demo, await _race(demo, stop, show)
            finally:
                screen.close()
                demo.race.close()


async def _race(demo: Demo, stop: asyncio.Event, show: Show) -> FeedLost | None:
    """Run the script while the race is shown and paced; then stop the daemon."""
    tasks = [asyncio.ensure_future(work) for work in (_script(demo, show), stop.wait())]
    watching = asyncio.ensure_future(demo.watch())
    try:
        done, _ = await asyncio.wait([*tasks, watching], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()  # raises the task's error
    except FeedLost as failure:
        return failure
    finally:
        for task in (*tasks, watching):
            task.cancel()
        await asyncio.gather(*tasks, watching, return_exceptions=True)
        await demo.stop_daemon()
        demo.poll()
    return None


def prologue(demo: Demo) -> Iterator[str]:
    """Yield the sentences that introduce the demo."""
    served = demo.exchange.announcement()
    days = (demo.until_ms - served["start_ms"]) / DAY_MS
    yield (
        f"Real candles of {' and '.join(served['symbols'])} of May 2025 are served over Bybit's "
        f"protocol on this machine: a week to warm up, then {days:.1f} days of trading on paper, "
        "four bars an hour."
    )
    config = load(demo.files.config)
    if config.strategy.name == TREND:
        windows = ", ".join(config.strategy.windows)
        yield (
            f"The strategy follows the trend of closed hours over {windows} (the shipped one looks "
            "at 8 to 64 days, for which a month is too short), and the model's gates judge it."
        )
    if not config.model.is_given:
        yield f"No checkpoint {MODEL} is bundled: no model judges."


async def _script(demo: Demo, show: Show) -> None:
    """Start the daemon, trigger each incident at its share of the race, and wait for the end."""
    race = demo.race
    for sentence in prologue(demo):
        demo.say(sentence)
    demo.hold()
    await demo.start_daemon()
    await demo.until(lambda: race.run is not None and demo.page_url is not None)
    assert race.run is not None
    assert demo.process is not None
    url = str(demo.page_url)
    # The next process uses the same port, so that an open page continues.
    demo.port = urlsplit(url).port or 0
    demo.say(
        f"The daemon is process {demo.process.pid}. From another terminal: "
        f"tracepaper status --db {demo.files.database}"
    )
    demo.say(f"The page is {url}/")
    if show.listening is not None:
        show.listening(url)
    for warning in race.run.warnings:
        demo.say(f"Warning: {warning}.")
    await demo.until(lambda: race.decisions > 0)
    demo.go_on()
    for at, happen in INCIDENTS if show.has_incidents else ():
        await demo.reach(at)
        await happen(demo)
    await demo.reach(1.0)
    demo.hold()
