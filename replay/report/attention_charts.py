"""Charts of attention."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tracepaper.replay.archive.columns import iso
from tracepaper.replay.document.page import Markup
from tracepaper.replay.report.attention import Heatmap, InfluenceReport
from tracepaper.replay.report.charts import (
    ACCENT,
    INK,
    MUTED,
    SOFT,
    Figure,
    axis,
    broken,
    layout,
    line,
    rounded,
)
from tracepaper.replay.report.charts import (
    Figure as Chart,
)
from tracepaper.replay.report.heads import HeadReport, held_by_level, levels
from tracepaper.replay.report.record import Floats
from tracepaper.replay.report.report import Report
from tracepaper.strategies.forecasters.attribution import RolloutMap
from tracepaper.strategies.types.decisions import BLOCK_BARS, Regime

CONFIDENCE_BINS: Final = 60
SHOWN_SHARE: Final = 0.995
"""Of the attention by age; the oldest cells beyond it are noise as tall as all others."""
INTENSITY: Final = [[0.0, "var(--heat-low)"], [0.5, "var(--heat-mid)"], [1.0, "var(--heat-high)"]]
REGIMES: Final = (Regime.MEAN_REVERSION, Regime.MIXED, Regime.MOMENTUM)
_RIBBON: Final = ("var(--faint)", "var(--accent-soft)", "var(--accent)")


def rollout_chart(report: Report, heatmap: Heatmap) -> Figure:
    """Return price, regimes, the rollout by age and the confidence over one axis of time."""
    times = heatmap.times_ms.tolist()
    weights = heatmap.weights[: ages_shown(heatmap)]
    usual = weights.mean(axis=1, keepdims=True)
    shown = np.log2(np.maximum(weights, 1e-9) / np.maximum(usual, 1e-9))
    # Bars that a hole hides have no share at all: they must not stretch the scale of the others.
    # Nor may the oldest, of which a few hundredths of a percent are twice as many by next to
    # nothing: a cell counts by the attention that lies there as a rule.
    order = np.argsort(np.abs(shown), axis=None)
    mass = np.cumsum(np.broadcast_to(usual, shown.shape).ravel()[order])
    at_98 = np.abs(shown).ravel()[order][np.searchsorted(mass, 0.98 * mass[-1])]
    far = float(np.clip(at_98, 0.1, 3.0))
    ages = (np.arange(weights.shape[0]) * BLOCK_BARS).tolist()
    threshold = report.record.thresholds.get("confidence")
    at, (close, confidence) = broken(heatmap.times_ms, heatmap.close, heatmap.confidence)
    data = [
        line(at, close, "close", {"color": INK, "width": 1.2}, yaxis="y4"),
        {
            "type": "heatmap", "x": times, "y": ["regime"], "z": [_ribbon(report, heatmap)],
            "yaxis": "y3", "zmin": 0, "zmax": 2, "showscale": False, "hoverinfo": "skip",
            "colorscale": _steps(_RIBBON),
        },
        {
            "type": "heatmap", "x": times, "y": ages, "z": [rounded(row, 3) for row in shown],
            "zmin": -far, "zmax": far, "colorscale": INTENSITY, "yaxis": "y2",
            "meta": "log2",  # the page shows the ratio itself on hovering
            "hovertemplate": "age %{y} bars: %{customdata:.2f} × usual<extra></extra>",
            "colorbar": {
                "title": {"text": "× usual", "font": {"size": 11}}, "thickness": 8, "len": 0.42,
                "y": 0.46, "outlinewidth": 0, **_ticks(far),
            },
        },
        line(at, confidence, "confidence", {"color": ACCENT, "width": 1.2}),
    ]  # fmt: skip
    if threshold is not None:
        data.append(
            line(
                [times[0], times[-1]], [threshold, threshold], "its gate",
                {"color": MUTED, "width": 1, "dash": "dot"},
            )
        )  # fmt: skip
    return {
        "data": data,
        "layout": layout(
            620,
            showlegend=False,
            xaxis=axis(type="date", anchor="y", showgrid=False),
            yaxis=axis("confidence", domain=[0.0, 0.16]),
            yaxis2=axis("age, bars", domain=[0.22, 0.70], showgrid=False, autorange="reversed"),
            yaxis3=axis(domain=[0.73, 0.765], showgrid=False, showticklabels=False),
            yaxis4=axis("close", domain=[0.80, 1.0]),
        ),
    }


def ages_shown(heatmap: Heatmap) -> int:
    """Count the newest cells of age that together hold ``SHOWN_SHARE`` of the rollout."""
    usual = heatmap.weights[:-1].mean(axis=1)
    return 1 + int(np.searchsorted(np.cumsum(usual), SHOWN_SHARE * usual.sum()))


def _ribbon(report: Report, heatmap: Heatmap) -> list[float | None]:
    """Return the commonest regime of each column, as a place in ``REGIMES``; null if unknown."""
    decisions = report.record.decisions
    own = decisions.places[heatmap.instrument]
    own = own[np.isfinite(decisions.confidence[own])]
    ends = np.searchsorted(decisions.open_time_ms[own], heatmap.times_ms, side="right")
    found: list[float | None] = []
    for column in np.split(decisions.regime[own], ends[:-1]):
        counts = [int(np.count_nonzero(column == regime.value)) for regime in REGIMES]
        found.append(float(np.argmax(counts)) if any(counts) else None)
    return found


def _steps(colours: tuple[str, ...]) -> list[list[float | str]]:
    count = len(colours)
    return [
        [edge, colour]
        for place, colour in enumerate(colours)
        for edge in (place / count, (place + 1) / count)
    ]


def _ticks(far: float) -> Figure:
    """Return ticks at plain ratios within 2^-far to 2^far."""
    ratios = [ratio for ratio in (0.25, 0.5, 0.8, 1.0, 1.25, 2.0, 4.0) if abs(np.log2(ratio)) < far]
    return {
        "tickvals": [float(np.log2(ratio)) for ratio in ratios],
        "ticktext": [f"{ratio:g}" for ratio in ratios],
    }


def confidence_chart(report: Report) -> Figure:
    """Draw the distribution of confidence, below and above its gate."""
    record = report.record
    values = record.decisions.confidence[np.isfinite(record.decisions.confidence)]
    low, high = np.quantile(values, (0.001, 0.999))
    counts, edges = np.histogram(values, bins=CONFIDENCE_BINS, range=(low, max(high, low + 1e-9)))
    middles = 0.5 * (edges[1:] + edges[:-1])
    threshold = record.thresholds.get("confidence", -1.0)
    chart = layout(
        260, bargap=0.06, showlegend=False, hovermode="closest",
        xaxis=axis("confidence: 1 less the normalised entropy", showgrid=False),
        yaxis=axis("bars"),
    )  # fmt: skip
    if threshold >= 0:
        chart["shapes"] = [
            {
                "type": "line", "x0": threshold, "x1": threshold, "yref": "paper", "y0": 0, "y1": 1,
                "line": {"color": INK, "width": 1, "dash": "dot"},
            }
        ]  # fmt: skip
        chart["annotations"] = [
            {
                "x": threshold, "yref": "paper", "y": 1.0, "text": "gate", "showarrow": False,
                "xanchor": "left", "yanchor": "top", "xshift": 5, "font": {"color": INK},
            }
        ]  # fmt: skip
    return {
        "data": [
            {
                "type": "bar", "x": rounded(middles), "y": counts.tolist(),
                "marker": {"color": [ACCENT if at >= threshold else SOFT for at in middles]},
                "hovertemplate": "%{x:.4f}: %{y:,} bars<extra></extra>",
            }
        ],
        "layout": chart,
    }  # fmt: skip


def groups_chart(report: Report) -> Figure | None:
    """Return the mean rollout by age at the entries of winners and losers; None without both."""
    groups = [group for group in report.groups if group.rollout]
    if len(groups) < 2:  # a comparison takes two
        return None
    styles = ({"color": ACCENT, "width": 2}, {"color": MUTED, "width": 2})
    ages = (np.arange(len(groups[0].rollout) - 1) * BLOCK_BARS).tolist()
    return {
        "data": [
            line(ages, [100 * share for share in group.rollout[:-1]],
                 f"{group.trades} {group.name}", style, hovertemplate="%{y:.2f} %")
            for group, style in zip(groups, styles, strict=True)
        ],
        "layout": layout(
            260,
            xaxis=axis("age, bars", showgrid=False),
            yaxis=axis("share of attention, %", rangemode="tozero"),
        ),
    }  # fmt: skip


def head_confidence_chart(report: Report, heads: int) -> Figure | None:
    """Return the mean confidence of every layer and head over the whole run."""
    if report.attention is None or not heads:
        return None
    table = report.attention.head_confidence.reshape(-1, heads)
    return {
        "data": [
            {
                "type": "heatmap", "z": [rounded(row, 4) for row in table],
                "x": [f"head {head + 1}" for head in range(heads)],
                "y": [f"layer {layer + 1}" for layer in range(len(table))],
                "colorscale": INTENSITY, "texttemplate": "%{z:.3f}", "showscale": False,
                "hovertemplate": "%{y}, %{x}: %{z:.4f}<extra></extra>", "xgap": 3, "ygap": 3,
            }
        ],
        "layout": layout(
            60 + 44 * len(table), hovermode="closest", xaxis=axis(showgrid=False),
            yaxis=axis(showgrid=False),
        ),
    }  # fmt: skip


def heads_over_time_chart(heatmap: Heatmap, heads: int) -> Figure | None:
    """Return each head's confidence over the run, as a multiple of its own mean; None of none."""
    if not heads or not heatmap.heads.size:
        return None
    usual = heatmap.heads.mean(axis=1, keepdims=True)
    shown = np.log2(np.maximum(heatmap.heads, 1e-9) / np.maximum(usual, 1e-9))
    far = float(np.clip(np.quantile(np.abs(shown), 0.98), 0.1, 3.0))
    names = [f"{at // heads + 1}.{at % heads + 1}" for at in range(len(shown))]
    return {
        "data": [
            {
                "type": "heatmap", "x": heatmap.times_ms.tolist(), "y": names,
                "z": [rounded(row, 3) for row in shown], "zmin": -far, "zmax": far,
                "colorscale": INTENSITY, "ygap": 2, "meta": "log2",
                "hovertemplate": "head %{y}: %{customdata:.2f} × usual<extra></extra>",
                "colorbar": {
                    "title": {"text": "× usual", "font": {"size": 11}}, "thickness": 8,
                    "outlinewidth": 0, **_ticks(far),
                },
            }
        ],
        "layout": layout(
            90 + 16 * len(names), hovermode="closest",
            xaxis=axis(type="date", showgrid=False),
            yaxis=axis("layer.head", showgrid=False, type="category"),
        ),
    }  # fmt: skip


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
