"""The pictures of heads: a heatmap a head and layer, and what attends to what."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from tracepaper.replay.report.attention_charts import INTENSITY
from tracepaper.replay.report.charts import ACCENT, SOFT, Figure, axis, layout, rounded
from tracepaper.replay.report.heads import Heads
from tracepaper.replay.report.html import Markup, table

PANEL_HEIGHT: Final = 150
LEAST_SHARE: Final = 0.002
"""Bands of the flow that carry less are left out."""


def heads_chart(heads: Heads) -> Figure:
    """Return a panel a head, the highest layer on top: age downwards, decisions to the right."""
    layers, count = heads.maps.shape[:2]
    shown = np.log10(np.maximum(heads.maps, 1e-7))
    low, high = np.quantile(shown, (0.02, 0.995))
    data: list[Figure] = []
    places: Figure = {}
    notes = []
    ticks = list(range(0, len(heads.cell_ages), 10))
    for layer in range(layers):
        for head in range(count):
            number = (layers - 1 - layer) * count + head + 1
            across = [(head + 0.03) / count, (head + 0.97) / count]
            up = [(layer + 0.02) / layers, (layer + 0.80) / layers]
            data.append(
                {
                    "type": "heatmap",
                    "z": [rounded(row, 3) for row in shown[layer, head]],
                    "xaxis": f"x{number}",
                    "yaxis": f"y{number}",
                    "zmin": float(low),
                    "zmax": float(high),
                    "colorscale": INTENSITY,
                    "showscale": False,
                    "hoverinfo": "skip",
                }
            )
            places[f"xaxis{number}"] = axis(
                domain=across, anchor=f"y{number}", showgrid=False, showticklabels=False
            )
            places[f"yaxis{number}"] = axis(
                domain=up,
                anchor=f"x{number}",
                showgrid=False,
                autorange="reversed",
                showticklabels=head == 0,
                tickvals=ticks,
                ticktext=[str(heads.cell_ages[tick]) for tick in ticks],
            )
            reading = heads.readings[layer][head]
            notes.append(
                {
                    "text": f"layer {layer + 1}, head {head + 1}: {reading.kind.value}",
                    "xref": "paper",
                    "yref": "paper",
                    "x": across[0],
                    "y": up[1],
                    "xanchor": "left",
                    "yanchor": "bottom",
                    "showarrow": False,
                    "font": {"size": 11},
                }
            )
    height = PANEL_HEIGHT * layers + 40
    return {"data": data, "layout": layout(height, annotations=notes, **places)}


def heads_table(heads: Heads) -> Markup:
    """Return the figures behind each head's kind."""
    rows = [
        [
            f"{layer + 1}.{head + 1}",
            reading.kind.value,
            f"{reading.confidence:.4f}",
            f"{reading.local_mass:.1%}",
            f"{reading.period_bars:,}" if reading.period_bars else "–",
            f"{reading.period_correlation:.2f}",
            f"{reading.event_share:.2f}",
        ]
        for layer, readings in enumerate(heads.readings)
        for head, reading in enumerate(readings)
    ]
    head = (
        "head",
        "kind",
        "confidence",
        "local mass",
        "period, bars",
        "correlation",
        "event share",
    )
    return table(head, rows, texts=(1,))


def flow_chart(heads: Heads) -> Figure:
    """Return the flow of the decision's attention through the layers, by groups of age."""
    layers, count = heads.flow.shape[:2]
    held = [np.eye(count)[0], *(layer.sum(axis=0) for layer in heads.flow)]
    labels, across, down = [], [], []
    for level, shares in enumerate(held):
        above = np.concatenate(([0.0], shares.cumsum()[:-1])) + shares / 2
        for name, share, at in zip(heads.groups, shares, above, strict=True):
            labels.append(name if share >= LEAST_SHARE else "")
            across.append(min(max(level / layers, 0.001), 0.999))
            down.append(min(max(float(at), 0.001), 0.999))
    links: dict[str, list[Any]] = {"source": [], "target": [], "value": []}
    for place, layer in enumerate(heads.flow):
        for source, target in zip(*np.nonzero(layer >= LEAST_SHARE), strict=True):
            links["source"].append(place * count + int(source))
            links["target"].append((place + 1) * count + int(target))
            links["value"].append(float(f"{layer[source, target]:.4g}"))
    return {
        "data": [
            {
                "type": "sankey",
                "arrangement": "fixed",
                "node": {
                    "label": labels,
                    "x": across,
                    "y": down,
                    "pad": 6,
                    "thickness": 10,
                    "color": ACCENT,
                    "line": {"width": 0},
                    "hovertemplate": "age %{label}: %{value:.1%}<extra></extra>",
                },
                "link": {
                    **links,
                    "color": SOFT,
                    "hovertemplate": "%{source.label} → %{target.label}: %{value:.1%}"
                    "<extra></extra>",
                },
            }
        ],
        "layout": layout(420, hovermode="closest", margin={"l": 8, "r": 64, "t": 16, "b": 16}),
    }
