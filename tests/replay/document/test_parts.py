"""A document's parts as the terminal and the page write them."""

from __future__ import annotations

import io
from collections.abc import Iterable

import pytest
from rich.console import Console

from tracepaper.replay.document.page import Charts
from tracepaper.replay.document.terminal import ROWS_SHOWN, show
from tracepaper.replay.document.values import (
    Chart,
    Figure,
    Form,
    Paragraph,
    Part,
    Table,
    Value,
    documents,
    of_view,
    table,
    table_of,
    tone,
    written,
)

CHART = Chart({"data": [], "layout": {"height": 100}}, "what it shows")


def printed(parts: Iterable[Part], *, blank_lines: bool = True) -> list[str]:
    console = Console(file=io.StringIO(), width=80)
    show(console, parts, blank_lines=blank_lines)
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def counted(rows: int, *, key: str = "rows", title: str = "Rows") -> Table:
    return table(key, title, (Figure[int]("n", "n", "count", lambda of: of),), range(rows))


def test_a_blank_line_stands_before_each_table_but_a_leading_one() -> None:
    parts: list[Part] = [counted(1), Paragraph("said"), counted(1)]
    assert printed(parts) == ["Rows", "n", "0", "said", "", "Rows", "n", "0"]
    assert printed(parts, blank_lines=False) == ["Rows", "n", "0", "said", "Rows", "n", "0"]


def test_a_chart_is_drawn_on_the_page_alone() -> None:
    charts = Charts()
    page = charts.parts([CHART, Paragraph("5 < 6", "note")])
    assert charts.figures == {"chart-1": CHART.figure}
    assert "what it shows" in page
    assert '<p class="note">5 &lt; 6</p>' in page
    assert printed([CHART]) == []


def test_a_table_without_rows_is_its_notes() -> None:
    empty = table_of("none", "Nothing", {"n": "count"}, [], notes=["too few days"])
    assert printed([empty]) == ["Nothing", "  too few days"]
    assert Charts().parts([empty]) == '<h3>Nothing</h3><p class="note">too few days</p>'
    assert documents([empty]) == {"none": {"rows": [], "notes": ["too few days"]}}


def test_a_terminal_shows_the_first_rows_and_says_so_but_a_whole_table_entirely() -> None:
    lines = printed([counted(30)])
    assert lines[0] == f"Rows (the first {ROWS_SHOWN} of 30)"
    assert lines[-1] == str(ROWS_SHOWN - 1)
    whole = table_of("whole", "Whole", {"n": "count"}, [[place] for place in range(30)])
    assert len(printed([whole])) == 32


def test_a_misspelt_column_of_a_view_is_an_error() -> None:
    with pytest.raises(KeyError):
        table("of_view", "", (of_view("pricee", "price", "money"),), [{"price": 1.0}])


@pytest.mark.parametrize(
    ("value", "form", "expected", "colour"),
    [
        ((0.00123, 0.5), "signed", "+0.0012 ± 0.5000", ""),
        (-0.00001234, "points", "-0.123", ""),
        (0.5, "bar", "█" * 14, ""),
        (-0.5, "gain bar", "█" * 8, "loss"),
        (None, "bar", "", ""),
        (True, "mark", "✓", ""),
        (False, "mark", "✗", ""),
        ("3.10", "exact", "3.10", ""),
    ],
)
def test_forms_of_an_explanation(value: Value, form: Form, expected: str, colour: str) -> None:
    assert written(value, form) == expected
    assert tone(value, form) == colour
