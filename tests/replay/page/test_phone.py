"""The page of a running daemon on a phone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import pytest
from browser import PHONE, opened
from live_page import LiveDaemon, live_daemon
from page_cases import serving_apart
from playwright.sync_api import expect
from waiting import deadline_s

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.sync_api import Browser

pytestmark = pytest.mark.slow
expect.set_options(timeout=1_000 * deadline_s(30))

TRADING: Final = """
[strategy]
name = "sma_cross"
fast = 3
slow = 7
long_only = false
shadows = ["ungated", "held"]
[exits]
stop_loss = "2%"
[sizing]
mode = "equity"
fraction = "1"
[parity]
daily_at = "off"
"""
WIDTHS: Final = (360, 390, 430)
VIEWS: Final = ("", "/account", "/gates", "/health", "/model", "/report", "/compare")


@pytest.fixture(scope="module")
def trading(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveDaemon]:
    with live_daemon(tmp_path_factory.mktemp("trading"), TRADING) as served:
        yield served


def test_no_view_of_a_running_daemon_scrolls_sideways(
    browser: Browser, trading: LiveDaemon
) -> None:
    [[run]] = trading.rows("SELECT run_id FROM v_runs")
    with opened(browser, trading.url, PHONE) as page:

        def check_widths() -> None:
            """Check that the content is as wide as each screen, once its charts are drawn anew."""
            for width in WIDTHS:
                page.set_viewport_size({"width": width, "height": PHONE["height"]})
                page.wait_for_function(
                    "width => document.documentElement.scrollWidth === width", arg=width
                )

        for view in VIEWS:
            page.goto(f"{trading.url}/#/run/{run}{view}")
            expect(page.locator("h1").first).to_be_visible()
            if view == "":
                expect(page.locator("ul.rows")).to_be_visible()
            if view == "/gates":
                expect(page.locator(".slider").first).to_be_visible()
            expect(page.locator(".tools").get_by_text("Halt…")).to_be_visible()
            check_widths()
        page.locator(".tools").get_by_text("Halt…").click()
        expect(page.get_by_role("dialog", name="Operator")).to_be_visible()
        check_widths()


LABELS: Final = """
    window.labels = [];
    const { fillText } = CanvasRenderingContext2D.prototype;
    CanvasRenderingContext2D.prototype.fillText = function (text, x, y) {
        window.labels.push([this.canvas.width, y, text]);
        return fillText.apply(this, arguments);
    };
"""
"""Keeps each text that is drawn on a canvas."""


def test_the_axes_of_a_phone_have_few_labels_and_the_scale_of_the_run_s_own_equity(
    browser: Browser, database: Path
) -> None:
    # This run lost nothing, its ungated shadow 1.1 %, and the market rose and fell by 1 %.
    with (
        serving_apart(database) as url,
        opened(browser, url, PHONE, first=LABELS) as page,
    ):
        expect(page.locator("ul.rows")).to_be_visible()
        page.evaluate("window.labels = []")
        page.set_viewport_size({"width": 391, "height": PHONE["height"]})
        page.wait_for_function("window.labels.some(([, , text]) => /%$/.test(text))")
        drawn = page.evaluate("window.labels")
        legend = page.locator(".legend").inner_text()
    returns = {text for _, _, text in drawn if text.endswith("%")}
    sizes = [abs(float(re.sub("[^0-9.]", "", text))) for text in returns]
    assert max(sizes) < 0.1
    # A chart is drawn several times until its scale stands: the last drawing counts.
    prices: dict[str, float] = {}
    for _, y, text in reversed(drawn):
        if text in prices:
            break
        if re.fullmatch(r"[0-9,]{6,}\.0", text):
            prices[text] = y
    # The newest close has a label of its own, wherever it lies.
    heights = {y for text, y in prices.items() if text not in legend}
    assert len(heights) >= 2
    assert min(lower - upper for upper, lower in pairwise(sorted(heights))) > 36
