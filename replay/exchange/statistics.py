"""Statistics and reference data: interest, ratios, volatility, deliveries, fees, coins.

What follows from prices and volumes is derived from them; accounts, of which candles know nothing,
are seeded noise in a plausible range. Options and dated futures that nobody serves are empty lists.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final
from urllib.parse import quote

import numpy as np

from tracepaper.daemon.bybit.messages import Refused
from tracepaper.replay.exchange.answers import (
    BAD_CATEGORY,
    BAD_PARAMETER,
    BAD_SYMBOL,
    CATEGORIES,
    DERIVATIVES,
    TIME_OPTIONS,
    Answer,
    Flat,
    Limit,
    Query,
    RefusedQuery,
    cursor_fields,
    market_of,
    route,
    window_of,
)
from tracepaper.replay.exchange.candles import INDEX, mix
from tracepaper.replay.exchange.instruments import padded
from tracepaper.replay.exchange.market import SimulatedMarket, Venue, open_interest
from tracepaper.strategies.units import BASE_FEES, DAY_MS, HOUR_MS, MINUTE_MS, unscaled

PERIODS: Final = {
    "5min": 5 * MINUTE_MS,
    "15min": 15 * MINUTE_MS,
    "30min": 30 * MINUTE_MS,
    "1h": HOUR_MS,
    "4h": 4 * HOUR_MS,
    "1d": DAY_MS,
}
INTEREST_LIMIT: Final = Limit(50, 200)
RATIO_LIMIT: Final = Limit(50, 500)
INTEREST_DECIMALS: Final = 8
RATIO_DECIMALS: Final = 4
HOURS_A_YEAR: Final = 24 * 365
PERIOD_DAYS: Final = (7, 14, 21, 30, 60, 90, 180, 270)
VOLATILITY_SPAN_MS: Final = 30 * DAY_MS
FEE_GROUP: Final = "G1(Major Coins)"
FEE_GROUP_ID: Final = "1"
FEES: Final = {
    "pro": [
        *(("Pro", number, "0.00032", "0", "") for number in (1, 2, 3)),
        *(("Pro", number, "0.00028", "0", "") for number in (4, 5, 6)),
    ],
    "marketMaker": [
        ("MM", 1, "", "", "-0.000025"),
        ("MM", 2, "", "", "-0.00005"),
        ("MM", 3, "", "", "-0.000075"),
    ],
}
COIN_DECIMALS: Final = 8

Item = dict[str, Any]


@route(
    "/v5/market/open-interest", ("category", "symbol", "intervalTime"), (*TIME_OPTIONS, "cursor")
)
def open_interest_history(venue: Venue, query: Query, now_ms: int) -> Answer:
    """Return open interest, newest first, on the grid of ``intervalTime``."""

    def item(market: SimulatedMarket, time_ms: int) -> Item:
        interest = open_interest(market, time_ms)
        both = interest * 10 ** max(0, INTEREST_DECIMALS - market.listing.size_decimals)
        decimals = max(INTEREST_DECIMALS, market.listing.size_decimals)
        return {
            "openInterest": padded(both, decimals),
            "singleOpenInterest": market.size_text(interest // 2),
            "timestamp": str(time_ms),
        }

    market, items, cursor = _history(venue, query, now_ms, "intervalTime", INTEREST_LIMIT, item)
    return {
        "symbol": market.symbol,
        "category": market.category.value,
        "list": items,
        "nextPageCursor": cursor,
    }


@route("/v5/market/account-ratio", ("category", "symbol", "period"), (*TIME_OPTIONS, "cursor"))
def account_ratio(venue: Venue, query: Query, now_ms: int) -> Answer:
    """Return the shares of long and short accounts: invented, together 1."""

    def item(market: SimulatedMarket, time_ms: int) -> Item:
        whole = 10**RATIO_DECIMALS
        bought = whole * 2 // 5 + mix(market.seed ^ time_ms) % (whole // 5)
        return {
            "symbol": market.symbol,
            "buyRatio": unscaled(bought, RATIO_DECIMALS),
            "sellRatio": unscaled(whole - bought, RATIO_DECIMALS),
            "timestamp": str(time_ms),
        }

    _, items, cursor = _history(venue, query, now_ms, "period", RATIO_LIMIT, item)
    return {"list": items, "nextPageCursor": cursor}


def _history(
    venue: Venue,
    query: Query,
    now_ms: int,
    period: str,
    limit: Limit,
    item: Callable[[SimulatedMarket, int], Item],
) -> tuple[SimulatedMarket, list[Item], str]:
    """Return a market, its items on the grid of *period*, newest first, and the next page."""
    if query.get("category", "") not in DERIVATIVES:
        raise RefusedQuery(*BAD_CATEGORY)
    market = market_of(venue, query, required=True)
    step = PERIODS.get(query.get(period, ""))
    if step is None:
        raise RefusedQuery(BAD_PARAMETER, f"params error: {period} is invalid")
    start_ms, end_ms, size = window_of(query, limit, "startTime", "endTime")
    before = cursor_fields(query).get("lasttime", "")
    if before and not before.isdecimal():
        raise RefusedQuery(BAD_PARAMETER, "params error: cursor is invalid")
    latest = min(now_ms, now_ms if end_ms is None else end_ms)
    if before:
        latest = min(latest, int(before) * 1000 - 1)
    earliest = -(-max(market.start_ms, start_ms or 0) // step)
    times = range(latest // step, earliest - 1, -1)
    page = [each * step for each in times[:size]]
    cursor = quote(f"lastid=0&lasttime={page[-1] // 1000}") if len(times) > size else ""
    return market, [item(market, each) for each in page], cursor


@route("/v5/market/delivery-price", ("category",), ("symbol",))
def delivery_price(venue: Venue, query: Query, now_ms: int) -> Answer:
    """Return delivery prices: dated futures that are over, at their last index."""
    category = query.get("category", "")
    if category not in CATEGORIES or category == "spot":
        return BAD_CATEGORY
    items = []
    for (kind, symbol), market in sorted(venue.markets.items()):
        due_ms = int(market.listing.item.get("deliveryTime", "0"))
        row = market.base.row_at(due_ms - 1)
        if kind == category and query.get("symbol", symbol) == symbol and 0 < due_ms <= now_ms:
            if row < 0:
                continue
            price = market.marks.price(INDEX, row, int(market.base.close[row]))
            text = unscaled(price, market.listing.price_decimals)
            item = {"symbol": symbol, "deliveryPrice": text, "deliveryTime": str(due_ms)}
            items.append(item)
    return {"category": category, "nextPageCursor": "", "list": items}


@route("/v5/market/new-delivery-price", ("category", "baseCoin"))
def new_delivery_price(venue: Venue, query: Query, now_ms: int) -> Answer:
    """Return delivery prices of options, which nobody serves."""
    del venue, now_ms
    if query.get("category", "") != "option":
        return BAD_CATEGORY
    return {"category": "option", "list": []}


@route(
    "/v5/market/historical-volatility",
    ("category",),
    ("baseCoin", "period", "startTime", "endTime"),
)
def historical_volatility(venue: Venue, query: Query, now_ms: int) -> Answer:
    """Return volatility by the hour: of the returns of the days before, a year's.

    Its body has the category beside a result that is a list.
    """
    if query.get("category", "") != "option":
        return BAD_CATEGORY
    period = query.get("period", "") or str(PERIOD_DAYS[0])
    if period not in map(str, PERIOD_DAYS):
        return Refused(BAD_PARAMETER, "params error: period is invalid")
    start_ms, end_ms, _ = window_of(query, Limit(1, 1), "startTime", "endTime")
    if (start_ms is None) is not (end_ms is None):
        return Refused(BAD_PARAMETER, "params error: give startTime and endTime, or neither")
    latest = min(now_ms, now_ms if end_ms is None else end_ms) // HOUR_MS * HOUR_MS
    earliest = latest if start_ms is None else max(start_ms, latest - VOLATILITY_SPAN_MS)
    coin = query.get("baseCoin", "") or "BTC"
    market = next((m for m in venue.markets.values() if m.listing.base_coin == coin), None)
    items = []
    if market is not None:
        for time_ms in range(latest, earliest - 1, -HOUR_MS):
            value = _volatility(market, time_ms, int(period))
            if value is not None:
                items.append({"period": int(period), "value": value, "time": str(time_ms)})
    return Flat({"retMsg": "SUCCESS", "category": "option"}, items)


def _volatility(market: SimulatedMarket, time_ms: int, days: int) -> str | None:
    """Return the yearly volatility of *days* before *time_ms*, or None without three closes."""
    table = market.series.table("60") or market.base
    step_ms = max(HOUR_MS, market.interval_ms)
    last = table.row_at(time_ms - step_ms)
    first = max(0, table.row_at(time_ms - days * DAY_MS))
    if last - first < 2:  # two returns
        return None
    closes = table.close[first : last + 1].astype(np.float64)
    yearly = float(np.diff(np.log(closes)).std(ddof=1)) * (HOURS_A_YEAR * HOUR_MS / step_ms) ** 0.5
    return f"{yearly:.8f}"


@route("/v5/market/index-price-components", ("indexName",))
def index_price_components(venue: Venue, query: Query, now_ms: int) -> Answer:
    """Return the components of an index, which this exchange alone makes."""
    name = query.get("indexName", "")
    market = venue.find("linear", name) or venue.find("spot", name)
    if market is None:
        return BAD_SYMBOL
    row = max(0, market.base.row_at(now_ms))
    last = market.touch(row, now_ms).price
    text = unscaled(market.marks.price(INDEX, row, last), market.listing.price_decimals)
    component = {
        "exchange": "Bybit",
        "spotPair": name,
        "equivalentPrice": text,
        "multiplier": "1",
        "price": text,
        "weight": "1",
    }
    return {
        "indexName": name,
        "lastPrice": text,
        "updateTime": str(now_ms),
        "components": [component],
    }


@route("/v5/account/fee-rate", ("category",), ("symbol",))
def fee_rate(venue: Venue, query: Query, now_ms: int) -> Answer:
    """Return the retail fee rates, with any key or none.

    It is no public route, but clients that load instruments ask for it before all else.
    """
    del now_ms
    category = query.get("category", "")
    if category not in CATEGORIES:
        return BAD_CATEGORY
    taker, maker = BASE_FEES[category]
    items = [
        {
            "symbol": symbol,
            "baseCoin": market.listing.base_coin,
            "takerFeeRate": taker,
            "makerFeeRate": maker,
        }
        for (kind, symbol), market in sorted(venue.markets.items())
        if kind == category and query.get("symbol", symbol) == symbol
    ]
    return {"list": items}


@route("/v5/asset/coin/query-info", (), ("coin",))
def coin_info(venue: Venue, query: Query, now_ms: int) -> Answer:
    """Return the coins of the markets, none of which can be moved.

    Like the fee rates it is no public route, and asked for by clients that load instruments.
    """
    del now_ms
    coins = {
        market.listing.item[name]
        for market in venue.markets.values()
        for name in ("baseCoin", "quoteCoin")
    }
    chain = {
        "chain": "NONE",
        "chainType": "None",
        "confirmation": "1",
        "withdrawFee": "",
        "depositMin": "0",
        "withdrawMin": "0",
        "minAccuracy": str(COIN_DECIMALS),
        "chainDeposit": "0",
        "chainWithdraw": "0",
        "withdrawPercentageFee": "0",
        "contractAddress": "",
        "safeConfirmNumber": "1",
        "withdrawMax": "0",
    }
    rows = [
        {"name": coin, "coin": coin, "remainAmount": "0", "chains": [chain]}
        for coin in sorted(coins)
        if query.get("coin", coin) == coin
    ]
    return {"rows": rows}


@route("/v5/market/fee-group-info", ("productType",), ("groupId",))
def fee_group_info(venue: Venue, query: Query, now_ms: int) -> Answer:
    """Return fee groups: all contracts in one, for professionals alone."""
    if query.get("productType", "") != "contract":
        return Refused(BAD_PARAMETER, "params error: productType is invalid")
    symbols = [name for kind, name in sorted(venue.markets) if kind in DERIVATIVES]
    if not symbols or query.get("groupId", FEE_GROUP_ID) != FEE_GROUP_ID:
        return {"list": []}
    rates = {
        kind: [
            {
                "level": f"{word} {number}",
                "takerFeeRate": taker,
                "makerFeeRate": maker,
                "makerRebate": rebate,
            }
            for word, number, taker, maker, rebate in levels
        ]
        for kind, levels in FEES.items()
    }
    group = {
        "groupName": FEE_GROUP,
        "weightingFactor": 1,
        "symbolsNumbers": len(symbols),
        "symbols": symbols,
        "feeRates": rates,
        "updateTime": str(now_ms // DAY_MS * DAY_MS),
    }
    return {"list": [group]}
