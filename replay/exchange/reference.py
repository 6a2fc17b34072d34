"""Reference data: risk tiers, fee rates, coins."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from tracepaper.replay.exchange.answers import (
    BAD_SYMBOL,
    DERIVATIVES,
    Answer,
    Query,
    category_of,
    route,
)
from tracepaper.replay.exchange.instruments import padded, parsed
from tracepaper.replay.exchange.market import SimulatedMarket, Venue
from tracepaper.strategies.units import BASE_FEES, unscaled

LEVERAGE_SHARES: Final = (100, 75, 50, 25, 10)
"""Each risk tier's share of the greatest leverage, in hundredths."""
TIER_SHARE: Final = 200
"""A day's turnover divided by this, rounded down to one digit, is one risk tier."""
MARGIN_DECIMALS: Final = 6
COIN_DECIMALS: Final = 8

Item = dict[str, Any]


@route("/v5/market/risk-limit", ("category",), ("symbol",))
def risk_limit(venue: Venue, query: Query, now_ms: int) -> Answer:
    """Return risk tiers: five per symbol."""
    del now_ms
    category = category_of(query, DERIVATIVES)
    symbol = query.get("symbol", "")
    if symbol and venue.find(category, symbol) is None:
        return BAD_SYMBOL
    items = [
        item
        for (kind, name), market in sorted(venue.markets.items())
        if kind == category and symbol in ("", name)
        for item in _tiers(market)
    ]
    return {"category": category, "list": items, "nextPageCursor": ""}


def _tiers(market: SimulatedMarket) -> Iterator[Item]:
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
            "maintenanceMargin": unscaled(maintenance, MARGIN_DECIMALS),
            "initialMargin": unscaled(initial, MARGIN_DECIMALS),
            "isLowestRisk": int(rank == 1),
            "maxLeverage": padded(allowed, decimals),
            "mmDeduction": unscaled(deduction, MARGIN_DECIMALS) if rank > 1 else "",
        }


@route("/v5/account/fee-rate", ("category",), ("symbol",))
def fee_rate(venue: Venue, query: Query, now_ms: int) -> Answer:
    """Return the retail fee rates, with or without a key.

    The exchange's route is private, but clients that load instruments request it first.
    """
    del now_ms
    category = category_of(query)
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
    """Return the coins of the markets, without deposit and withdrawal.

    The exchange's route is private, but clients that load instruments request it.
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
