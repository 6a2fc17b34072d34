"""The demo from start to end: on the bundled month, or on a user's own data."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp

from tracepaper.daemon.clock import SystemClock
from tracepaper.daemon.config.loading import Config, load
from tracepaper.daemon.config.values import NO_MODEL
from tracepaper.daemon.log import Logger
from tracepaper.daemon.session.daemon import Daemon
from tracepaper.daemon.session.parity import OFF
from tracepaper.daemon.session.shutdown import run_loop, signals_call
from tracepaper.daemon.terminal import console as log
from tracepaper.daemon.terminal.watcher import watched
from tracepaper.replay.backtest.build import fit_windows
from tracepaper.replay.demo.ending import sum_up
from tracepaper.replay.demo.incidents import INCIDENTS
from tracepaper.replay.demo.processes import (
    CHECK_EVERY_S,
    Demo,
    ServedExchange,
    embedded_exchange,
)
from tracepaper.replay.demo.race import (
    MarketPace,
    ShowFiles,
    create_files,
    planned_speed,
    require_new,
    stamp,
)
from tracepaper.replay.demo.screen import RaceScreen
from tracepaper.replay.samples import DEMO_CANDLES, DEMO_CONFIG, MONTH_CANDLES
from tracepaper.storage.checkpoints import is_checkpoint, locate
from tracepaper.strategies.builtin import TREND
from tracepaper.strategies.errors import ConfigInvalid, FeedLost, TracepaperError
from tracepaper.strategies.types.market import RunKind
from tracepaper.strategies.units import DAY_MS, INTERVALS, interval_start

SERVED_SPEED: Final = 20_000.0
"""The speed for which the exchange thins its frames."""
MODEL: Final = "flash-15m"
"""The checkpoint that the configuration names."""
WARM_UP_BARS: Final = 700
"""Bars of the bundled month before the first decided bar."""


@dataclass(frozen=True)
class Show:
    """The options of ``tracepaper demo`` on the bundled month."""

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
    clock = SystemClock()
    text = config_text(show.model)
    files = create_files(show.database, wall_ms=clock.wall_ms())
    try:
        files.config.write_text(text, encoding="utf-8")
        demo = asyncio.run(_play(show, files, clock))
    except BaseException:
        _clean(files)
        raise
    if not demo.race.decisions:
        _clean(files)
        raise FeedLost("The demo was stopped before its first decision; start it again.")
    sum_up(files.database, demo, as_json=show.as_json)
    if demo.failure is not None:
        raise demo.failure


def config_text(model: str | None) -> str:
    """Return the text of the demo's configuration, with *model* as its checkpoint.

    Raises ``ConfigInvalid`` if there is no such checkpoint.
    """
    text = DEMO_CONFIG.read_text(encoding="utf-8")
    if model is None:
        # A source tree without bundled models still has a demo; its prologue says so.
        model = MODEL if is_checkpoint(locate(MODEL)) else NO_MODEL
    if model != NO_MODEL and not is_checkpoint(locate(model)):
        raise ConfigInvalid(
            f"--model {model} is no checkpoint; `tracepaper models` lists the bundled ones."
        )
    if model == NO_MODEL:
        text = text.replace(', "sized_by_forecast"', "")  # a shadow account that needs a forecast
    is_folder = model != NO_MODEL and locate(model) == Path(model)
    folder = str(Path(model).resolve()) if is_folder else model
    return re.sub(r'(?m)^checkpoint = ".*"$', lambda _: f'checkpoint = "{folder}"', text)


def _clean(files: ShowFiles) -> None:
    """Remove the files of a demo without a record; name those that are kept."""
    if files.database.exists():
        kept = f"the record {files.database}, its configuration {files.config}, the daemon's log "
        sys.stderr.write(f"Kept: {kept}{files.log}.\n")
        return
    files.config.unlink(missing_ok=True)
    files.log.unlink(missing_ok=True)


async def _play(show: Show, files: ShowFiles, clock: SystemClock) -> Demo:
    """Run the demo to its end, or until a signal."""
    stop = asyncio.Event()
    candles = [str(path) for path in MONTH_CANDLES]
    with (
        signals_call(stop.set),
        embedded_exchange(candles, SERVED_SPEED, start=WARM_UP_BARS) as exchange,
    ):
        served = exchange.served
        interval_ms, until_ms = INTERVALS[served["interval"]], served["end_ms"]
        begin_ms = interval_start(served["start_ms"], interval_ms)
        if show.days is not None:
            until_ms = min(until_ms, begin_ms + round(show.days * DAY_MS))
        pace = MarketPace(planned_speed(until_ms - begin_ms, show.seconds), interval_ms)
        screen = RaceScreen()
        async with aiohttp.ClientSession() as http:
            demo = Demo(served, files, screen, pace, clock, http, until_ms, show.seconds)
            try:
                await demo.hold()
                await _race(demo, exchange, stop, show)
            except TracepaperError as error:
                if not demo.race.decisions:
                    raise
                demo.failure = error  # raised after the summary
            finally:
                screen.close()
                demo.race.close()
    return demo


async def _race(demo: Demo, exchange: ServedExchange, stop: asyncio.Event, show: Show) -> None:
    """Run the script while the race is shown and paced; then stop the daemon."""
    coroutines = (exchange.watch(), _script(demo, show), stop.wait(), demo.watch())
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if any(task.exception() is not None for task in done):
            # A killed process resets its connections shortly before its end is visible.
            await asyncio.sleep(CHECK_EVERY_S)
        exchange.require_alive()
        for task in done:
            task.result()  # raises the task's error
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await demo.stop_daemon()
        demo.poll()


def prologue(demo: Demo) -> Iterator[str]:
    """Yield the sentences that introduce the demo."""
    symbols = " and ".join(demo.served["symbols"])
    days = (demo.until_ms - demo.served["start_ms"]) / DAY_MS
    yield (
        f"Real candles of {symbols} of May 2025 are served over Bybit's protocol on this machine: "
        f"a week to warm up, then {days:.1f} days of trading on paper, four bars an hour."
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
    await demo.start_daemon()
    await demo.until(lambda: race.run is not None)
    assert race.run is not None
    assert demo.process is not None
    demo.say(
        f"The daemon is process {demo.process.pid}. From another terminal: "
        f"tracepaper status --db {demo.files.database}"
    )
    await demo.until(lambda: demo.page_url is not None)
    if (url := demo.page_url) is not None:
        demo.say(f"The page is {url}/")
        # The next process uses the same port, so that an open page continues.
        demo.port = urlsplit(url).port or 0
        if show.listening is not None:
            show.listening(url)
    for warning in race.run.warnings:
        demo.say(f"Warning: {warning}.")
    await demo.until(lambda: race.decisions > 0)
    await demo.go_on()
    for incident in INCIDENTS if show.has_incidents else ():
        await demo.reach(incident.at)
        await incident.happen(demo)
    await demo.reach(1.0)
    await demo.hold()


# ---------------------------------------------------------------- a demo on a user's own data


def perform_on_data(
    *,
    data: Sequence[str],
    columns: Sequence[str],
    file: Path | None,
    bars: int | None,
    speed: float,
    database: Path | None,
    as_json: bool,
    listening: Callable[[str], None] | None,
) -> None:
    """Run a demo on *data* with the configuration *file*, and print the summary.

    *listening* is called with the address of the daemon's page. A signal ends it cleanly.
    Raises ``DataInvalid`` if the database exists, and ``FeedLost``, after the summary, if the
    exchange ends early.
    """
    database = database or Path(f"demo-{stamp(SystemClock().wall_ms())}.db")
    require_new(database)
    with embedded_exchange(data or (str(DEMO_CANDLES),), speed, columns=columns) as exchange:
        served = exchange.served
        config, warnings = _config(file, served)
        log.configure(level=config.log.level, output=config.log.format)
        for sentence in warnings:
            Logger("demo").warning(sentence)
        with watched(limit=bars, until_ms=served["end_ms"], database=database) as watcher:
            daemon = Daemon(
                config,
                database,
                kind=RunKind.LIVE,
                opened=watcher.opened,
                watch=watcher.watch,
                listening=listening or (lambda _url: None),
            )
            failure = run_loop(_run(daemon, exchange))
    if not watcher.decisions:
        raise failure or FeedLost("The demo was stopped before its first decision; start it again.")
    sum_up(database, None, as_json=as_json)
    if failure is not None:
        raise failure


async def _run(daemon: Daemon, exchange: ServedExchange) -> FeedLost | None:
    """Run *daemon* while its exchange lives; return the error if the exchange ended first."""
    running = asyncio.create_task(daemon.run())
    try:
        while not running.done():
            exchange.require_alive()
            await asyncio.wait({running}, timeout=CHECK_EVERY_S)
    except FeedLost as failure:
        daemon.stop()
        await running
        return failure
    return running.result()


def _config(file: Path | None, served: dict[str, Any]) -> tuple[Config, tuple[str, ...]]:
    """Return the configuration for the embedded exchange and its symbols, and warnings.

    Trend windows that the file does not set are shortened to fit the candles; a warning says so.
    """
    config = load(
        file,
        {
            "market": {
                "category": served["categories"][0],
                "symbols": served["symbols"],
                "interval": served["interval"],
            },
            "exchange": {
                "rest_url": served["rest_url"],
                "stream_url": served["stream_url"],
                "time_scale": served["speed"],
                # This exchange serves fixed candles: one that is missing stays missing.
                "certain_s": 0.5,
            },
            "http": {"port": 0},
        },
        data={"parity": {"daily_at": OFF}},  # days pass in seconds; the end replays the whole run
    )
    return fit_windows(config, served["end_ms"] - served["start_ms"])
