"""From a recipe and files to checkpoints; what a training would learn from, in figures.

Labels of neighbouring bars share most of their future, so their number says little: beside it
stand how many of them share no bar, by uniqueness, and on how many days of the calendar they lie.

The rules are docs/models.md, L7 to L29.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from tracepaper.replay.learning import card as cards
from tracepaper.replay.learning.baselines import FILE_NAME
from tracepaper.replay.learning.dataset import Dataset
from tracepaper.replay.learning.fit import Progress as FitProgress
from tracepaper.replay.learning.fit import use_threads
from tracepaper.replay.learning.fitted import (
    DataRequest,
    Each,
    FitRun,
    Say,
    read_dataset,
)
from tracepaper.replay.learning.openings import opened_by_training
from tracepaper.replay.learning.recipe import Recipe, recipe_of
from tracepaper.replay.learning.samples import Samples
from tracepaper.replay.learning.splits import Part
from tracepaper.storage.checkpoints import Checkpoint, is_checkpoint, load, save
from tracepaper.strategies.features.rows import schema_of
from tracepaper.strategies.units import DAY_MS, duration, interval_text, iso


def train(recipe: Recipe, data: Any, run: FitRun) -> Checkpoint:  # noqa: ANN401 - what its kind reads
    """Fit *recipe* to *data*, calibrate, evaluate and write a checkpoint; return it.

    It lies in the folder of *run*, and the state of an unfinished fit in ``<folder>.training``.
    """
    name, bars = run.folder.name, recipe.explained_bars
    state = run.folder.with_name(name + ".training")
    fitted = recipe.kind.fit(data, recipe, run._replace(folder=state, name=recipe.name or name))
    run.say("Calibrating.")
    fitted = fitted.calibrated(data, bars=bars)
    run.say("Judging on untouched time.")
    return fitted.evaluated(data, bars=bars).save(run.folder, data)


@dataclass(frozen=True)
class _SeedFit:
    """Trains a recipe on *data* where no folder of ours is: returns what belongs into one."""

    data: Any  # what the recipe's kind reads
    created_ms: int
    threads: int

    def __call__(self, unit: tuple[Recipe, str], say: Say) -> tuple[Checkpoint, dict[str, bytes]]:
        """Return the checkpoint of a recipe, under the name of its folder, and files beside it."""
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
    """Train a checkpoint of each recipe, which differ in their seeds; return folders and them.

    One lies in the folder of *run*, several in ``seed-N`` there, each with what the others reached
    on its card. *each* is where they are trained, by default here one by one; elsewhere what a fit
    resumes with is the checkpoints that are whole.
    """
    first = recipes[0]
    use_threads(first.threads)
    data = read_dataset(first, request)
    folders = [run.folder]
    if len(recipes) > 1:
        folders = [run.folder / f"seed-{recipe.options.seed}" for recipe in recipes]
    places = list(zip(recipes, folders, strict=True))
    if each is None:
        for recipe, seed_folder in places:
            train(recipe, data, run._replace(folder=seed_folder))
    else:
        left = [pair for pair in places if not (run.resume and _is_whole(*pair, data))]

        def keep(place: int, result: tuple[Checkpoint, dict[str, bytes]]) -> None:
            checkpoint, extra = result
            save(left[place][1], checkpoint.tensors, checkpoint.card, extra=extra)

        fit = _SeedFit(data, run.created_ms, first.threads)
        each(fit, [(recipe, seed_folder.name) for recipe, seed_folder in left], run.say, keep)
    checkpoints = [load(seed_folder) for seed_folder in folders]
    # An order book's card has no horizon of the gates, and a regression draws nothing by a seed.
    if len(checkpoints) > 1 and draws_by_seed(checkpoints[0].card):
        checkpoints = compare_seeds(folders)
    for seed_folder, checkpoint in zip(folders, checkpoints, strict=True):
        if warning := opened_by_training(seed_folder, checkpoint.card, data):
            run.say(warning)
    return list(zip(folders, checkpoints, strict=True))


def draws_by_seed(card: Mapping[str, Any]) -> bool:
    """Return whether *card* has figures of a training that another seed changes."""
    is_judged = bool(card.get("figures")) and "horizon" in card["calibration"]
    return is_judged and "seed" in card["training"]


def _is_whole(recipe: Recipe, folder: Path, data: Any) -> bool:  # noqa: ANN401 - as ``train``'s
    """Return whether *folder* holds what *recipe* gives on *data*, of candles."""
    if not is_checkpoint(folder):
        return False
    card = load(folder).card

    def full(key: str, value: object) -> object:
        return schema_of(str(value), data.interval_ms).schema_id if key == "schema_id" else value

    # What the recipe leaves open follows from the data.
    trained, chosen = recipe_of(card).document(), recipe.document()
    return card["data"] == data.card["data"] and all(
        trained.get(section, {}).get(key) == full(key, value)
        for section, table in chosen.items()
        for key, value in table.items()
        if value is not None and key != "name"
    )


def compare_seeds(folders: Sequence[Path]) -> list[Checkpoint]:
    """Write into the card of each checkpoint what the others, of other seeds, reached."""
    checkpoints = [_alone(load(folder)) for folder in folders]
    every: list[Mapping[str, Any]] = [checkpoint.card for checkpoint in checkpoints]
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
            extra={FILE_NAME: (folder / FILE_NAME).read_bytes()},
        )
        for folder, checkpoint in zip(folders, checkpoints, strict=True)
    ]


def _alone(checkpoint: Checkpoint) -> Checkpoint:
    """Return *checkpoint* without what an earlier comparison wrote into its card."""
    card = checkpoint.card
    if "seeds" not in card:
        return checkpoint
    sentences = card["honesty"]["sentences"][:-1]
    kept = {name: part for name, part in card.items() if name != "seeds"}
    return replace(checkpoint, card={**kept, "honesty": {"sentences": sentences}})


class FitView:
    """Shows a fit on stderr: a bar on a terminal, a line a validation elsewhere."""

    def __init__(self, recipe: Recipe) -> None:
        """Show the fit of *recipe*; where it has no steps, sentences alone."""
        steps = getattr(recipe.options, "steps", 0)
        self.console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[loss]}"),
            console=self.console,
            disable=not (steps and self.console.is_terminal),
        )
        self._task = self._bar.add_task("training", total=steps, loss="")
        self._warned = ""  # the last warning about gradients, said once
        self._begun: tuple[int, int, float] | None = None  # step, bars, seconds at the first step

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
        """Move the bar on; after a validation print its score, the speed and the time left."""
        speed = self._pace(progress)
        self._bar.update(
            self._task,
            completed=progress.step,
            loss=f"loss {progress.training_loss:.4f}{speed}",
        )
        if progress.validated:
            score = sum(map(sum, progress.scores)) / max(sum(map(len, progress.scores)), 1)
            best = ", the best so far" if progress.improved else ""
            self.console.print(
                f"step {progress.step} of {progress.steps}: loss {progress.training_loss:.4f},"
                f" validation score {score:.3f}{best}{speed}"
            )
            if relative := progress.relative_gradients:
                each = ", ".join(f"{part} {norm:.1e}" for part, norm in relative.items())
                self.console.print(f"  gradient ÷ weights: {each}")
            if (warning := progress.gradient_warning) and warning != self._warned:
                self.console.print(warning)
            self._warned = warning

    def _pace(self, progress: FitProgress) -> str:
        """Return bars a second since the first step that was seen, and the time left, in words."""
        now = self._bar.tasks[0].elapsed or 0.0
        self._begun = self._begun or (progress.step, progress.bars, now)
        steps, bars, elapsed = (
            after - before
            for after, before in zip((progress.step, progress.bars, now), self._begun, strict=True)
        )
        if not steps or not elapsed:
            return ""
        left = round(elapsed / steps * (progress.steps - progress.step))
        return f"; {bars / elapsed:,.0f} bars/s, {duration(1000 * left)} left"


def described(material: Dataset) -> dict[str, Any]:
    """Return what *material* holds; computes features, labels and the baselines' inputs."""
    return {
        "files": [
            asdict(source)
            | {
                "interval": interval_text(source.interval_ms),
                "from": iso(source.from_ms),
                "until": iso(source.until_ms),
            }
            for source in material.sources
        ],
        "features": {
            "schema_id": material.schema.schema_id,
            "columns": len(material.schema.names),
            "lookback": material.schema.lookback,
        },
        "intervals": [_interval(material, interval_ms) for interval_ms in material.intervals],
        "horizons": [
            {"bars": bars, "time": time}
            for bars, time in zip(material.horizons, material.times, strict=True)
        ],
        "parts": {part.value: _part(material, part) for part in Part},
    }


def _interval(material: Dataset, interval_ms: int) -> dict[str, Any]:
    every = (
        segment for panel in (*material.panels, *material.others) for segment in panel.segments
    )
    segments = [segment for segment in every if segment.interval_ms == interval_ms]
    return {
        "interval": interval_text(interval_ms),
        "symbols": sorted({segment.candles.symbol for segment in segments}),
        "bars": sum(map(len, segments)),
        "rows": sum(len(segment) - segment.first for segment in segments),
        "pieces": len(segments),
        "longest_piece": max(map(len, segments)),
    }


def _part(material: Dataset, part: Part) -> dict[str, Any]:
    """Return the span of *part* and what is labelled in it, at the model's own interval."""
    samples = material.labelled(part)
    native = [piece for piece in samples if piece.segment.interval_ms == material.interval_ms]
    others = [piece for piece in samples if piece.segment.interval_ms != material.interval_ms]
    return {
        "from": iso(min(map(_first, native))),
        "until": iso(max(int(piece.segment.close_time_ms[piece.stop - 1]) for piece in native)),
        "further_bars": sum(len(piece.rows) for piece in others),
        "horizons": [
            _horizon(native, column, bars * material.interval_ms)
            for column, bars in enumerate(material.horizons)
        ],
    }


def _horizon(samples: list[Samples], column: int, horizon_ms: int) -> dict[str, Any]:
    labelled = [piece.weights[:, column] > 0 for piece in samples]
    days = [
        piece.segment.open_time_ms[mask] // DAY_MS
        for piece, mask in zip(samples, labelled, strict=True)
    ]
    distinct = np.unique(np.concatenate(days))
    unique = sum(
        float(piece.weights[:, column].sum()) / piece.horizons[column] for piece in samples
    )
    return {
        "time": interval_text(horizon_ms),
        "bars": sum(int(mask.sum()) for mask in labelled),
        "not_overlapping": round(unique),
        "days": len(distinct),
        "independent_days": int(len(distinct) // max(1, horizon_ms / DAY_MS)),
    }


def _first(samples: Samples) -> int:
    return int(samples.segment.open_time_ms[samples.rows[0]])


def lines(description: dict[str, Any]) -> list[str]:
    """Return what ``described`` found, for people."""
    texts = [
        f"{file['name']}: {file['symbol']}, {file['interval']}, {file['bars']:,} bars from"
        f" {file['from']} until {file['until']}"
        + (f", {file['known_already']:,} in an earlier file" if file["known_already"] else "")
        for file in description["files"]
    ]
    features = description["features"]
    texts.append(
        f"features {features['schema_id']}: {features['columns']} columns, a row depends on"
        f" {features['lookback']:,} bars"
    )
    texts += [
        f"{row['interval']}: {row['bars']:,} bars of {', '.join(row['symbols'])} in"
        f" {row['pieces']} pieces, the longest of {row['longest_piece']:,}; {row['rows']:,} rows"
        for row in description["intervals"]
    ]
    for name, part in description["parts"].items():
        others = f", and {part['further_bars']:,} bars of other intervals"
        texts.append(
            f"{name}: {part['from']} until {part['until']}" + others * bool(part["further_bars"])
        )
        texts += [
            f"  {row['time']}: {row['bars']:,} labels, {row['not_overlapping']:,} that share no"
            f" bar, {row['days']:,} days ({row['independent_days']:,} independent)"
            for row in part["horizons"]
        ]
    return texts
