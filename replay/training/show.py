"""Training and figures on a terminal: a calm progress line, and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from tracepaper.replay.training.figures import COVERAGES
from tracepaper.replay.training.fit import Progress as FitProgress
from tracepaper.strategies.words import duration

_FIGURES: Final = {
    "sign_accuracy": "sign accuracy",
    "ic": "information coefficient",
    "rank_ic": "rank information coefficient",
    "r_squared": "R² of the return",
    "qlike": "volatility QLIKE",
    "log_variance_r_squared": "R² of log variance",
}


class FitView:
    """Shows a fit on stderr: a bar on a terminal, a line a validation elsewhere."""

    def __init__(self, steps: int) -> None:
        self.console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[loss]}"),
            console=self.console,
            disable=not self.console.is_terminal,
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


def figure_tables(figures: Mapping[str, Any]) -> list[Table]:
    """Return a table for each horizon: figures by forecaster, with their errors over days."""
    tables = []
    for horizon, found in figures.items():
        if horizon == "gates":
            continue
        table = Table(title=f"{horizon} bars ahead, {found['bars']:,} bars of {found['days']} days")
        table.add_column("figure")
        table.add_column("forecaster")
        table.add_column("value", justify="right")
        table.add_column("± by days", justify="right")
        for key, name in _FIGURES.items():
            for forecaster, (value, error) in found.get(key, {}).items():
                table.add_row(name, forecaster.replace("_", " "), f"{value:.4f}", f"{error:.4f}")
                name = ""  # noqa: PLW2901 - the figure's name stands once
            table.add_section()
        if (covered := found.get("coverage_90")) is not None:
            table.add_row("interval", "90 % coverage", *_texts(covered))
        for name, pair in found.get("direction", {}).items():
            table.add_row("direction", name, *_texts(pair))
        tables.append(table)
    return tables


def gate_table(gates: Mapping[str, Any]) -> Table:
    """Return the table of the accuracy gained by each gate on its surest bars."""
    table = Table(title="Accuracy gained on the surest bars, in points (± by days)")
    table.add_column("gate")
    for coverage in COVERAGES:
        table.add_column(f"{100 * coverage:.0f} %", justify="right")
    for name, found in gates["selective"].items():
        cells = [
            f"{100 * gain:+.1f} ± {100 * error:.1f}"
            for gain, error in zip(found["gained"], found["error"], strict=True)
        ]
        table.add_row(name.replace("_", " "), *cells)
    return table


def _texts(pair: Sequence[float]) -> tuple[str, str]:
    return f"{pair[0]:.4f}", f"{pair[1]:.4f}"
