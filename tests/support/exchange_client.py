"""A plain websocket client, a REST getter and seeded candles for tests of the exchange.

It shares no code with the product's own client, so each checks the other.
"""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import aiohttp
import numpy as np
from waiting import deadline_s

from tracepaper.replay.archive import Candles
from tracepaper.replay.exchange.server import EmbeddedExchange, ExchangeSettings
from tracepaper.strategies.types.market import Category

MINUTE = 60_000
FIRST_MS = 1_735_689_600_000  # 2025-01-01 00:00 UTC, a Wednesday

Message = dict[str, Any]
Row = tuple[int, int, int, int, int]
"""(open, high, low, close, volume)."""


def candles(
    rows: Sequence[Row],
    *,
    symbol: str = "BTCUSDT",
    category: Category = Category.LINEAR,
    interval_ms: int = MINUTE,
    first_ms: int = FIRST_MS,
    times_ms: Sequence[int] | None = None,
    price_decimals: int = 1,
    volume_decimals: int = 3,
) -> Candles:
    """Return candles of *rows*, one interval apart unless *times_ms* says otherwise."""
    columns = np.array(rows, dtype=np.int64).T
    times = [first_ms + place * interval_ms for place in range(len(rows))]
    return Candles(
        path="builder",
        category=category,
        symbol=symbol,
        interval_ms=interval_ms,
        price_decimals=price_decimals,
        volume_decimals=volume_decimals,
        turnover_decimals=0,
        open_time_ms=np.array(times if times_ms is None else times_ms, dtype=np.int64),
        open=columns[0],
        high=columns[1],
        low=columns[2],
        close=columns[3],
        volume=columns[4],
        turnover=None,
    )


def walk_rows(length: int, *, seed: int = 1, start: int = 651_142) -> list[Row]:
    """Return a seeded walk of *length* bars; some have no volume, opens may differ from closes."""
    rng = random.Random(seed)
    rows: list[Row] = []
    price = start
    for _ in range(length):
        opened = price + rng.choice((0, 0, 1, -1))
        if rng.random() < 0.1:
            rows.append((opened, opened, opened, opened, 0))
            continue
        close = opened + rng.randint(-400, 400)
        high = max(opened, close) + rng.randint(0, 150)
        low = min(opened, close) - rng.randint(0, 150)
        rows.append((opened, high, low, close, rng.randint(1, 90_000)))
        price = close
    return rows


def wild_rows(length: int, *, seed: int, start: int = 10_000) -> list[Row]:
    """Return bars of some percent, now and then one that moves by up to a fifth."""
    rng, price = random.Random(seed), start
    rows: list[Row] = []
    for _ in range(length):
        opened = price
        jump = rng.choice((-1, 1)) * rng.randint(0, 2_000) if rng.random() < 0.08 else 0
        close = max(opened + rng.randint(-250, 250) + jump * opened // 10_000, 500)
        high = max(opened, close) + rng.randint(0, 100)
        low = max(min(opened, close) - rng.randint(0, 100), 400)
        rows.append((opened, high, low, close, 5_000 + rng.randint(0, 500)))
        price = close
    return rows


class StreamClient:
    """One connection; data frames are kept as (text, parsed or None) in order of arrival."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.texts: list[str] = []
        self._numbers = count(1)

    async def ask(self, operation: str, args: Sequence[str] = (), **extra: Any) -> Message:
        """Send *operation* and return its answer; data that comes first is kept."""
        request_id = f"request-{next(self._numbers)}"
        request: Message = {"req_id": request_id, "op": operation, **extra}
        if args:
            request["args"] = list(args)
        await self.socket.send_str(json.dumps(request))
        while True:
            text = await self._receive()
            message = parsed(text)
            if message is not None and message.get("req_id") == request_id:
                return message
            self.texts.append(text)

    async def subscribe(self, *topics: str) -> Message:
        """Subscribe *topics* and return the acknowledgement."""
        return await self.ask("subscribe", topics)

    async def drain(self) -> list[Message]:
        """Return every frame that was sent so far and not returned yet; a pong marks the end."""
        await self.ask("ping")
        texts, self.texts = self.texts, []
        return [message for text in texts if (message := parsed(text)) is not None]

    async def _receive(self) -> str:
        message = await self.socket.receive(deadline_s())
        if message.type is not aiohttp.WSMsgType.TEXT:
            raise ConnectionError(f"the stream ended: {message.type.name}")
        return str(message.data)

    async def until_cut(self) -> None:
        """Read until the server ends the connection."""
        while (await self.socket.receive(deadline_s())).type is aiohttp.WSMsgType.TEXT:
            pass


def parsed(text: str) -> Message | None:
    """Return *text* as a JSON object, or None where it is none."""
    try:
        message = json.loads(text)
    except ValueError:
        return None
    return message if isinstance(message, dict) else None


class Client:
    """An HTTP session bound to one exchange."""

    def __init__(self, exchange: EmbeddedExchange, session: aiohttp.ClientSession) -> None:
        self.exchange = exchange
        self.session = session

    @asynccontextmanager
    async def stream(self, category: str = "linear") -> AsyncIterator[StreamClient]:
        """Open one stream connection."""
        url = f"{self.exchange.stream_url}/v5/public/{category}"
        async with self.session.ws_connect(url) as socket:
            yield StreamClient(socket)

    async def get(self, path: str, **query: str | int) -> Message:
        """Return the whole body of ``/v5/market/`` + *path*."""
        url = f"{self.exchange.rest_url}/v5/market/{path}"
        texts = {name: str(value) for name, value in query.items()}
        async with self.session.get(url, params=texts) as response:
            assert response.status == 200
            body: Message = await response.json()
            return body

    async def result(self, path: str, **query: str | int) -> Message:
        """Return the result of a call that must succeed."""
        body = await self.get(path, **query)
        assert (body["retCode"], body["retMsg"]) == (0, "OK")
        result: Message = body["result"]
        return result


@asynccontextmanager
async def serving(
    *served: Candles, start: int | None = None, speed: float = 1.0, seed: int = 0
) -> AsyncIterator[tuple[EmbeddedExchange, Client]]:
    """Serve candles by a manual clock."""
    settings = ExchangeSettings(candles=served, manual=True, start=start, speed=speed, seed=seed)
    async with EmbeddedExchange(settings) as exchange, aiohttp.ClientSession() as session:
        yield exchange, Client(exchange, session)
