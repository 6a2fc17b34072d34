"""Candles and orders through NautilusTrader's backtest: ``with_nautilus.py TASK ANSWER``.

Its venue fills a market order at the newest price, which after a bar is that bar's close. The open
of the next bar is the price here, so it is given as a quote at that time, and the orders of the bar
before are sent at that quote.
"""

import json
import sys
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

from nautilus_trader.backtest.engine import BacktestEngine, BacktestEngineConfig
from nautilus_trader.config import LoggingConfig, StrategyConfig
from nautilus_trader.model.currencies import BTC, USDT
from nautilus_trader.model.data import QuoteTick
from nautilus_trader.model.enums import AccountType, OmsType, OrderSide
from nautilus_trader.model.events import OrderFilled
from nautilus_trader.model.identifiers import InstrumentId, Symbol, Venue
from nautilus_trader.model.instruments import CryptoPerpetual
from nautilus_trader.model.objects import Money, Price, Quantity
from nautilus_trader.trading.strategy import Strategy

task = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
ORDERS = {index: Decimal(signed) for index, signed in task["orders"]}
VENUE = Venue("BYBIT")
ITEM = InstrumentId(Symbol("BTCUSDT-LINEAR"), VENUE)
item = CryptoPerpetual(
    instrument_id=ITEM,
    raw_symbol=Symbol("BTCUSDT"),
    base_currency=BTC,
    quote_currency=USDT,
    settlement_currency=USDT,
    is_inverse=False,
    price_precision=1,
    size_precision=3,
    price_increment=Price.from_str("0.1"),
    size_increment=Quantity.from_str("0.001"),
    margin_init=Decimal("0.01"),
    margin_maint=Decimal("0.005"),
    maker_fee=Decimal(task["fee"]),
    taker_fee=Decimal(task["fee"]),
    ts_event=0,
    ts_init=0,
)


class GivenOrders(Strategy):
    """Sends the orders that it was given, each at the open after its bar."""

    def __init__(self) -> None:
        super().__init__(StrategyConfig())
        self.place = -1
        self.fills: list[list[Any]] = []

    def on_start(self) -> None:
        """Ask for the opens."""
        self.subscribe_quote_ticks(ITEM)

    def on_quote_tick(self, tick: QuoteTick) -> None:
        """Send what was decided by the bar before this open."""
        del tick
        self.place += 1
        signed = ORDERS.get(self.place - 1)
        if signed:
            side = OrderSide.BUY if signed > 0 else OrderSide.SELL
            quantity = Quantity.from_str(f"{abs(signed):.3f}")
            self.submit_order(self.order_factory.market(ITEM, side, quantity))

    def on_order_filled(self, event: OrderFilled) -> None:
        """Note the fill with its fee."""
        signed = str(event.last_qty) if event.is_buy else f"-{event.last_qty}"
        fee = str(event.commission.as_decimal())
        self.fills.append([self.place, signed, str(event.last_px), fee])


engine = BacktestEngine(BacktestEngineConfig(logging=LoggingConfig(bypass_logging=True)))
engine.add_venue(
    venue=VENUE,
    oms_type=OmsType.NETTING,
    account_type=AccountType.MARGIN,
    base_currency=None,
    starting_balances=[Money(Decimal(task["cash"]), USDT)],
)
engine.add_instrument(item)
opens = [candle[0] for candle in task["candles"]]
size = Quantity.from_str("1000000.000")
engine.add_data(
    [
        QuoteTick(ITEM, Price.from_str(price), Price.from_str(price), size, size, at, at)
        for price, at in zip(opens, (ms * 1_000_000 for ms in task["times_ms"]), strict=True)
    ]
)
given = GivenOrders()
engine.add_strategy(given)
began = time.process_time()
engine.run()
cpu_s = time.process_time() - began
account = engine.portfolio.account(VENUE)
cash = str(account.balance_total(USDT).as_decimal())
answer = {"cpu_s": cpu_s, "fills": given.fills, "cash": cash}
Path(sys.argv[2]).write_text(json.dumps(answer), encoding="utf-8")
