"""Histories of a market: open interest, ratios of accounts, volatility.

What follows from prices and volumes is derived from them; accounts, of which candles know nothing,
are seeded noise in a plausible range.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final
from urllib.parse import quote

import numpy as np

from tracepaper.daemon.bybit.messages import ExchangeError
from tracepaper.replay.exchange.answers import (
    BAD_CATEGORY,
    BAD_PARAMETER,
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
from tracepaper.replay.exchange.candles import mix
from tracepaper.replay.exchange.instruments import padded
from tracepaper.replay.exchange.market import SimulatedMarket, Venue, open_interest
from tracepaper.strategies.units import DAY_MS, HOUR_MS, MINUTE_MS, unscaled

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
        return ExchangeError(BAD_PARAMETER, "params error: period is invalid")
    start_ms, end_ms, _ = window_of(query, Limit(1, 1), "startTime", "endTime")
    if (start_ms is None) is not (end_ms is None):
        return ExchangeError(BAD_PARAMETER, "params error: give startTime and endTime, or neither")
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
