"""The page as a person reads it: no word is cut; lines, keys and pointer explain themselves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from browser import PHONE, SMALL, WIDE, opened
from page_cases import serving_apart, shown_of
from playwright.sync_api import expect
from waiting import deadline_s

from tracepaper.strategies.units import without_zeros

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow
expect.set_options(timeout=1_000 * deadline_s(30))

SIZES: Final = (WIDE, SMALL, PHONE)


@pytest.fixture(scope="module")
def url(database: Path, cross_database: Path, pair_database: Path) -> Iterator[str]:
    with serving_apart(database, cross_database, pair_database) as address:
        yield address


def ids(page: Page) -> dict[str, str]:
    """Return the run of each strategy."""
    runs = page.evaluate('fetch("/api/v1/runs").then((answer) => answer.json())')["runs"]
    return {f"{row['strategy']} {len(row['instruments'])}": row["run_id"] for row in runs}


def drawn(page: Page) -> None:
    """Wait for the chart and the card."""
    expect(page.locator(".chart")).to_have_attribute("aria-busy", "false")
    expect(page.locator("ul.rows")).to_be_visible()
    expect(page.locator(".card")).to_have_attribute("aria-busy", "false")


# ---------------------------------------------------------------- words that are cut

CUT: Final = """() => {
    const found = [];
    for (const element of document.querySelectorAll("body *")) {
        const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
        const style = getComputedStyle(element);
        if (!own || element.closest(".unseen, .numbers") || style.visibility === "hidden") continue;
        const range = document.createRange();
        for (const node of element.childNodes) {
            if (node.nodeType !== 3 || !node.data.trim()) continue;
            range.selectNodeContents(node);
            for (const { left, right, width } of range.getClientRects()) {
                if (!width) continue;
                let isCut = right > innerWidth + 1 || left < -1;
                for (let box = element; box && box !== document.body; box = box.parentElement) {
                    if (getComputedStyle(box).overflowX === "visible") continue;
                    const edges = box.getBoundingClientRect();
                    isCut ||= left < edges.left - 1 || right > edges.right + 1;
                }
                if (isCut) found.push(element.textContent.trim());
            }
        }
    }
    const measuring = document.createElement("canvas").getContext("2d");
    for (const { placeholder, clientWidth } of document.querySelectorAll("input")) {
        measuring.font = getComputedStyle(document.body).font;
        const { width } = measuring.measureText(placeholder);
        if (placeholder && width > clientWidth - 16) found.push(placeholder);
    }
    return found;
}"""
SMALL_TARGETS: Final = """() => {
    const targets = document.querySelectorAll("a[href], button, input, select, summary");
    const isWord = (element) => (element.closest("p, h1")?.textContent ?? element.textContent)
        !== element.textContent;
    return [...targets].filter((element) => {
        const { width, height } = element.getBoundingClientRect();
        return width && height && !isWord(element) && Math.min(width, height) < 44;
    }).map((element) => element.outerHTML);
}"""
"""Targets too small for a finger, except words of a sentence."""
COVERED: Final = """() => {
    const labels = [...document.querySelectorAll(".rows li > *")];
    const boxes = labels.map((element) => element.getBoundingClientRect());
    return labels.filter((_, index) => boxes[index + 1]?.top < boxes[index].bottom - 1)
        .map((element) => element.textContent);
}"""
"""Labels under the chart that the next one covers."""
PLACES: Final = ("", "/account", "/gates", "/health", "/model", "/report", "/compare")


@pytest.mark.parametrize("size", SIZES, ids=lambda size: str(size["width"]))
@pytest.mark.parametrize("strategy", ["attention 1", "sma_cross 2"])
def test_in_no_place_a_word_is_cut_or_a_finger_misses(
    browser: Browser, url: str, size: dict[str, int], strategy: str
) -> None:
    with opened(browser, url, size) as page:
        run = ids(page)[strategy]
        for place in PLACES:
            if place == "/model" and strategy != "attention 1":
                continue
            page.goto(f"{url}/#/run/{run}{place}")
            drawn(page) if not place else expect(page.locator("h1").first).to_be_visible()
            page.wait_for_load_state("networkidle")
            assert page.evaluate(CUT) == [], place
            assert page.evaluate(COVERED) == [], place
            assert size is not PHONE or page.evaluate(SMALL_TARGETS) == [], place
        page.goto(f"{url}/#/runs")
        expect(page.get_by_role("link", name=re.compile("attention"))).to_be_visible()
        assert page.evaluate(CUT) == []
        assert size is not PHONE or page.evaluate(SMALL_TARGETS) == []


# ---------------------------------------------------------------- keys and pointer


FRAMES: Final = """(count) => new Promise((done) => {
    const next = () => (count-- > 0 ? requestAnimationFrame(next) : done());
    next();
})"""
"""Waits for a number of redraws of the page."""


def test_a_pointer_that_rests_chooses_no_decision_until_it_moves(
    browser: Browser, url: str
) -> None:
    with opened(browser, f"{url}/#/runs") as page:
        row = page.get_by_role("link", name=re.compile("attention"))
        row.evaluate("""(row) => {
            row.style.position = "fixed";
            row.style.left = row.style.top = "400px";
        }""")  # so that the chart appears under the pointer
        row.click()
        drawn(page)
        page.evaluate(FRAMES, 30)
        newest = page.locator(".card .when span").first.inner_text()
        page.keyboard.press("End")
        assert page.locator(".card .when span").first.inner_text() == newest
        assert page.locator(".card .steps button").last.is_disabled()  # none follows it
        page.mouse.move(430, 380)
        expect(page.locator(".card .when span").first).not_to_have_text(newest)


def test_two_runs_are_chosen_and_compared(browser: Browser, url: str) -> None:
    with opened(browser, f"{url}/#/runs", allowed="409") as page:
        rows, search = page.locator("tbody tr"), page.get_by_role("searchbox")
        search.fill(ids(page)["attention 1"])  # its whole id, which no cell shows
        expect(page.locator(".filter")).to_contain_text("1 of 3")
        rows.get_by_role("link", name="compare").click()
        expect(page.locator("main")).to_contain_text("Choose a run to compare with attention ")
        expect(rows).to_have_count(2)
        search.fill("nobody's")
        expect(page.locator(".filter")).to_contain_text("No row fits the filter")
        search.fill("solusdt")
        rows.get_by_role("link").click()
        expect(page.get_by_role("alert")).to_contain_text("No bar was decided both times")
        page.get_by_role("link", name="Another run").click()
        expect(rows).to_have_count(2)


def test_a_list_is_turned_filtered_and_sorted_by_the_server(
    browser: Browser, url: str, pair_database: Path
) -> None:
    trades = shown_of(pair_database).views.rows("v_trades")
    best = max(row["net"] for row in trades if row["instrument"] == "linear:SOLUSDT")
    ((opened_by, exact),) = [
        (row["sequence"], row["net_text"]) for row in trades if row["net"] == best
    ]
    with opened(browser, url) as page:
        page.goto(f"{url}/#/run/{ids(page)['sma_cross 2']}/account")
        table, pager = (page.locator(f"h2:text-is('Trades') ~ .{of}").first
                        for of in ("sideways", "pager"))  # fmt: skip
        expect(pager).to_contain_text(f"{len(trades)} in all")
        first = table.locator("tbody tr").first.inner_text()
        pager.get_by_role("button", name="after").click()
        expect(table.locator("tbody tr").first).not_to_have_text(first)
        pager.get_by_role("button", name="before").click()
        expect(pager.get_by_role("button", name="before")).to_have_count(0)
        assert table.locator("tbody tr").first.inner_text() == first
        page.locator("h2:text-is('Trades') ~ .filter select").first.select_option("SOLUSDT")
        table.get_by_role("button", name="net", exact=True).click()
        expect(table.locator("th[aria-sort=descending]")).to_have_text("net")
        expect(table.locator("tbody tr").first).to_contain_text("SOLUSDT")
        page.locator("h2:text-is('Trades') ~ .filter input").first.check()
        expect(table.locator("[data-title=net]").first).to_contain_text(without_zeros(exact))
        table.locator("tbody button").first.click()
        page.wait_for_url(f"**/decision/{opened_by}*")


def test_times_of_a_list_are_in_the_zone_that_was_chosen(browser: Browser, url: str) -> None:
    with opened(browser, f"{url}/#/runs", zone="Asia/Kolkata") as page:
        begins = page.locator("[data-title=from]").last
        utc = begins.inner_text()
        page.keyboard.press("u")
        expect(begins).not_to_have_text(utc)
        local = datetime.fromisoformat(utc) + timedelta(hours=5, minutes=30)
        expect(begins).to_have_text(f"{local:%Y-%m-%d %H:%M}")
