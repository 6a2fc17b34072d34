"""Differences of losses on the same bars, with errors by day, Holm's correction, and luck.

Every error is that of whole calendar days drawn anew, since bars of one day share their market.

The rules are docs/models.md, L14 and L45.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from tracepaper.replay.learning import statistics as figures
from tracepaper.replay.learning.evaluation.forecasts import HorizonForecasts
from tracepaper.replay.learning.statistics import (
    DailyEstimate,
    bootstrapped,
    mean,
)
from tracepaper.replay.report.honesty import (
    COMMONER,
    LEVEL,
    PAIRED,
)
from tracepaper.replay.report.metrics import lost_elsewhere
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


def less_others(
    losses: Mapping[str, Array],
    days: NDArray[np.int64],
    own: str = "network",
    parts: Collection[str] = (),
) -> dict[str, DayDifference]:
    """Return the loss [row] of *own* less each other's, Holm over them; *parts* are no others."""
    others = {name: of for name, of in losses.items() if name != own and name not in parts}
    return corrected({name: difference(losses[own], of, days) for name, of in others.items()})


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
            loss: {
                name: [float(f"{number:.5g}") for number in (less.value, less.error, less.p)]
                for name, less in less_others(of, one.days, parts=parts).items()
            }
            for loss, of in losses.items()
            if of
        }
    return {PAIRED: found}


# --- luck


RISK_COVERAGES: Final = np.linspace(0.05, 1.0, 20)
"""Of the risk–coverage curve."""
_SEED: Final = 20_170_817  # of ties


# --- selective prediction


class Ranked(NamedTuple):
    """Bars of one horizon: what each costs if it is answered, how sure it was, and its day."""

    risk: Array
    measure: Array  # higher is surer; NaN leaves a bar out
    days: NDArray[np.int64]


class RiskCurve(NamedTuple):
    """Mean risk of the surest ``RISK_COVERAGES``, less that of a random gate as sure.

    ``area`` is the mean of ``excess``; below zero the measure helps.
    """

    risk: float  # of all bars, which a random gate keeps
    excess: Array
    area: DayDifference
    bars: int


def risk_curve(parts: Sequence[Ranked]) -> RiskCurve | None:
    """Return the curve pooled over *parts*, each ranked by itself; None where no bar is ranked.

    The surest bars are those of the whole part, ties in drawn order. Days are drawn for all parts
    together, since horizons share their market.
    """
    known = [_known(part) for part in parts]
    known = [part for part in known if len(part.risk)]
    if not known:
        return None
    names = np.unique(np.concatenate([part.days for part in known]))
    daily = np.concatenate([_bucketed(part, names) for part in known], axis=1)
    size = len(RISK_COVERAGES)

    def excess(sums: Array) -> Array:
        """Return [.., coverage] of sums [.., part × (risk, count) × bucket]."""
        totals = sums.reshape(len(sums), len(known), 2, size).cumsum(axis=-1)
        risk = totals[:, :, 0] / np.maximum(totals[:, :, 1], 1.0)
        found: Array = (risk - risk[:, :, -1:]).mean(axis=1)
        return found

    area = bootstrapped(daily, lambda sums: excess(sums).mean(axis=1))
    return RiskCurve(
        float(np.mean([part.risk.mean() for part in known])),
        excess(daily.sum(axis=0)[None])[0],
        compared(area, len(names)),
        sum(len(part.risk) for part in known),
    )


def _known(part: Ranked) -> Ranked:
    finite = np.isfinite(part.measure) & np.isfinite(part.risk)
    return Ranked(part.risk[finite], part.measure[finite], part.days[finite])


def _bucketed(part: Ranked, names: NDArray[np.int64]) -> Array:
    """Return [day, 2 × coverage]: risk, then bars, that each step of coverage adds."""
    count = len(part.risk)
    drawn = np.random.default_rng(_SEED).random(count)
    place = np.empty(count, dtype=np.int64)
    place[np.lexsort((drawn, -part.measure))] = np.arange(count)
    # The last step holds what is left, whatever rounding did.
    steps = np.round(RISK_COVERAGES[:-1] * count).astype(np.int64)
    size = len(RISK_COVERAGES)
    cell = np.searchsorted(names, part.days) * size
    cell += np.searchsorted(steps, place, side="right")
    sums = [np.bincount(cell, of, len(names) * size) for of in (part.risk, np.ones(count))]
    tables = [each.reshape(len(names), size).astype(np.float64) for each in sums]
    return np.concatenate(tables, axis=1)


# --- selection


def overfitting(scores: Array) -> float | None:
    """Return the probability that the best of [group, candidate] *scores* is no better elsewhere.

    Lower scores are better. Of every half of the groups the best candidate is taken, and ranked on
    the other half: the share of halves where it is in the worse half of the candidates (Bailey,
    Borwein, López de Prado and Zhu, 2015). None for fewer than two candidates or four groups; of an
    odd number of groups the last is left out.
    """
    groups, candidates = scores.shape
    groups -= groups % 2
    if groups < 4 or candidates < 2:
        return None
    return lost_elsewhere(scores[:groups, None], lambda sums: -sums[0])
