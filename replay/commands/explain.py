"""``tracepaper explain``: what drove one decision."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tracepaper.daemon.commands.options import (
    DatabaseOption,
    JsonOption,
    database_path,
    reads_record,
)


@reads_record
def explain(
    decision: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN[:SEQUENCE]",
            help="Which decision, by default the last; RUN may be last, a prefix or FILE#RUN.",
        ),
    ] = None,
    *,
    full: Annotated[
        bool,
        typer.Option(
            "--full",
            help="Ask the run's own model again: attribution bar by bar, what each feature added, "
            "and a deletion test.",
        ),
    ] = False,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            metavar="NAME",
            help="Ask where it looked by rollout, norm, gradient or flow, beside what was stored.",
        ),
    ] = None,
    fusion: Annotated[
        str | None,
        typer.Option("--fusion", metavar="NAME", help="Fuse the heads by mean, max or min."),
    ] = None,
    residual: Annotated[
        float | None,
        typer.Option(
            "--residual", metavar="SHARE", help="Share of the residual stream, from 0 to 1."
        ),
    ] = None,
    start_layer: Annotated[
        int | None,
        typer.Option("--start-layer", metavar="N", help="Leave out the layers below layer N."),
    ] = None,
    discard: Annotated[
        float | None,
        typer.Option(
            "--discard", metavar="SHARE", help="Drop that share of the smallest entries a layer."
        ),
    ] = None,
    head_weights: Annotated[
        str | None,
        typer.Option(
            "--head-weights",
            metavar="LIST",
            help="Weigh the heads, as 1,0,0,0, or so for each layer: 1,0/0,1.",
        ),
    ] = None,
    png: Annotated[
        Path | None,
        typer.Option("--png", metavar="FILE", help="Draw the price with the attribution under it."),
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option("--page", metavar="FILE", help="Write one page that needs no network."),
    ] = None,
    other: Annotated[
        str | None,
        typer.Option(
            "--with",
            metavar="RUN[:SEQUENCE]",
            help="Compare with another decision, layer by layer.",
        ),
    ] = None,
    beside: Annotated[
        str | None,
        typer.Option("--beside", metavar="MODEL", help="Compare with another model on its bars."),
    ] = None,
    depth: Annotated[
        Path | None,
        typer.Option(
            "--depth", metavar="FILE", help="No decision: a book of a file of `data record`."
        ),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="With --depth: a network of order books."),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="With --depth: its newest book, by default the last."),
    ] = None,
    db: DatabaseOption = None,
    json: JsonOption = False,
) -> None:
    """Show a decision: each gate's distance, what would have flipped it, and where it looked.

    With --depth, show where a network of order books looked instead, level by level over time.
    """
    if decision is None or depth is not None or checkpoint is not None or at is not None:
        others = (decision, full, method, fusion, residual, start_layer, discard, head_weights)
        given = any(one not in (None, False) for one in (*others, png, page, other, beside, db))
        _explain_book(None if given else depth, checkpoint, at, as_json=json)
        return
    from tracepaper.replay.explain.asked import ComparedWith, TypedMethod
    from tracepaper.replay.explain.output import explain_decision

    asked = TypedMethod(method, fusion, residual, start_layer, discard, head_weights)
    database = None if "#" in decision else database_path(db)
    explain_decision(
        decision, database, full=full, png=png, page=page, as_json=json, asked=asked,
        beside=ComparedWith(other, beside),
    )  # fmt: skip


def _explain_book(
    depth: Path | None, checkpoint: str | None, at: str | None, *, as_json: bool
) -> None:
    from tracepaper.replay.commands.books import THREADS, explain_book

    explain_book(depth, checkpoint, at, threads=THREADS, as_json=as_json)
