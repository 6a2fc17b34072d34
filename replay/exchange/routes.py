"""Every REST route, once: its path, what answers it, and the parameters it must be given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from tracepaper.replay.exchange import answers, figures, risk
from tracepaper.replay.exchange.query import BAD_PARAMETER, Answer, Query, Refused
from tracepaper.replay.exchange.venue import Venue

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
        figures.open_interest_history,
        ("category", "symbol", "intervalTime"),
        (*_TIMES, "cursor"),
    ),
    Route(
        "/v5/market/historical-volatility",
        figures.historical_volatility,
        ("category",),
        ("baseCoin", "period", "startTime", "endTime"),
    ),
    Route("/v5/market/insurance", risk.insurance, (), ("coin",)),
    Route("/v5/market/risk-limit", risk.risk_limit, ("category",), ("symbol", "cursor")),
    Route("/v5/market/delivery-price", figures.delivery_price, ("category",), ("symbol",)),
    Route("/v5/market/new-delivery-price", figures.new_delivery_price, ("category", "baseCoin")),
    Route(
        "/v5/market/account-ratio",
        figures.account_ratio,
        ("category", "symbol", "period"),
        (*_TIMES, "cursor"),
    ),
    Route("/v5/market/price-limit", risk.price_limit, ("symbol",), ("category",)),
    Route("/v5/market/index-price-components", figures.index_price_components, ("indexName",)),
    Route("/v5/market/adlAlert", risk.adl_alert, (), ("coin",)),
    Route("/v5/market/fee-group-info", figures.fee_group_info, ("productType",), ("groupId",)),
    Route("/v5/account/fee-rate", figures.fee_rate, ("category",), ("symbol",)),
    Route("/v5/asset/coin/query-info", figures.coin_info, (), ("coin",)),
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
