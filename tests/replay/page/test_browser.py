"""The page in a real browser shows the record: by pointer, by keys and on a phone."""

from __future__ import annotations

import base64
import gzip
import io
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from browser import DESK, PHONE, opened
from builders import present
from page_cases import serving_apart
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from records import rows
from waiting import deadline_s

from tracepaper.strategies.gates.gate import measured
from tracepaper.strategies.units import percent

pytestmark = pytest.mark.slow

expect.set_options(timeout=1_000 * deadline_s(30))  # the first answer waits for the reading process
DECISION: Final = r"[/]decisions[/][0-9]+$"
"""Addresses of decisions; a card that stays asks for more under its decision's address."""
LOSS: Final = (0xB3, 0x35, 0x2C)
"""Colour of a refusal, in the light theme."""


@pytest.fixture(scope="module")
def url(database: Path) -> Iterator[str]:
    with serving_apart(database) as address:
        yield address


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    with opened(browser, f"{url}/") as tab:
        ready(tab)
        yield tab


def ready(page: Page) -> None:
    """Wait for sentence, chart and card."""
    expect(page.locator("h1.sentence")).to_contain_text("parity")
    expect(page.locator(".chart")).to_have_attribute("aria-busy", "false")
    expect(page.locator(".card h2")).to_be_visible()


def pinned(page: Page) -> int:
    """Return the sequence of the address."""
    match = re.search(r"/decision/(\d+)", page.url)
    assert match is not None, page.url
    return int(match[1])


def last(database: Path) -> int:
    return int(rows(database, "SELECT max(sequence) FROM v_decisions")[0][0])


REFUSALS: Final = (
    "SELECT sequence FROM v_decisions WHERE refused_by IS NOT NULL AND refused_by != 'warm' "
    "ORDER BY sequence"
)


def refusals(database: Path) -> list[int]:
    return [sequence for (sequence,) in rows(database, REFUSALS)]


COMMIT_OF: Final = (
    "SELECT lower(hex(digest)) FROM commits WHERE ? BETWEEN first_sequence AND last_sequence"
)


def check_card(page: Page, database: Path, sequence: int) -> None:
    """Compare the card with every gate of ``v_gates``."""
    expect(page.locator(".card")).to_have_attribute("aria-busy", "false")
    digest = rows(database, COMMIT_OF, sequence)[0][0]
    expect(page.locator(".card footer code").last).to_have_attribute("title", digest)
    if (fold := page.locator(".card .gauges details")).get_attribute("open") is None:
        fold.locator("summary").click()
    query = "SELECT gate, measure, threshold, passed FROM v_gates WHERE sequence = ?"
    stored = rows(database, query, sequence)
    assert stored
    for gate, measure, threshold, passed in stored:
        text = page.locator(f".card li[data-gate={gate}]").inner_text()
        if re.search(r"\b(yes|no)$", text):
            assert text.endswith("yes" if passed else "no")
            continue
        assert f"{measured(gate, measure)} " in text
        assert f" {measured(gate, threshold)}" in text
    entropies = "SELECT DISTINCT rollout_entropy, 1 - confidence_entropy FROM v_explanations"
    for of_row, of_heads in rows(database, f"{entropies} WHERE sequence = ?", sequence):
        words = f"entropy by age {percent(of_row, 1)} of the maximum; {percent(of_heads, 1)} in"
        expect(page.locator(".card")).to_contain_text(words)
    failed = page.locator(".card li.failed").evaluate_all("all => all.map(one => one.dataset.gate)")
    switches = {"operator", "deadline", "finite", "regime"}
    assert set(failed) == {gate for gate, _, _, passed in stored if not passed} - switches


def test_it_opens_on_one_sentence_one_chart_and_the_newest_decision(
    page: Page, database: Path
) -> None:
    expect(page.locator(".card h2")).to_have_count(1)
    expect(page.locator(".card footer code").last).to_have_attribute(
        "title",
        rows(database, COMMIT_OF, last(database))[0][0],
    )
    assert page.get_by_role("link", name="TradingView").get_attribute("href") == (
        "https://www.tradingview.com/"
    )
    query = "SELECT allowed, action FROM v_decisions ORDER BY sequence DESC LIMIT 1"
    ((allowed, action),) = rows(database, query)
    ribbon = f"asked {action}" if allowed else "asked for"
    expect(page.locator(".chart .rows")).to_contain_text(ribbon)


def red(page: Page) -> tuple[float, float]:
    """Return the rightmost refusal in the rows of gates."""
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    box = present(page.locator("ul.rows").bounding_box())
    for x in range(int(box["x"]) - 4, 30, -1):
        for y in range(int(box["y"]), int(box["y"] + box["height"])):
            if image.getpixel((x, y)) == LOSS:
                return x, y
    pytest.fail("no refusal is drawn")


def test_a_click_on_a_drawn_refusal_gives_the_gates_of_v_gates(page: Page, database: Path) -> None:
    page.mouse.click(*red(page))
    page.wait_for_url("**/decision/*")
    page.mouse.move(5, 5)
    assert pinned(page) in refusals(database)
    check_card(page, database, pinned(page))


def test_each_of_two_quick_clicks_opens_its_bar_and_asks_for_it_once(
    page: Page, database: Path
) -> None:
    addresses: list[str] = []
    page.on("request", lambda request: addresses.append(request.url))
    box = present(page.locator(".chart .canvas").bounding_box())
    pins = []
    for x in (300.9, 700.9, 501.9):  # faster than a double click, and between two pixels
        before = page.evaluate("location.hash")
        page.mouse.click(box["x"] + x, box["y"] + 60)
        page.wait_for_function("before => location.hash !== before", arg=before)
        pins.append(pinned(page))
    assert pins[0] < pins[2] < pins[1]
    check_card(page, database, pins[-1])
    asked = [int(address.rsplit("/")[-1]) for address in addresses if re.search(DECISION, address)]
    assert len(asked) == len(set(asked))
    # None but those hovered; a pin that is left before the answer to the last is not asked for.
    assert {pins[-1]} <= set(asked) <= set(pins)


SLOWLY: Final = f"""
    const {{fetch: quick}} = window;
    window.requests = window.maximum = 0;
    window.fetch = async (address, options) => {{
        if (!/{DECISION}/.test(address)) return quick(address, options);
        window.maximum = Math.max(window.maximum, ++window.requests);
        await new Promise((resolve) => setTimeout(resolve, 100));
        return quick(address, options).finally(() => window.requests--);
    }};
"""
"""Delays answers of decisions, and counts simultaneous requests."""

STEPS: Final = """async (most) => {
    const cards = new Set();
    for (let sequence = 1; sequence <= most; sequence++) {
        location.hash = location.hash.replace(/[0-9]+$/, sequence);
        await new Promise((resolve) => setTimeout(resolve, 25));
        cards.add(document.querySelector(".card .when span").textContent);
        if (sequence >= 40 && cards.size > 3) return sequence;
    }
}"""
"""Steps from decision to decision until some cards were shown on the way; returns the last one."""


def test_steps_that_come_faster_than_answers_show_some_and_ask_for_one_at_a_time(
    browser: Browser, url: str, database: Path
) -> None:
    with opened(browser, f"{url}/", first=SLOWLY) as page:
        ready(page)
        page.keyboard.press("Home")
        page.wait_for_url("**/decision/1")
        check_card(page, database, page.evaluate(STEPS, 2_000))
        assert page.evaluate("window.maximum") == 1


def test_each_decision_is_one_key_away(page: Page, database: Path) -> None:
    newest = last(database)
    page.keyboard.press("ArrowLeft")
    page.wait_for_url(f"**/decision/{newest - 1}")
    check_card(page, database, newest - 1)
    page.keyboard.press("ArrowRight")
    page.wait_for_url(f"**/decision/{newest}")
    page.keyboard.press("Home")
    page.wait_for_url("**/decision/1")
    check_card(page, database, 1)
    page.keyboard.press("End")
    page.wait_for_url(re.compile(r"/run/[^/]+$"))


def test_n_walks_the_refusals_and_f_the_fills(page: Page, database: Path) -> None:
    backwards = refusals(database)[::-1]
    assert len(backwards) > 2
    if backwards[0] == last(database):
        backwards.pop(0)
    for sequence in backwards[:2]:
        page.keyboard.press("N")
        page.wait_for_url(f"**/decision/{sequence}")
        check_card(page, database, sequence)
    page.keyboard.press("n")
    page.wait_for_url(f"**/decision/{backwards[0]}")


def test_keys_alone_reach_a_time_a_list_of_keys_and_another_theme(
    page: Page, database: Path
) -> None:
    page.keyboard.press("Control+k")
    expect(page.get_by_role("combobox")).to_be_focused()
    page.keyboard.type("2025-06-01 00:33")
    expect(page.get_by_role("option").first).to_contain_text("1 Jun 00:33")
    page.keyboard.press("Enter")
    page.wait_for_url("**/decision/*")
    query = "SELECT sequence FROM v_decisions WHERE open_time_iso = '2025-06-01T00:33:00.000Z'"
    assert pinned(page) == rows(database, query)[0][0]
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.keyboard.press("t")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before


PLACES: Final = ("", "/account", "/gates", "/health", "/compare")


@pytest.mark.parametrize("place", ["#/runs", *PLACES, "/report"])
def test_every_view_is_accessible_by_day_and_night_on_a_phone_and_a_desk(
    browser: Browser, url: str, database: Path, place: str
) -> None:
    run = rows(database, "SELECT run_id FROM v_runs")[0][0]
    address = place if place.startswith("#") else f"#/run/{run}{place}"
    with opened(browser, f"{url}/{address}") as page:
        expect(page.locator("h1").first).to_be_visible()
        page.wait_for_load_state("networkidle")
        if place == "/report":
            page.locator(".document .plot svg").first.wait_for()
            page.locator("details").evaluate_all(
                "all => all.forEach((one) => { one.open = true; })"
            )
        schemes: tuple[Literal["light", "dark"], ...] = ("light", "dark")
        for size, scheme in itertools.product((DESK, PHONE), schemes):
            page.set_viewport_size({"width": size["width"], "height": size["height"]})
            page.emulate_media(color_scheme=scheme)
            axe = Axe().run(page)
            assert axe.violations_count == 0, axe.generate_report()


def test_a_slider_that_is_let_go_says_what_another_threshold_would_have_made(
    browser: Browser, url: str, database: Path
) -> None:
    run = rows(database, "SELECT run_id FROM v_runs")[0][0]
    with opened(browser, f"{url}/#/run/{run}/gates") as page:
        slider = page.get_by_label("taker fee")
        slider.focus()
        page.keyboard.press("Home")
        element = page.locator(".whatif .document")
        expect(element).to_contain_text("execution.taker_fee unset → 0")
        expect(element).to_contain_text("as recorded")
        page.get_by_role("button", name="as recorded").click()
        expect(element).to_have_count(0)


def test_zooming_out_asks_coarser_cells_and_in_again_finer(page: Page) -> None:
    for _ in range(7):
        page.keyboard.press("-")
    expect(page.locator(".chart .cell")).to_be_visible()
    for _ in range(9):
        page.keyboard.press("+")
    expect(page.locator(".chart .cell")).to_have_count(0)


def test_keys_that_come_within_one_drawing_each_zoom(page: Page) -> None:
    press = 'for (const _ of "-------") dispatchEvent(new KeyboardEvent("keydown", { key: "-" }))'
    page.evaluate(press)
    expect(page.locator(".chart .cell")).to_be_visible()


FORMATS: Final = (
    ("percent(-0.0003)", "\u22120.03\u202f%"),
    ("number(-0.001, 2)", "0.00"),
    ("quantity('-0.0580')", "0.058"),
    ("when(1748943180000, 1748970000000)", "09:33"),
    ("when(1748943180000, 1749060000000)", "3 Jun 09:33"),
    ("when(1717407180000, 1748970000000)", "3 Jun 2024 09:33"),
)


@pytest.mark.parametrize(("call", "text"), FORMATS)
def test_a_number_is_written_as_the_design_says(page: Page, call: str, text: str) -> None:
    script = f'import("/assets/format.js").then((format) => format.{call})'
    assert page.evaluate(script) == text


FRAME: Final = """async ([instrument, marks]) => {
    const { Frame } = await import("/assets/chart/frame.js");
    const one = Object.fromEntries(["open", "high", "low", "close", "volume", "sequence", "action",
        "refused_by", "regime", "confidence_entropy", "held"].map((name) => [name, [1]]));
    const columns = { interval_ms: 60000, open_time_ms: [0], ...one, spare: {}, failed: {} };
    const equity = { time_ms: [60000], equity: {} };
    const answers = { candles: columns, equity, marks };
    const frame = new Frame({ instrument, answers });
    return ["fills", "orders", "gaps"].map((kind) => frame[kind].map((mark) => mark.name));
}"""


def test_a_chart_holds_the_marks_of_its_symbol_alone(page: Page) -> None:
    both = [{"instrument": "A", "name": "a"}, {"instrument": "B", "name": "b"}]
    marks = {"fills": both, "orders": both, "gaps": both, "is_cut": False}
    assert page.evaluate(FRAME, ["B", marks]) == [["b"], ["b"], ["b"]]


ROWS: Final = """async (run) => {
    const { rowsOf } = await import("/assets/chart/rows.js");
    return rowsOf({ gates: [], ...run }).map((row) => row.kind);
}"""


@pytest.mark.parametrize(
    ("run", "kinds"),
    [
        ({}, {"asked"}),
        ({"has_attention": True, "has_regime": True}, {"attention", "asked", "regime"}),
        ({"has_regime": True}, {"asked", "regime"}),
    ],
)
def test_a_chart_has_rows_of_what_the_record_holds(
    page: Page, run: dict[str, Any], kinds: set[str]
) -> None:
    assert set(page.evaluate(ROWS, run)) == kinds


GROWN: Final = """async ([run, instrument, from_ms, until_ms, step]) => {
    const { loadFrame } = await import("/assets/chart/frame.js");
    const range = { run, instrument, from_ms, until_ms, step };
    const shorter = { from_ms: from_ms - step, until_ms: until_ms - 11 * step };
    const held = await loadFrame({ ...range, ...shorter });
    const urls = () => performance.getEntriesByType("resource").map(({ name }) => new URL(name));
    const count = urls().length;
    const grown = await loadFrame({ ...range, held });
    const asked = urls().slice(count).map((url) => Number(url.searchParams.get("from_ms")));
    return [grown, await loadFrame(range), Math.min(...asked)];
}"""


@pytest.mark.parametrize("bars", [1, 5, 15])
def test_a_frame_that_goes_on_asks_for_its_tail_and_is_that_of_the_range(
    browser: Browser, url: str, database: Path, bars: int
) -> None:
    query = "SELECT run_id, instrument, max(open_time_ms) FROM v_bars"
    [(run, instrument, last_ms)] = rows(database, query)
    step = 60_000 * bars
    until_ms = last_ms // step * step + step
    from_ms = until_ms - 60 * step
    # A file of the server loads nothing meanwhile, as the page may; it only lacks an icon.
    with opened(browser, f"{url}/assets/api.js", allowed="404") as page:
        page.evaluate("performance.setResourceTimingBufferSize(5000)")
        grown, whole, since_ms = page.evaluate(GROWN, [run, instrument, from_ms, until_ms, step])
    assert grown == whole
    assert len(whole["times"]) == 60
    assert since_ms > until_ms - 21 * step


PARTIAL: Final = """async ([record, sequences]) => {
    const element = document.createElement("div");
    element.id = "record";
    element.textContent = record;
    document.body.append(element);
    const { source } = await import("/assets/api.js?file");
    const find = (range) => source.find("r", "decisions", { instrument: "i", ...range });
    const listed = [await find({ from_ms: 360000 })];
    for (let minute = 30; minute > 0; minute--)
        listed.push(await find({ until_ms: 60000 * minute, descending: true }));
    const found = [];
    for (const sequence of sequences) {
        const { previous, forecast, open_time_ms } = await source.partial("r", sequence);
        found.push([open_time_ms / 60000, previous, forecast.realised]);
    }
    return [listed, found];
}"""


def columns_of(minutes: list[int], cell: int) -> dict[str, Any]:
    """Return candles with decisions of cells of *cell* minutes; the close is e to the minute."""
    count = len(minutes)
    times = [60_000 * minute for minute in minutes]
    base = {"interval_ms": 60_000 * cell, "open_time_ms": times}
    prices = dict.fromkeys(("open", "high", "low"), [1.0] * count)
    closes = [2.718281828459045 ** (minute + cell - 1) for minute in minutes]
    sequences = [minute + cell - 1 for minute in minutes]
    blank: dict[str, list[Any]] = {
        **dict.fromkeys(("refused_by", "confidence_entropy", "stdev_return"), [None] * count),
        **dict.fromkeys(("action", "regime"), [""] * count),
        **dict.fromkeys(("held", "mean_return"), [0.0] * count),
    }
    traded = {"close": closes, "volume": [1.0] * count}
    return {**base, **prices, **traded, **blank, "sequence": sequences, "spare": {}, "failed": {}}


def test_a_file_says_of_each_drawn_decision_what_it_holds(page: Page) -> None:
    run = {
        "row": {"interval_ms": 60_000},
        "config": {},
        "gates": [],
        "gate_horizon": 2,
        "instruments": [{"id": "i", "base": "I"}],
    }
    root = "/api/v1/runs/r"
    record: dict[str, Any] = {root: run}
    newest = [20, 21, 23, 24, 25]  # a bar is missing
    levels = [columns_of(newest, 1), columns_of([0, 5, 10, 15, 20], 5)]
    record[f"{root}/candles?instrument=i"] = levels
    packed = base64.b64encode(gzip.compress(json.dumps(record).encode())).decode()
    listed, decisions = page.evaluate(PARTIAL, [packed, [14, 20, 21, 23]])
    assert listed[0] == 14  # of cells
    assert sorted(set(listed)) == [4, 9, 14, 19, *newest]
    cells, alone, between, after = decisions
    assert cells == [14, 9, None]
    assert alone == [20, 19, None]  # its bar ahead is the one that is missing
    assert between[:2] == [21, 20]
    assert between[2] == pytest.approx(2)
    assert after[2] == pytest.approx(2)


def test_an_address_that_is_none_opens_the_newest_run(page: Page) -> None:
    script = 'import("/assets/address.js").then((address) => address.parseAddress("#/run/%"))'
    document = page.evaluate(script)
    assert (document["place"], document["run"], document["view"]) == ("run", None, "now")
