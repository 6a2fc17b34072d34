"""Charts of money and prices, as plain Plotly documents.

Colours are names of the page's own, ``var(--accent)``: its script puts in what they are in the
light or the dark. Times are UTC milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from tracepaper.replay.archive.columns import iso
from tracepaper.replay.document.values import written
from tracepaper.replay.report.benchmarks import BETTER, COST, SAVED, WORSE, exposures, sides
from tracepaper.replay.report.record import Bars, Floats, Ints
from tracepaper.replay.report.report import BUY_AND_HOLD, Report
from tracepaper.replay.report.trades import ClosedTrade
from tracepaper.strategies.gates.gate import gate_order
from tracepaper.strategies.sessions import Calendar

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
        """Return the place of *change* on the axis."""
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
    """Draw how much better the signals were that a gate let pass, beside a random gate.

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


POINTS_MAX: Final = 800
TRADES_MAX: Final = 300
NOTES_DRAWN: Final = 6
COLUMNS: Final = 200
BINS: Final = 40
_STRIPES: Final = [[0.0, "var(--paper)"], [0.001, "var(--heat-low)"], [0.5, "var(--heat-mid)"],
                   [1.0, "var(--heat-high)"]]  # fmt: skip


def drawn_trades(report: Report, instrument: str) -> list[ClosedTrade]:
    """Return the trades of *instrument* that its price chart marks: all, or evenly chosen ones."""
    own = [trade for trade in report.trades[report.shown] if trade.instrument == instrument]
    if len(own) <= TRADES_MAX:
        return own
    places = np.linspace(0, len(own) - 1, TRADES_MAX).round().astype(np.int64)
    return [own[place] for place in places]


def price_chart(report: Report, instrument: str) -> Figure | None:
    """Return the price with its trades, over what each gate refused there; None where too short."""
    record, bars = report.record, report.record.bars[instrument]
    if not record.every_bar or bars.close.size < 2:  # a line takes two points
        return None
    times, low, high, close = _stretches(bars, record.closes_of(bars.open_time_ms))
    at, (shown,) = broken(times, close, calendar=record.calendar)
    over, (low, high) = _folded(times, low, high, close, record.calendar)
    data = [
        line(over, low, "", {"width": 0}, hoverinfo="skip", showlegend=False),
        line(over, high, "low to high", {"width": 0}, fill="tonexty", fillcolor=SOFT,
             hoverinfo="skip"),
        line(at, shown, "close", {"color": INK, "width": 1.1}, hovertemplate="%{y}"),
        *_marks(drawn_trades(report, instrument)),
    ]  # fmt: skip
    stripes = _refused(report, instrument)
    room = 0.045 * len(stripes["y"]) + 0.06 if stripes else 0.0
    more: Figure = {}
    if stripes:
        data.append({**stripes, "yaxis": "y2"})
        more["yaxis2"] = axis(domain=[0.0, room - 0.06], showgrid=False, automargin=True,
                              autorange="reversed")  # fmt: skip
    noted = _noted(report, instrument)
    data += noted
    if any(trace.get("yaxis") == "y3" for trace in noted):
        more["yaxis3"] = axis("noted", domain=[room, room + 0.2])
        room += 0.25
    return {
        "data": data,
        "layout": layout(
            420 + (24 * len(stripes["y"]) if stripes else 0),
            hovermode="closest",
            xaxis=axis(type="date", anchor="y2" if stripes else "y", showgrid=False),
            yaxis=axis("price", domain=[room, 1.0]),
            **more,
        ),
    }


def _stretches(bars: Bars, closes_ms: Ints) -> tuple[Ints, Floats, Floats, Floats]:
    """Return closes' times, lowest, highest and last price of even stretches of bars."""
    size = bars.close.size
    starts = np.linspace(0, size, min(size, POINTS_MAX), endpoint=False).astype(np.int64)
    ends = np.append(starts[1:], size) - 1
    return (
        closes_ms[ends],
        np.minimum.reduceat(bars.low, starts),
        np.maximum.reduceat(bars.high, starts),
        bars.close[ends],
    )


def _folded(
    times: Ints, low: Floats, high: Floats, close: Floats, calendar: Calendar | None
) -> tuple[list[int], tuple[Floats, Floats]]:
    """Return the band between *low* and *high* folded to nothing over every hole."""
    _, (shown,) = broken(times, close, calendar=calendar)
    holes = np.flatnonzero(np.isnan(shown))
    holes -= np.arange(holes.size)  # places in times of the first point after each
    edges = np.concatenate((times[holes - 1] + 1, times[holes] - 1))
    prices = np.concatenate((close[holes - 1], close[holes]))
    places = np.concatenate((holes, holes))
    over = np.insert(times, places, edges).tolist()
    return over, (np.insert(low, places, prices), np.insert(high, places, prices))


def _marks(trades: Sequence[ClosedTrade]) -> list[Figure]:
    """Mark entries by side, and exits by their result."""
    found = []
    for side, symbol in (("LONG", "triangle-up"), ("SHORT", "triangle-down")):
        of = [trade for trade in trades if trade.side == side]
        found.append(
            _points(
                f"entry {side.lower()}",
                [trade.entered_ms for trade in of],
                [trade.entry_price for trade in of],
                [trade.entry_reason for trade in of],
                {"symbol": symbol, "size": 8, "color": ACCENT},
            )
        )
    for name, won, colour, symbol in (
        ("exit, gain", True, GAIN, "circle-open"), ("exit, loss", False, LOSS, "x-thin-open"),
    ):  # fmt: skip
        of = [trade for trade in trades if (trade.profit > 0) is won]
        found.append(
            _points(
                name,
                [trade.left_ms for trade in of],
                [trade.exit_price for trade in of],
                [f"{trade.exit_reason}, {trade.profit:+,.2f}" for trade in of],
                {"symbol": symbol, "size": 7, "color": colour, "line": {"width": 1.6}},
            )
        )
    return [trace for trace in found if trace["x"]]


def _points(
    name: str, times: list[int], prices: list[float], said: list[str], marker: Figure
) -> Figure:
    return {
        "type": "scatter", "mode": "markers", "name": name, "x": times, "y": rounded(prices, 8),
        "text": [_plain(text) for text in said], "marker": marker,
        "hovertemplate": "%{text}<br>%{y} at %{x}<extra></extra>",
    }  # fmt: skip


def _noted(report: Report, instrument: str) -> list[Figure]:
    """Draw the strategy's notes: numbers as lines, texts as points where they change.

    A number that moves where the price does is drawn over it, any other one below it.
    """
    record = report.record
    bars, notes = record.bars[instrument], record.notes.get(instrument, {})
    low, high = bars.low.min(), bars.high.max()
    found: list[Figure] = []
    for name, noted in list(notes.items())[:NOTES_DRAWN]:
        times = noted.open_time_ms + record.interval_ms
        known = ~np.isnan(noted.number)
        if known.any():
            chosen = np.unique(np.linspace(0, times.size - 1, POINTS_MAX).round().astype(np.int64))
            at, (shown,) = broken(times[chosen], noted.number[chosen])
            over = {} if low <= np.median(noted.number[known]) <= high else {"yaxis": "y3"}
            style = {"width": 1, "dash": "dot"}
            found.append(line(at, shown, name, style, hovertemplate=f"{name} %{{y}}", **over))
        said = np.flatnonzero(noted.text != "")
        said = said[np.append(True, noted.text[said][1:] != noted.text[said][:-1])[: said.size]]
        if said.size:
            said = said[:: -(-said.size // TRADES_MAX)]
            prices = bars.close[np.searchsorted(bars.open_time_ms, noted.open_time_ms[said])]
            marker = {"symbol": "line-ns-open", "size": 9, "color": MUTED}
            texts = noted.text[said].tolist()
            found.append(_points(name, times[said].tolist(), prices.tolist(), texts, marker))
    return found


def _plain(text: str) -> str:
    """Escape *text*, of which the chart's library would take parts for tags."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _refused(report: Report, instrument: str) -> Figure | None:
    """Return how many signals each gate refused over time, a gate a row; None without any."""
    record, decisions = report.record, report.record.decisions
    own = decisions.places[instrument]
    own = own[sides(record)[own] != 0]
    refused = decisions.refused_by[own]
    refusing = set(refused.tolist())
    if not (gates := [name for name in gate_order() if name in refusing]):
        return None
    opens = record.bars[instrument].open_time_ms
    edges = np.linspace(opens[0], opens[-1] + record.interval_ms, COLUMNS + 1)
    counts = [
        np.histogram(decisions.open_time_ms[own[refused == name]], edges)[0] for name in gates
    ]
    return {
        "type": "heatmap", "x": (0.5 * (edges[1:] + edges[:-1])).round().astype(np.int64).tolist(),
        "y": gates, "z": [row.tolist() for row in counts], "colorscale": _STRIPES, "ygap": 2,
        "showscale": False, "hovertemplate": "%{y} refused %{z} signals<extra></extra>",
    }  # fmt: skip


def trades_chart(report: Report) -> Figure | None:
    """Draw the distributions of returns and holding times; None below two closed trades."""
    closed = report.trades[report.shown]
    if len(closed) < 2:  # a spread takes two
        return None
    returns = np.array([trade.return_bp for trade in closed])
    spans = np.log10(np.maximum([trade.held_ms for trade in closed], 1.0))
    counts, middles, width = _histogram(returns, centre=True)
    times, at, long = _histogram(spans, centre=False)
    names = [written(10.0**value, "span") for value in at]
    ticks = [place for place in (1e3, 6e4, 6e5, 3.6e6, 3.6e7, 8.64e7, 8.64e8)
             if at[0] - long <= np.log10(place) <= at[-1] + long]  # fmt: skip
    return {
        "data": [
            {
                "type": "bar", "x": rounded(middles), "y": counts.tolist(), "width": width,
                "marker": {"color": [GAIN if value > 0 else LOSS for value in middles]},
                "hovertemplate": "%{x:+.1f} bp: %{y:,}<extra></extra>",
            },
            {
                "type": "bar", "x": rounded(at), "y": times.tolist(), "width": long,
                "marker": {"color": MUTED}, "xaxis": "x2", "yaxis": "y2", "text": names,
                "textposition": "none", "hovertemplate": "%{text}: %{y:,}<extra></extra>",
            },
        ],
        "layout": layout(
            260, showlegend=False, hovermode="closest", bargap=0.04,
            xaxis=axis("return of a trade, bp", domain=[0.0, 0.47], showgrid=False),
            yaxis=axis("trades"),
            xaxis2=axis("held (logarithmic)", domain=[0.55, 1.0], anchor="y2", showgrid=False,
                        tickvals=[float(np.log10(place)) for place in ticks],
                        ticktext=[written(place, "span") for place in ticks]),
            yaxis2=axis(anchor="x2"),
        ),
    }  # fmt: skip


def _histogram(values: Floats, *, centre: bool) -> tuple[Ints, Floats, float]:
    """Return counts, middles and width of bins; far values join the outermost.

    With *centre* zero is an edge, so that no bin holds gains and losses.
    """
    low, high = np.quantile(values, (0.01, 0.99))
    width = float(max(high - low, 1e-9)) / BINS
    first = np.floor(low / width) * width if centre else low
    edges = first + width * np.arange(BINS + 2)
    counts, _ = np.histogram(values.clip(edges[0], edges[-1]), edges)
    return counts, 0.5 * (edges[1:] + edges[:-1]), width


def rolling_chart(report: Report) -> Figure | None:
    """Return the Sharpe ratio of the thirty days before each day's end; None for a shorter run."""
    times, ratio = report.rolling
    if times.size < 2:  # a line takes two points
        return None
    at, (shown,) = broken(times, ratio, calendar=report.record.calendar)
    return {
        "data": [
            line(at, shown, "Sharpe of 30 days", {"color": ACCENT, "width": 1.6},
                 hovertemplate="%{y:+.2f}")
        ],
        "layout": layout(
            220, showlegend=False, xaxis=axis(type="date", showgrid=False),
            yaxis=axis("Sharpe, 30 days", zeroline=True, zerolinecolor=MUTED),
        ),
    }  # fmt: skip


def caption(report: Report, instrument: str) -> str:
    """Caption the price chart: what it shows, and what it leaves out."""
    every = sum(trade.instrument == instrument for trade in report.trades[report.shown])
    drawn = len(drawn_trades(report, instrument))
    marked = f"{drawn:,} of the {every:,}" if drawn < every else f"the {every:,}"
    first = iso(int(report.record.bars[instrument].open_time_ms[0]))[:10]
    said = f"{instrument} from {first}: {marked} closed trades of {report.shown}"
    if _refused(report, instrument) is None:
        return f"{said}."
    return f"{said}; below, fuller colour is more signals refused by that gate."
