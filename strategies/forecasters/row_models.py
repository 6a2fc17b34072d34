"""Models of one row of features, ``tree`` and ``glm``: plain arrays in, mean and variance out.

A kind is one entry of ``ROW_KINDS``. Both speak in the units of the labels: the return to a
horizon h of bars in σ √h, and its variance in σ² h. A row is answered alike, bit for bit, in any
company.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tracepaper.strategies.errors import CheckpointMismatch
from tracepaper.strategies.forecasters.trees import Floats, Scorer, Trees

_BLOCK_ROWS: Final = 4_096  # rows answered at once; bounds memory

Arrays = Mapping[str, NDArray[Any]]


class Added(NamedTuple):
    """What each feature of a row adds to its mean and to the logarithm of its variance.

    ``mean`` and ``log_variance`` are [horizon, feature]; with the bases [horizon] they sum to what
    the model says, to rounding.
    """

    mean: Floats
    mean_base: Floats
    log_variance: Floats
    log_variance_base: Floats


class RowModel(Protocol):
    """What a kind reads from its arrays."""

    def answer(self, rows: NDArray[np.floating]) -> tuple[Floats, Floats]:
        """Return mean and logarithm of the variance, [row, horizon] each, of many rows."""
        ...

    def added(self, row: NDArray[np.floating]) -> Added:
        """Return what each feature of one [feature] *row* adds."""
        ...


@dataclass(frozen=True)
class RowKind:
    """A kind of row model, by the name that a card gives as ``[model] kind``."""

    name: str
    read: Callable[[Arrays, int, int], RowModel]
    """Arrays, features and horizons → the model; raises ``CheckpointMismatch``."""


class TreeModel:
    """Boosted trees: an ensemble a horizon for the log variance, then one for the mean."""

    def __init__(self, arrays: Arrays, features: int, horizons: int) -> None:
        """Raise ``CheckpointMismatch`` for trees of another number of features or horizons."""
        self.trees = Trees.read(arrays, features=features)
        if len(self.trees.trees) != 2 * horizons:
            raise CheckpointMismatch(
                f"The checkpoint holds {len(self.trees.trees)} ensembles of trees for {horizons} "
                "horizons; it needs one for the variance and one for the mean of each."
            )
        self._scorer = Scorer(self.trees)
        self._horizons = horizons

    def answer(self, rows: NDArray[np.floating]) -> tuple[Floats, Floats]:
        """Return mean and log variance, [row, horizon] each."""
        found = self._scorer.scores(rows)
        return found[:, self._horizons :], found[:, : self._horizons]

    def added(self, row: NDArray[np.floating]) -> Added:
        """Return the exact Shapley values of the row: see ``contributions``."""
        from tracepaper.strategies.forecasters.contributions import contributions

        by_feature, base = contributions(self.trees, row[None])
        split = self._horizons
        return Added(by_feature[0, split:], base[split:], by_feature[0, :split], base[:split])


class GlmModel:
    """A gamma regression with log link for the variance, beside a linear mean."""

    NAMES: Final = ("log_variance_weights", "mean_weights", "log_variance_base", "mean_base")

    def __init__(self, arrays: Arrays, features: int, horizons: int) -> None:
        """Raise ``CheckpointMismatch`` for weights of another shape."""
        for name in (*self.NAMES, "centre"):
            shape = (horizons, features) if name.endswith("weights") else (horizons,)
            shape = (features,) if name == "centre" else shape
            given = arrays.get(name)
            if given is None or given.dtype != np.float64 or given.shape != shape:
                raise CheckpointMismatch(
                    f"The weight {name} is no float64 of shape {list(shape)}; use the checkpoint "
                    "that the card belongs to."
                )
        if unknown := sorted(set(arrays) - {*self.NAMES, "centre"}):
            raise CheckpointMismatch(
                f"The weight {unknown[0]} is no part of a glm; use the checkpoint that the card "
                "belongs to."
            )
        self._log_variance, self._mean = (arrays[name] for name in self.NAMES[:2])
        self._log_variance_base, self._mean_base = (arrays[name] for name in self.NAMES[2:])
        self._centre = arrays["centre"]

    def answer(self, rows: NDArray[np.floating]) -> tuple[Floats, Floats]:
        """Return mean and log variance, [row, horizon] each."""
        return (
            self._linear(rows, self._mean) + self._mean_base,
            self._linear(rows, self._log_variance) + self._log_variance_base,
        )

    def added(self, row: NDArray[np.floating]) -> Added:
        """Return weight times distance from the mean of the training rows, exact by definition."""
        shifted: Floats = row.astype(np.float64) - self._centre
        return Added(
            self._mean * shifted,
            self._mean_base,
            self._log_variance * shifted,
            self._log_variance_base,
        )

    def _linear(self, rows: NDArray[np.floating], weights: Floats) -> Floats:
        found = np.empty((len(rows), len(weights)))
        for start in range(0, len(rows), _BLOCK_ROWS):
            part = slice(start, start + _BLOCK_ROWS)
            # A matrix product would round by the number of rows; a sum along the row does not.
            found[part] = ((rows[part] - self._centre)[:, None, :] * weights).sum(axis=-1)
        return found


ROW_KINDS: Final[Mapping[str, RowKind]] = {
    kind.name: kind for kind in (RowKind("tree", TreeModel), RowKind("glm", GlmModel))
}
"""Every kind of row model by its name."""
