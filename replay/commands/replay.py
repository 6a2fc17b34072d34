"""``tracepaper replay``: a backtest through the daemon's own engine, into a run in the database."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tracepaper.daemon.commands.options import ConfigOption, JsonOption


def replay(
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PATH]...", help="Candles, as by --data."),
    ] = None,
    *,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            metavar="PATH",
            help="Candles (PATH or SYMBOL=PATH), or FILE.db#RUN for a run's own events; repeat.",
        ),
    ] = None,
    config: ConfigOption = None,
    symbol: Annotated[
        str | None, typer.Option(help="The symbol of files whose name does not say it.")
    ] = None,
    category: Annotated[
        str | None, typer.Option(help="linear or spot, where the file's name does not say it.")
    ] = None,
    from_: Annotated[
        str | None, typer.Option("--from", metavar="T", help="First bar: ISO time or UTC ms.")
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", metavar="T", help="End, exclusive: ISO time or UTC ms.")
    ] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="RUN", help="Go on with an interrupted replay.")
    ] = None,
    funding: Annotated[
        list[Path] | None, typer.Option(help="Settled funding rates: a CSV file; repeat.")
    ] = None,
    frame_data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH",
            help="Candles of a higher time frame, from before the data; repeat.",
        ),
    ] = None,
    mode: Annotated[
        str, typer.Option(help="How the model goes over the bars: scan (one pass) or step.")
    ] = "scan",
    log: Annotated[
        str,
        typer.Option(help="full, or acted: keep what traded and ends of days (no verify then)."),
    ] = "full",
    db: Annotated[
        Path | None,
        typer.Option("--db", metavar="FILE", help="By default a new file, replay-TIME.db."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Backtest over candles, or feed a recorded run's events in again; every decision is stored.

    The command is known as `backtest` as well.
    """
    from tracepaper.replay.backtest.request import Request, perform
    from tracepaper.strategies.errors import ConfigInvalid

    given = (*(files or ()), *(data or ()))
    if not given:
        raise ConfigInvalid("Give candles: tracepaper replay PATH, or --data PATH for each file.")
    request = Request(
        data=given,
        config=config,
        symbol=symbol,
        category=category,
        from_text=from_,
        to_text=to,
        resume=resume,
        funding=tuple(funding or ()),
        frames=tuple(frame_data or ()),
        mode=mode,
        database=db,
        log=log,
    )
    perform(request, as_json=json)
