"""The same events and orders through hftbacktest, where its rules agree with ours.

Fills must then be equal in time, price and quantity; a walk over levels, which hftbacktest reports
by its last price, is compared by its sum. Elsewhere the rules differ as docs/money.md, M77, says;
``DIFFERENT`` holds a case of each, with what either fills.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from other_backtesters import Peer
from queue_cases import BTC, T0, Say, ScriptResult, book, events_file, send, shows, trade

from tracepaper.daemon.broker.book_fills import QueueModel
from tracepaper.replay.backtest.book_feed import EventsSource
from tracepaper.strategies.api.context import OrderRequest, buy, sell
from tracepaper.strategies.types.market import Instrument

Fills = list[tuple[int, int, float, float]]  # number of the order, ms, last price, quantity

pytestmark = [pytest.mark.peers, pytest.mark.timeout(1_800)]

B = book(0, {99: 10, 98: 20, 97: 30}, {101: 5, 102: 7, 103: 9})
BID = send(10, buy(4, limit=99.0))
RISK, POWER = QueueModel.RISK_ADVERSE, QueueModel.POWER_PROB

EQUAL: dict[str, tuple[list[Say], QueueModel]] = {
    "a walk": ([B, send(10, buy(14)), shows(20)], RISK),
    "a sale": ([B, send(10, sell(15)), shows(20)], RISK),
    "trades ahead": (
        [B, BID, trade(20, "Sell", 99, 10), trade(30, "Sell", 99, 3), trade(40, "Sell", 99, 9)],
        RISK,
    ),
    "traded, then shrunk": (
        [B, BID, trade(20, "Sell", 99, 6), shows(21, bids={99: 4}), trade(30, "Sell", 99, 5)],
        RISK,
    ),
    "canceled behind": (
        [B, BID, shows(20, bids={99: 30}), shows(30, bids={99: 12}), trade(40, "Sell", 99, 11)],
        RISK,
    ),
    "shown less than was ahead": (
        [B, BID, shows(20, bids={99: 3}), trade(30, "Sell", 99, 5)], RISK,
    ),
    "a cancellation shared": (
        [B, BID, shows(20, bids={99: 20}), shows(30, bids={99: 12}), trade(40, "Sell", 99, 7)],
        POWER,
    ),
    "a trade that is no cancellation": (
        [B, BID, shows(20, bids={99: 20}), trade(30, "Sell", 99, 6), shows(31, bids={99: 14}),
         trade(40, "Sell", 99, 5)], POWER,
    ),
}  # fmt: skip

# Each: the script, ours and theirs.
DIFFERENT: dict[str, tuple[list[Say], Fills, Fills]] = {
    "a trade beyond the price": (
        [B, BID, trade(20, "Sell", 98, 3)], [(1, 20, 99, 3)], [(1, 20, 99, 4)],
    ),
    "a touch that reaches it": (
        [B, BID, shows(20, bids={99: 0}, asks={99: 3})], [(1, 20, 99, 3)], [(1, 20, 99, 4)],
    ),
    "two orders, one trade": (
        [B, BID, send(11, buy(4, limit=99.0)), trade(20, "Sell", 99, 13)],
        [(1, 20, 99, 3)], [(1, 20, 99, 3), (2, 20, 99, 3)],
    ),
    "depth that was taken": (
        [B, send(10, buy(5)), send(20, buy(5)), shows(30)],
        [(1, 10, 101, 5), (2, 20, 102, 5)], [(1, 10, 101, 5), (2, 20, 101, 5)],
    ),
    "a crossing limit": (
        [B, send(10, buy(14, limit=102.0)), shows(20)], [(1, 10, 102, 12)], [(1, 10, 102, 14)],
    ),
    "the rest of a market order": (
        [B, send(10, buy(25)), shows(20, asks={104: 9})],
        [(1, 10, 103, 21), (1, 20, 104, 4)], [(1, 10, 103, 21)],
    ),
    "a price beyond the known levels": (
        [B, send(10, buy(4, limit=96.0)), trade(20, "Sell", 96, 9)], [], [(1, 20, 96, 4)],
    ),
}  # fmt: skip


class PeerOrders:
    """Our fills of a script, and the task that gives a peer the same."""

    def __init__(
        self, path: Path, orders: Sequence[Say], model: QueueModel, *, item: Instrument = BTC,
        exponent: int = 1,
    ) -> None:  # fmt: skip
        source = EventsSource(path)
        ours = ScriptResult(source, orders, item=item, model=model, exponent=exponent)
        numbers = {key: number for number, key in enumerate(sorted(ours.orders, key=_born), 1)}
        tick, lot = 10.0**-item.price_decimals, 10.0**-item.quantity_decimals
        prices: dict[tuple[int, int], tuple[float, float]] = {}
        for fill in ours.fills:
            at = numbers[fill.order_id], fill.filled_ms - T0
            quantity = prices.get(at, (0.0, 0.0))[1] + fill.quantity * lot
            prices[at] = (fill.price * tick, quantity)
        self.ours: Fills = sorted(
            (*at, _round(price), _round(size)) for at, (price, size) in prices.items()
        )
        sent = [
            [T0 + order.at, request.side.value, request.price, request.quantity]
            for order in orders
            if order.what == "send"
            for request in order.content
            if isinstance(request, OrderRequest)
        ]
        rows = list(_events(source, item, tick, lot))
        self.task = {
            "events": rows, "orders": sent, "model": model.value, "exponent": exponent,
            "latency_ms": 0, "tick": tick, "lot": lot, "until_ms": rows[-1][0] - 500,
        }  # fmt: skip


def theirs_of(peer: Peer, besides: Sequence[PeerOrders]) -> list[Fills]:
    """Return the peer's fills of each, by order and millisecond."""
    answer = peer("hftbacktest", {"tasks": [compared.task for compared in besides]})
    return [
        sorted((number, at - T0, _round(price), _round(size)) for number, at, price, size in fills)
        for fills in answer["fills"]
    ]


def _round(number: float) -> float:
    return round(number, 6)


def _born(order_id: str) -> tuple[int, int]:
    sequence, _, ordinal = order_id.partition("-")
    return int(sequence), int(ordinal)


def _events(source: EventsSource, item: Instrument, tick: float, lot: float) -> Any:
    newest_ms = 0
    for frame in source.frames(item):
        newest_ms = max(newest_ms, frame.at_ms)
        for side, levels in zip(("BUY", "SELL"), frame.book or ((), ()), strict=True):
            if frame.is_snapshot:
                yield newest_ms, "clear", side, 0, 0
            for price, size in levels:
                yield newest_ms, "level", side, price * tick, size * lot
        for taker, price, size in frame.trades:
            yield newest_ms, "trade", taker.value, price * tick, size * lot
    yield newest_ms + 1_000, "level", "BUY", tick, lot  # far away: time goes on until then


def test_where_the_rules_agree_fills_are_equal_and_else_as_the_page_says(
    peer: Peer, tmp_path: Path
) -> None:
    cases = [(name, *of) for name, of in EQUAL.items()]
    cases += [(name, of[0], RISK) for name, of in DIFFERENT.items()]
    besides = []
    for number, (_, script, model) in enumerate(cases):
        whole = [*script, shows(100)]
        besides.append(PeerOrders(events_file(tmp_path / f"{number}.events", whole), whole, model))
    for (name, *_), compared, theirs in zip(cases, besides, theirs_of(peer, besides), strict=True):
        if name in EQUAL:
            assert compared.ours == theirs, name
            assert theirs, name
        else:
            assert (compared.ours, theirs) == DIFFERENT[name][1:], name
