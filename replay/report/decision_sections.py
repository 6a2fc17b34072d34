"""The part of the page on single trades, each explained."""

from __future__ import annotations

from tracepaper.replay.importers.times import iso
from tracepaper.replay.report.document import Report
from tracepaper.replay.report.explained import Explained
from tracepaper.replay.report.html import Markup, element, joined, table
from tracepaper.replay.report.pictures import trade_picture
from tracepaper.replay.report.tables import tone
from tracepaper.strategies.types import Gate
from tracepaper.strategies.words import measured


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


def _trade(explained: Explained) -> Markup:
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
        element("div", _said(explained), Markup(trade_picture(explained)), _gates(explained),
                class_="explained"),
        class_="trade",
    )  # fmt: skip


def _said(explained: Explained) -> Markup:
    """Return what was held, and what the decision's row says."""
    trade, decision = explained.trade, explained.decision
    said = (
        f"{trade.side} {trade.quantity:g} {trade.instrument} at {trade.entry_price:,g}, left "
        f"{iso(trade.left_ms)} at {trade.exit_price:,g}; {trade.fees:,.2f} of fees. Opened by "
        f"decision {trade.entry_sequence}."
    )
    if decision["mean_return"] is not None:
        said += (
            f" Expected {1e4 * decision['mean_return']:+.2f} ± "
            f"{1e4 * decision['stdev_return']:.1f} bp over {decision['horizon']} bars; "
            f"up {decision['p_up']:.0%}, flat {decision['p_flat']:.0%}, "
            f"down {decision['p_down']:.0%}; regime {decision['regime']}. "
            "Under the price: where attention flowed."
        )
    return element("p", said, class_="note")


def _gates(explained: Explained) -> Markup:
    if not explained.gates:
        return Markup("")
    rows = [
        [
            gate["gate"],
            measured(Gate(gate["gate"]), gate["measure"]),
            measured(Gate(gate["gate"]), gate["threshold"]),
            element("span", "passed", class_="mark")
            if gate["passed"]
            else element("span", "failed", class_="mark failed"),
        ]
        for gate in explained.gates
    ]
    return table(("gate", "measure", "threshold", ""), rows)
