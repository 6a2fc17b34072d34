"""A sweep as one page that needs no network: what a terminal says, and the heat map by plotly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tracepaper.replay.report.charts import ACCENT, MUTED, axis, layout
from tracepaper.replay.report.html import Markup, element, joined, table
from tracepaper.replay.report.page import Charts, whole_page, write_text
from tracepaper.replay.sweep.objectives import in_words
from tracepaper.replay.sweep.result import Heat, SweepResult
from tracepaper.replay.sweep.show import luck

CELL_PX = 34


def write_sweep(sweep: SweepResult, path: Path) -> None:
    """Write the page; raise ``ConfigInvalid`` where that cannot be."""
    write_text(page_of_sweep(sweep), path)


def page_of_sweep(sweep: SweepResult) -> str:
    """Return the whole page as text."""
    charts, name = Charts(), sweep.request.work.strategy or "the configured strategy"
    button = element("button", "light / dark", class_="theme", type="button")
    parts: list[Markup] = [element("header", element("h1", f"Sweep of {name}"), button)]
    parts += [
        element("p", f"Warning: {sentence}.", class_="warning")
        for sentence in sweep.request.warnings
    ]
    if (heat := sweep.heat()) is not None:
        caption = (
            f"Medians of {sweep.objective} over all other options; the ring is the best point."
        )
        parts.append(charts.put(_heat_chart(sweep, heat), caption))
    if sweep.best is not None:
        parts.append(element("h2", "How much of it is luck"))
        parts.append(element("ul", joined(element("li", sentence) for sentence in luck(sweep))))
    parts.append(element("h2", "Every run"))
    parts.append(_cells(sweep))
    if sweep.command is not None:
        parts.append(element("p", "The best point again, with its whole record:"))
        parts.append(element("pre", sweep.command))
    body = element("main", *parts)
    return whole_page(f"tracepaper · sweep of {name}", body, charts.figures)


def _cells(sweep: SweepResult) -> Markup:
    names = [axis.name for axis in sweep.request.axes]
    heads = ["window", "part", *names, sweep.objective, "return", "trades", "beats twins", "error"]
    rows = [
        [
            str(cell.span + 1),
            cell.part,
            *(str(cell.point[name]) for name in names),
            in_words(cell.value, sweep.objective),
            in_words(cell.figures.get("return"), "return"),
            in_words(cell.figures.get("trades"), "trades"),
            in_words(cell.figures.get("random_beaten"), "hit_rate"),
            cell.error,
        ]
        for cell in sweep.cells
    ]
    return table(heads, rows, texts=(1, len(heads) - 1))


def _heat_chart(sweep: SweepResult, heat: Heat) -> dict[str, Any]:
    values = [[None if np.isnan(one) else float(one) for one in row] for row in heat.values]
    texts = [
        ["" if one is None else in_words(one, sweep.objective) for one in row] for row in values
    ]
    ring = {
        "type": "scatter", "mode": "markers", "x": [heat.columns[heat.best[1]]],
        "y": [heat.rows[heat.best[0]]], "hoverinfo": "skip", "showlegend": False,
        "marker": {"symbol": "circle-open", "size": 22, "line": {"width": 3, "color": ACCENT}},
    }  # fmt: skip
    map_ = {
        "type": "heatmap", "x": list(heat.columns), "y": list(heat.rows), "z": values,
        "text": texts, "texttemplate": "%{text}", "colorscale": "RdBu",
        "reversescale": not sweep.maximize, "zmid": 0, "colorbar": {"outlinewidth": 0},
        "hovertemplate": f"{heat.x} %{{x}}<br>{heat.y} %{{y}}<br>%{{text}}<extra></extra>",
    }  # fmt: skip
    made = layout(140 + CELL_PX * len(heat.rows), hovermode="closest")
    made["xaxis"] = axis(heat.x, type="category", tickfont={"color": MUTED})
    made["yaxis"] = axis(heat.y, type="category", tickfont={"color": MUTED})
    return {"data": [map_, ring], "layout": made}
