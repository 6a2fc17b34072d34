"""Instrument filters, recorded or inferred from the data.

The recorded linear filters are the exchange's own answer of 2026-08-09, every field verbatim, from
the sample data of github.com/bmoscon/cryptofeed (branch v3), whose licence allows redistribution
with attribution. Some old candles are finer than today's tick; then the tick follows the data. Spot
filters and unknown symbols are derived from the data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from tracepaper.daemon.bybit.instruments import recorded_instruments
from tracepaper.replay.archive import Candles
from tracepaper.replay.archive.names import coins_of
from tracepaper.replay.exchange.candles import key
from tracepaper.strategies.types.market import Category
from tracepaper.strategies.units import unscaled

# ------------------------------------------------------------ decimal text
#
# Candles and all of spot drop trailing zeros (``65114.2``); books, trades and tickers of linear pad
# to the decimals of the tick (``65114.20``). Both were measured on the exchange's own frames.


def padded(value: int, decimals: int) -> str:
    """Return *value* x 10⁻ᵏ with exactly k = *decimals* decimals."""
    if decimals == 0:
        return str(value)
    digits = str(abs(value)).rjust(decimals + 1, "0")
    return f"{'-' if value < 0 else ''}{digits[:-decimals]}.{digits[-decimals:]}"


def parsed(text: str) -> tuple[int, int]:
    """Return ``(value, decimals)`` of plain decimal text such as ``0.10`` -> ``(10, 2)``."""
    whole, _, fraction = text.partition(".")
    return int(whole + fraction), len(fraction)


SPOT_BASE_PRECISION: Final = "0.000001"
SPOT_MIN_ORDER_AMOUNT: Final = "5"
RECORDED_LIKE: Final = "BTCUSDT"
"""The recorded perpetual from which an unknown one copies all but names and filters."""
STEPS_PER_MEAN_BAR: Final = 1_000
RISK_PARAMETERS: Final = {"priceLimitRatioX": "0.05", "priceLimitRatioY": "0.1"}

Item = dict[str, Any]
"""One element of instruments-info, in the exchange's key order."""


@dataclass(frozen=True)
class ServedInstrument:
    """One instrument as served, and the scales in which its market counts.

    ``tick`` is in 10^-price_decimals, ``step`` in 10^-size_decimals; ``size_decimals`` is at
    least the data's, so that every volume is exact.
    """

    item: Item
    base_coin: str
    price_decimals: int
    tick: int
    size_decimals: int
    step: int
    step_decimals: int
    funding_minutes: int


def list_instrument(candles: Candles) -> ServedInstrument:
    """Return the listing of *candles*: recorded, else derived; finer data replaces the tick."""
    linear = candles.category is Category.LINEAR
    recorded = recorded_instruments().get(candles.symbol) if linear else None
    item = recorded or _derived(candles)
    tick, decimals = parsed(item["priceFilter"]["tickSize"])
    price_decimals = max(decimals, candles.price_decimals)
    tick *= 10 ** (price_decimals - decimals)
    factor = 10 ** (price_decimals - candles.price_decimals)
    columns = (candles.open, candles.high, candles.low, candles.close)
    if any(np.any(column * factor % tick) for column in columns):  # between two ticks
        tick, price_decimals = 1, candles.price_decimals
        filters = item["priceFilter"] | {"tickSize": unscaled(1, price_decimals)}
        item = item | {"priceScale": str(price_decimals), "priceFilter": filters}
    step, step_decimals = parsed(item["lotSizeFilter"]["qtyStep" if linear else "basePrecision"])
    size_decimals = max(step_decimals, candles.volume_decimals)
    return ServedInstrument(
        item=item,
        base_coin=item["baseCoin"],
        price_decimals=price_decimals,
        tick=tick,
        size_decimals=size_decimals,
        step=step * 10 ** (size_decimals - step_decimals),
        step_decimals=step_decimals,
        funding_minutes=item.get("fundingInterval", 0),
    )


def _derived(candles: Candles) -> Item:
    """Return a plausible spot pair, or a perpetual modelled on a recorded one."""
    base, quote = coins_of(candles.symbol)
    tick = unscaled(1, candles.price_decimals)
    if candles.category is not Category.LINEAR:
        return {
            "symbolId": key("spotId", candles.symbol) % 10_000,
            "symbol": candles.symbol,
            "baseCoin": base,
            "quoteCoin": quote,
            "innovation": "0",
            "status": "Trading",
            "marginTrading": "none",
            "stTag": "0",
            "lotSizeFilter": {
                "basePrecision": SPOT_BASE_PRECISION,
                "quotePrecision": "0.0000001",
                "minOrderQty": SPOT_BASE_PRECISION,
                "maxOrderQty": "1000000",
                "minOrderAmt": SPOT_MIN_ORDER_AMOUNT,
                "maxOrderAmt": "8000000",
                "maxLimitOrderQty": "1000000",
                "maxMarketOrderQty": "500000",
                "postOnlyMaxLimitOrderSize": "1000000",
            },
            "priceFilter": {"tickSize": tick},
            "riskParameters": RISK_PARAMETERS,
            "symbolType": "",
        }
    # A power of ten near a thousandth of a mean bar's volume.
    exponent = len(str(max(1, int(candles.volume.mean()) // STEPS_PER_MEAN_BAR))) - 1
    decimals = max(0, candles.volume_decimals - exponent)
    unit = 10 ** max(0, exponent - candles.volume_decimals)
    step, most = unscaled(unit, decimals), unscaled(unit * 10**7, decimals)
    return recorded_instruments()[RECORDED_LIKE] | {
        "symbol": candles.symbol,
        "baseCoin": base,
        "quoteCoin": quote,
        "launchTime": str(int(candles.open_time_ms[0])),
        "priceScale": str(candles.price_decimals),
        "leverageFilter": {"minLeverage": "1", "maxLeverage": "50.00", "leverageStep": "0.01"},
        "priceFilter": {
            "minPrice": tick,
            "maxPrice": unscaled(int(candles.high.max()) * 100, candles.price_decimals),
            "tickSize": tick,
        },
        "lotSizeFilter": {
            "maxOrderQty": most,
            "minOrderQty": step,
            "qtyStep": step,
            "postOnlyMaxOrderQty": most,
            "maxMktOrderQty": unscaled(unit * 10**6, decimals),
            "minNotionalValue": "5",
        },
        "settleCoin": quote,
        "copyTrading": "none",
        "riskParameters": RISK_PARAMETERS,
        "symbolId": key("symbolId", candles.symbol) % 10_000,
    }
