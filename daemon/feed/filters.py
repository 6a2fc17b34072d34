"""Changed filters of an instrument in the decimals of its run; delisted instruments."""

from __future__ import annotations

from typing import Final

from msgspec import structs

from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.types.market import Instrument
from tracepaper.strategies.units import MONEY_LIMIT


def rescaled(fresh: Instrument, kept: Instrument) -> Instrument:
    """Return *fresh* filters in the scales of *kept*, which a run never changes.

    A run's integers mean 10^-k for good, so a coarser tick is expressed in the old decimals.
    Raises ``ConfigInvalid`` where the new tick or step is finer than the run can express.
    """
    price = kept.price_decimals - fresh.price_decimals
    quantity = kept.quantity_decimals - fresh.quantity_decimals
    if price < 0 or quantity < 0:
        raise ConfigInvalid(
            f"{kept.id} now trades in finer steps than this run keeps ({fresh.price_decimals} "
            f"price and {fresh.quantity_decimals} quantity decimals instead of "
            f"{kept.price_decimals} and {kept.quantity_decimals}); start a new run in a new "
            "database."
        )
    changed = structs.replace(
        fresh,
        risk_tiers=fresh.risk_tiers or kept.risk_tiers,
        price_decimals=kept.price_decimals,
        quantity_decimals=kept.quantity_decimals,
        volume_decimals=kept.volume_decimals,
        turnover_decimals=kept.turnover_decimals,
        tick_size=fresh.tick_size * 10**price,
        quantity_step=fresh.quantity_step * 10**quantity,
        min_quantity=fresh.min_quantity * 10**quantity,
        max_quantity=fresh.max_quantity * 10**quantity,
    )
    largest = max(changed.tick_size, changed.quantity_step, changed.min_quantity)
    if max(largest, changed.max_quantity) > MONEY_LIMIT:
        raise ConfigInvalid(
            f"The filters of {kept.id} do not fit 64 bits in the decimals that this run keeps; "
            "start a new run in a new database."
        )
    return changed


CLOSED: Final = "Closed"
"""The exchange's status of an instrument that is traded no more."""


def closed(instrument: Instrument) -> Instrument:
    """Return *instrument* as one that the exchange lists no more."""
    return structs.replace(instrument, status=CLOSED)
