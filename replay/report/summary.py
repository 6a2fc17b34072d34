"""What happened in a run, read from the database's views alone: the end of a demo or a replay."""

from __future__ import annotations

import json
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tracepaper.replay.backtest.run import ACTING_ONLY
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.words import visible

FILLS_SHOWN: Final = 8
OPENED_SHOWN: Final = 5
BAR_WIDTH: Final = 28


@contextmanager
def reading(database: Path) -> Iterator[sqlite3.Connection]:
    """Open *database* for reading only; rows answer to their columns' names."""
    if not database.is_file():
        raise DataInvalid(f"There is no database at {database}; name one with --db.")
    connection = sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)
    connection.row_factory = sqlite3.Row
    try:
        yield connection
    except sqlite3.DatabaseError as error:
        raise DataInvalid(
            f"{database} cannot be read ({error}); run `tracepaper audit verify` and restore a "
            "backup."
        ) from error
    finally:
        connection.close()


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


def most_telling(database: Path, run_id: str) -> int | None:
    """Return the sequence of the last decision that opened a trade, or else the last explained."""
    decisions = "SELECT max(sequence) FROM v_decisions WHERE run_id = ?"
    explained = f"{decisions} AND confidence IS NOT NULL"
    traded = f"{explained} AND allowed AND action IN ('LONG', 'SHORT')"
    with reading(database) as db:
        for query in (traded, explained, decisions):
            (sequence,) = db.execute(query, (run_id,)).fetchone()
            if sequence is not None:
                return int(sequence)
    return None


@dataclass(frozen=True)
class Summary:
    """The figures of a run that its end shows; money as exact text."""

    run: dict[str, Any]
    decisions: int
    allowed: int
    first_iso: str
    last_iso: str
    accounts: tuple[dict[str, Any], ...]  # the run's own first, then its twins
    fills: tuple[dict[str, Any], ...]
    fill_count: int
    refusals: tuple[tuple[str, int], ...]
    unfilled: tuple[tuple[str, int], ...]  # why an allowed target was not ordered, and how often

    @property
    def every_bar(self) -> bool:
        """Whether every step was kept; else bars and refusals cannot be counted."""
        return ACTING_ONLY not in json.loads(self.run["warnings"] or "[]")


def summarise(database: Path, run_id: str) -> Summary:
    """Return the figures of *run_id*."""
    with reading(database) as db:
        run = _one(db, "SELECT * FROM v_runs WHERE run_id = ?", run_id)
        counts = _one(
            db,
            "SELECT count(*) AS decisions, coalesce(sum(allowed), 0) AS allowed,"
            " min(open_time_iso) AS first_iso, max(open_time_iso) AS last_iso"
            " FROM v_decisions WHERE run_id = ?",
            run_id,
        )
        refusals = db.execute(
            "SELECT refused_by, count(*) FROM v_decisions WHERE run_id = ?"
            " AND refused_by IS NOT NULL GROUP BY refused_by ORDER BY 2 DESC",
            (run_id,),
        ).fetchall()
        unfilled = db.execute(
            "SELECT unfilled_reason, count(*) FROM v_decisions WHERE run_id = ?"
            " AND unfilled_reason IS NOT NULL GROUP BY unfilled_reason ORDER BY 2 DESC, 1",
            (run_id,),
        ).fetchall()
        fills = db.execute(
            "SELECT * FROM v_fills WHERE run_id = ? ORDER BY sequence DESC LIMIT ?",
            (run_id, FILLS_SHOWN),
        ).fetchall()
        fill_count = _one(db, "SELECT count(*) AS n FROM v_fills WHERE run_id = ?", run_id)["n"]
        return Summary(
            run=run,
            decisions=counts["decisions"],
            allowed=counts["allowed"],
            first_iso=counts["first_iso"] or "",
            last_iso=counts["last_iso"] or "",
            accounts=tuple(_accounts(db, run_id)),
            fills=tuple(dict(row) for row in reversed(fills)),
            fill_count=fill_count,
            refusals=tuple((str(gate), int(count)) for gate, count in refusals),
            unfilled=tuple((str(reason), int(count)) for reason, count in unfilled),
        )


def _one(db: sqlite3.Connection, query: str, run_id: str) -> dict[str, Any]:
    row = db.execute(query, (run_id,)).fetchone()
    if row is None:
        raise DataInvalid(f"The database holds no run {run_id}; `tracepaper audit` lists them.")
    return dict(row)


def _accounts(db: sqlite3.Connection, run_id: str) -> Iterator[dict[str, Any]]:
    """Yield the newest equity row of the run's account, then of each twin."""
    own = db.execute(
        "SELECT * FROM v_equity WHERE run_id = ? ORDER BY sequence DESC LIMIT 1", (run_id,)
    ).fetchone()
    if own is not None:
        fills = db.execute("SELECT count(*) FROM v_fills WHERE run_id = ?", (run_id,)).fetchone()
        yield {"account": "this run", "fills": fills[0], **dict(own)}
    names = db.execute(
        "SELECT DISTINCT twin FROM v_twin_equity WHERE run_id = ? ORDER BY twin", (run_id,)
    ).fetchall()
    for (name,) in names:
        row = db.execute(
            "SELECT * FROM v_twin_equity WHERE run_id = ? AND twin = ?"
            " ORDER BY sequence DESC LIMIT 1",
            (run_id, name),
        ).fetchone()
        count = db.execute(
            "SELECT count(*) FROM v_twin_fills WHERE run_id = ? AND twin = ?", (run_id, name)
        ).fetchone()
        yield {"account": f"{name} twin", "fills": count[0], **dict(row)}


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
