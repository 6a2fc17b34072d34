"""The demo on the bundled month, from start to end."""

from __future__ import annotations

import asyncio
import logging
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from tracepaper.daemon.clock import SystemClock
from tracepaper.daemon.commands.options import print_json
from tracepaper.daemon.config.loading import restore
from tracepaper.daemon.config.values import NO_MODEL
from tracepaper.daemon.session.shutdown import signals_call
from tracepaper.daemon.terminal import console as log
from tracepaper.replay.checks.parity import check_whole
from tracepaper.replay.demo.incidents import INCIDENTS
from tracepaper.replay.demo.stage import FASTEST, SLOW, Demo, RaceScreen, ShowFiles
from tracepaper.replay.exchange.server import EmbeddedExchange, ExchangeSettings
from tracepaper.replay.report.judgement import judgement
from tracepaper.replay.report.record import read_record
from tracepaper.replay.report.terminal import decision_to_explain, program_name
from tracepaper.replay.report.trades import closed_trades
from tracepaper.replay.samples import DEMO_CONFIG, MONTH_CANDLES
from tracepaper.storage.chain.verify import ChainReport, verify_chain
from tracepaper.storage.checkpoints import is_checkpoint, locate
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid, FeedLost
from tracepaper.strategies.gates.declared import late
from tracepaper.strategies.types.market import ParityOutcome
from tracepaper.strategies.units import DAY_MS, INTERVALS, count_of, interval_start

SERVED_SPEED: Final = 20_000.0
"""The speed for which the exchange thins its frames."""
WARM_UP_BARS: Final = 700
"""Bars of the bundled month before the first decided bar."""
SHARE_PLAYED: Final = 0.9
"""Share of the planned seconds in which market time passes; in the rest the daemon starts."""
STOPPED: Final = "The demo was stopped before its first decision; start it again."


@dataclass(frozen=True)
class Show:
    """The options of ``tracepaper demo``."""

    days: float | None  # of market time; None is the whole month
    seconds: float  # planned duration of the race
    model: str  # a bundled name or a folder
    has_incidents: bool
    database: Path | None
    as_json: bool
    listening: Callable[[str], None] | None  # called with the address of the daemon's page


def perform(show: Show) -> None:
    """Run the demo and print its summary; a signal ends it cleanly.

    Raises ``DataInvalid`` or ``ConfigInvalid`` if it cannot start, and ``FeedLost`` if its daemon
    ends early; if anything was decided, the summary is printed first.
    """
    files = ShowFiles.at(show.database, SystemClock().wall_ms())
    text = config_text(show.model)
    try:
        files.config.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataInvalid(
            f"{files.config} cannot be written ({error.strerror}); go to a folder of yours, or "
            "give --db."
        ) from None
    demo, failure = asyncio.run(_play(show, files))
    if not demo.race.decisions:
        if not files.database.exists():
            files.config.unlink()
        raise failure or FeedLost(STOPPED)
    sum_up(demo, as_json=show.as_json)
    if failure is not None:
        raise failure


def config_text(model: str) -> str:
    """Return the text of the demo's configuration, with *model* as its checkpoint.

    Raises ``ConfigInvalid`` if there is no such checkpoint.
    """
    text = DEMO_CONFIG.read_text(encoding="utf-8")
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
    works = (_script(demo, show), stop.wait(), demo.watch())
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()  # raises the task's error
    except FeedLost as failure:
        return failure
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await demo.stop_daemon()
        demo.poll()
    return None


async def _script(demo: Demo, show: Show) -> None:
    """Start the daemon, trigger each incident at its share of the race, and wait for the end."""
    race, screen = demo.race, demo.screen
    served = demo.exchange.announcement()
    days = (demo.until_ms - served["start_ms"]) / DAY_MS
    screen.say(
        f"Real candles of {' and '.join(served['symbols'])} of May 2025 are served over Bybit's "
        f"protocol on this machine: a week to warm up, then {days:.1f} days of trading on paper, "
        "four bars an hour. The strategy follows the trend of closed hours over short windows, and "
        "the model's gates judge it."
    )
    demo.hold()
    await demo.start_daemon()
    await demo.until(lambda: race.sequence >= 0 and demo.page_url is not None)
    assert demo.process is not None
    url = str(demo.page_url)
    # The next process uses the same port, so that an open page continues.
    demo.port = urlsplit(url).port or 0
    screen.say(
        f"The daemon is process {demo.process.pid}. From another terminal: "
        f"tracepaper status --db {demo.files.database}"
    )
    screen.say(f"The page is {url}/")
    if show.listening is not None:
        show.listening(url)
    await demo.until(lambda: race.decisions > 0)
    demo.go_on()
    for at, happen in INCIDENTS if show.has_incidents else ():
        await demo.reach(at)
        await happen(demo)
    await demo.reach(1.0)
    demo.hold()


# ---------------------------------------------------------------- the summary


FIGURES: Final = """
    SELECT count(*), sum(refused_by = :late), max(open_time_ms) - min(open_time_ms),
        (SELECT equity FROM v_equity WHERE run_id = :run ORDER BY sequence DESC LIMIT 1)
    FROM v_decisions WHERE run_id = :run
"""


def _read(database: Path) -> tuple[dict[str, Any], ChainReport]:
    """Return the figures of the newest run of *database*, and the check of its chain."""
    with Reader.open(database) as reader:
        run_id = reader.find("last")
        row = reader.connection.execute(FIGURES, {"run": run_id, "late": late.name}).fetchone()
        decisions, late_count, span_ms, equity = row
        cash = float(restore(reader.run(run_id).config).account.cash)
        chain = verify_chain(reader.connection, run_id)
        record = read_record(reader, database, run_id)
    closed = closed_trades(record.account)
    figures = {
        "run_id": run_id,
        "decisions": decisions,
        "late": late_count or 0,  # decisions that the gate ``late`` refused
        "days": span_ms / DAY_MS,
        "trades": len(closed),
        "start": cash,
        "equity": equity,
        "return": equity / cash - 1.0,
        "judgement": judgement(record, closed),
        "explained_sequence": decision_to_explain(database, run_id),
        "database": str(database),
    }
    return figures, chain


def sum_up(demo: Demo, *, as_json: bool) -> None:
    """Print the summary of the run of *demo*."""
    database = demo.files.database
    (figures, chain), terminal = _read(database), log.Terminal(highlight=False)
    figures |= {"config": str(demo.files.config), "log": str(demo.files.log)}
    figures |= {"processes": demo.starts, "incidents": demo.outcomes}
    starts = count_of(demo.starts, "start")
    through = f" through {count_of(len(demo.outcomes), 'incident')} and {starts} of the daemon"
    if not as_json:
        too_late = f", {figures['late']:,} too late to trade" if figures["late"] else ""
        happened = (
            f"What happened: {figures['decisions']:,} decisions in {figures['days']:.1f} days"
            f"{through}{too_late}; {figures['start']:,.2f} became {figures['equity']:,.2f}."
        )
        for sentence in (happened, figures["judgement"]):
            terminal.print(sentence, soft_wrap=True, markup=False)
        sys.stderr.write("The run is replayed from its record, which takes a while.\n")
    parity = check_whole(database, figures["run_id"], "parity")
    if as_json:
        chained = {"passes": chain.passes, "steps": chain.steps}
        print_json(figures | {"chain": chained, "parity": parity})
        return
    passes = parity.outcome is ParityOutcome.IDENTICAL and chain.passes
    verdict = "holds" if chain.passes else f"is broken: {chain.problem}"
    sentence = (
        f"What it proved: replayed from its record, {parity.reason}; the chain of "
        f"{chain.steps:,} steps {verdict}."
    )
    style = "" if passes else "bold red"
    terminal.print(sentence, style=style, soft_wrap=True, markup=False)
    program, sequence = program_name(), figures["explained_sequence"]
    decision = " report last" if sequence is None else f" explain last:{sequence} --full"
    for verb, command in (("open", " ui --open"), ("type", decision)):
        line = f"What to {verb}: {program}{command} --db {database}"
        terminal.print(line, soft_wrap=True, markup=False)
