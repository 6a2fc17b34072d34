"""Bybit's interval names, their lengths, and the grid on which candles open."""

from __future__ import annotations

from typing import Final

from tracepaper.strategies.errors import ConfigInvalid

_MINUTE_MS: Final = 60_000
_DAY_MS: Final = 1_440 * _MINUTE_MS
_WEEK_ANCHOR_MS: Final = 4 * _DAY_MS  # weeks open on Mondays; 1970-01-05 was the first

INTERVALS: Final = {
    **{str(minutes): minutes * _MINUTE_MS for minutes in (1, 3, 5, 15, 30, 60, 120, 240, 360, 720)},
    "D": _DAY_MS,
    "W": 7 * _DAY_MS,
}
"""Name on the wire -> milliseconds. ``M`` is missing: a month has no fixed length."""
_NAMES: Final = {length_ms: name for name, length_ms in INTERVALS.items()}


def interval_name(interval_ms: int) -> str:
    """Return the exchange's name of *interval_ms*; raises ``ConfigInvalid`` where it has none."""
    if (name := _NAMES.get(interval_ms)) is None:
        raise ConfigInvalid(
            f"Bybit has no candles of {interval_ms} ms; set market.interval to one of "
            f"{', '.join(INTERVALS)}."
        )
    return name


def floor_open_ms(market_ms: int, interval_ms: int) -> int:
    """Return the open time of the candle that is open at *market_ms*."""
    anchor_ms = _WEEK_ANCHOR_MS if interval_ms == INTERVALS["W"] else 0
    return market_ms - (market_ms - anchor_ms) % interval_ms
