"""A demo on a user's own candles or configuration: one daemon, shown as ``run`` shows it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tracepaper.daemon.clock import SystemClock
from tracepaper.daemon.config.loading import Config, load
from tracepaper.daemon.log import Logger
from tracepaper.daemon.session.daemon import Daemon
from tracepaper.daemon.session.parity import OFF
from tracepaper.daemon.session.shutdown import run_loop
from tracepaper.daemon.terminal import console as log
from tracepaper.daemon.terminal.watcher import watched
from tracepaper.replay.backtest.build import fit_windows
from tracepaper.replay.demo.ending import sum_up
from tracepaper.replay.demo.race import ShowFiles, named_by_time
from tracepaper.replay.exchange.server import EmbeddedExchange, ExchangeSettings
from tracepaper.strategies.errors import FeedLost
from tracepaper.strategies.types.market import RunKind


def perform_on_data(
    settings: ExchangeSettings,
    file: Path | None,
    *,
    bars: int | None,
    database: Path | None,
    as_json: bool,
    listening: Callable[[str], None] | None,
) -> None:
    """Trade what *settings* serve with the configuration *file*, and print the summary.

    It ends with the data, after *bars* decided bars or at a signal. *listening* is called with the
    address of the daemon's page. Raises ``DataInvalid`` if the database exists.
    """
    database = database or named_by_time(SystemClock().wall_ms())
    ShowFiles(database).require_new()

    async def play() -> int:
        async with EmbeddedExchange(settings) as exchange:
            served = exchange.announcement()
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
                await daemon.run()
                return watcher.decisions

    if not run_loop(play()):
        raise FeedLost("The demo was stopped before its first decision; start it again.")
    sum_up(database, None, as_json=as_json)


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
