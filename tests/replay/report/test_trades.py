from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import present
from report_cases import BTC, CANDLES, cross, report_of

from tracepaper.replay.document.values import as_parts
from tracepaper.replay.report.charts import TRADES_MAX
from tracepaper.replay.report.document import report_document
from tracepaper.replay.report.report import Report


def test_a_trade_carries_the_decision_that_opened_it(cross_report: Report) -> None:
    decisions = cross_report.record.decisions
    opened = [present(trade.entry_sequence) for trade in cross_report.own_trades]
    at = np.searchsorted(decisions.sequence, opened)
    assert decisions.sequence[at].tolist() == opened
    closes_ms = decisions.open_time_ms[at] + 60_000
    assert closes_ms.tolist() == [trade.opened_ms for trade in cross_report.own_trades]
    assert {trade.side for trade in cross_report.own_trades} == {"LONG", "SHORT"}
    [part] = [part for part in as_parts(report_document(cross_report).parts)
              if part.get("key") == "trades"]  # fmt: skip
    assert [row[0]["step"] for row in part["rows"]] == opened[-TRADES_MAX:]


def test_gross_is_what_the_same_run_earns_where_trading_is_free(tmp_path: Path) -> None:
    free, dear = tmp_path / "free", tmp_path / "dear"
    free.mkdir()
    dear.mkdir()
    without = report_of(free, cross(fee="0"), "--data", BTC)
    costly = report_of(dear, cross(slippage_bp="2", spread_bp="3"), "--data", BTC)
    paid = costly.accounts[0].costs_and_funding
    none = without.accounts[0].costs_and_funding
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


SLIPPAGE = "execution.slippage_bp of 0 is assumed, for candles show none: set it."


@pytest.mark.parametrize(
    ("keys", "note"),
    [
        ({}, f"execution.spread_bp and {SLIPPAGE}"),
        ({"spread_bp": "3"}, SLIPPAGE),
        ({"spread_bp": "3", "slippage_bp": "2"}, ""),
    ],
)
def test_costs_that_candles_do_not_show_are_named_as_assumed(
    tmp_path: Path, keys: dict[str, Any], note: str
) -> None:
    report = report_of(tmp_path, cross(**keys), "--data", BTC)
    [part] = [part for part in as_parts(report_document(report).parts)
              if part.get("key") == "costs_and_funding"]  # fmt: skip
    notes = [text for text in part["notes"] if "assumed" in text]
    assert notes == ([note] if note else [])


@pytest.fixture(scope="module")
def with_and_without_funding(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Report]:
    """Return the reports of one run with funding and without it; both end without a position."""
    candles = CANDLES / "bybit_linear_BTCUSDT_1m_2022-12-13.csv.gz"
    funding = CANDLES / "bybit_linear_BTCUSDT_funding_2022-12-13.csv"
    config = cross(long_only=True, slippage_bp="2", spread_bp="3")
    data = ("--data", candles)
    return (
        report_of(tmp_path_factory.mktemp("with"), config, *data, "--funding", funding),
        report_of(tmp_path_factory.mktemp("without"), config, *data),
    )


def test_funding_lessens_the_net_and_not_the_gross(
    with_and_without_funding: tuple[Report, Report],
) -> None:
    paid, none = (report.accounts[0].costs_and_funding for report in with_and_without_funding)
    assert paid is not None
    assert none is not None
    assert paid.funding != 0
    assert paid.funding == pytest.approx(none.net - paid.net, abs=1e-6)
    assert paid.gross == pytest.approx(none.gross, abs=1e-6)


def test_costs_and_funding_of_the_trades_are_the_gross_less_the_net(
    with_and_without_funding: tuple[Report, Report],
) -> None:
    for report in with_and_without_funding:
        account = report.record.account
        paid = report.accounts[0].costs_and_funding
        assert paid is not None
        assert account.held["linear:BTCUSDT"][-1] == 0
        costs = sum(trade["costs"] for trade in account.trades)
        funding = sum(trade["funding"] for trade in account.trades)
        assert costs > sum(trade["fees"] for trade in account.trades) > 0
        assert costs + funding == pytest.approx(paid.gross - paid.net, abs=1e-6)


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
