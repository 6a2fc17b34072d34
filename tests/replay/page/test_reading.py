"""What a person reads of the page: no word is cut, and lines, keys and pointer say what they do."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from browser import browsing, chromium, complaints
from page_cases import serving_apart
from playwright.sync_api import expect
from report_cases import SAMPLE, STRICT, replayed
from waiting import deadline_s

from tracepaper.replay.page import rollups

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow
expect.set_options(timeout=1_000 * deadline_s(30))

WIDE: Final[Any] = {"width": 1440, "height": 900}
SMALL: Final = {"width": 1024, "height": 768}
PHONE: Final = {"width": 390, "height": 844}
SIZES: Final = (WIDE, SMALL, PHONE)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Replay the default model over 1,040 minutes after its warm-up."""
    chromium()
    folder = tmp_path_factory.mktemp("reading")
    return replayed(folder, STRICT, "--data", SAMPLE, "--to", "2025-06-01T00:53:00Z")


@pytest.fixture(scope="module")
def url(database: Path, cross_database: Path, pair_database: Path) -> Iterator[str]:
    with serving_apart(database, cross_database, pair_database) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as started:
        yield started


@contextmanager
def opened(browser: Browser, address: str, size: Any = None) -> Iterator[Page]:
    """Open *address*; at its end nothing may have been refused or thrown."""
    viewport: Any = size or WIDE
    context = browser.new_context(viewport=viewport, timezone_id="UTC")
    page = context.new_page()
    page.set_default_timeout(1_000 * deadline_s(30))
    said = complaints(page)
    try:
        page.goto(address)
        yield page
        assert said == []
    finally:
        context.close()


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
PLACES: Final = ("", "/account", "/gates", "/health", "/model", "/report", "/compare")


@pytest.mark.parametrize("size", SIZES, ids=lambda size: str(size["width"]))
@pytest.mark.parametrize("strategy", ["attention 1", "sma_cross 2"])
def test_no_word_is_cut_in_any_place(
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
        page.goto(f"{url}/#/runs")
        expect(page.get_by_role("button", name=re.compile("attention"))).to_be_visible()
        assert page.evaluate(CUT) == []


def test_a_planted_word_that_is_cut_is_found(browser: Browser, url: str) -> None:
    with opened(browser, url) as page:
        drawn(page)
        assert page.evaluate(CUT) == []
        page.evaluate("""() => {
            const box = document.querySelector(".legend .values");
            box.style.overflow = "hidden";
            box.style.width = "100px";
            box.style.flexWrap = "nowrap";
            box.style.whiteSpace = "nowrap";
        }""")
        assert any("position" in text for text in page.evaluate(CUT))


LOW: Final = {"width": 1024, "height": 560}


def bottom(page: Page, what: str) -> float:
    box = page.locator(what).first.bounding_box()
    assert box is not None
    return box["y"] + box["height"]


def test_rows_keep_their_room_where_the_window_is_low(browser: Browser, url: str) -> None:
    with opened(browser, url, LOW) as page:
        page.goto(f"{url}/#/run/{ids(page)['attention 1']}")
        drawn(page)
        for banner in (False, True):
            if banner:  # what a halt says, and the lines that it may take
                page.evaluate("""() => {
                    const banner = document.createElement("p");
                    banner.className = "banner";
                    banner.textContent = "Halted by the operator's HALT at 09:33. ".repeat(9);
                    document.querySelector(".top").append(banner);
                }""")
            page.wait_for_function(
                """() => {
                    const place = (what) => document.querySelector(what).getBoundingClientRect();
                    return place("ul.rows").bottom <= place(".over").top
                        && place(".over").bottom <= place(".chart").bottom;
                }"""
            )
            assert bottom(page, ".chart") <= bottom(page, "footer.attribution")


# ---------------------------------------------------------------- lines

SIGNS: Final = """() => [...document.querySelectorAll(".lines .swatch")].map((sign) => {
    const dashes = sign.querySelector("line").getAttribute("stroke-dasharray");
    return [getComputedStyle(sign).color, dashes].join();
})"""
KEYS: Final = """(keys) => keys.map((key) => {
    const { strokeDasharray } = getComputedStyle(key.querySelector("line"));
    const { marginTop } = getComputedStyle(key);
    const style = [getComputedStyle(key.querySelector("svg")).color, strokeDasharray];
    return [style, marginTop];
})"""
STYLES: Final = """async (names) => {
    const { accountStyles } = await import("/assets/accounts.js");
    const stored = (name) => ({ name, is_stored: !name.startsWith("held") });
    return [...accountStyles({ accounts: names.map(stored) }).values()].map(Object.values);
}"""

DWARFING: Final = """async (lines) => {
    const { dwarfing } = await import("/assets/accounts.js");
    return dwarfing(lines).map((line) => line.name);
}"""


def test_each_account_has_a_line_of_its_own(browser: Browser, url: str) -> None:
    with opened(browser, url) as page:
        page.goto(f"{url}/#/run/{ids(page)['attention 1']}/account")
        expect(page.locator(".lines").first).to_be_visible()
        signs = page.evaluate(SIGNS)[:4]
        assert len(set(signs)) == 4
        found = page.evaluate(
            STYLES, ["this run", "ungated", "random", "long", "held", "held full"]
        )
        assert len({tuple(style[:2]) for style in found}) == 6
        lines = [{"name": str(of), "values": [0, None, of]} for of in (1, 4, -30, 6, 2)]
        further = page.evaluate(DWARFING, lines)
        assert further == ["-30", "6"], "the others leave the first a fifth of the height"
        page.goto(f"{url}/#/run/{ids(page)['attention 1']}")
        drawn(page)
        pane = page.locator(".over .swatch").evaluate_all("all => all.map((one) => one.outerHTML)")
        assert len(set(pane)) == len(pane) == 3
        page.goto(f"{url}/#/run/{ids(page)['attention 1']}/report")
        legend = page.locator(".plot-legend").first
        expect(legend).to_contain_text("ungated")
        keys = legend.locator(".key:has(line)").filter(has_not_text="position").evaluate_all(KEYS)
        assert len({tuple(style) for style, _ in keys}) == len(keys) == 3
        assert {margin for _, margin in keys} == {"0px"}  # no rule of another place is meant


# ---------------------------------------------------------------- keys and pointer


def test_past_the_last_refusal_it_says_so_and_stays(browser: Browser, url: str) -> None:
    with opened(browser, url) as page:
        page.goto(f"{url}/#/run/{ids(page)['attention 1']}")
        drawn(page)
        before = page.url
        for key, said in (("n", "no later refusal"), ("f", "no later fill")):
            page.keyboard.press(key)
            expect(page.locator("p.said")).to_have_text(said)
            assert page.url == before
        page.keyboard.press("Home")
        page.wait_for_url("**/decision/*")
        drawn(page)
        page.keyboard.press("F")
        expect(page.locator("p.said")).to_have_text("no earlier fill")
        expect(page.locator("p.said")).to_have_text("")  # after a moment


def line_x(page: Page) -> float:
    """Return where the pinned bar is drawn, as a share of the chart's width; NaN if it is not."""
    from io import BytesIO

    from PIL import Image

    box = page.locator(".chart .canvas").bounding_box()
    assert box is not None
    image = Image.open(BytesIO(page.screenshot())).convert("RGB")
    y = int(box["y"]) + 6  # over the candles: only the line is teal there
    found = [
        x
        for x in range(int(box["x"]), int(box["x"] + box["width"]))
        if (colour := image.getpixel((x, y))) and colour[2] - colour[0] > 60  # type: ignore[index]
    ]
    return (found[-1] - box["x"]) / box["width"] if found else math.nan


FRAMES: Final = """(count) => new Promise((done) => {
    const next = () => (count-- > 0 ? requestAnimationFrame(next) : done());
    next();
})"""
"""So many drawings of the page."""


def line_comes(page: Page, low: float, high: float) -> float:
    """Wait until the pinned bar is drawn between *low* and *high*; return where."""
    at = math.nan
    for _ in range(200):
        page.evaluate(FRAMES, 2)
        if low < (at := line_x(page)) < high:
            return at
    raise AssertionError(f"the pinned bar is drawn at {at}, not between {low} and {high}")


def to_both_ends(page: Page, low: float, high: float) -> None:
    """Press Home and End, which shows the newest bar between *low* and *high*."""
    page.keyboard.press("Home")
    page.wait_for_url("**/decision/*")
    line_comes(page, -0.01, 0.03)
    page.keyboard.press("End")
    page.wait_for_url(re.compile(r"/run/[^/]+$"))
    line_comes(page, low, high)


def test_home_and_end_show_the_first_bar_left_and_the_newest_with_its_room_right(
    browser: Browser, url: str
) -> None:
    with opened(browser, url) as page:
        page.goto(f"{url}/#/run/{ids(page)['attention 1']}")
        drawn(page)
        at_first = line_comes(page, 0.7, 0.95)
        to_both_ends(page, at_first - 0.01, at_first + 0.01)


def test_home_and_end_scroll_to_the_very_ends_of_what_is_loaded(browser: Browser, url: str) -> None:
    with opened(browser, url) as page:
        page.goto(f"{url}/#/run/{ids(page)['sma_cross 1']}")
        drawn(page)
        page.keyboard.press("w")  # the frame holds every bar from here on
        expect(page.locator(".chart .cell")).to_be_visible()
        page.keyboard.press("+")
        page.keyboard.press("+")
        to_both_ends(page, 0.86, 0.9)


FOCUSED: Final = """async () => {
    dispatchEvent(new KeyboardEvent("keydown", { key: "k", ctrlKey: true }));
    for (let turn = 0; turn < 10; turn++) await null;
    return document.activeElement.getAttribute("role");
}"""


def test_the_palette_has_the_focus_before_the_next_key(browser: Browser, url: str) -> None:
    with opened(browser, url) as page:
        drawn(page)
        assert page.evaluate(FOCUSED) == "combobox"


def test_a_pointer_that_rests_chooses_no_decision_until_it_moves(
    browser: Browser, url: str
) -> None:
    with opened(browser, f"{url}/#/runs") as page:
        row = page.get_by_role("button", name=re.compile("attention"))
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
    with opened(browser, f"{url}/#/runs") as page:
        button = page.get_by_role("button", name="Choose two to compare")
        expect(button).to_be_disabled()
        first = page.get_by_role("checkbox", name=re.compile("Compare attention"))
        others = page.get_by_role("checkbox", name=re.compile("Compare sma_cross"))
        others.nth(0).check()
        first.check()
        others.nth(1).check()
        expect(others.nth(0)).not_to_be_checked()
        page.get_by_role("button", name="Compare the two").click()
        expect(page.locator("p.sentence")).to_contain_text("common decisions are the same")
        page.go_back()
        expect(page.locator("h1")).to_have_text("Runs")


# ---------------------------------------------------------------- while it reads


def test_the_frame_stands_before_any_script_and_nothing_jumps(browser: Browser, url: str) -> None:
    places = ("header.places strong", "header.places nav button >> nth=2", ".sentence")
    context = browser.new_context(viewport=WIDE, java_script_enabled=False)
    page = context.new_page()
    page.goto(url)
    expect(page.locator(".sentence")).to_have_text("Reading the run…")
    before = [page.locator(place).bounding_box() for place in places]
    context.close()
    with opened(browser, url) as page:
        drawn(page)
        after = [page.locator(place).bounding_box() for place in places]
    for one, other in zip(before, after, strict=True):
        assert one is not None
        assert other is not None
        assert (one["x"], one["y"]) == (other["x"], other["y"])
    assert before[:2] == after[:2]


def test_verify_says_each_step_as_it_goes(browser: Browser, url: str) -> None:
    with opened(browser, url) as page:
        page.goto(f"{url}/#/run/{ids(page)['attention 1']}")
        drawn(page)
        page.evaluate("""() => {
            const place = document.querySelector(".card .verify p");
            window.said = [];
            const watch = () => window.said.push(place.textContent.trim().replace(/… .*/, ""));
            const what = { subtree: true, childList: true, characterData: true };
            new MutationObserver(watch).observe(place, what);
        }""")
        page.get_by_role("button", name="Verify").click()
        expect(page.locator(".card .verify p")).to_contain_text("Same")
        said = list(dict.fromkeys(page.evaluate("window.said")))
        assert said[0] == "Asking for the record"
        assert said[1].startswith("Reading the state and the bars before ")
        assert said[2].startswith("Deriving 1 step up to ")
        assert said[-1].startswith("✓ Same")


LENGTHS: Final = """async (asked) => {
    const { cellLength } = await import("/assets/cells.js");
    return asked.map((each) => cellLength(...each));
}"""


def test_cells_are_as_long_in_the_browser_as_on_the_server(browser: Browser, url: str) -> None:
    asked = [
        (interval, span * interval, points)
        for interval in (60_000, 3_600_000, 86_400_000)
        for span in (1, 7, 240, 1_439, 7_200, 7_201, 525_600, 10_000_000)
        for points in (2, 3, 100, 1_001, 2_000)
    ]
    with opened(browser, url) as page:
        assert page.evaluate(LENGTHS, asked) == [rollups.cell_length(*each) for each in asked]
        listed = page.evaluate('import("/assets/cells.js").then((all) => all.MULTIPLES)')
        assert tuple(listed) == rollups.MULTIPLES
