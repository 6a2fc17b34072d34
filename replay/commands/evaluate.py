"""``tracepaper evaluate``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from tracepaper.daemon.commands.options import (
    ColumnsOption,
    ConfigOption,
    DepthOption,
    HtmlOption,
    JsonOption,
    print_json,
)
from tracepaper.replay.commands.folds import each_on, folds_of, print_folds
from tracepaper.replay.commands.train import CovariatesOption, DataOption, JobsOption, OnOption
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid
from tracepaper.strategies.extras import require

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracepaper.daemon.config.loading import Given
    from tracepaper.daemon.session.user_model import UserForecaster
    from tracepaper.replay.document.values import Table
    from tracepaper.replay.learning.dataset import Dataset
    from tracepaper.replay.learning.fitted import DataRequest, FittedModel
    from tracepaper.replay.learning.judge.gates import Judgement
    from tracepaper.replay.learning.openings import NamedSpan
    from tracepaper.replay.learning.side_inputs import SideFiles, SideInputs
    from tracepaper.storage.checkpoints import Checkpoint
    from tracepaper.strategies.api.model import DataSource


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
        typer.Option(metavar="A=DATE:DATE,B=…", help="Untouched spans, each evaluated by itself."),
    ] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(metavar="MODEL", help="Compare with another model on the same bars; repeat."),
    ] = None,
    folds: Annotated[
        str | None,
        typer.Option(help="Train again on walk:3, rolling:3 or combinatorial:6/2; opens no span."),
    ] = None,
    ablate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE", help="With --folds: the effect of a change of the recipe; repeat."
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
            help="evaluation.threads, evaluation.explained_bars, or a section.key of the "
            "configuration for a class; repeat.",
        ),
    ] = None,
    inspect: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=N]",
            help="Inspect N decisions: deletion, context, permutation, attribution; or intervals.",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Evaluate a model on the bars after its calibration, against every baseline.

    Each recipe evaluated on a span counts as one opening of it; --folds trains
    it again on the time before instead. --compare asks other models about the
    same bars and tests the differences by day. A class of your own is evaluated
    after its trained_until. --inspect takes 200 decisions unless N is given.
    """
    from tracepaper.daemon.config.loading import with_settings
    from tracepaper.daemon.config.values import MODULE_CLASS
    from tracepaper.replay.learning.inspection.inspections import read_inspections
    from tracepaper.replay.learning.openings import read_spans
    from tracepaper.replay.learning.recipe import evaluation_options
    from tracepaper.strategies.api.model import DataSource

    inspections = read_inspections(inspect or ())
    require("captum", "--inspect attribution", inspections.get("attribution"))
    options, others = evaluation_options(settings or ())
    given = with_settings(config, others)
    source = _source(checkpoint)
    of_books = source == DataSource.ORDER_BOOKS
    inspected: dict[str, object] = {f"inspect {name}": count for name, count in inspections.items()}
    examined = {**inspected, "set evaluation.explained_bars": options.explained_bars or 0}
    if of_books:
        others_given = {
            "columns": columns, "config": config, "set": others, "covariates": covariates,
        }  # fmt: skip
        _refuse(
            examined | others_given | {"depth": depth},
            f"is for models of bars, and {checkpoint} reads order books; leave it out, and see "
            f"where it looked by `tracepaper explain --depth FILE --checkpoint {checkpoint}`.",
        )
    elif source == DataSource.CLOSES:
        _refuse(
            examined,
            f"examines what a model says of one instrument's bars, and {checkpoint} answers for "
            "all symbols of a close; leave it out, and see where it looked by `tracepaper explain "
            "RUN --full`.",
        )
    chosen = read_spans(holdout, start, end)
    is_class = MODULE_CLASS.match(checkpoint) is not None
    if others and not any(map(MODULE_CLASS.match, (checkpoint, *(compare or ())))):
        raise ConfigInvalid("--set configures a class of your own; leave it out, or name a class.")
    _check_folds(
        folds, ablate, jobs or on, is_else=bool(is_class or holdout or start or end or compare)
    )
    each = each_on(on, jobs)
    if untrained := _untrained(checkpoint):
        _tell_untrained(untrained, as_json=json)
        return
    from tracepaper.replay.learning.fitted import DataRequest
    from tracepaper.replay.learning.side_inputs import SideFiles

    request, files = DataRequest(data, columns=columns or ()), SideFiles(covariates, depth or ())
    if folds is not None:
        inputs = files.read()
        _, model = _loaded(checkpoint, options.threads, inputs)
        folds_judged = folds_of(model, request._replace(inputs=inputs), folds, ablate or (), each)
        print_folds(folds_judged, html, as_json=json)
        return
    for name in compare or ():
        _refuse_other_source(checkpoint, source, name)
    if is_class:
        _refuse(
            inspected | {"covariates": covariates, "depth": depth},
            "examines a checkpoint's network or arrays, which a class does not show; leave it out.",
        )
    reading = _Reading(request, files, given, options.threads)
    judged = _judged(reading, checkpoint, chosen, inspections, options.explained_bars)
    for name in compare or ():
        judged = _with_rival(judged, name, reading)
    _print(judged, html, as_json=json)


def _check_folds(folds: str | None, ablate: object, elsewhere: object, *, is_else: bool) -> None:
    """Refuse --folds beside what *is_else* asked, and --ablate without them."""
    if folds is not None and is_else:
        raise ConfigInvalid(
            "--folds fits a checkpoint's recipe anew on the time before its untouched spans; give "
            "it a checkpoint, and no span nor --compare."
        )
    if elsewhere and folds is None:
        raise ConfigInvalid("--jobs and --on say where folds are fitted; give --folds as well.")
    if ablate and folds is None:
        raise ConfigInvalid("--ablate is fitted anew on folds; give --folds walk:1 as well.")


def _source(name: str) -> DataSource:
    """Return what the checkpoint *name* reads; a class of one's own reads bars."""
    from tracepaper.replay.learning.recipe import kind_of
    from tracepaper.storage.checkpoints import is_checkpoint, locate, read_card
    from tracepaper.strategies.api.model import DataSource

    folder = locate(name)
    return kind_of(read_card(folder)).model.source if is_checkpoint(folder) else DataSource.BARS


def _refuse_other_source(name: str, source: DataSource, other: str) -> None:
    """Raise ``ConfigInvalid`` where one of both models is of order books, and one of bars."""
    from tracepaper.strategies.api.model import DataSource

    kinds = [kind == DataSource.ORDER_BOOKS for kind in (source, _source(other))]
    if kinds[0] is not kinds[1]:
        raise ConfigInvalid(
            f"--compare {other}: of it and {name} one forecasts the mid of an order book and one "
            "bars; name two models of order books, or two of bars."
        )


def _refuse(options: Mapping[str, object], why: str) -> None:
    """Raise ``ConfigInvalid`` for the first of *options* that is given, with *why*."""
    for option, value in options.items():
        if value:
            raise ConfigInvalid(f"--{option} {why}")


class _ModelJudgement(NamedTuple):
    """One model's judgement of every span, and the others beside it by name and id."""

    model_id: str
    recipe: str  # its hash
    interval_ms: int
    every: list[Judgement]
    findings: Sequence[Table] = ()
    compared: tuple[tuple[str, str], ...] = ()


def _print(judged: _ModelJudgement, html: Path | None, *, as_json: bool) -> None:
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
    if as_json:
        findings = [
            {"name": of.key, "title": of.title, "note": "".join(of.notes), "rows": of.records()}
            for of in judged.findings
        ]
        others = [{"name": name, "id": other} for name, other in judged.compared]
        print_json(
            {**as_document(model_id, judged.recipe, every), "findings": findings, "beside": others}
        )
        return
    console = for_tables()
    show(console, every, judged.findings)
    if html is not None:
        typer.echo(f"The page is {html}.")


def _untrained(name: str) -> Sequence[str]:
    """Return why nothing can be said of the checkpoint *name*; empty where it can."""
    from tracepaper.storage.checkpoints import is_checkpoint, locate, read_card

    folder = locate(name)
    card = read_card(folder) if is_checkpoint(folder) else {"model": {}}
    return card["honesty"]["sentences"] if card["model"].get("trained") is False else ()


def _takes_files(card: Mapping[str, Any]) -> bool:
    """Return whether the model of *card* needs files beside candles."""
    from tracepaper.strategies.book_features import reading_of
    from tracepaper.strategies.covariates import takes_vectors

    return takes_vectors(card) or reading_of(card) is not None


def _loaded(name: str, threads: int, inputs: SideInputs | None) -> tuple[Path, Checkpoint]:
    """Return a checkpoint and its folder; refuse one that cannot be built, or files not its own."""
    from tracepaper.replay.learning.fit import use_threads
    from tracepaper.replay.learning.recipe import kind_of
    from tracepaper.replay.learning.side_inputs import source_for
    from tracepaper.storage.checkpoints import load, locate
    from tracepaper.strategies.api.model import DataSource
    from tracepaper.strategies.forecasters.build import RunOptions, build

    use_threads(threads)
    folder = locate(name)
    model = load(folder)
    kind = kind_of(model.card)
    if kind.model.source != DataSource.BARS:
        if inputs is not None:
            raise ConfigInvalid(f"{name} was trained on bars alone; leave other files out.")
        _ = kind.load(model.card, model.tensors).network  # reading it is the check
        return folder, model
    source = source_for(model.card, inputs)
    build(model.card, model.tensors, RunOptions(threads=threads, vectors=source))
    return folder, model


class _Reading(NamedTuple):
    """How models and their data are read."""

    request: DataRequest
    files: SideFiles
    config: Given  # of classes
    threads: int


class _Subject(NamedTuple):
    """A model, and what it is judged on."""

    model: FittedModel
    data: Any  # what its kind reads
    model_id: str
    recipe: str  # its hash
    folder: Path | None  # None of a class


def _read(
    reading: _Reading, name: str, *, interval_ms: int | None = None, is_rival: bool = False
) -> _Subject:
    """Read a checkpoint or a class; files that a compared model does not take are not its own."""
    from tracepaper.daemon.config.values import MODULE_CLASS
    from tracepaper.replay.learning.fitted import read_dataset
    from tracepaper.replay.learning.judge.judge import ClassModel
    from tracepaper.replay.learning.recipe import recipe_of
    from tracepaper.storage.checkpoints import locate, read_card

    if MODULE_CLASS.match(name) is not None:
        forecaster, material, horizon = _class(
            name, reading.request, reading.config, interval_ms=interval_ms
        )
        name = forecaster.model_id  # which stands for its recipe
        return _Subject(ClassModel.of(forecaster, horizon), material, name, name, None)
    if is_rival and (untrained := _untrained(name)):
        raise ConfigInvalid(f"--compare {name}: {untrained[0]}")
    takes_none = is_rival and not _takes_files(read_card(locate(name)))
    inputs = None if takes_none else reading.files.read()
    folder, checkpoint = _loaded(name, reading.threads, inputs)
    card, recipe = checkpoint.card, recipe_of(checkpoint.card)
    kind, request = recipe.kind, reading.request._replace(inputs=inputs)
    data = read_dataset(recipe, request, card, folder=folder)
    model = kind.load(card, checkpoint.tensors)
    return _Subject(model, data, checkpoint.id, recipe.hash, folder)


def _judged(
    reading: _Reading,
    name: str,
    spans: Sequence[NamedSpan],
    inspections: Mapping[str, int],
    bars: int | None,
) -> _ModelJudgement:
    """Judge the model *name* on every span, and make its *inspections*."""
    from tracepaper.replay.learning.inspection.inspections import examined
    from tracepaper.replay.learning.inspection.model import Subject
    from tracepaper.replay.learning.judge.judge import counted, judge_model

    of = _read(reading, name)
    # First, for they refuse what cannot be had before minutes have passed.
    findings = list(examined(Subject.of(of.model, of.data), inspections)) if inspections else []
    every = [judge_model(of.model, of.data, span, bars=bars) for span in spans]
    every = counted(every, of.folder, of.recipe, of.model_id)
    return _ModelJudgement(of.model_id, of.recipe, of.data.interval_ms, every, findings)


def _class(
    name: str, request: DataRequest, file: Given, *, interval_ms: int | None = None
) -> tuple[UserForecaster, Dataset, int]:
    """Return the user's class, its candles, and the horizon of the gates."""
    from tracepaper.daemon.config.loading import load
    from tracepaper.daemon.session.user_model import load_model
    from tracepaper.replay.learning.dataset import Dataset
    from tracepaper.replay.learning.judge.judge import split_at
    from tracepaper.strategies.features.rows import interval_of
    from tracepaper.strategies.units import interval_text

    given = load(file, {"model": {"class": name}})
    forecaster = load_model(given, mode="scan")
    material = Dataset.read(
        request.paths,
        lambda segments: split_at(segments, forecaster),
        forecaster.horizons,
        columns=request.columns,
        intervals=() if interval_ms is None else (interval_ms,),
    )
    schema = forecaster.card["features"]["schema_id"]
    if interval_of(schema) not in (0, material.interval_ms):
        bars = interval_text(material.interval_ms)
        raise ConfigInvalid(
            f"{name} sees features {schema}, and the candles are bars of {bars}; write "
            f"--set market.interval={bars}."
        )
    return forecaster, material, given.gate.horizon


def _with_rival(judged: _ModelJudgement, name: str, reading: _Reading) -> _ModelJudgement:
    """Return *judged* with what the model *name* says of the same bars, which opens each span."""
    from tracepaper.replay.learning.judge.judge import (
        counted,
        require_interval,
        rival_forecasts,
    )

    of = _read(reading, name, interval_ms=judged.interval_ms, is_rival=True)
    if of.model_id in (judged.model_id, *(other for _, other in judged.compared)):
        raise ConfigInvalid(f"--compare {name} is a model that is judged already; leave it out.")
    require_interval(name, of.data, judged.interval_ms)
    try:
        every = [
            judgement.compared_with(name, rival_forecasts(of.model, of.data, judgement))
            for judgement in judged.every
        ]
    except (ConfigInvalid, DataInvalid) as error:
        raise ConfigInvalid(f"--compare {name}: {str(error).rstrip('.')}.") from None
    opened = counted(every, of.folder, of.recipe, of.model_id)
    every = [
        replace(judgement, openings=before.openings)
        for judgement, before in zip(opened, judged.every, strict=True)
    ]
    return judged._replace(every=every, compared=(*judged.compared, (name, of.model_id)))


def _tell_untrained(sentences: Sequence[str], *, as_json: bool) -> None:
    if as_json:
        print_json({"says": list(sentences), "figures": {}})
        return
    for sentence in sentences:
        typer.echo(sentence)
