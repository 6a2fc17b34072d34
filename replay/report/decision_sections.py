"""The parts of the page on decisions: refusals, winners and losers, trades explained."""

from __future__ import annotations

from tracepaper.replay.importers.times import iso
from tracepaper.replay.report.document import Report
from tracepaper.replay.report.explained import Explained
from tracepaper.replay.report.html import Markup, element, joined, table
from tracepaper.replay.report.pictures import trade_picture
from tracepaper.replay.report.refusals import ALLOWED, Refusal
from tracepaper.replay.report.terminal import share
from tracepaper.strategies.types import Gate
from tracepaper.strategies.words import measured


def refusals(report: Report) -> Markup:
    """Return the refusals by gate, and what their signals would have earned."""
    horizon = report.record.config.gate.horizon
    head = (
        "gate", "decisions", "signals", "measured", "apart", "gross bp", "net bp", "± bp",
        "hit rate", "verdict",
    )  # fmt: skip
    rows = [
        [
            row.gate, f"{row.decisions:,}", f"{row.signals:,}", f"{row.measured:,}",
            f"{row.apart:,}", _points(row.gross_bp), _points(row.net_bp),
            "–" if row.standard_error_bp is None else f"{row.standard_error_bp:.1f}",
            share(row.hit_rate),
            _verdict(row),
        ]
        for row in report.refusals
    ]  # fmt: skip
    own = report.record.account
    saved = "".join(
        f" As an account: the {twin.name} twin earned {twin.equity[-1] - twin.equity[0]:+,.2f}, "
        f"this run {own.equity[-1] - own.equity[0]:+,.2f}."
        for twin in report.record.twins
    )
    note = (
        f"Each signal (mean return and probabilities agree on a side) is entered at the next "
        f"bar's open and left {horizon} bars later, less {2e4 * report.record.cost_rate:.1f} bp "
        f"for the round trip. Signals overlap: ± is one standard error over those that do not."
        f"{saved}"
    )
    return joined([table(head, rows), element("p", note, class_="note")])


def _verdict(row: Refusal) -> str:
    """Return what the row says of its gate, or of the signals that were allowed."""
    if row.said == "noise":
        return "cannot tell"
    if row.gate == ALLOWED:
        return {"saved": "lost", "cost": "earned"}.get(row.said, "–")
    return row.said or "–"


def _points(value: float | None) -> str:
    return "–" if value is None else f"{value:+.1f}"


def groups(report: Report) -> Markup:
    """Return the measures at the entries of winners and losers."""
    if not report.groups or not all(of.trades for of in report.groups):
        return element("p", "There are not both winners and losers to compare.", class_="note")
    rows = [
        [
            measure.replace("_", " "),
            *(f"{of.means[measure]:.4f} ± {of.errors.get(measure, 0.0):.4f}"
              for of in report.groups),
        ]
        for measure in report.groups[0].means
    ]  # fmt: skip
    note = f"Decisions that opened the trades of {report.shown}: mean ± standard error."
    return joined(
        [
            table(("at entry", *(f"{of.trades} {of.name}" for of in report.groups)), rows),
            element("p", note, class_="note"),
        ]
    )


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
    summary = element(
        "summary",
        element("span", iso(trade.entered_ms).replace("T", " ").removesuffix(":00Z")),
        element("span", trade.side, class_="wide"),
        element("span", f"{trade.entry_reason} → {trade.exit_reason}", class_="why wide"),
        element("span", f"{trade.profit:+,.2f}", class_="number"),
        element("span", f"{trade.return_bp:+.1f} bp", class_="number wide"),
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
