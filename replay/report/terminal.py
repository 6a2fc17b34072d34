"""The report for a terminal, and as one JSON document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.padding import Padding
from rich.panel import Panel
from rich.text import Text

from tracepaper.replay.archive.times import iso
from tracepaper.replay.report.accounts import RandomTwins
from tracepaper.replay.report.document import Report
from tracepaper.replay.report.figures import tables
from tracepaper.replay.report.tables import Table, printed

if TYPE_CHECKING:
    from tracepaper.replay.report.heads import HeadReport
    from tracepaper.replay.report.influence import InfluenceReport


def show(
    console: Console,
    report: Report,
    *,
    notes: bool = False,
    heads: HeadReport | None = None,
    influence: InfluenceReport | None = None,
) -> None:
    """Print the report: what to know first, then its tables, those of *heads* or *influence* last.

    *notes* unfolds what is folded.
    """
    record = report.record
    title = Text(f"run {record.run['run_id']} · {record.run['kind']} · {record.run['strategy']}")
    head = Text(f"{record.run['instruments']}, {counted(report)}\n{span(report)}")
    console.print(Panel(head, title=title, title_align="left", border_style="dim"))
    for warning in report.warnings:
        console.print(Padding(Text(warning), (0, 0, 0, 2)))
    shown = report.sentences if notes else report.sentences[:1]
    for sentence in shown:
        console.print(Padding(Text(sentence, style="dim"), (0, 0, 0, 2)))
    if more := len(report.sentences) - len(shown):
        said = f"{more} more to know before believing any of it: --notes"
        console.print(Padding(Text(said, style="dim"), (0, 0, 0, 2)))
    further = (*_head_tables(heads), *_influence_tables(influence))
    for table in (*tables(report).values(), *further):
        console.print()
        console.print(printed(table))


def _head_tables(heads: HeadReport | None) -> Sequence[Table]:
    """Return the tables of *heads*, where they were asked for."""
    if heads is None:
        return ()
    from tracepaper.replay.report.heads import head_tables, subject_tables

    return (*head_tables(heads), *subject_tables(heads))


def _influence_tables(influence: InfluenceReport | None) -> Sequence[Table]:
    """Return the tables of *influence*, where it was asked for."""
    if influence is None:
        return ()
    from tracepaper.replay.report.influence import influence_tables

    return influence_tables(influence)


def counted(report: Report) -> str:
    """Return how many bars the run decided and how many of them were allowed, if that is known."""
    decisions = report.record.decisions
    if not report.record.every_bar:
        return "bars not counted (--log acted)"
    return f"{decisions.sequence.size:,} bars decided, {int(decisions.allowed.sum()):,} allowed"


def span(report: Report) -> str:
    """Return the first open and the last close."""
    record = report.record
    return f"{iso(int(record.decisions.open_time_ms.min()))} to {iso(int(record.times_ms[-1]))}"


def as_document(
    report: Report, heads: HeadReport | None = None, influence: InfluenceReport | None = None
) -> dict[str, Any]:
    """Return the report as plain values: shares are fractions, times UTC ms, money in quote.

    Every table is a list of its rows under its key. What *heads* do is under "heads", who sways
    whom under "influence", where they were asked for.
    """
    record, attention = report.record, report.attention
    made = tables(report)
    rolling_ms, rolling = report.rolling
    return {
        "run_id": record.run["run_id"],
        "database": str(record.database),
        "kind": record.run["kind"],
        "strategy": record.run["strategy"],
        "instruments": str(record.run["instruments"]).split(","),
        "interval_ms": record.interval_ms,
        "from_ms": int(record.decisions.open_time_ms.min()),
        "until_ms": int(record.times_ms[-1]),
        "decisions": int(record.decisions.sequence.size) if record.every_bar else None,
        "allowed": int(record.decisions.allowed.sum()) if record.every_bar else None,
        "warnings": report.warnings,
        "sentences": report.sentences,
        **{table.key: table.documents() for table in made.values()},
        "notes": {table.key: table.notes for table in made.values() if table.notes},
        "sources": {of.name: of.source for of in report.accounts},
        "curves": {
            "times_ms": report.marks_ms.tolist(),
            "equity": {of.name: of.equity.tolist() for of in report.curves},
            "drawdown": {of.name: of.drawdown.tolist() for of in report.curves}
            if record.every_bar
            else None,
        },
        "rolling_sharpe": {
            "times_ms": rolling_ms.tolist(),
            "sharpe": [float(value) if np.isfinite(value) else None for value in rolling],
        },
        "random_curves": [_random_document(of) for of in report.random],
        "trades": {name: [dict(vars(trade)) for trade in of] for name, of in report.trades.items()},
        "attention": None
        if attention is None
        else {
            "explained": attention.explained,
            "head_confidence": attention.head_confidence.tolist(),
            "groups_of": report.shown,
            "groups": [asdict(of) for of in report.groups],
        },
        **_head_documents(heads),
        **_influence_documents(influence),
    }


def _head_documents(heads: HeadReport | None) -> dict[str, Any]:
    """Return what *heads* do under its key; nothing where they were not asked for."""
    if heads is None:
        return {}
    from tracepaper.replay.report.heads import as_document as heads_as_document

    return {"heads": heads_as_document(heads)}


def _influence_documents(influence: InfluenceReport | None) -> dict[str, Any]:
    """Return who sways whom under its key; nothing where it was not asked for."""
    if influence is None:
        return {}
    from tracepaper.replay.report.influence import as_document as influence_as_document

    return {"influence": influence_as_document(influence)}


def _random_document(of: RandomTwins) -> dict[str, Any]:
    """Return the quantiles of one account's random twins at the marks."""
    return {
        "of": of.of,
        "low": of.low.tolist(),
        "median": of.median.tolist(),
        "high": of.high.tolist(),
    }
