"""The tails of a forecast's Student t: value at risk, expected shortfall, and their calibration.

A Student t that covers 90 % of returns may say too little of the worst hundredth. So on the
calibration slice each tail's distance from the mean is multiplied by what makes as many losses pass
it as were said, and the shortfall's by what the losses beyond came to.

The rule is docs/models.md, L56.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from scipy import stats

from tracepaper.replay.training.card import rounded
from tracepaper.replay.training.evaluation import HorizonForecasts
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.networks.architecture import SHARES

TAILS: Final = "tails"
"""``[calibration.tails]``: by horizon and side, a pair of factors for each of ``SHARES``."""
SIDES: Final = {"long": -1.0, "short": 1.0}
"""Which returns a position loses by: the sign that they have."""
BREACHES_LEAST: Final = 5
"""Fewer losses that share no future do not say where a value at risk lies: it is left as it was."""


class Tail(NamedTuple):
    """The losses of one side that came, and what was said of a share of them: all over [row]."""

    lost: Array
    mean: Array
    limit: Array  # value at risk
    expected: Array  # shortfall beyond it

    def scaled(self, factors: Sequence[float]) -> Tail:
        """Multiply the distances of value at risk and shortfall from the mean."""
        limit, expected = factors
        return self._replace(
            limit=self.mean + limit * (self.limit - self.mean),
            expected=self.mean + expected * (self.expected - self.mean),
        )


def value_at_risk(location: Array, scale: Array, dof: Array, share: float) -> tuple[Array, Array]:
    """Return the loss that a *share* exceeds, and the mean loss beyond it, of Student t losses.

    The degrees of freedom must be above 1. Source: McNeil, Frey and Embrechts, Quantitative Risk
    Management, 2005, chapter 2.
    """
    edge = stats.t.isf(share, dof)
    beyond = stats.t.pdf(edge, dof) / share * (dof + edge**2) / (dof - 1.0)
    return location + scale * edge, location + scale * beyond


def tail_of(one: HorizonForecasts, side: str, share: float) -> Tail:
    """Return one side's losses, and what the Student t says of them."""
    sign = SIDES[side]
    mean = sign * one.mean
    return Tail(sign * one.value, mean, *value_at_risk(mean, one.scale, one.dof, share))


def tail_factors(every: Sequence[HorizonForecasts]) -> dict[str, Any]:
    """Return ``[calibration.tails]`` of the calibration slice's forecasts."""
    return {
        str(one.horizon): {
            side: [_factors(tail_of(one, side, share), share, one.horizon) for share in SHARES]
            for side in SIDES
        }
        for one in every
    }


def _factors(tail: Tail, share: float, horizon: int) -> list[float]:
    if share * len(tail.lost) / horizon < BREACHES_LEAST:
        return [1.0, 1.0]
    distance = tail.lost - tail.mean
    ratio = distance / (tail.limit - tail.mean)
    # With the higher of two rows no more than the share lie beyond.
    limit = max(float(np.quantile(ratio, 1.0 - share, method="higher")), 0.0)
    beyond = ratio > limit
    if not beyond.any():
        return [1.0, 1.0]
    said = (tail.expected - tail.mean)[beyond]
    return [rounded(limit), rounded(float((distance[beyond] / said).mean()))]


def calibrated(
    one: HorizonForecasts, side: str, place: int, factors: Mapping[str, Any] | None
) -> Tail | None:
    """Return a tail at ``SHARES[place]`` by the *factors* of a card; None where it has none."""
    known = (factors or {}).get(str(one.horizon))
    if known is None:
        return None
    return tail_of(one, side, SHARES[place]).scaled(known[side][place])
