"""Candles and orders through backtesting.py: ``with_backtesting.py TASK ANSWER``.

A market order of a bar is filled at the next bar's open, as it is here. Sizes are whole units.
"""

import json
import sys
import time
from pathlib import Path

import pandas as pd
from backtesting import Backtest, Strategy

task = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
ORDERS = {index: float(signed) for index, signed in task["orders"]}


class GivenOrders(Strategy):
    """Sends the orders that it was given."""

    def init(self) -> None:
        """Keep nothing beside what was given."""

    def next(self) -> None:
        """Send the bar's order, if there is one."""
        if signed := ORDERS.get(len(self.data) - 1):
            (self.buy if signed > 0 else self.sell)(size=round(abs(signed)))


frame = pd.DataFrame(
    [[float(price) for price in candle] for candle in task["candles"]],
    columns=["Open", "High", "Low", "Close"],
    index=pd.to_datetime(task["times_ms"], unit="ms"),
)
frame["Volume"] = 1.0
backtest = Backtest(
    frame,
    GivenOrders,
    cash=float(task["cash"]),
    commission=float(task["fee"]),
    margin=1.0,
    trade_on_close=False,
    hedging=False,
    exclusive_orders=False,
    finalize_trades=False,
)
began = time.process_time()
done = backtest.run()
cpu_s = time.process_time() - began
closed = done["_trades"]
answer = {
    "cpu_s": cpu_s,
    "equity": [float(value) for value in done["_equity_curve"]["Equity"]],
    "trades": [
        [int(trade.EntryBar), int(trade.ExitBar), float(trade.Size), float(trade.EntryPrice),
         float(trade.ExitPrice)]
        for trade in closed.itertuples()
    ],
}  # fmt: skip
Path(sys.argv[2]).write_text(json.dumps(answer), encoding="utf-8")
