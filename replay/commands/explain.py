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
        str,
        typer.Argument(
            metavar="RUN[:SEQUENCE]",
            help="Which decision, by default the last; RUN may be last, a prefix or FILE#RUN.",
        ),
    ],
    *,
    full: Annotated[
        bool,
        typer.Option(
            "--full",
            help="Ask the run's own model again: attribution bar by bar, what each feature added, "
            "and a deletion test.",
        ),
    ] = False,
    png: Annotated[
        Path | None,
        typer.Option("--png", metavar="FILE", help="Draw the price with the attribution under it."),
    ] = None,
    db: DatabaseOption = None,
    json: JsonOption = False,
) -> None:
    """Show a decision: each gate's distance, what would have flipped it, and where it looked."""
    from tracepaper.replay.explain.output import explain_decision

    database = None if "#" in decision else database_path(db)
    explain_decision(decision, database, full=full, png=png, as_json=json)
