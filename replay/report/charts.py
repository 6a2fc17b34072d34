"""The charts of money: equity, drawdown, exposure, refusals; as plain Plotly documents.

Colours are names of the page's own, ``var(--accent)``: its script puts in what they are in the
light or the dark. Times are UTC milliseconds.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from tracepaper.replay.report.document import BUY_AND_HOLD, Report
from tracepaper.replay.report.record import Floats

Figure = dict[str, Any]
ACCENT: Final = "var(--accent)"
SOFT: Final = "var(--accent-soft)"
INK: Final = "var(--ink)"
MUTED: Final = "var(--muted)"
FAINT: Final = "var(--faint)"
RULE: Final = "var(--rule)"
_LINES: Final = {BUY_AND_HOLD: {"color": MUTED, "width": 1.2, "dash": "dot"}}


def axis(title: str = "", **more: object) -> Figure:
    """Return an axis in the page's manner."""
    return {
        "title": {"text": title, "font": {"size": 12}},
        "gridcolor": RULE,
        "linecolor": RULE,
        "zeroline": False,
        "ticks": "",
        **more,
    }


def layout(height: int, **more: object) -> Figure:
    """Return a layout in the page's manner."""
    return {
        "height": height,
        "margin": {"l": 64, "r": 16, "t": 12, "b": 36},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "inherit", "size": 12, "color": INK},
        "hovermode": "x unified",
        "hoverlabel": {"bgcolor": "var(--paper)", "bordercolor": RULE},
        "legend": {"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0.0},
        **more,
    }


def line(
    x: list[float] | list[int], y: Floats | list[float], name: str, style: Figure, **more: object
) -> Figure:
    """Return a line trace."""
    return {
        "type": "scatter", "mode": "lines", "x": x, "y": rounded(y), "name": name, "line": style,
        **more,
    }  # fmt: skip


def rounded(values: Floats | list[float], digits: int = 6) -> list[float | None]:
    """Return *values* to so many significant digits, to keep the page small; NaN becomes null."""
    return [float(f"{value:.{digits}g}") if value == value else None for value in values]  # noqa: PLR0124


def equity_chart(report: Report) -> Figure:
    """Return equity against the other accounts and the random twins, drawdown and exposure."""
    times = report.marks_ms.tolist()
    data: list[Figure] = []
    for twins in report.random:
        start = twins.median[0]
        band = {"hoverinfo": "skip", "legendgroup": twins.of}
        low, high = (100 * (edge / start - 1) for edge in (twins.low, twins.high))
        data += [
            line(times, high, "", {"width": 0}, showlegend=False, **band),
            line(
                times, low, f"random twins of {twins.of}, 5–95 %", {"width": 0},
                fill="tonexty", fillcolor=SOFT if twins is report.random[0] else FAINT,
                **band,
            ),
        ]  # fmt: skip
    own = report.record.account.name
    for curve in reversed(report.curves):
        style = _LINES.get(curve.name, {"color": INK, "width": 1.2})
        if curve.name == own:
            style = {"color": ACCENT, "width": 2.2}
        change = 100 * (curve.equity / curve.equity[0] - 1)
        data.append(line(times, change, curve.name, style, hovertemplate="%{y:.2f} %"))
        data.append(
            line(
                times, -100 * curve.drawdown, curve.name, {**style, "width": 1}, yaxis="y2",
                showlegend=False, hovertemplate="%{y:.2f} %",
            )
        )  # fmt: skip
    data.append(
        line(
            times, 100 * exposure_share(report), "position", {"color": ACCENT, "shape": "hv",
            "width": 1}, yaxis="y3", showlegend=False, fill="tozeroy", fillcolor=SOFT,
            hovertemplate="%{y:.1f} %",
        )
    )  # fmt: skip
    return {
        "data": data,
        "layout": layout(
            560,
            xaxis=axis(type="date", anchor="y3"),
            yaxis=axis("return, %", domain=[0.46, 1.0]),
            yaxis2=axis("drawdown, %", domain=[0.22, 0.40]),
            yaxis3=axis("position, %", domain=[0.0, 0.16]),
        ),
    }


def exposure_share(report: Report) -> Floats:
    """Return the run's net position by equity at the report's marks, as a fraction.

    Of every stretch up to a mark the largest position is taken, so that a short one is not lost.
    """
    record = report.record
    notional = np.zeros(record.times_ms.size)
    for name, held in record.account.held.items():
        bars = record.bars[name]
        closes_ms = bars.open_time_ms + record.interval_ms
        at = np.searchsorted(closes_ms, record.times_ms, side="right") - 1
        notional += np.where(at >= 0, (held * bars.close)[at.clip(min=0)], 0.0)
    share = np.concatenate(([0.0], notional / record.account.equity[1:]))
    ends = np.searchsorted(record.times_ms, report.marks_ms, side="right")
    starts = np.concatenate(([0], ends[:-1] + 1))
    highest, lowest = np.maximum.reduceat(share, starts), np.minimum.reduceat(share, starts)
    largest: Floats = np.where(highest >= -lowest, highest, lowest)
    return largest


def refusal_chart(report: Report) -> Figure | None:
    """Return what a refused signal would have earned, a gate a row; None where none had a side."""
    rows = [row for row in report.refusals if row.net_bp is not None][::-1]
    if not rows:
        return None
    names = [f"{row.gate}  ({row.measured:,})" for row in rows]
    return {
        "data": [
            {
                "type": "bar",
                "orientation": "h",
                "y": names,
                "x": rounded([row.net_bp or 0.0 for row in rows]),
                "error_x": {
                    "type": "data",
                    "array": rounded([2 * (row.standard_error_bp or 0.0) for row in rows]),
                    "color": MUTED,
                    "thickness": 1,
                    "width": 3,
                },
                "marker": {"color": [MUTED if row.said == "noise" else ACCENT for row in rows]},
                "hovertemplate": "%{x:.1f} bp<extra></extra>",
            }
        ],
        "layout": layout(
            90 + 34 * len(rows),
            xaxis=axis(
                "net basis points a signal, ± 2 standard errors",
                zeroline=True,
                zerolinecolor=MUTED,
            ),
            yaxis=axis(automargin=True, showgrid=False),
            bargap=0.45,
            showlegend=False,
            hovermode="closest",
        ),
    }
