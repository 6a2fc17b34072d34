"""``tracepaper train``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, assert_never

import typer

from tracepaper.daemon.commands.options import JsonOption, print_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tracepaper.replay.learning.recipe import Recipe
    from tracepaper.storage.checkpoints import Checkpoint
    from tracepaper.strategies.errors import ConfigInvalid

DataOption = Annotated[
    list[str],
    typer.Option(
        "--data",
        metavar="PATH",
        help="Candles: PATH or SYMBOL=PATH; of orderbook, depth files; repeat.",
    ),
]
CovariatesOption = Annotated[
    Path | None,
    typer.Option(
        "--covariates", metavar="FILE", help="trading: your own covariates by time, CSV or Parquet."
    ),
]
ThreadsOption = Annotated[int, typer.Option(min=1, help="PyTorch threads.")]

SHARES = (0.65, 0.1, 0.1)
"""Of all bars: training, validation and calibration; the rest stays untouched for the figures."""


def train(
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            metavar="PATH",
            help="Candles: PATH or SYMBOL=PATH; of orderbook, depth files; repeat.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder of the new checkpoint.")
    ] = None,
    *,
    network: Annotated[
        str | None,
        typer.Option(
            help="Kind of network, by default flash; ? lists all. Beside --with FOLDER: a FOLDER."
        ),
    ] = None,
    beside: Annotated[
        str | None,
        typer.Option(
            "--with",
            metavar="KIND|FOLDER",
            help="Train an ensemble: with a tree or glm, or with the one in FOLDER.",
        ),
    ] = None,
    beside_schema: Annotated[
        str | None,
        typer.Option(
            "--with-schema", help="Feature schema of --with, such as tree-1m beside v2-1m."
        ),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="TOML file with every choice, or a checkpoint's card."),
    ] = None,
    print_recipe: Annotated[
        bool, typer.Option("--print-recipe", help="Print the whole recipe; do not train.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="Name on the card.")] = None,
    train_until: Annotated[str | None, typer.Option(help="End of training (date).")] = None,
    validate_until: Annotated[str | None, typer.Option(help="End of validation (date).")] = None,
    calibrate_until: Annotated[
        str | None, typer.Option(help="End of calibration (date); the rest is the test set.")
    ] = None,
    schema: Annotated[
        str | None, typer.Option(help="Feature schema: v1, or v2 or tree for the interval's.")
    ] = None,
    interval: Annotated[
        str | None, typer.Option(help="Interval of the model, then others to train on: 15m,5m,1h.")
    ] = None,
    calendar: Annotated[
        str | None,
        typer.Option(metavar="CODE", help="Shares: the exchange's calendar, such as XNAS."),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Cache of features and labels; by default in ~/.cache."
        ),
    ] = None,
    horizons: Annotated[
        str | None, typer.Option(help="Forecast horizons, in bars or times: 5m,30m,4h.")
    ] = None,
    gate_horizon: Annotated[
        str | None, typer.Option(help="Horizon that the gates use; by default the middle one.")
    ] = None,
    window: Annotated[int | None, typer.Option(help="Bars that one layer attends to.")] = None,
    layers: Annotated[int | None, typer.Option(help="Number of layers.")] = None,
    dim: Annotated[int | None, typer.Option(help="Width of the model.")] = None,
    heads: Annotated[int | None, typer.Option(help="Attention heads.")] = None,
    encoding: Annotated[str | None, typer.Option(help="Position encoding; ? lists all.")] = None,
    clock: Annotated[
        str | None, typer.Option(help="Time features to add, by commas; ? lists all.")
    ] = None,
    mask: Annotated[
        str | None,
        typer.Option(help="flash: mask: window; over whole windows causal, full or blocks."),
    ] = None,
    blocks: Annotated[
        str | None,
        typer.Option(help="flash: bars of a block, then the last, each n-th and the first seen."),
    ] = None,
    norm: Annotated[str | None, typer.Option(help="flash: layer norm, pre or post.")] = None,
    gated: Annotated[
        bool | None, typer.Option(help="flash: each bar's state sharpens or softens its attention.")
    ] = None,
    volatility_gate: Annotated[
        str | None,
        typer.Option(
            metavar="FEATURE", help="flash: scale the attention to a bar by its volatility."
        ),
    ] = None,
    factor: Annotated[
        int | None, typer.Option(help="informer: sampling factor of queries and keys.")
    ] = None,
    distil: Annotated[
        bool | None, typer.Option(help="informer: halve the sequence between layers.")
    ] = None,
    feature_map: Annotated[
        str | None, typer.Option(help="linear: elu, or random features of the softmax.")
    ] = None,
    frames: Annotated[
        str | None, typer.Option(help="multiscale: bars per bar of each timeframe, by commas.")
    ] = None,
    tokens: Annotated[
        str | None, typer.Option(help="multiscale: closed bars of each timeframe, by commas.")
    ] = None,
    modalities: Annotated[
        str | None, typer.Option(help="trading: modalities such as price,volume,time.")
    ] = None,
    covariates: CovariatesOption = None,
    regimes: Annotated[
        int | None, typer.Option(help="trading: regimes of the coming variance, 2 to 7; 0: none.")
    ] = None,
    attention: Annotated[
        str | None, typer.Option(help="crossasset, portfolio: factorised, or joint over windows.")
    ] = None,
    every: Annotated[
        int | None, typer.Option(help="crossasset, portfolio: bars between rebalances, a horizon.")
    ] = None,
    factors: Annotated[
        int | None,
        typer.Option(help="crossasset, portfolio: factors of correlations; 0: none."),
    ] = None,
    dropout: Annotated[float | None, typer.Option(help="Share of activations to drop.")] = None,
    checkpointing: Annotated[
        bool | None, typer.Option(help="flash: recompute activations, to save memory.")
    ] = None,
    quantiles: Annotated[
        str | None, typer.Option(help="Also forecast these quantiles of the return, by commas.")
    ] = None,
    allocation: Annotated[
        bool | None, typer.Option(help="Also learn a position from -1 to 1.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    length: Annotated[int | None, typer.Option(min=64, help="Bars per chunk.")] = None,
    batch: Annotated[int | None, typer.Option(help="Chunks per batch.")] = None,
    windows: Annotated[
        int | None, typer.Option(help="Windows per batch, for networks over whole windows.")
    ] = None,
    accumulate: Annotated[int | None, typer.Option(help="Batches per step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    learned_weights: Annotated[
        bool | None, typer.Option(help="Learn the weights of the losses.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="Precision of products: auto, float32 or bfloat16.")
    ] = None,
    seed: Annotated[
        list[int] | None,
        typer.Option(help="Random seed; repeat for several checkpoints, FOLDER/seed-N."),
    ] = None,
    explained_bars: Annotated[
        int | None, typer.Option(min=500, help="Calibration and test bars to explain.")
    ] = None,
    baselines: Annotated[
        str | None, typer.Option(help="Baselines to fit as well, which takes minutes: lstm.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="PyTorch threads.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an unfinished training.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Train a network on candles, evaluate it on untouched time, and write it with its card.

    Options override the recipe, and the recipe the network's defaults; --print-recipe shows the
    result. All files are split at the same dates. Give all three split dates, or none to split the
    bars 65/10/10 % into training, validation and calibration; the rest is the test set.
    """
    given: dict[str, dict[str, Any]] = {
        "model": {"kind": network, "name": name},
        "architecture": {
            "horizons": horizons,
            "window": window,
            "layers": layers,
            "dim": dim,
            "heads": heads,
            "encoding": encoding,
            "clock": None if clock is None else [name for name in clock.split(",") if name],
            "mask": mask,
            "blocks": None if blocks is None else _wholes("--blocks", blocks),
            "norm": norm,
            "gated": gated,
            "volatility_gate": volatility_gate,
            "factor": factor,
            "distil": distil,
            "feature_map": feature_map,
            "frames": None if frames is None else _wholes("--frames", frames),
            "tokens": None if tokens is None else _wholes("--tokens", tokens),
            "modalities": None if modalities is None else modalities.split(","),
            "regimes": regimes,
            "attention": attention,
            "every": every,
            "factors": factors,
            "dropout": dropout,
            "checkpointing": checkpointing,
            "quantiles": None if quantiles is None else _shares(quantiles),
            "allocation": allocation,
        },
        "training": {
            "steps": steps,
            "length": length,
            "batch": batch,
            "windows": windows,
            "accumulate": accumulate,
            "learning_rate": learning_rate,
            "learned_weights": learned_weights,
            "precision": precision,
            "explained_bars": explained_bars,
            "baselines": None if baselines is None else baselines.split(","),
            "threads": threads,
            "device": device,
        },
        "features": {
            "schema_id": schema,
            "intervals": None if interval is None else interval.split(","),
            "calendar": calendar,
        },
        "calibration": {"horizon": gate_horizon},
        "split": {**_dates(train_until, validate_until, calibrate_until)},
        "ensemble": {"kind": beside, "schema_id": beside_schema},
    }
    trained = [_is_checkpoint(one) for one in (network, beside)]
    if any(trained):
        if not all(trained) or recipe is not None or print_recipe or seed or covariates:
            raise _half_trained()
        _tell([_combine(given, *_required(data, out), cache, threads=threads)], as_json=json)
        return
    recipes = _recipes(recipe, given, seed)
    if print_recipe:
        typer.echo(recipes[0].text(), nl=False)
        return
    files, folder = _required(data, out)
    _tell(_trained(recipes, recipe, files, folder, cache, covariates, resume=resume), as_json=json)


def _trained(
    recipes: Sequence[Recipe],
    file: Path | None,
    data: Sequence[str],
    out: Path,
    cache: Path | None,
    covariates: Path | None,
    *,
    resume: bool,
) -> list[tuple[Path, Checkpoint]]:
    """Train a checkpoint by each recipe, of a *file* or of options."""
    from tracepaper.daemon.clock import SystemClock
    from tracepaper.replay.learning.array_cache import (
        ArrayCache,
        default_folder,
    )
    from tracepaper.replay.learning.estimator import DataRequest
    from tracepaper.replay.learning.training import FitView, require_encoder, train_seeds
    from tracepaper.storage.covariates import read_vectors
    from tracepaper.strategies.extras import require

    first = recipes[0]
    require("exchange_calendars", "--calendar", first.calendar)
    option = "--with tree" if first.members else "--network tree"
    first.estimator.check(first, option if file is None else f"The tree of {file}")
    if covariates is not None:
        require_encoder(first)
    request = DataRequest(
        data,
        ArrayCache(cache or default_folder()),
        None if covariates is None else read_vectors(covariates),
    )
    with FitView(first) as view:
        return train_seeds(
            recipes,
            request,
            out,
            created_ms=SystemClock().wall_ms(),
            observe=view.observe,
            say=view.say,
            resume=resume,
        )


def _tell(made: Sequence[tuple[Path, Checkpoint]], *, as_json: bool) -> None:
    documents = [
        {"folder": str(folder), "id": found.id, "card": found.card} for folder, found in made
    ]
    if as_json and documents:
        print_json(documents[0] if len(documents) == 1 else {"checkpoints": documents})
        return
    for folder, found in made:
        _print(folder, found)


def _required(data: list[str] | None, out: Path | None) -> tuple[list[str], Path]:
    """Return both; raise ``ConfigInvalid`` where one is missing."""
    from tracepaper.strategies.errors import ConfigInvalid

    if not data or out is None:
        missing = "--out FOLDER" if data else "--data PATH"
        raise ConfigInvalid(f"{missing} is missing; give it, or --print-recipe alone.")
    return data, out


def _recipes(
    file: Path | None, given: Mapping[str, Mapping[str, Any]], seeds: Sequence[int] | None
) -> list[Recipe]:
    """Return the recipe of each seed: what is *given*, over *file*, over the defaults."""
    from tracepaper.replay.learning.estimator import as_recipe, recipe_of
    from tracepaper.replay.learning.recipe import over, read_recipe

    document = {} if file is None else as_recipe(read_recipe(file))
    said = {
        name: {key: value for key, value in section.items() if value is not None}
        for name, section in given.items()
    }
    document = over(document, {name: section for name, section in said.items() if section})
    if not seeds:
        return [recipe_of(document)]
    return [recipe_of(over(document, {"training": {"seed": seed}})) for seed in seeds]


def _is_checkpoint(given: str | None) -> bool:
    """Return whether *given* is a folder with a checkpoint, and no kind of one."""
    from tracepaper.replay.learning.estimator import estimators
    from tracepaper.storage.checkpoints import CARD_NAME

    if given is None or not (Path(given) / CARD_NAME).is_file():
        return False
    return given not in estimators()


def _half_trained() -> ConfigInvalid:
    from tracepaper.strategies.errors import ConfigInvalid

    return ConfigInvalid(
        "Halves that are trained are two folders, --network FOLDER --with FOLDER, and nothing "
        "about them is chosen but --name and --threads; leave the other options out."
    )


def _combine(
    given: Mapping[str, Mapping[str, Any]],
    data: list[str],
    out: Path,
    cache: Path | None,
    *,
    threads: int | None,
) -> tuple[Path, Checkpoint]:
    """Combine the halves in two folders; return where the ensemble lies, and itself."""
    from rich.console import Console

    from tracepaper.daemon.clock import SystemClock
    from tracepaper.replay.learning.array_cache import (
        ArrayCache,
        default_folder,
    )
    from tracepaper.replay.learning.estimator import DataRequest
    from tracepaper.replay.learning.fit import use_threads
    from tracepaper.replay.learning.recipe import THREADS
    from tracepaper.replay.learning.training import combine

    kept = {("model", "kind"), ("model", "name"), ("ensemble", "kind")}
    kept |= {("training", "threads"), ("training", "explained_bars")}
    for section, options in given.items():
        if any(v is not None and (section, name) not in kept for name, v in options.items()):
            raise _half_trained()
    use_threads(threads or THREADS)
    found = combine(
        (Path(given["model"]["kind"]), Path(given["ensemble"]["kind"])),
        DataRequest(data, ArrayCache(cache or default_folder())),
        out,
        name=given["model"]["name"] or out.name,
        created_ms=SystemClock().wall_ms(),
        bars=given["training"]["explained_bars"],
        say=Console(stderr=True).print,
    )
    return out, found


def _print(folder: Path, found: Checkpoint) -> None:
    from tracepaper.replay.learning.estimator import DataSource, estimator_of

    typer.echo(f"Wrote {folder}, checkpoint {found.id}.")
    for sentence in found.card["honesty"]["sentences"]:
        typer.echo(f"  {sentence}")
    estimator = estimator_of(found.card)
    match estimator.source:
        case DataSource.CLOSES:
            typer.echo(
                f"Use it: [strategy] name = {estimator.kind!r} and [model] checkpoint = "
                f"{str(folder)!r}, with [sizing] mode = 'equity'."
            )
        case DataSource.ORDER_BOOKS:
            typer.echo(f"Look at it: tracepaper explain --depth FILE --checkpoint {folder}.")
        case DataSource.BARS:
            typer.echo(
                f"Use it: model.checkpoint = {str(folder)!r}, or tracepaper models {folder}."
            )
        case _:
            assert_never(estimator.source)


def _shares(text: str) -> tuple[float, ...]:
    from tracepaper.strategies.errors import ConfigInvalid

    try:
        return tuple(sorted(float(part) for part in text.split(","))) if text else ()
    except ValueError:
        raise ConfigInvalid(
            f"--quantiles is {text!r}; write shares by commas, such as 0.05,0.5,0.95."
        ) from None


def _wholes(option: str, text: str) -> tuple[int, ...]:
    from tracepaper.strategies.errors import ConfigInvalid

    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigInvalid(
            f"{option} is {text!r}; write whole numbers by commas, such as 1,5,15."
        ) from None


def _dates(
    train_until: str | None, validate_until: str | None, calibrate_until: str | None
) -> dict[str, str]:
    """Return the dates by the keys of a card; raise ``ConfigInvalid`` for some without others."""
    from tracepaper.strategies.errors import ConfigInvalid

    names = ("train_until", "validation_until", "calibration_until")
    dates = dict(zip(names, (train_until, validate_until, calibrate_until), strict=True))
    said = {name: date for name, date in dates.items() if date is not None}
    if said and len(said) < len(names):
        raise ConfigInvalid(
            "Give all three of --train-until, --validate-until and --calibrate-until, or none."
        )
    return said
