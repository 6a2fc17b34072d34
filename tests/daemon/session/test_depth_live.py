"""Live order books are stored, traded on, and derived again after a restart."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from depth_cases import trained, walk, write
from exchange_client import candles as made_candles
from exchange_client import walk_rows
from records import check_record, rows, run_again
from several_live import trading

from tracepaper.replay.exchange.server import EmbeddedExchange, ExchangeSettings
from tracepaper.storage.database.reader import Reader
from tracepaper.strategies.networks.order_book import OrderBookConfig
from tracepaper.strategies.order_book import books_in
from tracepaper.strategies.types.market import Depths

pytestmark = pytest.mark.usefixtures("one_thread")

WINDOW = 16
TOPICS = 4  # candles, quotes, marks and books
SPEED = 60.0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write(folder / "btc.depth", walk(90))
    network = OrderBookConfig(levels=5, window=WINDOW, dim=8, layers=1, heads=2, horizons=(1, 3))
    return trained(folder / "btc.depth", network, folder / "model")


def sections(checkpoint: Path) -> dict[str, dict[str, Any]]:
    options = {"checkpoint": str(checkpoint), "stale_ms": 30_000}
    return {
        "exchange": {"time_scale": SPEED},
        "market": {"symbols": ["BTCUSDT"], "depth": 20},
        "strategy": {"name": "orderbook", "options": options},
        "model": {"checkpoint": "none"},
    }


def events(path: Path) -> list[Depths]:
    with Reader.open(path) as reader:
        depths = [event for _, _, event, _ in reader.events(reader.find("last"))]
    return [event for event in depths if isinstance(event, Depths)]


async def test_books_are_stored_and_traded_by_and_a_restart_forgets_them(
    tmp_path: Path, checkpoint: Path
) -> None:
    data = made_candles(walk_rows(400), symbol="BTCUSDT")
    served = ExchangeSettings(candles=(data,), manual=True, start=200, speed=SPEED)
    path = tmp_path / "live.db"
    async with EmbeddedExchange(served) as exchange:
        for bars in (4, 3):
            async with trading(exchange, path, **sections(checkpoint)) as live:
                await live.listening(TOPICS)
                for _ in range(bars):
                    await live.close_bar({"BTCUSDT"})
    stored = events(path)
    times = np.concatenate([books_in(books).seen_ms for books in stored])
    assert (np.diff(times) > 0).all()
    assert len(times) > 300
    assert all(books.levels == 20 for books in stored)
    starts = [depths.cause for depths in stored if depths.cause]
    assert starts == ["stopped", "stopped"]
    reasons = [
        reason for (reason,) in rows(path, "SELECT reason FROM v_decisions ORDER BY sequence")
    ]
    assert sum(reason.startswith("the mid is expected") for reason in reasons) >= 4
    assert check_record(path) == len(reasons)
    again = tmp_path / "again.db"
    parity = run_again(path, again)
    assert (parity.compared, parity.differences) == (len(reasons), [])


BOOKS = {"topic": "orderbook.50.BTCUSDT"}
FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "disconnect": ({}, "disconnected"),
    "delivery drop": (BOOKS, "sequence"),
    "wrong_frame crossed": (BOOKS, "refused"),
}


@pytest.mark.sockets
@pytest.mark.parametrize("fault", FAULTS)
async def test_what_was_not_heard_is_a_gap_that_nothing_reaches_over(
    tmp_path: Path, checkpoint: Path, fault: str
) -> None:
    """A frame of the book, or the connection, is lost within the third minute."""
    keys, cause = FAULTS[fault]
    kind, _, form = fault.partition(" ")
    data = made_candles(walk_rows(400), symbol="BTCUSDT")
    served = ExchangeSettings(candles=(data,), manual=True, start=200, speed=SPEED)
    path = tmp_path / "live.db"
    given = sections(checkpoint)
    given["exchange"] |= {"backoff_max_s": 0.1}
    async with EmbeddedExchange(served) as exchange, trading(exchange, path, **given) as live:
        await live.listening(TOPICS)
        for _ in range(2):
            await live.close_bar({"BTCUSDT"})
        before = exchange.hub.connections
        lost = set(before)
        exchange.arm(kind, form=form, **keys)
        for _ in range(5):
            await exchange.advance(3_000)
            await asyncio.sleep(0)
        if kind == "disconnect":
            await live.until(lambda: lost.isdisjoint(exchange.hub.connections))
            await live.listening(TOPICS)
        for _ in range(4):
            await live.close_bar({"BTCUSDT"})
    stored = events(path)
    assert {books.cause for books in stored if books.cause} == {"stopped", cause}
    for depths, two in pairwise(stored):
        assert bool(two.cause) == (two.first_ms != depths.next_ms)
    check_record(path)


async def test_bars_that_rest_brings_after_a_gap_see_no_book_of_it(
    tmp_path: Path, checkpoint: Path
) -> None:
    """The connection is lost for four minutes, and books arrive again before their bars."""
    data = made_candles(walk_rows(400), symbol="BTCUSDT")
    served = ExchangeSettings(candles=(data,), manual=True, start=200, speed=SPEED)
    path = tmp_path / "live.db"
    given = sections(checkpoint)
    given["exchange"] |= {"backoff_max_s": 0.1}
    async with EmbeddedExchange(served) as exchange, trading(exchange, path, **given) as live:
        await live.listening(TOPICS)
        for _ in range(2):
            await live.close_bar({"BTCUSDT"})
        lost = set(exchange.hub.connections)
        exchange.arm("disconnect")
        await exchange.advance(3_000)
        await live.until(lambda: lost.isdisjoint(exchange.hub.connections))
        lost_ms = exchange.clock.now_ms()
        await exchange.advance(4 * 60_000)
        await live.listening(TOPICS)
        heard_ms = exchange.clock.now_ms()
        for _ in range(2):
            await live.close_bar({"BTCUSDT"})
    query = (
        "SELECT b.open_time_ms + 60000, b.source, (SELECT count(*) FROM v_notes n WHERE n.run_id = "
        "d.run_id AND n.sequence = d.sequence) FROM v_decisions d JOIN v_bars b "
        "USING (run_id, sequence) ORDER BY sequence"
    )
    ages = rows(path, query)
    closes = [close for close, _, _ in ages]
    assert closes == list(range(closes[0], closes[0] + 60_000 * len(closes), 60_000))
    missed = [row for row in ages if lost_ms + 30_000 < row[0] <= heard_ms]
    assert len(missed) >= 3
    assert {(source, notes) for _, source, notes in missed} == {("rest", 0)}  # no request was sent
    assert ages[1][2] == ages[-1][2] == 8
    check_record(path)
