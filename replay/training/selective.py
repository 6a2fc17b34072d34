"""Selective prediction: what accuracy remains when only the surest bars are answered.

The entropy gate must earn its place against gates that cost nothing: chance, the margin between
the probabilities, and the predicted spread. All are compared at equal coverage.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tracepaper.replay.training.figures import Figure, figure
from tracepaper.strategies.features_rolling import Array

COVERAGES: Final = (0.5, 0.2, 0.1, 0.05)
_AREA_COVERAGES: Final = np.linspace(0.05, 1.0, 20)


def gained(hit: Array, measure: Array, coverage: float, days: NDArray[np.int64]) -> Figure:
    """Return the accuracy of the *coverage* share with the highest *measure*, less that of all.

    Chance gains nothing, so this is the comparison with a random gate of equal coverage.
    """
    chosen = top(measure, coverage).astype(np.float64)
    terms = np.stack([hit * chosen, chosen, hit, np.ones_like(hit)])
    return figure(terms, days, lambda s: s[:, 0] / np.maximum(s[:, 1], 1.0) - s[:, 2] / s[:, 3])


def top(measure: Array, coverage: float) -> NDArray[np.bool_]:
    """Return which rows hold the largest *measure*, a *coverage* share of all; ties by order."""
    count = max(round(coverage * len(measure)), 1)
    chosen = np.zeros(len(measure), dtype=np.bool_)
    chosen[np.argsort(-measure, kind="stable")[:count]] = True
    return chosen


def area(hit: Array, measure: Array) -> float:
    """Return the area under the risk–coverage curve, less that of a random gate; below 0 helps."""
    risk = 1.0 - hit
    order = np.argsort(-measure, kind="stable")
    cumulative = np.cumsum(risk[order])
    counts = np.maximum((_AREA_COVERAGES * len(hit)).astype(np.int64), 1)
    return float((cumulative[counts - 1] / counts - risk.mean()).mean())


def table(
    hit: Array, measures: Mapping[str, Array], days: NDArray[np.int64]
) -> dict[str, dict[str, list[float] | float]]:
    """Return for each measure the accuracy gained at ``COVERAGES``, its errors, and the area."""
    found: dict[str, dict[str, list[float] | float]] = {}
    for name, measure in measures.items():
        gains = [gained(hit, measure, coverage, days) for coverage in COVERAGES]
        found[name] = {
            "gained": [round(gain.value, 5) for gain in gains],
            "error": [round(gain.error, 5) for gain in gains],
            "area": round(area(hit, measure), 5),
        }
    return found
