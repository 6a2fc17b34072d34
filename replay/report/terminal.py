"""The report for a terminal and as JSON; the summary of a run."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from rich.console import Console

from tracepaper.daemon.config.loading import restore
from tracepaper.replay.document.terminal import SIDE_BY_SIDE, head, show
from tracepaper.replay.document.values import (
    Paragraph,
    Part,
    Table,
    TitledParts,
    of_row,
    of_view,
    plain,
    table,
    table_of,
)
from tracepaper.replay.report.account import runs_named
from tracepaper.replay.report.charts import equity_chart
from tracepaper.replay.report.figures import tables
from tracepaper.replay.report.judgement import judgement
from tracepaper.replay.report.metrics import is_used_up
from tracepaper.replay.report.report import Report
from tracepaper.replay.report.states import (
    below_zero,
    lasting_states,
    odd_levels,
    open_positions,
    rejections,
    short_history,
    without_fills,
    without_value,
)
from tracepaper.replay.report.trades import largest_causes
from tracepaper.replay.run_columns import RunColumns
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.run_views import Row, RunViews
from tracepaper.strategies.units import count_of, iso

if TYPE_CHECKING:
    from tracepaper.replay.report.attention import InfluenceReport
    from tracepaper.replay.report.heads import HeadReport


SUMMARY: Final = {
    "accounts": SIDE_BY_SIDE,
    "random_timings": 1,
    "costs_and_funding": 1,
    "trade_groups": 6,
    "refusals": 12,
    "unfilled": 3,
    "participation": 3,
}
"""The tables that a terminal shows, by their key, and at most so many of their rows."""
SUMMARY_ACCOUNTS: Final = frozenset(
    {
        *("account", "end", "return", "mean_day", "max_drawdown"),
        *("exposure", "trades", "below_zero_ms", "liquidation_price"),
    }
)
"""The columns of the accounts there."""
REST: Final = (
    "All accounts and figures, months, drawdowns, trades, gaps and charts are on the page: "
    "`tracepaper ui --open`, or as a file by `report --html FILE`. `report --json` has the figures."
)


def show_report(
    console: Console,
    report: Report,
    *,
    notes: bool = False,
    analysis: HeadReport | InfluenceReport | None = None,
) -> None:
    """Print a summary of the report, the tables of *analysis*, and where the rest is.

    With *notes*, print all caveats, and the notes under the tables.
    """
    record = report.record
    name, _, joints = runs_named(record).partition(":")
    title = f"{name} · {record.run['kind']} · {record.run['strategy']}"
    joints = f"\nruns{joints}" * bool(joints)
    head(console, title, f"{record.run['instruments']}, {counted(report)}\n{span(report)}{joints}")
    caveats = list(report.sentences)
    if not notes and len(caveats) > 1:
        caveats[1:] = [f"{len(caveats) - 1} more to know before believing any of it: --notes"]
    first = (*record.cautions, *report.warnings)
    parts: list[Part] = [Paragraph(warning, "warning") for warning in first]
    parts.append(Paragraph(judgement(record, report.own_trades), "strong"))
    parts += [Paragraph(caveat, "note") for caveat in caveats]
    parts.append(equity_chart(report))
    for key, shown in tables(report).items():
        if key in SUMMARY:
            parts.append(_summarized(shown if notes else replace(shown, notes=())))
    parts += analysis.tables() if analysis else ()
    show(console, [*parts, Paragraph(REST, "note")])


def _summarized(shown: Table) -> Table:
    """Return *shown* with the columns and at most the rows of the summary."""
    most = SUMMARY[shown.key]
    if not shown.turned:
        return replace(shown, whole=False, shown=most)
    kept = [place for place, each in enumerate(shown.figures) if each.key in SUMMARY_ACCOUNTS]
    return replace(
        shown,
        figures=tuple(shown.figures[place] for place in kept),
        rows=tuple(tuple(row[place] for place in kept) for row in shown.rows[:most]),
    )


def counted(report: Report) -> str:
    """Return the numbers of decided and of allowed bars as text."""
    decisions = report.record.decisions
    bars = count_of(decisions.sequence.size, "bar")
    return f"{bars} decided, {int(decisions.allowed.sum()):,} allowed"


def span(report: Report) -> str:
    """Return the first open and the last close as text."""
    record = report.record
    return f"{iso(int(record.decisions.open_time_ms.min()))} to {iso(int(record.times_ms[-1]))}"


def as_document(
    report: Report, analysis: HeadReport | InfluenceReport | None = None
) -> dict[str, Any]:
    """Return the report as JSON values: shares are fractions, times UTC ms, money in quote.

    Each table is a list of rows under its key; *analysis* is under its key.
    """
    record = report.record
    shown = tables(report).values()
    drawn = {
        "states": record.states,
        "sources": {account.name: account.source for account in report.accounts},
        "marks_ms": report.marks_ms,
        "curves": report.curves,
        "rolling_sharpe": report.rolling,
        "random_curves": report.random,
        "trades": report.trades,
        "head_confidence": report.attention and report.attention.head_confidence,
        "groups_of": report.shown,
        "events": [event._asdict() for event in report.timeline.events],
        "groups": report.groups,
    }
    return {
        **{name: record.run[name] for name in ("run_id", "kind", "strategy")},
        "runs": [
            {
                "run_id": part.run["run_id"],
                "database": str(part.database),
                "from_ms": int(part.decisions.open_time_ms.min()),
            }
            for part in record.parts or (record,)
        ],
        "begins": record.begins,
        "database": str(record.database),
        "instruments": str(record.run["instruments"]).split(","),
        "interval_ms": record.bar_times.interval_ms,
        "from_ms": int(record.decisions.open_time_ms.min()),
        "until_ms": int(record.times_ms[-1]),
        "decisions": int(record.decisions.sequence.size),
        "allowed": int(record.decisions.allowed.sum()),
        "warnings": report.warnings,
        "judgement": judgement(record, report.own_trades),
        "sentences": report.sentences,
        **{table.key: table.documents() for table in shown},
        "notes": {table.key: table.notes for table in shown if table.notes},
        **plain(drawn),
        **({} if analysis is None else {analysis.key: analysis.document()}),
    }


FILLS_SHOWN: Final = 8


def program_name() -> str:
    """Return the command that starts this program: its name, or its path if PATH lacks it."""
    program = Path(sys.argv[0])
    on_path = shutil.which("tracepaper")
    if program.name != "tracepaper" or (on_path and Path(on_path).resolve() == program.resolve()):
        return "tracepaper"
    try:
        return str(program.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(program)


def decision_to_explain(database: Path, run_id: str) -> int | None:
    """Return the sequence of the last allowed entry, else of the last explained decision or any."""
    with Reader.open(database) as reader:
        views = RunViews(reader.connection, run_id)
        explained = ("confidence_entropy",)
        for sequence in (
            views.last("v_decisions", not_null=explained, allowed=1, action=("LONG", "SHORT")),
            views.last("v_decisions", not_null=explained),
            views.last("v_decisions"),
        ):
            if sequence is not None:
                return sequence
    return None


def summary_document(database: Path, run_id: str) -> TitledParts:
    """Return the summary of *run_id*: accounts, newest fills and refusals.

    The first part is the line under the title. Raises ``DataInvalid`` if there is no such run.
    """
    with Reader.open(database) as reader:
        views = RunViews(reader.connection, run_id)
        with views.snapshot():
            run = views.run()
            title = f"run {run['run_id']} · {run['kind']} · {run['instruments']}"
            return TitledParts(title, tuple(_summary_parts(reader, views)))


def _cautions(columns: RunColumns, views: RunViews) -> Iterator[str]:
    """Yield sentences on an account without money, lasting states, no fill, and the warnings."""
    lowest, highest = views.bounds("v_equity", "equity")
    if lowest is not None and is_used_up(lowest, highest):  # only such a run has its columns read
        account = columns.accounts(columns.span)[""]
        closes_ms = columns.times.closes_of(account["open_time_ms"].astype(np.int64))
        if gone := below_zero(closes_ms, account["equity"], float(account["equity"][0])):
            yield gone
    yield from (state.sentence for state in lasting_states(columns))
    for about in (without_fills, without_value, short_history, rejections, odd_levels):
        if sentences := about(columns):
            yield sentences
    yield from (f"Warning: {text}." for text in json.loads(views.run()["warnings"] or "[]"))


def _summary_parts(reader: Reader, views: RunViews) -> Iterator[Part]:
    run_id = views.run_id
    bounds = (bound or "" for bound in views.bounds("v_decisions", "open_time_iso"))
    decisions, filled = views.count("v_decisions"), views.count("v_fills")
    allowed = views.count("v_decisions", allowed=1)
    counted = f"{count_of(decisions, 'bar')} decided, {allowed:,} allowed"
    words = restore(views.run()["config"]).chosen
    lead = f"{counted}, {count_of(filled, 'fill')}\n{' to '.join(bounds)}"
    yield Paragraph(lead + f"\n{words}" * bool(words), "lead")
    for caution in _cautions(RunColumns(reader, run_id), views):
        yield Paragraph(caution, "warning")
    yield table("accounts", "Accounts", ACCOUNTS, _accounts(RunColumns(reader, run_id)))
    if held := open_positions(RunColumns(reader, run_id)):
        yield Paragraph(f"{held[0].upper()}{held[1:]}.")
    if fills := list(_with_held(views, views.rows("v_fills", newest=FILLS_SHOWN))):
        several = len({fill["instrument"] for fill in fills}) > 1
        figures = [figure for figure in FILLS if several or figure.key != "instrument"]
        title = f"Fills (the last {len(fills)} of {filled})"
        yield table("fills", title, figures, fills, newest=True)
    if refusals := list(views.counts("v_decisions", "refused_by")):
        title = "Refused (by the first gate that failed)"
        yield _counts_table("refused_by", "gate", title, refusals, decisions)
    if unfilled := list(views.counts("v_decisions", "unfilled_reason")):
        title = "Unfilled (every gate passed, but no order was possible)"
        yield _counts_table("unfilled", "reason", title, unfilled, decisions)
    if rejected := list(views.counts("v_orders", "reason", status="REJECTED")):
        title = "Rejected orders (by the rules of the venue)"
        yield table_of("rejected", title, {"reason": "text", "orders": "count"}, rejected)
    instruments = reader.stored_run(run_id).run.instruments
    went_without = partial(_went_without, views)
    warnings = json.loads(views.run()["warnings"] or "[]")
    first_ms = partial(_first_without, RunColumns(reader, run_id))
    for cause in largest_causes(
        decisions, refusals, unfilled, instruments, went_without, warnings, first_ms
    ):
        if cause.remedy:  # the tables name causes without a remedy
            yield Paragraph(f"M{str(cause)[1:]}.")


def _went_without(views: RunViews, reason: str) -> list[str]:
    """Return the instruments on which *reason* left a target without an order."""
    counts = views.counts("v_decisions", "instrument", unfilled_reason=reason)
    return [instrument for instrument, _ in counts]


def _first_without(columns: RunColumns, reason: str) -> int:
    """Return the open of the first bar that *reason* left without an order."""
    # An outcome's key is its first sequence.
    keys = [each.key for each in columns.rows.outcomes if each.unfilled_reason == reason]
    return columns.rows.open_ms(min(keys))


def _with_held(views: RunViews, fills: Sequence[Row]) -> Iterator[Row]:
    """Yield *fills*, each with the position after its step."""
    sequences = tuple({fill["sequence"] for fill in fills})
    positions = views.rows("v_positions", sequence=sequences) if fills else ()
    for fill in fills:
        held = (
            row["quantity_text"]
            for row in positions
            if (row["sequence"], row["instrument"]) == (fill["sequence"], fill["instrument"])
        )
        yield {**fill, "held": next(held, None)}


def _accounts(columns: RunColumns) -> Iterator[Row]:
    """Yield the newest equity of the run's account and of each shadow account."""
    views = columns.views
    for row in views.rows("v_equity", newest=1):
        own = columns.own_sums(row)
        yield {"account": "this run", "fills": views.count("v_fills"), **own}
    for name, _ in sorted(views.counts("v_shadow_equity", "shadow")):
        (row,) = views.rows("v_shadow_equity", newest=1, shadow=name)
        fills = views.count("v_shadow_fills", shadow=name)
        own = columns.own_sums(row, name)
        yield {"account": f"{name} shadow", "fills": fills, **own}


# ---------------------------------------------------------------- for a terminal

ACCOUNTS: Final = (
    of_view("account", "account", "text"),
    of_view("equity", "equity", "money"),
    of_view("realized_pnl", "realized", "gain"),
    of_view("unrealized_pnl", "unrealized", "gain"),
    of_view("fees_paid", "fees", "money"),
    of_view("funding_paid", "funding", "money"),
    of_view("fills", "fills", "count"),
)
FILLS: Final = (
    of_view("filled_ms", "time", "second"),
    of_view("instrument", "instrument", "text"),
    of_view("side", "side", "text"),
    of_view("quantity", "quantity", "exact", "quantity_text"),
    of_view("price", "price", "exact", "price_text"),
    of_view("fee", "fee", "money"),
    of_view("held", "then held", "exact"),
    of_view("reason", "why", "text"),
)


def _counts_table(
    key: str, name: str, title: str, counts: Sequence[tuple[str, int]], decisions: int
) -> Table:
    # A rare refusal that is the only row must not have a full bar.
    most = max(decisions / 100, *(count for _, count in counts))
    columns = [of_row(name, name, "text"), of_row("bars", "bars", "count")]
    columns += [of_row("of_most", "", "bar"), of_row("share", "", "share")]
    rows = [
        {name: value, "bars": count, "of_most": count / most, "share": count / decisions}
        for value, count in counts
    ]
    return table(key, title, columns, rows)
