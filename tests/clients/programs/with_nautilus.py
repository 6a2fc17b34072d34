"""NautilusTrader: a live node with its Bybit data client and its sandbox fills one order."""

import json
import sys
from datetime import timedelta
from typing import Any

from nautilus_trader.adapters.bybit import factories
from nautilus_trader.adapters.bybit.common.enums import BybitProductType
from nautilus_trader.adapters.bybit.config import BybitDataClientConfig
from nautilus_trader.adapters.bybit.factories import BybitLiveDataClientFactory
from nautilus_trader.adapters.sandbox.config import SandboxExecutionClientConfig
from nautilus_trader.adapters.sandbox.factory import SandboxLiveExecClientFactory
from nautilus_trader.config import InstrumentProviderConfig, LoggingConfig, TradingNodeConfig
from nautilus_trader.live.node import TradingNode
from nautilus_trader.model.data import BarType
from nautilus_trader.model.enums import OrderSide
from nautilus_trader.model.identifiers import InstrumentId, TraderId
from nautilus_trader.trading.strategy import Strategy

rest_url, stream_url, category = sys.argv[1:4]
PRODUCT = BybitProductType.LINEAR if category == "linear" else BybitProductType.SPOT
INSTRUMENT = InstrumentId.from_str(f"BTCUSDT-{category.upper()}.BYBIT")
BARS = BarType.from_str(f"{INSTRUMENT}-1-MINUTE-LAST-EXTERNAL")


filled: list[float] = []


class Follower(Strategy):
    """Counts what comes, buys at the first live bar and ends the node at the fill."""

    def on_start(self) -> None:
        """Ask for the past and for all that comes."""
        self.counts: dict[str, int] = {"quotes": 0, "trades": 0, "bars": 0, "past": 0}
        self.instrument = self.cache.instrument(INSTRUMENT)
        self.request_bars(BARS, start=self.clock.utc_now() - timedelta(hours=2))
        self.subscribe_quote_ticks(INSTRUMENT)
        self.subscribe_trade_ticks(INSTRUMENT)
        self.subscribe_bars(BARS)

    def on_historical_data(self, data: Any) -> None:
        """Count a bar of the past."""
        self.counts["past"] += 1

    def on_quote_tick(self, tick: Any) -> None:
        """Count a quote."""
        self.counts["quotes"] += 1
        assert tick.bid_price < tick.ask_price

    def on_trade_tick(self, tick: Any) -> None:
        """Count a trade."""
        self.counts["trades"] += 1

    def on_bar(self, bar: Any) -> None:
        """Count a bar, and buy at the first."""
        self.counts["bars"] += 1
        if self.counts["bars"] == 1:
            quantity = self.instrument.make_qty(0.01)
            order = self.order_factory.market(INSTRUMENT, OrderSide.BUY, quantity)
            self.submit_order(order)

    def on_order_filled(self, event: Any) -> None:
        """End."""
        filled.append(float(event.last_qty))
        node.stop()


def public_stream(product_type: Any, is_demo: bool, is_testnet: bool) -> str:
    """Return the address of a product's stream."""
    return f"{stream_url}/v5/public/{product_type.value}"


factories.get_ws_base_url_public = public_stream  # the one address that no configuration names
node = TradingNode(
    TradingNodeConfig(
        trader_id=TraderId("TESTER-001"),
        logging=LoggingConfig(log_level="WARNING"),
        data_clients={
            "BYBIT": BybitDataClientConfig(
                api_key="none",
                api_secret="none",
                base_url_http=rest_url,
                product_types=[PRODUCT],
                instrument_provider=InstrumentProviderConfig(load_all=True),
            )
        },
        exec_clients={
            "BYBIT": SandboxExecutionClientConfig(
                venue="BYBIT", starting_balances=["100000 USDT", "10 BTC"]
            )
        },
    )
)
node.add_data_client_factory("BYBIT", BybitLiveDataClientFactory)
node.add_exec_client_factory("BYBIT", SandboxLiveExecClientFactory)
follower = Follower()
node.trader.add_strategy(follower)
node.build()
try:
    node.run()
finally:
    node.dispose()
print(json.dumps({"quantity": sum(filled), **follower.counts}))
