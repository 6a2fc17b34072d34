"""Vectors that a user supplies, for the model of a run: as configured, or as a run kept them.

The rule is docs/models.md, L64.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tracepaper.daemon.config.loading import Config
from tracepaper.storage.vectors import find_vectors, keep_vectors, read_vectors
from tracepaper.strategies.strategy import Forecaster
from tracepaper.strategies.vectors import VectorSource

VECTORS: Final = "vectors"
"""The key, among what else an answer follows from, of what they are kept as."""


def configured_vectors(
    config: Config, card: Mapping[str, Any], *, beside: Path | None
) -> VectorSource | None:
    """Return the vectors that ``[model] vectors`` names, of the columns that *card* says.

    They are kept beside the database *beside*. Raises ``DataInvalid`` for a file that cannot be
    believed, or lacks a column.
    """
    if config.model.vectors is None:
        return None
    file = read_vectors(_path(config, config.model.vectors))
    if beside is not None:
        keep_vectors(file, beside)
    return file.standing(_columns(card))


def recorded_vectors(
    database: Path, kept_as: str, card: Mapping[str, Any], *, into: Path | None = None
) -> VectorSource | None:
    """Return the vectors that a run of *database* kept, for the model of *card*; None for none.

    They are kept beside *into* as well. Raises ``CheckpointMismatch`` where they are gone or
    changed.
    """
    columns = _columns(card)
    if not kept_as or not columns:
        return None
    file = find_vectors(database, kept_as)
    if into is not None:
        keep_vectors(file, into)
    return file.standing(columns)


def kept_vectors_of(libraries: str) -> str:
    """Return what a run's vectors are kept as, by its ``libraries``; empty where it has none."""
    return str(json.loads(libraries or "{}").get(VECTORS, ""))


def vectors_kept_as(forecaster: Forecaster | None) -> str:
    """Return what the vectors of *forecaster* are kept as; empty where it has none."""
    source: VectorSource | None = getattr(forecaster, VECTORS, None)
    return "" if source is None else source.name


def _path(config: Config, written: str) -> Path:
    """Return the file: beside the configuration where it is there, else from the working folder."""
    beside = None if config.folder is None else config.folder / written
    return beside if beside is not None and beside.is_file() else Path(written)


def _columns(card: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the columns that the model of *card* was trained with; none for one without."""
    from tracepaper.strategies.forecasters.build import takes_vectors, vector_scale

    return vector_scale(card).columns if takes_vectors(card) else ()
