"""``tracepaper bench``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tracepaper.daemon.commands.options import JsonOption, print_json
from tracepaper.strategies.extras import require

app = typer.Typer(help="Measure: figures as ratios, in one run, on CPU time.")


@app.command()
def ingest(
    frames: Annotated[int, typer.Option(min=1_000, help="Frames a round.")] = 200_000,
    *,
    json: JsonOption = False,
) -> None:
    """Measure frames parsed to typed bars a CPU second."""
    from tracepaper.replay.bench.ingest import measure_ingest

    _say("ingest: frame to typed bar", measure_ingest(frames), as_json=json)


@app.command()
def replay(
    *,
    bars: Annotated[int, typer.Option(min=1_000, help="Bars a round.")] = 200_000,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    model: Annotated[
        bool, typer.Option("--model", help="With the default model, every bar explained.")
    ] = False,
    checkpoint: Annotated[
        Path | None,
        typer.Option(metavar="MODEL", help="With this model of whole windows, say informer-1m."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Measure bars a CPU second with every decision stored and chained."""
    from tracepaper.replay.bench import replay as replaying

    if checkpoint is not None:
        figures = replaying.measure_windows(
            checkpoint, bars if bars != 200_000 else 1_500, tell=_tell
        )
        _say("replay with a model of whole windows, CPU time", figures, as_json=json)
    elif model:
        figures = replaying.measure_model(bars if bars != 200_000 else 30_000, tell=_tell)
        _say("replay with the default model", figures, as_json=json)
    else:
        figures = replaying.measure_replay(bars, rounds=rounds, tell=_tell)
        _say("replay without a model", figures, as_json=json)


@app.command()
def book(
    *,
    events: Annotated[
        Path | None,
        typer.Option("--events", metavar="FILE", help="A recorded file; else seeded frames."),
    ] = None,
    frames: Annotated[int, typer.Option(min=1_000, help="Seeded frames.")] = 30_000,
    json: JsonOption = False,
) -> None:
    """Measure events of an order book a CPU second, while limits rest in its queues."""
    from tracepaper.replay.bench.book import measure_book

    figures = measure_book(events, frames=frames, tell=_tell)
    _say("book: a changed level or a trade", figures, as_json=json)


@app.command()
def sweep(
    *,
    bars: Annotated[int, typer.Option(min=2_000, help="Bars of each of the 100 runs.")] = 12_000,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes; by default one per core.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Measure a sweep of 100 runs beside the sum of its runs."""
    from tracepaper.replay.bench.replay import measure_sweep

    _say("sweep of 100 runs, CPU time", measure_sweep(bars, jobs=jobs, tell=_tell), as_json=json)


@app.command()
def scale(
    *,
    bars: Annotated[int, typer.Option(min=2_000, help="Bars of each of the 100 cells.")] = 12_000,
    jobs: Annotated[int, typer.Option(min=1, help="Workers of each place.")] = 2,
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="URL", help="A PostgreSQL to ship to, made by db create."),
    ] = None,
    steps: Annotated[int, typer.Option(min=10_000, help="Steps to ship and pull.")] = 200_000,
    json: JsonOption = False,
) -> None:
    """Measure 100 cells on a Ray of this machine over local ones; a fleet at a PostgreSQL."""
    require("ray", "bench scale")
    require("psycopg", "--to", to)
    from tracepaper.replay.bench.fleet import measure_decisions, measure_fleet
    from tracepaper.replay.bench.scale import measure_ray

    figures = measure_ray(bars, jobs=jobs, tell=_tell)
    if to is not None:
        figures |= measure_fleet(to, bars=steps, tell=_tell)
        figures |= measure_decisions(to, tell=_tell)
    _say("scale: wall time, starts apart", figures, as_json=json)


@app.command()
def train(
    *,
    bars: Annotated[int, typer.Option(min=6_000, help="Bars that are learnt from.")] = 20_000,
    steps: Annotated[int, typer.Option(min=1, help="Steps to time, each way.")] = 4,
    json: JsonOption = False,
) -> None:
    """Measure bars learnt from a CPU second: long chunks beside one window a sample."""
    from tracepaper.replay.bench.networks import measure_training

    _say("training, CPU time", measure_training(bars, steps=steps, tell=_tell), as_json=json)


@app.command()
def audit(
    *,
    bars: Annotated[
        int, typer.Option(min=1_000, help="Bars of the run that is checked.")
    ] = 100_000,
    model: Annotated[bool, typer.Option(help="Also with the default model.")] = True,
    json: JsonOption = False,
) -> None:
    """Measure the walk along a chain beside a bare read, pack and hash of the same rows."""
    from tracepaper.replay.bench.replay import measure_audit

    _say("audit: CPU time of a check", measure_audit(bars, model=model, tell=_tell), as_json=json)


@app.command()
def live(
    *,
    bars: Annotated[int, typer.Option(min=100, help="Decisions to time.")] = 1_000,
    symbols: Annotated[
        int, typer.Option(min=1, help="Symbols that close at once, in one daemon.")
    ] = 1,
    model: Annotated[bool, typer.Option(help="Also with the default model.")] = True,
    checkpoint: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Also with this model of minutes.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Measure milliseconds from a parsed bar, or the last of a close, to what is committed."""
    from tracepaper.replay.bench.live import LIVE_CLOSES_LEAST, measure_live, measure_live_closes

    if symbols > 1:
        closes = max(bars // symbols, LIVE_CLOSES_LEAST)
        figures = measure_live_closes(symbols, closes, model=model, tell=_tell)
        _say("close of several symbols, last bar to last decision committed", figures, as_json=json)
        return
    _say(
        "live step, ms of wall time",
        measure_live(bars, model=model, checkpoint=checkpoint, tell=_tell),
        as_json=json,
    )


@app.command()
def close(
    *,
    symbols: Annotated[int, typer.Option(min=2, help="Instruments that close at once.")] = 30,
    rounds: Annotated[int, typer.Option(min=1, help="Closes to time, each way.")] = 40,
    json: JsonOption = False,
) -> None:
    """Measure several symbols that close at once, to the last commit: gathered and one by one."""
    from tracepaper.replay.bench.live import measure_close

    figures = measure_close(symbols, rounds, tell=_tell)
    _say("close of several symbols, delivered to last decision committed", figures, as_json=json)


@app.command()
def page(
    *,
    bars: Annotated[int, typer.Option(min=200, help="Bars of the recorded run.")] = 525_600,
    db: Annotated[
        Path | None, typer.Option("--db", metavar="FILE", help="The newest run of it instead.")
    ] = None,
    updates: Annotated[
        int, typer.Option(min=120, help="Steps that are told to an open page.")
    ] = 3_600,
    json: JsonOption = False,
) -> None:
    """Measure the page: first paint, clicks, updates, memory, export, and the daemon beside it."""
    from tracepaper.replay.bench.page import measure_page

    _say("page", measure_page(bars, db=db, updates=updates, tell=_tell), as_json=json)


@app.command()
def assets(
    *,
    assets: Annotated[int, typer.Option(min=2, max=1_000, help="Assets at once.")] = 100,
    bars: Annotated[int, typer.Option(min=16, help="Bars of each.")] = 2_048,
    closes: Annotated[
        int, typer.Option(min=0, help="Also runs of so many closes: replay, verify, live.")
    ] = 0,
    json: JsonOption = False,
) -> None:
    """Measure a network over many assets on generated prices: time and peak memory, explained."""
    from tracepaper.replay.bench.networks import measure_assets
    from tracepaper.replay.bench.panel import measure_panel

    if closes:
        figures = measure_panel(assets, bars, closes)
        _say("runs of many assets, every one explained", figures, as_json=json)
        return
    _say("many assets at once, every one explained", measure_assets(assets, bars), as_json=json)


@app.command()
def attention(
    *,
    long: Annotated[bool, typer.Option("--long", help="Also 65,536 bars.")] = False,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch and of the loops.")] = 1,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODULE:FUNCTION", help="Also your function of (inputs, mask); repeat."
        ),
    ] = None,
    bars: Annotated[
        list[int] | None, typer.Option(min=16, help="A length in place of 512 to 16,384; repeat.")
    ] = None,
    png: Annotated[Path | None, typer.Option(metavar="FILE", help="Also a plot.")] = None,
    json: JsonOption = False,
) -> None:
    """Measure what an explanation costs beside the forward that it explains."""
    from tracepaper.replay.bench.attention import SIZES, Printer, measure, plot
    from tracepaper.replay.bench.machine import machine_line

    require("matplotlib", "--png", png)
    if not json:
        typer.echo(machine_line())
    figures = measure(
        bars or SIZES,
        long=long,
        threads=threads,
        compare=compare or (),
        tell=_tell if json or not sys.stdout.isatty() else lambda _: None,
        show=(lambda _kind, _row: None) if json else Printer(typer.echo),
    )
    if png is not None:
        plot(figures, png)
    if json:
        print_json(figures)


@app.command()
def orderbook(
    *,
    books: Annotated[int, typer.Option(min=2, help="Of history.")] = 1_000,
    levels: Annotated[int, typer.Option(min=1, max=1_000, help="A side.")] = 50,
    json: JsonOption = False,
) -> None:
    """Measure memory and time of a map of level and time over generated books, untrained."""
    from tracepaper.replay.bench.networks import measure_order_book

    _say(
        "orderbook: one answer with its map",
        measure_order_book(books, levels, tell=_tell),
        as_json=json,
    )


@app.command()
def ett(
    *,
    data: Annotated[Path, typer.Option(metavar="CSV", help="A date column, columns of numbers.")],
    network: Annotated[str, typer.Option(help="flash, informer, lstm, ridge or tree.")] = "flash",
    horizon: Annotated[int, typer.Option(min=1, help="Rows ahead: 24, 48, 96 or 168.")] = 24,
    univariate: Annotated[
        bool, typer.Option("--univariate", help="The last column alone.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, order and sampled keys.")] = 0,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes at most; the network's own number.")
    ] = None,
    recursive: Annotated[
        int, typer.Option(min=0, metavar="ROWS", help="Also in steps of so many, on its forecasts.")
    ] = 0,
    json: JsonOption = False,
) -> None:
    """Measure a network on the protocol of the ETT benchmarks, beside ridge and a naive answer."""
    from tracepaper.replay.bench.networks import measure_ett

    figures = measure_ett(
        data,
        network,
        horizon=horizon,
        univariate=univariate,
        seed=seed,
        epochs=epochs,
        step=recursive,
        tell=_tell,
    )
    _say("ett: errors in standard deviations of the training part", figures, as_json=json)


def _tell(sentence: str) -> None:
    typer.echo(sentence, err=True)


def _say(title: str, figures: Mapping[str, Any], *, as_json: bool) -> None:
    """Print the figures as one JSON document, or line by line."""
    if as_json:
        print_json(figures)
        return
    typer.echo(title)
    for name, value in figures.items():
        typer.echo(f"  {name.replace('_', ' '):32} {_shown(value)}")


def _shown(value: object) -> str:
    match value:
        case Mapping():
            return ", ".join(f"{name} {_shown(part)}" for name, part in value.items())
        case float() if abs(value) >= 1_000:  # a large figure needs no decimals
            return f"{value:,.0f}"
        case float():
            return f"{value:.3g}"
        case int():
            return f"{value:,}"
        case _:
            return str(value)
