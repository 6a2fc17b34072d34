"""``tracepaper bench``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tracepaper.daemon.commands.options import CommandAnswer, answers, tell

app = typer.Typer(help="Measure: figures as ratios, in one run, on CPU time.")


@app.command()
@answers
def replay(
    *,
    bars: Annotated[
        int | None,
        typer.Option(min=100, help="Bars per round; 200,000 by default, 20,000 with a model."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    model: Annotated[
        bool, typer.Option("--model", help="Use the default model, with every bar explained.")
    ] = False,
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="MODEL", help="Use this model, such as informer-1m.")
    ] = None,
) -> CommandAnswer:
    """Measure bars per CPU second with every decision stored and chained."""
    from tracepaper.replay.bench.replay import measure_model, measure_replay

    if model or checkpoint is not None:
        figures = measure_model(bars or 20_000, checkpoint=checkpoint, rounds=rounds, tell=tell)
        return _answer(f"replay with {checkpoint or 'the default model'}", figures)
    figures = measure_replay(bars or 200_000, rounds=rounds, tell=tell)
    return _answer("replay without a model", figures)


@app.command()
@answers
def live(
    *,
    bars: Annotated[int, typer.Option(min=100, help="Decisions to time.")] = 1_000,
    symbols: Annotated[
        int, typer.Option(min=1, help="Symbols that close at once, in one daemon.")
    ] = 1,
    model: Annotated[bool, typer.Option(help="Measure also with the default model.")] = True,
    checkpoint: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Measure also with this 1-minute model.")
    ] = None,
) -> CommandAnswer:
    """Measure milliseconds from the last bar of a close to the commit of its last decision."""
    from tracepaper.replay.bench.live import measure_live

    figures = measure_live(
        max(bars // symbols, 100), symbols=symbols, model=model, checkpoint=checkpoint, tell=tell
    )
    return _answer("last bar to last decision committed, ms of wall time", figures)


@app.command()
@answers
def attention(
    *,
    bars: Annotated[
        list[int] | None,
        typer.Option(min=16, help="A length instead of 1,024 to 16,384; repeat."),
    ] = None,
    section: Annotated[
        list[str] | None,
        typer.Option(
            help="A section instead of all; repeat: explanation, layer, llama, stream, "
            "mechanisms, memory, operations, or lengths on cuda."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch and of the loops.")] = 1,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODULE:FUNCTION", help="Measure also your function of (inputs, mask); repeat."
        ),
    ] = None,
) -> CommandAnswer:
    """Measure the cost of an explanation relative to the forward pass that it explains."""
    from tracepaper.replay.bench.attention import SIZES
    from tracepaper.replay.bench.costs import measure
    from tracepaper.replay.bench.machine import machine_line

    rows = measure(
        bars or SIZES, sections=section or (), device=device, threads=threads,
        compare=compare or (), tell=tell,
    )  # fmt: skip
    tables: dict[str, Any] = {"machine": machine_line()}
    lines = [tables["machine"]]
    for title, row in rows:
        if title not in tables:
            lines.append(f"\n{title}")
        tables.setdefault(title, []).append(row)
        lines.append("  ".join(f"{name} {_shown(value)}" for name, value in row.items()))
    return CommandAnswer(tables, "\n".join(lines))


def _answer(title: str, figures: Mapping[str, Any]) -> CommandAnswer:
    """Return *figures* under *title*, one per line."""
    lines = (f"  {name.replace('_', ' '):32} {_shown(value)}" for name, value in figures.items())
    return CommandAnswer(figures, "\n".join([title, *lines]))


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
