"""What happened in a run, read from the database's views alone: the end of a demo or a replay."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tracepaper.storage.reader import Reader
from tracepaper.storage.run_views import Row, RunViews
from tracepaper.strategies.types import ACTING_ONLY
from tracepaper.strategies.words import visible

FILLS_SHOWN: Final = 8
OPENED_SHOWN: Final = 5
BAR_WIDTH: Final = 28


def program_name() -> str:
    """Return how to call this program from here: its name, or its path where PATH lacks it."""
    called = Path(sys.argv[0])
    found = shutil.which("tracepaper")
    if called.name != "tracepaper" or (found and Path(found).resolve() == called.resolve()):
        return "tracepaper"
    try:
        return str(called.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(called)


def decision_to_explain(database: Path, run_id: str) -> int | None:
    """Return the sequence of the last decision that opened a trade, or else the last explained."""
    with Reader.open(database) as reader:
        views = RunViews(reader.connection, run_id)
        explained = ("confidence",)
        for found in (
            views.last("v_decisions", known=explained, allowed=1, action=("LONG", "SHORT")),
            views.last("v_decisions", known=explained),
            views.last("v_decisions"),
        ):
            if found is not None:
                return found
    return None


@dataclass(frozen=True)
class Summary:
    """The figures of a run that its end shows; money as exact text."""

    run: Row
    decisions: int
    allowed: int
    first_iso: str
    last_iso: str
    accounts: tuple[Row, ...]  # the run's own first, then its twins
    fills: tuple[Row, ...]
    fill_count: int
    refusals: tuple[tuple[str, int], ...]
    unfilled: tuple[tuple[str, int], ...]  # why an allowed target was not ordered, and how often

    @property
    def every_bar(self) -> bool:
        """Whether every step was kept; else bars and refusals cannot be counted."""
        return ACTING_ONLY not in json.loads(self.run["warnings"] or "[]")


def summarise(database: Path, run_id: str) -> Summary:
    """Return the figures of *run_id*; raise ``DataInvalid`` where there is no such run."""
    with Reader.open(database) as reader:
        views = RunViews(reader.connection, run_id)
        with views.snapshot():
            first_iso, last_iso = views.bounds("v_decisions", "open_time_iso")
            return Summary(
                run=views.run(),
                decisions=views.count("v_decisions"),
                allowed=views.count("v_decisions", allowed=1),
                first_iso=first_iso or "",
                last_iso=last_iso or "",
                accounts=tuple(_accounts(views)),
                fills=tuple(views.rows("v_fills", newest=FILLS_SHOWN)),
                fill_count=views.count("v_fills"),
                refusals=tuple(views.counts("v_decisions", "refused_by")),
                unfilled=tuple(views.counts("v_decisions", "unfilled_reason")),
            )


def _accounts(views: RunViews) -> Iterator[Row]:
    """Yield the newest equity row of the run's account, then of each twin."""
    for own in views.rows("v_equity", newest=1):
        yield {"account": "this run", "fills": views.count("v_fills"), **own}
    for name, _ in sorted(views.counts("v_twin_equity", "twin")):
        (row,) = views.rows("v_twin_equity", newest=1, twin=name)
        fills = views.count("v_twin_fills", twin=name)
        yield {"account": f"{name} twin", "fills": fills, **row}


# ---------------------------------------------------------------- for a terminal


def show(console: Console, summary: Summary) -> None:
    """Print the account and its twins, the newest fills, and what was refused or left unfilled."""
    run = summary.run
    title = f"run {run['run_id']} · {run['kind']} · {run['instruments']}"
    span = f"{summary.first_iso} to {summary.last_iso}"
    counted = f"{summary.decisions:,} bars decided, {summary.allowed:,} allowed"
    if not summary.every_bar:
        counted = "only steps that traded are kept"
    lines = Text(f"{counted}, {summary.fill_count:,} fills\n{span}")
    console.print(Panel(lines, title=Text(title), title_align="left", border_style="dim"))
    for warning in json.loads(run["warnings"] or "[]"):
        console.print(Text(f"Warning: {warning}.", style="yellow"))
    if opened := json.loads(run["opened"]):
        shown = ", ".join(opened[:OPENED_SHOWN]) + (" and more" * (len(opened) > OPENED_SHOWN))
        text = f"The strategy opened {shown}; a decision that depends on it cannot be re-derived."
        console.print(Text(text, style="yellow"))
    console.print(_account_table(summary))
    if summary.fills:
        console.print(_fill_table(summary))
    if summary.refusals and summary.every_bar:
        title = "Refused (by the first gate that failed)"
        console.print(_count_table(title, "gate", summary.refusals, summary.decisions))
    if summary.unfilled:
        title = "Unfilled (no gate refused, and no order would be taken)"
        console.print(_count_table(title, "reason", summary.unfilled, summary.decisions))


def _account_table(summary: Summary) -> Table:
    table = Table(title="Accounts", title_justify="left", title_style="bold", box=None)
    for name in ("account", "equity", "realised", "unrealised", "fees", "funding", "fills"):
        table.add_column(name, justify="left" if name == "account" else "right")
    for row in summary.accounts:
        table.add_row(
            str(row["account"]),
            f"{row['equity']:,.2f}",
            f"{row['realized_pnl']:+,.2f}",
            f"{row['unrealized_pnl']:+,.2f}",
            f"{row['fees_paid']:,.2f}",
            f"{row['funding_paid']:,.2f}",
            str(row["fills"]),
        )
    return table


def _fill_table(summary: Summary) -> Table:
    """Return the newest fills; the instrument only where a run has several."""
    shown = len(summary.fills)
    title = f"Fills (the last {shown} of {summary.fill_count})"
    table = Table(title=title, title_justify="left", title_style="bold", box=None)
    several = len({fill["instrument"] for fill in summary.fills}) > 1
    names = ("time", *(("instrument",) if several else ()), "side", "quantity", "price", "fee")
    for name in (*names, "why"):
        table.add_column(name, justify="right" if name in ("quantity", "price", "fee") else "left")
    for fill in summary.fills:
        table.add_row(
            str(fill["filled_iso"])[:19].replace("T", " "),
            *((Text(str(fill["instrument"])),) if several else ()),
            str(fill["side"]),
            str(fill["quantity_text"]),
            str(fill["price_text"]),
            f"{fill['fee']:,.2f}",
            Text(visible(str(fill["reason"]))),
        )
    return table


def _count_table(title: str, name: str, rows: tuple[tuple[str, int], ...], of: int) -> Table:
    """Return how many of the *of* decisions each of *rows* counts."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None)
    table.add_column(name)
    table.add_column("bars", justify="right")
    table.add_column("")
    most = max(count for _, count in rows)
    for label, count in rows:
        share = f"{count / of:6.1%}" if of else ""
        table.add_row(
            Text(visible(label)), f"{count:,}", f"[cyan]{bar_of(count / most)}[/] {share}"
        )
    return table


def bar_of(share: float, width: int = BAR_WIDTH) -> str:
    """Return a horizontal bar whose length is *share* (0 to 1) of *width* cells."""
    eighths = round(max(0.0, min(share, 1.0)) * width * 8)
    full, rest = divmod(eighths, 8)
    return "█" * full + (" ▏▎▍▌▋▊▉"[rest] if rest else "")
