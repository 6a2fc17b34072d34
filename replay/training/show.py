"""Training and figures on a terminal: a calm progress line, and tables."""

from __future__ import annotations

from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from tracepaper.replay.training.fit import Progress as FitProgress
from tracepaper.replay.training.recipe import Recipe
from tracepaper.strategies.units import duration


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
