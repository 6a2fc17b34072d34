"""Liquidations in explain: the closed positions, the reason and the cost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from walks import straight

from tracepaper import Action, Orders, Signal, Strategy, buy
from tracepaper.replay.api import backtest
from tracepaper.replay.run import Run

START_MS = 1_748_246_400_000
CRASH, BARS = 6, 12
PRICES = [1_000.0] * CRASH + [870.0] * (BARS - CRASH)


def minute_of(context: Any) -> int:
    return int(context.time - START_MS) // 60_000


class Buys(Strategy):
    """Goes long at its second bar."""

    warmup = 1

    def decide(self, context: Any) -> Signal:
        return Signal(Action.LONG, "it buys") if minute_of(context) == 2 else HOLD


class Waits(Strategy):
    """Holds a small position, and rests a large limit order that needs margin."""

    warmup = 1

    def decide(self, context: Any) -> Signal | Orders:
        if minute_of(context) != 2:
            return HOLD
        return Orders((buy(20), buy(74, limit=505.0, tag="far")), "it waits")


HOLD = Signal(Action.HOLD, "it waits")


def configured(**sections: Any) -> dict[str, Any]:
    return {
        "market": {"category": "linear"},
        "sizing": {"mode": "fixed", "quantity": "5"},
        "execution": {"taker_fee": "0.001", "filters": "data", "plausible": 1_000},
        "account": {"cash": "1000", "margin": "isolated", "leverage": "10"},
        **sections,
    }


def liquidations(run: Run[Any]) -> dict[int, list[dict[str, Any]]]:
    """Return explain's sentences on liquidations, by instrument and minute."""
    by_bar: dict[int, list[dict[str, Any]]] = {}
    for row in run.decisions.to_dicts():
        if rows := run.explain(int(row["sequence"]))["liquidations"]:
            by_bar.setdefault((row["open_time_ms"] - START_MS) // 60_000, []).extend(rows)
    return by_bar


def lost_by(run: Run[Any]) -> float:
    """Return the cash changes of liquidations, from the record's ledger alone."""
    rows = run.ledger.to_dicts()
    ids = {row["order_id"] for row in rows if row["kind"] == "liquidation_fee"}
    return -sum(row["amount"] for row in rows if row["order_id"] in ids)


@pytest.fixture(scope="module")
def isolated() -> Iterator[Run[Any]]:
    with backtest(Buys, {"AAAUSDT": straight(START_MS, PRICES)}, config=configured()) as run:
        yield run


def test_a_bar_that_liquidated_says_what_and_why_and_what_it_cost(isolated: Run[Any]) -> None:
    by_bar = liquidations(isolated)
    assert list(by_bar) == [CRASH]
    (only,) = by_bar[CRASH]
    (fill,) = (row for row in isolated.fills.to_dicts() if row["model"] == "liquidation")
    assert only["fills"][0]["order_id"] == fill["order_id"]
    assert only["cost"] == pytest.approx(lost_by(isolated))
    assert only["said"] == (
        "Liquidated: long 5.000 AAAUSDT, triggered at 905 and closed at 900, as the margin of "
        "504.5 less the loss had fallen to the maintenance margin of 22.6131 of risk tier 1 "
        "(0.5 %). It cost 504.50: 500.00 of realized loss and 4.50 of fees; 25.00 of the loss "
        "is the move from trigger to close."
    )


def test_the_loss_of_a_liquidation_is_no_spread(isolated: Run[Any]) -> None:
    (row,) = isolated.report().document["costs_and_funding"]
    assert (row["spread"], row["slippage"]) == (0.0, 0.0)
    assert row["liquidation"] == pytest.approx(25.0)
    assert row["fees_paid"] == pytest.approx(5.0 + 4.5)
    assert row["gross"] == pytest.approx(-475.0)  # at the prices that it entered and was called at
    assert row["net"] == pytest.approx(-509.5)
    text = str(isolated.report())
    assert "liquidation" in text[text.index("Costs") : text.index("Closed trades")]
    assert "left: liquidated" in text


@pytest.fixture(scope="module")
def cross() -> Iterator[Run[Any]]:
    account = {"cash": "1000", "margin": "cross", "leverage": "10"}
    deep = [1_000.0] * CRASH + [600.0] * (BARS - CRASH)
    data = {"AAAUSDT": straight(START_MS, deep), "BBBUSDT": straight(START_MS, [1_000.0] * BARS)}
    config = configured(account=account, sizing={"mode": "fixed", "quantity": "4"})
    with backtest(Buys, data, config=config) as run:
        yield run


def test_on_cross_margin_all_positions_are_told(cross: Run[Any]) -> None:
    by_bar = liquidations(cross)
    fills = [row for row in cross.fills.to_dicts() if row["model"] == "liquidation"]
    assert len({row["instrument"] for row in fills}) == 2
    for rows in by_bar.values():
        for row in rows:
            assert {fill["order_id"] for fill in row["fills"]} == {row["order_id"] for row in fills}
            assert row["cost"] == pytest.approx(lost_by(cross))
            assert "as the account's maintenance ratio reached 100 %: taken over" in row["said"]
            assert all(f"long 4.000 {symbol}" in row["said"] for symbol in ("AAAUSDT", "BBBUSDT"))
    assert sum(map(len, by_bar.values())) == 2, "the close of either symbol says it"


def test_a_call_that_cancellations_end_says_so() -> None:
    account = {"cash": "10000", "margin": "cross", "leverage": "10"}
    config = configured(account=account)
    prices = [1_000.0] * CRASH + [510.0] * (BARS - CRASH)
    with backtest(Waits, {"AAAUSDT": straight(START_MS, prices)}, config=config) as run:
        (only,) = liquidations(run)[CRASH]
        assert only["said"] == (
            "The account's maintenance ratio reached 100 %: one resting order was canceled, which "
            "was enough."
        )
        assert not only["fills"]
        assert (only["cost"], only["canceled"]) == (0, 1)
        assert "liquidation" not in run.fills["model"].to_list()
