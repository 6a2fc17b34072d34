"""Liquidations, and what was held, in the titles of decisions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browser import opened
from page_cases import shown_of
from pages import record_in
from playwright.sync_api import expect
from records import rows
from report_cases import SAMPLE

from tracepaper import Action, Signal, Strategy
from tracepaper.replay.api import backtest
from tracepaper.replay.page import decisions
from tracepaper.replay.page.contents import run_page
from tracepaper.replay.page.export import write_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser

TALL = {"width": 1440, "height": 1200}
UNTIL = "2025-05-27T12:00:00Z"
HOUR_MS = 3_600_000


class Turns(Strategy):
    """Goes long and short in turn, every six hours."""

    warmup = 1

    def decide(self, context: Any) -> Signal:
        """Turn at the full hours that six divides."""
        hours, past = divmod(context.time, HOUR_MS)
        if past or hours % 6:
            return Signal(Action.HOLD, "it stands")
        return Signal(Action.SHORT if hours // 6 % 2 else Action.LONG, "six hours")


@pytest.fixture(scope="module")
def liquidated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("liquidated") / "liquidated.db"
    config = {
        "account": {"margin": "isolated", "leverage": "100"},
        "sizing": {"mode": "fixed", "quantity": "0.1"},
    }
    backtest(Turns, SAMPLE, config=config, db=path, end=UNTIL).close()
    return path


def run_of(database: Path) -> str:
    return str(rows(database, "SELECT run_id FROM v_runs")[0][0])


def test_a_decision_says_what_is_held_and_what_was_liquidated(liquidated: Path) -> None:
    run = shown_of(liquidated)
    query = "SELECT DISTINCT sequence FROM v_fills WHERE model = 'liquidation'"
    sequences = [sequence for (sequence,) in rows(liquidated, query)]
    assert len(sequences) > 1
    for sequence in sequences:
        card = decisions.decision(run, sequence)
        assert card.title.startswith("Liquidated: ")
        assert card.parts[0]["text"].startswith("Liquidated: ")
    query = "SELECT sequence FROM v_decisions WHERE action = 'HOLD'"
    titles = {decisions.decision(run, sequence).title for (sequence,) in rows(liquidated, query)}
    assert {"Stayed flat", "Kept long 0.1 BTC", "Kept short 0.1 BTC"} <= titles
    (first,) = rows(liquidated, "SELECT min(decision_sequence) FROM v_orders")
    assert decisions.decision(run, first[0]).title in {
        f"{verb} 0.1 BTC: six hours" for verb in ("Bought", "Sold")
    }


@pytest.mark.slow
def test_a_file_says_of_a_decision_that_it_has_in_part_what_is_held(
    browser: Browser, liquidated: Path, tmp_path: Path
) -> None:
    file, run = tmp_path / "run.html", run_of(liquidated)
    write_page(run_page(liquidated, run), file)
    record = record_in(file.read_text(encoding="utf-8"))
    candles = record[f"/api/v1/runs/{run}/candles?instrument=linear%3ABTCUSDT"][0]
    held = {
        sequence: quantity
        for sequence, quantity in zip(candles["sequence"], candles["held"], strict=True)
        if f"/api/v1/runs/{run}/decisions/{sequence}" not in record
    }
    with opened(browser, file.as_uri(), TALL) as page:
        for quantity, title in ((0, "Flat"), (-0.1, "Holds short 0.1 BTC")):
            sequence = next(key for key, each in held.items() if each == quantity)
            address = f"#/run/{run}/decision/{sequence}"
            page.evaluate("address => { location.hash = address; }", address)
            expect(page.locator(".card h2")).to_have_text(title)
