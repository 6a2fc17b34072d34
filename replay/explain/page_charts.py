"""The charts of one decision's page: where it looked, what moved it, and two beside each other."""

from __future__ import annotations

from typing import Final

import numpy as np

from tracepaper.replay.explain.compared import SideBySide, Sided
from tracepaper.replay.explain.recomputed import Floats, Full
from tracepaper.replay.explain.terminal import BASIS_POINTS
from tracepaper.replay.report.charts import (
    ACCENT,
    GAIN,
    INK,
    LOSS,
    MUTED,
    SOFT,
    Figure,
    axis,
    layout,
    line,
    rounded,
)

FEATURES_MAX: Final = 15
BINS: Final = 48
"""Cells of age in a comparison, the older the wider."""


def looked_chart(full: Full) -> Figure:
    """Return the close, each past bar's share of the rollout, and what each added to the mean."""
    found, moves = full.attribution, full.moves
    times = list(found.open_time_ms[:-1])
    moved = BASIS_POINTS * np.array(moves.by_bar[:-1])
    return {
        "data": [
            line(times, list(found.close[:-1]), "close", {"color": INK, "width": 1.2}, yaxis="y3"),
            line(
                times, 100 * np.array(found.weights[:-1]), "attention",
                {"color": ACCENT, "width": 1}, yaxis="y2", fill="tozeroy", fillcolor=SOFT,
                hovertemplate="%{y:.3f} %",
            ),
            {
                "type": "bar", "x": times, "y": rounded(moved, 4), "name": "added", "yaxis": "y",
                "marker": {"color": [GAIN if each > 0 else LOSS for each in moved]},
                "hovertemplate": "%{y:+.4f} bp",
            },
        ],
        "layout": layout(
            520, showlegend=False, bargap=0,
            xaxis=axis(type="date", anchor="y", showgrid=False),
            yaxis=axis("added, bp", domain=[0.0, 0.24]),
            yaxis2=axis("attention, %", domain=[0.32, 0.60], rangemode="tozero"),
            yaxis3=axis("close", domain=[0.68, 1.0]),
        ),
    }  # fmt: skip


def attribution_chart(full: Full) -> Figure:
    """Return a bar a feature: what its values at the decided bar and before added to the mean."""
    features = full.moves.features[:FEATURES_MAX][::-1]
    names = [each.feature for each in features]
    own = [BASIS_POINTS * each.decided_bar for each in features]
    past = [BASIS_POINTS * (each.all_bars - each.decided_bar) for each in features]
    shown = {"type": "bar", "orientation": "h", "y": names, "hovertemplate": "%{y}: %{x:+.3f} bp"}
    parts = ((own, "at the decided bar", ACCENT), (past, "at all bars before", MUTED))
    return {
        "data": [
            {**shown, "x": rounded(values, 4), "name": name, "marker": {"color": colour}}
            for values, name, colour in parts
        ],
        "layout": layout(
            90 + 22 * len(names), barmode="relative", bargap=0.35, hovermode="closest",
            xaxis=axis("added to the expected return, bp", zeroline=True, zerolinecolor=MUTED),
            yaxis=axis(automargin=True, showgrid=False),
        ),
    }  # fmt: skip


def age_chart(found: SideBySide) -> Figure:
    """Return where both looked, by age."""
    ages = max(len(found.first.weights), len(found.second.weights))
    return _by_age([side.by_age(ages) for side in (found.first, found.second)], found)


def layer_chart(found: SideBySide, layer: int) -> Figure:
    """Return where the heads of *layer* of both looked in the mean, by age; 0 is the lowest."""
    rows = [side.layers[layer].mean(axis=0) for side in (found.first, found.second)]
    ages = max(map(len, rows))
    return _by_age([np.pad(row, (0, ages - len(row))) for row in rows], found, height=200)


def features_chart(found: SideBySide) -> Figure | None:
    """Return what each feature added to both; None where they have none in common."""
    sides = (found.first, found.second)
    names = [name for name in found.first.features if name in found.second.features]
    names.sort(key=lambda name: max(abs(side.features[name]) for side in sides))
    names = names[-FEATURES_MAX:]
    if not names:
        return None
    return {
        "data": [
            {
                "type": "bar", "orientation": "h", "y": names, "name": side.name,
                "x": rounded([BASIS_POINTS * side.features[name] for name in names], 4),
                "marker": {"color": colour}, "hovertemplate": "%{y}: %{x:+.3f} bp",
            }
            for side, colour in zip(sides, (ACCENT, MUTED), strict=True)
        ],
        "layout": layout(
            90 + 26 * len(names), barmode="group", bargap=0.3, hovermode="closest",
            xaxis=axis("added to the expected return, bp", zeroline=True, zerolinecolor=MUTED),
            yaxis=axis(automargin=True, showgrid=False),
        ),
    }  # fmt: skip


def _by_age(rows: list[Floats], found: SideBySide, *, height: int = 300) -> Figure:
    """Return lines of the share in each cell of age, the cells logarithmic."""
    ages = len(rows[0])
    firsts = np.unique(np.geomspace(1, ages + 1, BINS + 1).astype(np.int64))[:-1] - 1
    cells = [np.add.reduceat(row, firsts) for row in rows]
    places = list(range(len(firsts)))
    lasts = [*(firsts[1:] - 1).tolist(), ages - 1]
    spans = [f"age {first} to {last}" for first, last in zip(firsts.tolist(), lasts, strict=True)]
    ticks = places[:: max(1, len(places) // 10)]
    styles = ({"color": ACCENT, "width": 2}, {"color": MUTED, "width": 2})
    sides: tuple[Sided, Sided] = (found.first, found.second)
    return {
        "data": [
            line(
                places, 100 * cell, side.name, {**style, "shape": "hvh"}, text=spans,
                hovertemplate="%{text}: %{y:.2f} %",
            )
            for cell, side, style in zip(cells, sides, styles, strict=True)
        ],
        "layout": layout(
            height,
            xaxis=axis(
                "age, bars (wider cells further back)", showgrid=False, tickvals=ticks,
                ticktext=[str(firsts[tick]) for tick in ticks],
            ),
            yaxis=axis("share in a cell, %", rangemode="tozero"),
        ),
    }  # fmt: skip
