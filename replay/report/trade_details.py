"""The closed trades on the page: each with what was decided, its gates, and a small picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tracepaper.replay.archive.times import iso
from tracepaper.replay.report.document import Report
from tracepaper.replay.report.explained import ExplainedTrade
from tracepaper.replay.report.html import Markup, element, figures, joined, table
from tracepaper.replay.report.listed import listed
from tracepaper.replay.report.tables import tone
from tracepaper.strategies.gates import measured


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
    """Return what was held, and what the decision's row says."""
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
    return table(("gate", "measure", "threshold", ""), rows)


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
        """Return where *value* lies."""
        return self._first + self._offset + (value - self._low) * self._slope
