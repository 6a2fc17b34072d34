"""Events of a book and orders through hftbacktest: ``with_hftbacktest.py TASK ANSWER``.

Feed and order latency are constant, the fills those of its ``PartialFillExchange``. What an order
was filled by within one millisecond is one row.
"""

import json
import sys
from bisect import bisect_right
from pathlib import Path
from typing import Any

import numpy as np
from hftbacktest import (
    BUY_EVENT,
    DEPTH_CLEAR_EVENT,
    DEPTH_EVENT,
    EXCH_EVENT,
    GTC,
    LIMIT,
    LOCAL_EVENT,
    MARKET,
    SELL_EVENT,
    TRADE_EVENT,
    BacktestAsset,
    HashMapMarketDepthBacktest,
)
from hftbacktest.types import event_dtype

tasks = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["tasks"]
MS = 1_000_000
EVENTS = {"clear": DEPTH_CLEAR_EVENT, "level": DEPTH_EVENT, "trade": TRADE_EVENT}


def asset(task: dict[str, Any]) -> BacktestAsset:
    """Make the asset of *task*, with the queue model that was asked for."""
    rows = []
    for at_ms, kind, side, price, size in task["events"]:
        flags = EVENTS[kind] | EXCH_EVENT | LOCAL_EVENT
        flags |= BUY_EVENT if side == "BUY" else SELL_EVENT
        rows.append((flags, at_ms * MS, at_ms * MS, float(price), float(size), 0, 0, 0.0))
    model = BacktestAsset().data(np.array(rows, dtype=event_dtype)).linear_asset(1.0)
    model = model.constant_order_latency(task["latency_ms"] * MS, 0)
    if task["model"] == "RiskAdverseQueueModel":
        model = model.risk_adverse_queue_model()
    else:
        model = model.power_prob_queue_model(float(task["exponent"]))
    model = model.partial_fill_exchange().trading_value_fee_model(0.0, 0.0)
    return model.tick_size(task["tick"]).lot_size(task["lot"])


def fills_of(task: dict[str, Any]) -> list[list[float]]:
    """Send the orders of *task* at their times, and note by what each is filled when."""
    hbt = HashMapMarketDepthBacktest([asset(task)])
    orders, fills = task["orders"], []
    left = {number: float(order[3]) for number, order in enumerate(orders, 1)}
    times = sorted({row[0] for row in task["events"]})

    def until(at_ms: int) -> None:
        while (now_ns := hbt.current_timestamp) < at_ms * MS:
            place = bisect_right(times, now_ns // MS)  # nothing happens before the next of them
            next_ms = times[place] if place < len(times) else at_ms
            if hbt.elapse(min(next_ms, at_ms) * MS - now_ns) != 0:
                return
            held = hbt.orders(0)
            for number, before in left.items():
                order = held.get(number)
                if order is not None and order.leaves_qty < before - task["lot"] / 2:
                    at = int(order.exch_timestamp // MS)
                    fills.append([number, at, order.exec_price, before - order.leaves_qty])
                    left[number] = order.leaves_qty

    hbt.elapse(0)
    for number, (at_ms, side, price, quantity) in enumerate(orders, 1):
        until(at_ms)
        kind = MARKET if price is None else LIMIT
        send = hbt.submit_buy_order if side == "BUY" else hbt.submit_sell_order
        send(0, number, price or 0.0, quantity, GTC, kind, False)
    until(task["until_ms"])
    hbt.close()
    return fills


answer = {"fills": [fills_of(task) for task in tasks]}
Path(sys.argv[2]).write_text(json.dumps(answer), encoding="utf-8")
