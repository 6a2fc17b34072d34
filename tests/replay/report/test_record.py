from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from report_cases import BTC, SOL

from tracepaper.replay.archive import read_candles
from tracepaper.replay.report.record import read_record
from tracepaper.replay.report.report import Report
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.errors import DataInvalid


def test_the_curve_has_the_start_and_one_value_a_close(cross_report: Report) -> None:
    record = cross_report.record
    candles = read_candles(BTC)
    assert record.times_ms.tolist() == (candles.open_time_ms + 60_000).tolist()
    assert record.account.equity.size == len(candles) + 1
    assert record.account.equity[0] == 1_000_000


def test_prices_are_those_of_the_candles(cross_report: Report) -> None:
    bars, candles = cross_report.record.bars["linear:BTCUSDT"], read_candles(BTC)
    scale = 10.0**candles.price_decimals
    assert bars.open.tolist() == (candles.open / scale).tolist()
    assert bars.close.tolist() == (candles.close / scale).tolist()


def test_several_instruments_share_one_curve_that_has_the_last_word_of_each_minute(
    pair_report: Report,
) -> None:
    record = pair_report.record
    assert sorted(record.bars) == ["linear:BTCUSDT", "linear:SOLUSDT"]
    with sqlite3.connect(record.database) as db:
        rows = db.execute(
            "SELECT open_time_ms + 60000, equity FROM v_equity JOIN v_bars USING (sequence) "
            "ORDER BY sequence"
        ).fetchall()
    last = dict(rows)  # later rows of a minute replace earlier ones
    assert record.times_ms.tolist() == sorted(last)
    assert record.account.equity[1:].tolist() == [last[time] for time in sorted(last)]
    assert len(read_candles(SOL)) == record.bars["linear:SOLUSDT"].open.size


def test_positions_are_those_after_each_bar(pair_report: Report) -> None:
    record = pair_report.record
    for name, held in record.account.held.items():
        moved = sum(
            fill["quantity"] if fill["side"] == "BUY" else -fill["quantity"]
            for fill in record.account.fills
            if fill["instrument"] == name
        )
        assert held[-1] == pytest.approx(moved)
        assert set(np.unique(held)) <= {-1.0, 0.0, 1.0}


def test_a_decision_without_its_bar_is_refused(pair_report: Report, tmp_path: Path) -> None:
    path = Path(shutil.copy(pair_report.record.database, tmp_path / "forged.db"))
    with sqlite3.connect(path) as db:
        db.execute(
            "UPDATE steps SET ignored = 1 WHERE sequence = "
            "(SELECT max(sequence) FROM steps WHERE open > 0)"
        )
    with Reader.open(path) as reader, pytest.raises(DataInvalid, match="without their bars"):
        read_record(reader, path, reader.find("last"))
