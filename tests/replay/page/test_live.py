"""A running daemon's page in a real browser: updates, operator commands, a crash, a restart."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import pytest
from browser import opened
from live_page import LiveDaemon, live_daemon
from playwright.sync_api import expect
from waiting import deadline_s

from tracepaper.replay.report.states import command_of

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow
expect.set_options(timeout=1_000 * deadline_s(30))

CONFIG: Final = """
[strategy]
name = "sma_cross"
fast = 3
slow = 7
long_only = false
[sizing]
mode = "fixed"
quantity = "0.01"
[parity]
daily_at = "off"
"""
AWAY: Final = "ERR_(CONNECTION|EMPTY|INCOMPLETE|NETWORK)|status of (401|503)|WebSocket"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveDaemon]:
    with live_daemon(tmp_path_factory.mktemp("live"), CONFIG) as served:
        yield served


@pytest.fixture
def page(browser: Browser, running: LiveDaemon) -> Iterator[Page]:
    with opened(browser, f"{running.url}/", allowed=AWAY) as tab:
        tab.locator(".card h2").wait_for()
        yield tab


def say(page: Page, word: str, note: str, token: str) -> str:
    """Send an operator command in the dialog; return its answer."""
    if not page.get_by_role("dialog").count():
        page.locator("header .tools button").first.click()
    dialog = page.get_by_role("dialog", name="Operator")
    dialog.get_by_role("radio", name=word).click()
    dialog.get_by_label("Note").fill(note)
    dialog.get_by_label("Token").fill(token)
    send = dialog.locator("button.danger")
    send.click()
    dialog.get_by_role("button", name=f"Click again: {word}").click()
    status = dialog.get_by_role("status")
    status.filter(has_text=".").wait_for()
    return status.inner_text()


CHART_AT_CARD: Final = """() => {
    const text = (one) => document.querySelector(one).textContent;
    return text(".card .when span").includes(text(".legend .values b"));
}"""
"""Whether the card shows the newest bar of the chart."""


def test_the_newest_card_and_bar_move_by_what_the_stream_tells(page: Page) -> None:
    time = page.locator(".card .when span").first
    before = time.inner_text()
    expect(time).not_to_have_text(before)
    page.wait_for_function(CHART_AT_CARD)


def test_a_word_without_the_token_is_refused_in_words(page: Page, running: LiveDaemon) -> None:
    page.locator("header .tools button").first.click()
    dialog = page.get_by_role("dialog", name="Operator")
    assert dialog.locator("button.danger").is_disabled()  # no token, no word
    assert say(page, "HALT", "", "wrong") == (
        "The daemon does not know this token: enter that of run.db.token, which each start rewrites"
        ", or one of [http] tokens."
    )
    assert running.commands() == []


def test_halt_resume_and_flatten_stand_in_the_record_and_are_obeyed(
    page: Page, running: LiveDaemon
) -> None:
    note = "<img src=x onerror=alert(1)> a look"
    assert "of the record" in (answer := say(page, "HALT", note, running.token))
    [(sequence, word)] = running.commands()
    assert str(sequence) in answer
    assert (word["kind"], word["note"]) == ("HALT", note)
    assert (word["origin"], word["token"]) == ("page", "database")
    page.keyboard.press("Escape")
    banner = page.locator(".banner")
    halted = f"the operator's HALT {command_of(word).giver} ({note}) since "
    banner.filter(has_text=halted).wait_for()
    after = "SELECT sequence FROM v_decisions WHERE sequence > ? AND refused_by = 'operator'"
    running.wait_for(after, sequence)
    orders = "SELECT count(*) FROM v_orders WHERE sequence > ?"
    assert running.rows(orders, sequence) == [(0,)]
    page.reload()  # the banner is the record's, not the page's memory
    banner.filter(has_text=note).wait_for()
    assert page.locator("header .tools button").first.inner_text() == "Resume…"

    say(page, "RESUME", "on", running.token)
    page.keyboard.press("Escape")
    banner.filter(has_text="HALT").wait_for(state="detached")
    resumed = running.commands()[-1][0]
    running.wait_for("SELECT 1 FROM v_fills WHERE sequence > ?", resumed)

    say(page, "FLATTEN", "enough", running.token)
    page.keyboard.press("Escape")
    flat, word = running.commands()[-1]
    flattened = f"the operator's FLATTEN {command_of(word).giver} (enough) since "
    banner.filter(has_text=flattened).wait_for()
    running.wait_for("SELECT 1 FROM v_fills WHERE sequence > ?", flat)
    page.locator("h1.sentence").filter(has_text="Flat").wait_for()
    assert [command["kind"] for _, command in running.commands()] == ["HALT", "RESUME", "FLATTEN"]


def test_a_refused_mark_shows_the_gates_of_v_gates(page: Page, running: LiveDaemon) -> None:
    query = "SELECT max(sequence) FROM v_decisions WHERE refused_by = 'operator'"
    [(sequence,)] = running.rows(query)
    run = running.rows("SELECT run_id FROM v_runs")[0][0]
    page.goto(f"{running.url}/#/run/{run}/decision/{sequence}")
    page.locator(".card h2").filter(has_text="operator").wait_for()
    page.locator(".card[aria-busy=false]").wait_for()
    if (fold := page.locator(".card .gauges details")).get_attribute("open") is None:
        fold.locator("summary").click()
    stored = running.rows("SELECT gate, passed FROM v_gates WHERE sequence = ?", sequence)
    assert stored
    for gate, passed in stored:
        text = page.locator(f".card li[data-gate='{gate}']").inner_text()
        assert gate.split("_")[0] in text
        if text.endswith(("yes", "no")):
            assert text.endswith("yes" if passed else "no")


def test_health_shows_what_only_the_daemon_knows(page: Page, running: LiveDaemon) -> None:
    page.get_by_role("button", name="Health").click()
    place = page.locator(".place")
    place.locator("h1").filter(has_text="halted by operator").wait_for()
    place.get_by_text("Newest frame").wait_for()
    row = place.locator("tr", has_text="decision").first
    assert re.search(r"\d", row.inner_text())
    assert place.locator("tr", has_text="linear:BTCUSDT").count() >= 1
    given = command_of(running.commands()[-1][1])
    row = place.locator("tr", has_text=f"FLATTEN {given.giver}: enough").first
    assert re.search(r"\d\d:\d\d", row.inner_text())
    assert "read from the record" not in place.inner_text()


def test_a_killed_daemon_is_said_and_the_page_goes_on_when_it_is_back(
    page: Page, running: LiveDaemon
) -> None:
    say(page, "RESUME", "", running.token)
    page.keyboard.press("Escape")
    former = running.token
    time = page.locator(".card .when span").first
    running.daemon.stop(signal.SIGKILL)
    banner = page.locator(".banner")
    banner.filter(has_text="has not answered since").wait_for()
    before = time.inner_text()
    # What it knew stays, though reading it again fails meanwhile.
    page.wait_for_event("requestfailed", predicate=lambda request: "/api/v1/runs/" in request.url)
    assert time.inner_text() == before
    running.start()
    banner.filter(has_text="has not answered since").wait_for(state="detached")
    expect(time).not_to_have_text(before)
    page.wait_for_function(CHART_AT_CARD)  # the bars that came meanwhile are asked for
    assert "which each start rewrites" in say(page, "HALT", "", former)
    assert "of the record" in say(page, "HALT", "", running.token)
