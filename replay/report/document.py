"""The report as a document, in the order of its page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from tracepaper.replay.document.values import (
    FoldedParts,
    Form,
    Paragraph,
    Part,
    Table,
    TitledParts,
    Value,
    estimate,
    of_field,
    of_row,
    table,
    table_of,
    written,
)
from tracepaper.replay.report.account import runs_named
from tracepaper.replay.report.attention import InfluenceReport
from tracepaper.replay.report.attention_charts import (
    confidence_chart,
    groups_chart,
    head_charts,
    head_confidence_chart,
    heads_over_time_chart,
    influence_chart,
    influence_quarters_chart,
    rollout_chart,
)
from tracepaper.replay.report.book_risk import risk_chart
from tracepaper.replay.report.charts import (
    TRADES_MAX,
    equity_chart,
    price_chart,
    refusal_chart,
    rolling_chart,
)
from tracepaper.replay.report.figures import LAST, LAST_TRADES, tables
from tracepaper.replay.report.judgement import judgement
from tracepaper.replay.report.report import BUY_AND_HOLD, HELD_AT_EXPOSURE, Report
from tracepaper.replay.report.run_charts import events_chart, events_table, trades_chart
from tracepaper.replay.report.terminal import counted, span
from tracepaper.strategies.units import MINUTE_MS

if TYPE_CHECKING:
    from tracepaper.replay.report.heads import HeadReport

INSTRUMENTS_MAX: Final = 4


def report_document(
    report: Report, analysis: HeadReport | InfluenceReport | None = None
) -> TitledParts:
    """Return the report as a document, with the *analysis* of heads or of influence if given."""
    remaining = tables(report)
    parts = [*_heading(report), *_money(report, remaining)]
    if report.attention:
        parts += _attention(report, remaining)
    if isinstance(analysis, InfluenceReport):
        matrix, *others = analysis.tables()
        over_run, quarters = influence_chart(analysis), influence_quarters_chart(analysis)
        parts += _present(
            [_section(matrix.title), over_run, replace(matrix, title=""), quarters, *others]
        )
    elif analysis is not None:
        kinds, by_head, flow, *subjects = analysis.tables()
        parts += [_section(kinds.title), replace(kinds, title=""), by_head, *subjects]
        parts += head_charts(analysis, flow.title)
    parts += _present([_section("Trades"), trades_chart(report), _trades(report)])
    if (events := events_table(report)) is not None:
        parts += _present([_section("Events"), events_chart(report), events])
    if "book_tails" in remaining:  # by days, which were enough
        kept = [key for key in remaining if key.startswith("book_")]
        drawn = risk_chart(report.book)
        parts += _present([_section("Risk of the book"), drawn, *_pop(remaining, *kept)])
    parts += [_section("Gaps in the data")]
    parts += _pop(remaining, "gaps", otherwise="The data have no gap.")
    for replaced in ("months", "last_trades"):  # by the calendar, and by more trades
        remaining.pop(replaced, None)
    if remaining:
        parts += [_section("Others"), *remaining.values()]
    parts += _identity(report)
    record = report.record
    title = f"{record.run['strategy']} on {record.run['instruments']}"
    return TitledParts(title, tuple(parts))


def _section(title: str) -> Paragraph:
    return Paragraph(title, "heading")


def _present(parts: Iterable[Part | None]) -> list[Part]:
    return [part for part in parts if part is not None]


def _pop(remaining: dict[str, Table], *keys: str, otherwise: str = "") -> list[Part]:
    """Remove the tables of *keys* from *remaining* and return them, or else the *otherwise*."""
    popped: list[Part] = [remaining.pop(key) for key in keys if key in remaining]
    return popped or ([Paragraph(otherwise, "note")] if otherwise else [])


def _money(report: Report, remaining: dict[str, Table]) -> list[Part]:
    sources = "; ".join(f"{each.name}: {each.source}" for each in report.accounts) + "."
    prices = [price_chart(report, name) for name in list(report.record.bars)[:INSTRUMENTS_MAX]]
    return _present(
        [
            _section("Money"),
            equity_chart(report),
            *_pop(remaining, "accounts", "stretches"),
            Paragraph(sources, "note"),
            *_pop(remaining, "random_timings"),
            rolling_chart(report),
            months(report),
            *_pop(remaining, "drawdowns", "costs_and_funding", "participation"),
            _section("Trading"),
            *prices,
            *_pop(remaining, "trade_groups"),
            _section("Refusals"),
            Paragraph("The signals that gates refused, compared with those that they let pass."),
            refusal_chart(report.refusals),
            *_pop(remaining, "refusals", "unfilled"),
        ]
    )  # fmt: skip


def _attention(report: Report, remaining: dict[str, Table]) -> list[Part]:
    assert report.attention is not None
    maps = report.attention.heatmaps
    left_out = len(maps) - INSTRUMENTS_MAX
    shown = maps[:INSTRUMENTS_MAX]
    attended = "Where the attention of every decision flowed"
    if report.record.config.model.by_relevance:
        attended = "What moved the forecast of every decision (relevance)"
    return _present(
        [
            _section("Attention"),
            Paragraph(
                f"{attended}, by the age of the bars. The ribbon "
                "is the regime: full colour for attention on recent bars (MOMENTUM), grey for "
                "attention on distant bars (MEAN_REVERSION), pale between them."
            ),
            *(rollout_chart(report, heatmap) for heatmap in shown),
            Paragraph(f"{left_out} more instruments are not drawn.", "note")
            if left_out > 0
            else None,
            _section("Confidence"),
            confidence_chart(report),
            groups_chart(report),
            *_pop(
                remaining, "entries", otherwise="No entries of winners and losers can be compared."
            ),
            head_confidence_chart(report, report.heads),
            *(heads_over_time_chart(heatmap, report.heads) for heatmap in shown),
        ]
    )


def _trades(report: Report) -> Part:
    """Return the newest closed trades; a row links to the decision that opened the trade."""
    if not (closed := report.trades[report.shown]):
        return Paragraph("No trade was closed.", "note")
    newest = closed[-TRADES_MAX:]
    title = f"Closed trades of {report.shown}"
    if len(newest) < len(closed):
        title += f" (the last {len(newest):,} of {len(closed):,})"
    figures = (of_field("entry_sequence", "decision", "step"), *LAST)
    return table("trades", title, figures, newest, shown=LAST_TRADES, newest=True)


# ---------------------------------------------------------------- the run and its money

MONTHS: Final = (
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
)  # fmt: skip


def _heading(report: Report) -> Iterator[Part]:
    """Yield the run, the main figures and the caveats."""
    record = report.record
    named = runs_named(record)
    yield from (Paragraph(caution, "warning") for caution in record.cautions)
    mark = ";" if record.parts else ","
    yield Paragraph(
        f"{named[0].upper()}{named[1:]}{mark} {record.run['kind']}, bars of "
        f"{record.bar_times.interval_ms // MINUTE_MS:,} min, {span(report)}, {counted(report)}.",
        "lead",
    )
    yield Paragraph(judgement(record, report.own_trades), "strong")
    yield _tiles(report)
    yield from (Paragraph(sentence, "warning") for sentence in report.warnings)
    first, *others = report.sentences
    yield FoldedParts(
        f"{first} {len(others)} more to know before believing any of it.",
        tuple(Paragraph(sentence) for sentence in others),
    )


def _tiles(report: Report) -> Table:
    """Return the main figures."""
    account = report.accounts[0]
    figures, activity, paid = account.performance, account.activity, account.costs_and_funding
    shadow = report.record.held_shadow
    name = HELD_AT_EXPOSURE if shadow is None else shadow.name
    held = [each for each in report.accounts if each.name == name]
    tiles: list[tuple[str, Value, Form]] = [("return", figures.total_return, "gain percent")]
    for each in held:
        share = (
            ""
            if each.mean_exposure is None
            else f" ({written(each.mean_exposure, 'gain percent')})"
        )
        name = f"{HELD_AT_EXPOSURE}{' so far' if shadow else ''}{share}"
        tiles.append((name, each.performance.total_return, "gain percent"))
    fully_held = report.accounts[-1]
    assert fully_held.name == BUY_AND_HOLD
    tiles += [
        (BUY_AND_HOLD, fully_held.performance.total_return, "gain percent"),
        (
            f"bp a day ± error, over {figures.days:,.1f} days",
            estimate(figures.mean_day, figures.error_day),
            "gain bp",
        ),
        ("Sharpe a year", estimate(figures.sharpe, figures.sharpe_error), "gain ratio"),
        ("worst drawdown", figures.max_drawdown, "percent"),
        ("closed trades", activity.trades if activity else None, "count"),
        ("costs and funding", paid.gross - paid.net if paid else None, "money"),
    ]  # fmt: skip
    if not held:
        tiles.append(("time in the market", activity.exposure if activity else None, "share"))
    columns = tuple(of_row(name, name, form) for name, _, form in tiles)
    return Table("tiles", "", columns, (tuple(value for _, value, _ in tiles),), look="tiles")


def months(report: Report) -> Table:
    """Return the monthly returns, one row per year, tinted by their size."""
    years = sorted({year for year, *_ in report.monthly})
    by_month = {(year, month): value for year, month, value in report.monthly}
    rows: list[tuple[Value, ...]] = []
    for year in years:
        returns = [by_month.get((year, month), "") for month in range(1, 13)]
        factors = [1.0 + value for value in returns if not isinstance(value, str)]
        rows.append((str(year), *returns, float(np.prod(factors) - 1.0)))
    forms: dict[str, Form] = {"": "text", **dict.fromkeys(MONTHS, "gain tint")}
    return table_of("calendar", "Months", {**forms, "year": "gain percent"}, rows)


def _identity(report: Report) -> list[Part]:
    """Return the run's identity, and the command that checks it."""
    run = report.record.run
    rows = [
        (name.replace("_", " "), str(run[name]))
        for name in ("run_id", "code_version", "model_id", "config_sha256", "head_digest", "mode")
        if run[name]
    ]
    return [
        _section("Identity"),
        Paragraph("Every figure follows from the run's record; check it with", "note"),
        Paragraph(f"tracepaper verify {run['run_id']}", "code"),
        table_of("identity", "", {"": "text", "of this run": "text"}, rows),
    ]
