"""A newcomer's own frame of pandas, and a LightGBM model of own features.

The facts in the sentences that the user sees are compared with the record by SQL.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest
from newcomer import CASH, TerminalInProcess, account_of, rows

import tracepaper

MINE = '''\
import lightgbm
import numpy as np

import tracepaper as tp

BACK = (1, 5, 15, 60)


@tp.feature_row(lookback=61)
def moves(bars):
    return [np.log(bars.close[-1] / bars.close[-1 - back]) for back in BACK]


class Mine(tp.Model):
    """Forecasts the return over 30 bars from four past returns."""

    features = "mine:moves"
    trained_until = "2025-05-28T00:00"

    def __init__(self, options, files):
        self.trees = lightgbm.Booster(model_str=files["mine.txt"].read_text())

    def predict_rows(self, rows):
        return {"mean_return": self.trees.predict(rows, num_threads=1)}


def fit(close):
    """Fit the trees to closes, oldest first, and save them."""
    ends = np.arange(60, len(close) - 30)
    rows = np.log(close[ends][:, None] / np.stack([close[ends - back] for back in BACK], axis=1))
    settings = {"num_leaves": 7, "seed": 1, "num_threads": 1, "verbosity": -1}
    data = lightgbm.Dataset(rows, np.log(close[ends + 30] / close[ends]))
    lightgbm.train(settings, data, 20).save_model("mine.txt")
'''
BEGIN, END = "2025-05-28T00:00", "2025-05-28T12:00"
BARS = 720


def test_own_trees_trade_an_own_frame_and_each_sentence_agrees_with_the_record(
    say: TerminalInProcess, tmp_path: Path
) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("lightgbm")
    say("data samples")
    (tmp_path / "mine.py").write_text(MINE)
    mine = import_module("mine")

    # A frame as vendors of candles return it: times are the index, headings are capital.
    frame = pandas.read_csv("samples/binance_um_BTCUSDT_1m_2025-05-26.csv.gz")
    frame.index = pandas.to_datetime(frame.pop("open_time"), unit="ms", utc=True)
    frame.index.name = "Date"
    frame.columns = [name.capitalize() for name in frame.columns]
    mine.fit(frame[:BEGIN].Close.to_numpy())

    record = tmp_path / "mine.db"
    model = {"class": mine.Mine, "files": ["mine.txt"]}
    with tracepaper.backtest(
        "attention", {"BTCUSDT": frame}, config={"model": model}, start=BEGIN, end=END, db=record
    ) as run:
        sys.stdout.write(f"{run}\n{run.explain()}\n")
        trades = run.trades
        printed = " ".join(str(run).split())
        explained = " ".join(str(run.explain()).split())
        assert run.verify().passes

    # Asked, refused, filled, size and profit, from the record alone.
    ((decided, allowed, by_edge),) = rows(
        record, "SELECT count(*), sum(allowed), sum(refused_by = 'edge') FROM v_decisions"
    )
    ((closed,),) = rows(record, "SELECT count(*) FROM v_trades")
    account = account_of(record)
    assert (decided, allowed + by_edge) == (BARS, BARS)
    assert f"{decided} bars, 0.5 days, {closed} closed trades" in printed
    assert len(trades) == closed > 0
    assert isinstance(trades, pandas.DataFrame)
    assert f"return {100 * (account.equity / CASH - 1):+.2f} %" in printed
    assert f"most refused: {by_edge} of {decided} bars" in printed
    assert 9_900 < account.largest < 20_200  # a reversal trades twice the 10,000 of a position

    # The last decision, in words: its verdict, its measure and its forecast.
    query = "SELECT refused_by, measure, threshold, mean_return FROM v_decisions JOIN v_gates"
    ((refused_by, measure, threshold, mean),) = rows(
        record,
        f"{query} USING (run_id, sequence) WHERE gate = 'edge' ORDER BY sequence DESC LIMIT 1",
    )
    assert (refused_by, measure < threshold) == ("edge", True)
    assert "HOLD (refused by edge)" in explained
    assert f"{1e4 * mean:+.1f} bp" in explained
    assert "UNKNOWN" not in explained  # it measures no regime
    assert explained.startswith(say(f"explain last --db {record.name}")[:200])

    assert f"{BARS} of {BARS} decisions follow" in say(f"verify last --db {record.name}")
