"""Returns after maker fills: prices some bars later, for and against, with their error."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tracepaper.replay.report.figures import tables
from tracepaper.replay.report.metrics import standard_error
from tracepaper.replay.report.record import RunRecord
from tracepaper.replay.report.report import Report
from tracepaper.replay.report.trades import markouts
from tracepaper.strategies.types.decisions import Liquidity
from tracepaper.strategies.types.market import Side

KEY = "linear:BTCUSDT"


def with_fills(record: RunRecord, *fills: tuple[int, Side, float]) -> RunRecord:
    """Return *record* with only maker fills, each given by the bar's index, side and price."""
    opens = record.bars[KEY].open_time_ms
    rows = tuple(
        {
            "instrument": KEY, "liquidity": Liquidity.MAKER, "side": side, "price": price,
            "filled_ms": int(opens[at]) + 1_000,
        }
        for at, side, price in fills
    )  # fmt: skip
    return replace(record, account=replace(record.account, fills=rows))


def test_the_close_so_many_bars_later_is_compared_with_the_price(cross_report: Report) -> None:
    record, bars = cross_report.record, cross_report.record.bars[KEY]
    last = bars.close.size - 1
    run_record = with_fills(
        record, (10, Side.BUY, 100_000.0), (10, Side.SELL, 100_000.0), (last - 5, Side.BUY, 1.0)
    )
    first, five, thirty = markouts(run_record)
    assert [row["after"] for row in (first, five, thirty)] == ["1 bar", "5 bars", "30 bars"]
    assert [row["count"] for row in (first, five, thirty)] == [3, 3, 2]
    mean = thirty["mean"]
    assert isinstance(mean, tuple)
    assert mean[0] == pytest.approx(0)
    assert mean[1] is None  # they are of one day
    assert thirty["against"] == 0.5
    moved = abs(bars.close[40] / 100_000.0 - 1)
    assert thirty["mean_for"] == pytest.approx(moved)
    assert thirty["mean_against"] == pytest.approx(-moved)


def test_the_error_counts_days_and_not_fills() -> None:
    def error(days: list[int]) -> float | None:
        return standard_error(np.array([0.01, 0.01, -0.01, -0.01]), np.array(days))

    assert error([1, 1, 6, 6]) is None  # of fewer than ten days nothing tells
    assert error([1, 3, 8, 10]) == pytest.approx(0.01)
    assert error([1, 6, 11, 20]) == pytest.approx(0.01 / np.sqrt(3))


def test_the_table_is_part_of_the_report(cross_report: Report) -> None:
    report = replace(
        cross_report, record=with_fills(cross_report.record, (10, Side.BUY, 100_000.0))
    )
    rows = tables(report)["makers"].documents()
    assert [row["count"] for row in rows] == [1, 1, 1]
