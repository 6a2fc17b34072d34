"""Correlations of several symbols to a horizon: EWMA's, pulled towards those of the training part.

A network that sees one instrument at a time has no head that says them: what it knew of the others
would depend on which bars had come by then. What is learnt is how far to believe EWMA, a horizon
and all pairs at a time: ``a·mean + b·EWMA`` with a and b at least 0 and at most 1 together. With
one minus both times the identity that is a correlation matrix, as all three are. A network over
several symbols may say them by a head of its own, which is held against all of these.

The rule is docs/models.md, L62.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from itertools import combinations, pairwise
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.signal import lfilter

from tracepaper.replay.learning.baselines import (
    EWMA_DECAY,
)
from tracepaper.replay.learning.card import rounded
from tracepaper.replay.learning.dataset import Dataset
from tracepaper.replay.learning.judge.compare import compare
from tracepaper.replay.learning.judge.forecasts import (
    MODEL,
    Forecasts,
    concatenated,
    named_asset,
)
from tracepaper.replay.learning.judge.heads import plain_verdict
from tracepaper.replay.learning.judge.metrics import Metric, MetricView, estimate, metric
from tracepaper.replay.learning.panel import LEAST_BARS
from tracepaper.replay.learning.splits import Part
from tracepaper.strategies.errors import CheckpointMismatch, shown
from tracepaper.strategies.features.rolling import Array

LEARNT: Final = "learnt"
CORRELATION: Final = "correlation"
PAIRS: Final[dict[str, Metric]] = {}
"""The metrics of pairs."""
OTHERS: Final = ("EWMA", "mean of the training part")
"""What the learnt correlations are made of, and held against."""
_OF: Final = {LEARNT: "learnt of EWMA and the training part", MODEL: "the network's own"}
_BESIDE: Final = {OTHERS[0]: "EWMA's", OTHERS[1]: "the training part's mean", LEARNT: "their blend"}


class _Common(NamedTuple):
    """The bars that all symbols have: [bar, ..]."""

    symbols: tuple[str, ...]
    open_time_ms: NDArray[np.int64]
    moves: Array  # [bar, symbol], log returns; NaN on the first bar of a segment
    run: NDArray[np.int64]  # [bar], a number for each stretch without a hole
    inside: NDArray[np.bool_]  # [bar, horizon]: labelled in the part, of every symbol


class _Rows(NamedTuple):
    """Correlations of one horizon: [row, pair]."""

    pairs: tuple[str, ...]
    open_time_ms: NDArray[np.int64]
    ewma: Array
    realised: Array


def learn_correlations(material: Dataset) -> dict[str, dict[str, Any]]:
    """Return ``calibration.correlation`` of a card, learnt of the training part, by horizon.

    Empty of a single symbol, and of symbols without enough bars in common.
    """
    if (common := _common(material, Part.TRAIN)) is None:
        return {}
    found: dict[str, dict[str, Any]] = {}
    for column, horizon in enumerate(material.horizons):
        rows = _rows(common, column, horizon)
        if rows is None:
            continue
        mean = rows.realised.mean(axis=0)
        sides = [np.broadcast_to(mean, rows.realised.shape).ravel(), rows.ewma.ravel()]
        weights = _weights(np.stack(sides, axis=1), rows.realised.ravel())
        found[str(horizon)] = {
            "pairs": list(rows.pairs),
            "mean": [rounded(value) for value in mean.tolist()],
            "mean_weight": rounded(weights[0]),
            "ewma_weight": rounded(weights[1]),
        }
    return found


def _weights(sides: Array, came: Array) -> tuple[float, float]:
    """Return the weights of least squares of *sides* [row, 2], at least 0, at most 1 together."""
    first, second = nnls(sides, came)[0].tolist()
    if first + second <= 1.0:
        return first, second
    along = sides[:, 1] - sides[:, 0]
    share = float(along @ (came - sides[:, 0]) / max(float(along @ along), 1e-300))
    share = min(max(share, 0.0), 1.0)
    return 1.0 - share, share


def correlations_of(
    material: Dataset, part: Part, learnt: Mapping[str, Mapping[str, Any]]
) -> Forecasts | None:
    """Return the correlations of *part* by *learnt*, of a card, beside what was realised.

    Each row is a pair, of those that the card knows and the candles hold; None where there is none.
    Raises ``CheckpointMismatch`` for what cannot be read.
    """
    if not learnt or (common := _common(material, part)) is None:
        return None
    parts = []
    for column, horizon in enumerate(material.horizons):
        section = learnt.get(str(horizon))
        rows = None if section is None else _rows(common, column, horizon)
        if section is None or rows is None:
            continue
        mean, mean_weight, ewma_weight = _read(section)
        for at, pair in enumerate(rows.pairs):
            if pair not in mean:
                continue
            ewma, usual = rows.ewma[:, at], np.full(len(rows.ewma), mean[pair])
            blend = mean_weight * usual + ewma_weight * ewma
            parts.append(
                pair_rows(
                    pair,
                    rows.open_time_ms,
                    horizon,
                    material.interval_ms,
                    {LEARNT: blend, OTHERS[0]: ewma, OTHERS[1]: usual},
                    rows.realised[:, at],
                )
            )
    return concatenated(parts) if parts else None


def pair_rows(
    pair: str,
    open_time_ms: NDArray[np.int64],
    horizon: int,
    interval_ms: int,
    correlations: Mapping[str, Array],
    realised: Array | None = None,
) -> Forecasts:
    """Return the rows of one pair of symbols: *correlations* [row] by forecaster."""
    count, asset = len(open_time_ms), named_asset(pair)
    return Forecasts(
        np.full(count, asset),
        open_time_ms,
        open_time_ms + horizon * interval_ms,
        np.full(count, horizon),
        interval_ms,
        {} if realised is None else {CORRELATION: realised},
        {name: {CORRELATION: of} for name, of in correlations.items()},
        names={asset: pair},
    )


def with_head(table: Forecasts, head: Forecasts) -> Forecasts | None:
    """Return the rows of *table* at which a network's *head* answers too, with its correlations.

    None where there is no such row.
    """
    place = table.places(head)
    both = place >= 0
    if not both.any():
        return None
    correlation = head.value(CORRELATION)[place[both]]
    return table.where(both).holding(MODEL, **{CORRELATION: correlation})


def _read(section: Mapping[str, Any]) -> tuple[dict[str, float], float, float]:
    try:
        mean = dict(zip(section["pairs"], map(float, section["mean"]), strict=True))
        return mean, float(section["mean_weight"]), float(section["ewma_weight"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointMismatch(
            f"The card's calibration.correlation cannot be read ({shown(error)}); train it again."
        ) from None


@metric("correlation", "Correlations to the horizon", CORRELATION, of=PAIRS)
def _error(view: MetricView) -> Array:
    squared: Array = (view[CORRELATION] - view.labels[CORRELATION]) ** 2
    return squared


def judged_pairs(rows: Forecasts) -> str:
    """Return whose correlations are judged: a network's head, or those that are learnt."""
    return MODEL if MODEL in rows.values else LEARNT


def correlation_figures(table: Forecasts) -> dict[str, Any]:
    """Return the figures of every horizon for a card, each [value, standard error by day]."""
    return {
        str(horizon): {
            name.replace(" ", "_").lower(): estimate(
                PAIRS[CORRELATION], MetricView(rows, name)
            ).rounded()
            for name in rows.values
        }
        for horizon, rows in table.by_horizon()
    }


def correlation_sentences(table: Forecasts, *, horizon: int) -> list[str]:
    """Say how the judged correlations stand beside others at one horizon; nothing of none."""
    if horizon not in table.horizons:
        return []
    rows = table.at(horizon)
    judged = judged_pairs(rows)
    found = compare(rows, PAIRS[CORRELATION], judged)
    return [
        f"Correlations to {horizon} bars, {_OF[judged]}, are "
        f"{plain_verdict(found[name].pair, found[name].days)} beside {words} "
        f"({len(rows.names)} pairs)."
        for name, words in _BESIDE.items()
        if name == OTHERS[0] or judged == MODEL
    ]


def _common(material: Dataset, part: Part) -> _Common | None:
    """Return the bars that all symbols of *material* have; None of fewer than two symbols."""
    symbols = sorted({segment.candles.symbol for segment in material.segments})
    if len(symbols) < 2:
        return None
    times, moves, inside = [], [], []
    for symbol in symbols:
        own = [one for one in material.segments if one.candles.symbol == symbol]
        # Of a bar that two markets of a symbol have, the one that is named first counts.
        opened, first = np.unique(
            np.concatenate([one.open_time_ms for one in own]), return_index=True
        )
        labelled = [material.parts.labelled(one, material.horizons, part) for one in own]
        times.append(opened)
        moves.append(
            np.concatenate([np.diff(np.log(one.close), prepend=np.nan) for one in own])[first]
        )
        inside.append(np.concatenate(labelled)[first])
    shared = reduce(np.intersect1d, times)
    places = [np.searchsorted(each, shared) for each in times]
    at = zip(moves, places, strict=True)
    moved = np.stack([each[place] for each, place in at], axis=1)
    # A bar begins a stretch where the bar before it is not the one before it of every symbol.
    follows = np.ones(len(shared), dtype=np.bool_)
    for place in places:
        follows[1:] &= np.diff(place) == 1
    follows[:1] = False
    follows &= np.isfinite(moved).all(axis=1)
    run = np.cumsum(~follows).astype(np.int64)
    of_all = [each[place] for each, place in zip(inside, places, strict=True)]
    return _Common(tuple(symbols), shared, np.nan_to_num(moved), run, np.logical_and.reduce(of_all))


def _rows(common: _Common, column: int, horizon: int) -> _Rows | None:
    """Return the correlations of one horizon; None where it is short, or no bar has any."""
    if horizon < LEAST_BARS or len(common.run) <= horizon:
        return None
    ends = np.arange(len(common.run)) + horizon
    known = ends < len(common.run)
    known[known] &= common.run[ends[known]] == common.run[known]
    # A bar has features where as many bars before it are known, so that EWMA has seen some too.
    known &= common.inside[:, column]
    rows = np.flatnonzero(known)
    ahead: dict[tuple[int, int], Array] = {}
    smooth: dict[tuple[int, int], Array] = {}
    count = len(common.symbols)
    for one, other in [(i, j) for i in range(count) for j in range(i, count)]:
        product = common.moves[:, one] * common.moves[:, other]
        total = np.concatenate([[0.0], np.cumsum(product)])
        ahead[one, other] = total[rows + horizon + 1] - total[rows + 1]
        smooth[one, other] = _smoothed(product, common.run)[rows]
    pairs = list(combinations(range(count), 2))
    came, ewma = (
        np.stack([_correlation(of, pair) for pair in pairs], axis=1) for of in (ahead, smooth)
    )
    usable = np.isfinite(came).all(axis=1) & np.isfinite(ewma).all(axis=1)
    if not usable.any():
        return None
    names = tuple(f"{common.symbols[i]} {common.symbols[j]}" for i, j in pairs)
    return _Rows(names, common.open_time_ms[rows][usable], ewma[usable], came[usable])


def _smoothed(product: Array, run: NDArray[np.int64]) -> Array:
    """Return EWMA of *product* [bar] from zero at the start of each stretch: ratios of it count."""
    found = np.empty_like(product)
    cuts = [0, *(np.flatnonzero(np.diff(run)) + 1).tolist(), len(run)]
    for start, stop in pairwise(cuts):
        own = product[start:stop].copy()
        own[0] = 0.0  # the return over a hole
        found[start:stop] = lfilter([1.0 - EWMA_DECAY], [1.0, -EWMA_DECAY], own)
    return found


def _correlation(of: Mapping[tuple[int, int], Array], pair: tuple[int, int]) -> Array:
    """Return the correlation of *pair* by sums of products; NaN where nothing has moved."""
    one, other = pair
    spread = of[one, one] * of[other, other]
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Array = np.where(spread > 0, of[pair] / np.sqrt(spread), np.nan)
    return np.clip(found, -1.0, 1.0)
