"""``tracepaper report``, ``explain`` and ``whatif``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from tracepaper.daemon.commands.options import (
    CommandAnswer,
    ConfigOption,
    DatabaseOption,
    FromOption,
    JsonOption,
    PageOption,
    RunArgument,
    SetOption,
    StrategyOption,
    answers,
    database_of,
    located,
    print_json,
    reads_record,
    reject_without_effect,
    settings_with,
    tell,
)
from tracepaper.replay.commands.documents import answer_of
from tracepaper.replay.commands.train import JobsOption
from tracepaper.replay.report import BARS_DRAWN
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.units import count_of

if TYPE_CHECKING:
    from tracepaper.daemon.session.account_chain import AccountRun
    from tracepaper.replay.checks.fragility import Each
    from tracepaper.replay.document.values import TitledParts
    from tracepaper.replay.explain.importance import RunImportance
    from tracepaper.replay.report.attention import InfluenceReport
    from tracepaper.replay.report.heads import HeadReport
    from tracepaper.replay.report.report import Report
    from tracepaper.replay.report.run_charts import PictureName
    from tracepaper.storage.database.chunks import RunLocation


@reads_record
@answers
def report(
    given: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN|FILE...]",
            help="An id, a prefix or FILE#RUN; by default the account over its runs, also over "
            "files.",
        ),
    ] = None,
    *,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write the run's page as one file."),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="With --html: include every decision in full.")
    ] = False,
    heads: Annotated[
        bool,
        typer.Option(
            "--heads", help="Analyse each attention head; with several symbols, their influence."
        ),
    ] = False,
    importance: Annotated[
        str,
        typer.Option(
            "--importance",
            metavar="EVERY",
            help="Importance of bars, in spans such as 1d, 4h or 500 bars.",
        ),
    ] = "",
    samples: Annotated[
        int,
        typer.Option(
            "--samples",
            help="With --importance: decisions per span for the importance of features.",
        ),
    ] = 0,
    chart: Annotated[
        Path | None,
        typer.Option(
            "--chart", metavar="FILE", help="Draw the price with the trades, as .png or .svg."
        ),
    ] = None,
    picture: Annotated[
        str | None,
        typer.Option(
            "--picture",
            metavar="NAME",
            help="With --chart: price (default), equity, trades or events.",
        ),
    ] = None,
    last: Annotated[
        int | None,
        typer.Option(
            "--last",
            min=2,
            help=f"With --chart: number of newest bars, {BARS_DRAWN:,} by default.",
        ),
    ] = None,
    notes: Annotated[bool, typer.Option("--notes", help="Show caveats.")] = False,
    stress: Annotated[
        bool,
        typer.Option(
            "--stress",
            help="What the result rests on: without its best trades, a bar late, at costs × 2.",
        ),
    ] = False,
    capacity: Annotated[
        bool,
        typer.Option("--capacity", help="Profit by size: where half of the edge is gone."),
    ] = False,
    impact_bp: Annotated[
        float | None,
        typer.Option(
            "--impact-bp",
            metavar="BP",
            help="With --capacity: impact of a fill of all of its candle's volume.",
        ),
    ] = None,
    jobs: JobsOption = None,
    db: DatabaseOption = None,
    config: ConfigOption = None,
) -> CommandAnswer:
    """Report an account over its runs, or a run: performance, costs, refusals and attribution."""
    from tracepaper.daemon.terminal.console import Terminal
    from tracepaper.replay.document.terminal import show
    from tracepaper.replay.report.report import build_report
    from tracepaper.replay.report.terminal import as_document, show_report

    for remedy, has_effect, options in (
        ("add --html FILE", html, {"--full": full}),
        ("add --importance EVERY", importance, {"--samples": samples}),
        ("add --chart FILE", chart, {"--picture": picture, "--last": last}),
        ("add --capacity", capacity, {"--impact-bp": impact_bp}),
        ("add --stress or --capacity", stress or capacity, {"--jobs": jobs}),
    ):
        if not has_effect:
            reject_without_effect(options, remedy)
    name = _checked_picture(chart, picture or "price", last or BARS_DRAWN)
    if (stress or capacity) and not html and (heads or importance or chart or stress == capacity):
        raise ConfigInvalid(
            "--stress and --capacity are documents of their own; give --html FILE for a page with "
            "all."
        )
    place, account = _asked(given or ["last"], db, config)
    reruns = [_stress(place, jobs)] if stress else []
    reruns += [_capacity(place, jobs, impact_bp)] if capacity else []
    if reruns and html is None:
        return answer_of(*reruns[0])
    with _progress() as progress:
        series = _importance(place, importance, samples, progress) if importance else None
        run_report = build_report(place.path, place.run_id, account=account, progress=progress)
        analysis = _analysis(run_report, progress) if heads else None
        if html is not None:
            from tracepaper.replay.page.contents import run_page
            from tracepaper.replay.page.export import write_page
            from tracepaper.replay.report.document import report_document

            document = report_document(run_report, analysis)
            page = run_page(
                place.path,
                place.run_id,
                document=_with_reruns(document, [shown for shown, _ in reruns]),
                full=full,
                progress=progress,
            )
            write_page(page, html)
    if html is not None:
        tell(f"The page is {html}.")
    if chart is not None:
        from tracepaper.replay.document.pictures import write_picture
        from tracepaper.replay.report.run_charts import chart_named

        write_picture(chart_named(run_report, name, last=last or BARS_DRAWN), chart)
        tell(f"The chart is {chart}.")

    def print_report() -> None:
        show_report(Terminal(), run_report, notes=notes, analysis=analysis)
        if series is not None:
            show(Terminal(), series.series)

    values = as_document(run_report, analysis)
    return CommandAnswer(values | ({} if series is None else series.document()), print_report)


def _asked(
    given: Sequence[str], db: Path | None, config: Path | None
) -> tuple[RunLocation, Sequence[AccountRun]]:
    """Return the run that was asked for, and the runs of its account if that was."""
    from tracepaper.daemon.session.account_chain import account_chain
    from tracepaper.replay.report.account import account_in
    from tracepaper.storage.database.chunks import RunLocation

    run, *more = given
    if more or Path(run).is_file():
        chain = [each for each in account_chain([Path(file) for file in given]) if each.run]
        newest = chain[-1]
        assert newest.run is not None
        return RunLocation(newest.path, newest.run.run_id), chain
    place = located(run, db, config)
    is_newest = run.rpartition("#")[2] in {"", "last"}
    return place, account_in(place.path, place.run_id) if is_newest else ()


def _checked_picture(chart: Path | None, picture: str, last: int) -> PictureName:
    """Return the name of the *picture*; raise ``ConfigInvalid`` if it cannot be drawn."""
    from tracepaper.replay.report.run_charts import picture_named

    if chart is not None:
        from tracepaper.replay.report.charts import check

        check(chart, last)
    return picture_named(picture)


def _stress(place: RunLocation, jobs: int | None) -> tuple[TitledParts, dict[str, Any]]:
    """Return what the run's result rests on, as a document and as values."""
    from tracepaper.replay.checks.fragility import as_json, fragility, fragility_document

    result = fragility(place.path, place.run_id, each=_each(jobs), begins=_begins)
    return fragility_document(result), as_json(result)


def _capacity(
    place: RunLocation, jobs: int | None, impact_bp: float | None
) -> tuple[TitledParts, dict[str, Any]]:
    """Return at what size the run's edge is gone, as a document and as values."""
    from tracepaper.replay.checks.capacity import as_json, capacity, capacity_document

    exact = None if impact_bp is None else Decimal(str(impact_bp))
    each = _each(jobs)
    result = capacity(place.path, place.run_id, impact_bp=exact, each=each, begins=_begins)
    return capacity_document(result), as_json(result)


def _begins(count: int) -> None:
    """Say how many runs again follow."""
    tell(f"{count_of(count, 'run')} again from the record, each of all its bars.")


def _each(jobs: int | None) -> Each:
    """Return what makes the runs again: this process, or *jobs* processes."""
    from tracepaper.replay.checks.fragility import one_by_one, run_again
    from tracepaper.replay.sweep.places import each_on

    if (spread := each_on(None, jobs)) is None:
        return one_by_one
    return lambda reruns: spread(run_again, reruns, lambda _sentence: None)


def _with_reruns(document: TitledParts, reruns: Sequence[TitledParts]) -> TitledParts:
    """Return the report's *document* with the parts of *reruns* at its end."""
    from tracepaper.replay.document.values import Paragraph, TitledParts

    parts = list(document.parts)
    for each in reruns:
        parts += [Paragraph(each.title, "heading"), *each.parts]
    return TitledParts(document.title, tuple(parts))


@reads_record
@answers
def risk(
    run: RunArgument = "last",
    *,
    hours: Annotated[bool, typer.Option("--hours", help="Use hours instead of days.")] = False,
    page: PageOption = None,
    db: DatabaseOption = None,
    config: ConfigOption = None,
) -> CommandAnswer:
    """Say what a run's open positions could lose: exposure, tails, stress and margin."""
    from tracepaper.replay.report.book_risk import read_book_risk, risk_document, risk_json
    from tracepaper.replay.run_columns import RunColumns
    from tracepaper.storage.database.reader import Reader

    place = located(run, db, config)
    with Reader.open(place.path) as reader:
        book = read_book_risk(RunColumns(reader, place.run_id), "hour" if hours else "day")
    return answer_of(risk_document(place.run_id, book), risk_json(place.run_id, book), page=page)


def _analysis(report: Report, progress: Callable[[str], None]) -> HeadReport | InfluenceReport:
    """Analyse the influence between several symbols, else the heads of the run's model."""
    from tracepaper.replay.report.attention import read_influence

    if influence := read_influence(report.record, report.trades[report.shown]):
        return influence
    from tracepaper.replay.report.heads import read_heads

    progress("asking the model where each head looked")
    return read_heads(report.record)


def _importance(
    place: RunLocation, every: str, samples: int, progress: Callable[[str], None]
) -> RunImportance:
    from tracepaper.replay.explain.importance import read_importance

    return read_importance(place.path, place.run_id, every, samples=samples, progress=progress)


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Yield a function that shows the current step on stderr, if that is a terminal."""
    from rich.console import Console

    if not sys.stderr.isatty():
        yield lambda _text: None
        return
    with Console(stderr=True).status("reading the run") as status:
        yield status.update


@reads_record
def explain(
    decision: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN[:WHERE]",
            help="The decision, by default the last: last:6000 (a sequence), 14:05, "
            "last:2025-05-31T14:05 (UTC). RUN may be last, a prefix or FILE#RUN.",
        ),
    ] = None,
    *,
    time: Annotated[
        str | None,
        typer.Option(
            "--time", metavar="T", help="A time at which its bar was open: 14:05, or with a date."
        ),
    ] = None,
    full: Annotated[
        bool,
        typer.Option(
            "--full",
            help="Run the model again: attribution by bar, contribution of each feature, deletion "
            "test.",
        ),
    ] = False,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            metavar="NAME",
            help="Another attribution method: rollout, norm, gradient or flow.",
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
            "--discard",
            metavar="SHARE",
            help="Share of the smallest entries of each layer to drop.",
        ),
    ] = None,
    head_weights: Annotated[
        str | None,
        typer.Option(
            "--head-weights",
            metavar="LIST",
            help="Weights of the heads, such as 1,0,0,0; by layer: 1,0/0,1.",
        ),
    ] = None,
    png: Annotated[
        Path | None,
        typer.Option(
            "--png",
            metavar="FILE",
            help="Draw the price with the attribution under it, as an image.",
        ),
    ] = None,
    page: PageOption = None,
    other: Annotated[
        str | None,
        typer.Option(
            "--with",
            metavar="RUN[:WHERE]",
            help="Compare with another decision, layer by layer.",
        ),
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(
            "--compare", metavar="MODEL", help="Compare with another model on the same bars."
        ),
    ] = None,
    depth: Annotated[
        Path | None,
        typer.Option(
            "--depth",
            metavar="FILE",
            help="Explain an order book of this file instead of a decision.",
        ),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="With --depth: an order-book network."),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="With --depth: the newest order book; by default the last."
        ),
    ] = None,
    db: DatabaseOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Explain a decision: the margin of each gate, what would have changed it, attribution.

    With --depth, show the attribution of an order-book network instead, by level and time.
    """
    if depth is not None or checkpoint is not None or at is not None:
        of_decision = {
            "RUN": decision,
            "--time": time,
            "--full": full,
            "--method": method,
            "--fusion": fusion,
            "--residual": residual is not None,
            "--start-layer": start_layer is not None,
            "--discard": discard is not None,
            "--head-weights": head_weights,
            "--png": png,
            "--page": page,
            "--with": other,
            "--compare": compare,
        }
        reject_without_effect(of_decision, "explain a decision without --depth")
        _explain_book(depth, checkpoint, at, as_json=json)
        return
    from tracepaper.replay.checks.nearest_change import nearest_changes
    from tracepaper.replay.explain.document import explain_decision
    from tracepaper.replay.explain.options import ComparedWith, ModelRequest, TypedMethod

    decision = _with_time(decision or "last", time)
    typed = TypedMethod(method, fusion, residual, start_layer, discard, head_weights)
    write_page = None
    if page is not None:
        from tracepaper.replay.page.export import write_document_page

        write_page = partial(write_document_page, path=page)
    request = ModelRequest(full, typed, ComparedWith(other, compare))
    explain_decision(
        decision, database_of(decision, db, config), request, png=png, write_page=write_page,
        as_json=json, find_nearest=nearest_changes,
    )  # fmt: skip
    if page is not None:
        typer.echo(f"The page is {page}.", err=True)


def _with_time(decision: str, time: str | None) -> str:
    """Return ``RUN:WHERE`` of a run and the option --time."""
    if time is None:
        return decision
    from tracepaper.replay.explain.place import names_place

    if names_place(decision):
        raise ConfigInvalid(f"{decision} names a decision; leave --time or that out.")
    return f"{decision}:{time}"


def _explain_book(
    depth: Path | None, checkpoint: str | None, at: str | None, *, as_json: bool
) -> None:
    """Print the attribution of an order-book network by level and time."""
    from rich.console import Console

    from tracepaper.replay.archive.columns import instant
    from tracepaper.replay.document.terminal import show
    from tracepaper.replay.explain.order_book import book_map
    from tracepaper.storage.checkpoints import locate

    if depth is None or checkpoint is None:
        raise ConfigInvalid("Give --depth FILE and --checkpoint FOLDER together, or neither.")
    at_ms = None if at is None else instant(at)
    level_map = book_map(locate(checkpoint), depth, at_ms, threads=1)
    if as_json:
        print_json(level_map.document())
        return
    console = Console()
    show(console if console.is_terminal else Console(width=WIDE), level_map.parts())


WIDE: Final = 132
"""Columns of the map in a pipe, where the default of 80 would hide shares."""


@reads_record
@answers
def whatif(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN[:WHERE]",
            help="An id, a prefix, last, or FILE#RUN; WHERE, as for explain, shows this decision.",
        ),
    ],
    *,
    settings: SetOption = None,
    drop_gate: Annotated[
        list[str] | None,
        typer.Option("--drop-gate", metavar="NAME", help="Leave this gate out; repeat."),
    ] = None,
    from_: FromOption = None,
    strategy: StrategyOption = None,
    db: DatabaseOption = None,
    config: ConfigOption = None,
) -> CommandAnswer:
    """Run a recorded run again with other keys, without a gate or from later; compare decisions.

    It uses the run's bars and forecasts, in memory: no model is loaded, nothing is written.
    """
    from tracepaper.daemon.config.loading import settings_of
    from tracepaper.replay.backtest.run_spec import RunSpec
    from tracepaper.replay.checks.changed_run import changed_run
    from tracepaper.replay.checks.what_if import as_json, what_if, what_if_document
    from tracepaper.replay.explain.place import locate
    from tracepaper.storage.database.reader import Reader

    place = locate(run, database_of(run, db, config))
    with Reader.open(place.path) as reader:
        changed = changed_run(
            reader,
            place.path,
            place.run_id,
            changes=settings_of(settings_with(settings, strategy)),
            drop_gates=drop_gate or (),
            from_ms=RunSpec(start=from_).from_ms,
        )
        result = what_if(changed, place.sequence)
    return answer_of(what_if_document(result), as_json(result))
