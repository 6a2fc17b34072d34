"""A user's covariates, joined by time to the bars at which they were known.

A row applies to the bars that close at or after its time, until the next row. So it never affects a
bar that closed before it. A network gets the columns standardised as on its card, and their age.

The rule is docs/models.md, L63.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from tracepaper.strategies.types.market import Event

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]

VECTORS: Final = "vectors"
"""The section in a card's ``[features]`` that describes them."""
PREFIX: Final = "vector_"
"""Prefix of the names of these features."""
AGE: Final = "vector_age"
"""The feature log(1 + age of the row in bars) ÷ 2."""
CLIP: Final = 5.0
"""Features are clipped here, like those of bars."""
ALL_SYMBOLS: Final = ""
"""The key of rows for all symbols, from a file without symbols."""
_NONE: Final = -1


def feature_name(column: str, prefix: str = PREFIX) -> str:
    """Return the name of the feature for a file's *column*."""
    return column if column.startswith(prefix) else prefix + column


@dataclass(frozen=True, slots=True)
class CovariateRows:
    """The rows of one symbol, ascending by time.

    ``from_ms``, also ascending, is the first close at which a row counts: the row's time, or later
    if the row became known later. ``values`` are [row, column].
    """

    time_ms: Ids
    from_ms: Ids
    values: Floats

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.time_ms)

    def places(self, closes_ms: Ids) -> Ids:
        """Return the index of the row that applies at each close; -1 without one."""
        return np.searchsorted(self.from_ms, closes_ms, side="right") - 1


NO_COVARIATES: Final = CovariateRows(
    np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, 0), np.float64)
)
"""The rows of a symbol without any."""


def rows_of(time_ms: Ids, values: Floats) -> CovariateRows:
    """Return rows that were known at their times."""
    return CovariateRows(time_ms, time_ms, values)


class JoinedRows(NamedTuple):
    """The rows of several bars; NaN with time 0 for a bar without one."""

    time_ms: Ids  # [bar]
    values: Floats  # [bar, column]


class CovariateSource(Protocol):
    """A source of rows: a fixed file, a growing file, or a run's order books."""

    @property
    def name(self) -> str:
        """The name of the copy that is kept with the database; empty if none is kept."""
        ...

    def at(self, symbol: str, closes_ms: Ids) -> JoinedRows:
        """Return the rows of *symbol* at these closes, with the model's columns."""
        ...


class RunSource(CovariateSource, Protocol):
    """A source that computes rows from the events of a run."""

    def see(self, event: Event) -> None:
        """Process the next event, before the model forecasts from it."""
        ...


class HasVectors(Protocol):
    """A forecaster that may read rows besides bars."""

    @property
    def vectors(self) -> CovariateSource | None:
        """The source of the rows; None without any."""
        ...


def run_source(model: HasVectors | None) -> RunSource | None:
    """Return the source of *model* that needs the run's events, if any."""
    source: Any = None if model is None else model.vectors
    return source if hasattr(source, "see") else None


def joined_rows(rows: CovariateRows, usable: NDArray[np.bool_], closes_ms: Ids) -> JoinedRows:
    """Return the row that applies at each close; NaN where *usable* is False."""
    places = rows.places(closes_ms)
    has = (places != _NONE) & usable
    values = np.full((len(closes_ms), rows.values.shape[1]), np.nan)
    times = np.zeros(len(closes_ms), dtype=np.int64)
    values[has], times[has] = rows.values[places[has]], rows.time_ms[places[has]]
    return JoinedRows(times, values)


@dataclass(frozen=True)
class FixedCovariates:
    """A file that does not change: a ``CovariateSource``."""

    name: str
    rows: Mapping[str, CovariateRows]

    def rows_for(self, symbol: str) -> CovariateRows:
        """Return the rows of *symbol*, or those for all symbols."""
        return self.rows.get(ALL_SYMBOLS, self.rows.get(symbol, NO_COVARIATES))

    def at(self, symbol: str, closes_ms: Ids) -> JoinedRows:
        """Return the rows at these closes; the whole file was read before the first bar."""
        return joined_rows(
            self.rows_for(symbol), np.ones(len(closes_ms), dtype=np.bool_), closes_ms
        )


@dataclass(frozen=True, slots=True)
class CovariateScale:
    """The columns on a card: their names, in order, and their standardisation."""

    columns: tuple[str, ...]  # of the file
    centre: tuple[float, ...]
    scale: tuple[float, ...]
    prefix: str = PREFIX  # of the features' names

    @property
    def features(self) -> tuple[str, ...]:
        """The names of the features."""
        return (
            *(feature_name(column, self.prefix) for column in self.columns),
            f"{self.prefix}age",
        )

    @classmethod
    def of(cls, section: Mapping[str, Any], prefix: str = PREFIX) -> CovariateScale:
        """Read ``[features.vectors]`` or ``[features.book]`` of a card; *prefix* selects which."""
        columns, centre, scale = (tuple(section[key]) for key in ("columns", "centre", "scale"))
        return cls(columns, centre, scale, prefix)

    @classmethod
    def fitted(
        cls,
        columns: Sequence[str],
        tables: Sequence[JoinedRows | CovariateRows],
        until_ms: int,
        prefix: str = PREFIX,
    ) -> Self:
        """Return the scale with mean and deviation of the rows before *until_ms*."""
        values = np.concatenate([rows.values[rows.time_ms < until_ms] for rows in tables])
        values = values[np.isfinite(values).all(axis=1)]
        centre, scale = np.zeros(len(columns)), np.ones(len(columns))
        if len(values):
            centre, deviation = values.mean(axis=0), values.std(axis=0)
            scale = np.where(deviation > 0, deviation, 1.0)
        return cls(tuple(columns), tuple(centre.tolist()), tuple(scale.tolist()), prefix)

    def section(self) -> dict[str, Any]:
        """Return the section for a card."""
        return {
            "columns": list(self.columns),
            "centre": list(self.centre),
            "scale": list(self.scale),
        }


def section_beside(card: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    """Return ``[features.name]`` of *card*, an input besides bars; None without it."""
    section: Mapping[str, Any] | None = card.get("features", {}).get(name)
    return section


def takes_vectors(card: Mapping[str, Any]) -> bool:
    """Return whether the model of *card* was trained with a user's covariates."""
    return section_beside(card, VECTORS) is not None


def vector_scale(card: Mapping[str, Any]) -> CovariateScale:
    """Return the scale of *card*'s covariates."""
    return CovariateScale.of(card["features"][VECTORS])


@dataclass(frozen=True)
class CovariateColumns:
    """The features of a source, which follow those of bars in a schema."""

    scale: CovariateScale
    source: CovariateSource

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the features, in their order."""
        return self.scale.features

    def at(self, symbol: str, closes_ms: Ids, interval_ms: int) -> NDArray[np.float32]:
        """Return [bar, feature] at these closes; NaN where no row applies."""
        scaled = np.full((len(closes_ms), len(self.names)), np.nan, dtype=np.float32)
        rows = self.source.at(symbol, closes_ms)
        has = np.isfinite(rows.values).all(axis=1) & bool(rows.values.shape[1])
        if not has.any():
            return scaled
        values = rows.values[has]
        standard = (values - np.array(self.scale.centre)) / np.array(self.scale.scale)
        scaled[has, :-1] = np.clip(standard, -CLIP, CLIP)
        age = (closes_ms[has] - rows.time_ms[has]) / interval_ms
        scaled[has, -1] = np.minimum(np.log1p(age) / 2.0, CLIP)
        return scaled

    def newest(self, symbol: str, close_ms: int, interval_ms: int) -> NDArray[np.float32]:
        """Return the row [feature] of the newest bar."""
        return self.at(symbol, np.array([close_ms]), interval_ms)[0]
