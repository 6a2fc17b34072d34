"""``tracepaper evaluate``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tracepaper.daemon.commands.options import (
    ColumnsOption,
    CommandAnswer,
    ConfigOption,
    DepthOption,
    HtmlOption,
    answers,
    tell,
)
from tracepaper.replay.commands.train import CovariatesOption, DataOption


@answers
def evaluate(
    data: DataOption,
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="A folder, default, or module:Class.")
    ] = "default",
    *,
    columns: ColumnsOption = None,
    start: Annotated[
        str | None, typer.Option("--from", metavar="DATE", help="Evaluate bars from this date on.")
    ] = None,
    end: Annotated[
        str | None, typer.Option("--to", metavar="DATE", help="Evaluate bars before this date.")
    ] = None,
    holdout: Annotated[
        str | None,
        typer.Option(metavar="A=DATE:DATE,B=…", help="Holdouts, each evaluated by itself."),
    ] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(metavar="MODEL", help="Compare with another model on the same bars; repeat."),
    ] = None,
    html: HtmlOption = None,
    covariates: CovariatesOption = None,
    depth: DepthOption = None,
    config: ConfigOption = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="evaluation.threads, evaluation.explained_bars or, for a class, a section.key of "
            "the configuration; repeat.",
        ),
    ] = None,
    inspect: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=N]",
            help="Inspect N decisions: deletion, context, permutation, attribution; or intervals.",
        ),
    ] = None,
) -> CommandAnswer:
    """Evaluate a model on the bars after its calibration slice, against every baseline.

    Each recipe evaluated on a holdout counts as one use of it. --compare evaluates other models on
    the same bars and tests the differences by day. Your own class is evaluated after its
    trained_until. --inspect takes 200 decisions unless N is given.
    """
    given: dict[str, Any] = {name: value for name, value in locals().items() if value is not None}
    from tracepaper.daemon.terminal.console import for_tables
    from tracepaper.replay import learned

    found = learned.evaluate(**given, progress=True)
    if html is not None:
        tell(f"The page is {html}.")
    return CommandAnswer(found.document, lambda: found.draw(for_tables()))
