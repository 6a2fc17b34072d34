"""What tickers say: the stream's and REST's fields, in the exchange's key order."""

from __future__ import annotations

from typing import Final

from tracepaper.replay.exchange.book import best
from tracepaper.replay.exchange.funding import (
    RATE_DECIMALS,
    funding_interval_ms,
    funding_rate,
    next_funding_ms,
    open_interest,
)
from tracepaper.replay.exchange.intervals import HOUR_MS
from tracepaper.replay.exchange.market import SimulatedMarket
from tracepaper.replay.exchange.marks import INDEX, MARK
from tracepaper.replay.exchange.text import padded, plain, rescaled

FIGURE_DECIMALS: Final = 4
CHANGE_DECIMALS: Final = 6
SPOT_CHANGE_DECIMALS: Final = 4
VALUE_DECIMALS: Final = 2

REST_LINEAR: Final = (
    "symbol", "lastPrice", "indexPrice", "markPrice", "prevPrice24h", "price24hPcnt",
    "highPrice24h", "lowPrice24h", "prevPrice1h", "openInterest", "openInterestValue",
    "turnover24h", "volume24h", "fundingRate", "nextFundingTime", "predictedDeliveryPrice",
    "basisRate", "deliveryFeeRate", "deliveryTime", "ask1Size", "bid1Price", "ask1Price",
    "bid1Size", "basis", "preOpenPrice", "preQty", "curPreListingPhase", "fundingIntervalHour",
    "basisRateYear", "fundingCap", "singleOpenInterest", "singleOpenInterestValue",
)  # fmt: skip
REST_SPOT: Final = (
    "symbol", "bid1Price", "bid1Size", "ask1Price", "ask1Size", "lastPrice", "prevPrice24h",
    "price24hPcnt", "highPrice24h", "lowPrice24h", "turnover24h", "volume24h", "usdIndexPrice",
)  # fmt: skip


def linear_ticker(market: SimulatedMarket, row: int, time_ms: int) -> dict[str, str]:
    """Return every field of a linear stream snapshot of *market* at *time_ms* in bar *row*."""
    last = market.touch(row, time_ms)
    now, day, quote = market.running(row, time_ms), market.day(row), best(market, row, time_ms)
    interest = open_interest(market, time_ms)
    half = interest // 2
    price, scale = market.price_text, market.listing.price_decimals
    sizes = market.listing.size_decimals
    volume = rescaled(day.volume + now.volume, sizes, FIGURE_DECIMALS)
    turnover = rescaled(day.turnover + now.turnover, market.turnover_decimals, FIGURE_DECIMALS)
    next_ms = next_funding_ms(market, time_ms)
    return {
        "symbol": market.symbol,
        "tickDirection": last.direction,
        "price24hPcnt": change(last.price, day.price_day_ago, CHANGE_DECIMALS),
        "lastPrice": price(last.price),
        "prevPrice24h": price(day.price_day_ago),
        "highPrice24h": price(max(day.high, now.high)),
        "lowPrice24h": price(min(day.low, now.low)),
        "prevPrice1h": price(day.price_hour_ago),
        "markPrice": price(market.marks.price(MARK, row, last.price)),
        "indexPrice": price(market.marks.price(INDEX, row, last.price)),
        "openInterest": market.size_text(interest),
        "openInterestValue": value(interest * last.price, sizes + scale),
        "turnover24h": padded(turnover, FIGURE_DECIMALS),
        "volume24h": padded(volume, FIGURE_DECIMALS),
        "fundingIntervalHour": str(funding_interval_ms(market) // HOUR_MS) if next_ms else "",
        "fundingCap": market.listing.item["upperFundingRate"],
        "singleOpenInterest": market.size_text(half),
        "singleOpenInterestValue": value(half * last.price, sizes + scale),
        "nextFundingTime": str(next_ms) if next_ms else "",
        "fundingRate": plain(funding_rate(market, next_ms), RATE_DECIMALS) if next_ms else "",
        "bid1Price": price(quote.bid),
        "bid1Size": market.size_text(quote.bid_size),
        "ask1Price": price(quote.ask),
        "ask1Size": market.size_text(quote.ask_size),
        "preOpenPrice": "",
        "preQty": "",
        "curPreListingPhase": "",
    }


def spot_ticker(market: SimulatedMarket, row: int, time_ms: int) -> dict[str, str]:
    """Return every field of a spot stream snapshot: no bid or ask, no mark, no funding."""
    last = market.touch(row, time_ms)
    now, day = market.running(row, time_ms), market.day(row)
    price = market.price_text
    return {
        "symbol": market.symbol,
        "lastPrice": price(last.price),
        "highPrice24h": price(max(day.high, now.high)),
        "lowPrice24h": price(min(day.low, now.low)),
        "prevPrice24h": price(day.price_day_ago),
        "volume24h": plain(day.volume + now.volume, market.listing.size_decimals),
        "turnover24h": plain(day.turnover + now.turnover, market.turnover_decimals),
        "price24hPcnt": change(last.price, day.price_day_ago, SPOT_CHANGE_DECIMALS),
        "usdIndexPrice": price(market.marks.price(INDEX, row, last.price)),
    }


def rest_linear(market: SimulatedMarket, row: int, time_ms: int) -> dict[str, str]:
    """Return the element of a linear ``/v5/market/tickers`` answer."""
    state = linear_ticker(market, row, time_ms) | {"deliveryTime": "0"}
    return {name: state.get(name, "") for name in REST_LINEAR}


def rest_spot(market: SimulatedMarket, row: int, time_ms: int) -> dict[str, str]:
    """Return the element of a spot ``/v5/market/tickers`` answer, which has bid and ask."""
    quote = best(market, row, time_ms)
    state = spot_ticker(market, row, time_ms) | {
        "bid1Price": market.price_text(quote.bid),
        "bid1Size": market.size_text(quote.bid_size),
        "ask1Price": market.price_text(quote.ask),
        "ask1Size": market.size_text(quote.ask_size),
    }
    return {name: state[name] for name in REST_SPOT}


def change(now: int, before: int, decimals: int) -> str:
    """Return ``now / before - 1`` as a fraction, without trailing zeros on spot."""
    scaled = (now - before) * 10**decimals
    share = scaled // before if scaled >= 0 else -(-scaled // before)
    return padded(share, decimals) if decimals == CHANGE_DECIMALS else plain(share, decimals)


def value(product: int, decimals: int) -> str:
    """Return a money value of *decimals* with the two decimals of the exchange."""
    return padded(rescaled(product, decimals, VALUE_DECIMALS), VALUE_DECIMALS)
