from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from builders import instrument
from hypothesis import given
from hypothesis import strategies as st
from report_cases import BTC, CANDLES, cross, report_of

from tracepaper.replay.report.record import AccountRecord
from tracepaper.replay.report.report import Report
from tracepaper.replay.report.trades import ClosedTrade, TradeBook, trades
from tracepaper.storage.database.run_views import Row
from tracepaper.strategies.api.strategy import CORE_GATES
from tracepaper.strategies.gates.gate import GATES
from tracepaper.strategies.types.market import Category


def test_closed_trades_add_up_to_the_account(cross_report: Report) -> None:
    record = cross_report.record
    closed = cross_report.own_trades
    assert len(closed) > 50
    last = record.account.fills[-1]
    still_open = -last["fee"] / 2 + record.account.unrealized_pnl  # the last fill turned a position
    earned = record.account.equity[-1] - record.account.equity[0]
    assert sum(trade.profit for trade in closed) + still_open == pytest.approx(earned, abs=1e-6)


def test_a_trade_carries_its_reasons_and_the_decision_that_opened_it(cross_report: Report) -> None:
    trade = cross_report.own_trades[0]
    explained = cross_report.explained[0]
    assert explained.trade == trade
    assert explained.decision["sequence"] == trade.entry_sequence
    assert explained.decision["reason"] == trade.entry_reason
    assert explained.decision["open_time_ms"] + 60_000 == trade.entry_ms
    of_this_run = {gate for gate in CORE_GATES if not GATES[gate].of_quotes}
    assert {gate["gate"] for gate in explained.gates} == of_this_run
    assert [gate["gate"] for gate in explained.gates][:4] == ["operator", "warm", "late", "gap"]
    assert {trade.side for trade in cross_report.own_trades} == {"LONG", "SHORT"}


def test_gross_is_what_the_same_run_earns_where_trading_is_free(tmp_path: Path) -> None:
    free, dear = tmp_path / "free", tmp_path / "dear"
    free.mkdir()
    dear.mkdir()
    without = report_of(free, cross(fee="0"), "--data", BTC)
    costly = report_of(dear, cross(slippage_bp="2", spread_bp="3"), "--data", BTC)
    paid, none = costly.accounts[0].costs, without.accounts[0].costs
    assert paid is not None
    assert none is not None
    assert paid.gross == pytest.approx(none.net, abs=1e-6)
    assert none.gross == pytest.approx(none.net)
    # Slippage is 2 bp a side and half of the spread 1.5 bp, rounded together to ticks of 0.1.
    notional = sum(fill["notional"] for fill in costly.record.account.fills)
    ticks = 0.1 * len(costly.record.account.fills)
    assert paid.slippage / paid.spread == pytest.approx(2 / 1.5)
    assert 3.5e-4 * notional < paid.slippage + paid.spread + ticks
    assert paid.slippage + paid.spread < 3.5e-4 * notional * 1.001 + ticks
    assert paid.fee == pytest.approx(0.00055 * notional, rel=1e-6)
    assert paid.net == pytest.approx(paid.gross - paid.fee - paid.spread - paid.slippage)


def test_funding_is_a_cost_of_its_own(tmp_path: Path) -> None:
    candles = CANDLES / "bybit_linear_BTCUSDT_1m_2022-12-13.csv.gz"
    funding = CANDLES / "bybit_linear_BTCUSDT_funding_2022-12-13.csv"
    for name in ("with", "without"):
        (tmp_path / name).mkdir()
    config = cross(long_only=True)
    paying = report_of(tmp_path / "with", config, "--data", candles, "--funding", funding)
    plain = report_of(tmp_path / "without", config, "--data", candles)
    costs, none = paying.accounts[0].costs, plain.accounts[0].costs
    assert costs is not None
    assert none is not None
    assert costs.funding != 0
    assert costs.funding == pytest.approx(none.net - costs.net, abs=1e-6)
    assert costs.gross == pytest.approx(none.gross, abs=1e-6)


def test_spot_buys_pay_in_base_and_their_trades_close(tmp_path: Path) -> None:
    candles = CANDLES / "binance_spot_BTCUSDT_1h_2017-2018.csv.gz"
    config = cross(long_only=True, category="spot", interval="60")
    report = report_of(tmp_path, config, "--data", candles)
    record = report.record
    sales = [fill for fill in record.account.fills if fill["side"] == "SELL"]
    assert len(report.own_trades) == len(sales) > 20
    assert all(fill["fee"] == 0 < fill["fee_base"] for fill in record.account.fills[:1])
    held = record.account.held["spot:BTCUSDT"][-1] * record.bars["spot:BTCUSDT"].close[-1]
    still_open = held - record.account.fills[-1]["notional"]
    earned = record.account.equity[-1] - record.account.equity[0] - still_open
    assert sum(trade.profit for trade in report.own_trades) == pytest.approx(earned, abs=0.1)


def fill(order_id: str, side: str, quantity: str, price: str, fee: str, fee_base: str) -> Row:
    """Return a row of ``v_fills`` as far as a trade reads it."""
    notional = str(Decimal(quantity) * Decimal(price))
    texts = {"quantity": quantity, "price": price, "notional": notional, "fee": fee}
    return {
        "order_id": order_id,
        "sequence": int(order_id.partition("-")[0]),
        "instrument": "spot:BTCUSDT",
        "side": side,
        "reason": f"why {order_id}",
        "model": "next_open",
        "filled_ms": int(order_id.partition("-")[0]) * 60_000,
        "fee_base_text": fee_base,
        **{f"{name}_text": text for name, text in texts.items()},
        **{name: float(text) for name, text in texts.items()},
    }


def test_what_a_fee_leaves_below_a_step_does_not_keep_a_trade_open() -> None:
    coarse = instrument(category=Category.SPOT, quantity_decimals=4, quantity_step=10)
    ledger = AccountRecord(
        "spot",
        np.array([1_000.0, 1_010.0]),
        {},
        (
            fill("3-0", "BUY", "1.0000", "100", "0", "0.0005"),
            fill("9-0", "SELL", "0.9990", "120", "0.1", "0"),
            fill("11-0", "BUY", "1.0000", "110", "0", "0.0005"),
        ),
        *(0.0, 0.0, 0.0, 0.0),
    )
    (trade,) = trades([ledger], {"spot:BTCUSDT": coarse})["spot"]
    assert trade.profit == pytest.approx(0.999 * 120 - 0.1 - 100)
    assert (trade.side, trade.entry_sequence, trade.exit_sequence) == ("LONG", 3, 9)
    assert (trade.entry_reason, trade.exit_reason) == ("why 3-0", "why 9-0")


# ---------------------------------------------------------------- one position


fills = st.lists(
    st.tuples(st.integers(-5, 5).filter(bool), st.integers(1, 10**6), st.integers(0, 10**3)),
    max_size=40,
)
Moves = list[tuple[int, int, int]]


def closed(moves: Moves) -> list[ClosedTrade]:
    """Return the trades that *moves* close: signed quantity, and notional and fee in 10⁻⁸."""
    book, trades = TradeBook(instrument(quantity_decimals=0, quantity_step=1)), []
    for place, (quantity, notional, fee) in enumerate(moves):
        side, price = "BUY" if quantity > 0 else "SELL", notional / abs(quantity)
        row = fill(f"{place}-0", side, str(abs(quantity)), "1", "0", "0") | {"price": price}
        money = {"notional_text": f"{notional}e-8", "fee_text": f"{fee}e-8"}
        if (trade := book.fill(row | money)) is not None:
            trades.append(trade)
    return trades


def test_a_fill_that_turns_the_position_is_shared_by_quantity_and_what_is_open_is_none() -> None:
    first, second = closed([(1, 100, 1), (-3, 330, 3), (2, 210, 2), (1, 100, 0)])
    assert (first.side, first.quantity, first.exit_price) == ("LONG", 1, 110)
    assert first.profit * 1e8 == pytest.approx(110 - 100 - 2)
    assert (second.side, second.quantity, second.entry_price) == ("SHORT", 2, 110)
    assert second.profit * 1e8 == pytest.approx(220 - 210 - 4)


@given(fills)
def test_profits_of_closed_trades_are_the_cash_that_moved(rows: Moves) -> None:
    """Close what is left open; then all profits are all cash, and nothing is rounded away."""
    left = sum(quantity for quantity, _, _ in rows)
    if left:
        rows = [*rows, (-left, 777, 7)]
    trips = closed(rows)
    cash = sum((-1 if quantity > 0 else 1) * notional - fee for quantity, notional, fee in rows)
    assert sum(trip.profit for trip in trips) * 1e8 == pytest.approx(cash, abs=1e-3)
    assert sum(trip.fees for trip in trips) * 1e8 == pytest.approx(sum(fee for *_, fee in rows))
