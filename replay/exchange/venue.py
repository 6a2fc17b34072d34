"""The markets served together: the holes they share, and where time starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from tracepaper.replay.archive import Candles
from tracepaper.replay.exchange.market import SimulatedMarket
from tracepaper.strategies.errors import ConfigInvalid

WARM_UP_BARS: Final = 4_900
"""Bars before the start by default: the default model's warm-up, so that REST can warm it."""
SETTLE_MS: Final = 5_000
"""Time starts so far into its first bar, so that the bar before is final by any client's rule."""
HOLE_LINGER_MS: Final = 1_500
"""Time stays so long in a hole, so that the last confirm before it is sent."""
END_LINGER_MS: Final = 10_000
"""Time stops so long after the last close, so that REST calls the last bar final."""


class Venue:
    """Every market of one exchange."""

    def __init__(self, markets: Sequence[SimulatedMarket], *, may_be_empty: bool = False) -> None:
        """Raise ``ConfigInvalid`` where there are no *markets* or two of one symbol."""
        self.markets: Final = {(each.category.value, each.symbol): each for each in markets}
        if len(self.markets) < len(markets) or not (markets or may_be_empty):
            raise ConfigInvalid("Give at least one --data, and each symbol of a category once.")

    def start_ms(self, start: int | None) -> int:
        """Return where time starts: *start* bars into the data of every market.

        The default is the smaller of the default model's warm-up and half of the data. Raises
        ``ConfigInvalid`` where the shortest data has no such bar.
        """
        rows = [
            (market, start_row(market.symbol, len(market.base), start))
            for market in self.markets.values()
        ]
        return max(market.open_ms(row) for market, row in rows) + SETTLE_MS

    @property
    def end_ms(self) -> int:
        """The first millisecond after all data."""
        return max(market.end_ms for market in self.markets.values())

    def holes(self) -> list[tuple[int, int]]:
        """Return the spans in which no market has a bar, as (from, until)."""
        markets = list(self.markets.values())
        starts = np.concatenate([market.base.start_ms for market in markets])
        ends = np.concatenate([market.base.start_ms + market.interval_ms for market in markets])
        order = np.argsort(starts, kind="stable")
        starts, ends = starts[order], np.maximum.accumulate(ends[order])
        after = np.flatnonzero(starts[1:] > ends[:-1])
        return [(int(ends[row]), int(starts[row + 1])) for row in after.tolist()]

    def find(self, category: str, symbol: str) -> SimulatedMarket | None:
        """Return the market of *symbol*, or None."""
        return self.markets.get((category, symbol))


def start_row(symbol: str, count: int, start: int | None) -> int:
    """Return the bar, of *count* of *symbol*, into which time starts."""
    row = min(WARM_UP_BARS, count // 2) if start is None else start
    if not 0 <= row < count:
        raise ConfigInvalid(
            f"--start {row} lies outside the {count} bars of {symbol}: give 0 to {count - 1}."
        )
    return row


def shifted(parts: Sequence[Candles], now_ms: int, start: int | None) -> list[Candles]:
    """Return *parts* moved together by whole bars, so that *now_ms* lies in the start bar.

    Raises ``ConfigInvalid`` as ``Venue.start_ms`` does.
    """
    if not parts:
        return []
    begins = [each.open_time_ms[start_row(each.symbol, len(each), start)] for each in parts]
    step_ms = math.lcm(*(each.interval_ms for each in parts))
    shift_ms = (now_ms - int(max(begins))) // step_ms * step_ms
    return [replace(each, open_time_ms=each.open_time_ms + shift_ms) for each in parts]
