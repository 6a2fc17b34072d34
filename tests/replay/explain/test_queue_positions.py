"""How much stood ahead of a limit, by explain, against a queue kept from the file alone."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from seeded_events import SeededMarket, seeded_market

from tracepaper import Action, Orders, Signal, Strategy, buy, open_run, sell
from tracepaper.daemon.cli import invoke
from tracepaper.replay.api import Backtest, backtest
from tracepaper.replay.archive.book_events import EventsFile
from tracepaper.storage.record.rows import step_key
from tracepaper.strategies.units import to_tick

MODELS = ("RiskAdverseQueueModel", "PowerProbQueueModel")


class Quotes(Strategy):
    """Quotes near and far at every other close, and cancels what is left at the next."""

    sees_account = True
    warmup = 1

    def decide(self, context: Any) -> Signal | Orders:
        if context.time // 60_000 % 3:
            return Signal(Action.HOLD, "they rest")
        asked = []
        for number, away in enumerate((0.2, 0.6, 3.0)):
            low, high = (to_tick(context.close + way * away, context.instrument) for way in (-1, 1))
            asked += [buy(1, limit=low, tag=f"b{number}"), sell(1, limit=high, tag=f"s{number}")]
        return Orders(tuple(asked), "quotes")


def configured(model: str, **execution: Any) -> dict[str, Any]:
    given = {"model": "book", "queue_model": model, "queue_exponent": 2, **execution}
    account = {"cash": "100000000"}
    return {"market": {"category": "linear"}, "account": account, "execution": given}


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> SeededMarket:
    return seeded_market(tmp_path_factory.mktemp("market"), minutes=40)


@pytest.fixture(scope="module", params=MODELS)
def made(
    request: pytest.FixtureRequest, market: SeededMarket, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Backtest]:
    path = tmp_path_factory.mktemp("queues") / "run.db"
    config = configured(request.param)
    with backtest(Quotes, market.candles, config=config, events=market.events, db=path) as run:
        yield run


class OwnQueue:
    """Independent code: one limit in its queue, by the frames of the file."""

    def __init__(self, order: dict[str, Any], model: str) -> None:
        self.order, self.model = order, model
        self.side = 0 if order["side"] == "BUY" else 1
        self.price = Decimal(order["limit_price_text"])
        self.books: tuple[dict[Decimal, Decimal], ...] = ({}, {})
        self.joined: Decimal | None = None
        self.ahead: Decimal | None = None
        self.level = self.traded = Decimal(0)
        self.rests = False

    def read(self, line: Any) -> None:
        frame = json.loads(line.data)
        if "orderbook" not in frame["topic"]:
            for one in frame["data"]:
                against = one["S"] == ("Sell" if self.side == 0 else "Buy")
                if self.ahead is not None and against and Decimal(one["p"]) == self.price:
                    self.ahead = max(self.ahead - Decimal(one["v"]), Decimal(0))
                    self.traded += Decimal(one["v"])
            return
        changed = False
        for book, name in zip(self.books, ("b", "a"), strict=True):
            for price, size in frame["data"][name]:
                changed |= book is self.books[self.side] and Decimal(price) == self.price
                if Decimal(size):
                    book[Decimal(price)] = Decimal(size)
                else:
                    book.pop(Decimal(price), None)
        # A level that leaves the view takes nothing from its queue.
        if self.rests and changed and not self._is_beyond():
            self._set(self.books[self.side].get(self.price, Decimal(0)))

    def _set(self, shown: Decimal) -> None:
        before, self.level = self.level, shown
        if self.ahead is None:
            self.ahead = shown
        elif self.model == MODELS[1] and (gone := before - shown - self.traded) > 0 < self.ahead:
            front, back = self.ahead, max(before - self.ahead, Decimal(0))
            share = int(gone * 1000 * front**2 // (front**2 + back**2)) / Decimal(1000)
            share += max(gone - share - back, Decimal(0))
            self.ahead = max(self.ahead - share, Decimal(0))
        self.ahead, self.traded = min(self.ahead, shown), Decimal(0)

    def join(self) -> None:
        shown = self.books[self.side].get(self.price, Decimal(0))
        self.rests, self.level = True, shown
        self.ahead = self.joined = None if self._is_beyond() else shown

    def _is_beyond(self) -> bool:
        book = self.books[self.side]
        return self.price < min(book) if self.side == 0 else self.price > max(book)


def queue_of(order: dict[str, Any], market: SeededMarket, model: str) -> OwnQueue:
    """Return the queue of *order* as it ended."""
    queue = OwnQueue(order, model)
    for line in EventsFile(market.events).lines():
        at_ms = json.loads(line.data)["ts"]
        if at_ms > order["eligible_ms"] and not queue.rests:
            queue.join()
        if at_ms > order["until_ms"]:
            break
        queue.read(line)
    return queue


def explained(made: Backtest) -> list[dict[str, Any]]:
    sequences = [row["sequence"] for row in made.decisions.to_dicts() if row["action"] == "ORDERS"]
    return [one for sequence in sequences for one in made.explain(sequence)["orders"]]


def test_what_stood_ahead_is_what_the_file_says(made: Backtest, market: SeededMarket) -> None:
    model = json.loads(made.frames.run["config"])["execution"]["queue_model"]
    rows = {row["order_id"]: row for row in open_rows(made)}
    told = {one["order_id"]: one for one in explained(made)}
    canceled = [row for row in rows.values() if row["status"] == "CANCELED"]
    assert len(canceled) > 10
    moved = unknown = 0
    for row in canceled:
        own, said = queue_of(row, market, model), told[row["order_id"]]
        assert (said["queue_joined"] is None) is (own.joined is None), row
        if own.joined is not None:
            assert Decimal(said["queue_joined"]) == own.joined
        assert (said["queue_ahead"] is None) is (own.ahead is None), row
        if own.ahead is not None:
            assert Decimal(said["queue_ahead"]) == own.ahead
            moved += own.joined != own.ahead
        unknown += own.joined is None
    assert moved > 3
    assert unknown > 0
    filled = [told[key] for key, row in rows.items() if row["status"] == "FILLED"]
    assert any(one["queue_joined"] not in {None, "0"} for one in filled)


def open_rows(made: Backtest) -> list[dict[str, Any]]:
    run = open_run(made.run_id, made.database, exact=True, frames="polars")
    return list(run.orders().to_dicts())


def test_text_says_it_and_a_run_without_queues_does_not(
    made: Backtest, capsys: pytest.CaptureFixture[str]
) -> None:
    sequence = next(r["sequence"] for r in made.decisions.to_dicts() if r["action"] == "ORDERS")
    assert invoke(["explain", f"{made.run_id}:{sequence}", "--db", str(made.database)]) == 0
    text = capsys.readouterr().out
    assert "ahead in its queue" in text
    said = next(one for one in explained(made) if one["queue_joined"] not in {None, "0"})
    assert f"{said['queue_joined']} → {said['queue_ahead'] or '?'}" in text
    flat = [1_000.0] * 8
    bars = {"open_time": [1_748_246_400_000 + 60_000 * at for at in range(8)], "volume": flat}
    bars |= dict.fromkeys(("open", "high", "low", "close"), flat)
    with backtest(Quotes, {"BTCUSDT": bars}) as run:
        said = next(one for one in explained(run) if one["kind"] == "LIMIT")
        assert (said["queue"], said["queue_joined"], said["queue_ahead"]) == (None, None, None)
        assert "ahead in its queue" not in str(run.explain(int(said["order_id"].split("-")[0])))


def test_what_a_prune_took_is_not_invented(market: SeededMarket, tmp_path: Path) -> None:
    path = tmp_path / "pruned.db"
    config = configured(MODELS[0], latency_ms=0)  # so that a list ends what rests at once
    with backtest(Quotes, market.candles, config=config, events=market.events, db=path) as run:
        decided = [row for row in run.decisions.to_dicts() if row["action"] == "ORDERS"]
        for born, ended in pairwise(decided[1:]):
            canceled = [
                one
                for one in run.explain(ended["sequence"])["orders"]
                if one["order_id"].startswith(f"{born['sequence']}-")
            ]
            if any(one["queue_joined"] for one in canceled):
                break
    known = {one["order_id"]: one["queue_ahead"] for one in canceled}
    assert any(known.values())
    until = ended["sequence"] - 2
    with closing(sqlite3.connect(path)) as raw:  # what a prune leaves of the days before
        (key,) = raw.execute("SELECT run_key FROM runs").fetchone()
        raw.execute("DELETE FROM states WHERE step <= ?", (step_key(key, until),))
        gone = (key, until, 0, bytes(32), bytes(32), None)
        raw.execute("INSERT INTO prunes VALUES (?, ?, ?, ?, ?, ?)", gone)
        raw.commit()
    orders = Backtest(path, run.run_id).explain(ended["sequence"])["orders"]
    left = {one["order_id"]: one for one in orders if one["order_id"] in known}
    assert {key: one["queue_ahead"] for key, one in left.items()} == known
    assert {one["queue_joined"] for one in left.values()} == {None}
