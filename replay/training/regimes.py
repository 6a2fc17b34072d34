"""Regimes of a checkpoint's own: cells of its attention, with what followed in volatility.

The rule is docs/decisions.md, G35.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tracepaper.replay.training.card import rounded
from tracepaper.replay.training.explained import ExplainedRows
from tracepaper.replay.training.figures import (
    DailyEstimate,
    figure,
)
from tracepaper.strategies.features.rolling import Array
from tracepaper.strategies.types.calibration import REGIME_MEASURES, REGIMES_MOST, RegimeCells

COUNT: Final = 5
"""Cells that are looked for, of at most ``REGIMES_MOST``."""
_SEED: Final = 20_170_817
_ROUNDS: Final = 100
_ROWS_A_CELL: Final = 40
_FARTHEST: Final = 4.0


def fit_cells(found: ExplainedRows, count: int = COUNT) -> RegimeCells | None:
    """Return *count* cells by k-means (Lloyd, 1982) on standardised measures of attention.

    They are ordered by realised over forecast variance. None where rows are too few, or attention
    gives no such measures.
    """
    if not 2 <= count <= REGIMES_MOST or not set(REGIME_MEASURES) <= set(found.measures):
        return None
    rows = np.stack([found.measures[name] for name in REGIME_MEASURES], axis=1)
    known: NDArray[np.bool_] = np.isfinite(rows.sum(axis=1))
    if known.sum() < _ROWS_A_CELL * count:
        return None
    center, scale = rows[known].mean(axis=0), rows[known].std(axis=0)
    scale = np.where(scale > 1e-12, scale, 1.0)
    places = np.clip((rows[known] - center) / scale, -_FARTHEST, _FARTHEST)
    middles = _middles(places, count)
    cell = _nearest(places, middles)
    if len(np.unique(cell)) < count:
        return None
    ratios = [_ratio(found, known, cell == one) for one in range(count)]
    order = sorted(range(count), key=lambda one: ratios[one].value)
    return RegimeCells(
        names=REGIME_MEASURES,
        center=tuple(map(rounded, center.tolist())),
        scale=tuple(map(rounded, scale.tolist())),
        cells=tuple(tuple(map(rounded, middles[one].tolist())) for one in order),
        ratio=tuple(rounded(ratios[one].value) for one in order),
        error=tuple(rounded(ratios[one].error) for one in order),
    )


def judge_cells(found: ExplainedRows, cells: RegimeCells, hysteresis: float) -> dict[str, Any]:
    """Return for each cell its share of the rows of *found*, and what followed there, by day."""
    columns = [_known(found.measures[name]) for name in cells.names]
    at: list[int] = []
    now: int | None = None
    for row in zip(*columns, strict=True):
        now = cells.next_cell(now, row, hysteresis)
        at.append(now or 0)
    cell, every = np.array(at), np.ones(len(at), dtype=np.bool_)
    inside = {one: cell == one for one in range(1, len(cells.cells) + 1)}
    return {
        str(one): {
            "share": round(float(rows.mean()), 5),
            "days": len(np.unique(found.days[rows])),
            "variance_ratio": _pair(_ratio(found, every, rows)) if rows.any() else [],
        }
        for one, rows in inside.items()
    }


def regime_sentence(figures: Mapping[str, Any]) -> str:
    """Say in one sentence what followed in the first and the last cell of ``judge_cells``."""
    said = [
        f"{ratio[0]:.2f} (± {ratio[1]:.2f} by days) in regime {one}"
        for one in (min(figures, key=int), max(figures, key=int))
        if (ratio := figures[one]["variance_ratio"])
    ]
    if not said:
        return "In no regime of the card's own was an untouched bar."
    return f"Realised variance was so many times what was forecast: {', '.join(said)} of the card."


def _known(values: Array) -> list[float | None]:
    return [None if np.isnan(value) else value for value in values.tolist()]


def _middles(places: Array, count: int) -> Array:
    """Return the centres [cell, measure]: drawn far apart (k-means++), then Lloyd's rounds."""
    drawn = np.random.default_rng(_SEED)
    chosen = [places[int(drawn.integers(len(places)))]]
    while len(chosen) < count:
        away = np.min([((places - one) ** 2).sum(axis=1) for one in chosen], axis=0)
        total = float(away.sum())
        if total <= 0:
            break
        chosen.append(places[int(drawn.choice(len(places), p=away / total))])
    middles = np.stack(chosen)
    for _ in range(_ROUNDS):
        cell = _nearest(places, middles)
        moved = np.stack(
            [
                places[cell == one].mean(axis=0) if (cell == one).any() else middles[one]
                for one in range(len(middles))
            ]
        )
        if np.array_equal(moved, middles):
            break
        middles = moved
    return middles


def _nearest(places: Array, middles: Array) -> NDArray[np.int64]:
    found: NDArray[np.int64] = np.stack(
        [((places - one) ** 2).sum(axis=1) for one in middles]
    ).argmin(axis=0)
    return found


def _ratio(
    found: ExplainedRows, known: NDArray[np.bool_], rows: NDArray[np.bool_]
) -> DailyEstimate:
    """Return realised over forecast variance of the *rows* of those *known*, with its error."""
    realised, forecast = found.realised[known][rows], found.volatility[known][rows] ** 2
    # Each bar counts alike: a few violent days would decide a ratio of sums.
    terms = np.stack([realised / forecast, np.ones_like(realised)])
    return figure(terms, found.days[known][rows], lambda s: s[:, 0] / np.maximum(s[:, 1], 1.0))


def _pair(found: DailyEstimate) -> list[float]:
    return [round(found.value, 5), round(found.error, 5)]
