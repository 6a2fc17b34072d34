"""Pictures of a run by name: its price, equity, profits by trade, and events over time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Final, Literal, get_args

import numpy as np

from tracepaper.replay.document.charts import (
    BarLayer,
    Chart,
    ChartAxis,
    ChartPanel,
    ChartRole,
    Layer,
    LineLayer,
    MarkLayer,
    RuleLayer,
    category_axis,
    percent_axis,
    rounded,
    time_axis,
)
from tracepaper.replay.document.values import Form, Table, table_of
from tracepaper.replay.report.charts import broken, equity_chart, picture_chart
from tracepaper.replay.report.report import Report
from tracepaper.replay.report.timeline import LABELS
from tracepaper.replay.report.trades import ClosedTrade
from tracepaper.replay.run_columns import Floats
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid, shown
from tracepaper.strategies.units import count_of

PictureName = Literal["price", "equity", "trades", "events"]
PICTURES: Final[tuple[PictureName, ...]] = get_args(PictureName)
"""The pictures of ``report --picture`` and ``Backtest.plot``."""
BINS: Final = 40
"""Most bins of a histogram."""
BIN_STEPS: Final = (1.0, 2.0, 5.0, 10.0)
ROW: Final = 26
"""Height of a row of events, in pixels."""
EVENTS_LISTED: Final = 300
EVENTS_SHOWN: Final = 12
_ROLES: Final[dict[str, ChartRole]] = {"stops": "ink", "limits": "loss", "halt": "loss"}


def picture_named(name: str) -> PictureName:
    """Return the picture *name*; raise ``ConfigInvalid`` if there is none."""
    for picture in PICTURES:
        if picture == name:
            return picture
    *others, last = PICTURES
    raise ConfigInvalid(f"{shown(name)} is no picture; write {', '.join(others)} or {last}.")


def chart_named(report: Report, name: PictureName, *, last: int) -> Chart:
    """Draw the picture *name* of the run; *last* is the number of bars of the price.

    Raises ``DataInvalid`` if the run has nothing to draw.
    """
    draw: dict[PictureName, Callable[[Report], Chart | None]] = {
        "price": lambda of: picture_chart(of, last=last),
        "equity": equity_chart,
        "trades": trades_chart,
        "events": events_chart,
    }
    if (chart := draw[name](report)) is None:
        missing = {"trades": "closed no trade", "events": "has no event that would send a notice"}
        run_id = report.record.run["run_id"]
        raise DataInvalid(f"Run {run_id} {missing[name]}; draw its price or equity instead.")
    return chart


def trades_chart(report: Report) -> Chart | None:
    """Draw the profit of each closed trade over time, and how many had which; None without any."""
    trades = report.trades[report.shown]
    if not trades:
        return None
    coins = {report.record.instruments[trade.instrument].quote_coin for trade in trades}
    axis = ChartAxis(f"profit, {', '.join(sorted(coins))}", digits=2, has_zero=True)
    dots: list[Layer] = [RuleLayer(0.0), *_dots(trades)]
    profits = np.array([trade.profit for trade in trades])
    edges = _edges(profits)
    counts = np.histogram(profits, edges)[0]
    middles = 0.5 * (edges[1:] + edges[:-1])
    roles: list[ChartRole] = ["gain" if middle > 0 else "loss" for middle in middles]
    texts = [f"{low:,.6g} to {high:,.6g}" for low, high in pairwise(edges.tolist())]
    bars = BarLayer("trades", rounded(middles), counts.tolist(), roles, texts=texts)
    won = int((profits > 0).sum())
    caption = (
        f"{count_of(len(trades), 'closed trade')} of {report.shown}: {won:,} with a gain, "
        f"{len(trades) - won:,} without; the mean is {profits.mean():+,.2f}, the median "
        f"{np.median(profits):+,.2f}, after fees and before funding."
    )
    panels = [
        ChartPanel(dots, time_axis(), axis, 240),
        ChartPanel([bars, RuleLayer(0.0, "x")], axis, ChartAxis("trades", digits=0), 160),
    ]
    return Chart("Profit by trade", caption, panels)


def _dots(trades: tuple[ClosedTrade, ...]) -> list[MarkLayer]:
    layers = []
    sides: tuple[tuple[str, bool, ChartRole], ...] = (
        ("gain", True, "gain"),
        ("loss", False, "loss"),
    )
    for name, is_won, role in sides:
        closed = [trade for trade in trades if (trade.profit > 0) is is_won]
        times = [trade.closed_ms for trade in closed]
        texts = [f"{trade.side.lower()}, {trade.exit_reason}" for trade in closed]
        profits = rounded([trade.profit for trade in closed])
        layers.append(MarkLayer(name, times, profits, "dot", (role,), texts))
    return [layer for layer in layers if layer.x]


def _edges(profits: Floats) -> Floats:
    """Return edges of equal round bins, one of them at zero: no bin mixes gain and loss."""
    span = max(float(np.ptp(profits)), float(np.abs(profits).max()), 1e-6)
    least = span / BINS
    power = 10.0 ** np.floor(np.log10(least))
    step = next(step * power for step in BIN_STEPS if step * power >= least)
    first, last = np.floor(profits.min() / step), np.floor(profits.max() / step) + 1
    return np.arange(min(first, 0.0), max(last, 0.0) + 1) * step


def events_chart(report: Report) -> Chart | None:
    """Draw equity, and below when the run's events would send notices; None without any."""
    events = report.timeline.events
    if not events:
        return None
    sent = {event.kind for event in events}
    kinds = {kind: label for kind, label in LABELS.items() if kind in sent}
    marks = []
    for place, kind in enumerate(kinds):
        of_kind = [event for event in events if event.kind == kind]
        marks.append(
            MarkLayer(
                "",
                [event.market_ms for event in of_kind],
                [place] * len(of_kind),
                "tick",
                (_ROLES.get(kind, "accent"),),
                [event.text for event in of_kind],
            )
        )
    equity, calendar = report.curves[0].equity, report.record.bar_times.calendar
    at, (change,) = broken(report.marks_ms, 100 * (equity / equity[0] - 1), calendar=calendar)
    line = LineLayer("", at, rounded(change))
    rows = category_axis([*kinds.values()], is_reversed=True)
    panels = [
        ChartPanel([line], time_axis(), percent_axis("return, %"), 150),
        ChartPanel(marks, time_axis(), rows, 10 + ROW * len(kinds)),
    ]
    caption = "Events that would send a notice ([notify]), by kind."
    if report.timeline.left_out:
        caption = f"The newest e{caption[1:]} {report.timeline.left_out:,} older are left out."
    return Chart("Events", caption, panels, is_aligned=True)


def events_table(report: Report) -> Table | None:
    """Return the newest notices that the run's events would send; None without any."""
    events = report.timeline.events
    if not events:
        return None
    rows = [(event.market_ms, LABELS[event.kind], event.text) for event in events[-EVENTS_LISTED:]]
    title = "Events that would send a notice"
    if len(rows) < len(events):
        title += f" (the last {len(rows):,} of {len(events):,})"
    forms: dict[str, Form] = {"time": "second", "kind": "text", "notice": "text"}
    listed = table_of("events", title, forms, rows)
    return replace(listed, shown=EVENTS_SHOWN, newest=True, whole=False)
