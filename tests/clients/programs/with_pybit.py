"""pybit: the market routes that other clients call too, and the four topics."""

import json
import sys
import threading
from collections import Counter
from typing import Any

import pybit.unified_trading
from pybit.unified_trading import HTTP, WebSocket

rest_url, stream_url, category = sys.argv[1:4]
one = {"category": category, "symbol": "BTCUSDT"}
ROUTES: dict[str, dict[str, Any]] = {
    "get_server_time": {},
    "get_kline": one | {"interval": "1"},
    "get_instruments_info": {"category": category},
    "get_orderbook": one,
    "get_tickers": one,
    "get_public_trade_history": one,
}
if category == "linear":
    ROUTES |= {
        "get_mark_price_kline": one | {"interval": "1"},
        "get_funding_rate_history": one,
        "get_risk_limit": one,
    }
session = HTTP()
session.endpoint = rest_url
refused = [name for name, query in ROUTES.items() if getattr(session, name)(**query)["retCode"]]

frames: Counter[str] = Counter(dict.fromkeys(("orderbook", "tickers", "publicTrade", "kline"), 0))
enough = threading.Event()


def keep(message: dict[str, Any]) -> None:
    """Count a frame by its topic's first word."""
    frames[message["topic"].partition(".")[0]] += 1
    if min(frames.values()) > 0:
        enough.set()


pybit.unified_trading.PUBLIC_WSS = stream_url + "/v5/public/{CHANNEL_TYPE}"
stream = WebSocket(channel_type=category, testnet=False)
stream.orderbook_stream(50, "BTCUSDT", keep)
stream.ticker_stream("BTCUSDT", keep)
stream.trade_stream("BTCUSDT", keep)
stream.kline_stream(1, "BTCUSDT", keep)
enough.wait(60)
stream.exit()
print(json.dumps({"refused": refused, "frames": frames}))
