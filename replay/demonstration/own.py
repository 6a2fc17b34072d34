"""A demo of candles or a configuration of the user's own: exchange, daemon, and what happened."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from rich.rule import Rule
from rich.text import Text

from tracepaper.daemon.clock import SystemClock
from tracepaper.daemon.commands.options import print_json
from tracepaper.daemon.config.loading import Config, load
from tracepaper.daemon.session.daemon import Daemon
from tracepaper.daemon.session.shutdown import run_loop
from tracepaper.daemon.terminal import log
from tracepaper.daemon.terminal.console import Terminal
from tracepaper.daemon.terminal.live_view import RunWatcher, live_view
from tracepaper.replay.backtest.build import fit_windows
from tracepaper.replay.demonstration.exchange import (
    LOOKED_AT_EVERY_S,
    ServedExchange,
    exchange_beside,
)
from tracepaper.replay.explain.recomputed import recompute
from tracepaper.replay.explain.stored import read_stored
from tracepaper.replay.explain.terminal import show_stored
from tracepaper.replay.explain.terminal_full import show_attribution
from tracepaper.replay.report.summary import (
    Summary,
    decision_to_explain,
    program_name,
    show,
    summarise,
)
from tracepaper.replay.samples import DEMO_CANDLES
from tracepaper.storage.chain import ChainReport, verify_chain
from tracepaper.storage.reader import Reader
from tracepaper.strategies.errors import CheckpointMismatch, DataInvalid, FeedLost
from tracepaper.strategies.types import RunKind


@dataclass(frozen=True)
class Demonstration:
    """The options of one ``tracepaper demo``."""

    bars: int | None = None
    speed: float = 2_000.0
    data: tuple[str, ...] = ()
    config: Path | None = None
    database: Path | None = None
    as_json: bool = False


def perform(wanted: Demonstration) -> None:
    """Carry the demonstration out and print what happened; a signal ends it in good order.

    Raises ``FeedLost``, after the summary, where its exchange ends before its time.
    """
    clock = SystemClock()
    database = wanted.database or Path(f"demo-{_stamp(clock.wall_ms())}.db")
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


def _stamp(wall_ms: int) -> str:
    from tracepaper.replay.archive.times import iso

    return iso(wall_ms)[:19].replace(":", "").replace("-", "").replace("T", "-")


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
    show(console, summary)
    if sequence is not None:
        console.print(Rule("One decision, explained", align="left", style="dim"))
        console.print(show_stored(read_stored(database, run_id, sequence)))
        try:
            console.print(show_attribution(recompute(database, run_id, sequence)))
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
