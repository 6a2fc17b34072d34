"""``tracepaper evaluate``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
from tracepaper.replay.commands.folds import answer_of_folds, each_on
from tracepaper.replay.commands.train import CovariatesOption, DataOption, JobsOption, OnOption
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.extras import require

if TYPE_CHECKING:
    from tracepaper.replay.learning.judge.judge import ModelJudgement


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
    folds: Annotated[
        str | None,
        typer.Option(
            help="Train again on walk:3, rolling:3 or combinatorial:6/2; uses no holdout."
        ),
    ] = None,
    ablate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="With --folds: measure the effect of changing a key of the recipe; repeat.",
        ),
    ] = None,
    jobs: JobsOption = None,
    on: OnOption = None,
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

    Each recipe evaluated on a holdout counts as one use of it; --folds instead trains the recipe
    again on the time before. --compare evaluates other models on the same bars and tests the
    differences by day. Your own class is evaluated after its trained_until. --inspect takes 200
    decisions unless N is given.
    """
    from tracepaper.daemon.config.loading import with_settings
    from tracepaper.daemon.config.values import MODULE_CLASS
    from tracepaper.replay.learning.fitted import DataRequest
    from tracepaper.replay.learning.holdouts import read_holdouts
    from tracepaper.replay.learning.inspection.inspections import read_inspections
    from tracepaper.replay.learning.judge.folds import folds_of
    from tracepaper.replay.learning.judge.judge import (
        ModelReader,
        judge_named,
        source_of,
        untrained,
    )
    from tracepaper.replay.learning.recipe import evaluation_options
    from tracepaper.replay.learning.side_inputs import SideFiles
    from tracepaper.strategies.api.model import DataSource

    inspections = read_inspections(inspect or ())
    require("captum", "--inspect attribution", inspections.get("attribution"))
    options, others = evaluation_options(settings or ())
    given = with_settings(config, others)
    source = source_of(checkpoint)
    inspected: dict[str, object] = {f"inspect {name}": count for name, count in inspections.items()}
    examined = {**inspected, "set evaluation.explained_bars": options.explained_bars or 0}
    if source == DataSource.ORDER_BOOKS:
        bar_options = {
            "columns": columns, "config": config, "set": others, "covariates": covariates,
        }  # fmt: skip
        _reject(
            examined | bar_options | {"depth": depth},
            f"is for models of bars, and {checkpoint} reads order books; leave it out, and see "
            f"where it looked by `tracepaper explain --depth FILE --checkpoint {checkpoint}`.",
        )
    elif source == DataSource.CLOSES:
        _reject(
            examined,
            f"examines what a model says of one instrument's bars, and {checkpoint} answers for "
            "all symbols of a close; leave it out, and see where it looked by `tracepaper explain "
            "RUN --full`.",
        )
    holdouts = read_holdouts(holdout, start, end)
    is_class = MODULE_CLASS.match(checkpoint) is not None
    if others and not any(map(MODULE_CLASS.match, (checkpoint, *(compare or ())))):
        raise ConfigInvalid("--set configures a class of your own; leave it out, or name a class.")
    _check_folds(
        folds, ablate, jobs or on, is_other=bool(is_class or holdout or start or end or compare)
    )
    each = each_on(on, jobs)
    if sentences := untrained(checkpoint):
        return CommandAnswer({"says": list(sentences), "figures": {}}, "\n".join(sentences))
    request, files = DataRequest(data, columns=columns or ()), SideFiles(covariates, depth or ())
    reader = ModelReader(request, files, given, options.threads)
    if folds is not None:
        inputs = files.read()
        _, model = reader.checkpoint(checkpoint, inputs)
        folds_judged = folds_of(model, request._replace(inputs=inputs), folds, ablate or (), each)
        return answer_of_folds(folds_judged, html)
    if is_class:
        _reject(
            inspected | {"covariates": covariates, "depth": depth},
            "examines a checkpoint's network or arrays, which a class does not show; leave it out.",
        )
    bars = options.explained_bars
    judged = judge_named(reader, checkpoint, holdouts, inspections, bars, rivals=compare or ())
    return _answer(judged, html)


def _check_folds(folds: str | None, ablate: object, workers: object, *, is_other: bool) -> None:
    """Reject --folds with a class, holdout or comparison (*is_other*), and its options alone."""
    if folds is not None and is_other:
        raise ConfigInvalid(
            "--folds trains a checkpoint's recipe again on the time before its holdouts; name a "
            "checkpoint, and leave out holdouts and --compare."
        )
    if workers and folds is None:
        raise ConfigInvalid("--jobs and --on apply to folds only; give --folds as well.")
    if ablate and folds is None:
        raise ConfigInvalid("--ablate is fitted anew on folds; give --folds walk:1 as well.")


def _reject(options: Mapping[str, object], reason: str) -> None:
    """Raise ``ConfigInvalid`` with *reason* for the first of *options* that is given."""
    for option, value in options.items():
        if value:
            raise ConfigInvalid(f"--{option} {reason}")


def _answer(judged: ModelJudgement, html: Path | None) -> CommandAnswer:
    from tracepaper.daemon.terminal.console import for_tables
    from tracepaper.replay.learning.judge.tables import (
        as_document,
        judgement_document,
        show,
    )

    model_id, every = judged.model_id, judged.every
    if html is not None:
        from tracepaper.replay.page.export import write_document_page

        write_document_page(judgement_document(model_id, every), html)
        tell(f"The page is {html}.")
    findings = [
        {
            "name": table.key, "title": table.title, "note": "".join(table.notes),
            "rows": table.records(),
        }
        for table in judged.findings
    ]  # fmt: skip
    others = [{"name": name, "id": other} for name, other in judged.compared]
    return CommandAnswer(
        {**as_document(model_id, judged.recipe, every), "findings": findings, "beside": others},
        lambda: show(for_tables(), every, judged.findings),
    )
