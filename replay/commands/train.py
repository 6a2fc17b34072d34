"""``tracepaper train``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from tracepaper.daemon.commands.options import ColumnsOption, CommandAnswer, DepthOption, answers
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.extras import require

if TYPE_CHECKING:
    from tracepaper.replay.document.values import Table
    from tracepaper.replay.learning.recipe import Recipe
    from tracepaper.replay.learning.side_inputs import SideFiles
    from tracepaper.storage.checkpoints import Checkpoint

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
    if init is not None:
        _describe(init, settings or ())
        return None
    if not data:
        raise ConfigInvalid("--data PATH is missing; give it, or --init KIND alone.")
    from tracepaper.daemon.clock import SystemClock
    from tracepaper.replay.commands.folds import each_on
    from tracepaper.replay.learning.fitted import DataRequest, FitRun, read_dataset
    from tracepaper.replay.learning.recipe import (
        as_recipe,
        over,
        read_recipe,
        recipe_of,
        with_settings,
    )
    from tracepaper.replay.learning.side_inputs import SideFiles
    from tracepaper.replay.learning.training import FitView, described, train_seeds

    given = {} if recipe is None else as_recipe(read_recipe(recipe))
    document = with_settings(given, settings or ())
    if seeds is None and (jobs or on):
        raise ConfigInvalid("--jobs and --on say where seeds are trained; give --seeds N too.")
    each = None if on is None and jobs is None else each_on(on, jobs)
    main_recipe = recipe_of(document)
    files = SideFiles(covariates, depth or ())
    _require_extras(main_recipe, recipe, files)
    request = DataRequest(data, files.read(), columns or ())
    if out is None:
        tables = described(read_dataset(main_recipe, request))
        data_document = {table.key: table.documents() for table in tables}
        return CommandAnswer(data_document, lambda: _show(tables))
    first = int(document.get("training", {}).get("seed", 0))
    recipes = [
        recipe_of(over(document, {"training": {"seed": first + nth}})) for nth in range(seeds or 0)
    ] or [main_recipe]
    with FitView(main_recipe) as view:
        run = FitRun(out, "", SystemClock().wall_ms(), view.observe, view.say, resume)
        checkpoints = train_seeds(recipes, request, run, each=each)
    study = [] if seeds is None else _study(checkpoints)
    documents = [
        {"folder": str(folder), "id": checkpoint.id, "card": checkpoint.card}
        for folder, checkpoint in checkpoints
    ]
    all_documents = {"checkpoints": documents, **{table.key: table.documents() for table in study}}

    def print_checkpoints() -> None:
        for folder, checkpoint in checkpoints:
            _print(folder, checkpoint)
        _show(study)

    return CommandAnswer(documents[0] if len(documents) == 1 else all_documents, print_checkpoints)


def _show(tables: Sequence[Table]) -> None:
    from tracepaper.daemon.terminal.console import for_tables
    from tracepaper.replay.document.terminal import show

    show(for_tables(), tables)


def _study(checkpoints: Sequence[tuple[Path, Checkpoint]]) -> list[Table]:
    """Return the means and spreads of the cards of several seeds; none if no figure varies."""
    from tracepaper.replay.learning.card import seeds_table
    from tracepaper.replay.learning.training import draws_by_seed

    cards = [checkpoint.card for _, checkpoint in checkpoints]
    if not draws_by_seed(cards[0]):
        typer.echo("These cards hold no figure that a seed changes.", err=True)
        return []
    return [seeds_table(cards)]


def _require_extras(recipe: Recipe, file: Path | None, files: SideFiles) -> None:
    """Raise ``ConfigInvalid`` for a missing package, and for files that the kind cannot read.

    *file* is the file of the recipe, if there is one.
    """
    require("exchange_calendars", "features.calendar", recipe.calendar)
    key = "ensemble.kind=tree" if recipe.members else "model.kind=tree"
    recipe.check(key if file is None else f"The tree of {file}")
    if any(files) and not recipe.kind.model.takes_covariates:
        raise ConfigInvalid(
            f"A model of the kind {recipe.kind.name} has no encoder for covariates or order books: "
            "they are a modality of the kind trading alone; train that, or leave --covariates and "
            "--depth out."
        )


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


def _print(folder: Path, checkpoint: Checkpoint) -> None:
    from tracepaper.replay.learning.recipe import kind_of
    from tracepaper.strategies.api.model import DataSource

    typer.echo(f"Wrote {folder}, checkpoint {checkpoint.id}.")
    for sentence in checkpoint.card["honesty"]["sentences"]:
        typer.echo(f"  {sentence}")
    kind = kind_of(checkpoint.card)
    typer.echo(
        {
            DataSource.CLOSES: f"Use it: [strategy] name = {kind.name!r} and [model] checkpoint = "
            f"{str(folder)!r}, with [sizing] mode = 'equity'.",
            DataSource.ORDER_BOOKS: "Look at it: tracepaper explain --depth FILE --checkpoint "
            f"{folder}.",
            DataSource.BARS: f"Use it: model.checkpoint = {str(folder)!r}, or tracepaper models "
            f"{folder}.",
        }[kind.model.source]
    )
