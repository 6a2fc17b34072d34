"""``tracepaper demo``: the whole product on one machine, with no network and no key."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tracepaper.daemon.commands.options import ConfigOption, JsonOption


def demo(
    *,
    days: Annotated[
        float | None,
        typer.Option(min=0.5, help="Market days of the bundled month to trade; by default all."),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(min=1, max=3_600, help="How long they should take; 90 by default."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="A bundled checkpoint, or the folder of one."),
    ] = None,
    incidents: Annotated[
        bool | None,
        typer.Option(
            "--incidents/--no-incidents", help="What happens to the daemon while it trades."
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="Serve these candles and nothing else; repeat."),
    ] = None,
    config: ConfigOption = None,
    bars: Annotated[
        int | None,
        typer.Option(min=1, help="With --data or -c: end after this many decided bars."),
    ] = None,
    speed: Annotated[
        float | None,
        typer.Option(
            min=1,
            max=20_000,
            help="With --data or -c: market seconds per second; 2,000 by default.",
        ),
    ] = None,
    db: Annotated[
        Path | None, typer.Option("--db", metavar="FILE", help="By default a new file.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Race a month of real candles over the Bybit protocol on loopback, with incidents, and sum up.

    With --data or -c your candles or your configuration are served and traded instead, without
    incidents, until the candles end, --bars are decided, or Ctrl-C.
    """
    from tracepaper.daemon.session.shutdown import exit_zero_on_signals
    from tracepaper.strategies.errors import ConfigInvalid

    exit_zero_on_signals()
    if data or config:
        if {days, seconds, model, incidents} != {None}:
            raise ConfigInvalid(
                "--days, --seconds, --model and --incidents are of the bundled month; leave them "
                "out, or --data and -c."
            )
        from tracepaper.replay.demonstration.own import Demonstration
        from tracepaper.replay.demonstration.own import perform as perform_own

        perform_own(
            Demonstration(
                bars=bars,
                speed=speed or 2_000.0,
                data=tuple(data or ()),
                config=config,
                database=db,
                as_json=json,
            )
        )
        return
    if bars is not None or speed is not None:
        raise ConfigInvalid(
            "--bars and --speed are of a demo with --data or -c; of the bundled month give --days "
            "and --seconds."
        )
    from tracepaper.replay.demonstration.show import Show, perform

    perform(
        Show(
            days=days,
            seconds=seconds or 90.0,
            model=model,
            has_incidents=incidents is not False,
            database=db,
            as_json=json,
        )
    )
