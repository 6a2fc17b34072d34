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

import pybit.exceptions
import pybit.unified_trading
import pytest
from waiting import deadline_s

from tracepaper.replay.exchange.server import EmbeddedExchange, ExchangeSettings
from tracepaper.strategies.types.market import EXCHANGE_CATEGORIES, Category

pytestmark = pytest.mark.sockets

DATA = Path(__file__).parents[2] / "data" / "candles"
FILE = f"BTCUSDT={DATA / 'binance_um_BTCUSDT_1m_2025-05.csv.gz'}"
SPEED = 600.0
LIVES_OF_PYBIT = 3


@asynccontextmanager
async def exchange_of(category: Category) -> AsyncIterator[EmbeddedExchange]:
    settings = ExchangeSettings(data=(FILE,), category=category, speed=SPEED, hold=True)
    async with EmbeddedExchange(settings) as exchange:
        yield exchange


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
        "tiers": session.get_risk_limit(**where),
    }


async def test_pybit_reads_every_rest_call() -> None:
    async with exchange_of(Category.LINEAR) as exchange:
        answers = await asyncio.to_thread(read_by_pybit, exchange.rest_url)
    assert {name: answer["retCode"] for name, answer in answers.items()} == dict.fromkeys(
        answers, 0
    )
    assert len(answers["kline"]["result"]["list"]) == 5
    assert len(answers["book"]["result"]["b"]) == 25


def follow_by_pybit(category: Category) -> tuple[threading.Event, Counter[str]]:
    """Subscribe every topic in a thread of its own; the event is set when each came thrice.

    pybit registers a topic after it has sent the request, and dies of an answer that is faster;
    then its subscribe waits for ever, so its thread is a daemon.
    """
    counts: Counter[str] = Counter()
    enough = threading.Event()

    def keep(message: dict[str, Any]) -> None:
        counts[message["topic"]] += 1
        if len(counts) == 4 and min(counts.values()) >= 3:
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
    return enough, counts


@pytest.mark.parametrize("category", EXCHANGE_CATEGORIES)
async def test_pybit_follows_every_topic(
    category: Category, monkeypatch: pytest.MonkeyPatch
) -> None:
    logging.getLogger("pybit").setLevel(logging.CRITICAL)
    async with exchange_of(category) as exchange:
        url = exchange.stream_url + "/v5/public/{CHANNEL_TYPE}"
        monkeypatch.setattr(pybit.unified_trading, "PUBLIC_WSS", url)
        for _ in range(LIVES_OF_PYBIT):
            enough, topics = follow_by_pybit(category)
            if await asyncio.to_thread(enough.wait, deadline_s() / LIVES_OF_PYBIT):
                return
        pytest.fail(f"pybit saw only {topics}")


# ---------------------------------------------------------------- ccxt
