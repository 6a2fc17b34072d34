"""The choice of ``market.universe`` from candles, at the start of a backtest.

The rules are docs/universe.md, V11 to V13.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import Decimal

import numpy as np

from tracepaper.daemon.config.loading import Config
from tracepaper.daemon.feed.client import TradedSymbol
from tracepaper.daemon.session.universe import choose, listed_symbols, with_symbols
from tracepaper.replay.archive import Candles, merge_candles
from tracepaper.replay.backtest.market_data import MarketData
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.units import DAY_MS, iso


def with_chosen(config: Config, data: MarketData, from_ms: int | None) -> Config:
    """Return *config* with the symbols that its rule chooses at *from_ms*, if it has a rule.

    A choice uses the candles that closed in the 24 hours before it. A symbol's age counts from its
    first candle. Raises ``ConfigInvalid`` if nothing is known then, or no symbol passes.
    """
    rule = config.market.universe
    if rule is None:
        return config
    first_ms, _ = data.bounds
    at_ms = first_ms if from_ms is None else from_ms
    if not (traded := [*_figures(merge_candles(data.candles), at_ms)]):
        raise ConfigInvalid(
            f"market.universe chooses by the 24 hours before the first bar of the run, and no "
            f"candle closed in those before {iso(at_ms)}; begin later, such as by --from "
            f"{iso(first_ms + DAY_MS)}."
        )
    names = listed_symbols(config)
    return with_symbols(config, choose(rule, traded, now_ms=at_ms, names=names))


def _figures(candles: Sequence[Candles], at_ms: int) -> Iterator[TradedSymbol]:
    """Yield the figures of each symbol at *at_ms*; leave out those without a candle in 24 hours."""
    for part in candles:
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
