"""Places of the page that are documents."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Final

import numpy as np
from msgspec.structs import replace

from tracepaper.daemon.engine.state import RESERVE, reserve_of
from tracepaper.replay.checks.what_if import compare_recorded, what_if_document
from tracepaper.replay.document.charts import FULL_HOLD_LINE, RUN_LINE, LineLayer, rounded
from tracepaper.replay.document.values import (
    Figure,
    Paragraph,
    Part,
    TitledParts,
    of_field,
    table,
)
from tracepaper.replay.page import answers, runs
from tracepaper.replay.page.databases import ShownRun
from tracepaper.replay.page.lists import run_name
from tracepaper.replay.page.records import LISTS, ROWS, RowsPage, view_table
from tracepaper.replay.page.rollups import OWN
from tracepaper.replay.report import charts
from tracepaper.replay.report.figures import shortfall_tables
from tracepaper.replay.run_columns import Floats

POINTS: Final = 1_500
"""Cells of a chart."""
ACCOUNTS: Final = (
    of_field("account", "account", "text", "title"),
    of_field("equity", "equity", "money"),
    Figure[answers.AccountFigures](
        "return",
        "return",
        "gain percent",
        lambda of: None if of.name == RESERVE else of.total_return,
    ),
    of_field("realized", "realized", "gain"),
    of_field("unrealized", "unrealized", "gain"),
    of_field("fees", "fees", "money"),
    of_field("funding", "funding", "money"),
    of_field("fills", "fills", "count"),
    of_field("mean_exposure", "mean exposure", "percent"),
)
POSITIONS: Final = (
    of_field("instrument", "symbol", "text"),
    of_field("side", "side", "text"),
    of_field("quantity", "quantity", "exact", "quantity_text"),
    of_field("average_price", "average price", "exact", "average_price_text"),
    of_field("unrealized", "unrealized", "gain"),
    of_field("margin", "margin", "money"),
    of_field("liquidation_price", "liquidation at", "measure"),
)


def account(shown: ShownRun, limit: int = ROWS) -> TitledParts:
    """Return the run's accounts, their curves, what is held, its lists, and a trader's own fills.

    Each list has *limit* rows at most, the newest.
    """
    return TitledParts("Account", tuple(_account(shown, limit)))


def _account(shown: ShownRun, limit: int) -> Iterator[Part]:
    figures = runs.accounts(shown)
    stored = [of for of in figures if of.is_stored]
    rows = [*stored, *_reserve(stored), *(of for of in figures if not of.is_stored)]
    sources = "; ".join(f"{of.title}: {of.source}" for of in figures) + "."
    yield table("accounts", "", ACCOUNTS, rows, notes=(sources,) if figures else ())
    yield from _curves(shown, figures)
    yield Paragraph("Positions", "heading")
    if held := [position for position in runs.holdings(shown) if position.side != "FLAT"]:
        yield table("positions", "", POSITIONS, held)
    else:
        yield Paragraph("Flat: nothing is held.", "note")
    page = RowsPage(descending=True, limit=limit)
    lists = {name: view_table(shown, name, {}, page) for name in LISTS}
    for name, listed in lists.items():
        if listed.rows:
            yield Paragraph(name.capitalize(), "heading")
            yield listed
    if empty := [name for name, listed in lists.items() if not listed.rows]:
        yield Paragraph(f"Nothing is recorded of: {', '.join(empty)}.", "note")
    yield from shortfall_tables(shown.views.rows("v_shortfall"))


def _reserve(stored: list[answers.AccountFigures]) -> Iterator[answers.AccountFigures]:
    """Yield the money that no strategy has a share of, where there is some."""
    equity, *parts = (Decimal(of.equity) for of in stored)
    left = reserve_of(equity, {of.name: part for of, part in zip(stored[1:], parts, strict=True)})
    if round(left, 2):
        yield answers.AccountFigures(RESERVE, RESERVE, "", 0.0, float(left), 0.0)


def _curves(shown: ShownRun, figures: list[answers.AccountFigures]) -> Iterator[Part]:
    """Yield the chart of all accounts since their starts."""
    columns = runs.equity(shown, None, None, POINTS)
    if not columns.time_ms:
        return
    curves = []
    for of in figures:
        if of.name not in columns.equity:
            continue
        equity = np.array(columns.equity[of.name], dtype=np.float64)
        low = np.array(columns.low.get(of.name, columns.equity[of.name]), dtype=np.float64)
        curves.append(
            charts.AccountCurve(
                LineLayer(of.title, (), (), of.tone, of.width, of.dash),
                equity / of.start - 1,
                _lost(equity, np.minimum(low, equity)),
            )
        )
    name, net = "exposure, held value ÷ equity", columns.net_exposure
    held = [LineLayer(name, columns.time_ms, _percent(columns.exposure), "ink", 1.0)]
    if net is not None:
        held = [replace(held[0], name="gross exposure, both sides ÷ equity")]
        name = "net exposure, long less short"
        held.append(LineLayer(name, columns.time_ms, _percent(net), "shadow-1", 1.0, "dash"))
    yield Paragraph("Equity", "heading")
    chart = charts.accounts_chart(np.array(columns.time_ms, dtype=np.int64), curves, held)
    yield replace(chart, title="")


def _percent(shares: list[float]) -> list[float | None]:
    return rounded(100 * np.array(shares, dtype=np.float64))


def _lost(equity: Floats, least: Floats) -> Floats:
    """Return the share that each cell's *least* is under the highest *equity* before it."""
    peak = np.maximum.accumulate(np.concatenate([equity[:1], equity[:-1]]))
    lost: Floats = np.where(peak > 0, np.maximum(1 - least / peak, 0.0), 0.0)
    return lost


# ---------------------------------------------------------------- two runs


def compare(left: ShownRun, right: ShownRun) -> TitledParts:
    """Return where two runs decided the same bars differently, and the equity of both."""
    both = (left.reader, left.columns), (right.reader, right.columns)
    compared = what_if_document(compare_recorded(*both, (_name(left), _name(right))))
    lead, sentence, *tables = compared.parts
    return TitledParts("Compare", (lead, sentence, _both(left, right), *tables))


def _name(run: ShownRun) -> str:
    return run_name(run.views.run()["strategy"], run.run_id)


def _both(left: ShownRun, right: ShownRun) -> Part:
    """Draw the equity of both runs over the times of both."""
    columns = [runs.equity(run, None, None, POINTS) for run in (left, right)]
    times = np.unique(np.concatenate([np.array(of.time_ms, dtype=np.int64) for of in columns]))
    curves, held = [], []
    for run, of, line in zip((left, right), columns, (RUN_LINE, FULL_HOLD_LINE), strict=True):
        at = np.searchsorted(times, np.array(of.time_ms, dtype=np.int64))
        equity, share = np.full((2, times.size), np.nan)
        equity[at], share[at] = of.equity[OWN], of.exposure
        start = runs.accounts(run)[0].start
        peak = np.fmax.accumulate(equity)
        drawn = replace(line, name=_name(run))
        curves.append(charts.AccountCurve(drawn, equity / start - 1, 1 - equity / peak))
        held.append(replace(drawn, x=times.tolist(), y=rounded(100 * share), width=1.0))
    return charts.accounts_chart(times, curves, held)
