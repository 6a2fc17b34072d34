"""Who calls which route and topic of the embedded exchange, as `make clients` logged it.

The daemon's and the commands' own calls are those of `daemon/bybit/client.py` and
`daemon/bybit/websocket.py`. What nobody calls is not served.
"""

from __future__ import annotations

from typing import Final

DAEMON: Final = "daemon"
DOWNLOAD: Final = "`data download`"
RECORD: Final = "`data record`"
CCXT: Final = "ccxt"
PRO: Final = "ccxt.pro"
FREQTRADE: Final = "freqtrade"
NAUTILUS: Final = "NautilusTrader"

CALLERS: Final = {
    "/v5/market/time": (DAEMON, DOWNLOAD, RECORD, CCXT, FREQTRADE),
    "/v5/system/status": (CCXT,),
    "/v5/market/kline": (DAEMON, DOWNLOAD, CCXT, FREQTRADE, NAUTILUS),
    "/v5/market/mark-price-kline": (CCXT, FREQTRADE),
    "/v5/market/instruments-info": (DAEMON, DOWNLOAD, RECORD, CCXT, PRO, FREQTRADE, NAUTILUS),
    "/v5/market/tickers": (DAEMON, CCXT),
    "/v5/market/orderbook": (CCXT, FREQTRADE),
    "/v5/market/recent-trade": (CCXT,),
    "/v5/market/funding/history": (DAEMON, CCXT, FREQTRADE),
    "/v5/market/risk-limit": (DAEMON, CCXT, FREQTRADE),
    "/v5/account/fee-rate": (NAUTILUS,),
    "/v5/asset/coin/query-info": (NAUTILUS,),
    "kline": (DAEMON, PRO, FREQTRADE, NAUTILUS),
    "publicTrade": (DAEMON, RECORD, PRO, NAUTILUS),
    "tickers": (DAEMON, PRO),
    "orderbook": (DAEMON, RECORD, PRO, NAUTILUS),
}
"""By path of a route, or name of a topic."""
