"""Differences of losses on the same bars, with their errors over days, and Holm's correction.

Every error is that of whole calendar days drawn anew, since bars of one day share their market.

The rules are docs/models.md, L14 and L45.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from tracepaper.replay.training import figures
from tracepaper.replay.training.evaluation import HorizonForecasts
from tracepaper.replay.training.figures import (
    DailyEstimate,
    mean,
)
from tracepaper.replay.training.honesty import (
    COMMONER,
    LEVEL,
    PAIRED,
)
from tracepaper.strategies.features.rolling import Array


class DayDifference(NamedTuple):
    """A difference with its standard error over days, and how likely chance alone makes it."""

    value: float
    error: float
    days: int
    p: float  # two-sided; 1 where it cannot be said

    @property
    def pair(self) -> tuple[float, float]:
        """Value and error."""
        return self.value, self.error


def compared(found: DailyEstimate, days: int) -> DayDifference:
    """Return *found*, of so many days, against zero, by Student's t of the days less one.

    The bootstrap's error is that of the days at hand, so it is widened by √(n ÷ (n - 1)).
    """
    if days < 2 or not np.isfinite(found.error) or found.error <= 0:
        return DayDifference(found.value, found.error, days, 1.0)
    error = found.error * (days / (days - 1)) ** 0.5
    said = DayDifference(found.value, error, days, 1.0)
    return said._replace(p=chance(said))


def chance(found: DayDifference) -> float:
    """Return how likely chance alone makes a difference of such an error, in either direction."""
    if found.days < 2 or not found.error > 0:
        return 1.0
    return 2.0 * float(stats.t.sf(abs(found.value) / found.error, found.days - 1))


def difference(first: Array, second: Array, days: NDArray[np.int64]) -> DayDifference:
    """Return the mean of *first* less *second*, bar by bar, over [row]."""
    return compared(mean(first - second, days), len(np.unique(days)))


def holm(values: Sequence[float]) -> list[float]:
    """Return the p-values *values* corrected for their number (Holm, 1979), in their order."""
    order = sorted(range(len(values)), key=values.__getitem__)
    found, least = [0.0] * len(values), 0.0
    for rank, place in enumerate(order):
        least = max(least, min(1.0, (len(values) - rank) * values[place]))
        found[place] = least
    return found


def corrected(every: Mapping[str, DayDifference]) -> dict[str, DayDifference]:
    """Return *every* comparison with its p-value corrected for the number of candidates."""
    values = holm([each.p for each in every.values()])
    return {name: each._replace(p=p) for (name, each), p in zip(every.items(), values, strict=True)}


def verdict(found: DayDifference, *, is_less_better: bool = True) -> str:
    """Return ``better``, ``worse``, or ``level`` where chance explains the difference."""
    if not found.p < LEVEL:
        return "level"
    return "better" if (found.value < 0) == is_less_better else "worse"


# --- of a card


def sign_losses(one: HorizonForecasts) -> dict[str, Array]:
    """Give each forecaster's wrong signs by row, and those of always the commoner sign."""
    every = {**one.means, COMMONER: one.commoner}
    return {name: figures.sign_risk(of, one.value) for name, of in every.items()}


def qlike_losses(one: HorizonForecasts) -> dict[str, Array]:
    """Give the QLIKE of each forecaster's variance by row."""
    return {name: figures.qlike_of(of, one.variance) for name, of in one.variances.items()}


def paired_figures(
    every: Sequence[HorizonForecasts], given: Collection[str], parts: Collection[str] = ()
) -> dict[str, Any]:
    """Compare the model with every other forecaster, by horizon and loss, as a card keeps it.

    *given* are the measures that the model gives; *parts* are names that are no others. Each entry
    is [difference, error, p], p by Holm over the others; less is better.
    """
    found: dict[str, Any] = {}
    for one in every:
        losses = {
            "sign": sign_losses(one) if "mean_return" in given else {},
            "qlike": qlike_losses(one) if "volatility" in given else {},
        }
        found[str(one.horizon)] = {
            loss: _against(of, one.days, parts) for loss, of in losses.items() if of
        }
    return {PAIRED: found}


def _against(
    losses: Mapping[str, Array], days: NDArray[np.int64], parts: Collection[str]
) -> dict[str, list[float]]:
    own = losses["network"]
    others = {n: of for n, of in losses.items() if n != "network" and n not in parts}
    found = corrected({n: difference(own, of, days) for n, of in others.items()})
    return {n: [float(f"{v:.5g}") for v in (of.value, of.error, of.p)] for n, of in found.items()}
