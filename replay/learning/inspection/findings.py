"""What an examination found: a table of plain values, which terminal, JSON and pages show alike."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracepaper.replay.document.values import Form, Table, Value, table_of
from tracepaper.replay.learning.statistics import mean
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

    def table(self) -> Table:
        """Return it as a part of a document."""
        forms = {name: _form(cell) for name, cell in (self.rows[0] if self.rows else {}).items()}
        rows = [[_value(cell) for cell in row.values()] for row in self.rows]
        return table_of(self.name, self.title, forms, rows, notes=[self.note] if self.note else [])


def paired(values: Array, days: NDArray[np.int64]) -> list[float]:
    """Return the mean of *values* [decision] with its error over days, as a cell."""
    found = mean(values, days)
    return [round(found.value, 6), round(found.error, 6)]


def _form(cell: Cell) -> Form:
    match cell:
        case str():
            return "text"
        case int():
            return "count"
        case float():
            return "measure"
        case list():
            return "signed"


def _value(cell: Cell) -> Value:
    return (cell[0], cell[1]) if isinstance(cell, list) else cell
