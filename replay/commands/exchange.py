"""``tracepaper exchange``: Bybit v5 REST and websocket on loopback, for any client."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tracepaper.replay.exchange.faults import FaultPlan


def exchange(
    data: Annotated[
        list[str] | None,
        typer.Option(help="Candles to serve: PATH or SYMBOL=PATH; repeat for more."),
    ] = None,
    category: Annotated[
        str | None, typer.Option(help="linear or spot; by default from the file's name.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0 picks a free one.")] = 0,
    speed: Annotated[float, typer.Option(help="Market seconds per second.")] = 1.0,
    start: Annotated[
        int | None,
        typer.Option(
            help="Bars into the data; by default 7,250, or three quarters of a shorter file."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the paths inside the bars.")] = 0,
    hold: Annotated[
        bool, typer.Option("--hold", help="Stand still until a client subscribes candles.")
    ] = False,
    until_eof: Annotated[
        bool, typer.Option("--until-eof", help="End when standard input ends.")
    ] = False,
    now: Annotated[
        bool, typer.Option("--now", help="Shift the candles so that market time is wall time.")
    ] = False,
    frames: Annotated[
        Path | None, typer.Option(help="Play this recorded session verbatim: JSON lines or text.")
    ] = None,
    faults: Annotated[
        Path | None, typer.Option(help="Faults to inject: a TOML or JSON file.")
    ] = None,
    fault_seed: Annotated[int, typer.Option(help="Of the schedule of faults.")] = 0,
    fault_every: Annotated[
        float, typer.Option(min=0, help="Seconds between scheduled faults; 0 is none.")
    ] = 0.0,
    list_faults: Annotated[
        bool, typer.Option("--list-faults", help="Print every kind of fault, and end.")
    ] = False,
    list_routes: Annotated[
        bool, typer.Option("--list-routes", help="Print every REST route and topic, and end.")
    ] = False,
) -> None:
    """Serve candles or recorded frames over the Bybit v5 protocol on loopback.

    The first line on stdout, when ready, is one JSON object with rest_url, stream_url (add
    /v5/public/linear) and control_url. Ctrl-C or SIGTERM ends it in good order.

    Faults come by POST control_url/fault with {"kind": "http_status", "status": 503}, from a file
    (seed, every_s, kinds, and a list faults with after_s) or from a seeded schedule.
    """
    if list_faults or list_routes:
        _print(*(["routes", "topics"] if list_routes else []), *(["faults"] if list_faults else []))
        return
    import asyncio

    from tracepaper.daemon.clock import SystemClock
    from tracepaper.replay.exchange.server import ExchangeSettings, serve
    from tracepaper.strategies.errors import ConfigInvalid
    from tracepaper.strategies.types import Category

    if category is not None and category not in tuple(Category):
        raise ConfigInvalid(f"--category is {category!r}: give linear or spot.")
    settings = ExchangeSettings(
        data=tuple(data or ()),
        category=None if category is None else Category(category),
        port=port,
        speed=speed,
        start=start,
        seed=seed,
        hold=hold,
        frames=frames,
        faults=_plan(faults, fault_seed, fault_every),
        wall_ms=SystemClock().wall_ms if now else None,
    )
    asyncio.run(serve(settings, until_eof=until_eof))


def _print(*parts: str) -> None:
    """Print what each entry of *parts* of the exchange's listing is."""
    from tracepaper.replay.exchange.surface import listing

    entries = {name: text for part in parts for name, text in listing()[part].items()}
    width = max(map(len, entries))
    for name, text in entries.items():
        typer.echo(f"{name:<{width}}  {text}")


def _plan(path: Path | None, seed: int, every_s: float) -> FaultPlan:
    """Return the plan of the file at *path* with the schedule of the options."""
    from dataclasses import replace

    from tracepaper.replay.exchange.faults import read_plan

    plan = read_plan(path)
    return replace(plan, seed=seed, every_s=every_s) if every_s else plan
