"""Training: from a recipe and files to checkpoints; and figures about the training data.

The rules are docs/models.md, L7 to L29 and L34.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from rich.console import Console
from rich.progress import Progress, TextColumn

from tracepaper.replay.document.values import Cells, Table, table_of_rows
from tracepaper.replay.learning import card as cards
from tracepaper.replay.learning.baselines import FILE_NAME
from tracepaper.replay.learning.dataset import Dataset
from tracepaper.replay.learning.fit import Progress as FitProgress
from tracepaper.replay.learning.fit import use_threads
from tracepaper.replay.learning.fitted import Each, FitRun, Say
from tracepaper.replay.learning.holdouts import count_training
from tracepaper.replay.learning.recipe import Recipe, recipe_of
from tracepaper.replay.learning.recipe_data import DataRequest, read_dataset
from tracepaper.replay.learning.splits import Part
from tracepaper.storage.checkpoints import KEPT_SUFFIX, Checkpoint, is_checkpoint, load, save
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.features.rows import schema_of
from tracepaper.strategies.units import DAY_MS, interval_text, iso

UNJUDGED: Final = "It was not judged: its training ended before that."
"""The sentence on the card of a checkpoint that has no figures yet."""


def train(recipe: Recipe, data: Any, run: FitRun) -> Checkpoint:  # noqa: ANN401 - what its kind reads
    """Fit *recipe* to *data*, calibrate, evaluate and write a checkpoint; return it.

    The checkpoint is in the folder of *run*, the state of an unfinished fit in
    ``<folder>.training``.
    """
    name, bars = run.folder.name, recipe.explained_bars
    state = run.folder.with_name(name + ".training")
    fitted = recipe.kind.fit(data, recipe, run._replace(folder=state, name=recipe.name or name))
    run.say("Calibrating.")
    fitted = fitted.calibrated(data, bars=bars)
    # Written first, so that a fault of the judgement does not lose the training.
    fitted.with_card(honesty={"sentences": [UNJUDGED]}).save(run.folder, data)
    run.say("Judging on untouched time.")
    return fitted.evaluated(data, bars=bars).save(run.folder, data)


@dataclass(frozen=True)
class _SeedFit:
    """Trains a recipe on *data* in a temporary folder, perhaps in another process."""

    data: Any  # the material of the recipe's kind
    created_ms: int
    threads: int

    def __call__(self, unit: tuple[Recipe, str], say: Say) -> tuple[Checkpoint, dict[str, bytes]]:
        """Return the checkpoint of a (recipe, folder name), and the extra files of its folder."""
        recipe, name = unit
        use_threads(self.threads)
        with tempfile.TemporaryDirectory(prefix="tracepaper-seed-") as parent:
            folder = Path(parent) / name
            run = FitRun(folder, created_ms=self.created_ms, say=say)
            checkpoint = train(recipe, self.data, run)
            baselines = folder / FILE_NAME
            return checkpoint, {FILE_NAME: baselines.read_bytes()} if baselines.is_file() else {}


def train_seeds(
    recipes: Sequence[Recipe],
    request: DataRequest,
    run: FitRun,
    *,
    each: Each | None = None,
) -> list[tuple[Path, Checkpoint]]:
    """Train each recipe; they differ only in their seeds. Return (folder, checkpoint) of each.

    A single checkpoint is in the folder of *run*. Several are in its subfolders ``seed-N``, and
    their cards compare the seeds. *each* runs the trainings, by default in this process; if it is
    given, a resumed run repeats all trainings without a finished checkpoint.
    """
    first = recipes[0]
    use_threads(first.threads)
    data = read_dataset(first, request)
    folders = seed_folders(recipes, run.folder)
    places = list(zip(recipes, folders, strict=True))
    if each is None:
        for recipe, seed_folder in places:
            train(recipe, data, run._replace(folder=seed_folder))
    else:
        missing = [pair for pair in places if not (run.resume and _is_finished(*pair, data))]

        def keep(place: int, result: tuple[Checkpoint, dict[str, bytes]]) -> None:
            checkpoint, extra = result
            save(missing[place][1], checkpoint.tensors, checkpoint.card, extra=extra)

        fit = _SeedFit(data, run.created_ms, first.threads)
        each(fit, [(recipe, seed_folder.name) for recipe, seed_folder in missing], run.say, keep)
    checkpoints = [load(seed_folder) for seed_folder in folders]
    if len(checkpoints) > 1 and draws_by_seed(checkpoints[0].card):
        checkpoints = compare_seeds(folders)
    for seed_folder, checkpoint in zip(folders, checkpoints, strict=True):
        if warning := count_training(seed_folder, checkpoint.card, data):
            run.say(warning)
    return list(zip(folders, checkpoints, strict=True))


def seed_folders(recipes: Sequence[Recipe], folder: Path) -> list[Path]:
    """Return the folder of each recipe's checkpoint: *folder*, or its ``seed-N`` of several."""
    if len(recipes) == 1:
        return [folder]
    return [folder / f"seed-{recipe.options.seed}" for recipe in recipes]


def check_replaceable(folders: Sequence[Path], *, overwrite: bool) -> None:
    """Raise ``ConfigInvalid`` for a folder with a checkpoint that a training must not replace.

    One that a record keeps is never replaced, any other with *overwrite*.
    """
    for folder in filter(is_checkpoint, folders):
        if folder.resolve().parent.name.endswith(KEPT_SUFFIX):
            raise ConfigInvalid(f"{folder} is kept by a record; choose another --out.")
        if not overwrite:
            raise ConfigInvalid(
                f"{folder} holds a finished checkpoint; choose another --out, or replace it with "
                "--overwrite."
            )


def draws_by_seed(card: Mapping[str, Any]) -> bool:
    """Return whether *card* has figures that depend on a seed.

    A regression has no seed, and a card of order books has no horizon of the gates.
    """
    is_judged = bool(card.get("figures")) and "horizon" in card["calibration"]
    return is_judged and "seed" in card["training"]


def _is_finished(recipe: Recipe, folder: Path, data: Any) -> bool:  # noqa: ANN401 - as ``train``'s
    """Return whether *folder* holds a checkpoint of *recipe* on *data*."""
    if not is_checkpoint(folder):
        return False
    card = load(folder).card
    if UNJUDGED in card["honesty"]["sentences"]:
        return False

    def full(key: str, value: object) -> object:
        return schema_of(str(value), data.interval_ms).schema_id if key == "schema_id" else value

    # Keys that the recipe does not set follow from the data.
    trained, chosen = recipe_of(card).document(), recipe.document()
    return card["data"] == data.card["data"] and all(
        trained.get(section, {}).get(key) == full(key, value)
        for section, table in chosen.items()
        for key, value in table.items()
        if value is not None and key != "name"
    )


def compare_seeds(folders: Sequence[Path]) -> list[Checkpoint]:
    """Write the comparison of all seeds into the card of each checkpoint; return these."""
    checkpoints = [_without_seeds(load(folder)) for folder in folders]
    of_seeds: list[Mapping[str, Any]] = [checkpoint.card for checkpoint in checkpoints]
    section = cards.seeds_section(of_seeds)
    sentence = cards.seeds_sentence(of_seeds, horizon=int(of_seeds[0]["calibration"]["horizon"]))
    return [
        save(
            folder,
            checkpoint.tensors,
            checkpoint.card
            | {
                "honesty": {"sentences": [*checkpoint.card["honesty"]["sentences"], sentence]},
                "seeds": section,
            },
            extra={FILE_NAME: (folder / FILE_NAME).read_bytes()},
        )
        for folder, checkpoint in zip(folders, checkpoints, strict=True)
    ]


def _without_seeds(checkpoint: Checkpoint) -> Checkpoint:
    """Return *checkpoint* without an earlier comparison of seeds in its card."""
    card = checkpoint.card
    if "seeds" not in card:
        return checkpoint
    sentences = card["honesty"]["sentences"][:-1]
    kept = {name: part for name, part in card.items() if name != "seeds"}
    return replace(checkpoint, card={**kept, "honesty": {"sentences": sentences}})


class FitView:
    """Shows a fit on stderr: a progress bar on a terminal, and a line for each validation."""

    def __init__(self, recipe: Recipe) -> None:
        """Show the fit of *recipe*; a fit without steps has no bar."""
        steps = getattr(recipe.options, "steps", 0)
        self.console = Console(stderr=True)
        self._bar = Progress(
            *Progress.get_default_columns(),
            TextColumn("{task.completed} steps, {task.fields[loss]}"),
            console=self.console,
            disable=not (steps and self.console.is_terminal),
        )
        self._task = self._bar.add_task("training", total=steps, loss="")
        self._warned = ""  # the last warning about gradients, which is not repeated

    def __enter__(self) -> Self:
        """Start the bar."""
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the bar."""
        self._bar.stop()

    def say(self, sentence: str) -> None:
        """Print one sentence above the bar."""
        self.console.print(sentence)

    def observe(self, progress: FitProgress) -> None:
        """Update the bar; after a validation print its score."""
        loss = f"loss {progress.training_loss:.4f}"
        self._bar.update(self._task, completed=progress.step, loss=loss)
        if progress.validated:
            best = ", the best so far" if progress.improved else ""
            self.console.print(
                f"step {progress.step} of {progress.steps}: {loss}, validation score "
                f"{progress.score:.3f}{best}"
            )
            if relative := progress.relative_gradients:
                each = ", ".join(f"{part} {norm:.1e}" for part, norm in relative.items())
                self.console.print(f"  gradient ÷ weights: {each}")
            if (warning := progress.gradient_warning) and warning != self._warned:
                self.console.print(warning)
            self._warned = warning


def described(data: Dataset) -> list[Table]:
    """Return tables of the files of *data* and of the labels of each part."""
    files: list[Cells] = [
        {
            "file": source.name,
            "symbol": source.symbol,
            "interval": interval_text(source.interval_ms),
            "bars": source.bars,
            "from": iso(source.from_ms),
            "until": iso(source.until_ms),
        }
        for source in data.sources
    ]
    schema = data.schema
    note = (
        f"Features {schema.schema_id}: {len(schema.names)} columns; a row depends on "
        f"{schema.lookback:,} bars."
    )
    labels = [row for part in Part for row in _labels(data, part)]
    return [
        table_of_rows("files", "Files", "", files),
        table_of_rows("labels", "Labels", note, labels),
    ]


def _labels(data: Dataset, part: Part) -> Iterator[Cells]:
    """Yield a row for each interval with labels in *part*, and each horizon."""
    samples = data.labelled(part) if data.has(part) else []
    for interval_ms, (column, time) in product(data.intervals, enumerate(data.times)):
        pieces = [piece for piece in samples if piece.segment.interval_ms == interval_ms]
        if not pieces:
            continue
        labelled = [np.flatnonzero(piece.weights[:, column]) for piece in pieces]
        opened, ends = (
            np.concatenate([each[rows] for each, rows in zip(times, labelled, strict=True)])
            for times in (
                [piece.segment.open_time_ms for piece in pieces],
                [piece.segment.close_time_ms for piece in pieces],
            )
        )
        days = len(np.unique(opened // DAY_MS))
        unique = sum(
            float(piece.weights[:, column].sum()) / piece.horizons[column] for piece in pieces
        )
        horizon_ms = data.horizons[column] * data.interval_ms
        yield {
            "part": part.value,
            "interval": interval_text(interval_ms),
            "horizon": time,
            "labels": len(opened),
            "sharing no bar": round(unique),
            "days": days,
            "independent days": int(days // max(1, horizon_ms / DAY_MS)),
            "from": iso(int(opened.min())) if days else "",
            "until": iso(int(ends.max())) if days else "",
        }
