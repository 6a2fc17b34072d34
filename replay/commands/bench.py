"""``tracepaper bench``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from tracepaper.daemon.commands.options import CommandAnswer, answers, tell

app = typer.Typer(help="Measure: figures as ratios, in one run, on CPU time.")


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
