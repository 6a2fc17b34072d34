"""The charts of influence between symbols: over a run, and in each quarter of it."""

from __future__ import annotations

from typing import Final

import numpy as np

from tracepaper.replay.archive.times import iso
from tracepaper.replay.report.attention_charts import INTENSITY
from tracepaper.replay.report.charts import Figure, axis, layout, rounded
from tracepaper.replay.report.influence import InfluenceReport
from tracepaper.replay.report.record import Floats

NAMED_MOST: Final = 40
"""Symbols that an axis has room to name."""
_SAID: Final = "of %{y}'s look %{z:.2f} % is of %{x}<extra></extra>"


def influence_chart(found: InfluenceReport) -> Figure:
    """Return the mean matrix: whose forecast downwards, whose bars to the right."""
    count = len(found.symbols)
    spread = [rounded(100 * row, 2) for row in found.spread]
    said = "of %{y}'s look %{z:.2f} ± %{text:.2f} % is of %{x}<extra></extra>"
    trace = {**_trace(found.mean, found), "text": spread, "hovertemplate": said}
    trace["colorbar"] = {
        "title": {"text": "% of the look", "font": {"size": 11}}, "thickness": 8, "outlinewidth": 0,
    }  # fmt: skip
    height = 140 + min(24 * count, 480)
    shape = layout(
        height,
        hovermode="closest",
        xaxis=axis("whose bars", **_named(count)),
        yaxis=axis("whose forecast", autorange="reversed", **_named(count)),
    )
    shape["margin"] = {**shape["margin"], "l": 88, "b": 72}
    return {"data": [trace], "layout": shape}


def influence_quarters_chart(found: InfluenceReport) -> Figure | None:
    """Return the matrix of each quarter of the run side by side; None of a single decision."""
    quarters = len(found.quarters)
    if quarters < 2:
        return None
    data: list[Figure] = []
    places: Figure = {}
    notes = []
    for at, matrix in enumerate(found.quarters):
        number = at + 1
        across = [(at + 0.04) / quarters, (at + 0.96) / quarters]
        trace = {**_trace(matrix, found), "hovertemplate": _SAID, "showscale": False}
        data.append({**trace, "xaxis": f"x{number}", "yaxis": f"y{number}"})
        plain: Figure = {"showgrid": False, "type": "category", "showticklabels": False}
        places[f"xaxis{number}"] = axis(domain=across, anchor=f"y{number}", **plain)
        places[f"yaxis{number}"] = axis(
            domain=[0.0, 0.9], anchor=f"x{number}", autorange="reversed", **plain
        )
        notes.append(
            {
                "text": f"from {iso(found.quarter_from_ms[at])[:16].replace('T', ' ')}",
                "xref": "paper", "yref": "paper", "x": across[0], "y": 0.92, "xanchor": "left",
                "yanchor": "bottom", "showarrow": False, "font": {"size": 11},
            }
        )  # fmt: skip
    return {"data": data, "layout": layout(260, hovermode="closest", annotations=notes, **places)}


def _trace(matrix: Floats, found: InfluenceReport) -> Figure:
    """Return a heat map of *matrix*; the scale is that of what is not a symbol's own look."""
    apart = found.mean[~np.eye(len(found.symbols), dtype=np.bool_)]
    far = 100 * float(max(apart.max(initial=0.0), 1.0 / len(found.symbols)))
    return {
        "type": "heatmap", "x": list(found.symbols), "y": list(found.symbols),
        "z": [rounded(100 * row, 3) for row in matrix], "zmin": 0.0, "zmax": far,
        "colorscale": INTENSITY, "xgap": 1, "ygap": 1,
    }  # fmt: skip


def _named(count: int) -> Figure:
    return {"showgrid": False, "type": "category", "showticklabels": count <= NAMED_MOST}
