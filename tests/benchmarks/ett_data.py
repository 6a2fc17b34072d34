"""A table of series, as the ETT benchmarks cut it: parts in months, z-scores, windows.

Months are of 30 days, counted from the first row: 12 to train on, 4 to validate, 4 to test; rows
after them are not used. Every variable is centred and scaled by the training part alone. A window
is forecast if all its answers lie in the part; the rows before them may reach into the part before,
so that the number of windows, ``rows - horizon + 1``, does not depend on how far a network looks
back. That is the convention of the published code with its lookback border (2,857 test windows of
hourly rows at horizon 24), but for its last, incomplete batch, which is not dropped here.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracepaper.strategies.errors import ConfigInvalid, DataInvalid, shown

CHUNK: Final = 512
"""Windows that are answered at once."""
MONTH_DAYS: Final = 30
MONTHS: Final = (12, 4, 4)
"""Months of the training, validation and test part."""

Values = NDArray[np.float64]
Rows = NDArray[np.int64]


class SeriesTable(NamedTuple):
    """A file of series: one row a moment, at even steps."""

    names: tuple[str, ...]
    times: list[datetime]
    values: Values  # [row, variable]
    day_rows: int
    """Rows a day."""


class TaskPart(NamedTuple):
    """The rows of one part, from ``start`` to before ``stop``."""

    start: int
    stop: int


class SeenAndAnswers(NamedTuple):
    """Windows, and what followed them."""

    seen: Values  # [window, row, variable]
    answers: Values  # [window, horizon, variable]


@dataclass(frozen=True)
class Task:
    """What is to be forecast: *horizon* rows of every variable, in standard deviations."""

    values: Values  # [row, variable], of the three parts
    marks: Values  # [row, 4], hour, day of week, of month and of year, -0.5 to 0.5
    training: TaskPart
    validation: TaskPart
    test: TaskPart
    horizon: int
    day_rows: int

    def origins(self, part: TaskPart, window: int) -> Rows:
        """Return the first row of each answer of *part* with *window* rows before it."""
        return np.arange(max(part.start, window), part.stop - self.horizon + 1)

    def windows(self, origins: Rows, window: int) -> SeenAndAnswers:
        """Return the *window* rows before each origin, and the answers from it on."""
        seen = self.values[origins[:, None] + np.arange(-window, 0)]
        return SeenAndAnswers(seen, self.values[origins[:, None] + np.arange(self.horizon)])


Answer = Callable[[Rows], Values]
"""Origins → the forecast [origin, horizon, variable] from each."""


class Errors(NamedTuple):
    """Means over all windows, steps and variables, in standard deviations of training."""

    mse: float
    mae: float


class DirectModel(NamedTuple):
    """What answers, how many numbers were fitted, and what was chosen."""

    answer: Answer
    parameters: int
    chosen: str


def errors(task: Task, origins: Rows, answer: Answer) -> Errors:
    """Return the errors of *answer* over *origins*, every one of them."""
    squares = sizes = count = 0.0
    for start in range(0, len(origins), CHUNK):
        chunk = origins[start : start + CHUNK]
        truth = task.windows(chunk, 0).answers
        off = np.asarray(answer(chunk), dtype=np.float64) - truth
        squares += float((off**2).sum())
        sizes += float(np.abs(off).sum())
        count += off.size
    return Errors(squares / count, sizes / count)


def read_table(path: Path) -> SeriesTable:
    """Read a CSV of a date column and columns of numbers; raise ``DataInvalid`` for uneven rows."""
    with path.open(encoding="utf-8-sig", newline="") as lines:
        header, *body = (row for row in csv.reader(lines) if row)
    times = [datetime.fromisoformat(row[0]).replace(tzinfo=UTC) for row in body]
    values = np.array([[float(cell) for cell in row[1:]] for row in body])
    steps = {after - before for before, after in pairwise(times)}
    if len(steps) != 1 or not np.isfinite(values).all():
        raise DataInvalid(f"{path}: its rows are not at even steps, or hold what is no number.")
    return SeriesTable(tuple(header[1:]), times, values, timedelta(days=1) // steps.pop())


def prepare(path: Path, table: SeriesTable, *, horizon: int) -> Task:
    """Return the task of *table*.

    Raises ``DataInvalid`` when the file is too short or a column never moves in training,
    ``ConfigInvalid`` when the horizon is longer than a part.
    """
    stops = np.cumsum(MONTHS) * MONTH_DAYS * table.day_rows
    if len(table.values) < stops[-1]:
        raise DataInvalid(
            f"{path} holds {len(table.values):,} rows; the protocol needs {stops[-1]:,}, which are "
            f"{sum(MONTHS)} months of {MONTH_DAYS} days: give a longer file."
        )
    if horizon > (least := min(MONTHS) * MONTH_DAYS * table.day_rows):
        raise ConfigInvalid(
            f"The horizon of {horizon:,} rows is longer than the {least:,} rows of the validation "
            "and the test part; give a shorter one."
        )
    values = table.values[: stops[-1]]
    training = values[: stops[0]]
    spread = training.std(axis=0)
    for name, still in zip(table.names, spread == 0.0, strict=True):
        if still:
            raise DataInvalid(
                f"{path}: column {shown(name)} never moves in the training part; leave it out."
            )
    first, second, third = (
        TaskPart(int(start), int(stop)) for start, stop in pairwise((0, *stops))
    )
    scaled = (values - training.mean(axis=0)) / spread
    marks = time_marks(table.times[: stops[-1]])
    return Task(scaled, marks, first, second, third, horizon, table.day_rows)


def time_marks(times: list[datetime]) -> Values:
    """Return [row, 4]: hour, day of week, day of month and day of year, each -0.5 to 0.5."""
    parts = [
        (
            time.hour / 23,
            time.weekday() / 6,
            (time.day - 1) / 30,
            (time.timetuple().tm_yday - 1) / 365,
        )
        for time in times
    ]
    return np.array(parts) - 0.5
