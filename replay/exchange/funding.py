"""Invented funding and open interest: plausible, seeded, and the same wherever they are asked."""

from __future__ import annotations

from typing import Final

from tracepaper.replay.exchange.intervals import MINUTE_MS
from tracepaper.replay.exchange.market import SimulatedMarket
from tracepaper.replay.exchange.noise import mix

RATE_DECIMALS: Final = 8
USUAL_RATE: Final = 10_000


def funding_interval_ms(market: SimulatedMarket) -> int:
    """Return the funding interval of *market*; 0 where there is none."""
    return market.listing.funding_minutes * MINUTE_MS


def next_funding_ms(market: SimulatedMarket, time_ms: int) -> int:
    """Return the next settlement after *time_ms*; 0 where there is no funding."""
    interval_ms = funding_interval_ms(market)
    return (time_ms // interval_ms + 1) * interval_ms if interval_ms else 0


def funding_rate(market: SimulatedMarket, settled_ms: int) -> int:
    """Return the rate settled at *settled_ms*, in 10⁻⁸; half of them are the usual 0.0001."""
    number = mix(market.seed + settled_ms)
    if number % 2 == 0:
        return USUAL_RATE
    return (number >> 8) % (3 * USUAL_RATE) - USUAL_RATE


def open_interest(market: SimulatedMarket, time_ms: int) -> int:
    """Return an open interest of about a day's volume, which moves every minute."""
    wiggle = mix(market.seed ^ (time_ms // MINUTE_MS)) % 10_001
    step = market.listing.step
    return max(1, market.daily_volume * (95_000 + wiggle) // (100_000 * step)) * step
