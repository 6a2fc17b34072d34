"""Assets judged together: how their ranks agree at each close, and what weights of them made.

The rule is docs/several.md, P29.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from tracepaper.replay.training.evaluation import HorizonForecasts
from tracepaper.replay.training.series import SYMBOL_BITS
from tracepaper.replay.training.weighed import Weighed
from tracepaper.strategies.features.rolling import Array

RELATIVE = "relative"
"""The head of relative returns among the forecasts that rank the assets."""


class AcrossAssets(NamedTuple):
    """What a network over several assets says beside the forecasts of each.

    ``relative`` holds by horizon, in bars, the expected relative returns over the rows of that
    horizon's forecasts; ``held`` what its weights and every rule's made, by name, empty where there
    was no decision.
    """

    relative: Mapping[int, Array]
    held: Mapping[str, Weighed]

    def expected(self, found: HorizonForecasts) -> dict[str, Array]:
        """Return all that ranks the assets at the horizon of *found*, by name, in its units."""
        return {RELATIVE: self.relative[found.horizon], **found.means}


class CloseRanks(NamedTuple):
    """The rank correlation across the assets at each close, oldest first, and the close's day."""

    value: Array
    days: NDArray[np.int64]


def close_ranks(found: HorizonForecasts, expected: Array) -> CloseRanks:
    """Return Spearman's correlation of *expected* with realised log returns, close by close.

    *expected* are in the units of each row. A close counts where every asset has a row.
    """
    order = np.argsort(found.keys)
    _, counts = np.unique(found.keys[order] >> SYMBOL_BITS, return_counts=True)
    assets = int(counts.max())
    whole = counts == assets
    rows = order[np.repeat(whole, counts)].reshape(-1, assets).T  # [asset, close]
    value = rank_correlations((expected * found.unit)[rows], (found.value * found.unit)[rows])
    return CloseRanks(value, found.days[rows[0]])


def rank_correlations(expected: Array, realised: Array) -> Array:
    """Return Spearman's correlation across the assets, one a close, of [asset, close].

    0 where either is the same for all.
    """
    first, second = (rankdata(values, axis=0) for values in (expected, realised))
    first, second = first - first.mean(axis=0), second - second.mean(axis=0)
    spread = np.sqrt((first**2).sum(axis=0) * (second**2).sum(axis=0))
    found: Array = np.divide(
        (first * second).sum(axis=0), spread, out=np.zeros(len(spread)), where=spread > 0
    )
    return found
