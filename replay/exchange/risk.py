"""Risk tiers, price limits, insurance pools, deleveraging, liquidations.

What follows from prices and volumes is derived from them; accounts, of which candles know nothing,
are seeded noise in a plausible range.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final
from urllib.parse import quote

from tracepaper.replay.exchange.answers import (
    BAD_CATEGORY,
    BAD_SYMBOL,
    DERIVATIVES,
    Answer,
    Query,
    cursor_fields,
    market_of,
    route,
)
from tracepaper.replay.exchange.candles import MARK, mix
from tracepaper.replay.exchange.channels import Channel, Due, Frame, TopicRequest, encode, topic
from tracepaper.replay.exchange.instruments import padded, parsed
from tracepaper.replay.exchange.market import SimulatedMarket, Venue
from tracepaper.strategies.types.market import Category
from tracepaper.strategies.units import DAY_MS, HOUR_MS, MINUTE_MS, unscaled

RISK_SYMBOLS: Final = 15
LEVERAGE_SHARES: Final = (100, 75, 50, 25, 10)
"""Each risk tier's share of the greatest leverage, in hundredths."""
TIER_SHARE: Final = 200
"""A risk tier is so many parts of a day's turnover, to one digit."""
MARGIN_DECIMALS: Final = 6
POOL_DECIMALS: Final = 8
POOL_LEAST: Final = 10**6
POOL_SPAN: Final = 9 * 10**6
PRICE_LIMIT_RATIO: Final = "0.05"
LIMIT_PUSH_MS: Final = 300
POOL_PUSH_MS: Final = 1_000
LIQUIDATION_PUSH_MS: Final = 500
LIQUIDATION_MOVE: Final = 2_000
"""A bar that runs one part in so many of its open away from it liquidates at its extreme."""
ALERT_NAMES: Final = ("b", "mb", "i_pr", "pr", "adl_tt", "adl_sr")

Body = dict[str, Any]
Item = dict[str, Any]


@route("/v5/market/risk-limit", ("category",), ("symbol", "cursor"))
def risk_limit(venue: Venue, query: Query, now_ms: int) -> Answer:
    """Return risk tiers: five a symbol, fifteen symbols a page."""
    del now_ms
    category = query.get("category", "")
    if category not in DERIVATIVES:
        return BAD_CATEGORY
    symbol = query.get("symbol", "")
    if symbol and venue.find(category, symbol) is None:
        return BAD_SYMBOL
    after = cursor_fields(query).get("last", "")
    names = sorted(
        name
        for kind, name in venue.markets
        if kind == category and name > after and symbol in ("", name)
    )
    page = names[:RISK_SYMBOLS]
    items = [item for name in page for item in _tiers(venue.markets[category, name])]
    cursor = quote(f"last={page[-1]}") if len(names) > len(page) else ""
    return {"category": category, "list": items, "nextPageCursor": cursor}


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


@route("/v5/market/price-limit", ("symbol",), ("category",))
def price_limit(venue: Venue, query: Query, now_ms: int) -> Answer:
    """Return the highest bid and lowest ask: a share around the mark, on spot the last price."""
    market = market_of(venue, query)
    return {**limits(market, now_ms), "ts": str(now_ms)}


def limits(market: SimulatedMarket, now_ms: int) -> dict[str, str]:
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


@route("/v5/market/insurance", (), ("coin",))
def insurance(venue: Venue, query: Query, now_ms: int) -> Answer:
    """Return the insurance pools: one, invented, for all contracts of a coin."""
    day = now_ms // DAY_MS
    pools = coins_settled(venue)
    wanted = query.get("coin", "")
    items = []
    for coin in sorted(pools):
        if wanted in ("", coin):
            text = unscaled(pool(pools[coin], day), POOL_DECIMALS)
            symbols = ",".join(market.symbol for market in pools[coin])
            items.append({"coin": coin, "symbols": symbols, "balance": text, "value": text})
    return {"updatedTime": str(day * DAY_MS), "list": items}


def coins_settled(venue: Venue) -> dict[str, list[SimulatedMarket]]:
    """Return the contracts by the coin that they settle in."""
    found: dict[str, list[SimulatedMarket]] = {}
    for (kind, _), market in sorted(venue.markets.items()):
        if kind in DERIVATIVES:
            found.setdefault(market.listing.item["settleCoin"], []).append(market)
    return found


def pool(markets: list[SimulatedMarket], moment: int) -> int:
    """Return the invented balance of a pool of *markets* at *moment*, in 10⁻⁸."""
    return (POOL_LEAST + mix(markets[0].seed ^ moment) % POOL_SPAN) * 10**POOL_DECIMALS


@route("/v5/market/adlAlert", (), ("coin",))
def adl_alert(venue: Venue, query: Query, now_ms: int) -> Answer:
    """Return the alerts of pools, which are far from any deleveraging."""
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


def alert(market: SimulatedMarket, now_ms: int) -> dict[str, float]:
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


class NoticeChannel(Channel):
    """A topic of slow figures: at once to who subscribes, then each time that they changed."""

    def __init__(
        self, topic: str, market: SimulatedMarket, gap_ms: int, build: Callable[[int], Body]
    ) -> None:
        self.topic: Final = topic
        self._market = market
        self._gap_ms = gap_ms
        self._build = build
        self._sent: Body = {}

    def opening(self, now_ms: int) -> list[Frame]:
        """Return the figures of now."""
        self._sent = self._build(now_ms)
        return [self._frame(now_ms)]

    def steps(self, from_ms: int) -> Iterator[Due]:
        """Yield the paced moments of each bar."""
        market = self._market
        for row in range(max(0, market.base.row_at(from_ms)), len(market.base)):
            for at_ms in range(market.open_ms(row), market.close_ms(row), self._gap_ms):
                if at_ms > from_ms:
                    yield at_ms, partial(self._update, at_ms)

    def _update(self, at_ms: int) -> list[Frame]:
        body = self._build(at_ms)
        if body == self._sent:
            return []
        self._sent = body
        return [self._frame(at_ms)]

    def _frame(self, at_ms: int) -> Frame:
        return Frame(self.topic, encode({"topic": self.topic, **self._sent, "ts": at_ms}), at_ms)


@topic("priceLimit.{symbol}")
def price_limits(asked: TopicRequest) -> Channel | None:
    """Send the highest bid and the lowest ask."""
    market = asked.market
    if market is None or asked.argument:
        return None
    gap_ms = asked.pacing.notice_gap_ms(LIMIT_PUSH_MS)
    return NoticeChannel(asked.topic, market, gap_ms, lambda at_ms: {"data": limits(market, at_ms)})


def _settled(asked: TopicRequest) -> list[SimulatedMarket]:
    """Return the contracts that settle in the coin asked for, on linear."""
    return coins_settled(asked.venue).get(asked.rest, []) if asked.category == "linear" else []


@topic("insurance.{coin}")
def insurance_pool(asked: TopicRequest) -> Channel | None:
    """Send the insurance pools of a coin; a balance moves by the minute."""
    markets = _settled(asked)

    def build(at_ms: int) -> Body:
        minute = at_ms // MINUTE_MS
        return {
            "type": "delta",
            "data": [
                {
                    "coin": market.listing.item["settleCoin"],
                    "symbols": market.symbol,
                    "balance": unscaled(pool([market], minute), POOL_DECIMALS),
                    "updateTime": str(minute * MINUTE_MS),
                }
                for market in markets
            ],
        }

    if not markets:
        return None
    return NoticeChannel(asked.topic, markets[0], asked.pacing.notice_gap_ms(POOL_PUSH_MS), build)


@topic("adlAlert.{coin}")
def deleveraging_alerts(asked: TopicRequest) -> Channel | None:
    """Send the alerts of deleveraging of a coin's contracts."""
    markets = _settled(asked)

    def build(at_ms: int) -> Body:
        return {
            "type": "snapshot",
            "data": [
                {
                    "c": market.listing.item["settleCoin"],
                    "s": market.symbol,
                    **dict(zip(ALERT_NAMES, alert(market, at_ms).values(), strict=True)),
                }
                for market in markets
            ],
        }

    if not markets:
        return None
    return NoticeChannel(asked.topic, markets[0], asked.pacing.notice_gap_ms(POOL_PUSH_MS), build)


@topic("allLiquidation.{symbol}")
def all_liquidations(asked: TopicRequest) -> Channel | None:
    """Send liquidations, on linear: the extremes of bars that ran far from their open."""
    if asked.market is None or asked.argument or asked.category != "linear":
        return None
    return LiquidationChannel(asked.topic, asked.market)


class LiquidationChannel(Channel):
    """``allLiquidation.{symbol}``: the extremes of bars that ran far from their open."""

    def __init__(self, topic: str, market: SimulatedMarket) -> None:
        self.topic: Final = topic
        self._market = market

    def steps(self, from_ms: int) -> Iterator[Due]:
        """Yield the liquidations after *from_ms*, on a grid of half a second."""
        market = self._market
        for row in range(max(0, market.base.row_at(from_ms)), len(market.base)):
            for place, side in liquidations(market, row):
                traded_ms = market.path(row).trades[place].time_ms
                at_ms = traded_ms - traded_ms % LIQUIDATION_PUSH_MS + LIQUIDATION_PUSH_MS
                if at_ms > from_ms:
                    yield at_ms, partial(self._frames, row, place, side, at_ms)

    def _frames(self, row: int, place: int, side: str, at_ms: int) -> list[Frame]:
        path = self._market.path(row)
        trade = path.trades[place]
        element = {
            "T": trade.time_ms,
            "s": self._market.symbol,
            "S": side,
            "v": self._market.size_text(trade.size, path.size_scale),
            "p": self._market.price_text(trade.price),
        }
        body = {"topic": self.topic, "type": "snapshot", "ts": at_ms, "data": [element]}
        return [Frame(self.topic, encode(body), at_ms)]


def liquidations(market: SimulatedMarket, row: int) -> list[tuple[int, str]]:
    """Return the trades of bar *row* that liquidate, in time order, with the side that is closed.

    ``Buy`` is a long position, which falls at a low; ``Sell`` a short one, at a high.
    """
    bar = market.base.candle(row)
    prices = [trade.price for trade in market.path(row).trades]
    found = []
    if prices and (bar.open - bar.low) * LIQUIDATION_MOVE >= bar.open:
        found.append((prices.index(bar.low), "Buy"))
    if prices and (bar.high - bar.open) * LIQUIDATION_MOVE >= bar.open:
        found.append((prices.index(bar.high), "Sell"))
    return sorted(found)
