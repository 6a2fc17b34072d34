"""``tracepaper verify``: re-derive a run's decisions from what it stored."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from tracepaper.daemon.commands.options import (
    DatabaseOption,
    JsonOption,
    database_path,
    reads_record,
    say,
)


@reads_record
def verify(
    run: Annotated[str, typer.Argument(metavar="RUN", help="An id, a prefix, last, or FILE#RUN.")],
    *,
    sample: Annotated[
        int | None, typer.Option(min=1, help="Compare only the last so many steps.")
    ] = None,
    db: DatabaseOption = None,
    json: JsonOption = False,
) -> None:
    """Step a run through again from its own events; exit 1 with the first difference if any."""
    from dataclasses import asdict

    from tracepaper.daemon.commands.options import print_json
    from tracepaper.replay.checks.verify import verify_run
    from tracepaper.storage.reader import Reader, resolve

    database: Path | None = None if "#" in run else database_path(db)
    located = resolve(database, run)
    with Reader.open(located.path) as reader:
        found = verify_run(reader, located.path, located.run_id, sample=sample)
    if json:
        print_json({**asdict(found), "holds": found.holds})
    elif found.holds:
        rounding = f", {found.tolerated:,} of them within their tolerances" * bool(found.tolerated)
        say(
            f"{found.agreed + found.tolerated:,} of {found.decisions:,} decisions follow from the "
            f"record of run {found.run_id} ({found.steps:,} steps){rounding}."
        )
        if sys.stdout.isatty():
            say("The links of its chain are another check: `tracepaper audit verify`.")
        if found.elsewhere:
            say(f"Floats were compared within tolerances, since {found.elsewhere}.")
    else:
        say(
            f"Run {found.run_id} does not follow from its record ({found.to_blame} is to "
            f"blame): {found.likely_cause}."
        )
        for difference in found.differences[:10]:
            say(
                f"  {difference.instrument} {difference.field}: stored {difference.first}, "
                f"derived {difference.second}"
            )
    if not found.holds:
        raise typer.Exit(1)
