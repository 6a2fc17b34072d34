"""The page over a fleet in a real browser: rows, updates, an absent server, an opened run."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import browser as shared
import pytest
from axe_playwright_python.sync_playwright import Axe
from browser import PHONE, SMALL, WIDE
from command_line import Cli
from fleet_cases import cells, followed, grown, of_command, shipped
from playwright.sync_api import expect
from postgres_server import Cluster
from programs import BIN, Program
from report_cases import BTC, cross, replayed
from waiting import deadline_s

from tracepaper.storage.fleet.follow import ship_once

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

expect.set_options(timeout=1_000 * deadline_s(30))

PLANT: Final = "<img src=x onerror=window.planted=1>"
REPLAY: Final = "ended"  # of the rows only it has
LONG: Final = "machine-" + "x" * 120


@pytest.fixture(scope="module")
def replay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Replay long and short by moving averages over 1,500 minutes."""
    return replayed(tmp_path_factory.mktemp("fleet"), cross(), "--data", BTC)


@pytest.fixture
def fleet(fleet_url: str, postgres: Cluster, replay: Path, tmp_path: Path) -> str:
    """Ship a replay, a halted run with hostile names, and a running one; return the URL."""
    ship_once(replay, fleet_url, needed_by="--to")
    for name, host, daemon in (
        ("halted", PLANT, {"halted_by": PLANT, "not_ready": [LONG]}),
        ("runs", LONG, {"ready": True}),
    ):
        path = shipped(tmp_path, fleet_url, name=name)
        postgres.sql(fleet_url, followed(path, host, daemon))
    return fleet_url


@pytest.fixture
def url(fleet: str, tmp_path: Path) -> Iterator[str]:
    command = [str(BIN / "tracepaper"), "ui", "--fleet", fleet]
    program = Program(command, tmp_path, name="ui", extra={"TMPDIR": str(tmp_path)})
    try:
        program.wait_until(lambda: "The page is " in program.out)
        yield program.out.split("The page is ", 1)[1].split("/ ", 1)[0]
    finally:
        program.kill()


@contextmanager
def opened(browser: Browser, url: str, size: Any = None, scheme: Any = "light") -> Iterator[Page]:
    """Open the page, and wait for its rows."""
    with shared.opened(browser, f"{url}/", size, scheme, allowed="status of 503") as page:
        expect(page.locator("tbody tr")).to_have_count(3)
        yield page


def rows(page: Page) -> list[dict[str, str]]:
    """Return the cells of every row, by their titles."""
    script = """all => all.map((row) => Object.fromEntries([...row.children].map(
        (cell) => [cell.dataset.title, cell.textContent])))"""
    cells: list[dict[str, str]] = page.locator("tbody tr").evaluate_all(script)
    return cells


def check_reading(page: Page) -> None:
    """Nothing is off-screen, and screen readers and people with weak sight can use it."""
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    axe = Axe().run(page)
    assert axe.violations_count == 0, axe.generate_report()


def test_what_is_shipped_appears_without_a_reload(
    browser: Browser, url: str, fleet: str, tmp_path: Path, cli: Cli
) -> None:
    path = tmp_path / "runs.db"
    with opened(browser, url) as page:
        page.evaluate("window.kept = true")
        row = page.locator("tbody tr", has_text=LONG).filter(has_text="running")
        expect(row.locator("[data-title=steps]")).to_have_text("40")
        grown(path, 70, seed=1, since=40)
        ship_once(path, fleet, needed_by="--to")
        expect(row.locator("[data-title=steps]")).to_have_text("70")
        assert rows(page) == [cells(run) for run in of_command(fleet, cli)]
        shipped(tmp_path, fleet, name="fourth")
        expect(page.locator("tbody tr")).to_have_count(4)
        assert page.evaluate("window.kept")


def test_a_server_that_is_away_is_said_and_the_page_goes_on_when_it_is_back(
    browser: Browser, url: str, postgres: Cluster
) -> None:
    with opened(browser, url) as page:
        before = rows(page)
        postgres.stop()
        try:
            banner = page.get_by_role("alert")
            expect(banner).to_contain_text("does not take the connection")
            expect(banner).to_contain_text(re.compile(r"The rows are as of 20\d\d-\d\d-\d\d \d\d:"))
            assert rows(page) == before
            check_reading(page)
            for _ in range(2):  # it may be tried again
                page.locator("tbody a").first.click()
                failed = page.get_by_role("alert").first
                expect(failed).to_contain_text("tracepaper db pull --from")
                page.wait_for_url("**/#/fleet")
            page.reload()
            expect(page.locator("tbody tr")).to_have_count(3)  # for who comes meanwhile too
            assert rows(page) == before
        finally:
            postgres.start()
        expect(page.get_by_role("alert")).to_have_count(0)
        assert rows(page) == before


def test_a_row_opens_its_run_by_keys_alone(browser: Browser, url: str) -> None:
    with opened(browser, url) as page:
        run = page.locator("tbody tr", has_text=REPLAY).locator("[data-title=run]").inner_text()
        page.get_by_role("button", name="run", exact=True).focus()
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.textContent") == run:
                break
        page.keyboard.press("Enter")
        page.wait_for_url(f"**/#/run/{run}")
        page.go_back()  # and not to the address that pulls
        page.wait_for_url("**/")
        page.go_forward()
        expect(page.locator(".card h2")).to_be_visible()
        expect(page.locator("footer.attribution")).to_contain_text("Pulled from the fleet")
        expect(page.locator("h1.sentence")).to_contain_text("Long 1 BTC")
        page.keyboard.press("ArrowLeft")
        page.wait_for_url("**/decision/1499")
        page.get_by_role("button", name="Runs").click()
        expect(page.locator("tbody tr")).to_have_count(1)
        page.get_by_role("button", name="Fleet").click()
        expect(page.locator("tbody tr")).to_have_count(3)


def test_each_width_fits_and_can_be_read(browser: Browser, url: str) -> None:
    for size, scheme in itertools.product((WIDE, SMALL, PHONE), ("light", "dark")):
        with opened(browser, url, size, scheme) as page:
            check_reading(page)
