"""Topics by their names, and the rarer ones: liquidations, limits, insurance, deleveraging."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

from tracepaper.replay.exchange.candles import CandleChannel, TradeChannel
from tracepaper.replay.exchange.channels import Channel, Due, Frame, Pacing, encode
from tracepaper.replay.exchange.faults import Faults
from tracepaper.replay.exchange.figures import POOL_DECIMALS, alert, coins_settled, limits, pool
from tracepaper.replay.exchange.intervals import MINUTE_MS
from tracepaper.replay.exchange.market import Market
from tracepaper.replay.exchange.quotes import (
    DEPTHS,
    NO_RPI,
    RPI_DEPTH,
    BookChannel,
    TickerChannel,
)
from tracepaper.replay.exchange.text import plain
from tracepaper.replay.exchange.venue import Venue

LIMIT_PUSH_MS: Final = 300
POOL_PUSH_MS: Final = 1_000
LIQUIDATION_PUSH_MS: Final = 500
LIQUIDATION_MOVE: Final = 2_000
"""A bar that runs one part in so many of its open away from it liquidates at its extreme."""
ALERT_NAMES: Final = ("b", "mb", "i_pr", "pr", "adl_tt", "adl_sr")

Body = dict[str, Any]


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


class NoticeChannel:
    """A topic of slow figures: at once to who subscribes, then each time that they changed."""

    def __init__(
        self, topic: str, market: Market, gap_ms: int, build: Callable[[int], Body]
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

    def reset(self) -> None:
        """Do nothing: the figures follow from market time alone."""

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


def price_limits(topic: str, market: Market, pacing: Pacing) -> NoticeChannel:
    """Return the channel of ``priceLimit.{symbol}``."""
    gap_ms = pacing.notice_gap_ms(LIMIT_PUSH_MS)
    return NoticeChannel(topic, market, gap_ms, lambda at_ms: {"data": limits(market, at_ms)})


def insurance_pool(topic: str, markets: list[Market], pacing: Pacing) -> NoticeChannel:
    """Return the channel of ``insurance.{coin}``; its balance moves by the minute."""

    def build(at_ms: int) -> Body:
        minute = at_ms // MINUTE_MS
        return {
            "type": "delta",
            "data": [
                {
                    "coin": market.listing.item["settleCoin"],
                    "symbols": market.symbol,
                    "balance": plain(pool([market], minute), POOL_DECIMALS),
                    "updateTime": str(minute * MINUTE_MS),
                }
                for market in markets
            ],
        }

    return NoticeChannel(topic, markets[0], pacing.notice_gap_ms(POOL_PUSH_MS), build)


def deleveraging_alerts(topic: str, markets: list[Market], pacing: Pacing) -> NoticeChannel:
    """Return the channel of ``adlAlert.{coin}``."""

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

    return NoticeChannel(topic, markets[0], pacing.notice_gap_ms(POOL_PUSH_MS), build)


class LiquidationChannel:
    """``allLiquidation.{symbol}``: the extremes of bars that ran far from their open."""

    def __init__(self, topic: str, market: Market) -> None:
        self.topic: Final = topic
        self._market = market

    def opening(self, now_ms: int) -> list[Frame]:
        """Return nothing: the exchange sends no past liquidations."""
        del now_ms
        return []

    def reset(self) -> None:
        """Do nothing: liquidations follow from the trades alone."""

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


def liquidations(market: Market, row: int) -> list[tuple[int, str]]:
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
