"""The charts of attention: rollout over time, confidence, winners and losers, heads, flow."""

from __future__ import annotations

from typing import Final

import numpy as np

from tracepaper.replay.report.attention import Heatmap
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
from tracepaper.replay.report.document import Report
from tracepaper.strategies.types import BLOCK_BARS, Regime

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
    """Return how many cells of age, the newest first, hold ``SHOWN_SHARE`` of what lies in them."""
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
    """Return a colour scale of even steps."""
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
    """Return how the confidence is spread, below and above its gate."""
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
