"""ccxt: markets, candles, book, trades, and of contracts tiers, marks and funding."""

import json
import sys
from typing import Any

import ccxt

rest_url, _, category = sys.argv[1:4]
client = ccxt.bybit({"enableRateLimit": False})
client.urls["api"] = dict.fromkeys(client.urls["api"], rest_url)
symbol = "BTC/USDT:USDT" if category == "linear" else "BTC/USDT"
counts: dict[str, Any] = {"markets": list(client.load_markets())}
counts["late_ms"] = abs(client.milliseconds() - client.fetch_time())
assert len(client.fetch_ohlcv(symbol, "1m", limit=500)) == 500
ticker = client.fetch_ticker(symbol)
assert ticker["bid"] < ticker["ask"]
assert len(client.fetch_order_book(symbol, 50)["bids"]) == 50
assert client.fetch_trades(symbol, limit=20)
assert client.fetch_status()["status"] == "ok"
if category == "linear":
    counts["tiers"] = len(client.fetch_leverage_tiers([symbol])[symbol])
    assert len(client.fetch_market_leverage_tiers(symbol)) == counts["tiers"]
    counts["mark"] = len(client.fetch_mark_ohlcv(symbol, "5m", limit=5))
    assert client.fetch_funding_rate(symbol)["markPrice"]
    assert client.fetch_funding_rate_history(symbol, limit=3)
print(json.dumps(counts))
