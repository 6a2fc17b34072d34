"""Choices of ``market.universe`` from candles: what tickers would have said at each stated time.

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
"""Symbols that a sentence names of a long list."""


def choices(
    rule: UniverseRule,
    data: MarketData,
    instruments: Sequence[Instrument],
    *,
    start_ms: int,
    names: Collection[str] | None = None,
) -> list[UniverseChange]:
    """Return the choice at *start_ms*, and at each of the rule's times up to the last candle.

    Each is made from candles that had closed by then: those of the 24 hours before it. A symbol is
    as old as its first candle.
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
    """Yield that the *names* of the rule's list leave nothing of the run to choose from."""
    symbols = [item.symbol for item in instruments]
    if rule is not None and names is not None and not set(names) & set(symbols):
        yield (
            f"{rule.file}, the list of market.universe, names no symbol of the run "
            f"({', '.join(symbols[:SHOWN])}), so no position is opened; it begins with "
            f"{', '.join([*names][:SHOWN])}"
        )


def _listed(data: MarketData, at_ms: int) -> Iterator[TradedSymbol]:
    """Yield each symbol as its ticker of *at_ms*; one without a candle in that day is left out."""
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
    """Return the turnover of *day*; volume times close where the source names none."""
    if part.turnover is not None:
        total = sum(part.turnover[day].tolist())  # 64 bits may be too few for a day's
        return Decimal(total).scaleb(-part.turnover_decimals)
    pairs = zip(part.volume[day].tolist(), part.close[day].tolist(), strict=True)
    total = sum(volume * close for volume, close in pairs)
    return Decimal(total).scaleb(-part.volume_decimals - part.price_decimals)
