"""Market time is scaled, held, moved by hand and stopped, and never goes back."""

from __future__ import annotations

import json

import pytest
from aiohttp import ClientSession
from exchange_client import MINUTE, Client, candles, walk_rows
from waiting import deadline

from tracepaper.replay.exchange import hub
from tracepaper.replay.exchange.hub import MarketClock
from tracepaper.replay.exchange.server import EmbeddedExchange, ExchangeSettings


class Seconds:
    """Machine seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_time_is_held_again_and_runs_at_another_speed() -> None:
    seconds = Seconds()
    clock = MarketClock(5_000, speed=10, monotonic=seconds)
    seconds.now += 1
    clock.set_speed(100)
    assert clock.now_ms() == 15_000
    assert clock.seconds_until(115_000) == 1.0
    seconds.now += 1
    clock.hold()
    seconds.now += 60
    assert (clock.now_ms(), clock.seconds_until(200_000)) == (115_000, None)
    clock.set_speed(1_000)
    clock.release()
    seconds.now += 1
    assert clock.now_ms() == 1_115_000


def test_time_stops_at_its_end() -> None:
    seconds = Seconds()
    clock = MarketClock(0, speed=10, monotonic=seconds)
    clock.stop_at(15_000)
    assert not clock.ended
    seconds.now += 100
    assert clock.now_ms() == 15_000
    assert clock.ended


# ------------------------------------------------------------ clients


async def test_a_client_that_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "OUTBOX_FRAMES_MAX", 60)
    settings = ExchangeSettings(candles=(candles(walk_rows(3_000)),), manual=True, start=10)
    request = json.dumps({"op": "subscribe", "args": ["orderbook.1000.BTCUSDT"]})
    async with EmbeddedExchange(settings) as exchange, ClientSession() as session:
        client = Client(exchange, session)
        async with client.stream() as deaf, client.stream() as listening:
            # Liquidations are so rare that those of a minute do not fill its outbox.
            await listening.subscribe("allLiquidation.BTCUSDT")
            await deaf.socket.send_str(request)
            async with deadline():
                while len(exchange.hub.connections) < 2 or not exchange.hub.subscribed.is_set():
                    await listening.drain()
                while len(exchange.hub.connections) == 2:
                    await exchange.advance(MINUTE)
                    await listening.drain()
            assert (await listening.ask("ping"))["success"] is True
