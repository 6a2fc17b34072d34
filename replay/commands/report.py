"""``tracepaper report``: performance and attention of a run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tracepaper.daemon.commands.options import (
    ConfigOption,
    DatabaseOption,
    JsonOption,
    database_path,
    located,
    reads_record,
)
from tracepaper.replay.report import BARS_DRAWN

if TYPE_CHECKING:
    from tracepaper.replay.report.document import Report
    from tracepaper.replay.report.heads import HeadReport
    from tracepaper.replay.report.influence import InfluenceReport


@reads_record
def report(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="An id, a prefix, last, or FILE#RUN.")
    ] = "last",
    *,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write one page that needs no network."),
    ] = None,
    heads: Annotated[
        bool,
        typer.Option(
            "--heads", help="Say what each head does; of several symbols, who sways whom."
        ),
    ] = False,
    chart: Annotated[
        Path | None,
        typer.Option(
            "--chart", metavar="FILE", help="Draw the price with its trades into a .png or .svg."
        ),
    ] = None,
    last: Annotated[
        int, typer.Option("--last", min=2, help="With --chart: how many bars, the newest.")
    ] = BARS_DRAWN,
    notes: Annotated[
        bool, typer.Option("--notes", help="Unfold what to know before believing any of it.")
    ] = False,
    db: DatabaseOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Report how a run did, what it cost, what its gates refused, and where it looked."""
    from tracepaper.daemon.commands.options import print_json
    from tracepaper.daemon.terminal.console import Terminal
    from tracepaper.replay.report.document import build_report
    from tracepaper.replay.report.terminal import as_document, show
    from tracepaper.strategies.extras import require

    require("plotly", "--html", html)
    if chart is not None:
        from tracepaper.replay.report.picture import check

        check(chart, last)
    named = located(run, None if "#" in run else database_path(db, config))
    with _progress(quiet=json or not sys.stderr.isatty()) as progress:
        made = build_report(named.path, named.run_id, progress=progress)
        swayed = _influence(made) if heads else None
        found = _heads(made, progress) if heads and swayed is None else None
    if html is not None:
        from tracepaper.replay.report.page import write_page

        write_page(made, html, heads=found, influence=swayed)
    if chart is not None:
        from tracepaper.replay.report.picture import draw

        draw(made, chart, last=last)
    if json:
        print_json(as_document(made, found, swayed))
        return
    show(Terminal(), made, notes=notes, heads=found, influence=swayed)
    if html is not None:
        typer.echo(f"The page is {html}.")
    if chart is not None:
        typer.echo(f"The chart is {chart}.")


def _heads(report: Report, progress: Callable[[str], None]) -> HeadReport:
    """Return what each head of the run's model does."""
    from tracepaper.replay.report.heads import read_heads

    progress("asking the model where each head looked")
    return read_heads(report.record)


def _influence(report: Report) -> InfluenceReport | None:
    """Return who swayed whom in a run of several symbols; None of another run."""
    from tracepaper.replay.report.influence import read_influence

    return read_influence(report.record, report.trades[report.shown])


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[str], None]]:
    """Say on stderr what is being done, where a person looks on; nothing elsewhere."""
    from rich.console import Console

    if quiet:
        yield lambda _said: None
        return
    with Console(stderr=True).status("reading the run") as status:
        yield status.update
