"""Choices of ``market.universe`` from candles, at each time of the rule.

The rules are docs/universe.md, V15 and V16.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from decimal import Decimal
from typing import Final

import numpy as np

from tracepaper.daemon.config.market import UniverseRule
from tracepaper.daemon.feed.client import TradedSymbol
from tracepaper.daemon.session.universe import change_of, next_choice_ms
from tracepaper.replay.archive import Candles
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.strategies.types.market import Instrument, UniverseChange
from tracepaper.strategies.units import DAY_MS

SHOWN: Final = 5
"""How many symbols of a long list a sentence names."""


def choices(
    rule: UniverseRule,
    data: MarketData,
    instruments: Sequence[Instrument],
    *,
    start_ms: int,
    names: Collection[str] | None = None,
) -> list[UniverseChange]:
    """Return the choice at *start_ms*, and at each time of the rule up to the last candle.

    A choice uses the candles that closed in the 24 hours before it. A symbol's age counts from its
    first candle.
    """
    _, until_ms = data.bounds
    changes = []
    at_ms = start_ms
    while at_ms <= until_ms:
        listed = _listed(data, at_ms)
        changes.append(change_of(rule, instruments, listed, now_ms=at_ms, names=names))
        at_ms = next_choice_ms(rule, at_ms)
    return changes


def list_warnings(
    rule: UniverseRule | None, names: Collection[str] | None, instruments: Sequence[Instrument]
) -> Iterator[str]:
    """Yield a warning if the *names* of the rule's list contain no symbol of the run."""
    symbols = [item.symbol for item in instruments]
    if rule is not None and names is not None and not set(names) & set(symbols):
        yield (
            f"{rule.file}, the list of market.universe, names no symbol of the run "
            f"({', '.join(symbols[:SHOWN])}), so no position is opened; it begins with "
            f"{', '.join([*names][:SHOWN])}"
        )


def _listed(data: MarketData, at_ms: int) -> Iterator[TradedSymbol]:
    """Yield the ticker of each symbol at *at_ms*; leave out those without a candle in 24 hours."""
    for part in data.candles:
        closes_ms = part.closes_ms
        first, last = np.searchsorted(closes_ms, (at_ms - DAY_MS, at_ms), side="right").tolist()
        if first == last:
            continue
        day = slice(first, last)
        high, low, close = int(part.high[day].max()), int(part.low[day].min()), part.close[last - 1]
        yield TradedSymbol(
            part.symbol,
            "",
            _turnover(part, day),
            Decimal(high - low) / int(close),
            int(part.open_time_ms[0]),
        )


def _turnover(part: Candles, day: slice) -> Decimal:
    """Return the turnover of *day*; volume times close if the source has none."""
    if part.turnover is not None:
        total = sum(part.turnover[day].tolist())  # a day may exceed 64 bits
        return Decimal(total).scaleb(-part.turnover_decimals)
    pairs = zip(part.volume[day].tolist(), part.close[day].tolist(), strict=True)
    total = sum(volume * close for volume, close in pairs)
    return Decimal(total).scaleb(-part.volume_decimals - part.price_decimals)
