"""``tracepaper train``: fit a network on candles, and write a checkpoint with its card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tracepaper.daemon.commands.options import JsonOption, print_json

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tracepaper.replay.training.pipeline import Material, Recipe
    from tracepaper.replay.training.rowwise import RowRecipe
    from tracepaper.replay.training.series import Segment, Split
    from tracepaper.storage.checkpoints import Checkpoint

DataOption = Annotated[
    list[str],
    typer.Option("--data", metavar="PATH", help="Candles: PATH or SYMBOL=PATH; repeat for more."),
]
ThreadsOption = Annotated[int, typer.Option(min=1, help="Threads of PyTorch.")]

NETWORK = "flash"
"""What is trained unless --network names a model of one bar's features."""

SHARES = (0.65, 0.1, 0.1)
"""Of all bars: training, validation and calibration; the rest stays untouched for the figures."""


def train(
    data: DataOption,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the checkpoint goes.")],
    *,
    network: Annotated[
        str, typer.Option(help="flash, or a model of one bar's features: tree, glm.")
    ] = NETWORK,
    name: Annotated[str, typer.Option(help="Its name on the card.")] = "",
    train_until: Annotated[str | None, typer.Option(help="Date; see below.")] = None,
    validate_until: Annotated[str | None, typer.Option(help="Date; see below.")] = None,
    calibrate_until: Annotated[
        str | None, typer.Option(help="Date; all after it stays untouched for the figures.")
    ] = None,
    horizons: Annotated[str, typer.Option(help="Bars ahead, by commas.")] = "5,30,240",
    gate_horizon: Annotated[int, typer.Option(help="The one that the gates judge.")] = 30,
    window: Annotated[int, typer.Option(help="Bars that one layer sees.")] = 1088,
    layers: Annotated[int, typer.Option(help="Layers.")] = 4,
    dim: Annotated[int, typer.Option(help="Width.")] = 64,
    heads: Annotated[int, typer.Option(help="Attention heads.")] = 4,
    encoding: Annotated[
        str, typer.Option(help="Where a bar stands in time; ? prints the names.")
    ] = "rope",
    dropout: Annotated[float, typer.Option(help="Share of activations to drop.")] = 0.1,
    quantiles: Annotated[
        str, typer.Option(help="Quantiles of the return to learn as well, by commas.")
    ] = "",
    allocation: Annotated[
        bool, typer.Option("--allocation", help="Learn a position from -1 to 1 as well.")
    ] = False,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the optimiser.")] = 400,
    length: Annotated[int, typer.Option(min=64, help="Bars of a chunk.")] = 4_352,
    batch: Annotated[int, typer.Option(min=1, help="Chunks of a batch.")] = 2,
    accumulate: Annotated[int, typer.Option(min=1, help="Batches of a step.")] = 1,
    learning_rate: Annotated[float, typer.Option(help="Its peak.")] = 8e-4,
    learned_weights: Annotated[
        bool, typer.Option("--learned-weights", help="Learn the weights of the losses.")
    ] = False,
    seed: Annotated[
        list[int] | None, typer.Option(help="Repeat for several checkpoints, FOLDER/seed-N.")
    ] = None,
    explained_bars: Annotated[
        int, typer.Option(min=500, help="Bars of calibration and test to explain.")
    ] = 120_000,
    threads: ThreadsOption = 2,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    resume: Annotated[bool, typer.Option("--resume", help="Take up an unfinished fit.")] = False,
    json: JsonOption = False,
) -> None:
    """Fit a network on candles, judge it on untouched time, and write it with its card.

    The calendar is cut once for all files: training, validation, calibration, untouched. Give the
    three dates, or none for shares of 65, 10 and 10 % of the bars.
    """
    from tracepaper.daemon.clock import SystemClock
    from tracepaper.replay.training.boosting import BoostingOptions
    from tracepaper.replay.training.fit import FitOptions
    from tracepaper.replay.training.pipeline import Material, Recipe, compare_seeds, use_threads
    from tracepaper.replay.training.rowwise import RowRecipe
    from tracepaper.strategies.networks.flash import FlashConfig

    _refuse_unknown(network)
    use_threads(threads)
    ahead = _numbers(horizons)
    config = FlashConfig(
        dim=dim,
        layers=layers,
        heads=heads,
        window=window,
        horizons=ahead,
        encoding=encoding,
        dropout=dropout,
        quantiles=_shares(quantiles),
        allocation=allocation,
    )
    split = _split(train_until, validate_until, calibrate_until, max(ahead))
    material = Material.read(data, split, ahead)
    seeds = seed or [0]
    folders = [out] if len(seeds) == 1 else [out / f"seed-{number}" for number in seeds]
    made: list[Checkpoint] = []
    for number, folder in zip(seeds, folders, strict=True):
        created = SystemClock().wall_ms()
        if network != NETWORK:
            known_as = name or out.name
            gates = (gate_horizon, created, explained_bars)
            made.append(
                _fit_rows(
                    material,
                    RowRecipe(known_as, network, *gates, BoostingOptions(seed=number), threads),
                    folder,
                )
            )
            continue
        options = FitOptions(
            steps=steps,
            batch=batch,
            length=length,
            accumulate=accumulate,
            learning_rate=learning_rate,
            learned_weights=learned_weights,
            seed=number,
        )
        recipe = Recipe(
            name or out.name, config, options, gate_horizon, created, explained_bars, device
        )
        made.append(_fit(material, recipe, folder, resume=resume))
    if len(seeds) > 1 and network == NETWORK:
        made = compare_seeds(folders)
    documents = [
        {"folder": str(folder), "id": found.id, "card": found.card}
        for folder, found in zip(folders, made, strict=True)
    ]
    if json:
        print_json(documents[0] if len(documents) == 1 else {"checkpoints": documents})
        return
    for folder, found in zip(folders, made, strict=True):
        _print(folder, found)


def _fit(material: Material, recipe: Recipe, folder: Path, *, resume: bool) -> Checkpoint:
    from tracepaper.replay.training.pipeline import train as fit
    from tracepaper.replay.training.show import FitView

    with FitView(recipe.options.steps) as view:
        return fit(material, recipe, folder, observe=view.observe, say=view.say, resume=resume)


def _fit_rows(material: Material, recipe: RowRecipe, folder: Path) -> Checkpoint:
    from rich.console import Console

    from tracepaper.replay.training.rowwise import train_rows

    return train_rows(material, recipe, folder, say=Console(stderr=True).print)


def _refuse_unknown(network: str) -> None:
    from tracepaper.strategies.errors import ConfigInvalid
    from tracepaper.strategies.forecasters.row_models import ROW_KINDS

    if network not in (known := (NETWORK, *ROW_KINDS)):
        raise ConfigInvalid(f"--network is {network!r}; choose one of: {', '.join(known)}.")


def _print(folder: Path, found: Checkpoint) -> None:
    typer.echo(f"Wrote {folder}, checkpoint {found.id}.")
    for sentence in found.card["honesty"]["sentences"]:
        typer.echo(f"  {sentence}")
    typer.echo(f"Use it: model.checkpoint = {str(folder)!r}, or tracepaper models {folder}.")


def _numbers(text: str) -> tuple[int, ...]:
    from tracepaper.strategies.errors import ConfigInvalid

    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise ConfigInvalid(f"--horizons is {text!r}; write bars by commas, such as 5,30,240.")
    return tuple(sorted(int(part) for part in parts))


def _shares(text: str) -> tuple[float, ...]:
    from tracepaper.strategies.errors import ConfigInvalid

    try:
        return tuple(sorted(float(part) for part in text.split(","))) if text else ()
    except ValueError:
        raise ConfigInvalid(
            f"--quantiles is {text!r}; write shares by commas, such as 0.05,0.5,0.95."
        ) from None


def _split(
    train_until: str | None,
    validate_until: str | None,
    calibrate_until: str | None,
    embargo_bars: int,
) -> Callable[[Sequence[Segment]], Split]:
    from tracepaper.replay.training.series import Split, by_shares, date_ms
    from tracepaper.strategies.errors import ConfigInvalid

    dates = [text for text in (train_until, validate_until, calibrate_until) if text is not None]
    if not dates:
        return lambda segments: by_shares(segments, embargo_bars=embargo_bars, shares=SHARES)
    if len(dates) < len(SHARES):
        raise ConfigInvalid(
            "Give all three of --train-until, --validate-until and --calibrate-until, or none."
        )
    first, second, third = map(date_ms, dates)
    return lambda _: Split(first, second, third, embargo_bars)
