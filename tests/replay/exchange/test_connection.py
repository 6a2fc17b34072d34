"""A client that does not read is cut off, and the others go on."""

from __future__ import annotations

import asyncio
import json

import pytest
from aiohttp import ClientSession
from exchange_client import Client, candles, walk_rows

from tracepaper.replay.exchange import hub
from tracepaper.replay.exchange.server import EmbeddedExchange, ExchangeSettings

DEADLINE_S = 20.0


async def test_a_client_that_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "OUTBOX_FRAMES_MAX", 60)
    settings = ExchangeSettings(candles=(candles(walk_rows(3_000)),), speed=3_000.0, start=10)
    request = json.dumps({"op": "subscribe", "args": ["orderbook.1000.BTCUSDT"]})
    async with EmbeddedExchange(settings) as exchange, ClientSession() as session:
        client = Client(exchange, session)
        async with client.stream() as deaf, client.stream() as listening:
            await listening.subscribe("tickers.BTCUSDT")
            await deaf.socket.send_str(request)
            async with asyncio.timeout(DEADLINE_S):
                while len(exchange.hub.connections) < 2 or not exchange.hub.subscribed.is_set():
                    await listening.drain()
                while len(exchange.hub.connections) == 2:
                    await listening.drain()
            assert (await listening.ask("ping"))["success"] is True
