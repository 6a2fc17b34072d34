"""Chromium as it is installed here, driven by Playwright."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import pytest
from waiting import deadline_s

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

WIDE: Final = {"width": 1440, "height": 900}
DESK: Final = {"width": 1280, "height": 800}
SMALL: Final = {"width": 1024, "height": 768}
PHONE: Final = {"width": 390, "height": 844}
NAMES: Final = ("chromium", "chromium-browser", "google-chrome")


def chromium() -> str:
    """Return the path of a browser; skip the test, in one line, where there is none."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("no Chromium on this machine: what a page shows in a browser is not tested")
    return path


@contextmanager
def browsing() -> Iterator[Browser]:
    """Yield a browser."""
    from playwright.sync_api import sync_playwright

    path = chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def complaints(page: Page) -> list[str]:
    """Collect errors that *page* says from now on, of its scripts and of its policy."""
    errors: list[str] = []
    page.on(
        "console", lambda message: errors.append(message.text) if message.type == "error" else None
    )
    page.on("pageerror", lambda error: errors.append(str(error)))
    return errors


@contextmanager
def opened(
    browser: Browser,
    address: str,
    size: Any = None,
    scheme: Any = "light",
    *,
    first: str = "",
    zone: str = "UTC",
    allowed: str = "$^",
    offline: bool = False,
) -> Iterator[Page]:
    """Open *address* after the script *first*; at its end there may be no complaint.

    None but those that match *allowed*; one that is *offline* may ask for files and data alone.
    """
    viewport: Any = size or WIDE
    context = browser.new_context(
        viewport=viewport, color_scheme=scheme, timezone_id=zone, offline=offline
    )
    context.add_init_script(first)
    page = context.new_page()
    page.set_default_timeout(1_000 * deadline_s(30))
    errors = complaints(page)
    urls: list[str] = []
    page.on("request", lambda request: urls.append(request.url))
    try:
        page.goto(address)
        yield page
        assert [error for error in errors if not re.search(allowed, error)] == []
        assert not offline or {url.partition(":")[0] for url in urls} <= {"file", "data"}
    finally:
        context.close()
