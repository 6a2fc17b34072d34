"""``tracepaper train``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from tracepaper.daemon.commands.options import ColumnsOption, CommandAnswer, DepthOption, answers
from tracepaper.strategies.errors import ConfigInvalid

_DATA: Final = typer.Option(
    "--data",
    metavar="PATH",
    help="Candles: PATH or SYMBOL=PATH; for kind orderbook, depth files; repeat.",
)
DataOption = Annotated[list[str], _DATA]
JobsOption = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Processes, or workers of Ray.")
]
OnOption = Annotated[str | None, typer.Option(metavar="PLACE", help="local, or ray (RAY_ADDRESS).")]
CovariatesOption = Annotated[
    Path | None,
    typer.Option("--covariates", metavar="FILE", help="For kind trading: your own covariates."),
]


@answers
def train(
    recipe: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RECIPE]", help="TOML file with every choice, or a checkpoint's card."
        ),
    ] = None,
    *,
    data: Annotated[list[str] | None, _DATA] = None,
    columns: ColumnsOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder of the new checkpoint; without it only the data are shown.",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A key of the recipe: model.kind=lstm, layers=4, training.steps=800; repeat.",
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            min=2, metavar="N", help="Train N seeds, starting at the recipe's, into FOLDER/seed-N."
        ),
    ] = None,
    jobs: JobsOption = None,
    on: OnOption = None,
    covariates: CovariatesOption = None,
    depth: DepthOption = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an unfinished training.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a finished checkpoint in FOLDER.")
    ] = False,
    init: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="Print the recipe of a kind or a file, with keys explained; ? lists the kinds.",
        ),
    ] = None,
) -> CommandAnswer | None:
    """Train a model on candles, evaluate it on untouched bars, and write it with its card.

    --set overrides RECIPE, which overrides the defaults of the kind (flash, unless model.kind is
    set); a key without a section is of the architecture. --init KIND prints a recipe to begin with.
    Without --out the command prints the data that it would train on. All files are split at the
    same dates: set split.train_until, split.validation_until and split.calibration_until, or none
    to split the bars 65/10/10 %; the rest is the test set.
    """
    given: dict[str, Any] = {name: value for name, value in locals().items() if value is not None}
    if init is not None:
        _describe(init, settings or ())
        return None
    if not data:
        raise ConfigInvalid("--data PATH is missing; give it, or --init KIND alone.")
    from tracepaper.daemon.terminal.console import for_tables
    from tracepaper.replay import learned

    found = learned.train(**given, progress=True)
    return CommandAnswer(found.document, lambda: found.draw(for_tables()))


def _describe(name: str, settings: Sequence[str]) -> None:
    """Print the recipe of a kind or a file with every key explained; ``?`` lists the kinds."""
    from tracepaper.replay.learning.recipe import (
        as_recipe,
        commented,
        kind_of,
        kinds,
        read_recipe,
        recipe_of,
        with_settings,
    )

    if name == "?":
        for kind in kinds().values():
            typer.echo(f"{kind.name:<12}{kind.model.summary}")
        return
    document: Mapping[str, Any] = {"model": {"kind": name}}
    if name not in kinds() and Path(name).is_file():
        document = as_recipe(read_recipe(Path(name)))
    document = with_settings(document, settings)
    kind = kind_of(document, is_member=True)
    typer.echo(commented(recipe_of(document).document(), kind), nl=False)
