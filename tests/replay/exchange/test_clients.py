"""Other people's clients work against the exchange unchanged: pybit and ccxt, REST and stream."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import ccxt.async_support
import ccxt.pro
import pybit.exceptions
import pybit.unified_trading
import pytest
from waiting import deadline, deadline_s

from tracepaper.replay.exchange.server import EmbeddedExchange, ExchangeSettings
from tracepaper.strategies.types.market import EXCHANGE_CATEGORIES, Category

DATA = Path(__file__).parents[2] / "data" / "candles"
FILE = f"BTCUSDT={DATA / 'binance_um_BTCUSDT_1m_2025-05.csv.gz'}"
SPEED = 600.0
LIVES_OF_PYBIT = 3


@asynccontextmanager
async def exchange_of(category: Category) -> AsyncIterator[EmbeddedExchange]:
    settings = ExchangeSettings(data=(FILE,), category=category, speed=SPEED, hold=True)
    async with EmbeddedExchange(settings) as exchange:
        yield exchange


def redirected(client: Any, exchange: EmbeddedExchange) -> Any:
    """Point every address of a ccxt client at *exchange*."""
    api = client.urls["api"]
    for name in list(api):
        if name == "ws":
            for category in api["ws"]["public"]:
                api["ws"]["public"][category] = f"{exchange.stream_url}/v5/public/{category}"
        else:
            api[name] = exchange.rest_url
    return client


# ---------------------------------------------------------------- pybit


def read_by_pybit(rest_url: str) -> dict[str, Any]:
    session = pybit.unified_trading.HTTP()
    session.endpoint = rest_url
    where = {"category": "linear", "symbol": "BTCUSDT"}
    return {
        "time": session.get_server_time(),
        "kline": session.get_kline(**where, interval="1", limit=5),
        "mark": session.get_mark_price_kline(**where, interval="5", limit=5),
        "instruments": session.get_instruments_info(category="linear"),
        "tickers": session.get_tickers(**where),
        "book": session.get_orderbook(**where),
        "trades": session.get_public_trade_history(**where, limit=5),
        "funding": session.get_funding_rate_history(**where, limit=2),
    }


async def test_pybit_reads_every_rest_call() -> None:
    async with exchange_of(Category.LINEAR) as exchange:
        answers = await asyncio.to_thread(read_by_pybit, exchange.rest_url)
    assert {name: answer["retCode"] for name, answer in answers.items()} == dict.fromkeys(
        answers, 0
    )
    assert len(answers["kline"]["result"]["list"]) == 5
    assert len(answers["book"]["result"]["b"]) == 25


async def test_pybit_waits_out_a_10006_and_raises_on_a_refusal() -> None:
    async with exchange_of(Category.LINEAR) as exchange:
        session = pybit.unified_trading.HTTP(max_retries=2, retry_delay=0)
        session.endpoint = exchange.rest_url
        exchange.arm("retcode_10006")
        answer = await asyncio.to_thread(session.get_server_time)
        assert answer["retCode"] == 0
        with pytest.raises(pybit.exceptions.InvalidRequestError):
            await asyncio.to_thread(
                session.get_kline, category="linear", symbol="NOSUCH", interval="1"
            )


def follow_by_pybit(category: Category) -> tuple[threading.Event, Counter[str]]:
    """Subscribe every topic in a thread of its own; the event is set when each came thrice.

    pybit registers a topic after it has sent the request, and dies of an answer that is faster;
    then its subscribe waits for ever, so its thread is a daemon.
    """
    seen: Counter[str] = Counter()
    enough = threading.Event()

    def keep(message: dict[str, Any]) -> None:
        seen[message["topic"]] += 1
        if len(seen) == 4 and min(seen.values()) >= 3:
            enough.set()

    def follow() -> None:
        stream = pybit.unified_trading.WebSocket(channel_type=category.value, testnet=False)
        stream.orderbook_stream(50, "BTCUSDT", keep)
        stream.ticker_stream("BTCUSDT", keep)
        stream.trade_stream("BTCUSDT", keep)
        stream.kline_stream(1, "BTCUSDT", keep)
        enough.wait(deadline_s())
        stream.exit()

    threading.Thread(target=follow, daemon=True).start()
    return enough, seen


@pytest.mark.parametrize("category", EXCHANGE_CATEGORIES)
async def test_pybit_follows_every_topic(
    category: Category, monkeypatch: pytest.MonkeyPatch
) -> None:
    logging.getLogger("pybit").setLevel(logging.CRITICAL)
    async with exchange_of(category) as exchange:
        url = exchange.stream_url + "/v5/public/{CHANNEL_TYPE}"
        monkeypatch.setattr(pybit.unified_trading, "PUBLIC_WSS", url)
        for _ in range(LIVES_OF_PYBIT):
            enough, seen = follow_by_pybit(category)
            if await asyncio.to_thread(enough.wait, deadline_s() / LIVES_OF_PYBIT):
                return
        pytest.fail(f"pybit saw only {seen}")


# ---------------------------------------------------------------- ccxt


@pytest.mark.parametrize(
    ("category", "symbol"), [(Category.LINEAR, "BTC/USDT:USDT"), (Category.SPOT, "BTC/USDT")]
)
async def test_ccxt_reads_every_rest_call(category: Category, symbol: str) -> None:
    async with exchange_of(category) as exchange:
        client = redirected(ccxt.async_support.bybit({"enableRateLimit": False}), exchange)
        try:
            markets = await client.load_markets()
            assert list(markets) == [symbol]
            assert markets[symbol]["precision"]["price"] == 0.1
            candles = await client.fetch_ohlcv(symbol, "1m", limit=10)
            assert len(candles) == 10
            assert [row[0] for row in candles] == sorted(row[0] for row in candles)
            past = await client.fetch_ohlcv(symbol, "5m", since=candles[0][0] - 3_600_000, limit=4)
            assert len(past) == 4
            ticker = await client.fetch_ticker(symbol)
            assert ticker["bid"] < ticker["ask"]
            book = await client.fetch_order_book(symbol, 50)
            assert len(book["bids"]) == len(book["asks"]) == 50
            assert len(await client.fetch_trades(symbol, limit=20)) == 20
            assert (await client.fetch_status())["status"] == "ok"
            assert await client.fetch_time() == exchange.clock.now_ms()
            if category is Category.LINEAR:
                rate = await client.fetch_funding_rate(symbol)
                assert rate["interval"] == "8h"
                assert await client.fetch_funding_rate_history(symbol, limit=2)
                assert len(await client.fetch_mark_ohlcv(symbol, "1m", limit=3)) == 3
        finally:
            await client.close()


@pytest.mark.parametrize(
    ("category", "symbol"), [(Category.LINEAR, "BTC/USDT:USDT"), (Category.SPOT, "BTC/USDT")]
)
async def test_ccxt_pro_watches_candles_trades_tickers_and_books(
    category: Category, symbol: str
) -> None:
    async with exchange_of(category) as exchange:
        client = redirected(ccxt.pro.bybit({"enableRateLimit": False}), exchange)
        try:
            async with deadline():
                await client.load_markets()
                starts: set[int] = set()
                while len(starts) < 3:
                    starts.add((await client.watch_ohlcv(symbol, "1m"))[-1][0])
                assert (await client.watch_trades(symbol))[-1]["amount"] > 0
                book = await client.watch_order_book(symbol)
                for _ in range(3):
                    book = await client.watch_order_book(symbol)
                    assert book["bids"][0][0] < book["asks"][0][0]
                assert len(book["bids"]) == 50
                assert (await client.watch_ticker(symbol))["last"] > 0
        finally:
            await client.close()
