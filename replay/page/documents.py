"""Documents of the page: the account of a run, and the comparison of two."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from msgspec.structs import replace

from tracepaper.replay.checks.what_if import compare_recorded, what_if_document
from tracepaper.replay.document.charts import FULL_HOLD_LINE, RUN_LINE, LineLayer, rounded
from tracepaper.replay.document.values import Paragraph, Part, TitledParts, of_field, table
from tracepaper.replay.page import answers, runs
from tracepaper.replay.page.databases import OpenRun
from tracepaper.replay.page.lists import run_name
from tracepaper.replay.page.records import LISTS, ROWS, RowsPage, view_table
from tracepaper.replay.page.rollups import OWN
from tracepaper.replay.report import charts
from tracepaper.replay.report.book_risk import read_book_risk, risk_parts
from tracepaper.replay.run_columns import Floats

POINTS: Final = 1_500
"""Most cells of a chart."""
ACCOUNTS: Final = (
    of_field("account", "account", "text", "title"),
    of_field("equity", "equity", "money"),
    of_field("return", "return", "gain percent", "total_return"),
    of_field("realized_pnl", "realized", "gain", "realized"),
    of_field("unrealized_pnl", "unrealized", "gain", "unrealized"),
    of_field("fees_paid", "fees", "money", "fees"),
    of_field("funding_paid", "funding", "money", "funding"),
    of_field("fills", "fills", "count"),
    of_field("mean_exposure", "mean exposure", "gain percent"),
)  # fmt: skip
POSITIONS: Final = (
    of_field("instrument", "symbol", "text"),
    of_field("side", "side", "text"),
    of_field("quantity", "quantity", "exact", "quantity_text"),
    of_field("average_price", "average price", "exact", "average_price_text"),
    of_field("unrealized_pnl", "unrealized", "gain", "unrealized"),
    of_field("margin", "margin", "money"),
    of_field("liquidation_price", "liquidated at", "measure"),
)


def account(shown: OpenRun, limit: int = ROWS) -> TitledParts:
    """Return the run's accounts, curves, positions and lists.

    Each list has the newest *limit* rows.
    """
    return TitledParts("Account", tuple(_account(shown, limit)))


def _account(shown: OpenRun, limit: int) -> Iterator[Part]:
    figures = runs.accounts(shown)
    sources = "; ".join(f"{each.title}: {each.source}" for each in figures) + "."
    yield table("accounts", "", ACCOUNTS, figures, notes=(sources,) if figures else ())
    yield from _curves(shown, figures)
    yield Paragraph("Positions", "heading")
    if held := [position for position in runs.holdings(shown) if position.side != "FLAT"]:
        yield table("positions", "", POSITIONS, held)
        yield from risk_parts(read_book_risk(shown.columns))
    else:
        yield Paragraph("No open position.", "note")
    page = RowsPage(descending=True, limit=limit)
    lists = {name: view_table(shown, name, {}, page) for name in LISTS}
    for name, listed in lists.items():
        if listed.rows:
            yield Paragraph(name.capitalize(), "heading")
            yield listed
    if empty := [name for name, listed in lists.items() if not listed.rows]:
        yield Paragraph(f"Nothing is recorded for {', '.join(empty)}.", "note")


def _curves(shown: OpenRun, figures: list[answers.AccountFigures]) -> Iterator[Part]:
    """Yield the chart of all accounts since their starts."""
    columns = runs.equity(shown, None, None, POINTS)
    if not columns.time_ms:
        return
    curves = []
    for account in figures:
        if account.name not in columns.equity:
            continue
        equity = np.array(columns.equity[account.name], dtype=np.float64)
        low = np.array(columns.low[account.name], dtype=np.float64)
        curves.append(
            charts.AccountCurve(
                LineLayer(account.title, (), (), account.tone, account.width, account.dash),
                equity / account.start - 1,
                _lost(equity, np.minimum(low, equity)),
            )
        )
    name = "exposure, long less short ÷ equity"
    held = [LineLayer(name, columns.time_ms, _percent(columns.exposure), "ink", 1.0)]
    yield Paragraph("Equity", "heading")
    chart = charts.accounts_chart(np.array(columns.time_ms, dtype=np.int64), curves, held)
    yield replace(chart, title="")


def _percent(shares: list[float]) -> list[float | None]:
    return rounded(100 * np.array(shares, dtype=np.float64))


def _lost(equity: Floats, low: Floats) -> Floats:
    """Return the share by which each cell's *low* is below the highest earlier *equity*."""
    peak = np.maximum.accumulate(np.concatenate([equity[:1], equity[:-1]]))
    lost: Floats = np.where(peak > 0, np.maximum(1 - low / peak, 0.0), 0.0)
    return lost


# ---------------------------------------------------------------- two runs


def compare(left: OpenRun, right: OpenRun) -> TitledParts:
    """Return the bars that two runs decided differently, and the equity of both."""
    both = (left.reader, left.columns), (right.reader, right.columns)
    compared = what_if_document(compare_recorded(*both, (_name(left), _name(right))))
    lead, sentence, *tables = compared.parts
    return TitledParts("Compare", (lead, sentence, _both(left, right), *tables))


def _name(run: OpenRun) -> str:
    return run_name(run.views.run()["strategy"], run.run_id)


def _both(left: OpenRun, right: OpenRun) -> Part:
    """Draw the equity of both runs over all their times."""
    columns = [runs.equity(run, None, None, POINTS) for run in (left, right)]
    times = np.unique(np.concatenate([np.array(each.time_ms, dtype=np.int64) for each in columns]))
    curves, held = [], []
    for run, cells, line in zip((left, right), columns, (RUN_LINE, FULL_HOLD_LINE), strict=True):
        at = np.searchsorted(times, np.array(cells.time_ms, dtype=np.int64))
        equity, share = np.full((2, times.size), np.nan)
        equity[at], share[at] = cells.equity[OWN], cells.exposure
        start = runs.accounts(run)[0].start
        peak = np.fmax.accumulate(equity)
        drawn = replace(line, name=_name(run))
        curves.append(charts.AccountCurve(drawn, equity / start - 1, 1 - equity / peak))
        held.append(replace(drawn, x=times.tolist(), y=rounded(100 * share), width=1.0))
    return charts.accounts_chart(times, curves, held)
