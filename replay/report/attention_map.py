"""The rollouts of a window's bars as one picture: by position, and by age."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tracepaper.replay.report.attention_charts import INTENSITY
from tracepaper.replay.report.charts import Figure, axis, layout
from tracepaper.replay.report.record import Floats
from tracepaper.strategies.forecasters.looking import RolloutMap

COLUMNS_MAX: Final = 512
HEIGHT: Final = 520
FAINTEST: Final = 1e-3
"""Shares a bar below this part of the even one are drawn alike."""
LEVELS: Final = 254
"""A cell is one byte: a share's logarithm between the picture's ends, and 255 for none."""


@dataclass(frozen=True)
class MapCells:
    """A map in cells: the mean share of each bar in a cell, and where its cells begin."""

    shares: Floats  # [row, cell]; NaN where there are no bars
    firsts: NDArray[np.int64]  # [cell] the bar's place in the window, or its age


def cells_by_position(found: RolloutMap) -> MapCells:
    """Return the map over the bars of the window; later bars than the row's own are not seen."""
    bars = found.weights.shape[1]
    firsts = _firsts(bars)
    shares = np.add.reduceat(found.weights, firsts, axis=1) / _lengths(firsts, bars)
    return MapCells(np.where(shares > 0, shares, np.nan), firsts)


def cells_by_age(found: RolloutMap) -> MapCells:
    """Return the map over the age of the bars, as each row sees them, the newest first."""
    rows, bars = found.weights.shape
    own = bars - 1 - found.ages[:, None]
    source = own - np.arange(bars)
    aged = np.take_along_axis(found.weights, np.maximum(source, 0), axis=1)
    aged[source < 0] = np.nan
    firsts = _firsts(bars)
    known = np.isfinite(aged)
    counts = np.add.reduceat(known.astype(np.float64), firsts, axis=1)
    sums = np.add.reduceat(np.where(known, aged, 0.0), firsts, axis=1)
    assert sums.shape == (rows, len(firsts))
    shares = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    return MapCells(np.where(shares > 0, shares, np.nan), firsts)


def position_map_chart(found: RolloutMap, open_time_ms: Sequence[int]) -> Figure:
    """Return the map by position; *open_time_ms* are those of its bars, oldest first."""
    cells = cells_by_position(found)
    times = [int(open_time_ms[place]) for place in cells.firsts]
    return _chart(
        found,
        cells,
        open_time_ms,
        x=times,
        across=axis("bar that it looked at, UTC", type="date", showgrid=False),
        said="%{y} looked at %{x}: %{customdata:.3%} a bar<extra></extra>",
    )


def age_map_chart(found: RolloutMap, open_time_ms: Sequence[int]) -> Figure:
    """Return the map by age; *open_time_ms* are those of its bars, oldest first."""
    cells = cells_by_age(found)
    return _chart(
        found,
        cells,
        open_time_ms,
        x=cells.firsts.tolist(),
        across=axis("age of the bar that it looked at, bars", showgrid=False),
        said="%{y} looked back %{x} bars: %{customdata:.3%} a bar<extra></extra>",
    )


def _chart(
    found: RolloutMap,
    cells: MapCells,
    open_time_ms: Sequence[int],
    *,
    x: list[int],
    across: Figure,
    said: str,
) -> Figure:
    bars = found.weights.shape[1]
    known = cells.shares[np.isfinite(cells.shares)]
    high = float(np.log10(np.quantile(known, 0.995)))
    low = max(float(np.log10(np.quantile(known, 0.005))), float(np.log10(FAINTEST / bars)))
    low = min(low, high - 0.1)
    ticks = np.unique(np.round(np.linspace(low, high, 5), 1))
    trace = {
        "type": "heatmap", "x": x, "z": [], "meta": _bytes(cells.shares, low, high),
        "y": [int(open_time_ms[bars - 1 - age]) for age in found.ages],
        "zmin": low, "zmax": high, "colorscale": INTENSITY, "hovertemplate": said,
        "colorbar": {
            "title": {"text": "% a bar", "font": {"size": 11}}, "thickness": 8, "len": 0.6,
            "outlinewidth": 0, "tickvals": ticks.tolist(),
            "ticktext": [f"{100 * 10.0**tick:.2g}" for tick in ticks],
        },
    }  # fmt: skip
    down = axis("decided bar, UTC", type="date", showgrid=False, autorange="reversed")
    shape = layout(HEIGHT, hovermode="closest", xaxis=across, yaxis=down)
    shape["margin"] = {**shape["margin"], "l": 88, "b": 48}
    return {"data": [trace], "layout": shape}


def _bytes(shares: Floats, low: float, high: float) -> dict[str, object]:
    """Return the shares' logarithms as packed bytes, which the page unpacks, with their ends."""
    with np.errstate(invalid="ignore"):
        places = (np.log10(shares) - low) / (high - low) * LEVELS
    packed = np.where(np.isnan(places), 255, np.clip(np.round(places), 0, LEVELS)).astype(np.uint8)
    return {
        "low": low,
        "high": high,
        "columns": shares.shape[1],
        "cells": base64.b64encode(gzip.compress(packed.tobytes(), mtime=0)).decode(),
    }


def _firsts(bars: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, bars, min(bars, COLUMNS_MAX), endpoint=False).astype(np.int64))


def _lengths(firsts: NDArray[np.int64], bars: int) -> NDArray[np.int64]:
    lengths: NDArray[np.int64] = np.diff(firsts, append=bars)
    return lengths
