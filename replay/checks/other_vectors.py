"""A user's vectors as they were not: later rows corrupted or cut off, or all of them moved in time.

The rule is docs/strategies.md, U8.
"""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np

from tracepaper.daemon.config.loading import Config
from tracepaper.daemon.session.vectors import vectors_path
from tracepaper.storage.vectors import SYMBOL, TIME, VectorFile, read_vectors
from tracepaper.strategies.vectors import ALL_SYMBOLS, VectorRows, rows_of

_NONSENSE: Final = -40.0
"""Later numbers are multiplied by it, and stand so much lower."""

Change = Callable[[VectorRows], VectorRows]


@contextmanager
def other_vectors(config: Config, change: Change) -> Iterator[Config]:
    """Yield *config* with what *change* makes of its vectors; itself where it names none.

    Raises ``DataInvalid`` for a file that cannot be believed.
    """
    if config.model.vectors is None:
        yield config
        return
    file = read_vectors(vectors_path(config, config.model.vectors))
    with tempfile.TemporaryDirectory(prefix="tracepaper-vectors-") as folder:
        path = Path(folder) / "vectors.csv"
        _write(path, file, change)
        model = config.model.model_copy(update={"vectors": str(path)})
        yield config.model_copy(update={"model": model})


def without_later(at_ms: int, *, cut: bool) -> Change:
    """Return what corrupts the rows after *at_ms*, or cuts them off where some are left."""

    def change(rows: VectorRows) -> VectorRows:
        later = rows.time_ms > at_ms
        if cut and not later.all():
            return rows_of(rows.time_ms[~later], rows.values[~later])
        nonsense = (rows.values + 1.0) * _NONSENSE
        return rows_of(rows.time_ms, np.where(later[:, None], nonsense, rows.values))

    return change


def moved_by(milliseconds: int) -> Change:
    """Return what moves all rows in time."""
    return lambda rows: rows_of(rows.time_ms + milliseconds, rows.values)


def _write(path: Path, file: VectorFile, change: Change) -> None:
    everyones = ALL_SYMBOLS in file.rows
    with path.open("w", encoding="utf-8", newline="") as text:
        writer = csv.writer(text)
        writer.writerow([TIME, *([] if everyones else [SYMBOL]), *file.columns])
        for symbol, rows in file.rows.items():
            whose, other = [] if everyones else [symbol], change(rows)
            for at, values in zip(other.time_ms.tolist(), other.values.tolist(), strict=True):
                writer.writerow([at, *whose, *values])
