"""Value at risk and expected shortfall: calibrated, and compared with the losses that followed.

Both are figures of the forecast's Student t: the loss that a share of all exceed, and the mean of
those that do. A Student t that covers 90 % of returns may understate the worst hundredth. So the
calibration slice scales each tail's distance from the mean until the right share of losses exceeds
it, and the shortfall's until it is the mean of those.

Kupiec's test (1995) asks whether breaches are as frequent as forecast, Christoffersen's (1998)
whether one follows another more often than chance; both on bars that share no future.

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
from tracepaper.replay.learning.judge.forecasts import Forecasts
from tracepaper.replay.learning.splits import SYMBOL_BITS
from tracepaper.replay.learning.statistics import DailyEstimate
from tracepaper.replay.report import metrics
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.types.decisions import SHARES

TAILS: Final = "tails"
"""``[calibration.tails]``: by horizon and side, a pair of factors for each of ``SHARES``."""
SIDES: Final = {"long": -1.0, "short": 1.0}
"""The sign of the returns by which each side loses."""
BREACHES_LEAST: Final = 5
"""With fewer losses that share no future a value at risk is not calibrated."""


class Tail(NamedTuple):
    """One side's realised losses and its forecast tail, each [row]."""

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


def tail_of(rows: Forecasts, side: str, share: float) -> Tail:
    """Return one side's losses, and the tail of the model's Student t."""
    sign = SIDES[side]
    mean, scale, dof = (rows.value(field) for field in ("mean", "scale", "dof"))
    lost = sign * rows.labels["returns"]
    return Tail(lost, sign * mean, *value_at_risk(sign * mean, scale, dof, share))


def tail_factors(table: Forecasts) -> dict[str, Any]:
    """Return ``[calibration.tails]`` of the calibration slice's forecasts."""
    return {
        str(horizon): {
            side: [_factors(tail_of(rows, side, share), share, horizon) for share in SHARES]
            for side in SIDES
        }
        for horizon, rows in table.by_horizon()
    }


def _factors(tail: Tail, share: float, horizon: int) -> list[float]:
    if share * len(tail.lost) / horizon < BREACHES_LEAST:
        return [1.0, 1.0]
    distance = tail.lost - tail.mean
    ratio = distance / (tail.limit - tail.mean)
    # The higher of two rows leaves no more than the share beyond it.
    limit = max(float(np.quantile(ratio, 1.0 - share, method="higher")), 0.0)
    beyond = ratio > limit
    if not beyond.any():
        return [1.0, 1.0]
    forecast = (tail.expected - tail.mean)[beyond]
    return [rounded(limit), rounded(float((distance[beyond] / forecast).mean()))]


SIDE_WORDS: Final = {"of a long position": -1.0, "of a short position": 1.0}
"""The sign of the returns by which each side loses, by its words in a table."""
_SYMBOL: Final = 1 << SYMBOL_BITS
"""A key is its bar's number times this, plus the number of its symbol."""


class Breaches(NamedTuple):
    """The breaches of one value at risk, and their tests."""

    horizon: int  # bars
    tail: str
    share: float  # forecast to lie beyond
    came: DailyEstimate  # the share of all bars that did
    bars: int  # bars that share no future
    often: float | None  # p of Kupiec's test
    apart: float | None  # p of Christoffersen's
    shortfall: DailyEstimate | None  # mean of breaches ÷ the expected shortfall; 1 is right


def breaches_of(
    rows: Forecasts, factors: Mapping[str, Any] | None = None, *, is_calibrated: bool = False
) -> Iterator[Breaches]:
    """Yield the breaches of each side's value at risk at ``SHARES``, of the rows of one horizon.

    With *is_calibrated* the tails are scaled by the card's *factors*; a horizon without them is
    left out.
    """
    (horizon,) = rows.horizons
    scale = (factors or {}).get(str(horizon), {})
    if is_calibrated and not scale:
        return
    for words, side in zip(SIDE_WORDS, SIDES, strict=True):
        for place, share in enumerate(SHARES):
            tail = tail_of(rows, side, share)
            if is_calibrated:
                tail = tail.scaled(scale[side][place])
            yield count_breaches(rows, words, share, tail)


def count_breaches(rows: Forecasts, words: str, share: float, tail: Tail) -> Breaches:
    """Count and test the losses of one horizon's *rows* beyond a value at risk."""
    (horizon,) = rows.horizons
    alone = without_overlap(rows.keys, horizon)
    beyond, ratio = tail.lost > tail.limit, tail.lost / tail.expected
    return Breaches(
        horizon,
        words,
        share,
        figures.mean(beyond.astype(np.float64), rows.day),
        len(alone),
        kupiec(beyond[alone], share),
        christoffersen(beyond[alone], follows(rows.keys[alone], horizon)),
        figures.mean(ratio[beyond], rows.day[beyond]) if beyond.any() else None,
    )


def without_overlap(keys: NDArray[np.int64], horizon: int) -> NDArray[np.int64]:
    """Return rows of which no two of a symbol share a future bar, by symbol and time."""
    order = np.lexsort((keys // _SYMBOL, keys % _SYMBOL))
    rows: NDArray[np.int64] = order[keys[order] // _SYMBOL % horizon == 0]
    return rows


def follows(keys: NDArray[np.int64], horizon: int) -> NDArray[np.bool_]:
    """Return for each row but the first whether it follows the row before without a gap."""
    is_same_symbol = keys[1:] % _SYMBOL == keys[:-1] % _SYMBOL
    is_next = keys[1:] // _SYMBOL - keys[:-1] // _SYMBOL == horizon
    adjacent: NDArray[np.bool_] = is_same_symbol & is_next
    return adjacent


def kupiec(beyond: NDArray[np.bool_], share: float) -> float | None:
    """Return Kupiec's p value: of so many breaches if *share* is right; None without rows."""
    return metrics.kupiec(int(beyond.sum()), len(beyond), share)


def christoffersen(beyond: NDArray[np.bool_], in_turn: NDArray[np.bool_]) -> float | None:
    """Return Christoffersen's p value: of breaches that follow one another as these do by chance.

    *in_turn* says for each row but the first whether it follows the row before. None where no row
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


def _likelihood(breaches: int, count: int, share: float) -> float:
    return float(special.xlogy(breaches, share) + special.xlogy(count - breaches, 1.0 - share))
