"""``tracepaper demo``: the whole product on one machine, with no network and no key."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tracepaper.daemon.commands.options import ConfigOption, JsonOption


def demo(
    *,
    bars: Annotated[
        int | None,
        typer.Option(min=1, help="End after this many decided bars; by default at Ctrl-C."),
    ] = None,
    speed: Annotated[
        float, typer.Option(min=1, max=20_000, help="Market seconds per second.")
    ] = 2_000.0,
    data: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Candles to serve instead of the bundled ones."),
    ] = None,
    config: ConfigOption = None,
    db: Annotated[
        Path | None, typer.Option("--db", metavar="FILE", help="By default a new file.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Serve real candles over the Bybit protocol on loopback, trade them on paper, sum up."""
    from tracepaper.daemon.session.shutdown import exit_zero_on_signals

    exit_zero_on_signals()
    from tracepaper.replay.demonstration import Demonstration, perform

    perform(
        Demonstration(bars=bars, speed=speed, data=data, config=config, database=db, as_json=json)
    )
