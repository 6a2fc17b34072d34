"""What a set of features is to the code that computes it, in a batch and bar by bar alike.

A recipe says what a bar contributes by itself, over which windows that is added up, and how rows
follow; ``features`` keeps the windows. So a set of features holds formulas and no state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tracepaper.strategies.features_rolling import Array, Wanted, Window


class FeatureParts(NamedTuple):
    """What rows follow from: everything known at each bar's close, over [time]."""

    past_closes: Sequence[Array] | Array  # one for each of ``close_lags``
    sums: Mapping[Window, Array]  # [quantity, time]: sums of the base rows
    far: Mapping[Window, Array]  # the same of the first ``far_rows`` of them, over longer windows
    extremes: Mapping[Window, Array]  # [2, time]: highest high and negative lowest low
    inputs: Array  # [2n, time]: what becomes z-scores, and the squares
    input_sums: Mapping[Window, Array]  # [2n, time]: sums of those
    sigma: Array  # the volatility of one bar
    open_time_ms: NDArray[np.int64]


class FeatureRecipe(Protocol):
    """A set of features as formulas; all arrays are [row, time]."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the features, in their order."""
        ...

    @property
    def lookback(self) -> int:
        """The bars that one row depends on."""
        ...

    base: int  # rows of ``base_rows``
    close: int  # which of them is the close
    close_lags: tuple[int, ...]
    sums: Wanted  # of the base rows
    far: Wanted
    far_rows: int
    channel: Wanted  # of extremes
    z_scores: Wanted  # of the inputs

    def base_rows(
        self, high: Array, low: Array, close: Array, volume: Array, before: Array
    ) -> Array:
        """Return what each bar says; *before* is [2, time]: close and return before it."""
        ...

    def sigma_of(self, sums: Mapping[Window, Array]) -> Array:
        """Return the volatility of one bar, which scales targets and forecasts."""
        ...

    def standardised_inputs(
        self, high: Array, low: Array, sums: Mapping[Window, Array], sigma: Array
    ) -> Array:
        """Return the three rows that become z-scores, and their squares."""
        ...

    def rows(self, made: FeatureParts) -> NDArray[np.float32]:
        """Return [feature, time] rows, scaled and clipped."""
        ...


class AnySet(Protocol):
    """The features of one schema."""

    schema_id: str

    def recipe(self) -> FeatureRecipe:
        """Return them as they are computed."""
        ...
