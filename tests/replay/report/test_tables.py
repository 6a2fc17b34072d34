from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from pages import tables_of
from rich.console import Console

from tracepaper import open_run
from tracepaper.replay.document.values import Figure, Form, Table, Value, table, tone, written
from tracepaper.replay.report import figures
from tracepaper.replay.report.document import report_document
from tracepaper.replay.report.report import AccountReport, Report
from tracepaper.replay.report.terminal import as_document, show_report


def printed(report: Report) -> str:
    console = Console(file=io.StringIO(), width=100)
    show_report(console, report)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_terminal_has_a_summary_of_a_screen_and_a_half_and_says_where_the_rest_is(
    cross_report: Report, pair_report: Report
) -> None:
    own = cross_report.own_trades
    reasons = [replace(trade, exit_reason=f"reason {at}") for at, trade in enumerate(own)]
    name = cross_report.record.account.name
    trades = {**cross_report.trades, name: tuple(reasons)}
    many = replace(cross_report, accounts=cross_report.accounts * 9, trades=trades)
    for report in (cross_report, pair_report, many):
        text = printed(report)
        assert len(text.splitlines()) <= 60
        for word in ("Accounts", "Costs", "Closed trades", "report --html FILE", "--json"):
            assert word in text


def test_a_figure_declared_once_is_on_the_page_in_json_and_in_a_notebook(
    cross_report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = Figure[AccountReport]("planted", "planted figure", "gain", lambda of: of.end + 0.125)
    monkeypatch.setattr(figures, "ACCOUNTS", (*figures.ACCOUNTS, planted))
    end = cross_report.accounts[0].end + 0.125
    table = tables_of(report_document(cross_report))["accounts"]
    place = [figure.title for figure in table.figures].index("planted figure")
    assert table.rows[0][place] == end
    assert as_document(cross_report)["accounts"][0]["planted"] == end
    frame = open_run("last", cross_report.record.database).table("accounts")
    assert frame["planted"][0] == end


def test_the_page_and_json_have_every_table(cross_report: Report, pair_report: Report) -> None:
    for report in (cross_report, pair_report):
        tables, document = figures.tables(report), as_document(report)
        page = tables_of(report_document(report))
        for key, rows in tables.items():
            assert document[key] == rows.documents()
            assert not rows.notes or document["notes"][key] == rows.notes
            if key not in ("months", "last_trades"):  # a calendar, and every trade by itself
                assert (page[key].title, page[key].rows) == (rows.title, rows.rows)
        json.dumps(document, allow_nan=False)


@pytest.mark.parametrize(
    ("value", "form", "expected", "colour"),
    [
        (-0.0123, "gain percent", "-1.23 %", "loss"),
        (0.0123, "gain percent", "+1.23 %", "gain"),
        (1234.5, "money", "1,234.50", ""),
        ((-0.00012, 0.00034), "gain bp", "-1.2 ± 3.4", "loss"),
        ((1.5, None), "gain ratio", "+1.50", "gain"),
        (None, "gain", "–", ""),
        (90_000, "span", "90.0 s", ""),
        (1_748_246_400_000, "minute", "2025-05-26 08:00", ""),
    ],
)
def test_values_are_written_with_their_sign_and_unit(
    value: Value, form: Form, expected: str, colour: str
) -> None:
    assert written(value, form) == expected
    assert tone(value, form) == colour


def test_json_has_all_rows_and_people_see_the_first() -> None:
    whole: Table = table(
        "many", "Many", (Figure[int]("n", "n", "count", lambda of: of),), range(500), shown=100
    )
    assert len(whole.documents()) == 500
    assert whole.documents()[3] == {"n": 3}
    pair = table("pair", "", (Figure[float]("x", "x", "bp", lambda of: (of, 0.5)),), [2.0])
    assert pair.documents() == [{"x": {"value": 2.0, "error": 0.5}}]
