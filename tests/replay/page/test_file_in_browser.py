"""An exported file in a real browser, opened from disk without a network, is the page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import pytest
from browser import opened
from page_cases import shown_of
from pages import record_in
from playwright.sync_api import Browser, Locator, Page, expect

from tracepaper.daemon.cli import invoke
from tracepaper.replay.page.contents import run_page
from tracepaper.replay.page.export import write_page

PLACES: Final = ("account", "gates", "health", "model", "report", "compare")


@pytest.fixture(scope="module")
def file(database: Path) -> Path:
    page = database.with_suffix(".html")
    assert invoke(["report", "last", "--db", str(database), "--html", str(page)]) == 0
    return page


def ready(page: Page) -> None:
    expect(page.locator("h1.sentence")).to_contain_text("parity")
    expect(page.locator(".chart")).to_have_attribute("aria-busy", "false")
    expect(page.locator(".card h2")).to_be_visible()


def held(file: Path) -> tuple[str, dict[str, Any], list[int]]:
    """Return the run of *file*, its record and its complete decisions."""
    record = record_in(file.read_text(encoding="utf-8"))
    run = record["/api/v1/file"]["run_id"]
    matches = re.findall(rf"/runs/{run}/decisions/(\d+)", " ".join(record))
    return run, record, sorted(map(int, matches))


def test_it_opens_on_the_newest_decision_and_every_place_opens(
    browser: Browser, file: Path
) -> None:
    run, record, whole = held(file)
    with opened(browser, file.as_uri(), offline=True) as page:
        ready(page)
        newest = record[f"/api/v1/runs/{run}/decisions/{whole[-1]}"]
        expect(page.locator(".card h2")).to_have_text(newest["title"])
        expect(page.locator(".attribution .file")).to_contain_text(
            f"{len(whole)} complete decisions"
        )
        for place in PLACES:
            page.evaluate("address => { location.hash = address; }", f"#/run/{run}/{place}")
            expect(page.locator("main h1").first).to_be_visible()
            expect(page.locator(".loss[role=alert]")).to_have_count(0)
        page.evaluate("location.hash = '#/runs'")
        expect(page.locator("tbody tr")).to_have_count(1)


def test_a_whole_card_has_measures_and_a_partial_one_says_what_shows_the_rest(
    browser: Browser, file: Path
) -> None:
    run, record, whole = held(file)
    refused = next(
        sequence
        for sequence in reversed(whole)
        if record[f"/api/v1/runs/{run}/decisions/{sequence}"]["refused_by"]
    )
    candles = record[f"/api/v1/runs/{run}/candles?instrument=linear%3ABTCUSDT"][0]
    other = next(
        sequence
        for sequence, gate in zip(
            candles["sequence"][::-1], candles["refused_by"][::-1], strict=True
        )
        if gate and sequence not in whole
    )
    with opened(browser, f"{file.as_uri()}#/run/{run}/decision/{refused}", offline=True) as page:
        ready(page)
        expect(page.locator(".card footer code").last).to_have_attribute(
            "title", record[f"/api/v1/runs/{run}/decisions/{refused}"]["digest"]
        )
        expect(page.locator(".card .action")).to_be_disabled()
        expect(page.locator(".card footer")).to_contain_text(f"tracepaper verify {run}")
        page.evaluate("address => { location.hash = address; }", f"#/run/{run}/decision/{other}")
        expect(page.locator(".because")).to_contain_text("only selected decisions complete")
        expect(page.locator(".because")).to_contain_text(f"tracepaper explain {run}:{other}")
        expect(page.locator(".card h2")).to_contain_text("Refused by")


def test_tables_sort_and_page_without_a_server(
    browser: Browser, cross_database: Path, tmp_path: Path
) -> None:
    run = shown_of(cross_database)
    written = tmp_path / "cross.html"
    write_page(run_page(cross_database, run.run_id), written)
    prices = sorted(row["price"] for row in run.views.rows("v_fills"))
    assert len(prices) > 50
    with opened(browser, f"{written.as_uri()}#/run/{run.run_id}/account", offline=True) as page:
        table = page.locator("h2:text-is('Fills') ~ .sideways").first
        expect(table.locator("tbody tr")).to_have_count(10)
        table.get_by_role("button", name="price", exact=True).click()
        expect(table.locator("th[aria-sort=descending]")).to_contain_text("price")
        assert shown_prices(table) == prices[:-11:-1]
        page.locator("h2:text-is('Fills') ~ .pager button").first.click()
        expect(table.locator("tbody tr")).to_have_count(len(prices))
        assert shown_prices(table) == prices[::-1]
        page.evaluate("address => { location.hash = address; }", f"#/run/{run.run_id}/report")
        trade = page.locator("td button[data-step]").last
        opened_by = trade.get_attribute("data-step")
        trade.click()
        page.wait_for_function("step => location.hash.endsWith(`/decision/${step}`)", arg=opened_by)


def shown_prices(table: Locator) -> list[float]:
    """Return the column of prices in its current order."""
    at = next(
        place
        for place, name in enumerate(table.locator("th").all_inner_texts())
        if name.startswith("price")
    )
    cells = table.locator(f"tbody td:nth-child({at + 1})").all_inner_texts()
    return [float(cell.replace(",", "")) for cell in cells]
