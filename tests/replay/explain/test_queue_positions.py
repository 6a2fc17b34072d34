"""Queue positions in explain equal those of a queue recomputed from the file alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest
from scenarios import SCENARIOS
from seeded_events import SeededMarket, seeded_market

from tracepaper import Action, Cancel, Orders, Signal, Strategy, buy, open_run, sell
from tracepaper.replay.api import backtest
from tracepaper.replay.archive.events import EventsFile
from tracepaper.replay.report.listed_orders import queue_positions
from tracepaper.replay.run import Run
from tracepaper.storage.database.reader import Reader
from tracepaper.storage.database.run_views import RunViews
from tracepaper.strategies.units import to_tick

MODELS = ("RiskAdverseQueueModel", "PowerProbQueueModel")


class Quotes(Strategy):
    """Quotes near and far at every third close, and cancels the rest at the next."""

    sees_account = True
    warmup = 1

    def decide(self, context: Any) -> Signal | Orders:
        place = context.time // 60_000 % 3
        if place == 1:
            return Orders((Cancel(""),), "withdrawn")
        if place:
            return Signal(Action.HOLD, "they rest")
        requests = []
        for number, away in enumerate((0.2, 0.5, 0.8, 3.0)):
            low, high = (to_tick(context.close + way * away, context.instrument) for way in (-1, 1))
            requests += [buy(4, limit=low, tag=f"b{number}"), sell(4, limit=high, tag=f"s{number}")]
        return Orders(tuple(requests), "quotes")


def configured(model: str, **execution: Any) -> dict[str, Any]:
    given = {"model": "book", "queue_model": model, "queue_exponent": 2, **execution}
    account = {"cash": "100000000"}
    return {"market": {"category": "linear"}, "account": account, "execution": given}


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> SeededMarket:
    return seeded_market(tmp_path_factory.mktemp("market"), minutes=120)


@pytest.fixture(scope="module", params=MODELS)
def run(
    request: pytest.FixtureRequest, market: SeededMarket, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Run[Any]]:
    path = tmp_path_factory.mktemp("queues") / "run.db"
    config = configured(request.param, latency_ms=2_750)  # frames come while it cancels
    with backtest(Quotes, market.candles, config=config, events=market.events, db=path) as run:
        yield run


class ReferenceQueue:
    """Independent code: one limit order in its queue, by the frames of the file."""

    def __init__(
        self, order: dict[str, Any], model: str, books: tuple[dict[Decimal, Decimal], ...]
    ) -> None:
        self.order, self.model, self.books = order, model, books
        self.side = 0 if order["side"] == "BUY" else 1
        self.price = Decimal(order["limit_price_text"])
        self.joined: Decimal | None = None
        self.ahead: Decimal | None = None
        self.level = self.traded = Decimal(0)
        self.rests = False

    def trade(self, taker: str, price: Decimal, size: Decimal) -> None:
        against = taker == ("Sell" if self.side == 0 else "Buy")
        if self.ahead is not None and against and price == self.price:
            self.ahead = max(self.ahead - size, Decimal(0))
            self.traded += size

    def show(self, changed: set[tuple[int, Decimal]]) -> None:
        # A level that leaves the view takes nothing from its queue.
        if (self.side, self.price) in changed and not self._is_beyond():
            self._set(self.books[self.side].get(self.price, Decimal(0)))

    def _set(self, quantity: Decimal) -> None:
        before, self.level = self.level, quantity
        if self.ahead is None:
            self.ahead = quantity
        elif self.model == MODELS[1] and (gone := before - quantity - self.traded) > 0 < self.ahead:
            front, back = self.ahead, max(before - self.ahead, Decimal(0))
            share = int(gone * 1000 * front**2 // (front**2 + back**2)) / Decimal(1000)
            share += max(gone - share - back, Decimal(0))
            self.ahead = max(self.ahead - share, Decimal(0))
        self.ahead, self.traded = min(self.ahead, quantity), Decimal(0)

    def join(self) -> None:
        quantity = self.books[self.side].get(self.price, Decimal(0))
        self.rests, self.level = True, quantity
        self.ahead = self.joined = None if self._is_beyond() else quantity

    def _is_beyond(self) -> bool:
        book = self.books[self.side]
        return self.price < min(book) if self.side == 0 else self.price > max(book)


def set_levels(
    data: dict[str, Any], books: tuple[dict[Decimal, Decimal], ...]
) -> set[tuple[int, Decimal]]:
    """Set the levels of a frame in *books*; return them by side and price."""
    changed = set()
    for side, name in enumerate(("b", "a")):
        for price, size in data[name]:
            changed.add((side, Decimal(price)))
            if Decimal(size):
                books[side][Decimal(price)] = Decimal(size)
            else:
                books[side].pop(Decimal(price), None)
    return changed


def queues_of(
    orders: list[dict[str, Any]], market: SeededMarket, model: str
) -> dict[str, ReferenceQueue]:
    """Return the queue of each of *orders* at its end, from one reading of the file."""
    books: tuple[dict[Decimal, Decimal], ...] = ({}, {})
    queues = [ReferenceQueue(order, model, books) for order in orders]
    for line in EventsFile(market.events).lines():
        frame = json.loads(line.data)
        for queue in queues:
            if frame["ts"] > queue.order["eligible_ms"] and not queue.rests:
                queue.join()
        alive = [
            queue for queue in queues if queue.rests and frame["ts"] <= queue.order["until_ms"]
        ]
        if "orderbook" not in frame["topic"]:
            for trade in frame["data"]:
                for queue in alive:
                    queue.trade(trade["S"], Decimal(trade["p"]), Decimal(trade["v"]))
            continue
        changed = set_levels(frame["data"], books)
        for queue in alive:
            queue.show(changed)
    return {queue.order["order_id"]: queue for queue in queues}


def explained(run: Run[Any]) -> dict[str, dict[str, Any]]:
    sequences = [row["sequence"] for row in run.decisions.to_dicts() if row["action"] == "ORDERS"]
    queues = [run.explain(sequence)["queues"] for sequence in sequences]
    return {order_id: place for each in queues for order_id, place in each.items()}


def test_what_stood_ahead_is_what_the_file_says(run: Run[Any], market: SeededMarket) -> None:
    model = json.loads(run.row["config"])["execution"]["queue_model"]
    rows = {row["order_id"]: row for row in open_rows(run)}
    ranks = explained(run)
    canceled = [row for row in rows.values() if row["status"] == "CANCELED"]
    assert len(canceled) > 10
    moved = unknown = 0
    for order_id, queue in queues_of(canceled, market, model).items():
        row = ranks.get(order_id, {"joined": None, "ahead": None})
        assert (row["joined"] is None) is (queue.joined is None), order_id
        if queue.joined is not None:
            assert Decimal(row["joined"]) == queue.joined
        assert (row["ahead"] is None) is (queue.ahead is None), order_id
        if queue.ahead is not None:
            assert Decimal(row["ahead"]) == queue.ahead
            moved += queue.joined != queue.ahead
        unknown += queue.joined is None
    assert moved > 3
    assert unknown > 0
    filled = [ranks[key] for key, row in rows.items() if row["status"] == "FILLED" and key in ranks]
    assert any(place["joined"] not in {None, "0"} for place in filled)


def open_rows(backtest_run: Run[Any]) -> list[dict[str, Any]]:
    run = open_run(backtest_run.run_id, backtest_run.database, exact=True, frames="polars")
    return list(run.orders.to_dicts())


def test_a_list_that_only_cancels_names_what_it_withdrew(run: Run[Any]) -> None:
    rows = [row for row in run.decisions.to_dicts() if row["action"] == "ORDERS"]
    withdrawn = 0
    for sent, ended in pairwise(rows):
        if (sent["reason"], ended["reason"]) == ("quotes", "withdrawn"):
            orders = run.explain(ended["sequence"])["orders"]
            assert {order["order_id"].split("-")[0] for order in orders} <= {str(sent["sequence"])}
            withdrawn += len(orders)
    canceled = sum(row["status"] == "CANCELED" for row in open_rows(run))
    assert withdrawn >= canceled > 10


def test_limits_of_both_sides_have_a_place_in_hedge_mode() -> None:
    with Reader.open(SCENARIOS["hedge mode by a book"].recorded()) as reader:
        run_id = reader.find("last")
        orders = RunViews(reader.connection, run_id).rows("v_orders")
        execution = json.loads(reader.run(run_id).config)["execution"]
        positions = queue_positions(reader, run_id, orders, execution)
    placed = [order for order in orders if order["order_id"] in positions]
    assert {order["position_side"] for order in placed} == {"LONG", "SHORT"}
