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
