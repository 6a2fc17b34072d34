"""The charts of heads: each by age over decisions, layer by layer, and the flow down the layers."""

from __future__ import annotations

from typing import Final

import numpy as np

from tracepaper.replay.report.attention_charts import INTENSITY
from tracepaper.replay.report.charts import Figure as Chart
from tracepaper.replay.report.charts import axis, layout, rounded
from tracepaper.replay.report.heads import HeadReport, held_by_level, levels
from tracepaper.replay.report.html import Markup
from tracepaper.replay.report.record import Floats

PANEL_HEIGHT: Final = 150
LEAST_SHARE: Final = 0.002
"""Groups of the flow that hold less are not drawn."""
FLOW_WIDTH: Final = 960
FLOW_HEIGHT: Final = 340
FLOW_TOP: Final = 28
FLOW_PAD: Final = 8
FLOW_NODE: Final = 8
FLOW_SIDE: Final = 110


def heads_chart(heads: HeadReport) -> Chart:
    """Return a panel a head, the highest layer on top: age downwards, decisions to the right."""
    layers, count = heads.maps.shape[:2]
    shown = np.log10(np.maximum(heads.maps, 1e-7))
    low, high = np.quantile(shown, (0.02, 0.995))
    common = {
        "type": "heatmap", "zmin": float(low), "zmax": float(high), "colorscale": INTENSITY,
        "showscale": False, "hoverinfo": "skip",
    }  # fmt: skip
    data: list[Chart] = []
    places: Chart = {}
    notes = []
    ticks = list(range(0, len(heads.cell_ages), 10))
    for layer in range(layers):
        for head in range(count):
            number = (layers - 1 - layer) * count + head + 1
            across = [(head + 0.03) / count, (head + 0.97) / count]
            up = [(layer + 0.02) / layers, (layer + 0.80) / layers]
            panel = {"z": [rounded(row, 3) for row in shown[layer, head]]}
            data.append({**panel, **common, "xaxis": f"x{number}", "yaxis": f"y{number}"})
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


def layers_chart(heads: HeadReport) -> Chart:
    """Return a row a head, the highest layer on top: its share in each cell of age."""
    layers, count = heads.maps.shape[:2]
    widths = np.diff([*heads.cell_ages, heads.window])
    shares = (heads.maps[..., -1] * widths).reshape(layers * count, -1)
    names = [f"{layer}.{head}" for layer in range(1, layers + 1) for head in range(1, count + 1)]
    firsts = list(heads.cell_ages)
    spans = [
        f"{first}" if width == 1 else f"{first} to {first + width - 1}"
        for first, width in zip(firsts, widths.tolist(), strict=True)
    ]
    ticks = list(range(0, len(firsts), 5))
    return {
        "data": [
            {
                "type": "heatmap", "z": [rounded(100 * row, 3) for row in shares], "y": names,
                "x": list(range(len(firsts))), "text": [spans] * len(names),
                "colorscale": INTENSITY, "ygap": 2, "zmin": 0,
                "hovertemplate": "head %{y}, age %{text} bars: %{z:.2f} %<extra></extra>",
                "colorbar": {
                    "title": {"text": "% of the head", "font": {"size": 11}}, "thickness": 8,
                    "outlinewidth": 0,
                },
            }
        ],
        "layout": layout(
            90 + 18 * len(names), hovermode="closest",
            xaxis=axis(
                "age, bars", showgrid=False, tickvals=ticks,
                ticktext=[str(firsts[tick]) for tick in ticks],
            ),
            yaxis=axis("layer.head", showgrid=False, type="category"),
        ),
    }  # fmt: skip


def flow_picture(heads: HeadReport) -> Markup:
    """Return an SVG of the decision's attention flowing through the layers, by groups of age."""
    layers, count = heads.flow.shape[:2]
    held = held_by_level(heads)
    room = FLOW_HEIGHT - (count - 1) * FLOW_PAD
    # Where each group starts in each column: shares stacked, the newest on top.
    tops = [
        np.concatenate(([0.0], shares.cumsum()[:-1])) * room + np.arange(count) * FLOW_PAD
        for shares in held
    ]
    across = np.linspace(FLOW_SIDE, FLOW_WIDTH - FLOW_SIDE - FLOW_NODE, layers + 1)
    bands = [
        _bands(layer * room, (tops[place], tops[place + 1]), (across[place], across[place + 1]))
        for place, layer in enumerate(heads.flow)
    ]
    nodes = [
        f'<rect class="node" x="{across[level]:.1f}" y="{tops[level][group] + FLOW_TOP:.1f}" '
        f'width="{FLOW_NODE}" height="{max(held[level][group] * room, 0.5):.1f}"/>'
        for level in range(layers + 1)
        for group in range(count)
        if held[level][group] >= LEAST_SHARE
    ]
    words = [
        _word(across[level] + FLOW_NODE / 2, 14, title) for level, title in enumerate(levels(heads))
    ]
    for group in range(count):
        share = held[-1][group]
        if share >= LEAST_SHARE:
            middle = tops[-1][group] + share * room / 2 + FLOW_TOP + 4
            said = f"{heads.groups[group]}: {share:.0%}"
            words.append(_word(across[-1] + FLOW_NODE + 8, middle, said, anchor="start"))
    return Markup(
        f'<svg class="flow" viewBox="0 0 {FLOW_WIDTH} {FLOW_HEIGHT + FLOW_TOP + 4}" role="img" '
        f'aria-label="flow of attention through the layers">{"".join(bands)}{"".join(nodes)}'
        f"{''.join(words)}</svg>"
    )


def _bands(flow: Floats, tops: tuple[Floats, Floats], across: tuple[float, float]) -> str:
    """Return the bands between two columns; *flow* [from, to] is in units of the picture."""
    left, right = across[0] + FLOW_NODE, across[1]
    leaves, arrives = tops[0].copy(), tops[1].copy()
    middle = (left + right) / 2
    made = []
    for source, target in np.ndindex(*flow.shape):
        tall = flow[source, target]
        first, last = leaves[source] + FLOW_TOP, arrives[target] + FLOW_TOP
        leaves[source] += tall
        arrives[target] += tall
        if tall >= 0.5:  # half a pixel is not seen
            made.append(
                f'<path class="band" d="M{left:.1f} {first:.1f}C{middle:.1f} {first:.1f} '
                f"{middle:.1f} {last:.1f} {right:.1f} {last:.1f}v{tall:.1f}C{middle:.1f} "
                f"{last + tall:.1f} {middle:.1f} {first + tall:.1f} {left:.1f} "
                f'{first + tall:.1f}z"/>'
            )
    return "".join(made)


def _word(x: float, y: float, said: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{said}</text>'
