"""The charts of money: equity, drawdown, exposure, refusals; as plain Plotly documents.

Colours are names of the page's own, ``var(--accent)``: its script puts in what they are in the
light or the dark. Times are UTC milliseconds.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from tracepaper.replay.report.accounts import exposures
from tracepaper.replay.report.document import BUY_AND_HOLD, Report
from tracepaper.replay.report.record import Floats, Ints
from tracepaper.replay.report.refusals import BETTER, COST, SAVED, WORSE
from tracepaper.strategies.calendar import Calendar

Figure = dict[str, Any]
ACCENT: Final = "var(--accent)"
SOFT: Final = "var(--accent-soft)"
INK: Final = "var(--ink)"
MUTED: Final = "var(--muted)"
FAINT: Final = "var(--faint)"
GAIN: Final = "var(--gain)"
LOSS: Final = "var(--loss)"
DWARFED: Final = 10.0
"""How many times further than the run another account must go for a logarithmic scale."""
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


def broken(
    times: Ints, *columns: Floats, calendar: Calendar | None = None
) -> tuple[list[int], list[Floats]]:
    """Return *times* and *columns* with a missing value in every hole, so that no line crosses it.

    A hole is a step of more than five usual ones; with a *calendar* a step is in session bars, so
    that a night is none.
    """
    steps = np.diff(times if calendar is None else calendar.places(times - 1))
    if not steps.size:
        return times.tolist(), list(columns)
    holes = np.flatnonzero(steps > 5 * np.median(steps)) + 1
    cut = [np.insert(column.astype(np.float64), holes, np.nan) for column in columns]
    return np.insert(times, holes, times[holes] - 1).tolist(), cut


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
    return [None if math.isnan(value) else float(f"{value:.{digits}g}") for value in values]


def equity_chart(report: Report) -> Figure:
    """Return equity against the other accounts and the random twins, drawdown and exposure.

    Where another account dwarfs the run, returns are drawn on a logarithmic scale on both sides of
    zero. Of a run that kept only some bars, there is the equity alone.
    """
    times, scale = report.marks_ms.tolist(), _Scale.of(report)
    data: list[Figure] = []
    for twins in report.random:
        start = twins.median[0]
        band = {"hoverinfo": "skip", "legendgroup": twins.of}
        low, high = (scale(100 * (edge / start - 1)) for edge in (twins.low, twins.high))
        data += [
            line(times, high, "", {"width": 0}, showlegend=False, **band),
            line(
                times, low, f"random twins of {twins.of}, 5–95 %", {"width": 0},
                fill="tonexty", fillcolor=SOFT if twins is report.random[0] else FAINT,
                **band,
            ),
        ]  # fmt: skip
    own = report.record.account.name
    labels = {of.name: of.label for of in report.accounts}
    for curve in reversed(report.curves):
        style = _LINES.get(curve.name, {"color": INK, "width": 1.2})
        if curve.name.startswith("held at"):
            style = {"color": MUTED, "width": 1.4}
        if curve.name == own:
            style = {"color": ACCENT, "width": 2.2}
        change = 100 * (curve.equity / curve.equity[0] - 1)
        at, (change, lost) = broken(
            report.marks_ms, change, -100 * curve.drawdown, calendar=report.record.calendar
        )
        data.append(
            line(
                at, scale(change), labels[curve.name], style, customdata=rounded(change),
                hovertemplate="%{customdata:+.2f} %",
            )
        )  # fmt: skip
        if report.record.every_bar:
            data.append(
                line(
                    at, lost, labels[curve.name], {**style, "width": 1}, yaxis="y2",
                    showlegend=False, hovertemplate="%{y:.2f} %",
                )
            )  # fmt: skip
    if not report.record.every_bar:
        shown = layout(320, xaxis=axis(type="date"), yaxis=axis(scale.title, **scale.ticks))
        return {"data": data, "layout": shown}
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
            yaxis=axis(scale.title, domain=[0.46, 1.0], **scale.ticks),
            yaxis2=axis("drawdown, %", domain=[0.22, 0.40]),
            yaxis3=axis("position, %", domain=[0.0, 0.16]),
        ),
    }


class _Scale:
    """Returns in percent as they are, or their inverse hyperbolic sine: a logarithm with a zero."""

    def __init__(self, unit: float | None, furthest: float) -> None:
        self._unit = unit
        self.title = "return, %" if unit is None else "return, % (logarithmic)"
        self.ticks: Figure = {}
        if unit is not None:
            decades = 10.0 ** np.arange(np.floor(np.log10(unit)), np.log10(furthest) + 1)
            marks = [0.0, *(sign * mark for mark in decades if mark >= unit for sign in (1, -1))]
            self.ticks = {
                "tickvals": rounded(self(np.array(sorted(marks)))),
                "ticktext": [f"{mark:+g}" if mark else "0" for mark in sorted(marks)],
            }

    @classmethod
    def of(cls, report: Report) -> _Scale:
        """Return a logarithmic scale where the run would be a flat line, else a plain one."""
        ranges = [
            100 * float(np.max(np.abs(curve.equity / curve.equity[0] - 1)))
            for curve in report.curves
        ]
        own, furthest = ranges[0], max(ranges)
        if own <= 0 or furthest <= DWARFED * own:
            return cls(None, furthest)
        return cls(own / 3, furthest)

    def __call__(self, change: Floats) -> Floats:
        """Return where *change* is drawn."""
        return change if self._unit is None else np.arcsinh(change / self._unit)


def exposure_share(report: Report) -> Floats:
    """Return the run's net position by equity at the report's marks, as a fraction.

    Of every stretch up to a mark the largest position is taken, so that a short one is not lost.
    """
    record = report.record
    share = np.concatenate(([0.0], np.nan_to_num(exposures(record, record.account)[0])))
    ends = np.searchsorted(record.times_ms, report.marks_ms, side="right")
    starts = np.concatenate(([0], ends[:-1] + 1))
    highest, lowest = np.maximum.reduceat(share, starts), np.minimum.reduceat(share, starts)
    largest: Floats = np.where(highest >= -lowest, highest, lowest)
    return largest


def refusal_chart(report: Report) -> Figure | None:
    """Return how much better the signals were that a gate let pass, beside a random gate.

    None where no gate refused enough signals to be judged.
    """
    rows = [row for row in report.refusals if row.error_bp is not None][::-1]
    if not rows:
        return None
    names = [f"{row.gate}  ({row.days:,} days)" for row in rows]
    colours = {SAVED: GAIN, WORSE: LOSS, COST: LOSS, BETTER: GAIN}
    return {
        "data": [
            {
                "type": "bar", "orientation": "h", "y": names, "name": "random gate, 95 %",
                "base": rounded([row.random_low_bp or 0.0 for row in rows]),
                "x": rounded(
                    [(row.random_high_bp or 0.0) - (row.random_low_bp or 0.0) for row in rows]
                ),
                "marker": {"color": FAINT}, "hoverinfo": "skip",
            },
            {
                "type": "scatter", "mode": "markers", "y": names, "name": "this gate ± 2 errors",
                "x": rounded([row.kept_better_bp or 0.0 for row in rows]),
                "error_x": {
                    "type": "data", "color": MUTED, "thickness": 1.4, "width": 4,
                    "array": rounded([2 * (row.error_bp or 0.0) for row in rows]),
                },
                "marker": {"size": 9, "color": [colours.get(row.said, MUTED) for row in rows]},
                "text": [row.said for row in rows],
                "hovertemplate": "%{x:+.1f} bp: %{text}<extra></extra>",
            },
        ],
        "layout": layout(
            110 + 34 * len(rows),
            xaxis=axis(
                "passed better by, gross bp", zeroline=True,
                zerolinecolor=MUTED,
            ),
            yaxis=axis(automargin=True, showgrid=False),
            bargap=0.45,
            hovermode="closest",
        ),
    }  # fmt: skip
