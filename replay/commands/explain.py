"""``tracepaper explain``: what drove one decision."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tracepaper.daemon.commands.options import DatabaseOption, JsonOption, database_path


def explain(
    decision: Annotated[str, typer.Argument(metavar="RUN:SEQUENCE", help="Which decision.")],
    *,
    full: Annotated[
        bool, typer.Option("--full", help="Recompute the attribution bar by bar and compare.")
    ] = False,
    db: DatabaseOption = None,
    json: JsonOption = False,
) -> None:
    """Show a decision, each gate's measure and threshold, and where the attention lay."""
    from dataclasses import asdict

    from rich.console import Console

    from tracepaper.daemon.commands.options import print_json
    from tracepaper.replay.explaining.attribution import locate, recompute, show_full, stored_document
    from tracepaper.replay.summary import explain_stored

    path, run_id, sequence = locate(decision, _database(decision, db))
    attribution = recompute(path, run_id, sequence) if full else None
    if json:
        document = stored_document(path, run_id, sequence)
        if attribution is not None:
            document["bars"] = asdict(attribution)
        print_json(document)
        return
    console = Console()
    console.print(explain_stored(path, run_id, sequence))
    if attribution is not None:
        console.print(show_full(attribution))


def _database(decision: str, db: Path | None) -> Path | None:
    """Return the database to look in; a ``FILE#RUN`` names its own."""
    return None if "#" in decision else database_path(db)
