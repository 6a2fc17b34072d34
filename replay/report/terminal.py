"""The report for a terminal, and as one JSON document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tracepaper.replay.importers.times import iso
from tracepaper.replay.report.accounts import RandomTwins
from tracepaper.replay.report.document import Account, Report
from tracepaper.replay.summary import bar_of

TRADES_SHOWN: Final = 8
GAPS_SHOWN: Final = 5


def show(console: Console, report: Report) -> None:
    """Print the report: what to know first, accounts, costs, months, refusals, attention."""
    record = report.record
    allowed = int(record.decisions.allowed.sum())
    title = Text(f"run {record.run['run_id']} · {record.run['kind']} · {record.run['strategy']}")
    head = Text(
        f"{record.run['instruments']}, {record.decisions.sequence.size:,} bars decided, "
        f"{allowed:,} allowed\n{iso(int(record.decisions.open_time_ms[0]))} to "
        f"{iso(int(record.times_ms[-1]))}"
    )
    console.print(Panel(head, title=title, title_align="left", border_style="dim"))
    for sentence in report.sentences:
        console.print(Padding(Text(sentence, style="dim"), (0, 0, 0, 2)))
    console.print()
    console.print(_accounts(report.accounts))
    _show_random(console, report)
    console.print(Text(report.annualisation, style="dim"))
    for table in (
        _costs(report),
        _months(report),
        _trades(report),
        _refusals(report),
        _regimes(report),
        _groups(report),
        _gaps(report),
    ):
        if table is not None:
            console.print()
            console.print(table)


def _show_random(console: Console, report: Report) -> None:
    for twins in report.random:
        console.print(
            Text(
                f"Of {twins.count} random twins of {twins.of} ({twins.positions:,} positions at "
                f"random times, seed {twins.seed}) it beats {twins.beaten:.0%}; their median ends "
                f"at {twins.final_median:,.2f}."
            )
        )


def _table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    """Return an empty table whose first columns are text and whose others are numbers."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for name in left:
        table.add_column(name)
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _accounts(accounts: Sequence[Account]) -> Table:
    names = ("end", "return", "Sharpe", "drawdown", "exposure", "trades", "won")
    table = _table("Accounts", ("account",), names)
    for of in accounts:
        figures, done = of.performance, of.activity
        table.add_row(
            Text(of.name),
            f"{of.end:,.2f}",
            f"{figures.total_return:+.2%}",
            number(figures.sharpe),
            f"{figures.max_drawdown:.2%}",
            share(done.exposure) if done else "–",
            f"{done.trades:,}" if done else "–",
            share(done.hit_rate) if done else "–",
        )
    return table


def _costs(report: Report) -> Table:
    names = ("gross", "fee", "spread", "slippage", "funding", "net")
    table = _table("Costs (quote currency)", ("account",), names)
    for of in report.accounts:
        if of.costs is not None:
            table.add_row(Text(of.name), *(f"{asdict(of.costs)[name]:,.2f}" for name in names))
    return table


def _months(report: Report) -> Table:
    table = _table("Months", ("month",), ("return",))
    for year, month, earned in report.monthly:
        table.add_row(f"{year}-{month:02}", f"{earned:+.2%}")
    return table


def _trades(report: Report) -> Table | None:
    closed = report.own_trades
    if not closed:
        return None
    shown = closed[-TRADES_SHOWN:]
    title = f"Closed trades (the last {len(shown)} of {len(closed):,})"
    table = _table(title, ("left", "side", "why in", "why out"), ("profit", "bp"))
    for trade in shown:
        table.add_row(
            iso(trade.left_ms)[:16].replace("T", " "),
            trade.side,
            Text(trade.entry_reason),
            Text(trade.exit_reason),
            f"{trade.profit:+,.2f}",
            f"{trade.return_bp:+.1f}",
        )
    return table


def _refusals(report: Report) -> Table:
    horizon = report.record.config.gate.horizon
    title = f"Refused by gate, and what a signal would have earned in {horizon} bars, net"
    names = ("bars", "signals", "net bp", "± bp", "hit rate", "it")
    table = _table(title, ("gate",), names)
    for row in report.refusals:
        table.add_row(
            row.gate,
            f"{row.decisions:,}",
            f"{row.signals:,}",
            "–" if row.net_bp is None else f"{row.net_bp:+.1f}",
            "–" if row.standard_error_bp is None else f"{row.standard_error_bp:.1f}",
            share(row.hit_rate),
            row.said or "–",
        )
    return table


def _regimes(report: Report) -> Table | None:
    if report.attention is None:
        return None
    table = _table("Regimes (where attention lay)", ("regime",), ("bars", ""))
    most = max(report.regimes.values())
    for name, count in report.regimes.items():
        table.add_row(name, f"{count:,}", Text(bar_of(count / most), style="cyan"))
    table.columns[-1].justify = "left"
    return table


def _groups(report: Report) -> Table | None:
    """Return the measures at the entries of winners and losers, where both are there."""
    if not report.groups or not all(of.trades for of in report.groups):
        return None
    title = f"At the entries of {report.shown}: mean ± standard error"
    table = _table(title, ("measure",), [f"{of.trades} {of.name}" for of in report.groups])
    for measure in report.groups[0].means:
        cells = [
            f"{of.means[measure]:.4f} ± {of.errors.get(measure, 0.0):.4f}" for of in report.groups
        ]
        table.add_row(measure.replace("_", " "), *cells)
    return table


def _gaps(report: Report) -> Table | None:
    gaps = report.record.gaps
    if not gaps:
        return None
    title = f"Gaps (the first {min(GAPS_SHOWN, len(gaps))} of {len(gaps):,})"
    table = _table(title, ("instrument", "from", "until", "cause", "repaired by"), ())
    for gap in gaps[:GAPS_SHOWN]:
        table.add_row(
            Text(gap["instrument"]),
            gap["from_iso"],
            gap["until_iso"],
            gap["cause"],
            gap["repaired_by"] or "nothing",
        )
    return table


def number(value: float | None) -> str:
    """Return a ratio for people; a dash where it is not defined."""
    return "–" if value is None else f"{value:,.2f}"


def share(value: float | None) -> str:
    """Return a fraction in percent; a dash where it is not defined."""
    return "–" if value is None else f"{value:.1%}"


def as_document(report: Report) -> dict[str, Any]:
    """Return the report as plain values: shares are fractions, times UTC ms, money in quote."""
    record, attention = report.record, report.attention
    return {
        "run_id": record.run["run_id"],
        "database": str(record.database),
        "kind": record.run["kind"],
        "strategy": record.run["strategy"],
        "instruments": str(record.run["instruments"]).split(","),
        "interval_ms": record.interval_ms,
        "from_ms": int(record.decisions.open_time_ms.min()),
        "until_ms": int(record.times_ms[-1]),
        "decisions": int(record.decisions.sequence.size),
        "allowed": int(record.decisions.allowed.sum()),
        "sentences": report.sentences,
        "annualisation": report.annualisation,
        "accounts": [asdict(of) for of in report.accounts],
        "curves": {
            "times_ms": report.marks_ms.tolist(),
            "equity": {of.name: of.equity.tolist() for of in report.curves},
            "drawdown": {of.name: of.drawdown.tolist() for of in report.curves},
        },
        "random_twins": [_random_document(of) for of in report.random],
        "monthly": [
            {"year": year, "month": month, "return": earned}
            for year, month, earned in report.monthly
        ],
        "trades": {name: [asdict(trade) for trade in of] for name, of in report.trades.items()},
        "refusals": [asdict(row) for row in report.refusals],
        "regimes": report.regimes,
        "attention": None
        if attention is None
        else {
            "explained": attention.explained,
            "head_confidence": attention.head_confidence.tolist(),
            "groups_of": report.shown,
            "groups": [asdict(of) for of in report.groups],
        },
        "gaps": [dict(gap) for gap in record.gaps],
    }


def _random_document(of: RandomTwins) -> dict[str, Any]:
    """Return the random twins of one account as plain values."""
    return {
        name: value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in asdict(of).items()
    }
