"""The price of a run as a picture: trades, stops and targets, and what the strategy noted."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from tracepaper.replay.report.price_charts import drawn_trades
from tracepaper.replay.report.record import Floats, Ints
from tracepaper.storage.reader import Reader
from tracepaper.storage.run_views import RunViews
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid, shown
from tracepaper.strategies.extras import require
from tracepaper.strategies.market import DAY_MS
from tracepaper.strategies.types import OrderRole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from tracepaper.replay.report.document import Report
    from tracepaper.replay.report.trades import ClosedTrade
    from tracepaper.storage.run_views import Row

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
        _trade(panels[0], trade, orders)
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


def _trade(axes: Axes, trade: ClosedTrade, orders: list[Row]) -> None:
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
