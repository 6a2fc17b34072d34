"""``tracepaper run``: the daemon; by default on the exchange's live public streams."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tracepaper.daemon.commands.options import ConfigOption


def run(
    config: ConfigOption = None,
    db: Annotated[
        Path | None,
        typer.Option("--db", metavar="FILE", help="The database; by default the configuration's."),
    ] = None,
    bars: Annotated[
        int | None, typer.Option(min=1, help="End after this many decided bars that were not late.")
    ] = None,
) -> None:
    """Trade the exchange's public streams on paper until Ctrl-C or SIGTERM."""
    from tracepaper.daemon.session.shutdown import exit_zero_on_signals, run_loop

    exit_zero_on_signals()
    from tracepaper.daemon.config.loading import load
    from tracepaper.daemon.session.daemon import Daemon
    from tracepaper.daemon.terminal import log
    from tracepaper.daemon.terminal.live_view import live_view
    from tracepaper.strategies.types import RunKind

    loaded = load(config)
    log.configure(level=loaded.log.level, output=loaded.log.format)
    database = db or loaded.storage.path
    with live_view(limit=bars) as watcher:
        daemon = Daemon(
            loaded, database, kind=RunKind.LIVE, opened=watcher.opened, watch=watcher.watch
        )
        run_loop(daemon.run())
    watcher.farewell(database)
