"""Closed trades with their pictures; a run's price as a picture."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from tracepaper.replay.document.charts import (
    Chart,
    ChartAxis,
    ChartPanel,
    Layer,
    LineLayer,
    MarkLayer,
    SpanLayer,
    rounded,
    time_axis,
)
from tracepaper.replay.document.values import FoldedParts, Form, Paragraph, Part, Table, table_of
from tracepaper.replay.report.charts import drawn_trades
from tracepaper.replay.report.listed_orders import listed
from tracepaper.replay.report.record import RunRecord
from tracepaper.replay.report.report import ExplainedTrade, Report
from tracepaper.replay.report.trades import ClosedTrade
from tracepaper.replay.run_columns import Floats, Ints
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.run_views import Row, RunViews
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid, shown
from tracepaper.strategies.extras import require
from tracepaper.strategies.gates.gate import measured
from tracepaper.strategies.types.decisions import OrderRole
from tracepaper.strategies.units import DAY_MS, count_of, iso

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as MatplotlibFigure


def trades(report: Report) -> list[Part]:
    """Return the closed trades, each folded over its explanation."""
    closed = report.trades[report.shown]
    if not closed:
        return [Paragraph("No trade was closed.", "note")]
    shown = len(report.explained)
    said = f"{count_of(len(closed), 'closed trade')} of {report.shown}"
    if report.shown != report.record.account.name:
        said += ", for this run closed none"
    if shown < len(closed):
        said += f"; the {shown // 2} best and the {shown // 2} worst are explained here"
    said += ". Open one to see why it was opened and where the model looked."
    return [Paragraph(said), *map(_trade, report.explained)]


def _trade(explained: ExplainedTrade) -> FoldedParts:
    trade = explained.trade
    entered = iso(trade.entry_ms).replace("T", " ").removesuffix(":00Z")
    parts: list[Part] = [Paragraph(_said(explained), "note")]
    if explained.orders:
        parts.append(listed(explained.orders, title=""))
    if len(explained.times_ms) > 1:  # a line takes two points
        parts.append(trade_chart(explained))
    if explained.gates:
        parts.append(_gates(explained))
    return FoldedParts(
        f"{entered} {trade.side} {trade.entry_reason} → {trade.exit_reason}",
        tuple(parts),
        ((trade.profit, "gain", ""), (trade.return_bp / 1e4, "gain bp", " bp")),
    )


def _said(explained: ExplainedTrade) -> str:
    """Describe the position, and the decision that opened it."""
    trade, decision = explained.trade, explained.decision
    said = (
        f"{trade.side} {trade.quantity:g} {trade.instrument} at {trade.entry_price:,g}, left "
        f"{iso(trade.exit_ms)} at {trade.exit_price:,g}; {trade.fees:,.2f} of fees. Opened by "
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
    return said


def _gates(explained: ExplainedTrade) -> Table:
    rows = [
        (
            gate["gate"],
            measured(gate["gate"], gate["measure"]),
            measured(gate["gate"], gate["threshold"]),
            bool(gate["passed"]),
        )
        for gate in explained.gates
    ]
    forms: dict[str, Form] = {
        "gate": "text",
        "measure": "exact",
        "threshold": "exact",
        "passed": "mark",
    }
    return table_of("gates", "", forms, rows)


def trade_chart(explained: ExplainedTrade) -> Chart:
    """Draw the price around a trade, and under it where attention flowed as it was decided."""
    trade, times = explained.trade, explained.times_ms.tolist()
    ends = (float(trade.entry_ms), float(trade.exit_ms))
    prices = rounded([trade.entry_price, trade.exit_price], 8)
    held = SpanLayer("held", *ends)
    price: list[Layer] = [
        held,
        LineLayer("close", times, rounded(explained.closes, 8), "ink", 1.2),
        LineLayer("trade", ends, prices, "accent", 1.2, "dash"),
        MarkLayer("entry", ends[:1], prices[:1], "dot"),
        MarkLayer("exit", ends[1:], prices[1:], "ring"),
    ]
    panels = [ChartPanel(price, time_axis(), ChartAxis("close"), 120)]
    caption = f"{trade.instrument} around the trade."
    if blocks := [each for each in explained.rollout if each[1] > times[0]]:
        # The oldest begins before the picture.
        starts = [float(max(start, times[0])) for start, *_ in blocks]
        shares = rounded([100 * weight for *_, weight in blocks])
        looked = LineLayer(
            "attention",
            [*starts, float(blocks[-1][1])],
            [*shares, None],
            width=1.0,
            is_step=True,
            is_filled=True,
        )
        up = ChartAxis("attention, %", unit=" %", digits=2, has_zero=True)
        panels.append(ChartPanel([held, looked], time_axis(), up, 80))
        caption += " Under the price: where attention flowed."
    return Chart("", caption, panels, is_aligned=True)


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


def check_bars(last: int) -> None:
    """Raise ``ConfigInvalid`` where no picture of *last* bars can be drawn."""
    if type(last) is not int or last < BARS_LEAST:
        raise ConfigInvalid(f"last is {shown(last)}; give a number of bars, at least {BARS_LEAST}.")


def check(path: Path, last: int, option: str = "--chart") -> None:
    """Raise ``ConfigInvalid`` where no picture of *last* bars can be written to *path*.

    *option* is what asked for it.
    """
    check_bars(last)
    if path.suffix.lower() not in KINDS:
        raise ConfigInvalid(f"{path} is no picture; name a .png or .svg file.")
    require("matplotlib", option)


def figure_of(report: Report, *, last: int) -> MatplotlibFigure:
    """Draw the newest *last* decided bars of the run's first instrument, with its trades.

    Raises ``DataInvalid`` where the run has fewer than two bars.
    """
    record = report.record
    instrument = next(iter(record.bars))
    bars = record.bars[instrument]
    if bars.close.size < BARS_LEAST:
        raise DataInvalid(f"Run {record.run['run_id']} holds no two bars in a row to draw.")
    times = record.bar_times.closes_of(bars.open_time_ms)[-last:]
    close = bars.close[-last:]
    with Reader.open(record.database) as reader:
        views = RunViews(reader.connection, record.run["run_id"])
        orders = views.rows("v_orders", instrument=instrument, role=tuple(LEVELS))
        notes = _series(views.rows("v_notes", instrument=instrument), times, record)
    figure: MatplotlibFigure = import_module("matplotlib.figure").Figure(
        figsize=(12, 4.2 + 1.6 * bool(notes)), layout="constrained"
    )
    heights = (3.0, 1.2) if notes else (3.0,)
    panels = figure.subplots(
        len(heights), 1, sharex=True, gridspec_kw={"height_ratios": heights}, squeeze=False
    )[:, 0]
    _price(panels[0], times, close)
    trades = [one for one in drawn_trades(report, instrument) if one.exit_ms >= times[0]]
    for trade in trades:
        _mark_trade(panels[0], trade, orders)
    if notes:
        _noted(panels[1], notes)
    dates = import_module("matplotlib.dates")
    locator = dates.AutoDateLocator()
    panels[-1].xaxis.set_major_locator(locator)
    panels[-1].xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))
    panels[0].set_xlim(times[0] / DAY_MS, times[-1] / DAY_MS)
    strategy = record.run["strategy"].rpartition(":")[2]
    title = f"{instrument}: {strategy}, {count_of(len(trades), 'trade')}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=INK)
    return figure


def draw(report: Report, path: Path, *, last: int) -> None:
    """Write ``figure_of`` to *path*; raise ``ConfigInvalid`` where that cannot be written."""
    figure = figure_of(report, last=last)
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
    over = (trade.entry_ms / DAY_MS, trade.exit_ms / DAY_MS)
    axes.plot(over, (trade.entry_price, trade.exit_price), color=colour, linewidth=1.4, alpha=0.7)
    axes.plot(
        over[0],
        trade.entry_price,
        marker="^" if trade.side == "LONG" else "v",
        color=INK,
        markersize=6,
        linestyle="none",
    )
    axes.plot(over[1], trade.exit_price, marker="x", color=colour, markersize=6, linestyle="none")
    for order in orders:
        level = order["trigger_price"] or order["limit_price"]
        if level is not None and trade.entry_ms <= order["created_ms"] < trade.exit_ms:
            axes.plot(over, (level, level), color=LEVELS[order["role"]], linestyle=":", linewidth=1)


def _series(notes: list[Row], times: Ints, record: RunRecord) -> dict[str, tuple[Floats, Floats]]:
    """Return the numbers noted under each name, by the close of their bars in days."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    closes_ms = record.bar_times.closes_of(
        np.array([note["open_time_ms"] for note in notes], dtype=np.int64)
    )
    for note, at_ms in zip(notes, closes_ms.tolist(), strict=True):
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
