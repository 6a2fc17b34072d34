"""Parts of a document on the terminal and on the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from tracepaper.replay.document.charts import (
    Chart,
    ChartAxis,
    ChartPanel,
    LineLayer,
    packed,
    rounded,
)
from tracepaper.replay.document.terminal import ROWS_SHOWN, show
from tracepaper.replay.document.values import (
    Figure,
    FoldedParts,
    Form,
    Link,
    Paragraph,
    Part,
    Table,
    Value,
    as_parts,
    of_view,
    table,
    table_of,
    tone,
    written,
)

CHART = Chart(
    "Price",
    "What it shows.",
    [
        ChartPanel(
            [LineLayer("close", [0, 60_000], [1.5, None])],
            ChartAxis(kind="time"),
            ChartAxis("price, $"),
        )
    ],
)


def printed(parts: Iterable[Part], *, blank_lines: bool = True) -> list[str]:
    console = Console(file=io.StringIO(), width=80)
    show(console, parts, blank_lines=blank_lines)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def counted(rows: int, *, key: str = "rows", title: str = "Rows") -> Table:
    return table(key, title, (Figure[int]("n", "n", "count", lambda of: of),), range(rows))


def test_a_chart_is_drawn_on_the_page_and_named_on_a_terminal() -> None:
    chart, note = as_parts([CHART, Paragraph("5 < 6", "note")])
    assert chart == {
        "kind": "chart",
        "title": "Price",
        "caption": "What it shows.",
        "panels": [
            {
                "layers": [{"type": "line", "name": "close", "x": [0, 60_000], "y": [1.5, None]}],
                "x": {"kind": "time"},
                "y": {"title": "price, $"},
            }
        ],
    }
    assert note == {"kind": "paragraph", "style": "note", "text": "5 < 6"}
    assert printed([CHART, CHART]) == ["A terminal does not draw: Price. A page does."]


def test_a_terminal_shows_the_first_rows_and_says_so_but_a_whole_table_entirely() -> None:
    lines = printed([counted(30)])
    assert lines[0] == f"Rows (the first {ROWS_SHOWN} of 30)"
    assert lines[-1] == str(ROWS_SHOWN - 1)
    whole = table_of("whole", "Whole", {"n": "count"}, [[place] for place in range(30)])
    assert len(printed([whole])) == 32
    forms: dict[str, Form] = {"at": "second", **dict.fromkeys("abcd", "exact"), "why": "text"}
    timed = table_of("timed", "", forms, [[0, *["1234567.89"] * 4, "many words of a reason"]])
    assert printed([timed])[1].startswith("1970-01-01 00:00:00  1234567.89")


def test_a_cell_is_its_text_with_what_applies_of_tone_order_length_and_tint() -> None:
    forms: dict[str, Form] = {
        "name": "text", "profit": "gain", "share": "bar", "month": "gain tint", "at": "minute",
        "none": "money", "ok": "mark", "run": "text",
    }  # fmt: skip
    rows: list[list[Value]] = [
        ["a-b", -3.5, 0.25, -0.01, 0, None, True, Link("r-1", "#/run/r-1")],
        ["", (2.0, 0.5), 1.5, 0.02, 60_000, None, False, "r-2"],
    ]
    parts = table_of("t", "T", forms, rows, notes=["why"])
    [part] = as_parts([parts])
    assert parts.documents()[0]["run"] == "r-1"
    assert part["columns"][0] == {"title": "name", "text": True}
    assert part["columns"][1] == {"title": "profit"}
    first, second = part["rows"]
    assert first == [
        "a-b",
        {"text": "−3.50", "sort": -3.5, "tone": "loss"},
        {"text": "", "sort": 0.25, "bar": 0.25},
        {"text": "−1.00 %", "sort": -0.01, "tone": "loss", "tint": -0.5},
        {"text": "1970-01-01 00:00", "sort": 0, "time": True},
        "–",
        {"text": "✓", "sort": True},
        {"text": "r-1", "to": "#/run/r-1"},
    ]
    assert second[7:] == ["r-2"]
    assert second[0] == "–"
    assert second[1] == {"text": "+2.00 ± 0.50", "sort": 2.0, "tone": "gain"}
    assert (second[2]["bar"], second[3]["tint"], second[6]["text"]) == (1.0, 1.0, "✗")


def test_what_is_folded_is_parts_as_well() -> None:
    fold = FoldedParts("a trade", (Paragraph("why"), CHART))
    [part] = as_parts([fold])
    assert [each["kind"] for each in part["parts"]] == ["paragraph", "chart"]
    assert printed([fold]) == []


def test_packed_cells_keep_their_numbers_to_one_part_in_254_and_none_as_none() -> None:
    cells = np.array([[0.0, 1.0, 0.5], [np.nan, 2.0, -1.0]])
    levels = np.frombuffer(base64.b64decode(packed(cells, 0.0, 1.0)), np.uint8)
    assert levels.tolist() == [0, 254, 127, 255, 254, 0]


def test_rounding_keeps_significant_digits_and_turns_nan_into_null() -> None:
    assert rounded([123456.789, 0.000123456789, float("nan")], 4) == [123500.0, 0.0001235, None]


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


def test_a_row_of_the_newest_is_one_line_and_bars_go_before_words() -> None:
    long = "fell too fast below the band of thirty per cent of its last hundred bars, twice"
    forms: dict[str, Form] = {"reason": "text", "a heading of words": "count", "drawn": "bar"}
    rows = [(long, 1_234_567, 0.5), (long, 7, 0.1)]
    head, *lines = printed([replace(table_of("fills", "", forms, rows), newest=True)])
    assert head.split() == ["reason", "a", "heading", "of", "words"]
    assert [line.split()[-2:] for line in lines] == [["last…", "1,234,567"], ["last…", "7"]]

    recovered = [("recovered", 7, 0.5)]
    head, _ = printed([replace(table_of("fills", "", forms, recovered), newest=True)])
    assert head.endswith("drawn")
