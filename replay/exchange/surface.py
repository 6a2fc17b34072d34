"""Every REST route and every stream topic that the exchange serves, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from tracepaper.replay.exchange import answers, risk, statistics
from tracepaper.replay.exchange.answers import BAD_PARAMETER, Answer, Query, Refused
from tracepaper.replay.exchange.channels import CandleChannel, Channel, Pacing, TradeChannel
from tracepaper.replay.exchange.faults import Faults
from tracepaper.replay.exchange.market import Venue
from tracepaper.replay.exchange.quotes import DEPTHS, NO_RPI, RPI_DEPTH, BookChannel, TickerChannel
from tracepaper.replay.exchange.risk import (
    LiquidationChannel,
    coins_settled,
    deleveraging_alerts,
    insurance_pool,
    price_limits,
)

ROUTE_NOT_FOUND: Final = 10017
WHY: Final = {"category": answers.BAD_CATEGORY, "symbol": answers.BAD_SYMBOL}
"""What the exchange says of a parameter that is missing; of others the plain sentence."""


class Route(NamedTuple):
    """One route: *required* parameters may not be empty; *optional* ones are read where given."""

    path: str
    answer: Callable[[Venue, Query, int], Answer]
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


_CANDLES: Final = ("category", "start", "end", "limit")
_TIMES: Final = ("startTime", "endTime", "limit")

ROUTES: Final = (
    Route("/v5/market/time", answers.server_time),
    Route("/v5/market/kline", answers.kline, ("symbol", "interval"), _CANDLES),
    Route(
        "/v5/market/mark-price-kline", answers.mark_price_kline, ("symbol", "interval"), _CANDLES
    ),
    Route(
        "/v5/market/index-price-kline", answers.index_price_kline, ("symbol", "interval"), _CANDLES
    ),
    Route(
        "/v5/market/premium-index-price-kline",
        answers.premium_index_price_kline,
        ("symbol", "interval"),
        _CANDLES,
    ),
    Route(
        "/v5/market/instruments-info",
        answers.instruments_info,
        ("category",),
        ("symbol", "status", "baseCoin", "limit", "cursor"),
    ),
    Route("/v5/market/orderbook", answers.orderbook, ("category", "symbol"), ("limit",)),
    Route("/v5/market/rpi_orderbook", answers.rpi_orderbook, ("symbol",), ("category", "limit")),
    Route("/v5/market/full_orderbook", answers.full_orderbook, ("category", "symbol")),
    Route("/v5/market/tickers", answers.tickers, ("category",), ("symbol",)),
    Route("/v5/market/funding/history", answers.funding_history, ("category", "symbol"), _TIMES),
    Route("/v5/market/recent-trade", answers.recent_trade, ("category", "symbol"), ("limit",)),
    Route(
        "/v5/market/open-interest",
        statistics.open_interest_history,
        ("category", "symbol", "intervalTime"),
        (*_TIMES, "cursor"),
    ),
    Route(
        "/v5/market/historical-volatility",
        statistics.historical_volatility,
        ("category",),
        ("baseCoin", "period", "startTime", "endTime"),
    ),
    Route("/v5/market/insurance", risk.insurance, (), ("coin",)),
    Route("/v5/market/risk-limit", risk.risk_limit, ("category",), ("symbol", "cursor")),
    Route("/v5/market/delivery-price", statistics.delivery_price, ("category",), ("symbol",)),
    Route("/v5/market/new-delivery-price", statistics.new_delivery_price, ("category", "baseCoin")),
    Route(
        "/v5/market/account-ratio",
        statistics.account_ratio,
        ("category", "symbol", "period"),
        (*_TIMES, "cursor"),
    ),
    Route("/v5/market/price-limit", risk.price_limit, ("symbol",), ("category",)),
    Route("/v5/market/index-price-components", statistics.index_price_components, ("indexName",)),
    Route("/v5/market/adlAlert", risk.adl_alert, (), ("coin",)),
    Route("/v5/market/fee-group-info", statistics.fee_group_info, ("productType",), ("groupId",)),
    Route("/v5/account/fee-rate", statistics.fee_rate, ("category",), ("symbol",)),
    Route("/v5/asset/coin/query-info", statistics.coin_info, (), ("coin",)),
    Route("/v5/system/status", answers.system_status),
    Route("/v5/announcements/index", answers.announcements),
)
_BY_PATH: Final = {route.path: route for route in ROUTES}


def answer(venue: Venue, path: str, query: Query, now_ms: int) -> Answer:
    """Return what *path* answers to *query* at *now_ms*, or the refusal of either."""
    route = _BY_PATH.get(path)
    if route is None:
        return Refused(ROUTE_NOT_FOUND, "Route not found.")
    for name in route.required:
        if not query.get(name, ""):
            plain = Refused(BAD_PARAMETER, f"params error: {name} is required")
            return WHY.get(name, plain)
    return route.answer(venue, query, now_ms)


# ------------------------------------------------------------ topics


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
