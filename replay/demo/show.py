"""The demo from start to summary."""

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
import structlog
from rich.rule import Rule
from rich.text import Text

from tracepaper.daemon.clock import SystemClock
from tracepaper.daemon.commands.options import print_json
from tracepaper.daemon.config.loading import Config, load
from tracepaper.daemon.config.values import NO_MODEL
from tracepaper.daemon.session.daemon import Daemon
from tracepaper.daemon.session.shutdown import run_loop
from tracepaper.daemon.terminal import console as log
from tracepaper.daemon.terminal.console import Terminal
from tracepaper.daemon.terminal.live_view import RunWatcher, live_view
from tracepaper.replay.backtest.build import fit_windows
from tracepaper.replay.demo.incidents import INCIDENTS
from tracepaper.replay.demo.playback import Pacer, Race, ShowFiles, claimed, stamp
from tracepaper.replay.demo.processes import (
    LOOKED_AT_EVERY_S,
    Cast,
    PaceSaid,
    ServedExchange,
    exchange_beside,
)
from tracepaper.replay.demo.screen import Stage, opened
from tracepaper.replay.demo.summary import Played, sum_up
from tracepaper.replay.document.terminal import show
from tracepaper.replay.explain.decision import read_stored
from tracepaper.replay.explain.recompute import recompute
from tracepaper.replay.explain.tables import attribution_parts, stored_parts
from tracepaper.replay.report.terminal import (
    Summary,
    decision_to_explain,
    program_name,
    show_summary,
    summarise,
)
from tracepaper.replay.samples import DEMO_CANDLES, DEMO_CONFIG, MONTH_CANDLES
from tracepaper.storage.chain.walk import ChainReport, verify_chain
from tracepaper.storage.checkpoints import is_checkpoint, locate
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.builtin import TREND
from tracepaper.strategies.errors import (
    CheckpointMismatch,
    ConfigInvalid,
    DataInvalid,
    FeedLost,
    TracepaperError,
)
from tracepaper.strategies.types.market import RunKind
from tracepaper.strategies.units import DAY_MS, INTERVALS, interval_start

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
            settings = {
                "market": {"symbols": served["symbols"], "interval": served["interval"]},
                "exchange": {name: served[name] for name in ("rest_url", "stream_url")},
                "http": {"port": 0},
            }
            cast = Cast(served, files, stage, Race(), pacer, clock, http, settings, until_ms)
            await cast.control("speed", PaceSaid(cast.speed))
            try:
                await _raced(cast, beside, stop, has_incidents=show.has_incidents)
            except TracepaperError as error:
                if not cast.race.decisions:
                    raise
                cast.failure = error  # what was played is summed up all the same
    return cast


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


@dataclass(frozen=True)
class Demonstration:
    """The options of one ``tracepaper demo``."""

    bars: int | None = None
    speed: float = 2_000.0
    data: tuple[str, ...] = ()
    config: Path | None = None
    database: Path | None = None
    as_json: bool = False


def perform_own(wanted: Demonstration) -> None:
    """Carry the demonstration out and print what happened; a signal ends it in good order.

    Raises ``FeedLost``, after the summary, where its exchange ends before its time.
    """
    clock = SystemClock()
    database = wanted.database or Path(f"demo-{stamp(clock.wall_ms())}.db")
    with exchange_beside(wanted.data or (str(DEMO_CANDLES),), wanted.speed) as beside:
        served = beside.served
        config, said = _configured(wanted, served)
        log.configure(level=config.log.level, output=config.log.format)
        for sentence in said:
            structlog.get_logger("demo").warning(sentence)
        with live_view(limit=wanted.bars, until_ms=served["end_ms"]) as watcher:
            daemon = Daemon(
                config, database, kind=RunKind.DEMO, opened=watcher.opened, watch=watcher.watch
            )
            failure = run_loop(_run(daemon, beside))
    if watcher.run is None:
        raise failure or FeedLost("The demo was stopped before its run was open; start it again.")
    _sum_up(wanted, watcher, database)
    if failure is not None:
        raise failure


async def _run(daemon: Daemon, beside: ServedExchange) -> FeedLost | None:
    """Run *daemon*, as long as its exchange lives; return what is to be said where it did not."""
    running = asyncio.create_task(daemon.run())
    try:
        while not running.done():
            beside.require_alive()
            await asyncio.wait({running}, timeout=LOOKED_AT_EVERY_S)
    except FeedLost as failure:
        daemon.stop()
        await running
        return failure
    return running.result()


def _configured(wanted: Demonstration, served: dict[str, Any]) -> tuple[Config, tuple[str, ...]]:
    """Return the configuration, pointed at the exchange and at what it serves.

    A trend whose windows nobody chose is taken over windows that fit what is still to come; the
    second value says so.
    """
    config = load(
        wanted.config,
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
                # This exchange answers from the same memory every time: what it lacks is lacking.
                "certain_s": 0.5,
            },
            "http": {"port": 0},
        },
    )
    return fit_windows(config, served["end_ms"] - served["start_ms"])


def _sum_up(wanted: Demonstration, watcher: RunWatcher, database: Path) -> None:
    """Say what happened: accounts, fills, refusals, one decision, the chain, what to type next."""
    assert watcher.run is not None
    run_id = watcher.run.run_id
    summary = summarise(database, run_id)
    with Reader.open(database) as reader:
        chain = verify_chain(reader.connection, run_id)
    sequence = decision_to_explain(database, run_id)
    if wanted.as_json:
        print_json(_document(summary, database, chain, sequence))
        return
    console = Terminal()
    if watcher.reached_end:
        console.print("The candles came to their end.")
    show_summary(console, summary)
    if sequence is not None:
        console.print(Rule("One decision, explained", align="left", style="dim"))
        show(console, stored_parts(read_stored(database, run_id, sequence)))
        try:
            show(console, attribution_parts(recompute(database, run_id, sequence)))
        except (DataInvalid, CheckpointMismatch) as error:
            console.print(Text(str(error), "dim"))
    console.print(Rule("Trace it", align="left", style="dim"))
    verdict = "holds" if chain.holds else f"is broken: {chain.problem}"
    console.print(
        f"The chain of {chain.steps:,} steps {verdict}. The database is {database}.", markup=False
    )
    console.print("Next:")
    program = program_name()
    console.print(f"  {program} verify last --db {database}", soft_wrap=True, markup=False)
    decision = "last:SEQUENCE" if sequence is None else f"last:{sequence}"
    console.print(
        f"  {program} explain {decision} --full --db {database}", soft_wrap=True, markup=False
    )
    question = "SELECT refused_by, count(*) AS bars FROM v_decisions GROUP BY 1"
    console.print(
        f'  {program} audit sql "{question}" --db {database}', soft_wrap=True, markup=False
    )


def _document(
    summary: Summary, database: Path, chain: ChainReport, sequence: int | None
) -> dict[str, Any]:
    return {
        "run_id": summary.run["run_id"],
        "database": str(database),
        "decisions": summary.decisions,
        "allowed": summary.allowed,
        "fills": summary.fill_count,
        "accounts": summary.accounts,
        "refusals": dict(summary.refusals),
        "unfilled": dict(summary.unfilled),
        "rejected": dict(summary.rejected),
        "explained_sequence": sequence,
        "chain": {"holds": chain.holds, "steps": chain.steps},
    }
