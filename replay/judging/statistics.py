"""What separates a better choice from luck: risk by coverage, and the best of many candidates.

Every error is that of whole calendar days drawn anew; a selection is held to the probability of
overfitting. Differences by day are ``training.paired``'s, Sharpe ratios ``report.metrics``'.

The rules are docs/models.md, L45 and L46.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracepaper.replay.report.metrics import lost_elsewhere
from tracepaper.replay.training.figures import bootstrapped
from tracepaper.replay.training.paired import (
    DayDifference,
    compared,
)
from tracepaper.strategies.features.rolling import Array

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
    """Mean risk of the surest shares ``RISK_COVERAGES``, less that of a random gate of equal coverage.

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
