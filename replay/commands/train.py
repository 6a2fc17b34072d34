"""``tracepaper train``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tracepaper.daemon.commands.options import JsonOption, print_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tracepaper.replay.training.aligned_pipeline import AlignedRecipe
    from tracepaper.replay.training.ensemble import EnsembleRecipe
    from tracepaper.replay.training.material import Material
    from tracepaper.replay.training.recipe import Recipe
    from tracepaper.replay.training.rowwise import RowRecipe
    from tracepaper.replay.training.series import Segment, Split
    from tracepaper.storage.checkpoints import Checkpoint
    from tracepaper.strategies.errors import ConfigInvalid

    OwnRecipe = Recipe | RowRecipe | EnsembleRecipe
    AnyRecipe = OwnRecipe | AlignedRecipe

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
    from tracepaper.replay.commands.books import train_books
    from tracepaper.strategies.order_book import KIND

    if network == KIND:
        said = {"--recipe": recipe, "--print-recipe": print_recipe, "--resume": resume}
        said |= {"--cache": cache, "--covariates": covariates}
        others = [option for option, value in said.items() if value]
        files, folder = _required(data, out)
        train_books(given, files, folder, seeds=seed or (), others=others, as_json=json)
        return
    trained = [_is_checkpoint(one) for one in (network, beside)]
    if any(trained):
        if not all(trained) or recipe is not None or print_recipe or seed or covariates:
            raise _half_trained()
        made = [_combine(given, *_required(data, out), cache, threads=threads)]
    else:
        made = _made(
            recipe,
            given,
            seed,
            data,
            out,
            cache,
            vectors=covariates,
            print_recipe=print_recipe,
            resume=resume,
        )
    _tell(made, as_json=json)


def _made(
    recipe: Path | None,
    given: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int] | None,
    data: list[str] | None,
    out: Path | None,
    cache: Path | None,
    *,
    vectors: Path | None,
    print_recipe: bool,
    resume: bool,
) -> list[tuple[Path, Checkpoint]]:
    """Train by the recipe of each seed; none where the recipe is printed instead."""
    from tracepaper.replay.training.aligned_pipeline import AlignedRecipe
    from tracepaper.strategies.extras import require

    chosen = _recipes(recipe, given, seeds)
    if print_recipe:
        typer.echo(chosen[0].text(), nl=False)
        return []
    files, folder = _required(data, out)
    require("exchange_calendars", "--calendar", given["features"]["calendar"])
    for one in chosen:
        _require_lightgbm(one, recipe)
    if vectors is not None:
        _require_modalities(chosen)
    together = [one for one in chosen if isinstance(one, AlignedRecipe)]
    if together:
        return _train_together(together, files, folder, cache, resume=resume)
    alone = [one for one in chosen if not isinstance(one, AlignedRecipe)]
    return _train(alone, files, folder, cache, vectors=vectors, resume=resume)


def _require_lightgbm(chosen: AnyRecipe, file: Path | None) -> None:
    """Raise ``ConfigInvalid`` where *chosen*, of a *file* or of options, fits trees without it."""
    from tracepaper.replay.training.boosting import import_lightgbm
    from tracepaper.replay.training.ensemble import EnsembleRecipe
    from tracepaper.replay.training.rowwise import RowRecipe

    rows = chosen.rows if isinstance(chosen, EnsembleRecipe) else chosen
    if isinstance(rows, RowRecipe) and rows.kind == "tree":
        option = "--network tree" if rows is chosen else "--with tree"
        import_lightgbm(option if file is None else f"The tree of {file}")


def _require_modalities(chosen: Sequence[AnyRecipe]) -> None:
    """Raise ``ConfigInvalid`` where a network has no encoder for covariates."""
    from tracepaper.replay.training.recipe import Recipe
    from tracepaper.strategies.errors import ConfigInvalid

    if not all(isinstance(one, Recipe) and one.kind.name == "trading" for one in chosen):
        raise ConfigInvalid(
            "--covariates are a modality of --network trading alone; name that, without --with, or "
            "leave them out."
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
) -> list[AnyRecipe]:
    """Return the recipe of each seed: what is *given*, over *file*, over the defaults."""
    from tracepaper.replay.training.ensemble import recipe_document
    from tracepaper.replay.training.recipe import over, read_recipe, with_bars

    document = {} if file is None else recipe_document(read_recipe(file))
    said = {
        name: {key: value for key, value in section.items() if value is not None}
        for name, section in given.items()
    }
    document = over(document, {name: section for name, section in said.items() if section})
    document = dict(with_bars(document))
    if not seeds:
        return [_recipe(document)]
    return [_recipe(over(document, {"training": {"seed": seed}})) for seed in seeds]


def _recipe(document: Mapping[str, Any]) -> AnyRecipe:
    """Return the recipe of a network, of a model of one bar's features, or of both together."""
    from tracepaper.daemon.clock import SystemClock
    from tracepaper.replay.training.aligned_pipeline import AlignedRecipe
    from tracepaper.replay.training.ensemble import EnsembleRecipe, is_recipe
    from tracepaper.replay.training.recipe import Recipe
    from tracepaper.replay.training.rowwise import RowRecipe
    from tracepaper.strategies.forecasters.cross_asset import KINDS
    from tracepaper.strategies.forecasters.tabular import ROW_KINDS

    if is_recipe(document):
        return EnsembleRecipe.of(document, created_ms=SystemClock().wall_ms())
    model = document.get("model")
    if isinstance(model, dict) and model.get("kind") in KINDS:
        return AlignedRecipe.of(document)
    if isinstance(model, dict) and model.get("kind") in ROW_KINDS:
        return RowRecipe.of(document, created_ms=SystemClock().wall_ms())
    return Recipe.of(document)


def _train_together(
    recipes: Sequence[AlignedRecipe],
    data: list[str],
    out: Path,
    cache: Path | None,
    *,
    resume: bool,
) -> list[tuple[Path, Checkpoint]]:
    """Train a network over all symbols of *data* by each recipe; they differ in their seeds."""
    from tracepaper.daemon.clock import SystemClock
    from tracepaper.replay.judging.spans import opened_by_training
    from tracepaper.replay.training.aligned import AlignedMaterial
    from tracepaper.replay.training.aligned_pipeline import train_aligned
    from tracepaper.replay.training.array_cache import ArrayCache, default_folder
    from tracepaper.replay.training.material import Material, intervals_of
    from tracepaper.replay.training.pipeline import use_threads
    from tracepaper.replay.training.show import FitView
    from tracepaper.strategies.errors import ConfigInvalid

    if resume:
        raise ConfigInvalid(
            "A fit over several symbols is made in one go; leave --resume out, and fit it again."
        )
    first = recipes[0]
    use_threads(first.threads)
    split = _split(first.split or {}, max(first.config.horizons))
    material = Material.read(
        data,
        split,
        first.config.horizons,
        first.schema_id,
        intervals=intervals_of(first.intervals),
        arrays=ArrayCache(cache or default_folder()),
    )
    aligned = AlignedMaterial.of(replace(material, requested=first.baselines), split)
    made = []
    for recipe in recipes:
        folder = out / f"seed-{recipe.options.seed}" if len(recipes) > 1 else out
        with FitView(recipe.options.steps) as view:
            found = train_aligned(
                aligned,
                recipe,
                folder,
                created_ms=SystemClock().wall_ms(),
                observe=view.observe,
                say=view.say,
            )
        if said := opened_by_training(folder, found, aligned.material):
            typer.echo(said, err=True)
        made.append((folder, found))
    return made


def _train(
    recipes: Sequence[OwnRecipe],
    data: list[str],
    out: Path,
    cache: Path | None,
    *,
    vectors: Path | None,
    resume: bool,
) -> list[tuple[Path, Checkpoint]]:
    """Train and write a checkpoint of each recipe; they differ in their seeds alone."""
    from tracepaper.replay.judging.spans import opened_by_training
    from tracepaper.replay.training.array_cache import ArrayCache, default_folder
    from tracepaper.replay.training.ensemble import EnsembleRecipe
    from tracepaper.replay.training.fitted import unfitted
    from tracepaper.replay.training.material import Material, Supplied, intervals_of
    from tracepaper.replay.training.pipeline import compare_seeds, use_threads
    from tracepaper.replay.training.recipe import Recipe
    from tracepaper.replay.training.rowwise import RowRecipe
    from tracepaper.storage.covariates import read_vectors

    first = recipes[0]
    use_threads(first.threads)
    horizons = first.config.horizons if isinstance(first, Recipe) else first.horizons
    split = _split(first.split or {}, max(horizons))
    supplied = None if vectors is None else Supplied(read_vectors(vectors))

    def read(schema_id: str, split: Callable[[Sequence[Segment]], Split]) -> Material:
        found = Material.read(
            data,
            split,
            horizons,
            schema_id,
            intervals=intervals_of(first.intervals),
            calendar=first.calendar,
            arrays=ArrayCache(cache or default_folder()),
            vectors=supplied,
        )
        return replace(found, requested=first.baselines)

    own = material = read(first.schema_id, split)
    if isinstance(first, EnsembleRecipe):
        wide = first.wide(own.interval_ms)
        if wide != own.schema.schema_id:
            material = read(wide, lambda _: own.split)
            own = replace(own, stored=unfitted())  # its baselines would stand beside no figure
    folders = [out]
    if len(recipes) > 1:
        folders = [out / f"seed-{recipe.options.seed}" for recipe in recipes]
    made = [
        _fit(material, recipe, folder, resume=resume)
        if isinstance(recipe, Recipe)
        else _fit_both(material, own, recipe, folder, resume=resume)
        if isinstance(recipe, EnsembleRecipe)
        else _fit_rows(material, recipe, folder)
        for recipe, folder in zip(recipes, folders, strict=True)
    ]
    if len(recipes) > 1 and not isinstance(first, RowRecipe):
        made = compare_seeds(folders)
    for folder, found in zip(folders, made, strict=True):
        if said := opened_by_training(folder, found, material):
            typer.echo(said, err=True)
    return list(zip(folders, made, strict=True))


def _fit(material: Material, recipe: Recipe, folder: Path, *, resume: bool) -> Checkpoint:
    from tracepaper.daemon.clock import SystemClock
    from tracepaper.replay.training.pipeline import train as fit
    from tracepaper.replay.training.show import FitView

    with FitView(recipe.options.steps) as view:
        return fit(
            material,
            recipe,
            folder,
            created_ms=SystemClock().wall_ms(),
            observe=view.observe,
            say=view.say,
            resume=resume,
        )


def _fit_both(
    material: Material, own: Material, recipe: EnsembleRecipe, folder: Path, *, resume: bool
) -> Checkpoint:
    from tracepaper.daemon.clock import SystemClock
    from tracepaper.replay.training.ensemble import train_ensemble
    from tracepaper.replay.training.show import FitView

    with FitView(recipe.options.steps) as view:
        return train_ensemble(
            material,
            own,
            recipe,
            folder,
            created_ms=SystemClock().wall_ms(),
            observe=view.observe,
            say=view.say,
            resume=resume,
        )


def _is_checkpoint(given: str | None) -> bool:
    """Return whether *given* is a folder with a checkpoint, and no kind of one."""
    from tracepaper.storage.checkpoints import CARD_NAME
    from tracepaper.strategies.forecasters.cross_asset import KINDS
    from tracepaper.strategies.forecasters.tabular import ROW_KINDS
    from tracepaper.strategies.networks.architecture import network_kinds

    if given is None or not (Path(given) / CARD_NAME).is_file():
        return False
    return given not in {*network_kinds(), *KINDS, *ROW_KINDS}


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
    from tracepaper.replay.judging.spans import opened_by_training
    from tracepaper.replay.training.array_cache import ArrayCache, default_folder
    from tracepaper.replay.training.ensemble import combine, read_halves
    from tracepaper.replay.training.pipeline import use_threads
    from tracepaper.replay.training.recipe import THREADS

    kept = {("model", "kind"), ("model", "name"), ("ensemble", "kind")}
    kept |= {("training", "threads"), ("training", "explained_bars")}
    for section, options in given.items():
        if any(v is not None and (section, name) not in kept for name, v in options.items()):
            raise _half_trained()
    use_threads(threads or THREADS)
    folders = (Path(given["model"]["kind"]), Path(given["ensemble"]["kind"]))
    network, rows, material = read_halves(*folders, data, ArrayCache(cache or default_folder()))
    found = combine(
        network,
        rows,
        material,
        out,
        created_ms=SystemClock().wall_ms(),
        name=given["model"]["name"] or out.name,
        say=Console(stderr=True).print,
        bars=given["training"]["explained_bars"],
    )
    if said := opened_by_training(out, found, material):
        typer.echo(said, err=True)
    return out, found


def _fit_rows(material: Material, recipe: RowRecipe, folder: Path) -> Checkpoint:
    from dataclasses import replace

    from rich.console import Console

    from tracepaper.replay.training.rowwise import train_rows

    named = replace(recipe, name=recipe.name or folder.name)
    return train_rows(material, named, folder, say=Console(stderr=True).print)


def _print(folder: Path, found: Checkpoint) -> None:
    from tracepaper.strategies.forecasters.cross_asset import KINDS

    typer.echo(f"Wrote {folder}, checkpoint {found.id}.")
    for sentence in found.card["honesty"]["sentences"]:
        typer.echo(f"  {sentence}")
    if (kind := found.card["model"]["kind"]) in KINDS:
        typer.echo(
            f"Use it: [strategy] name = {kind!r} and [model] checkpoint = {str(folder)!r}, with "
            "[sizing] mode = 'equity'."
        )
        return
    typer.echo(f"Use it: model.checkpoint = {str(folder)!r}, or tracepaper models {folder}.")


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


def _split(
    section: Mapping[str, Any], longest_horizon: int
) -> Callable[[Sequence[Segment]], Split]:
    from tracepaper.replay.training.pipeline import second_span
    from tracepaper.replay.training.series import Split, by_shares, date_ms

    second = second_span(section)
    embargo = int(section.get("embargo_bars", longest_horizon))
    if "train_until" not in section:
        return lambda segments: replace(
            by_shares(segments, embargo_bars=embargo, shares=SHARES), second_span_ms=second
        )
    first, last, third = (
        date_ms(str(section.get(name)))
        for name in ("train_until", "validation_until", "calibration_until")
    )
    return lambda _: Split(first, last, third, embargo, second_span_ms=second)
