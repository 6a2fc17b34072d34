"""REST answers as pure functions of venue, query and server time.

An answer is the ``result`` object in the exchange's key order, or an ``ExchangeError`` with the
retCode that HTTP 200 carries. Unknown parameters are ignored, as the exchange seems to do.

A route is such a function, decorated by ``route``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qs, unquote, urlencode

from tracepaper.daemon.bybit.messages import ExchangeError
from tracepaper.replay.exchange.candles import Candle
from tracepaper.replay.exchange.channels import trade_id
from tracepaper.replay.exchange.market import (
    RATE_DECIMALS,
    SimulatedMarket,
    Venue,
    funding_interval_ms,
    funding_rate,
)
from tracepaper.replay.exchange.quotes import level_texts, levels, rest_linear, rest_spot
from tracepaper.strategies.units import INTERVALS, unscaled

BAD_PARAMETER: Final = 10001
TIME_DIGITS_MAX: Final = 18
DERIVATIVES: Final = ("linear", "inverse")

Query = Mapping[str, str]


Answer = dict[str, Any] | ExchangeError
"""The ``result`` of a route, or an error."""


class InvalidQuery(Exception):
    """A query that cannot be answered; its arguments are those of ``ExchangeError``."""


class Limit(NamedTuple):
    """The default and the greatest ``limit`` of an endpoint."""

    default: int
    most: int


def page_size(query: Query, limit: Limit) -> int:
    """Return the requested page size, at most the endpoint's; or raise ``InvalidQuery``."""
    size = _integer(query, "limit")
    if size is None:
        return limit.default
    if size < 1:
        raise InvalidQuery(BAD_PARAMETER, "params error: Limit is invalid")
    return min(size, limit.most)


def window_of(
    query: Query, limit: Limit, start: str, end: str
) -> tuple[int | None, int | None, int]:
    """Return start, end and page size of *query*, or raise ``InvalidQuery``."""
    start_ms, end_ms = _integer(query, start), _integer(query, end)
    size = page_size(query, limit)
    if start_ms is not None and end_ms is not None and end_ms < start_ms:
        raise InvalidQuery(BAD_PARAMETER, f"params error: {end} must not be less than {start}")
    return start_ms, end_ms, size


def _integer(query: Query, name: str) -> int | None:
    text = query.get(name, "")
    if not text:
        return None
    if not text.isdecimal() or len(text) > TIME_DIGITS_MAX:
        raise InvalidQuery(BAD_PARAMETER, f"params error: {name} is invalid")
    return int(text)


def cursor_fields(query: Query) -> dict[str, str]:
    """Return the fields of the cursor of *query*, which clients send encoded once or twice."""
    fields = parse_qs(unquote(query.get("cursor", "")))
    return {name: values[0] for name, values in fields.items()}


# ------------------------------------------------------------ routes

BAD_SYMBOL: Final = ExchangeError(BAD_PARAMETER, "Not supported symbols")
BAD_CATEGORY: Final = ExchangeError(BAD_PARAMETER, "params error: Category is invalid")
MISSING: Final = {"category": BAD_CATEGORY, "symbol": BAD_SYMBOL}
"""The exchange's answers to a missing parameter; other parameters get a generic sentence."""


@dataclass(frozen=True)
class Route:
    """One route: *required* parameters may not be empty, *optional* ones are read where given."""

    path: str
    function: Callable[[Venue, Query, int], Answer]
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    @property
    def meaning(self) -> str:
        """The first line of the function's docstring."""
        return (self.function.__doc__ or "").partition("\n")[0]

    def __call__(self, venue: Venue, query: Query, now_ms: int) -> Answer:
        """Return the answer to *query* at *now_ms*, or an error."""
        for name in self.required:
            if not query.get(name, ""):
                generic = ExchangeError(BAD_PARAMETER, f"params error: {name} is required")
                return MISSING.get(name, generic)
        try:
            return self.function(venue, query, now_ms)
        except InvalidQuery as rejection:
            return ExchangeError(*rejection.args)


def route(
    path: str, required: tuple[str, ...] = (), optional: tuple[str, ...] = ()
) -> Callable[[Callable[[Venue, Query, int], Answer]], Route]:
    """Make the decorated function the route of *path*."""

    def declare(function: Callable[[Venue, Query, int], Answer]) -> Route:
        return Route(path, function, required, optional)

    return declare


CATEGORIES: Final = ("spot", "linear", "inverse", "option")

KLINE_LIMIT: Final = Limit(200, 1000)
INSTRUMENT_LIMIT: Final = Limit(500, 1000)
FUNDING_LIMIT: Final = Limit(200, 200)
BOOK_LIMIT: Final = {"linear": Limit(25, 500), "spot": Limit(1, 200)}
TRADE_LIMIT: Final = {"linear": Limit(500, 1000), "spot": Limit(60, 60)}


def category_of(query: Query, allowed: Sequence[str] = CATEGORIES) -> str:
    """Return the category of *query*; raise ``InvalidQuery`` where it is not *allowed*."""
    category = query.get("category", "")
    if category not in allowed:
        raise InvalidQuery(*BAD_CATEGORY)
    return category


CANDLE_OPTIONS: Final = ("category", "start", "end", "limit")
TIME_OPTIONS: Final = ("startTime", "endTime", "limit")

Result = dict[str, Any]


@route("/v5/market/time")
def server_time(venue: Venue, query: Query, now_ms: int) -> Result | ExchangeError:
    """Return the server's time, in seconds and nanoseconds."""
    del venue, query
    return {"timeSecond": str(now_ms // 1000), "timeNano": str(now_ms * 1_000_000)}


@route("/v5/system/status")
def system_status(venue: Venue, query: Query, now_ms: int) -> Result | ExchangeError:
    """Return the list of maintenance windows, which is empty."""
    del venue, query, now_ms
    return {"list": []}


@route("/v5/market/kline", ("symbol", "interval"), CANDLE_OPTIONS)
def kline(venue: Venue, query: Query, now_ms: int) -> Result:
    """Return candles, newest first; the first may be open; the category defaults to linear."""
    market, candles = _candles(venue, query, now_ms)
    rows = [[str(candle.start_ms), *market.candle_texts(candle)] for candle in candles]
    return {"symbol": market.symbol, "category": market.category.value, "list": rows}


@route("/v5/market/mark-price-kline", ("symbol", "interval"), CANDLE_OPTIONS)
def mark_price_kline(venue: Venue, query: Query, now_ms: int) -> Result | ExchangeError:
    """Return candles of the mark price, without volume; not for spot."""
    if query.get("category", "linear") == "spot":
        return BAD_CATEGORY
    market, candles = _candles(venue, query, now_ms, is_mark=True)
    decimals = market.listing.price_decimals
    rows = [
        [str(candle.start_ms), *(unscaled(price, decimals) for price in candle[1:5])]
        for candle in candles
    ]
    return {"symbol": market.symbol, "category": market.category.value, "list": rows}


def _candles(
    venue: Venue, query: Query, now_ms: int, *, is_mark: bool = False
) -> tuple[SimulatedMarket, list[Candle]]:
    """Return the market and its candles in the requested window, newest first."""
    market = market_of(venue, query)
    series = market.marked if is_mark else market.series
    interval = query.get("interval", "")
    table = series.table(interval)
    if table is None:
        why = "is finer than this exchange's data" if interval in INTERVALS else "is invalid"
        raise InvalidQuery(BAD_PARAMETER, f"params error: Interval {interval!r} {why}")
    start_ms, end_ms, limit = window_of(query, KLINE_LIMIT, "start", "end")
    row = market.base.row_at(now_ms)
    newest = table.row_at(now_ms)
    last = newest if end_ms is None else min(newest, table.row_at(end_ms))
    first = 0 if start_ms is None else table.row_at(start_ms)
    if start_ms is not None and (first < 0 or table.end_of(first) <= start_ms):
        first += 1  # start lies before the data or in a hole: no candle contains it
    if start_ms is not None and end_ms is None:
        last = min(last, first + limit - 1)
    first = max(first, last - limit + 1)
    if last < first:
        return market, []
    candles = table.candles(first, last + 1)
    if last == newest and now_ms < table.end_of(newest):
        candles[-1] = series.open_candle(interval, row, now_ms)
    return market, candles[::-1]


@route(
    "/v5/market/instruments-info",
    ("category",),
    ("symbol", "status", "baseCoin", "limit", "cursor"),
)
def instruments_info(venue: Venue, query: Query, now_ms: int) -> Result | ExchangeError:
    """Return instruments with their filters; derivatives in pages, spot in one list."""
    del now_ms
    category = category_of(query)
    served = [
        market.listing.item for (kind, _), market in venue.markets.items() if kind == category
    ]
    limit = page_size(query, INSTRUMENT_LIMIT)
    items = sorted(
        (
            item
            for item in served
            if query.get("symbol", item["symbol"]) == item["symbol"]
            and query.get("status", "Trading") in ("Trading", "")
            and query.get("baseCoin", item["baseCoin"]) == item["baseCoin"]
        ),
        key=itemgetter("symbol"),
    )
    if category == "spot":
        return {"category": category, "list": items}
    after = cursor_fields(query).get("last", "")
    rest = [item for item in items if item["symbol"] > after]
    page = rest[:limit]
    cursor = ""
    if len(rest) > len(page):
        cursor = urlencode({"first": page[0]["symbol"], "last": page[-1]["symbol"]})
    return {"category": category, "list": page, "nextPageCursor": cursor}


@route("/v5/market/tickers", ("category",), ("symbol",))
def tickers(venue: Venue, query: Query, now_ms: int) -> Result | ExchangeError:
    """Return the ticker of one symbol, or those of a category."""
    category = category_of(query)
    symbol = query.get("symbol", "")
    if symbol and venue.find(category, symbol) is None:
        return BAD_SYMBOL
    write = rest_linear if category == "linear" else rest_spot
    chosen = [
        write(market, max(0, market.base.row_at(now_ms)), now_ms)
        for (kind, name), market in sorted(venue.markets.items())
        if kind == category and symbol in ("", name)
    ]
    return {"category": category, "list": chosen}


@route("/v5/market/orderbook", ("category", "symbol"), ("limit",))
def orderbook(venue: Venue, query: Query, now_ms: int) -> Result:
    """Return the order book."""
    market = market_of(venue, query, required=True)
    limit = page_size(query, BOOK_LIMIT[market.category.value])
    bids, asks = levels(market, max(0, market.base.row_at(now_ms)), now_ms - 1, limit)
    return {
        "s": market.symbol,
        "b": level_texts(market, bids),
        "a": level_texts(market, asks),
        "ts": now_ms,
        "u": now_ms // 100 % 10**9,
        "seq": market.sequence(now_ms),
        "cts": now_ms - 1,
    }


@route("/v5/market/recent-trade", ("category", "symbol"), ("limit",))
def recent_trade(venue: Venue, query: Query, now_ms: int) -> Result:
    """Return public trades, newest first."""
    market = market_of(venue, query, required=True)
    limit = page_size(query, TRADE_LIMIT[market.category.value])
    trades: list[Result] = []
    row = market.base.row_at(now_ms)
    while row >= 0 and len(trades) < limit:
        places = range(len(market.path(row).trades))
        trades += [
            _trade(market, row, place)
            for place in reversed(places)
            if market.path(row).trades[place].time_ms <= now_ms
        ]
        row -= 1
    return {"category": market.category.value, "list": trades[:limit]}


def _trade(market: SimulatedMarket, row: int, place: int) -> Result:
    path = market.path(row)
    trade = path.trades[place]
    return {
        "execId": trade_id(market, row, place),
        "symbol": market.symbol,
        "price": market.price_text(trade.price),
        "size": market.size_text(trade.size, path.size_scale),
        "side": "Buy" if trade.is_buy else "Sell",
        "time": str(trade.time_ms),
        "isBlockTrade": False,
        "isRPITrade": False,
        "seq": str(market.sequence(trade.time_ms)),
    }


@route("/v5/market/funding/history", ("category", "symbol"), TIME_OPTIONS)
def funding_history(venue: Venue, query: Query, now_ms: int) -> Result | ExchangeError:
    """Return funding settlements, newest first; ``startTime`` alone is an error."""
    market = market_of(venue, query, required=True)
    interval_ms = funding_interval_ms(market)
    if not interval_ms:
        return BAD_SYMBOL
    start_ms, end_ms, limit = window_of(query, FUNDING_LIMIT, "startTime", "endTime")
    if start_ms is not None and end_ms is None:
        return ExchangeError(BAD_PARAMETER, "params error: endTime is required with startTime")
    latest = min(now_ms, now_ms if end_ms is None else end_ms) // interval_ms
    earliest = -(-max(market.start_ms, start_ms or 0) // interval_ms)
    settled = range(latest, max(earliest, latest - limit + 1) - 1, -1)
    items = [
        {
            "symbol": market.symbol,
            "fundingRate": unscaled(funding_rate(market, number * interval_ms), RATE_DECIMALS),
            "fundingRateTimestamp": str(number * interval_ms),
        }
        for number in settled
    ]
    return {"category": market.category.value, "list": items}


def market_of(venue: Venue, query: Query, *, required: bool = False) -> SimulatedMarket:
    """Return the market that *query* names; without a category it is linear, unless required.

    Raises ``InvalidQuery`` where there is no such market.
    """
    category = category_of(query if required else {"category": "linear", **query})
    market = venue.find(category, query.get("symbol", ""))
    if market is None:
        raise InvalidQuery(*BAD_SYMBOL)
    return market
