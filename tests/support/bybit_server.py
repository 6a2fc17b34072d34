"""A small scripted Bybit on loopback for the client's tests, and a clock that the test moves.

It speaks REST and the public stream from what the test put into it, and misbehaves on request:
answers of any status, refused or dropped connections, refused topics, silence.
"""

from __future__ import annotations

import asyncio
import heapq
import json
from collections import deque
from collections.abc import Awaitable, Callable
from decimal import Decimal
from itertools import count
from typing import Any, Self, TypeVar

from aiohttp import WSMsgType, web
from waiting import deadline

from tracepaper.daemon.config.sections import ExchangeSection

MINUTE = 60_000
START_MS = 1_700_000_040_000  # a whole minute

T = TypeVar("T")
Row = tuple[int, str, str, str, str, str, str]

FILTERS: dict[str, Any] = {
    "symbol": "BTCUSDT",
    "status": "Trading",
    "baseCoin": "BTC",
    "quoteCoin": "USDT",
    "priceFilter": {"tickSize": "0.10"},
    "lotSizeFilter": {
        "qtyStep": "0.001",
        "minOrderQty": "0.001",
        "maxMktOrderQty": "150.000",
        "minNotionalValue": "5",
    },
    "fundingInterval": 480,
}


def exchange_section(**keys: str | float) -> ExchangeSection:
    """Return ``[exchange]`` of a test, unchecked: the checks hold requests to 100 a second."""
    return ExchangeSection().model_copy(update={"requests_per_s": 10_000.0} | keys)


def is_equal(read: Callable[[], object], wanted: object) -> Callable[[], bool]:
    """Return the condition that *read* returns *wanted*."""
    return lambda: read() == wanted


class SteppedClock:
    """Market and network time that move only when told; sleepers wake when theirs has come."""

    def __init__(self, market_ms: int = START_MS) -> None:
        self._market_ms = market_ms
        self._network_s = 1_000.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = count()

    def market_ms(self) -> int:
        return self._market_ms

    def network_s(self) -> float:
        return self._network_s

    def scaled_ms(self, seconds: float) -> float:
        return seconds * 1_000.0

    def wall_ms(self) -> int:
        return self._market_ms

    def observe(self, server_ms: int) -> None:
        self._market_ms = max(self._market_ms, server_ms)

    def synchronise(self, server_ms: int) -> None:
        self._market_ms = server_ms

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._network_s + seconds, next(self._order), future))
        await future

    def advance(self, *, market_ms: int = 0, network_s: float = 0.0) -> None:
        """Move time and wake whoever is due."""
        self._market_ms += market_ms
        self._network_s += network_s
        while self._sleepers and self._sleepers[0][0] <= self._network_s:
            future = heapq.heappop(self._sleepers)[2]
            if not future.done():
                future.set_result(None)

    async def finish(self, work: Awaitable[T]) -> T:
        """Let network time pass until *work* is done; return what it gives."""
        task = asyncio.ensure_future(work)
        await self.run(task.done)
        return await task

    async def run(self, condition: Callable[[], object], *, step_s: float = 0.05) -> None:
        """Let network time pass in steps, the loop running in between, until *condition*."""
        async with deadline():
            while not condition():
                self.advance(network_s=step_s)
                for _ in range(20):
                    await asyncio.sleep(0)


class ScriptedServer:
    """The exchange as the test tells it to be; an async context manager."""

    def __init__(self) -> None:
        self.server_ms = START_MS
        self.rows: dict[str, dict[int, Row]] = {}
        self.funding: list[tuple[int, str]] = []
        self.filters: list[dict[str, Any]] = [json.loads(json.dumps(FILTERS))]
        self.answers: dict[str, deque[web.Response]] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.refused_topics: set[str] = set()
        self.reject_status = 0
        self.sends_on_to = ""  # where a refused connection is told to go
        self.is_mute = False  # acknowledges nothing
        self.received: list[dict[str, Any]] = []
        self.sockets: list[web.WebSocketResponse] = []
        self.connections = 0
        self._runner: web.AppRunner | None = None
        self._port = 0

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_get("/v5/market/{name:.*}", self._rest)
        app.router.add_get("/v5/public/{category}", self._stream)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self._port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.drop()
        assert self._runner is not None
        await self._runner.cleanup()

    @property
    def rest_url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def stream_url(self) -> str:
        return f"ws://127.0.0.1:{self._port}"

    # ------------------------------------------------------------ what it knows

    def add_candle(
        self, open_ms: int, close: str = "100.5", symbol: str = "BTCUSDT", low: str | None = None
    ) -> None:
        """Have a closed candle for REST, of one price or down to *low*."""
        row = (open_ms, close, close, low or close, close, "1.5", turnover(close))
        self.rows.setdefault(symbol, {})[open_ms] = row

    def queries(self, name: str) -> list[dict[str, str]]:
        """Return the queries of every request of *name*."""
        return [query for path, query in self.requests if path == name]

    def answer_next(self, name: str, *answers: web.Response) -> None:
        """Answer the next requests of *name* with these."""
        self.answers.setdefault(name, deque()).extend(answers)

    # ------------------------------------------------------------ REST

    async def _rest(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        query = dict(request.query)
        self.requests.append((name, query))
        assert "Content-Type" not in request.headers
        if self.answers.get(name):
            return self.answers[name].popleft()
        result = {
            "time": self._time,
            "kline": self._kline,
            "instruments-info": self._instruments,
            "funding/history": self._funding,
            "tickers": self._tickers,
        }[name](query)
        return self.reply(result)

    def reply(self, result: Any, *, code: int = 0, message: str = "OK") -> web.Response:
        """Return a body in the exchange's envelope."""
        body = {"retCode": code, "retMsg": message, "result": result, "time": self.server_ms}
        return web.json_response(body)

    def _time(self, _: dict[str, str]) -> dict[str, str]:
        return {"timeSecond": str(self.server_ms // 1000), "timeNano": f"{self.server_ms}000000"}

    def _kline(self, query: dict[str, str]) -> dict[str, Any]:
        start, end = int(query["start"]), int(query["end"])
        limit = int(query.get("limit", "200"))
        rows = self.rows.get(query["symbol"], {})
        # As the exchange does: the candle that contains ``start`` is returned as well.
        candles = [rows[at] for at in sorted(rows, reverse=True) if start - MINUTE < at <= end]
        listed = [[str(cell) for cell in row] for row in candles[:limit]]
        return {"category": query["category"], "symbol": query["symbol"], "list": listed}

    def _instruments(self, query: dict[str, str]) -> dict[str, Any]:
        instruments = [
            item for item in self.filters if query.get("symbol") in (None, item["symbol"])
        ]
        return {"category": query["category"], "list": instruments, "nextPageCursor": ""}

    def _funding(self, query: dict[str, str]) -> dict[str, Any]:
        start, end = int(query["startTime"]), int(query["endTime"])
        settlements = [
            {
                "symbol": query["symbol"],
                "fundingRate": rate,
                "fundingRateTimestamp": str(settled_ms),
            }
            for settled_ms, rate in sorted(self.funding, reverse=True)
            if start <= settled_ms <= end
        ]
        return {"category": query["category"], "list": settlements[: int(query["limit"])]}

    def _tickers(self, query: dict[str, str]) -> dict[str, Any]:
        ticker = {"symbol": "BTCUSDT", "lastPrice": "100.5", "markPrice": "100.4"}
        ticker |= {"turnover24h": "7.5", "highPrice24h": "101", "lowPrice24h": "99.5"}
        listed = [ticker] if query.get("symbol") in {None, "BTCUSDT"} else []
        return {"category": query["category"], "list": listed}

    # ------------------------------------------------------------ the stream

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        if self.reject_status:
            headers = {"Location": self.sends_on_to} if self.sends_on_to else None
            return web.Response(status=self.reject_status, text="<html>no</html>", headers=headers)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.sockets.append(socket)
        self.connections += 1
        async for message in socket:
            if message.type is WSMsgType.TEXT:
                await self._on_request(socket, json.loads(message.data))
        self.sockets.remove(socket)
        return socket

    async def _on_request(self, socket: web.WebSocketResponse, request: dict[str, Any]) -> None:
        self.received.append(request)
        if request["op"] == "ping":
            pong = {"success": True, "ret_msg": "pong", "conn_id": "c", "req_id": "", "op": "ping"}
            await socket.send_str(json.dumps(pong))
            return
        if self.is_mute:
            return
        bad = self.refused_topics.intersection(request["args"])
        ack = {
            "success": not bad,
            "ret_msg": f"error:handler not found,topic:{min(bad)}" if bad else "",
            "conn_id": "c",
            "req_id": request["req_id"],
            "op": "subscribe",
        }
        await socket.send_str(json.dumps(ack))

    def subscribed(self) -> list[str]:
        """Return every topic that was asked for, in order."""
        return [
            topic
            for message in self.received
            if message["op"] == "subscribe"
            for topic in message["args"]
        ]

    def pings(self) -> int:
        """Return how many pings came."""
        return sum(message["op"] == "ping" for message in self.received)

    async def send(self, *frames: bytes | dict[str, Any]) -> None:
        """Send frames on every connection."""
        for frame in frames:
            text = frame.decode() if isinstance(frame, bytes) else json.dumps(frame)
            for socket in self.sockets:
                await socket.send_str(text)

    async def drop(self) -> None:
        """Close every connection."""
        for socket in list(self.sockets):
            await socket.close()


# ---------------------------------------------------------------- frames


def kline(
    open_ms: int,
    close: str = "100.5",
    *,
    ts: int | None = None,
    confirm: bool = True,
    symbol: str = "BTCUSDT",
    low: str | None = None,
) -> dict[str, Any]:
    """Return a kline frame of one candle, equal to ``add_candle`` of the same arguments."""
    candle = {
        "start": open_ms,
        "end": open_ms + MINUTE - 1,
        "interval": "1",
        "open": close,
        "close": close,
        "high": close,
        "low": low or close,
        "volume": "1.5",
        "turnover": turnover(close),
        "confirm": confirm,
        "timestamp": open_ms + MINUTE + 300,
    }
    at_ms = open_ms + MINUTE + 300 if ts is None else ts
    return {"topic": f"kline.1.{symbol}", "data": [candle], "ts": at_ms, "type": "snapshot"}


def turnover(close: str) -> str:
    """Return what a volume of 1.5 comes to at *close*, where that is a number."""
    is_number = close.replace(".", "", 1).isdecimal()
    return str(Decimal("1.5") * Decimal(close)) if is_number else "150.75"


def book(ts: int, bid: str = "100.4", ask: str = "100.5", size: str = "1") -> dict[str, Any]:
    """Return an orderbook.1 frame."""
    data = {"s": "BTCUSDT", "b": [[bid, size]], "a": [[ask, size]], "u": 7, "seq": 8}
    return {"topic": "orderbook.1.BTCUSDT", "ts": ts, "type": "snapshot", "data": data, "cts": ts}


def ticker(ts: int, mark: str = "100.4", next_funding_ms: int = 0) -> dict[str, Any]:
    """Return a ticker snapshot."""
    data = {"symbol": "BTCUSDT", "markPrice": mark, "fundingRate": "0.0001"}
    if next_funding_ms:
        data["nextFundingTime"] = str(next_funding_ms)
    return {"topic": "tickers.BTCUSDT", "type": "snapshot", "data": data, "cs": 1, "ts": ts}
