"""Documents in a browser: every kind of part and layer, by pointer and by keyboard."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from browser import complaints
from builders import present

from tracepaper.replay.document.charts import (
    BandLayer,
    BarLayer,
    Chart,
    ChartAxis,
    ChartPanel,
    EdgeLayer,
    FlowLayer,
    HeatLayer,
    LineLayer,
    MarkLayer,
    RuleLayer,
    category_axis,
    packed,
    time_axis,
)
from tracepaper.replay.document.values import (
    PAIR,
    FoldedParts,
    Form,
    Look,
    Paragraph,
    Part,
    Table,
    TitledParts,
    of_row,
    table,
    table_of,
)
from tracepaper.replay.page.export import write_document_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


EVIL: Final = '<img src=x onerror="alert(1)">'
TIMES: Final = [1_748_736_000_000 + 3_600_000 * hour for hour in range(48)]
WAVE: Final = [round(float(np.sin(hour / 6)), 3) for hour in range(48)]
GATES: Final = ["shifted", "confidence"]


def chart_of(title: str, *panels: ChartPanel, columns: int = 1, is_aligned: bool = False) -> Chart:
    return Chart(title, f"The caption of {title}.", panels, columns, is_aligned)


def looks() -> list[Table]:
    """Return a table of each look that finds its figures by key."""
    gates: dict[str, Form] = {
        "gate": "text", "words": "text", "unit": "text", "measure": "exact", "bound": "text",
        "threshold": "exact", "share": "measure", "passed": "mark", "drawn": "mark",
    }  # fmt: skip
    judged = [
        ("shifted", "it moved", "", "3", "≤", "2", -0.5, False, True),
        ("finite", "is finite", "", "yes", "≥", "yes", None, True, False),
    ]
    tables: dict[Look, Table] = {
        "gauges": table_of("g", "Gauges", gates, judged),
        "stack": table_of("s", "Stack", {"name": "text", "share": "exact", "bar": "bar"},
                          [("down", "40 %", 0.4), ("up", "60 %", 0.6)], ["-3.2 bp"]),
        "columns": table_of("c", "Columns", {"from": "minute", "weight": "measure"},
                            [(TIMES[1], 0.6), (TIMES[0], 0.3), ("older", 0.1)], ["half of it"]),
        "balance": replace(table_of("b", "Balance", {"feature": "text", "added": "points"},
                                    [("range", -1e-4), ("hour", 5e-5)]), shown=1),
        "timeline": table_of("t", "Timeline", {"time": "second", "event": "text"},
                             [(TIMES[0], "buy 0.1"), (None, EVIL)]),
        "pairs": table_of("p", "Pairs", PAIR, [("held", "0.1")]),
    }  # fmt: skip
    return [replace(drawn, look=look) for look, drawn in tables.items()]


def gallery() -> list[Part]:
    """Return a part of each kind, and a chart for each kind of layer and palette."""
    line = LineLayer("own", TIMES, [*WAVE[:10], None, *WAVE[11:]])
    band = BandLayer(
        "band", TIMES, [value - 0.2 for value in WAVE], [value + 0.2 for value in WAVE]
    )
    marks = MarkLayer("entry", TIMES[5:6], WAVE[5:6], "up", texts=["trend up"])
    flags = HeatLayer("refused", TIMES, range(2), 0.0, 3.0, [[1.0] * 48, [3.0] * 48], digits=0)
    bars = BarLayer("added", [0.5, -0.25], range(2), ("gain", "loss"))
    judged = MarkLayer("judged", [1.0, -2.0], range(2), texts=["saved", "cost"], errors=[0.5, 0.5])
    grid = np.linspace(-3.0, 0.0, 48 * 20).reshape(20, 48)
    grid[0, 0] = np.nan
    map_ = HeatLayer("a bar", TIMES, list(range(20)), -3.0, 0.0, packed=packed(grid, -3.0, 0.0),
                     scale="log10", unit=" %", times=100.0, digits=2)  # fmt: skip
    sweep = HeatLayer("sharpe", range(2), range(2), -1.0, 1.0, [[-1.0, 0.1], [None, 1.0]],
                      is_written=True)  # fmt: skip
    shares = np.full((2, 3, 4, 8), 1_250).tolist()
    flow = FlowLayer(["decision", "bars"], ["0–15", "16–63"], [[1.0, 0.0], [0.25, 0.75]],
                     [[[0.25, 0.75], [0.0, 0.0]]])  # fmt: skip
    columns = [of_row(key, key, "gain") for key in ("name", "end", "fees")]
    gates = category_axis(GATES)
    fast, slow = category_axis(["5", "10"], "fast"), category_axis(["20", "40"])
    return [
        Paragraph(EVIL, "lead"),
        table("tiles", "", columns, [{"name": 1.0, "end": -2.0, "fees": 3.0}]),
        Paragraph("Money", "heading"),
        chart_of("Equity", ChartPanel([band, line, RuleLayer(0.0)], time_axis(), ChartAxis("%")),
                 ChartPanel([line, marks], time_axis()),
                 ChartPanel([flags], time_axis(), category_axis(GATES, is_reversed=True), 60),
                 is_aligned=True),
        Paragraph("Gates", "heading"),
        chart_of("Bars", ChartPanel([bars, RuleLayer(0.0, "x")], ChartAxis("bp"), gates)),
        chart_of("Judged", ChartPanel([judged], ChartAxis("bp", unit=" bp"), gates)),
        Paragraph("Maps", "heading"),
        chart_of("Map", ChartPanel([map_], time_axis(), ChartAxis("age"))),
        chart_of("Sweep", ChartPanel([sweep], fast, slow, 80)),
        chart_of("Two", *[ChartPanel([line], time_axis(), title=side) for side in "ab"], columns=2),
        chart_of("Edges", ChartPanel([EdgeLayer(list(range(8)), 11, 10_000, TIMES[:4], shares)])),
        chart_of("Flow", ChartPanel([flow])),
        FoldedParts("a trade", (Paragraph("because"),)),
        table_of("t", "Rows", {"name": "text", "n": "count", "day": "gain tint", "bar": "bar"},
                 [["b", 2, 0.1, 0.5], ["a", 10, -0.2, 1.0], [EVIL, None, None, None]]),
        table_of("e", "Exact", {"x": "exact"}, [["-3 %"], ["+10.5 %"], [""], ["1,200"], ["0.2"]]),
        Paragraph("tracepaper verify last", "code"),
        Paragraph("The numbers behind it.", "detail"),
        *looks(),
        Paragraph("one", "item"),
        Paragraph("two", "item"),
    ]  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_document_page(TitledParts("A gallery", tuple(gallery())), tmp_path / "page.html")
    return tmp_path / "page.html"


def opened(browser: Browser, file: Path, width: int = 1200, scheme: str = "light") -> Page:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
    page.set_default_timeout(10_000)
    page.complaints = complaints(page)  # type: ignore[attr-defined]
    page.goto(file.as_uri())
    page.wait_for_selector(".document .plot svg")
    return page


def closed(page: Page) -> None:
    assert page.complaints == []  # type: ignore[attr-defined]
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390])
def test_every_part_is_drawn_at_every_width_in_light_and_dark_without_a_complaint(
    browser: Browser, file: Path, width: int, scheme: str
) -> None:
    page = opened(browser, file, width, scheme)
    assert page.locator("h1").text_content() == "A gallery"
    assert page.locator("figure").count() == 8
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= width
    for figure in page.locator("figure").all():
        assert figure.locator("svg").count() >= 1
    # A map's canvas has as many colours as its numbers, and no colour where there is no number.
    colours = """canvas => new Set(new Uint32Array(canvas.getContext("2d").getImageData(
        0, 0, canvas.width, canvas.height).data.buffer)).size"""
    drawn = [each.evaluate(colours) for each in page.locator(".panel canvas").all()]
    assert drawn[0] >= 2
    assert drawn[1] >= 20
    corner = (
        """canvas => canvas.getContext("2d").getImageData(1, canvas.height - 2, 1, 1).data[3]"""
    )
    assert page.locator(".panel canvas").nth(1).evaluate(corner) == 0
    assert page.locator("td.tint").count() == 2
    assert page.locator(".document > ul li").all_text_contents() == ["one", "two"]
    assert page.locator("section.part h3").all_text_contents() == [of.title for of in looks()]
    page.locator("details").evaluate_all("all => all.forEach((one) => { one.open = true; })")
    axe = Axe().run(page)
    assert axe.violations_count == 0, axe.generate_report()
    closed(page)


def test_the_pointer_reads_all_panels_of_one_time(browser: Browser, file: Path) -> None:
    page = opened(browser, file)
    figure = page.locator("figure").first
    box = present(figure.locator("svg[role=img]").first.bounding_box())
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    element = figure.locator(".plot-reading")
    element.get_by_text("own").wait_for()
    text = element.text_content() or ""
    assert text.startswith(("2025-06-01 ", "2025-06-02 "))
    assert "UTC: band " in text
    assert "refused" in text
    assert figure.locator("line.pointer").count() == 3
    page.mouse.move(5, 5)
    page.wait_for_function("!document.querySelector('line.pointer')")
    closed(page)


def test_arrow_keys_step_through_a_chart_and_escape_leaves_it(browser: Browser, file: Path) -> None:
    page = opened(browser, file)
    figure = page.locator("figure").first
    figure.locator("svg[role=img]").first.focus()
    element = figure.locator(".plot-reading")
    page.keyboard.press("ArrowRight")
    element.get_by_text("2025-06-01 00:00 UTC").wait_for()
    page.keyboard.press("ArrowRight")
    element.get_by_text("2025-06-01 01:00 UTC").wait_for()
    page.keyboard.press("ArrowLeft")
    element.get_by_text("2025-06-01 00:00 UTC").wait_for()
    page.keyboard.press("Escape")
    page.wait_for_function("!document.querySelector('line.pointer')")
    closed(page)


def test_dragging_zooms_all_panels_and_a_button_shows_all_again(
    browser: Browser, file: Path
) -> None:
    page = opened(browser, file)
    figure = page.locator("figure").first
    box = present(figure.locator("svg[role=img]").first.bounding_box())
    labels = figure.locator("text.axis").all_text_contents()
    page.mouse.move(box["x"] + 200, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 320, box["y"] + 60)
    page.mouse.up()
    back = figure.get_by_role("button", name="show all")
    back.wait_for()
    assert figure.locator("text.axis").all_text_contents() != labels
    back.click()
    back.wait_for(state="detached")
    assert figure.locator("text.axis").all_text_contents() == labels
    closed(page)


def test_edges_are_chosen_by_pointer_and_by_keyboard(browser: Browser, file: Path) -> None:
    page = opened(browser, file)
    figure = page.locator("figure", has_text="One bar").or_(page.locator("figure:has(.edges)"))
    element = figure.locator(".plot-reading")
    assert "From 2025-06-01 03:00 UTC, layer 2" in (element.text_content() or "")
    figure.get_by_role("button", name="layer 1").click()
    element.get_by_text("layer 1, most: head 1").wait_for()
    figure.get_by_role("button", name="head 1").click()
    element.get_by_text("most: head 2").wait_for()
    figure.get_by_role("slider", name="decided bar").focus()
    page.keyboard.press("ArrowLeft")
    element.get_by_text("From 2025-06-01 02:00 UTC").wait_for()
    figure.get_by_role("slider", name="bars looked at").focus()
    page.keyboard.press("ArrowLeft")
    element.get_by_text("bars back, layer 1").wait_for()
    assert (element.text_content() or "").startswith("To 7")  # from the oldest cell on
    closed(page)


def test_a_table_is_sorted_by_its_heads_and_what_is_missing_stays_last(
    browser: Browser, file: Path
) -> None:
    page = opened(browser, file)
    rows = page.locator("h3:text-is('Rows') + .sideways")
    names = rows.locator("tbody td:first-child")
    assert names.all_text_contents() == ["b", "a", EVIL]
    head = rows.locator("th:nth-child(2) button")
    for order, expected in (("descending", ["a", "b", EVIL]), ("ascending", ["b", "a", EVIL])):
        head.click()
        rows.locator(f"th[aria-sort={order}]").wait_for()
        assert names.all_text_contents() == expected
    head.click()
    rows.locator("th[aria-sort]").wait_for(state="detached")
    assert names.all_text_contents() == ["b", "a", EVIL]
    exact = page.locator("h3:text-is('Exact') + .sideways")
    exact.locator("th button").click()
    exact.locator("th[aria-sort]").wait_for()
    assert exact.locator("td").all_text_contents() == ["1,200", "+10.5 %", "0.2", "-3 %", "–"]
    closed(page)


def test_a_fold_opens_and_sections_are_reached_from_the_top(browser: Browser, file: Path) -> None:
    page = opened(browser, file)
    fold = page.locator("details.fold")
    assert fold.get_by_text("because").count() == 0
    fold.locator("summary").click()
    fold.get_by_text("because").wait_for()
    page.get_by_role("navigation").get_by_role("button", name="Maps").click()
    page.wait_for_function("document.activeElement.textContent === 'Maps'")
    closed(page)
