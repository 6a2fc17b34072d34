"""Documents in a browser: every kind of part and layer, by pointer and by keyboard."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from axe_playwright_python.sync_playwright import Axe
from browser import complaints
from builders import present
from gallery import EVIL, gallery, looks

from tracepaper.replay.document.values import TitledParts
from tracepaper.replay.page.export import write_document_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


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
