"""Liquidations and both sides in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browser import opened
from builders import present
from page_cases import shown_of
from pages import record_in
from playwright.sync_api import expect
from records import rows
from report_cases import SAMPLE

from tracepaper import Action, Orders, Signal, Strategy, buy, sell
from tracepaper.replay.api import backtest
from tracepaper.replay.page import decisions, runs
from tracepaper.replay.page.contents import run_page
from tracepaper.replay.page.export import write_page
from tracepaper.replay.report.report import build_report
from tracepaper.strategies.types.decisions import PositionSide

if TYPE_CHECKING:
    from playwright.sync_api import Browser

TALL = {"width": 1440, "height": 1200}
UNTIL = "2025-05-27T12:00:00Z"


class Straddles(Strategy):
    """Opens both sides at each full hour."""

    warmup = 1
    sees_account = True

    def decide(self, context: Any) -> Signal | Orders:
        """Open what is not held."""
        if context.time % 3_600_000:
            return Signal(Action.HOLD, "both stand")
        orders = [
            of(0.1, position_side=side, reason="a full hour")
            for side, of, held in (
                (PositionSide.LONG, buy, context.account.long),
                (PositionSide.SHORT, sell, context.account.short),
            )
            if not held.quantity
        ]
        return Orders(tuple(orders), "an hour") if orders else Signal(Action.HOLD, "both are held")


@pytest.fixture(scope="module")
def hedged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hedged") / "hedged.db"
    account = {"position_mode": "hedge", "margin": "isolated", "leverage": "100"}
    config = {"account": account}
    backtest(Straddles, SAMPLE, config=config, db=path, end=UNTIL).close()
    return path


def liquidated(database: Path) -> list[int]:
    query = "SELECT DISTINCT sequence FROM v_fills WHERE model = 'liquidation' ORDER BY 1"
    return [sequence for (sequence,) in rows(database, query)]


def first(database: Path, where: str) -> int:
    """Return the decision of the first order with the condition *where*."""
    query = f"SELECT min(o.decision_sequence) FROM v_orders o WHERE {where}"
    return int(rows(database, query)[0][0])


def run_of(database: Path) -> str:
    return str(rows(database, "SELECT run_id FROM v_runs")[0][0])


# ---------------------------------------------------------------- the answers


def test_a_decision_says_what_each_side_holds_and_what_was_liquidated(hedged: Path) -> None:
    run, sequences = shown_of(hedged), liquidated(hedged)
    assert len(sequences) > 1
    for sequence in sequences:
        card = decisions.decision(run, sequence)
        assert card.title.startswith("Liquidated: ")
        assert card.parts[0]["text"].startswith("Liquidated: ")
    kept = {
        decisions.decision(run, sequence).title
        for (sequence,) in rows(hedged, "SELECT sequence FROM v_decisions WHERE action = 'HOLD'")
    }
    assert {"Stayed flat", "Kept long 0.1 BTC, short 0.1 BTC"} <= kept
    assert any(title in kept for title in ("Kept short 0.1 BTC", "Kept long 0.1 BTC"))


def test_a_decision_names_the_side_of_what_it_asked_for(hedged: Path) -> None:
    run = shown_of(hedged)
    opened = decisions.decision(run, first(hedged, "o.position_side = 'SHORT'"))
    assert (
        opened.title
        == "Bought 0.1 BTC of the long side, sold 0.1 BTC of the short side: a full hour"
    )
    (both,) = rows(hedged, "SELECT min(sequence) FROM v_decisions WHERE action = 'HOLD' AND "
                   "sequence > (SELECT min(sequence) FROM v_fills)")  # fmt: skip
    assert decisions.decision(run, both[0]).title == "Kept long 0.1 BTC, short 0.1 BTC"


def test_a_signal_for_one_side_is_held_to_what_that_side_has(tmp_path: Path) -> None:
    path = tmp_path / "turns.db"
    account = {"position_mode": "hedge", "margin": "isolated", "leverage": "10"}
    config = {"account": account, "sizing": {"mode": "fixed", "quantity": "0.1"}}
    keys = {"fast": 5, "slow": 30, "long_only": False}
    data, until = SAMPLE, "2025-05-26T10:00:00Z"
    backtest("sma_cross", data, params=keys, config=config, db=path, end=until).close()
    run = shown_of(path)
    sides = {side: first(path, f"o.position_side = '{side}'") for side in ("LONG", "SHORT")}
    cards = [decisions.decision(run, at + 3) for at in sides.values()]
    for card in cards:  # it says so again at each bar, and asks for nothing
        assert all(part.get("key") != "size" for part in card.parts)
    assert cards[max(range(2), key=[*sides.values()].__getitem__)].title == (
        "Kept long 0.1 BTC, short 0.1 BTC"
    )


def test_the_page_and_the_report_have_the_same_gross_and_net_exposure(hedged: Path) -> None:
    run = shown_of(hedged)
    account = build_report(hedged, run_of(hedged)).accounts[0]
    accounts = {account.name: account for account in runs.run(run).accounts}
    assert accounts["this run"].mean_exposure == pytest.approx(account.mean_exposure, rel=1e-9)
    equity = runs.equity(run, None, None, 100_000)
    assert equity.gross_exposure is not None
    assert len(equity.gross_exposure) == len(equity.exposure)
    assert all(
        abs(net) <= gross + 1e-12
        for net, gross in zip(equity.exposure, equity.gross_exposure, strict=True)
    )
    assert max(equity.gross_exposure) > 1.9 * max(map(abs, equity.exposure)) > 0
    gross = present(present(account.activity).gross_exposure)
    assert abs(present(account.mean_exposure)) < 0.5 * gross
    assert accounts["held"].mean_exposure == accounts["this run"].mean_exposure


# ---------------------------------------------------------------- the browser


@pytest.mark.slow
def test_a_file_says_of_a_decision_that_it_holds_in_part_that_the_position_is_net(
    browser: Browser, hedged: Path, tmp_path: Path
) -> None:
    file = tmp_path / "run.html"
    write_page(run_page(hedged, run_of(hedged)), file)
    record, run = record_in(file.read_text(encoding="utf-8")), run_of(hedged)
    candles = record[f"/api/v1/runs/{run}/candles?instrument=linear%3ABTCUSDT"][0]
    net = {
        sequence: quantity
        for sequence, quantity in zip(candles["sequence"], candles["held"], strict=True)
        if f"/api/v1/runs/{run}/decisions/{sequence}" not in record
    }
    with opened(browser, file.as_uri(), TALL) as page:
        for quantity, title in ((0, "Net flat"), (-0.1, "Net short 0.1 BTC")):
            sequence = next(key for key, held in net.items() if held == quantity)
            address = f"#/run/{run}/decision/{sequence}"
            page.evaluate("address => { location.hash = address; }", address)
            expect(page.locator(".card h2")).to_have_text(title)
