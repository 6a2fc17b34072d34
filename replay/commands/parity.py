"""``tracepaper parity``: two runs compared decision by decision."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tracepaper.daemon.commands.options import (
    DatabaseOption,
    JsonOption,
    database_path,
    reads_record,
    say,
)

if TYPE_CHECKING:
    from tracepaper.replay.checks.parity import Parity


@reads_record
def parity(
    first: Annotated[str, typer.Argument(metavar="RUN", help="A run, or FILE#RUN.")],
    second: Annotated[str, typer.Argument(metavar="RUN", help="The run to compare it with.")],
    *,
    db: DatabaseOption = None,
    json: JsonOption = False,
) -> None:
    """Print how many decisions are identical; exit 1 with the first field that differs if any."""
    from dataclasses import asdict

    from tracepaper.daemon.commands.options import located, print_json
    from tracepaper.replay.checks.parity import ComparedRun, compare_runs
    from tracepaper.storage.reader import Reader

    one, two = (located(spec, _database(spec, db)) for spec in (first, second))
    with Reader.open(one.path) as a, Reader.open(two.path) as b:
        found = compare_runs(ComparedRun(a, one.run_id), ComparedRun(b, two.run_id))
    if json:
        print_json({**asdict(found), "holds": found.holds})
    else:
        _say(found)
    if not found.holds:
        raise typer.Exit(1)


def _say(found: Parity) -> None:
    """Say what agrees, what differs, and where nothing was found out."""
    say(f"{found.identical:,} of {found.compared:,} decisions identical.")
    if found.within_tolerance:
        say(f"{found.within_tolerance:,} more agree within 1e-4 and decide the same.")
    for gate, count in found.timing.items():
        say(f"{count:,} differ only in time ({gate}).")
    if found.first_fill:
        say(
            f"{found.after_first_fill:,} more depend on fills and come after the first that "
            f"differs: {found.first_fill}."
        )
    for name, count in (("first", found.only_in_first), ("second", found.only_in_second)):
        if count:
            say(f"{count:,} bars are only in the {name} run.")
    if found.missing:
        say(f"{found.missing:,} of them lie between bars that both runs decided.")
    for difference in found.differences:
        say(difference.sentence())
    if unproved := _unproved(found):
        say(unproved)


def _unproved(found: Parity) -> str:
    """Say why two runs without a difference do not agree; empty where they do, or differ."""
    if found.holds or found.differences:
        return ""
    if not found.compared:
        return "Nothing was compared: give two runs that decided the same bars."
    return "All that was compared differs in time alone, so nothing shows that the runs agree."


def _database(spec: str, db: Path | None) -> Path | None:
    return None if "#" in spec else database_path(db)
