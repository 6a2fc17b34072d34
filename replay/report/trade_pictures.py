"""Closed trades with their pictures; a run's price as a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from tracepaper.replay.document.charts import (
    Chart,
    ChartAxis,
    ChartPanel,
    ChartRole,
    Layer,
    LineLayer,
    MarkLayer,
    SpanLayer,
    held_steps,
    percent_axis,
    rounded,
    time_axis,
)
from tracepaper.replay.document.pictures import KINDS
from tracepaper.replay.document.values import FoldedParts, Form, Paragraph, Part, Table, table_of
from tracepaper.replay.report.charts import drawn_trades, price_chart
from tracepaper.replay.report.listed_orders import listed
from tracepaper.replay.report.report import ExplainedTrade, Report
from tracepaper.replay.report.trades import ClosedTrade
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.run_views import Row, RunViews
from tracepaper.strategies.errors import ConfigInvalid, DataInvalid, shown
from tracepaper.strategies.extras import require
from tracepaper.strategies.gates.gate import measured
from tracepaper.strategies.types.decisions import OrderRole
from tracepaper.strategies.units import count_of, iso


def trades(report: Report) -> list[Part]:
    """Return the closed trades, each folded over its explanation."""
    closed = report.trades[report.shown]
    if not closed:
        return [Paragraph("No trade was closed.", "note")]
    shown = len(report.explained)
    text = f"{count_of(len(closed), 'closed trade')} of {report.shown}"
    if report.shown != report.record.account.name:
        text += ", for this run closed none"
    if shown < len(closed):
        text += f"; the {shown // 2} best and the {shown // 2} worst are explained here"
    text += ". Open one to see why it was opened and where the model looked."
    return [Paragraph(text), *map(_trade, report.explained)]


def _trade(explained: ExplainedTrade) -> FoldedParts:
    trade = explained.trade
    entered = iso(trade.opened_ms).replace("T", " ").removesuffix(":00Z")
    parts: list[Part] = [Paragraph(_described(explained), "note")]
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


def _described(explained: ExplainedTrade) -> str:
    """Describe the position, and the decision that opened it."""
    trade, decision = explained.trade, explained.decision
    text = (
        f"{trade.side} {trade.quantity:g} {trade.instrument} at {trade.entry_price:,g}, left "
        f"{iso(trade.closed_ms)} at {trade.exit_price:,g}; {trade.fees:,.2f} of fees. Opened by "
        f"decision {trade.entry_sequence}."
    )
    if (mean := decision["mean_return"]) is not None:
        stdev = decision["stdev_return"]
        spread = "" if stdev is None else f" ± {1e4 * stdev:.1f}"
        text += f" Expected {1e4 * mean:+.2f}{spread} bp over {decision['horizon']} bars."
    if decision["p_up"] is not None:
        text += (
            f" Up {decision['p_up']:.0%}, flat {decision['p_flat']:.0%}, "
            f"down {decision['p_down']:.0%} over {decision['horizon']} bars."
        )
    if decision["recent_mass"] is not None:
        text += f" Regime {decision['regime']}. Under the price: where attention flowed."
    return text


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
    ends = (float(trade.opened_ms), float(trade.closed_ms))
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
        line = held_steps("attention", starts, float(blocks[-1][1]), shares)
        up = percent_axis("attention, %")
        panels.append(ChartPanel([held, line], time_axis(), up, 80))
        caption += " Under the price: where attention flowed."
    return Chart("", caption, panels, is_aligned=True)


LEVELS: Final[dict[str, ChartRole]] = {
    OrderRole.STOP.value: "loss",
    OrderRole.TRAILING.value: "loss",
    OrderRole.TARGET.value: "gain",
}
"""Roles of the orders whose prices are drawn while their trade was open, with their colours."""
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


def picture_chart(report: Report, *, last: int) -> Chart:
    """Return the newest *last* bars of the run's first instrument, with trades and their levels.

    Raises ``DataInvalid`` where the run has fewer than two bars.
    """
    record = report.record
    instrument = next(iter(record.bars))
    if (chart := price_chart(report, instrument, last)) is None:
        raise DataInvalid(f"Run {record.run['run_id']} holds no two bars in a row to draw.")
    since_ms = int(record.bar_times.closes_of(record.bars[instrument].open_time_ms)[-last:][0])
    trades = drawn_trades(report, instrument, since_ms)
    with Reader.open(record.database) as reader:
        views = RunViews(reader.connection, record.run["run_id"])
        orders = views.rows("v_orders", instrument=instrument, role=tuple(LEVELS))
    first, *others = chart.panels
    layers = [*first.layers, *_levels(trades, orders)]
    strategy = record.run["strategy"].rpartition(":")[2]
    title = f"{instrument}: {strategy}, {count_of(len(trades), 'trade')}"
    return replace(chart, title=title, panels=[replace(first, layers=layers), *others])


def _levels(trades: Sequence[ClosedTrade], orders: Sequence[Row]) -> Iterator[LineLayer]:
    """Yield the prices at which orders of each role protected *trades*, while they were open."""
    for role, colour in LEVELS.items():
        x, y = list[float](), list[float | None]()
        for trade in trades:
            for order in orders:
                level = order["trigger_price"] or order["limit_price"]
                is_of = trade.opened_ms <= order["created_ms"] < trade.closed_ms
                if order["role"] == role and level is not None and is_of:
                    x += [trade.opened_ms, trade.closed_ms, trade.closed_ms]
                    y += [level, level, None]
        if x:
            yield LineLayer(role.lower(), x, y, colour, 1.0, "dot")
