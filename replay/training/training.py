"""From a recipe and files to checkpoints: fit, calibrate, evaluate, write, and count the opening.

The rules are docs/models.md, L7 to L30.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tracepaper.replay.training import card as cards
from tracepaper.replay.training.estimator import (
    DataRequest,
    FitRun,
    Say,
)
from tracepaper.replay.training.estimators.ensemble import (
    join,
    read_members,
)
from tracepaper.replay.training.fit import (
    Observe,
    use_threads,
)
from tracepaper.replay.training.fitted import FILE_NAME
from tracepaper.replay.training.openings import opened_by_training
from tracepaper.replay.training.recipe import Recipe
from tracepaper.storage.checkpoints import Checkpoint, load, save
from tracepaper.strategies.errors import ConfigInvalid


def train(
    recipe: Recipe,
    data: Any,  # noqa: ANN401 - what the recipe's estimator reads
    folder: Path,
    *,
    created_ms: int,
    observe: Observe = lambda _: None,
    say: Say = lambda _: None,
    resume: bool = False,
) -> Checkpoint:
    """Fit *recipe* to *data*, calibrate, evaluate and write a checkpoint into *folder*; return it.

    The state of an unfinished fit lies beside it, in ``<folder>.training``.
    """
    state = folder.with_name(folder.name + ".training")
    run = FitRun(state, recipe.name or folder.name, created_ms, observe, say, resume)
    fitted = recipe.estimator.fit(data, recipe, run)
    say("Calibrating.")
    fitted = fitted.calibrated(data, bars=recipe.explained_bars)
    say("Judging on untouched time.")
    return fitted.evaluated(data, bars=recipe.explained_bars).save(folder, data)


def require_encoder(recipe: Recipe) -> None:
    """Raise ``ConfigInvalid`` where the kind of model has no encoder for covariates."""
    if not recipe.estimator.takes_covariates:
        raise ConfigInvalid(
            f"A model of the kind {recipe.kind} has no encoder for covariates: they are a modality "
            "of the kind trading alone; train that, or leave --covariates out."
        )


def train_seeds(
    recipes: Sequence[Recipe],
    request: DataRequest,
    folder: Path,
    *,
    created_ms: int,
    observe: Observe = lambda _: None,
    say: Say = lambda _: None,
    resume: bool = False,
) -> list[tuple[Path, Checkpoint]]:
    """Train a checkpoint of each recipe, which differ in their seeds; return folders and them.

    One lies in *folder*, several in ``seed-N`` there, each with what the others reached on its
    card.
    """
    first = recipes[0]
    if request.covariates is not None:
        require_encoder(first)
    use_threads(first.threads)
    data = first.estimator.read(first, request)
    folders = [folder]
    if len(recipes) > 1:
        folders = [folder / f"seed-{recipe.options.seed}" for recipe in recipes]
    made = [
        train(recipe, data, own, created_ms=created_ms, observe=observe, say=say, resume=resume)
        for recipe, own in zip(recipes, folders, strict=True)
    ]
    if len(made) > 1 and all("figures" in one.card for one in made):
        made = compare_seeds(folders)
    for own, found in zip(folders, made, strict=True):
        if said := opened_by_training(own, found.card, data):
            say(said)
    return list(zip(folders, made, strict=True))


def combine(
    members: tuple[Path, Path],
    request: DataRequest,
    folder: Path,
    *,
    name: str,
    created_ms: int,
    bars: int | None = None,
    say: Say = lambda _: None,
) -> Checkpoint:
    """Write the ensemble of the checkpoints in two folders into *folder*; return it.

    *bars* are explained, for the gates.
    """
    network, rows, data = read_members(*members, request)
    say("Combining the members.")
    fitted = join(network, rows, data, name=name, created_ms=created_ms)
    fitted = fitted.calibrated(data, bars=bars)
    say("Judging on untouched time.")
    found = fitted.evaluated(data, bars=bars).save(folder, data)
    if said := opened_by_training(folder, found.card, data):
        say(said)
    return found


def compare_seeds(folders: Sequence[Path]) -> list[Checkpoint]:
    """Write into the card of each checkpoint what the others, of other seeds, reached."""
    found = [load(folder) for folder in folders]
    every: list[Mapping[str, Any]] = [checkpoint.card for checkpoint in found]
    section = cards.seeds_section(every)
    sentences = cards.seeds_sentence(every, horizon=int(every[0]["calibration"]["horizon"]))
    return [
        save(
            folder,
            checkpoint.tensors,
            checkpoint.card
            | {
                "honesty": {"sentences": [*checkpoint.card["honesty"]["sentences"], sentences]},
                "seeds": section,
            },
            beside={FILE_NAME: (folder / FILE_NAME).read_bytes()},
        )
        for folder, checkpoint in zip(folders, found, strict=True)
    ]
