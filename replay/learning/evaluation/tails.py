"""Value at risk and expected shortfall: calibrated, and compared with what came.

A Student t that covers 90 % of returns may say too little of the worst hundredth. So on the
calibration slice each tail's distance from the mean is multiplied by what makes as many losses pass
it as were said, and the shortfall's by what the losses beyond came to.

Both follow from the forecast's Student t: the return that a share of all fall below, and the mean
of those that do. Whether they came as often as said is Kupiec's test (1995), whether one follows
another more often than chance Christoffersen's (1998); both on bars that share no future.

The rules are docs/models.md, L56.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from tracepaper.replay.learning import statistics as figures
from tracepaper.replay.learning.card import rounded
from tracepaper.replay.learning.evaluation.forecasts import HorizonForecasts
from tracepaper.replay.learning.statistics import (
    DailyEstimate,
)
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


SIDE_WORDS: Final = {"of a long position": -1.0, "of a short position": 1.0}
"""Which returns lose: by the sign that they have."""
_SYMBOL: Final = 1 << 32
"""Keys are places in time, times it, and a symbol."""


class Breaches(NamedTuple):
    """What came of one value at risk."""

    horizon: int  # bars
    tail: str
    share: float  # that was to lie beyond
    came: DailyEstimate  # that did, of all bars
    bars: int  # that share no future
    often: float | None  # p of Kupiec's test
    apart: float | None  # p of Christoffersen's
    shortfall: DailyEstimate | None  # mean of breaches ÷ the expected shortfall; 1 is right


def breaches_of(
    one: HorizonForecasts, factors: Mapping[str, Any] | None = None, *, is_calibrated: bool = False
) -> Iterator[Breaches]:
    """Yield what came of each tail's value at risk at the shares ``SHARES``.

    With *is_calibrated* by the *factors* of the card's tails; none where it has no such horizon.
    """
    for words, side in zip(SIDE_WORDS, SIDES, strict=True):
        for place, share in enumerate(SHARES):
            tail = (
                calibrated(one, side, place, factors)
                if is_calibrated
                else tail_of(one, side, share)
            )
            if tail is not None:
                said = TailSaid(one.horizon, words, share, tail.lost, tail.limit, tail.expected)
                yield held(said, one.keys, one.days)


class TailSaid(NamedTuple):
    """One value at risk with its expected shortfall, and the losses that came: all over [row]."""

    horizon: int
    tail: str
    share: float
    lost: Array
    limit: Array
    expected: Array


def held(said: TailSaid, keys: NDArray[np.int64], days: NDArray[np.int64]) -> Breaches:
    """Return what came of a value at risk; *keys* [row] are those of ``Segment.keys``."""
    alone = without_overlap(keys, said.horizon)
    beyond = said.lost > said.limit
    ratio = said.lost / said.expected
    return Breaches(
        said.horizon,
        said.tail,
        said.share,
        figures.mean(beyond.astype(np.float64), days),
        len(alone),
        kupiec(beyond[alone], said.share),
        christoffersen(beyond[alone], follows(keys[alone], said.horizon)),
        figures.mean(ratio[beyond], days[beyond]) if beyond.any() else None,
    )


def without_overlap(keys: NDArray[np.int64], horizon: int) -> NDArray[np.int64]:
    """Return rows of which no two of a symbol share a future bar, by symbol and time."""
    order = np.lexsort((keys // _SYMBOL, keys % _SYMBOL))
    found: NDArray[np.int64] = order[keys[order] // _SYMBOL % horizon == 0]
    return found


def follows(keys: NDArray[np.int64], horizon: int) -> NDArray[np.bool_]:
    """Return of each row but the first whether it follows the row before without a gap."""
    same = keys[1:] % _SYMBOL == keys[:-1] % _SYMBOL
    found: NDArray[np.bool_] = same & (keys[1:] // _SYMBOL - keys[:-1] // _SYMBOL == horizon)
    return found


def kupiec(beyond: NDArray[np.bool_], share: float) -> float | None:
    """Return how likely chance alone makes so many, if a *share* is right; None without rows."""
    count, came = len(beyond), int(beyond.sum())
    if not count:
        return None
    said = _likelihood(came, count, share)
    return float(stats.chi2.sf(max(2.0 * (_likelihood(came, count, came / count) - said), 0.0), 1))


def christoffersen(beyond: NDArray[np.bool_], in_turn: NDArray[np.bool_]) -> float | None:
    """Return how likely chance alone makes breaches follow one another as these do.

    *in_turn* says of each row but the first whether it follows the row before. None where no row
    follows a breach, or nothing was one.
    """
    before, after = beyond[:-1][in_turn], beyond[1:][in_turn]
    first, second = int((~before).sum()), int(before.sum())
    calm, again = int((after & ~before).sum()), int((after & before).sum())
    if not first or not second or not calm + again:
        return None
    together = _likelihood(calm + again, first + second, (calm + again) / (first + second))
    apart = _likelihood(calm, first, calm / first) + _likelihood(again, second, again / second)
    return float(stats.chi2.sf(max(2.0 * (apart - together), 0.0), 1))


def _likelihood(came: int, count: int, share: float) -> float:
    """Return the log likelihood of *came* of *count* at a *share*."""
    return float(special.xlogy(came, share) + special.xlogy(count - came, 1.0 - share))
