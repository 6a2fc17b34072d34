"""``tracepaper evaluate``: judge a model on untouched time, beside every baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tracepaper.daemon.commands.options import ConfigOption, JsonOption, print_json
from tracepaper.replay.commands.train import DataOption, ThreadsOption

if TYPE_CHECKING:
    from tracepaper.replay.training.findings import Finding


def evaluate(
    data: DataOption,
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="A folder, default, or module:Class.")
    ] = "default",
    *,
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
    the bars before its training end, so --data needs candles of both. Errors come from resampling
    whole calendar days. A class of one's own is judged after its trained_until, with the options,
    files and features of the configuration. What is asked for with a number is examined on so many
    decisions, evenly spread over these bars; 0 leaves it out.
    """
    from tracepaper.daemon.config.sections import MODULE_CLASS

    asked = {
        "explanations": explanations,
        "ablation": ablation,
        "permutation": permutation,
        "attributions": attributions,
        "intervals": int(intervals),
    }
    if MODULE_CLASS.match(checkpoint):
        _refuse_for_class(asked)
        _evaluate_class(checkpoint, data, config, as_json=json)
        return
    _evaluate_checkpoint(checkpoint, data, asked, explained_bars, threads=threads, as_json=json)


def _evaluate_checkpoint(
    name: str,
    data: list[str],
    asked: Mapping[str, int],
    explained_bars: int | None,
    *,
    threads: int,
    as_json: bool,
) -> None:
    """Judge the checkpoint called *name*, and examine it as *asked*."""
    from tracepaper.replay.training.ensemble import evaluated_ensemble
    from tracepaper.replay.training.examination import examined
    from tracepaper.replay.training.fitted import stored_baselines
    from tracepaper.replay.training.material import Material, reading
    from tracepaper.replay.training.pipeline import evaluated, split_of, use_threads
    from tracepaper.replay.training.rowwise import evaluated_rows
    from tracepaper.replay.training.subject import Subject
    from tracepaper.storage.checkpoints import load, locate
    from tracepaper.strategies.forecasters.build import build, is_ensemble, row_kind

    use_threads(threads)
    folder = locate(name)
    found = load(folder)
    card = found.card
    build(card, found.tensors, threads=threads)  # refuses a card that cannot be
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
    if is_ensemble(card):
        judged = evaluated_ensemble(card, found.tensors, material)
    elif row_kind(card) is None:
        judged = evaluated(card, found.tensors, material, bars=explained_bars)
    else:
        judged = evaluated_rows(card, found.tensors, material)
    figures, sentences = judged["figures"], judged["honesty"]["sentences"]
    if as_json:
        told = [finding.document() for finding in findings]
        print_json({"id": found.id, "figures": figures, "sentences": sentences, "findings": told})
    else:
        _show(figures, sentences, findings)


def _refuse_for_class(asked: Mapping[str, int]) -> None:
    """Raise ``ConfigInvalid`` where an examination is *asked* for that needs a checkpoint."""
    from tracepaper.strategies.errors import ConfigInvalid

    for name, count in asked.items():
        if count:
            raise ConfigInvalid(
                f"--{name} examines a checkpoint's network or arrays, which a class does not show;"
                " leave it out."
            )


def _evaluate_class(name: str, data: list[str], file: Path | None, *, as_json: bool) -> None:
    """Judge the user's class *name*, as *file* configures it."""
    from tracepaper.daemon.config.loading import load
    from tracepaper.daemon.session.user_model import load_model
    from tracepaper.replay.training.material import Material
    from tracepaper.replay.training.own import evaluate_own, split_at

    given = load(file, {"model": {"class": name}})
    forecaster = load_model(given, mode="scan")
    material = Material.read(
        data, lambda segments: split_at(segments, forecaster), forecaster.horizons
    )
    figures, sentences = evaluate_own(forecaster, material, horizon=given.gate.horizon)
    if as_json:
        print_json({"id": forecaster.model_id, "figures": figures, "sentences": sentences})
    else:
        _show(figures, sentences)


def _show(
    figures: Mapping[str, Any], sentences: Sequence[str], findings: Sequence[Finding] = ()
) -> None:
    from tracepaper.daemon.terminal.console import Terminal
    from tracepaper.replay.training.show import figure_tables, gate_table

    console = Terminal()
    for table in (*figure_tables(figures), gate_table(figures["gates"])):
        console.print(table)
    for finding in findings:
        console.print(finding.on_terminal())
    for sentence in sentences:
        console.print(f"• {sentence}", markup=False)
