"""Correlations of several symbols to a horizon: EWMA's, pulled towards those of the training part.

A network that sees one instrument at a time has no head that says them: what it knew of the others
would depend on which bars had come by then. What is learnt is how far to believe EWMA, a horizon
and all pairs at a time: ``a·mean + b·EWMA`` with a and b at least 0 and at most 1 together. With
one minus both times the identity that is a correlation matrix, as all three are. A network over
several symbols may say them by a head of its own, which is held against all of these.

The rule is docs/models.md, L62.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.signal import lfilter

from tracepaper.replay.learning.baselines import EWMA_DECAY
from tracepaper.replay.learning.card import rounded
from tracepaper.replay.learning.dataset import Dataset
from tracepaper.replay.learning.judge.forecasts import (
    MODEL,
    Forecasts,
    concatenated,
    named_asset,
)
from tracepaper.replay.learning.judge.heads import plain_verdict
from tracepaper.replay.learning.judge.metrics import (
    CORRELATION,
    PAIRS,
    MetricView,
    compare,
    estimate,
)
from tracepaper.replay.learning.panel import (
    LEAST_BARS,
    LabelledPanel,
    close_by_close,
    correlated,
    labelled_closes,
)
from tracepaper.replay.learning.splits import Part
from tracepaper.strategies.errors import CheckpointMismatch, ConfigInvalid, DataInvalid, shown
from tracepaper.strategies.features.rolling import Array

LEARNT: Final = "learnt"
OTHERS: Final = ("EWMA", "mean of the training part")
"""What the learnt correlations are made of, and held against."""
_OF: Final = {LEARNT: "learnt of EWMA and the training part", MODEL: "the network's own"}
_BESIDE: Final = {OTHERS[0]: "EWMA's", OTHERS[1]: "the training part's mean", LEARNT: "their blend"}


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
    panels = _panels(material, Part.TRAIN)
    found: dict[str, dict[str, Any]] = {}
    for column, horizon in enumerate(material.horizons):
        rows = _rows(panels, column, horizon)
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
    panels = _panels(material, part) if learnt else []
    parts = []
    for column, horizon in enumerate(material.horizons):
        section = learnt.get(str(horizon))
        rows = None if section is None else _rows(panels, column, horizon)
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


def _panels(material: Dataset, part: Part) -> list[LabelledPanel]:
    """Return the closes of *part* that all symbols have; empty of fewer than two symbols."""
    if len({segment.candles.symbol for segment in material.segments}) < 2:
        return []
    try:
        data = material if material.panels else close_by_close(material, lambda _: material.split)
        return labelled_closes(data, part)
    except (ConfigInvalid, DataInvalid):
        return []


def _rows(panels: Sequence[LabelledPanel], column: int, horizon: int) -> _Rows | None:
    """Return the correlations of one horizon; None where it is short, or no bar has any."""
    if horizon < LEAST_BARS or not panels:
        return None
    parts = [_of_panel(panel, column, horizon) for panel in panels]
    opened, ewma, came = (np.concatenate(of) for of in zip(*parts, strict=True))
    if not len(opened):
        return None
    pairs = [" ".join(sorted(pair)) for pair in combinations(panels[0].panel.symbols, 2)]
    order = np.argsort(pairs)  # as a card lists them
    return _Rows(tuple(sorted(pairs)), opened, ewma[:, order], came[:, order])


def _of_panel(
    of: LabelledPanel, column: int, horizon: int
) -> tuple[NDArray[np.int64], Array, Array]:
    """Return times [row], EWMA's correlations and the realised [row, pair] of the labelled bars."""
    panel = of.panel
    labelled = np.logical_and.reduce([each.weights[:, column] > 0 for each in of.samples])
    rows = np.flatnonzero(labelled)
    # From zero at the start of the panel: ratios of it count.
    smooth = {
        pair: lfilter([1.0 - EWMA_DECAY], [1.0, -EWMA_DECAY], product)[rows]
        for pair, product in panel.products().items()
    }
    came, ewma = panel.correlations((horizon,))[:, rows, 0].T, correlated(smooth).T
    usable = np.isfinite(came).all(axis=1) & np.isfinite(ewma).all(axis=1)
    return panel.segments[0].open_time_ms[rows][usable], ewma[usable], came[usable]
