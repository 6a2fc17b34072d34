"""Stream topics by their names."""

from __future__ import annotations

from tracepaper.replay.exchange.candles import CandleChannel, TradeChannel
from tracepaper.replay.exchange.channels import Channel, Pacing
from tracepaper.replay.exchange.faults import Faults
from tracepaper.replay.exchange.quotes import (
    DEPTHS,
    NO_RPI,
    RPI_DEPTH,
    BookChannel,
    TickerChannel,
)
from tracepaper.replay.exchange.risk import (
    LiquidationChannel,
    coins_settled,
    deleveraging_alerts,
    insurance_pool,
    price_limits,
)
from tracepaper.replay.exchange.venue import Venue


def find_channel(
    venue: Venue, category: str, topic: str, *, pacing: Pacing, faults: Faults
) -> Channel | None:
    """Return a new channel of *topic*, or None where the exchange has no such topic."""
    name, _, rest = topic.partition(".")
    argument, _, symbol = rest.rpartition(".")
    if category == "linear" and name in {"insurance", "adlAlert"}:
        settled = coins_settled(venue).get(rest)
        build = insurance_pool if name == "insurance" else deleveraging_alerts
        return build(topic, settled, pacing) if settled else None
    market = venue.find(category, symbol)
    if market is None:
        return None
    found: Channel | None = None
    match name, argument:
        case "kline", interval if market.table(interval):
            found = CandleChannel(topic, market, interval, faults)
        case "publicTrade", "":
            found = TradeChannel(topic, market, pacing)
        case "tickers", "":
            found = TickerChannel(topic, market, pacing)
        case "orderbook", "rpi":
            found = BookChannel(topic, market, RPI_DEPTH, pacing, extra=(NO_RPI,))
        case "orderbook", depth if depth.isdecimal() and int(depth) in DEPTHS:
            found = BookChannel(topic, market, int(depth), pacing)
        case "priceLimit", "":
            found = price_limits(topic, market, pacing)
        case "allLiquidation", "" if category == "linear":
            found = LiquidationChannel(topic, market)
        case _:
            pass
    return found
