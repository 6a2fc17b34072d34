"""``tracepaper replay``: a backtest through the daemon's own engine, into a run in the database."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tracepaper.daemon.commands.options import (
    CandlesArgument,
    ConfigOption,
    DepthOption,
    FrameDataOption,
    FromOption,
    FundingOption,
    JsonOption,
    SymbolOption,
    ToOption,
)


def replay(
    files: CandlesArgument = None,
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
    symbol: SymbolOption = None,
    category: Annotated[
        str | None, typer.Option(help="linear or spot, where the file's name does not say it.")
    ] = None,
    from_: FromOption = None,
    to: ToOption = None,
    resume: Annotated[
        str | None, typer.Option(metavar="RUN", help="Go on with an interrupted replay.")
    ] = None,
    funding: FundingOption = None,
    frame_data: FrameDataOption = None,
    depth: DepthOption = None,
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
        depth=tuple(depth or ()),
        mode=mode,
        database=db,
        log=log,
    )
    perform(request, as_json=json)
