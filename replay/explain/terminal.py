"""One decision for a terminal, as it was stored: verdict, gates and distances, where it looked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tracepaper.replay.explain.stored import Flips, GateMargin, StoredDecision, flips_of, verdict_of
from tracepaper.replay.report.listed import listed
from tracepaper.replay.report.tables import bar_of, printed
from tracepaper.strategies.gates import measured, unit_beside
from tracepaper.strategies.types import Action

BASIS_POINTS: Final = 1e4
BUCKETS_SHOWN: Final = 12
SHARE_MOST: Final = 10.0
"""From here on a share is written as a multiple of the threshold."""
ANSWER_MARK: Final = {True: "[green]✓[/]", False: "[red]✗[/]"}
ORDERS_TITLE: Final = "Orders of the list, and what became of each"
LOOKED: Final = "where attention flowed; not why the price will move"


def show_stored(stored: StoredDecision) -> RenderableType:
    """Return what the rows of one decision say, and what would have flipped it."""
    flips = flips_of(stored)
    parts: list[RenderableType] = [_verdict(stored.decision), _gate_table(flips)]
    parts.append(_flip_text(flips, stored.trend))
    if stored.notes:
        parts.insert(1, _notes(stored.notes))
    if stored.decision["action"] == Action.ORDERS:
        parts.insert(1, _orders(stored))
    parts.append(Text(stored.no_attribution) if stored.no_attribution else _bucket_table(stored))
    if stored.looked_at:
        parts.append(Text(stored.looked_at))
    return Group(*parts)


def table_of(title: str, columns: tuple[tuple[str, bool], ...]) -> Table:
    """Return an empty table; a column is its name, and whether it holds numbers."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None)
    for name, is_number in columns:
        table.add_column(name, justify="right" if is_number else "left")
    return table


def _verdict(decision: dict[str, Any]) -> Text:
    text = Text()
    text.append(f"{decision['instrument']} at {decision['open_time_iso']}: ", style="bold")
    verdict, reason = verdict_of(decision)
    text.append(f"{decision['action']} ({verdict}){reason and f', {reason}'}\n")
    if (unfilled := decision["unfilled_reason"]) is not None:
        text.append(
            f"unfilled: {unfilled}; {decision['target_quantity_text']} is wanted and no order "
            "for it would be taken\n"
        )
    if decision["horizon"] is not None:
        text.append(f"{_forecast(decision)}\n")
    return text


def _forecast(decision: Mapping[str, Any]) -> str:
    """Return what the model said at the gates' horizon, as far as it gives it."""
    parts = []
    if (mean := decision["mean_return"]) is not None:
        stdev = decision["stdev_return"]
        spread = "" if stdev is None else f" ± {stdev * BASIS_POINTS:.1f} bp"
        parts.append(
            f"expected return {mean * BASIS_POINTS:+.2f} bp{spread} over {decision['horizon']} bars"
        )
    if decision["p_up"] is not None:
        parts.append(
            f"down {decision['p_down']:.2f}, flat {decision['p_flat']:.2f}, "
            f"up {decision['p_up']:.2f}"
        )
    parts.append(f"regime {decision['regime']}")
    if (cell := decision["regime_cell"]) is not None:
        parts.append(f"the card's regime {cell}")
    if (factor := decision["size_factor"]) is not None:
        parts.append(f"sized {factor:.3f} by confidence in its volatility")
    return "; ".join(parts)


def _notes(rows: Sequence[dict[str, Any]]) -> Text:
    """Return what the strategy noted at the decision, in its order."""
    said = [f"{row['name']} {_noted(row)}" for row in rows]
    return Text(f"The strategy noted: {', '.join(said)}.\n")


def _orders(stored: StoredDecision) -> RenderableType:
    """Return the orders of a list, and what became of each."""
    if not stored.orders:
        return Text("Its list changed no order.\n")
    return Group(printed(listed(stored.orders, title=ORDERS_TITLE)), Text())


def _noted(row: dict[str, Any]) -> str:
    if row["text"] is not None:
        return f"“{row['text']}”"
    return "no finite number" if row["number"] is None else f"{row['number']:,.6g}"


def _gate_table(flips: Flips) -> Table:
    table = table_of(
        "Gates (the margin is what each had to spare, or was short by)",
        (
            ("gate", False),
            ("measure", True),
            ("threshold", True),
            ("margin", True),
            ("share", True),
            ("unit", False),
            ("", False),
        ),
    )
    for gate in flips.gates:
        table.add_row(
            f"[bold]{gate.gate}[/]" if gate.gate == flips.nearest else gate.gate,
            measured(gate.gate, gate.measure),
            measured(gate.gate, gate.threshold),
            measured(gate.gate, gate.margin, signed=True),
            _share(gate),
            f"[dim]{unit_beside(gate.gate)}[/]",
            ANSWER_MARK[gate.passed],
        )
    return table


def _share(gate: GateMargin) -> str:
    """Return the margin over the threshold where that says something: a share, or a multiple."""
    if not gate.is_gradual or gate.share is None:
        return ""
    return f"{gate.share:+.1%}" if abs(gate.share) < SHARE_MOST else f"{gate.share:+,.0f} ×"


def _flip_text(flips: Flips, trend: str | None) -> Text:
    """Return what would have flipped the verdict, and where the direction came from."""
    text = Text(f"{flips.sentence}\n")
    if trend is not None:
        return text.append(f"{trend}\n")
    if (side := flips.side) is None:
        return text
    pointed = {"LONG": "up", "SHORT": "down"}.get(side.side)
    pointed_at = (
        "The mean and the classes disagreed" if pointed is None else f"It pointed {pointed}"
    )
    text.append(
        f"{pointed_at}: the mean is {side.mean_return * BASIS_POINTS:+.2f} bp from zero "
        f"({abs(side.mean_over_stdev):.1%} of its standard deviation), and up less down is "
        f"{side.lean:+.3f}; the side turns where both change sign.\n"
    )
    return text


def _bucket_table(stored: StoredDecision) -> Table:
    table = table_of(
        f"Where it looked, by 64-bar block ({LOOKED})",
        (("from", False), ("weight", True), ("", False)),
    )
    heaviest = sorted(stored.buckets, key=lambda row: -row["weight"])[:BUCKETS_SHOWN]
    blocks = [row["weight"] for row in heaviest if row["bucket"] != "older"]
    most = max(blocks, default=0.0) or 1.0
    for row in heaviest:
        is_block = row["bucket"] != "older"  # all that is older is no block, and has no bar
        start = str(row["from_open_time_iso"]) if is_block else "older"
        bar = f"[cyan]{bar_of(row['weight'] / most)}[/]" if is_block else ""
        table.add_row(start, f"{row['weight']:.4f}", bar)
    return table
