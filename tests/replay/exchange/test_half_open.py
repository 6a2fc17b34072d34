"""Half a request does not hold a descriptor of the embedded exchange for ever."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from exchange_client import candles, walk_rows
from waiting import deadline

from tracepaper.replay.exchange import server
from tracepaper.replay.exchange.server import EmbeddedExchange, ExchangeSettings


@pytest.mark.parametrize("sent", [b"", b"GET /v5/market/time HTTP/1.1\r\nHost: x\r\n"])
async def test_half_a_request_is_cut_off(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(server, "REQUEST_TIMEOUT_S", 0.05)
    settings = ExchangeSettings(candles=(candles(walk_rows(60)),), manual=True)
    async with EmbeddedExchange(settings) as exchange:
        host, port = exchange.rest_url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(sent)
        async with deadline():
            with suppress(ConnectionResetError):
                assert await reader.read() == b""
        writer.close()
