"""ccxt.pro: candles, trades, ticker and book of one symbol."""

import asyncio
import json
import sys

import ccxt.pro

rest_url, stream_url, category = sys.argv[1:4]
symbol = "BTC/USDT:USDT" if category == "linear" else "BTC/USDT"


async def main() -> None:
    """Watch each once, the book thrice."""
    client = ccxt.pro.bybit({"enableRateLimit": False})
    api = dict.fromkeys(client.urls["api"], rest_url)
    public = {name: f"{stream_url}/v5/public/{name}" for name in client.urls["api"]["ws"]["public"]}
    client.urls["api"] = api | {"ws": client.urls["api"]["ws"] | {"public": public}}
    try:
        await client.load_markets()
        for _ in range(3):
            book = await client.watch_order_book(symbol)
            assert book["bids"][0][0] < book["asks"][0][0]
        counts = {
            "levels": len(book["bids"]),
            "ticker": (await client.watch_ticker(symbol))["last"],
            "trades": len(await client.watch_trades(symbol)),
            "candles": len(await client.watch_ohlcv(symbol, "1m")),
        }
    finally:
        await client.close()
    print(json.dumps(counts))


asyncio.run(main())
