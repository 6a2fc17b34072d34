"""What is learnt at each bar: the scaled return, its direction and its realised variance.

The return from this close to the close *h* bars later is measured in units of σ √h, where σ is
the volatility that the features report at this bar; the variance is that of the h one-bar returns
in the same unit. Labels look forward and features back: they share no bar but the one decided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tracepaper.replay.training.series import Segment
from tracepaper.strategies.features_rolling import Array

FLAT_BAND: Final = 0.2
"""A scaled return within ±0.2 is flat: about a fifth of a fat-tailed bell."""
VARIANCE_FLOOR: Final = 0.01
"""Least scaled variance: up to 2.6 % of five-minute labels never move, and QLIKE divides."""
RETURN_LIMIT: Final = 20.0
"""Scaled returns are cut here: one crash minute must not outweigh a month."""
DOWN, FLAT, UP, NO_LABEL = 0, 1, 2, -1


@dataclass(frozen=True)
class Targets:
    """Labels over [time, horizon]; rows whose future is not known are NaN (``NO_LABEL``)."""

    returns: NDArray[np.float32]
    direction: NDArray[np.int64]
    variance: NDArray[np.float32]


def targets(segment: Segment, horizons: Sequence[int]) -> Targets:
    """Return the labels of every bar of *segment* for each horizon, in bars."""
    count = len(segment)
    returns = np.full((count, len(horizons)), np.nan, dtype=np.float32)
    variance = np.full((count, len(horizons)), np.nan, dtype=np.float32)
    logs = np.log(segment.close)
    moves = np.diff(logs, prepend=logs[0])
    squares = np.concatenate([[0.0], np.cumsum(moves * moves)])
    for column, horizon in enumerate(horizons):
        known = max(count - horizon, 0)
        scale = segment.sigma[:known] * np.sqrt(horizon)
        scaled = (logs[horizon:] - logs[:known]) / scale
        returns[:known, column] = np.clip(scaled, -RETURN_LIMIT, RETURN_LIMIT)
        realised = squares[horizon + 1 :][:known] - squares[1 : known + 1]
        variance[:known, column] = np.clip(realised / scale**2, VARIANCE_FLOOR, RETURN_LIMIT**2)
    return Targets(returns, direction_of(returns), variance)


def direction_of(returns: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return DOWN, FLAT or UP of scaled returns, ``NO_LABEL`` where they are NaN."""
    return np.select(
        [np.isnan(returns), returns < -FLAT_BAND, returns > FLAT_BAND],
        [NO_LABEL, DOWN, UP],
        default=FLAT,
    ).astype(np.int64)


def uniqueness(labelled: NDArray[np.bool_], horizon: int) -> Array:
    """Return the uniqueness of each label: the mean over its span of 1 ÷ labels alive there.

    *labelled* is [time]; label t spans the *horizon* bars after t. Zero where there is no label.
    Source: López de Prado, Advances in Financial Machine Learning, section 4.4.
    """
    count = len(labelled)
    alive = np.zeros(count + horizon + 1)
    starts = np.flatnonzero(labelled)
    np.add.at(alive, starts + 1, 1.0)
    np.add.at(alive, starts + 1 + horizon, -1.0)
    share = 1.0 / np.maximum(np.cumsum(alive), 1.0)
    total = np.concatenate([[0.0], np.cumsum(share)])
    weights = np.zeros(count)
    weights[starts] = (total[starts + 1 + horizon] - total[starts + 1]) / horizon
    return weights
