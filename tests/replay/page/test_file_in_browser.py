"""An exported file in a real browser: opened from a disk, without a network, it is the page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from browser import browsing, chromium, complaints
from page_cases import shown_of
from pages import record_in
from playwright.sync_api import Browser, Locator, Page, expect
from report_cases import SAMPLE, STRICT, replayed
from waiting import deadline_s

from tracepaper.daemon.cli import invoke
from tracepaper.replay.notebook import RunPage
from tracepaper.replay.page import contents
from tracepaper.replay.page.export import run_page, write_page

WIDE: Final = {"width": 1440, "height": 900}
PHONE: Final = {"width": 390, "height": 844}
PLACES: Final = ("account", "gates", "health", "model", "report", "compare")


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Replay the default model over 1,040 minutes after its warm-up."""
    chromium()
    folder = tmp_path_factory.mktemp("file")
    return replayed(folder, STRICT, "--data", SAMPLE, "--to", "2025-06-01T00:53:00Z")


@pytest.fixture(scope="module")
def file(database: Path) -> Path:
    page = database.with_suffix(".html")
    assert invoke(["report", "last", "--db", str(database), "--html", str(page)]) == 0
    return page


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as started:
        yield started


@contextmanager
def opened(browser: Browser, address: str, size: Any = None) -> Iterator[Page]:
    """Open *address* without a network; nothing may be refused, thrown or asked for."""
    viewport: Any = size or WIDE
    context = browser.new_context(viewport=viewport, timezone_id="UTC", offline=True)
    page = context.new_page()
    page.set_default_timeout(1_000 * deadline_s(30))
    said = complaints(page)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    try:
        page.goto(address)
        yield page
        assert said == []
        assert {url.partition(":")[0] for url in asked} <= {"file", "data"}
    finally:
        context.close()


def ready(page: Page) -> None:
    expect(page.locator("h1.sentence")).to_contain_text("parity")
    expect(page.locator(".chart")).to_have_attribute("aria-busy", "false")
    expect(page.locator(".card h2")).to_be_visible()


def check(page: Page, database: Path, sequence: int) -> None:
    """Wait until the address and the card are of one decision."""
    page.wait_for_url(f"**/decision/{sequence}")
    [row] = shown_of(database).views.rows("v_decisions", sequence=sequence)
    expect(page.locator(".card .when")).to_contain_text(row["open_time_iso"][11:16])
    expect(page.locator(".card")).to_have_attribute("aria-busy", "false")


def held(file: Path) -> tuple[str, dict[str, Any], list[int]]:
    """Return the run of *file*, its record, and the decisions that are whole."""
    record = record_in(file.read_text(encoding="utf-8"))
    run = record["/api/v1/file"]["run_id"]
    found = re.findall(rf"/runs/{run}/decisions/(\d+)", " ".join(record))
    return run, record, sorted(map(int, found))


def test_it_opens_on_the_newest_decision_and_every_place_opens(
    browser: Browser, file: Path
) -> None:
    run, record, whole = held(file)
    with opened(browser, file.as_uri()) as page:
        ready(page)
        newest = record[f"/api/v1/runs/{run}/decisions/{whole[-1]}"]
        expect(page.locator(".card h2")).to_have_text(newest["title"])
        expect(page.locator(".attribution .file")).to_contain_text(f"{len(whole)} decisions whole")
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
    series = record[f"/api/v1/runs/{run}/series?instrument=linear%3ABTCUSDT"]
    other = next(
        sequence
        for sequence, gate in zip(series["sequence"][::-1], series["refused_by"][::-1], strict=True)
        if gate and sequence not in whole
    )
    with opened(browser, f"{file.as_uri()}#/run/{run}/decision/{refused}") as page:
        ready(page)
        expect(page.locator(".card footer code").last).to_have_attribute(
            "title", record[f"/api/v1/runs/{run}/decisions/{refused}"]["hashes"]["digest"]
        )
        expect(page.locator(".card .action")).to_be_disabled()
        expect(page.locator(".card footer")).to_contain_text(f"tracepaper verify {run}")
        page.evaluate("address => { location.hash = address; }", f"#/run/{run}/decision/{other}")
        expect(page.locator(".because")).to_contain_text("chosen decisions whole")
        expect(page.locator(".because")).to_contain_text(f"tracepaper explain {run}:{other}")
        expect(page.locator(".card h2")).to_contain_text("Refused by")


def test_keys_step_seek_and_find(browser: Browser, file: Path, database: Path) -> None:
    last = held(file)[2][-1]
    views = shown_of(database).views
    refused = [
        row["sequence"]
        for row in views.rows("v_decisions")
        if row["refused_by"] not in (None, "warm")
    ]
    if refused[-1] == last:
        refused.pop()
    with opened(browser, file.as_uri()) as page:
        ready(page)
        for key, sequence in (
            ("ArrowLeft", last - 1),
            ("ArrowRight", last),
            ("N", refused[-1]),
            ("Home", 1),
            ("n", refused[0]),
        ):
            page.keyboard.press(key)
            check(page, database, sequence)
        page.keyboard.press("Control+k")
        page.keyboard.type("2025-06-01 00:33")
        page.keyboard.press("Enter")
        [row] = views.rows("v_decisions", open_time_iso="2025-06-01T00:33:00.000Z")
        check(page, database, row["sequence"])


def test_a_phone_never_scrolls_sideways(browser: Browser, file: Path) -> None:
    run = held(file)[0]
    with opened(browser, file.as_uri(), PHONE) as page:
        ready(page)
        for place in ("", *(f"/{each}" for each in PLACES)):
            page.evaluate("address => { location.hash = address; }", f"#/run/{run}{place}")
            expect(page.locator("main h1").first).to_be_visible()
            assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], place


def test_tables_sort_and_page_without_a_server(
    browser: Browser, cross_database: Path, tmp_path: Path
) -> None:
    shown = shown_of(cross_database)
    written = tmp_path / "cross.html"
    write_page(run_page(cross_database, shown.run_id), written)
    prices = sorted(row["price"] for row in shown.views.rows("v_fills"))
    assert len(prices) > 50
    with opened(browser, f"{written.as_uri()}#/run/{shown.run_id}/account") as page:
        page.get_by_role("button", name="Fills", exact=True).click()
        table = page.get_by_role("group", name="Fills")
        expect(table.locator("tbody tr")).to_have_count(50)
        table.get_by_role("button", name="price", exact=True).click()
        expect(table.locator("th[aria-sort=descending]")).to_contain_text("price")
        assert shown_prices(table) == prices[:-51:-1]
        page.get_by_role("button", name="after").click()
        expect(page.get_by_role("button", name="before")).to_be_visible()
        assert shown_prices(table) == prices[-51:-101:-1][: len(prices) - 50]


def shown_prices(table: Locator) -> list[float]:
    """Return the column of prices, as it stands."""
    at = next(
        place
        for place, name in enumerate(table.locator("th").all_inner_texts())
        if name.startswith("price")
    )
    cells = table.locator(f"tbody td:nth-child({at + 1})").all_inner_texts()
    return [float(cell.replace(",", "")) for cell in cells]


def test_a_file_of_cells_goes_from_the_whole_run_to_its_newest_bars(
    browser: Browser, database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "POINTS_MAX", 2_000)
    shown = shown_of(database)
    written = tmp_path / "cells.html"
    write_page(run_page(database, shown.run_id), written)
    with opened(browser, written.as_uri()) as page:
        ready(page)
        expect(page.locator(".chart .cell")).to_have_count(0)
        page.keyboard.press("w")
        expect(page.locator(".chart .cell")).to_be_visible()
        page.keyboard.press("Home")
        page.wait_for_url("**/decision/*")
        expect(page.locator(".chart")).to_have_attribute("aria-busy", "false")


def test_a_file_of_all_decisions_opens_their_blocks(
    browser: Browser, database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = shown_of(database)
    sequences = [row["sequence"] for row in shown.views.rows("v_decisions")][-600:]
    monkeypatch.setattr("tracepaper.replay.page.contents._Asked.decided", lambda _self: sequences)
    written = tmp_path / "full.html"
    write_page(run_page(database, shown.run_id, full=True), written)
    for sequence in (sequences[0], sequences[300], sequences[-1]):
        address = f"{written.as_uri()}#/run/{shown.run_id}/decision/{sequence}"
        with opened(browser, address) as page:
            ready(page)
            run_key = shown.reader.stored_run(shown.run_id).run_key
            digest = shown.reader.commit_digest(run_key, sequence).hex()
            expect(page.locator(".card footer code").last).to_have_attribute("title", digest)


def test_a_notebook_shows_it_within_a_cell(browser: Browser, file: Path, tmp_path: Path) -> None:
    run, _, whole = held(file)
    shown = RunPage(file.read_text(encoding="utf-8"), "<page>", write_page)
    notebook = tmp_path / "notebook.html"
    notebook.write_text(f"<!doctype html><title>n</title>{shown._repr_html_()}", encoding="utf-8")
    with opened(browser, notebook.as_uri()) as page:
        frame = page.frame_locator("iframe")
        expect(frame.locator("h1.sentence")).to_contain_text("parity")
        expect(frame.locator(".card footer")).to_contain_text(f"tracepaper verify {run}")
        before = frame.locator(".card .when span").first.inner_text()
        frame.get_by_role("button", name="Decision before").first.click()
        expect(frame.locator(".card .when span").first).not_to_have_text(before)
        frame.locator("body").press("End")
        expect(frame.locator(".card .when span").first).to_have_text(before)
        frame.get_by_role("button", name="Health").click()
        expect(frame.locator("main h1")).to_contain_text("run")
        assert len(whole) > 1
