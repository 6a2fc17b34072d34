"""``archive_instrument``: the instrument of candles that come without an exchange."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from functools import cache
from gzip import decompress
from typing import Any, Final

import msgspec

from tracepaper.daemon.bybit.instruments import RECORDED_INSTRUMENTS
from tracepaper.replay.archive.candles import Candles
from tracepaper.replay.archive.names import coins_of
from tracepaper.strategies.types import MONEY_DECIMALS, Category, Instrument

QUANTITY_DECIMALS: Final = {Category.LINEAR: 3, Category.SPOT: 6, Category.STOCK: 0}
"""For symbols that were not recorded: the finest common steps of a category; whole shares."""
FRACTION_DECIMALS: Final = 3
"""Of shares that are held in parts."""

FUNDING_MINUTES: Final = 480


def archive_instrument(
    candles: Candles, *, fractional: bool = False, currency: str = "USD"
) -> Instrument:
    """Return the instrument under which *candles* are replayed.

    Of shares *fractional* allows parts, and *currency* is what they are paid in.

    The tick is the finer of the data's and the recorded one, for real old candles are finer
    than today's tick. The quantity step is the recorded one, and never above 1. There is no
    least or largest order and no least notional: those are enforced where a run has an
    exchange, and today's would refuse what was possible then.
    """
    recorded = (
        recorded_instruments().get(candles.symbol) if candles.category is Category.LINEAR else None
    )
    price_decimals = candles.price_decimals
    tick = Decimal(1).scaleb(-price_decimals)
    is_stock = candles.category is Category.STOCK
    quantity_decimals = QUANTITY_DECIMALS[candles.category]
    if is_stock and fractional:
        quantity_decimals = FRACTION_DECIMALS
    step = Decimal(1).scaleb(-quantity_decimals)
    base, quote = (candles.symbol, currency) if is_stock else coins_of(candles.symbol)
    funding = FUNDING_MINUTES if candles.category is Category.LINEAR else 0
    if recorded is not None:
        base, quote = str(recorded["baseCoin"]), str(recorded["quoteCoin"])
        funding = int(recorded["fundingInterval"])
        recorded_tick = Decimal(recorded["priceFilter"]["tickSize"])
        price_decimals = max(price_decimals, _decimals(recorded_tick))
        tick = min(tick, recorded_tick)
        step = min(Decimal(recorded["lotSizeFilter"]["qtyStep"]), Decimal(1))
        quantity_decimals = _decimals(step)
    elif price_decimals + quantity_decimals > MONEY_DECIMALS:
        # A price times a quantity stays exact in money where this leaves room for it.
        quantity_decimals = max(MONEY_DECIMALS - price_decimals, 0)
        step = Decimal(1).scaleb(-quantity_decimals)
    return Instrument(
        category=candles.category,
        symbol=candles.symbol,
        base_coin=base,
        quote_coin=quote,
        price_decimals=price_decimals,
        quantity_decimals=quantity_decimals,
        volume_decimals=candles.volume_decimals,
        turnover_decimals=candles.turnover_decimals,
        tick_size=int(tick.scaleb(price_decimals)),
        quantity_step=int(step.scaleb(quantity_decimals)),
        min_quantity=0,
        max_quantity=0,
        min_notional=0,
        funding_interval_minutes=funding,
    )


def _decimals(number: Decimal) -> int:
    """Return the decimals that *number* needs: 1 for 0.10, 0 for 10."""
    exponent = number.normalize().as_tuple().exponent
    assert isinstance(exponent, int)
    return max(-exponent, 0)


@cache
def recorded_instruments() -> Mapping[str, Mapping[str, Any]]:
    """Return the recorded linear instruments by symbol."""
    packed = RECORDED_INSTRUMENTS.read_bytes()
    return msgspec.json.decode(decompress(packed), type=dict[str, dict[str, Any]])
