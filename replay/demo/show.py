"""The demo from start to end, and its incidents: announced, carried out, accounted for."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sqlite3
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
import structlog

from tracepaper.daemon.clock import SystemClock
from tracepaper.daemon.config.loading import Config, load
from tracepaper.daemon.config.values import NO_MODEL
from tracepaper.daemon.http.client import give
from tracepaper.daemon.session.daemon import Daemon
from tracepaper.daemon.session.parity import OFF
from tracepaper.daemon.session.shutdown import exit_zero_on_signals, run_loop
from tracepaper.daemon.terminal import console as log
from tracepaper.daemon.terminal.live_view import live_view
from tracepaper.replay.backtest.build import fit_windows
from tracepaper.replay.demo.playback import (
    OWN,
    GapMessage,
    Pacer,
    Race,
    ShowFiles,
    claimed,
    stamp,
)
from tracepaper.replay.demo.processes import (
    LOOKED_AT_EVERY_S,
    Cast,
    PaceSaid,
    ServedExchange,
    exchange_beside,
)
from tracepaper.replay.demo.screen import Stage, opened
from tracepaper.replay.demo.summary import Played, sum_up, sum_up_own
from tracepaper.replay.samples import DEMO_CANDLES, DEMO_CONFIG, MONTH_CANDLES
from tracepaper.storage.chain.walk import verify_chain
from tracepaper.storage.checkpoints import is_checkpoint, locate
from tracepaper.storage.database.chunks import run_span
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.run_views import RunViews
from tracepaper.storage.maintenance import backup
from tracepaper.strategies.builtin import TREND
from tracepaper.strategies.errors import ConfigInvalid, FeedLost, TracepaperError
from tracepaper.strategies.gates.declared import operator
from tracepaper.strategies.types.market import CommandKind, RunKind
from tracepaper.strategies.units import DAY_MS, INTERVALS, interval_start

SHOWN_EVERY_S: Final = 0.2
PACED_EVERY_S: Final = 0.1
SERVED_SPEED: Final = 20_000.0
"""For which the exchange thins its frames."""
MODEL: Final = "flash-15m"
"""The checkpoint that the configuration names."""
WARM_UP_BARS: Final = 700
"""Bars of the bundled month before the first that is decided."""
ABOUT: Final = "▶"
DONE: Final = "✓"
WRONG: Final = "✗"
REPAIRED_WITHIN_S: Final = 60.0
CUT_AGAIN_BARS: Final = 2
"""A daemon that stores so many bars after a cut, and no gap, was back before it missed one."""
HALTED_SHARE: Final = 0.05
"""Of the race: as long as the operator's HALT lasts."""
BACK: Final = 100
"""Bars before the newest: the one that is changed."""


@dataclass(frozen=True)
class Show:
    """The options of one ``tracepaper demo``."""

    days: float | None = None  # of market time; None is all of them
    seconds: float = 90.0  # that the race should take
    model: str | None = None  # bundled, or a folder; None is the configuration's
    has_incidents: bool = True
    database: Path | None = None
    as_json: bool = False
    listening: Callable[[str], None] | None = None  # told the address of the daemon's page


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
    exit_zero_on_signals()  # the loop took them; from here on it only sums up
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
    if model == NO_MODEL:
        text = text.replace(', "sized_by_forecast"', "")  # a shadow account that needs a forecast
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
                await _raced(cast, beside, stop, show)
            except TracepaperError as error:
                if not cast.race.decisions:
                    raise
                cast.failure = error  # what was played is summed up all the same
    return cast


async def _raced(cast: Cast, beside: ServedExchange, stop: asyncio.Event, show: Show) -> None:
    """Let the script run while it is shown and paced; end the daemon in good order."""
    script = _script(cast, show)
    works = (_watched(beside), script, stop.wait(), _shown(cast), paced(cast))
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if any(task.exception() is not None for task in done):
            # A killed process resets its connections a moment before it is seen to have ended.
            await asyncio.sleep(LOOKED_AT_EVERY_S)
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
            "at 8 to 64 days, for which a month is too short), and the model's gates judge it."
        )
    if not config.model.is_given:
        yield f"No checkpoint {MODEL} is bundled: no model judges."


async def _script(cast: Cast, show: Show) -> None:
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
    await cast.until(lambda: cast.page_url is not None)
    if (url := cast.page_url) is not None:
        cast.say(f"The page is {url}/")
        # A daemon that is killed comes back at this port, so that an open page goes on.
        cast.settings["http"]["port"] = urlsplit(url).port
        if show.listening is not None:
            show.listening(url)
    for warning in race.begun.warnings:
        cast.say(f"Warning: {warning}.")
    await cast.until(lambda: race.decisions > 0)
    await cast.follow()
    for incident in INCIDENTS if show.has_incidents else ():
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


# ---------------------------------------------------------------- incidents


@dataclass(frozen=True)
class Incident:
    """One incident, and the shares of the race between which it happens.

    Market time waits at *until* where it takes longer.
    """

    at: float
    until: float
    happen: Callable[[Cast], Awaitable[None]]


def _concluded(cast: Cast, sentence: str, *, is_well: bool) -> None:
    cast.outcomes.append(sentence)
    cast.say(sentence, mark=DONE if is_well else WRONG)


async def cut_the_stream(cast: Cast) -> None:
    """Cut every connection, refuse the next one, and wait until nothing is missing."""
    race = cast.race
    cast.say(
        "Incident 1 of 4: the stream is cut without a goodbye. Watch the date at the top: bars "
        "stop, and then come at once.",
        mark=ABOUT,
    )
    await cast.look()
    known = len(race.gaps)
    interval_ms = INTERVALS[cast.served["interval"]]
    symbols = len(cast.served["symbols"])

    def repaired() -> list[GapMessage]:
        return [gap for gap in race.gaps[known:] if gap.repaired_by]

    def is_repaired() -> bool:
        return len({gap.instrument for gap in repaired()}) == symbols

    cast.pacer.expects_silence = True
    refusals = 0
    while not is_repaired():
        refusals += 1
        await _cut(cast, refusals, is_repaired)
    cast.pacer.expects_silence = False
    await cast.look()
    bars = sum((gap.until_ms - gap.from_ms) // interval_ms for gap in repaired())
    lost = [gap for gap in race.gaps[known:] if not gap.repaired_by]
    _concluded(
        cast,
        f"The daemon connected again and read the {bars} bars that it had missed by REST; "
        + ("none is missing." if not lost else f"{len(lost)} holes stayed."),
        is_well=not lost,
    )


async def _cut(cast: Cast, refusals: int, is_repaired: Callable[[], bool]) -> None:
    """Cut and refuse, until *is_repaired*, or the daemon is seen to have missed nothing.

    Where market time is slow it may be back before a bar closes. Market time goes on until then.
    """
    interval_ms = INTERVALS[cast.served["interval"]]
    back_ms = max(cast.race.now_ms, cast.market_ms) + CUT_AGAIN_BARS * interval_ms
    if cast.pacer.waits_ms is not None:
        cast.pacer.waits_ms = max(cast.pacer.waits_ms, back_ms + interval_ms)
    await cast.control("fault", {"kind": "refuse", "count": refusals})
    await cast.until(
        lambda: is_repaired() or cast.race.now_ms >= back_ms, within_s=REPAIRED_WITHIN_S
    )


async def halt_and_resume(cast: Cast) -> None:
    """Let the operator say HALT, wait, and say RESUME."""
    race = cast.race
    cast.say(
        "Incident 2 of 4: the operator says HALT. Watch the newest fills: bars go on being "
        "decided, and no order follows.",
        mark=ABOUT,
    )
    await cast.look()
    before, fills = race.refused[operator.name], race.fill_counts[OWN]
    halted = await _command(cast, CommandKind.HALT)
    halted_ms = race.now_ms
    for_ms = min(DAY_MS, round(HALTED_SHARE * (cast.until_ms - race.start_ms)))
    await cast.until(lambda: race.now_ms >= halted_ms + for_ms)
    resumed = await _command(cast, CommandKind.RESUME)
    await cast.until(lambda: any(one.sequence == resumed for one in race.commands))
    refused, filled = race.refused[operator.name] - before, race.fill_counts[OWN] - fills
    _concluded(
        cast,
        f"RESUME: {refused} decisions between step {halted} and step {resumed} were refused by "
        f"`operator`, and both words are in the record.",
        is_well=refused > 0 and filled <= len(cast.served["symbols"]),
    )


async def _command(cast: Cast, kind: CommandKind) -> int:
    """Give the daemon a command as ``tracepaper command`` does; return the step it caused."""
    answer = await asyncio.to_thread(give, cast.files.database, kind, "the demo's operator")
    return int(str(answer["sequence"]))


async def kill_and_go_on(cast: Cast) -> None:
    """Kill the daemon's process, and start another that goes on with the same run."""
    race, first = cast.race, cast.race.begun
    assert first is not None
    assert cast.process is not None
    assert cast.reading is not None
    cast.say(
        f"Incident 3 of 4: process {first.pid} is killed with -9, without a goodbye. Watch the "
        "account: it stands still, and another process goes on with it.",
        mark=ABOUT,
    )
    await cast.look()
    await cast.hold()
    os.kill(first.pid, signal.SIGKILL)
    await cast.reading
    told, equity = race.sequence, race.curves[OWN][-1]
    run_id, stored, kept = await asyncio.to_thread(_as_stored, cast.files, told)
    cast.say(
        f"Process {first.pid} is dead, with {stored:,} steps on the disk. The market waits while "
        "the next one starts: at this speed it would miss a day."
    )
    decisions = race.decisions
    await cast.start_daemon()
    await cast.until(lambda: race.starts > 1 and race.decisions > decisions)
    await cast.follow()
    second = race.begun
    assert second is not None
    await cast.look()
    is_whole = second.run_id == run_id and stored > told and abs(kept - equity) < 0.01
    _concluded(
        cast,
        f"Process {second.pid} goes on with the same run {run_id}: every step that was "
        f"acknowledged is there, and the account stood at {kept:,.2f} as before."
        if is_whole
        else f"Process {second.pid} did not go on where process {first.pid} was killed.",
        is_well=is_whole,
    )


def _as_stored(files: ShowFiles, sequence: int) -> tuple[str, int, float]:
    """Return the run's id, its number of steps, and its equity at *sequence*, as on the disk.

    A step may lie there that was not told any more.
    """
    with Reader.open(files.database) as reader:
        run_id = reader.find("last")
        (row,) = RunViews(reader.connection, run_id).rows("v_equity", sequence=sequence)
        return run_id, reader.stored_run(run_id).step_count, float(row["equity"])


async def change_a_tick(cast: Cast) -> None:
    """Change one stored price by a tick in a copy, and let the check name it."""
    cast.say(
        "Incident 4 of 4: in a copy of the record somebody changes one stored price by one tick. "
        "Watch whether the check finds it.",
        mark=ABOUT,
    )
    await cast.look()
    steps, sentence, is_named = await asyncio.to_thread(_changed_and_checked, cast.files)
    _concluded(
        cast,
        f"The record of {steps:,} steps holds; of the copy the check says: {sentence}",
        is_well=is_named,
    )


def _changed_and_checked(files: ShowFiles) -> tuple[int, str, bool]:
    """Return how many steps were checked, what is said of the copy, and whether that is right.

    It is where ours holds and the copy's changed step is the one that is named.
    """
    backup(files.database, files.changed)
    with Reader.open(files.changed) as reader:
        run_id = reader.find("last")
        ours = verify_chain(reader.connection, run_id)
        first, last = run_span(reader.stored_run(run_id).run_key)
    with closing(sqlite3.connect(files.changed)) as copy, copy:
        decided = (
            "FROM steps WHERE step BETWEEN ? AND ? AND outcome IS NOT NULL AND close IS NOT NULL"
        )
        (count,) = copy.execute(f"SELECT count(*) {decided}", (first, last)).fetchone()
        (step,) = copy.execute(
            f"SELECT step {decided} ORDER BY step DESC LIMIT 1 OFFSET ?",
            (first, last, min(BACK, count // 2)),
        ).fetchone()
        copy.execute("UPDATE steps SET close = close + 1 WHERE step = ?", (step,))
    with Reader.open(files.changed) as reader:
        problem = verify_chain(reader.connection, run_id).problem
    files.drop_changed()
    if problem is None:
        return ours.steps, "nothing was changed.", False
    return ours.steps, problem.sentence, ours.holds and problem.sequence == step - first


INCIDENTS: Final = (
    Incident(0.15, 0.35, cut_the_stream),
    Incident(0.35, 0.6, halt_and_resume),
    Incident(0.6, 0.85, kill_and_go_on),
    Incident(0.85, 0.95, change_a_tick),
)
"""In the order in which they happen; none reaches into the next, nor to the end."""


# ---------------------------------------------------------------- a demo of one's own data


@dataclass(frozen=True)
class Demonstration:
    """The options of one ``tracepaper demo``."""

    bars: int | None = None
    speed: float = 2_000.0
    data: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    config: Path | None = None
    database: Path | None = None
    as_json: bool = False
    listening: Callable[[str], None] | None = None  # told the address of the daemon's page


def perform_own(wanted: Demonstration) -> None:
    """Carry the demonstration out and print what happened; a signal ends it in good order.

    Raises ``FeedLost``, after the summary, where its exchange ends before its time.
    """
    clock = SystemClock()
    database = wanted.database or Path(f"demo-{stamp(clock.wall_ms())}.db")
    data = wanted.data or (str(DEMO_CANDLES),)
    with exchange_beside(data, wanted.speed, columns=wanted.columns) as beside:
        served = beside.served
        config, said = _configured(wanted, served)
        log.configure(level=config.log.level, output=config.log.format)
        for sentence in said:
            structlog.get_logger("demo").warning(sentence)
        with live_view(limit=wanted.bars, until_ms=served["end_ms"], database=database) as watcher:
            daemon = Daemon(
                config,
                database,
                kind=RunKind.DEMO,
                opened=watcher.opened,
                watch=watcher.watch,
                listening=wanted.listening or (lambda _url: None),
            )
            failure = run_loop(_run(daemon, beside))
    exit_zero_on_signals()
    if watcher.run is None:
        raise failure or FeedLost("The demo was stopped before its run was open; start it again.")
    sum_up_own(watcher, database, as_json=wanted.as_json)
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
        data={"parity": {"daily_at": OFF}},  # days pass in seconds: all is replayed at the end
    )
    return fit_windows(config, served["end_ms"] - served["start_ms"])
