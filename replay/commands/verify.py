"""``tracepaper verify``: re-derive a run's decisions from what it stored."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from tracepaper.daemon.commands.options import (
    DatabaseOption,
    FromOption,
    JsonOption,
    database_path,
    reads_record,
    say,
)
from tracepaper.strategies.market import unscaled
from tracepaper.strategies.types import MONEY_DECIMALS

if TYPE_CHECKING:
    from tracepaper.replay.checks.funding import FundingCheck
    from tracepaper.replay.checks.verify import Verification

SHOWN: Final = 10
"""Differences of a kind that are said."""


@reads_record
def verify(
    run: Annotated[str, typer.Argument(metavar="RUN", help="An id, a prefix, last, or FILE#RUN.")],
    *,
    sample: Annotated[
        int | None, typer.Option(min=1, help="Compare only the last so many steps.")
    ] = None,
    from_: FromOption = None,
    funding: Annotated[
        list[Path] | None,
        typer.Option(help="A published history that the settlements must equal; repeat."),
    ] = None,
    db: DatabaseOption = None,
    json: JsonOption = False,
) -> None:
    """Step a run through again from its own events; exit 1 with the first difference if any."""
    from dataclasses import asdict

    from tracepaper.daemon.commands.options import print_json
    from tracepaper.replay.archive import read_funding
    from tracepaper.replay.archive.times import instant
    from tracepaper.replay.checks.funding import check_funding
    from tracepaper.replay.checks.verify import verify_run
    from tracepaper.storage.reader import Reader, resolve

    database: Path | None = None if "#" in run else database_path(db)
    located = resolve(database, run)
    with Reader.open(located.path) as reader:
        histories = [read_funding(path) for path in funding or ()]
        settled = [check_funding(reader, located.run_id, rates) for rates in histories]
        from_ms = None if from_ is None else instant(from_)
        found = verify_run(reader, located.path, located.run_id, sample=sample, from_ms=from_ms)
    holds = found.holds and all(one.holds for one in settled)
    if json:
        compared = [{**asdict(one), "holds": one.holds} for one in settled]
        print_json({**asdict(found), "funding": compared, "holds": holds})
    elif found.holds:
        rounding = f", {found.tolerated:,} of them within their tolerances" * bool(found.tolerated)
        say(
            f"{found.agreed + found.tolerated:,} of {found.decisions:,} decisions follow from the "
            f"record of run {found.run_id} ({found.steps:,} steps){rounding}."
        )
        _say_beginning(found)
        _say_rules(found)
        if found.taken:
            say(
                f"{found.taken:,} answers of an outside service are taken from the record: nothing "
                "here says what it would answer now."
            )
        if sys.stdout.isatty():
            say("The links of its chain are another check: `tracepaper audit verify`.")
        if found.elsewhere:
            say(f"Floats were compared within tolerances, since {found.elsewhere}.")
    else:
        _say_why_not(found)
    if not json:
        for one in settled:
            _say_funding(one)
    if not holds:
        raise typer.Exit(1)


def _say_why_not(found: Verification) -> None:
    """Say what does not follow, and who is to blame; or that there was nothing to verify."""
    if not found.differing:
        say(
            f"No decision is among the {found.steps:,} steps of run {found.run_id} that were "
            "compared, so nothing was verified; ask again once it has decided."
        )
        return
    say(
        f"Run {found.run_id} does not follow from its record ({found.to_blame} is to "
        f"blame): {found.likely_cause}."
    )
    for difference in found.differences[:SHOWN]:
        say(
            f"  {difference.instrument} {difference.field}: stored {difference.first}, "
            f"derived {difference.second}"
        )


def _say_beginning(found: Verification) -> None:
    """Say of a run that was not compared whole from where it was, and what covers the rest."""
    from tracepaper.replay.archive.times import iso

    if found.from_ms is None:
        return
    since = f"They are those from {iso(found.from_ms)} on"
    if found.state_step is None:
        say(f"{since}; the state before was derived from the run's start.")
    else:
        say(
            f"{since}, step {found.from_step:,}; the state before is the record's, as step "
            f"{found.state_step:,} stored it, and was held to its fills, orders and ledger."
        )
    if found.chained:
        say(
            f"{found.chained:,} decisions that are stored before were not compared: only the chain "
            "covers them (`tracepaper audit verify`)."
        )


def _say_rules(found: Verification) -> None:
    """Name the rules that changed since the run was made, and what they moved in it."""
    if not found.changes:
        return
    say(f"Rules have changed since the run was made ({len(found.changes)}):")
    for change in found.changes:
        say(f"  {change.rule}: {change.sentence}.")
    if not found.moved:
        say("They moved nothing in what was compared: every column of it was held.")
        return
    say(
        f"They may have moved {', '.join(found.moved_columns)} in {found.moved:,} steps, from step "
        f"{found.moved_from:,} on: there these columns were not held. All else was."
    )


def _say_funding(one: FundingCheck) -> None:
    """Say how the settlements of one instrument agree with what was published."""
    from tracepaper.replay.archive.times import iso

    say(
        f"{one.booked:,} of {one.published:,} published settlements of {one.instrument} were "
        "booked at the published rate."
    )
    for at, booked, published in one.differing[:SHOWN]:
        rates = (unscaled(rate, MONEY_DECIMALS) for rate in (booked, published))
        say(f"  {iso(at)}: booked at {next(rates)}, published at {next(rates)}")
    for what, times in (("not booked", one.missing), ("not published", one.unpublished)):
        for at in times[:SHOWN]:
            say(f"  {iso(at)}: {what}")
