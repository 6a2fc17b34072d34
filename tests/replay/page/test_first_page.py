"""The first page of a running daemon: a young symbol, the default strategy, the first bars."""

from __future__ import annotations

import gzip
import re
import sys
from collections.abc import Iterator
from time import perf_counter
from typing import TYPE_CHECKING, Final

import pytest
from browser import opened
from live_page import LiveDaemon, live_daemon
from playwright.sync_api import expect
from programs import run
from report_cases import SAMPLE
from waiting import deadline_s

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.slow
expect.set_options(timeout=1_000 * deadline_s(30))

KNOWN: Final = 150
"""Bars of the symbol before the daemon starts."""
POINTS = re.compile(r"points=(\d+)")
UNTIL = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\dZ")


@pytest.fixture(scope="module")
def young(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveDaemon]:
    folder = tmp_path_factory.mktemp("young")
    heading, *rows = gzip.decompress(SAMPLE.read_bytes()).decode().splitlines()
    data = folder / "binance_um_BTCUSDT_1m_2025-06-03.csv"
    data.write_text("\n".join((heading, *rows[-600:])) + "\n")
    with live_daemon(
        folder, '[parity]\ndaily_at = "off"\n', "--data", str(data), "--start", str(KNOWN)
    ) as served:
        yield served


def test_banner_card_explain_status_and_log_give_one_answer_when_it_may_trade(
    browser: Browser, young: LiveDaemon
) -> None:
    logged = re.search(r'"event": "warming up".*?"until": "([^"]+)"', young.daemon.err)
    assert logged is not None
    status = run(["status", "--db", "run.db"], young.folder).out
    explained = run(["explain", "last", "--db", "run.db"], young.folder).out
    with opened(browser, young.url) as page:
        banner = page.locator(".banner").inner_text()
        card = page.locator(".because").inner_text()
        sentence = page.locator("h1.sentence").inner_text()
    answers = {
        name: UNTIL.findall(text)
        for name, text in {
            "status": next(line for line in status.splitlines() if "not ready" in line),
            "explain": explained.partition("Gates")[0].partition("may trade")[2],
            "banner": banner,
            "card": card,
        }.items()
    }
    assert answers == {name: [logged[1]] for name in answers}
    assert re.search(r"Warming up: \d of 1,536 hours\.", banner)
    assert re.search(r"last refused \d\d:\d\d by warm, short by [67],\d\d\d bars", sentence)


FILLED = """() => {
    const canvas = document.querySelector(".chart .canvas canvas");
    return canvas !== null && document.querySelector(".chart").ariaBusy === "false";
}"""
RANGE = """async () => {
    const { Chart } = await import("/assets/chart/chart.js");
    return new Promise((done) => {
        const draw = Chart.prototype.show;
        Chart.prototype.show = function (shown) {
            const { frame } = this;
            done([this.view(), frame.length, frame.times.map((_, at) => frame.isWarmUp(at))]);
            Chart.prototype.show = draw;
            return draw.call(this, shown);
        };
    });
}"""


def test_history_is_drawn_at_once_with_the_warm_up_left_of_the_start(
    browser: Browser, young: LiveDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    [[decided]] = young.rows("SELECT min(open_time_ms) FROM v_decisions")
    with opened(browser, young.url) as page:
        expect(page.locator("ul.rows")).to_be_visible()  # the reader process has started
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("framenavigated", lambda _: asked.clear())  # of what the page before asked for
        started_s = perf_counter()
        page.reload()
        expect(page.locator("ul.rows")).to_be_visible()
        page.wait_for_function(FILLED)
        took_s = perf_counter() - started_s
        view, length, pale = page.evaluate(RANGE)
    with capsys.disabled():
        sys.stdout.write(f" history drawn in {took_s:.2f} s ")
    # The time is only printed: the law is that one request brings all bars, and the next new ones.
    points = [int(found[1]) for url in asked if (found := POINTS.search(url)) and "candles" in url]
    assert [number > KNOWN for number in points] == [True] + [False] * (len(points) - 1)
    assert length > KNOWN
    assert all(pale)
    assert view["from_ms"] < decided
    shown = (view["until_ms"] - view["from_ms"]) / 60_000
    assert 110 <= shown <= 160
    assert view["width"] / shown >= 4
