"""Labels over [asset, time], and the samples of a part with their weights.

The return from this close to the close *h* bars later is in units of σ √h, where σ is the
volatility that the features report at this bar. The variance is that of the h one-bar returns, in
the same unit squared. Labels look forward and features look back, so they share only the decided
bar's close.

The rules are docs/models.md, L5, L6 and L25.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracepaper.replay.learning.splits import Panel, Part, Segment, Split
from tracepaper.replay.learning.statistics import VARIANCE_FLOOR
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.types.decisions import path_steps
from tracepaper.strategies.units import BASE_FEES

FLAT_BAND: Final = 0.2
"""A scaled return within ±0.2 is flat: about a fifth of all returns."""
RETURN_LIMIT: Final = 20.0
"""The limit of scaled returns, so that one minute of a crash does not outweigh a month."""
DOWN, FLAT, UP, NO_LABEL = 0, 1, 2, -1


Ids = NDArray[np.int64]
Column = NDArray[Any]
"""[.., time] as float32, or as int64 for classes."""
Labels = Mapping[str, Column]
"""Each label's name → [asset, time, horizon, ..]; unknown futures are NaN, or ``NO_LABEL``."""
Fields = Mapping[str, NDArray[np.float32]]
"""Each field's name → [row, horizon, ..], in units of σ √h: mean, scale, dof and variance of the
return, logits of the direction, and outputs of auxiliary heads."""


class Label(NamedTuple):
    """A quantity to learn at each time of a panel."""

    function: LabelFunction
    missing: float
    """The placeholder for an unknown label in a batch; its loss is not counted."""
    head: str = ""
    """The auxiliary head that needs the label; empty if every network does."""


LabelFunction = Callable[[Array, Array, int], Column]
"""``(price [.., time], unit [.., time], horizon) -> label [.., time]``; the unit is σ of a step."""
EVERY_HEAD: Final = frozenset({""})
"""The heads that every network of bars has."""


def targets(
    panel: Panel, horizons: Sequence[int], heads: Collection[str] = EVERY_HEAD
) -> dict[str, Column]:
    """Return the labels that *heads* need, at every time of *panel* and horizon in bars.

    Each is [asset, time, horizon], or [asset, time, horizon, width].
    """
    price, unit = panel.price, panel.unit
    return {
        name: np.stack([each.function(price, unit, horizon) for horizon in horizons], axis=2)
        for name, each in LABELS.items()
        if each.head in heads
    }


def moves(price: Array, horizon: int) -> Array:
    """Return the log returns over the next *horizon* steps, [.., time - horizon]."""
    logs = np.log(price)
    returns: Array = logs[..., horizon:] - logs[..., : max(price.shape[-1] - horizon, 0)]
    return returns


def ahead(values: Array, horizon: int) -> Array:
    """Return the sums of the next *horizon* values of [.., time], [.., time - horizon]."""
    total = np.concatenate([np.zeros((*values.shape[:-1], 1)), np.cumsum(values, axis=-1)], axis=-1)
    count = max(values.shape[-1] - horizon, 0)
    sums: Array = total[..., horizon + 1 :] - total[..., 1 : count + 1]
    return sums


def _steps(price: Array) -> Array:
    """Return the one-step log returns [.., time], 0 at the first."""
    logs = np.log(price)
    return np.diff(logs, prepend=logs[..., :1])


def padded(values: Array, time: int, dtype: type[np.floating[Any]] = np.float64) -> Column:
    """Return *values* padded with NaN to [.., time]."""
    column = np.full((*values.shape[:-1], time), np.nan, dtype=dtype)
    column[..., : values.shape[-1]] = values
    return column


def _scaled(values: Array, unit: Array, horizon: int) -> Column:
    """Return *values* in units of σ √h, cut at ``RETURN_LIMIT``."""
    scale = unit[..., : values.shape[-1]] * np.sqrt(horizon)
    return padded(np.clip(values / scale, -RETURN_LIMIT, RETURN_LIMIT), unit.shape[-1], np.float32)


def scaled_return(price: Array, unit: Array, horizon: int) -> Column:
    """Return the return to *horizon* in units of σ √h, cut at ``RETURN_LIMIT``."""
    return _scaled(moves(price, horizon), unit, horizon)


def direction(price: Array, unit: Array, horizon: int) -> NDArray[np.int64]:
    """Return DOWN, FLAT or UP of the scaled return."""
    return direction_of(scaled_return(price, unit, horizon))


def realised_variance(price: Array, unit: Array, horizon: int) -> Column:
    """Return the sum of squared one-bar returns to *horizon* in units of σ² h, within limits."""
    steps = _steps(price)
    realised = ahead(steps * steps, horizon)
    scale = unit[..., : realised.shape[-1]] * np.sqrt(horizon)
    cut = np.clip(realised / scale**2, VARIANCE_FLOOR, RETURN_LIMIT**2)
    return padded(cut, price.shape[-1], np.float32)


def drawdown(price: Array, unit: Array, horizon: int) -> Column:
    """Return the largest fall between two closes from this bar to *horizon*, in units of σ √h.

    It is cut at ``RETURN_LIMIT``.
    """
    return _largest_fall(np.log(price), unit, horizon)


def runup(price: Array, unit: Array, horizon: int) -> Column:
    """Return the largest rise between two closes from this bar to *horizon*, in units of σ √h.

    It is cut at ``RETURN_LIMIT``.
    """
    return _largest_fall(-np.log(price), unit, horizon)


def _largest_fall(logs: Array, unit: Array, horizon: int) -> Column:
    count = max(logs.shape[-1] - horizon, 0)
    highest = logs[..., :count].copy()
    most = np.zeros_like(highest)
    for step in range(1, horizon + 1):
        close = logs[..., step : step + count]
        np.maximum(highest, close, out=highest)
        np.maximum(most, highest - close, out=most)
    return _scaled(most, unit, horizon)


def path(price: Array, unit: Array, horizon: int) -> Column:
    """Return [.., time, step]: the return over each of ``path_steps`` in units of σ √step."""
    return np.stack([scaled_return(price, unit, step) for step in path_steps(horizon)], axis=-1)


def round_trip_cost(_: Array, unit: Array, horizon: int) -> Column:
    """Return the taker fees of opening and closing a position, in units of σ √h."""
    scale = unit * np.sqrt(horizon)
    return (2.0 * float(BASE_FEES["linear"][0]) / scale).astype(np.float32)


def relative_return(price: Array, unit: Array, horizon: int) -> Column:
    """Return each asset's return minus the mean over assets, in the asset's unit σ √h."""
    returns = moves(price, horizon)
    return _scaled(returns - returns.mean(axis=0), unit, horizon)


def gains(price: Array, horizon: int) -> Array:
    """Return the simple returns to *horizon*: [.., time], NaN if unknown."""
    return padded(np.expm1(moves(price, horizon)), price.shape[-1])


def move(price: Array, _: Array, horizon: int) -> NDArray[np.int64]:
    """Return DOWN, FLAT or UP of the exact price to *horizon*; FLAT is no change at all."""
    column = np.full(price.shape, NO_LABEL, dtype=np.int64)
    count = max(price.shape[-1] - horizon, 0)
    column[..., :count] = np.sign(price[..., horizon:] - price[..., :count]) + FLAT
    return column


def products(price: Array) -> dict[tuple[int, int], Array]:
    """Return the product [time] of one-step log returns of each pair, and each asset's square."""
    steps = _steps(price)
    places = combinations_with_replacement(range(len(steps)), 2)
    return {(first, second): steps[first] * steps[second] for first, second in places}


LEAST_BARS: Final = 5
"""The shortest horizon with a correlation: fewer returns are too noisy."""


def correlations(price: Array, horizon: int) -> Array:
    """Return the uncentred correlation of each pair's one-step returns to *horizon*: [pair, time].

    NaN if unknown, without any move, and at horizons below ``LEAST_BARS``.
    """
    assets, time = price.shape
    if not LEAST_BARS <= horizon < time:
        return np.full((assets * (assets - 1) // 2, time), np.nan)
    sums = {pair: ahead(product, horizon) for pair, product in products(price).items()}
    return padded(correlated(sums), time)


def correlated(sums: Mapping[tuple[int, int], Array]) -> Array:
    """Return the correlations [pair, time] from sums of products; NaN without any move."""
    parts = []
    for (first, second), product in sums.items():
        if first != second:
            spread = np.sqrt(sums[first, first] * sums[second, second])
            with np.errstate(divide="ignore", invalid="ignore"):
                parts.append(np.where(spread > 0, product / spread, np.nan))
    return np.clip(np.stack(parts), -1.0, 1.0)


LABELS: Final = {
    "returns": Label(scaled_return, 0.0),
    "direction": Label(direction, NO_LABEL),
    "variance": Label(realised_variance, 1.0),
    "drawdown": Label(drawdown, 0.0, "drawdown"),
    "runup": Label(runup, 0.0, "runup"),
    "path": Label(path, 0.0, "path"),
    "cost": Label(round_trip_cost, 0.0, "allocation"),
    "relative": Label(relative_return, 0.0, "relative"),
    "gain": Label(lambda price, _, horizon: gains(price, horizon).astype(np.float32), 0.0, "gain"),
    "move": Label(move, NO_LABEL, "move"),
    # It has the axis *pair* in place of *asset*.
    "correlation": Label(
        lambda price, _, horizon: correlations(price, horizon).astype(np.float32),
        np.nan,
        "correlation",
    ),
}
"""Every label by name."""


def direction_of(returns: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return DOWN, FLAT or UP of scaled returns, ``NO_LABEL`` where they are NaN."""
    return np.select(
        [np.isnan(returns), returns < -FLAT_BAND, returns > FLAT_BAND],
        [NO_LABEL, DOWN, UP],
        default=FLAT,
    ).astype(np.int64)


def uniqueness(labelled: NDArray[np.bool_], horizon: int) -> Array:
    """Return the uniqueness of each label: the mean over its bars of 1 ÷ labels that span the bar.

    *labelled* is [time]; label t spans the *horizon* bars after t. Zero where there is no label.
    Source: López de Prado, Advances in Financial Machine Learning, section 4.4.
    """
    count = len(labelled)
    alive = np.zeros(count + horizon + 1)
    starts = np.flatnonzero(labelled)
    np.add.at(alive, starts + 1, 1.0)
    np.add.at(alive, starts + 1 + horizon, -1.0)
    # +1 where a label begins and -1 where it ends: the cumulative sum counts the labels of a bar.
    share = 1.0 / np.maximum(np.cumsum(alive), 1.0)
    total = np.concatenate([[0.0], np.cumsum(share)])
    weights = np.zeros(count)
    weights[starts] = (total[starts + 1 + horizon] - total[starts + 1]) / horizon
    return weights


@dataclass(frozen=True)
class Samples:
    """One panel's labels [asset, time, horizon, ..], and their weights in one part.

    ``weights`` are [time, horizon]. Rows from ``start`` until ``stop`` are a network's inputs.
    """

    panel: Panel
    horizons: tuple[int, ...]
    labels: Labels
    weights: NDArray[np.float32]
    start: int
    stop: int

    @property
    def segment(self) -> Segment:
        """The bars of the first asset."""
        return self.panel.segments[0]

    @property
    def rows(self) -> Ids:
        """The labelled rows."""
        return np.flatnonzero(self.weights.any(axis=1))

    def whole_rows(self, window: int) -> Ids:
        """Return the labelled rows that end a window of *window* rows of features."""
        rows = self.rows
        return rows[rows >= self.panel.first + window - 1]

    @property
    def each(self) -> list[Samples]:
        """The samples of each asset separately."""
        return [
            replace(
                self,
                panel=Panel((segment,)),
                labels={name: label[place : place + 1] for name, label in self.labels.items()},
            )
            for place, segment in enumerate(self.panel.segments)
        ]


def samples_in(
    panels: Sequence[Panel],
    horizons: Sequence[int],
    split: Split,
    part: Part,
    labels: Callable[[Panel, Sequence[int]], Labels] = targets,
) -> list[Samples]:
    """Return the samples of *part* for each panel with a label there, which *labels* computes."""
    samples = []
    for panel in panels:
        mask = split.labelled(panel.segments[0], horizons, part)
        if (lacks := panel.segments[0].lacks) is not None:
            mask[lacks] = False
        if not mask.any():
            continue
        weights = np.stack(
            [uniqueness(mask[:, i], horizon) * horizon for i, horizon in enumerate(horizons)],
            axis=1,
        ).astype(np.float32)
        stop = int(np.flatnonzero(mask.any(axis=1))[-1]) + 1
        labelled = labels(panel, horizons)
        samples.append(Samples(panel, tuple(horizons), labelled, weights, panel.first, stop))
    return samples
