"""Closed trades as small pictures; a run's price as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from tracepaper.replay.archive.columns import iso
from tracepaper.replay.document.page import Markup, element, figures, html_table, joined
from tracepaper.replay.document.values import tone
from tracepaper.replay.report.charts import drawn_trades
from tracepaper.replay.report.record import Floats, Ints
from tracepaper.replay.report.report import ExplainedTrade, Report
from tracepaper.replay.report.trades import ClosedTrade, listed
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.run_views import Row, RunViews
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid, shown
from tracepaper.strategies.extras import require
from tracepaper.strategies.gates.gate import measured
from tracepaper.strategies.types.decisions import OrderRole
from tracepaper.strategies.units import DAY_MS

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def trades(report: Report) -> Markup:
    """Return the closed trades, each with its explanation one click away."""
    closed = report.trades[report.shown]
    if not closed:
        return element("p", "No trade was closed.", class_="note")
    shown = len(report.explained)
    said = f"{len(closed):,} closed trades of {report.shown}"
    if report.shown != report.record.account.name:
        said += ", for this run closed none"
    if shown < len(closed):
        said += f"; the {shown // 2} best and the {shown // 2} worst are explained here"
    return joined(
        [
            element("p", f"{said}. Click one to see why it was opened and where the model looked."),
            *(_trade(explained) for explained in report.explained),
        ]
    )


def _trade(explained: ExplainedTrade) -> Markup:
    trade = explained.trade
    won = tone(trade.profit, "gain")
    summary = element(
        "summary",
        element("span", iso(trade.entered_ms).replace("T", " ").removesuffix(":00Z")),
        element("span", trade.side, class_="wide"),
        element("span", f"{trade.entry_reason} → {trade.exit_reason}", class_="why wide"),
        element("span", f"{trade.profit:+,.2f}", class_=f"number {won}"),
        element("span", f"{trade.return_bp:+.1f} bp", class_=f"number wide {won}"),
    )
    return element(
        "details",
        summary,
        element("div", _said(explained), _orders(explained),
                Markup(trade_picture(explained)), _gates(explained), class_="explained"),
        class_="trade",
    )  # fmt: skip


def _said(explained: ExplainedTrade) -> Markup:
    """Describe the position, and the decision that opened it."""
    trade, decision = explained.trade, explained.decision
    said = (
        f"{trade.side} {trade.quantity:g} {trade.instrument} at {trade.entry_price:,g}, left "
        f"{iso(trade.left_ms)} at {trade.exit_price:,g}; {trade.fees:,.2f} of fees. Opened by "
        f"decision {trade.entry_sequence}."
    )
    if (mean := decision["mean_return"]) is not None:
        stdev = decision["stdev_return"]
        spread = "" if stdev is None else f" ± {1e4 * stdev:.1f}"
        said += f" Expected {1e4 * mean:+.2f}{spread} bp over {decision['horizon']} bars."
    if decision["p_up"] is not None:
        said += (
            f" Up {decision['p_up']:.0%}, flat {decision['p_flat']:.0%}, "
            f"down {decision['p_down']:.0%} over {decision['horizon']} bars."
        )
    if decision["recent_mass"] is not None:
        said += f" Regime {decision['regime']}. Under the price: where attention flowed."
    return element("p", said, class_="note")


def _orders(explained: ExplainedTrade) -> Markup:
    return figures(listed(explained.orders, title="")) if explained.orders else Markup("")


def _gates(explained: ExplainedTrade) -> Markup:
    if not explained.gates:
        return Markup("")
    rows = [
        [
            gate["gate"],
            measured(gate["gate"], gate["measure"]),
            measured(gate["gate"], gate["threshold"]),
            element("span", "passed", class_="mark")
            if gate["passed"]
            else element("span", "failed", class_="mark failed"),
        ]
        for gate in explained.gates
    ]
    return html_table(("gate", "measure", "threshold", ""), rows)


# ---------------------------------------------------------------- one trade, as inline SVG

WIDTH: Final = 720
PRICE_HEIGHT: Final = 120
MASS_HEIGHT: Final = 48
GAP: Final = 10
EDGE: Final = 4
SEAM: Final = 0.6


def trade_picture(explained: ExplainedTrade) -> str:
    """Return an SVG of the price around a trade; numbers alone go into it, no text of the run."""
    times, closes = explained.times_ms.tolist(), explained.closes.tolist()
    if len(times) < 2:  # a line takes two points
        return ""
    across = _Scale(times[0], times[-1], EDGE, WIDTH - EDGE)
    trade = explained.trade
    prices = [*closes, trade.entry_price, trade.exit_price]
    down = _Scale(max(prices), min(prices), EDGE, PRICE_HEIGHT - EDGE)
    points = " ".join(
        f"{across(time):.1f},{down(close):.1f}" for time, close in zip(times, closes, strict=True)
    )
    entry = (across(trade.entered_ms), down(trade.entry_price))
    leave = (across(trade.left_ms), down(trade.exit_price))
    height = PRICE_HEIGHT + (GAP + MASS_HEIGHT if explained.rollout else 0)
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="price and attention">'
        f'<rect class="held" x="{entry[0]:.1f}" y="0" height="{height}" '
        f'width="{max(leave[0] - entry[0], 1.0):.1f}"/>'
        f'<polyline class="price" points="{points}"/>'
        f'<line class="path" x1="{entry[0]:.1f}" y1="{entry[1]:.1f}" x2="{leave[0]:.1f}" '
        f'y2="{leave[1]:.1f}"/>'
        f'<circle class="entry" cx="{entry[0]:.1f}" cy="{entry[1]:.1f}" r="4"/>'
        f'<circle class="exit" cx="{leave[0]:.1f}" cy="{leave[1]:.1f}" r="4"/>'
        f"{_mass(explained.rollout, across(times[0]), across)}</svg>"
    )


def _mass(rollout: Sequence[tuple[int, int, float]], least: float, across: _Scale) -> str:
    """Return the rollout as bars over the same time as the price."""
    if not rollout:
        return ""
    most = max(weight for *_, weight in rollout) or 1.0
    base = PRICE_HEIGHT + GAP + MASS_HEIGHT
    path = ""
    for start, until, weight in rollout:
        left, right = max(across(start), least), across(until) - SEAM
        if right > left:
            tall = MASS_HEIGHT * weight / most
            path += f"M{left:.1f} {base}v{-tall:.1f}h{right - left:.1f}v{tall:.1f}z"
    return f'<path class="mass" d="{path}"/>'


class _Scale:
    """A straight map from one range to another; a range without length maps to its middle."""

    def __init__(self, low: float, high: float, first: float, last: float) -> None:
        self._low, self._first = low, first
        self._slope = (last - first) / (high - low) if high != low else 0.0
        self._offset = 0.0 if high != low else (last - first) / 2

    def __call__(self, value: float) -> float:
        """Return the place of *value*."""
        return self._first + self._offset + (value - self._low) * self._slope


KINDS: Final = {".png": "png", ".svg": "svg"}
INK: Final = "#1f2937"
FAINT: Final = "#6b7280"
UP: Final = "#15803d"
DOWN: Final = "#b91c1c"
NOTED: Final = ("#0e7490", "#b45309", "#6d28d9")
LEVELS: Final = {
    OrderRole.STOP.value: DOWN,
    OrderRole.TRAILING.value: DOWN,
    OrderRole.TARGET.value: UP,
}
"""Roles of the orders whose prices are drawn while their trade was open, with their colours."""
DPI: Final = 130
BARS_LEAST: Final = 2  # a line takes two points


def check(path: Path, last: int, option: str = "--chart") -> None:
    """Raise ``ConfigInvalid`` where no picture of *last* bars can be written to *path*.

    *option* is what asked for it.
    """
    if type(last) is not int or last < BARS_LEAST:
        raise ConfigInvalid(f"last is {shown(last)}; give a number of bars, at least {BARS_LEAST}.")
    if path.suffix.lower() not in KINDS:
        raise ConfigInvalid(f"{path} is no picture; name a .png or .svg file.")
    require("matplotlib", option)


def draw(report: Report, path: Path, *, last: int) -> None:
    """Draw the newest *last* decided bars of the run's first instrument into *path*.

    Raises ``DataInvalid`` where the run kept only some of its steps, or has fewer than two bars.
    """
    record = report.record
    instrument = next(iter(record.bars))
    bars = record.bars[instrument]
    if not record.every_bar or bars.close.size < BARS_LEAST:
        raise DataInvalid(f"Run {record.run['run_id']} holds no two bars in a row to draw.")
    times = record.closes_of(bars.open_time_ms)[-last:]
    close = bars.close[-last:]
    with Reader.open(record.database) as reader:
        views = RunViews(reader.connection, record.run["run_id"])
        orders = views.rows("v_orders", instrument=instrument, role=tuple(LEVELS))
        notes = _series(views.rows("v_notes", instrument=instrument), times, record.interval_ms)
    figure = import_module("matplotlib.figure").Figure(
        figsize=(12, 4.2 + 1.6 * bool(notes)), layout="constrained"
    )
    heights = (3.0, 1.2) if notes else (3.0,)
    panels = figure.subplots(
        len(heights), 1, sharex=True, gridspec_kw={"height_ratios": heights}, squeeze=False
    )[:, 0]
    _price(panels[0], times, close)
    trades = [one for one in drawn_trades(report, instrument) if one.left_ms >= times[0]]
    for trade in trades:
        _mark_trade(panels[0], trade, orders)
    if notes:
        _noted(panels[1], notes)
    dates = import_module("matplotlib.dates")
    locator = dates.AutoDateLocator()
    panels[-1].xaxis.set_major_locator(locator)
    panels[-1].xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))
    panels[0].set_xlim(times[0] / DAY_MS, times[-1] / DAY_MS)
    title = f"{instrument}: {record.run['strategy'].rpartition(':')[2]}, {len(trades)} trades"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=INK)
    kind = KINDS[path.suffix.lower()]
    undated = {"Date": None} if kind == "svg" else {}  # equal runs give equal files
    with import_module("matplotlib").rc_context(
        {"svg.hashsalt": "tracepaper", "svg.fonttype": "none"}
    ):
        try:
            figure.savefig(path, format=kind, dpi=DPI, metadata=undated)
        except OSError as error:
            raise ConfigInvalid(
                f"The chart cannot be written to {path}: {error.strerror}; choose another file."
            ) from error


def _price(axes: Axes, times: Ints, close: Floats) -> None:
    axes.plot(times / DAY_MS, close, color=INK, linewidth=0.9)
    axes.set_ylabel("price")
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.grid(visible=True, alpha=0.2)


def _mark_trade(axes: Axes, trade: ClosedTrade, orders: list[Row]) -> None:
    """Draw entry and exit of *trade*, and the levels that protected it."""
    colour = UP if trade.profit > 0 else DOWN
    over = (trade.entered_ms / DAY_MS, trade.left_ms / DAY_MS)
    axes.plot(over, (trade.entry_price, trade.exit_price), color=colour, linewidth=1.4, alpha=0.7)
    axes.plot(
        over[0], trade.entry_price, marker="^" if trade.side == "LONG" else "v", color=INK,
        markersize=6, linestyle="none",
    )  # fmt: skip
    axes.plot(over[1], trade.exit_price, marker="x", color=colour, markersize=6, linestyle="none")
    for order in orders:
        level = order["trigger_price"] or order["limit_price"]
        if level is not None and trade.entered_ms <= order["created_ms"] < trade.left_ms:
            axes.plot(over, (level, level), color=LEVELS[order["role"]], linestyle=":", linewidth=1)


def _series(notes: list[Row], times: Ints, interval_ms: int) -> dict[str, tuple[Floats, Floats]]:
    """Return the numbers noted under each name, by the close of their bars in days."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for note in notes:
        at_ms = note["open_time_ms"] + interval_ms
        if note["number"] is not None and at_ms >= times[0]:
            at, values = found.setdefault(note["name"], ([], []))
            at.append(at_ms / DAY_MS)
            values.append(note["number"])
    return {name: (np.array(at), np.array(values)) for name, (at, values) in found.items()}


def _noted(axes: Axes, notes: dict[str, tuple[Floats, Floats]]) -> None:
    for place, (name, (at, values)) in enumerate(notes.items()):
        axes.plot(at, values, color=NOTED[place % len(NOTED)], linewidth=0.9, label=name)
    axes.legend(loc="upper left", fontsize=8, frameon=False)
    axes.set_ylabel("noted", color=FAINT)
    axes.grid(visible=True, alpha=0.2)
