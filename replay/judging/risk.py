"""Value at risk and expected shortfall, held to what came: how often, how clustered, how far.

Both follow from the forecast's Student t: the return that a share of all fall below, and the mean
of those that do. Whether they came as often as said is Kupiec's test (1995), whether one follows
another more often than chance Christoffersen's (1998); both on bars that share no future.

The rule is docs/models.md, L56.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from tracepaper.replay.training import figures
from tracepaper.replay.training.evaluation import HorizonForecasts
from tracepaper.replay.training.figures import DailyEstimate
from tracepaper.replay.training.tails import (
    SIDES,
    calibrated,
    tail_of,
)
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.networks.architecture import SHARES

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
