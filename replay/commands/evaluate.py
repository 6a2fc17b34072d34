"""``tracepaper evaluate``: judge a model on untouched time, beside every baseline."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tracepaper.daemon.commands.options import ConfigOption, JsonOption, print_json
from tracepaper.replay.commands.train import DataOption, ThreadsOption

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracepaper.replay.judging.judgement import SpanJudgement
    from tracepaper.replay.judging.spans import NamedSpan
    from tracepaper.replay.training.findings import Finding
    from tracepaper.storage.checkpoints import Checkpoint


def evaluate(
    data: DataOption,
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="A folder, default, or module:Class.")
    ] = "default",
    *,
    start: Annotated[
        str | None, typer.Option("--from", metavar="DATE", help="Judge bars from this date on.")
    ] = None,
    end: Annotated[
        str | None, typer.Option("--to", metavar="DATE", help="Judge bars before this date.")
    ] = None,
    spans: Annotated[
        str | None,
        typer.Option(metavar="A=DATE:DATE,B=…", help="Untouched spans, each judged by itself."),
    ] = None,
    folds: Annotated[
        str | None,
        typer.Option(help="Fit anew on walk:3, rolling:3 or combinatorial:6/2; opens no span."),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write one page that needs no network."),
    ] = None,
    config: ConfigOption = None,
    explained_bars: Annotated[
        int | None,
        typer.Option(min=500, help="Bars to explain, for the gates; what takes minutes."),
    ] = None,
    explanations: Annotated[
        int, typer.Option(min=0, help="Decisions for deletion and insertion curves of bars.")
    ] = 0,
    ablation: Annotated[
        int, typer.Option(min=0, help="Decisions judged with 1/2 to 1/64 of the window.")
    ] = 0,
    permutation: Annotated[
        int, typer.Option(min=0, help="Bars at most on which each feature is permuted.")
    ] = 0,
    attributions: Annotated[
        int, typer.Option(min=0, help="Decisions to compare with captum's attributions.")
    ] = 0,
    intervals: Annotated[
        bool, typer.Option("--intervals", help="Intervals by day: own, conformal, MC dropout.")
    ] = False,
    threads: ThreadsOption = 2,
    json: JsonOption = False,
) -> None:
    """Judge a checkpoint on the bars after its card's calibration, beside every baseline.

    The baselines are those beside the checkpoint; where an older one has none, they are fitted on
    the bars before its training end, if --data has candles of both. Errors come from resampling
    whole calendar days. Each recipe that is judged on a span is counted as one opening of it. With
    --folds the recipe is fitted anew before the untouched time instead. A class of one's own is
    judged after its trained_until, with the options, files and features of the configuration. What
    is asked for with a number is examined on so many decisions, evenly spread; 0 leaves it out.
    """
    from tracepaper.daemon.config.sections import MODULE_CLASS
    from tracepaper.replay.judging.spans import read_spans
    from tracepaper.strategies.errors import ConfigInvalid

    asked = {
        "explanations": explanations,
        "ablation": ablation,
        "permutation": permutation,
        "attributions": attributions,
        "intervals": int(intervals),
    }
    chosen = read_spans(spans, start, end)
    is_class = MODULE_CLASS.match(checkpoint) is not None
    if folds is not None and (is_class or spans or start or end):
        raise ConfigInvalid(
            "--folds fits a checkpoint's recipe anew on the time before its untouched spans; give "
            "it a checkpoint, and no span."
        )
    if folds is not None:
        _refit(checkpoint, data, folds, html, threads=threads, as_json=json)
        return
    findings: list[Finding] = []
    if is_class:
        _refuse_for_class(asked)
        model_id, recipe, every = _of_class(checkpoint, data, config, chosen)
    else:
        model_id, recipe, every, findings = _of_checkpoint(
            checkpoint, data, chosen, asked, threads=threads, bars=explained_bars
        )
    _print(model_id, recipe, every, findings, html, as_json=json)


def _print(
    model_id: str,
    recipe: str,
    every: Sequence[SpanJudgement],
    findings: Sequence[Finding],
    html: Path | None,
    *,
    as_json: bool,
) -> None:
    from tracepaper.daemon.terminal.console import Terminal
    from tracepaper.replay.judging.output import as_document, show, write_page

    if html is not None:
        write_page(model_id, every, html)
    if as_json:
        told = [finding.document() for finding in findings]
        print_json({**as_document(model_id, recipe, every), "findings": told})
        return
    console = Terminal()
    show(console, every)
    for finding in findings:
        console.print(finding.on_terminal())
    if html is not None:
        typer.echo(f"The page is {html}.")


def _loaded(name: str, threads: int) -> tuple[Path, Checkpoint]:
    """Return a checkpoint and its folder; refuse one that cannot be built."""
    from tracepaper.replay.training.pipeline import use_threads
    from tracepaper.storage.checkpoints import load, locate
    from tracepaper.strategies.forecasters.build import build

    use_threads(threads)
    folder = locate(name)
    found = load(folder)
    build(found.card, found.tensors, threads=threads)
    return folder, found


def _of_checkpoint(
    name: str,
    data: list[str],
    spans: Sequence[NamedSpan],
    asked: Mapping[str, int],
    *,
    threads: int,
    bars: int | None,
) -> tuple[str, str, list[SpanJudgement], list[Finding]]:
    """Judge a checkpoint on *spans*; return its id, its recipe's hash and the judgements."""
    from tracepaper.replay.judging.judgement import judge_checkpoint
    from tracepaper.replay.judging.spans import openings_path, recipe_hash
    from tracepaper.replay.training.examination import examined
    from tracepaper.replay.training.fitted import stored_baselines
    from tracepaper.replay.training.material import Material, reading
    from tracepaper.replay.training.pipeline import split_of
    from tracepaper.replay.training.subject import Subject

    folder, found = _loaded(name, threads)
    card = found.card
    material = Material.read(
        data,
        lambda _: split_of(card),
        tuple(card["architecture"]["horizons"]),
        card["features"]["schema_id"],
        stored=stored_baselines(folder, card),
        **reading(card["features"]),
    )
    # First, for they refuse what cannot be had before minutes have passed.
    findings: list[Finding] = []
    if any(asked.values()):
        findings += examined(Subject.of(card, found.tensors, material), asked)
    recipe = recipe_hash(card)
    every = [judge_checkpoint(card, found.tensors, material, span, bars=bars) for span in spans]
    counted = _counted(every, openings_path(folder), recipe, found.id)
    return found.id, recipe, counted, findings


def _refuse_for_class(asked: Mapping[str, int]) -> None:
    """Raise ``ConfigInvalid`` where an examination is *asked* for that needs a checkpoint."""
    from tracepaper.strategies.errors import ConfigInvalid

    for name, count in asked.items():
        if count:
            raise ConfigInvalid(
                f"--{name} examines a checkpoint's network or arrays, which a class does not show;"
                " leave it out."
            )


def _of_class(
    name: str, data: list[str], file: Path | None, spans: Sequence[NamedSpan]
) -> tuple[str, str, list[SpanJudgement]]:
    """Judge the user's class *name*, as *file* configures it."""
    from tracepaper.daemon.config.loading import load
    from tracepaper.daemon.session.user_model import load_model
    from tracepaper.replay.judging.judgement import judge_class
    from tracepaper.replay.judging.spans import openings_path
    from tracepaper.replay.training.material import Material
    from tracepaper.replay.training.own import split_at

    given = load(file, {"model": {"class": name}})
    forecaster = load_model(given, mode="scan")
    material = Material.read(
        data, lambda segments: split_at(segments, forecaster), forecaster.horizons
    )
    every = [judge_class(forecaster, material, span, horizon=given.gate.horizon) for span in spans]
    own = forecaster.model_id
    return own, own, _counted(every, openings_path(None), own, own)


def _counted(
    every: Sequence[SpanJudgement], path: Path, recipe: str, model_id: str
) -> list[SpanJudgement]:
    """Return the judgements with how many recipes opened each span, and keep these openings."""
    from dataclasses import replace

    from tracepaper.replay.judging.spans import SpanOpening, opened

    found = []
    for one in every:
        new = SpanOpening(recipe, model_id, one.symbols, one.from_ms, one.until_ms)
        count, said = opened(path, new)
        found.append(
            replace(one, openings=count, missing=(*one.missing, *([said] if said else [])))
        )
    return found


def _refit(
    name: str, data: list[str], text: str, html: Path | None, *, threads: int, as_json: bool
) -> None:
    """Fit the recipe of a checkpoint anew on folds, and print what they say."""
    from rich.console import Console

    from tracepaper.daemon.terminal.console import Terminal
    from tracepaper.replay.judging.output import documents, show_tables, write_tables
    from tracepaper.replay.judging.refits import refit, tables
    from tracepaper.replay.judging.spans import recipe_hash
    from tracepaper.replay.training.material import Material, reading
    from tracepaper.replay.training.pipeline import split_of

    _, found = _loaded(name, threads)
    card: Mapping[str, Any] = found.card
    material = Material.read(
        data,
        lambda _: split_of(card),
        tuple(card["architecture"]["horizons"]),
        card["features"]["schema_id"],
        **reading(card["features"]),
    )
    made = tables(refit(card, material, text, say=Console(stderr=True).print))
    if html is not None:
        write_tables(f"Folds of {found.id}", made, html)
    if as_json:
        document = {"id": found.id, "recipe": recipe_hash(card), "folds": text}
        print_json({**document, "tables": documents(made)})
        return
    show_tables(Terminal(), made)
