"""The markets served together: their topics, the holes they share, and where time starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from tracepaper.replay.exchange.candles import CandleChannel, TradeChannel
from tracepaper.replay.exchange.channels import Channel, Pacing
from tracepaper.replay.exchange.faults import Faults
from tracepaper.replay.exchange.market import Market
from tracepaper.replay.exchange.quotes import DEPTHS, BookChannel, TickerChannel
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

    def __init__(self, markets: Sequence[Market], *, may_be_empty: bool = False) -> None:
        """Raise ``ConfigInvalid`` where there are no *markets* or two of one symbol."""
        self.markets: Final = {(each.category.value, each.symbol): each for each in markets}
        if len(self.markets) < len(markets) or not (markets or may_be_empty):
            raise ConfigInvalid("Give at least one --data, and each symbol of a category once.")

    def start_ms(self, start: int | None) -> int:
        """Return where time starts: *start* bars into the data of every market.

        The default is the smaller of the default model's warm-up and half of the data. Raises
        ``ConfigInvalid`` where the shortest data has no such bar.
        """
        moments = []
        for market in self.markets.values():
            count = len(market.base)
            row = min(WARM_UP_BARS, count // 2) if start is None else start
            if not 0 <= row < count:
                raise ConfigInvalid(
                    f"--start {row} lies outside the {count} bars of {market.symbol}: "
                    f"give 0 to {count - 1}."
                )
            moments.append(market.open_ms(row) + SETTLE_MS)
        return max(moments)

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

    def find(self, category: str, symbol: str) -> Market | None:
        """Return the market of *symbol*, or None."""
        return self.markets.get((category, symbol))

    def channel(
        self, category: str, topic: str, *, pacing: Pacing, faults: Faults
    ) -> Channel | None:
        """Return a new channel of *topic*, or None where the exchange has no such topic."""
        name, _, rest = topic.partition(".")
        argument, _, symbol = rest.rpartition(".")
        market = self.find(category, symbol)
        if market is None:
            return None
        match name, argument:
            case "kline", interval if market.table(interval):
                return CandleChannel(topic, market, interval, faults)
            case "publicTrade", "":
                return TradeChannel(topic, market, pacing)
            case "tickers", "":
                return TickerChannel(topic, market, pacing)
            case "orderbook", depth if depth.isdecimal() and int(depth) in DEPTHS:
                return BookChannel(topic, market, int(depth), pacing)
            case _:
                return None
