"""The exchange's book fills live orders, as a replay of the recorded events fills them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from exchange_client import candles as made_candles
from exchange_client import walk_rows
from recordings import record
from records import check_record, rows
from several_live import check_parity, trading

from tracepaper.daemon.config.loading import load
from tracepaper.replay.archive import read_candles
from tracepaper.replay.backtest.book_feed import EventsSource
from tracepaper.replay.exchange.server import EmbeddedExchange, ExchangeSettings
from tracepaper.strategies.api.context import BarContext, Orders, buy, sell
from tracepaper.strategies.api.strategy import Strategy
from tracepaper.strategies.units import to_tick

TOPICS = 5  # candles, quotes, marks, the book and its trades
SYMBOL = "BTCUSDT"


class Quoter(Strategy):
    """Quotes both sides of the close, and reduces a position that grows too large."""

    sees_account = True

    def __init__(self, options: dict[str, object]) -> None:
        self._away, self._size = float(str(options["away"])), float(str(options["size"]))

    def decide(self, context: BarContext) -> Orders:
        assert context.account is not None
        close, held = float(context.history.close[-1]), context.account.position.quantity
        item, size = context.instrument, self._size
        orders = [
            buy(size, limit=to_tick(close * (1 - self._away), item), tag="bid"),
            sell(size, limit=to_tick(close * (1 + self._away), item), tag="ask"),
        ]
        if abs(held) > size / 2:
            leave = sell if held > 0 else buy
            orders.append(leave(abs(held), reduce_only=True, tag="out"))
        return Orders(tuple(orders), "quotes")


def sections(**market: Any) -> dict[str, dict[str, Any]]:
    return {
        "exchange": {"time_scale": 60.0, "ahead_ms": 600_000, "backoff_max_s": 0.1},
        "market": {"symbols": [SYMBOL], **market},
        "strategy": {"name": f"{__name__}:Quoter", "options": {"away": 0.0002, "size": 0.05}},
        "account": {"cash": "100000000"},
        "model": {"checkpoint": "none"},
        "execution": {"model": "book", "latency_ms": 1_500, "response_ms": 50},
    }


def served(**keys: Any) -> ExchangeSettings:
    data = made_candles(walk_rows(400), symbol=SYMBOL)
    return ExchangeSettings(candles=(data,), manual=True, start=200, speed=60.0, **keys)


FILLS = (
    "SELECT filled_ms, side, price_text, quantity_text, liquidity, model FROM v_fills ORDER BY 1"
)
BOOKS = "SELECT market_ms, content FROM v_events WHERE kind = 'book' ORDER BY sequence"


def causes(path: Path) -> list[str]:
    contents = [json.loads(content)["cause"] for _, content in rows(path, BOOKS)]
    return [cause for cause in contents if cause]


@pytest.mark.sockets
async def test_a_replay_of_the_recorded_events_fills_what_the_daemon_filled(tmp_path: Path) -> None:
    folder, path = tmp_path / "kept", tmp_path / "live.db"
    given = sections(record_events=str(folder))
    async with EmbeddedExchange(served()) as exchange, trading(exchange, path, **given) as live:
        await live.listening(TOPICS + 2)  # the topics of the recording process
        for _ in range(12):
            await live.close_bar({SYMBOL})
    fills = rows(path, FILLS)
    assert {row[5] for row in fills} == {"book"}
    assert {row[4] for row in fills} == {"MAKER", "TAKER"}
    assert len(fills) > 5
    check_parity(path, tmp_path)
    candles = tmp_path / f"{SYMBOL}_1m.csv"
    with candles.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["open_time", "open", "high", "low", "close", "volume"])
        out.writerows(
            rows(
                path,
                "SELECT b.open_time_ms, b.open_text, b.high_text, b.low_text, b.close_text, "
                "b.volume_text FROM v_bars b JOIN v_decisions d USING (run_id, sequence) "
                "ORDER BY b.open_time_ms",
            )
        )
    again = tmp_path / "replayed.db"
    del given["market"]["record_events"]
    bars = read_candles(str(candles), category="linear")
    events = [EventsSource(folder / f"{SYMBOL}.events")]
    record(again, load(None, given), [bars], events=events)
    check_record(again)
    assert rows(again, FILLS) == fills


BOOK = {"topic": "orderbook.200.BTCUSDT"}
FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "disconnect": ({}, "disconnected"),
    "delivery": (BOOK, "sequence"),
    "malformed": (BOOK, "refused"),
}


@pytest.mark.parametrize("kind", FAULTS)
async def test_what_was_not_heard_is_a_gap_behind_which_a_limit_is_at_the_back(
    tmp_path: Path, kind: str
) -> None:
    """A frame of the book, or the connection, is lost while limit orders rest."""
    keys, cause = FAULTS[kind]
    path = tmp_path / "live.db"
    async with EmbeddedExchange(served()) as exchange, trading(exchange, path, **far()) as live:
        await live.listening(TOPICS)
        for _ in range(2):
            await live.close_bar({SYMBOL})
        lost = set(exchange.hub.connections)
        exchange.arm(kind, **keys)
        for _ in range(4):
            await exchange.advance(4_000)
        if kind == "disconnect":
            await live.until(lambda: lost.isdisjoint(exchange.hub.connections))
            await live.listening(TOPICS)
        for _ in range(3):
            await live.close_bar({SYMBOL})
        await live.until(lambda: len(causes(path)) > 1)
    assert causes(path) == ["stopped", cause]
    check_parity(path, tmp_path)


async def test_a_start_puts_what_rests_at_the_back_and_counts_frames_on(tmp_path: Path) -> None:
    path = tmp_path / "live.db"
    async with EmbeddedExchange(served()) as exchange:
        for _ in range(2):
            async with trading(exchange, path, **sections()) as live:
                await live.listening(TOPICS)
                for _ in range(5):
                    await live.close_bar({SYMBOL})
    assert causes(path) == ["stopped", "stopped"]
    frames = [json.loads(content)["frame"] for _, content in rows(path, BOOKS)]
    assert frames == sorted(frames)
    assert len(rows(path, FILLS)) > 4
    check_parity(path, tmp_path)


def far() -> dict[str, dict[str, Any]]:
    """Return limit orders so far from the close that they rest."""
    given = sections()
    given["strategy"]["options"]["away"] = 0.002
    return given
