"""The rarer REST answers: risk tiers, limits, interest, ratios, funds, volatility, components.

What follows from prices and volumes is derived from them; accounts, of which candles know nothing,
are seeded noise in a plausible range. Options and dated futures that nobody serves are empty lists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final
from urllib.parse import parse_qs, quote, unquote

import numpy as np

from tracepaper.replay.exchange.answers import BAD_CATEGORY, BAD_SYMBOL, CATEGORIES, market_of
from tracepaper.replay.exchange.funding import open_interest
from tracepaper.replay.exchange.intervals import DAY_MS, HOUR_MS, MINUTE_MS
from tracepaper.replay.exchange.market import Market
from tracepaper.replay.exchange.marks import INDEX, MARK
from tracepaper.replay.exchange.noise import mix
from tracepaper.replay.exchange.query import (
    BAD_PARAMETER,
    Answer,
    Flat,
    Limit,
    Query,
    Refused,
    window_of,
)
from tracepaper.replay.exchange.text import padded, parsed, plain
from tracepaper.replay.exchange.venue import Venue
from tracepaper.strategies.types import Category

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
RISK_SYMBOLS: Final = 15
LEVERAGE_SHARES: Final = (100, 75, 50, 25, 10)
"""Each risk tier's share of the greatest leverage, in hundredths."""
TIER_SHARE: Final = 200
"""A risk tier is so many parts of a day's turnover, to one digit."""
MARGIN_DECIMALS: Final = 6
INTEREST_DECIMALS: Final = 8
RATIO_DECIMALS: Final = 4
POOL_DECIMALS: Final = 8
POOL_LEAST: Final = 10**6
POOL_SPAN: Final = 9 * 10**6
PRICE_LIMIT_RATIO: Final = "0.05"
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
RETAIL_FEES: Final = {
    "spot": ("0.001", "0.001"),
    "linear": ("0.00055", "0.0002"),
    "inverse": ("0.00055", "0.0002"),
    "option": ("0.0003", "0.0002"),
}
"""Taker and maker."""
COIN_DECIMALS: Final = 8
DERIVATIVES: Final = ("linear", "inverse")

Item = dict[str, Any]


def risk_limit(venue: Venue, query: Query, now_ms: int) -> Answer:
    """``/v5/market/risk-limit``: five tiers a symbol, fifteen symbols a page."""
    del now_ms
    category = query.get("category", "")
    if category not in DERIVATIVES:
        return BAD_CATEGORY
    symbol = query.get("symbol", "")
    if symbol and venue.find(category, symbol) is None:
        return BAD_SYMBOL
    after = _cursor(query).get("last", "")
    names = sorted(
        name
        for kind, name in venue.markets
        if kind == category and name > after and symbol in ("", name)
    )
    page = names[:RISK_SYMBOLS]
    items = [item for name in page for item in _tiers(venue.markets[category, name])]
    cursor = quote(f"last={page[-1]}") if len(names) > len(page) else ""
    return {"category": category, "list": items, "nextPageCursor": cursor}


def _tiers(market: Market) -> Iterator[Item]:
    """Yield the risk tiers of *market*: its leverage falls as the position grows."""
    leverage, decimals = parsed(market.listing.item["leverageFilter"]["maxLeverage"])
    close = int(market.base.close[0])
    scale = market.listing.price_decimals + market.listing.size_decimals
    turnover = market.daily_volume * close // 10**scale // TIER_SHARE
    unit = max(1_000, int(str(turnover)[0]) * 10 ** (len(str(turnover)) - 1))
    deduction = maintenance_before = 0
    for rank, share in enumerate(LEVERAGE_SHARES, 1):
        allowed = max(10**decimals, leverage * share // 100)
        initial = 10 ** (MARGIN_DECIMALS + decimals) // allowed
        maintenance = initial // 2
        deduction += (rank - 1) * unit * (maintenance - maintenance_before)
        maintenance_before = maintenance
        yield {
            "id": rank,
            "symbol": market.symbol,
            "riskLimitValue": str(rank * unit),
            "maintenanceMargin": plain(maintenance, MARGIN_DECIMALS),
            "initialMargin": plain(initial, MARGIN_DECIMALS),
            "isLowestRisk": int(rank == 1),
            "maxLeverage": padded(allowed, decimals),
            "mmDeduction": plain(deduction, MARGIN_DECIMALS) if rank > 1 else "",
        }


def price_limit(venue: Venue, query: Query, now_ms: int) -> Answer:
    """``/v5/market/price-limit``: the mark, or on spot the last price, more or less a share."""
    market = market_of(venue, query)
    if isinstance(market, Refused):
        return market
    return {**limits(market, now_ms), "ts": str(now_ms)}


def limits(market: Market, now_ms: int) -> dict[str, str]:
    """Return the highest bid and the lowest ask that *market* takes, on its tick."""
    row = max(0, market.base.row_at(now_ms))
    price = market.touch(row, now_ms).price
    if market.category is Category.LINEAR:
        price = market.marks.price(MARK, row, price)
    ratios = market.listing.item.get("riskParameters") or {}
    ratio, decimals = parsed(ratios.get("priceLimitRatioX") or PRICE_LIMIT_RATIO)
    tick, unit = market.listing.tick, 10**decimals
    most = price * (unit + ratio) // unit // tick * tick
    least = max(tick, -(-price * (unit - ratio) // unit // tick) * tick)
    return {
        "symbol": market.symbol,
        "buyLmt": market.price_text(most),
        "sellLmt": market.price_text(least),
    }


def open_interest_history(venue: Venue, query: Query, now_ms: int) -> Answer:
    """``/v5/market/open-interest``: newest first, on the grid of ``intervalTime``."""

    def item(market: Market, time_ms: int) -> Item:
        interest = open_interest(market, time_ms)
        both = interest * 10 ** max(0, INTEREST_DECIMALS - market.listing.size_decimals)
        decimals = max(INTEREST_DECIMALS, market.listing.size_decimals)
        return {
            "openInterest": padded(both, decimals),
            "singleOpenInterest": market.size_text(interest // 2),
            "timestamp": str(time_ms),
        }

    found = _history(venue, query, now_ms, "intervalTime", INTEREST_LIMIT, item)
    if isinstance(found, Refused):
        return found
    market, items, cursor = found
    category = market.category.value
    return {
        "symbol": market.symbol,
        "category": category,
        "list": items,
        "nextPageCursor": cursor,
    }


def account_ratio(venue: Venue, query: Query, now_ms: int) -> Answer:
    """``/v5/market/account-ratio``: invented shares of long and short accounts, together 1."""

    def item(market: Market, time_ms: int) -> Item:
        whole = 10**RATIO_DECIMALS
        bought = whole * 2 // 5 + mix(market.seed ^ time_ms) % (whole // 5)
        return {
            "symbol": market.symbol,
            "buyRatio": plain(bought, RATIO_DECIMALS),
            "sellRatio": plain(whole - bought, RATIO_DECIMALS),
            "timestamp": str(time_ms),
        }

    found = _history(venue, query, now_ms, "period", RATIO_LIMIT, item)
    if isinstance(found, Refused):
        return found
    _, items, cursor = found
    return {"list": items, "nextPageCursor": cursor}


def _history(
    venue: Venue,
    query: Query,
    now_ms: int,
    period: str,
    limit: Limit,
    item: Callable[[Market, int], Item],
) -> tuple[Market, list[Item], str] | Refused:
    """Return a market, its items on the grid of *period*, newest first, and the next page."""
    if query.get("category", "") not in DERIVATIVES:
        return BAD_CATEGORY
    market = market_of(venue, query, required=True)
    if isinstance(market, Refused):
        return market
    step = PERIODS.get(query.get(period, ""))
    if step is None:
        return Refused(BAD_PARAMETER, f"params error: {period} is invalid")
    window = window_of(query, limit, "startTime", "endTime")
    if isinstance(window, Refused):
        return window
    start_ms, end_ms, size = window
    before = _cursor(query).get("lasttime", "")
    if before and not before.isdecimal():
        return Refused(BAD_PARAMETER, "params error: cursor is invalid")
    latest = min(now_ms, now_ms if end_ms is None else end_ms)
    if before:
        latest = min(latest, int(before) * 1000 - 1)
    earliest = -(-max(market.start_ms, start_ms or 0) // step)
    times = range(latest // step, earliest - 1, -1)
    page = [each * step for each in times[:size]]
    cursor = quote(f"lastid=0&lasttime={page[-1] // 1000}") if len(times) > size else ""
    return market, [item(market, each) for each in page], cursor


def _cursor(query: Query) -> dict[str, str]:
    """Return the fields of the cursor of *query*, which clients send encoded once or twice."""
    fields = parse_qs(unquote(query.get("cursor", "")))
    return {name: values[0] for name, values in fields.items()}


def insurance(venue: Venue, query: Query, now_ms: int) -> Answer:
    """``/v5/market/insurance``: one invented pool for all contracts of a coin."""
    day = now_ms // DAY_MS
    pools = coins_settled(venue)
    wanted = query.get("coin", "")
    items = []
    for coin in sorted(pools):
        if wanted in ("", coin):
            text = plain(pool(pools[coin], day), POOL_DECIMALS)
            symbols = ",".join(market.symbol for market in pools[coin])
            items.append({"coin": coin, "symbols": symbols, "balance": text, "value": text})
    return {"updatedTime": str(day * DAY_MS), "list": items}


def coins_settled(venue: Venue) -> dict[str, list[Market]]:
    """Return the contracts by the coin that they settle in."""
    found: dict[str, list[Market]] = {}
    for (kind, _), market in sorted(venue.markets.items()):
        if kind in DERIVATIVES:
            found.setdefault(market.listing.item["settleCoin"], []).append(market)
    return found


def pool(markets: list[Market], moment: int) -> int:
    """Return the invented balance of a pool of *markets* at *moment*, in 10⁻⁸."""
    return (POOL_LEAST + mix(markets[0].seed ^ moment) % POOL_SPAN) * 10**POOL_DECIMALS


def adl_alert(venue: Venue, query: Query, now_ms: int) -> Answer:
    """``/v5/market/adlAlert``: pools that are far from any deleveraging."""
    pools = coins_settled(venue)
    wanted = query.get("coin", "")
    items = [
        {
            "coin": coin,
            "symbol": market.symbol,
            **{name: str(figure) for name, figure in alert(market, now_ms).items()},
        }
        for coin in sorted(pools)
        if wanted in ("", coin)
        for market in pools[coin]
    ]
    return {"updatedTime": str(now_ms // MINUTE_MS * MINUTE_MS), "list": items}


def alert(market: Market, now_ms: int) -> dict[str, float]:
    """Return the figures of one contract's pool: its balance is at most that of eight hours."""
    most = POOL_LEAST + mix(market.seed ^ (now_ms // (8 * HOUR_MS))) % POOL_SPAN
    lost = mix(market.seed + now_ms // MINUTE_MS) % 100
    return {
        "balance": most * (10_000 - lost) / 10_000,
        "maxBalance": float(most),
        "insurancePnlRatio": -0.3,
        "pnlRatio": -lost / 10_000,
        "adlTriggerThreshold": 10_000,
        "adlStopRatio": -0.25,
    }


def delivery_price(venue: Venue, query: Query, now_ms: int) -> Answer:
    """``/v5/market/delivery-price``: dated futures that are over, at their last index."""
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
            text = plain(price, market.listing.price_decimals)
            item = {"symbol": symbol, "deliveryPrice": text, "deliveryTime": str(due_ms)}
            items.append(item)
    return {"category": category, "nextPageCursor": "", "list": items}


def new_delivery_price(venue: Venue, query: Query, now_ms: int) -> Answer:
    """``/v5/market/new-delivery-price``: of options, which nobody serves."""
    del venue, now_ms
    if query.get("category", "") != "option":
        return BAD_CATEGORY
    return {"category": "option", "list": []}


def historical_volatility(venue: Venue, query: Query, now_ms: int) -> Answer:
    """``/v5/market/historical-volatility``: hourly, of the returns of the days before, a year's.

    Its body has the category beside a result that is a list.
    """
    if query.get("category", "") != "option":
        return BAD_CATEGORY
    period = query.get("period", "") or str(PERIOD_DAYS[0])
    if period not in map(str, PERIOD_DAYS):
        return Refused(BAD_PARAMETER, "params error: period is invalid")
    window = window_of(query, Limit(1, 1), "startTime", "endTime")
    if isinstance(window, Refused):
        return window
    start_ms, end_ms, _ = window
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


def _volatility(market: Market, time_ms: int, days: int) -> str | None:
    """Return the yearly volatility of *days* before *time_ms*, or None without three closes."""
    table = market.table("60") or market.base
    step_ms = max(HOUR_MS, market.interval_ms)
    last = table.row_at(time_ms - step_ms)
    first = max(0, table.row_at(time_ms - days * DAY_MS))
    if last - first < 2:  # noqa: PLR2004 (two returns)
        return None
    closes = table.close[first : last + 1].astype(np.float64)
    yearly = float(np.diff(np.log(closes)).std(ddof=1)) * (HOURS_A_YEAR * HOUR_MS / step_ms) ** 0.5
    return f"{yearly:.8f}"


def index_price_components(venue: Venue, query: Query, now_ms: int) -> Answer:
    """``/v5/market/index-price-components``: this exchange alone makes the index."""
    name = query.get("indexName", "")
    market = venue.find("linear", name) or venue.find("spot", name)
    if market is None:
        return BAD_SYMBOL
    row = max(0, market.base.row_at(now_ms))
    last = market.touch(row, now_ms).price
    text = plain(market.marks.price(INDEX, row, last), market.listing.price_decimals)
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


def fee_rate(venue: Venue, query: Query, now_ms: int) -> Answer:
    """``/v5/account/fee-rate``: the retail rates, with any key or none.

    It is no public route, but clients that load instruments ask for it before all else.
    """
    del now_ms
    category = query.get("category", "")
    if category not in CATEGORIES:
        return BAD_CATEGORY
    taker, maker = RETAIL_FEES[category]
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


def coin_info(venue: Venue, query: Query, now_ms: int) -> Answer:
    """``/v5/asset/coin/query-info``: the coins of the markets, none of which can be moved.

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


def fee_group_info(venue: Venue, query: Query, now_ms: int) -> Answer:
    """``/v5/market/fee-group-info``: all contracts in one group, for professionals alone."""
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
