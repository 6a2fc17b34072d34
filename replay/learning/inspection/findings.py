"""What an examination found: a table of plain values, which terminal, JSON and pages show alike."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from tracepaper.replay.learning.statistics import (
    mean,
)
from tracepaper.strategies.features.rolling import Array

Cell = str | int | float | list[float]
"""Text, a number, or [value, standard error by day]."""


@dataclass(frozen=True)
class Finding:
    """A table whose rows have the same columns."""

    name: str
    title: str
    note: str
    rows: list[dict[str, Cell]]

    def document(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)

    def on_terminal(self) -> Table:
        """Return it for a terminal."""
        table = Table(title=self.title, caption=self.note or None)
        for name, cell in (self.rows[0] if self.rows else {}).items():
            table.add_column(name, justify="left" if isinstance(cell, str) else "right")
        for row in self.rows:
            table.add_row(*map(_text, row.values()))
        return table


def paired(values: Array, days: NDArray[np.int64]) -> list[float]:
    """Return the mean of *values* [decision] with its error over days, as a cell."""
    found = mean(values, days)
    return [round(found.value, 6), round(found.error, 6)]


def _text(cell: Cell) -> str:
    match cell:
        case [value, error]:
            return f"{value:+.4f} ± {error:.4f}"
        case float():
            return f"{cell:.4f}"
        case _:
            return str(cell)
