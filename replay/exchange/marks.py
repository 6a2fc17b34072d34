"""Index, mark and premium, invented: a seeded premium, the same for all of one bar.

The data holds trades alone. The last trade stands above the index by the premium, which drifts
from hour to hour and shivers from bar to bar; the mark stands between the two, near the trade.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Final

import numpy as np

from tracepaper.replay.exchange.intervals import HOUR_MS, IntArray
from tracepaper.replay.exchange.noise import mix_array
from tracepaper.replay.exchange.path import Candle
from tracepaper.replay.exchange.table import CandleTable

INDEX: Final = "index"
MARK: Final = "mark"
PREMIUM: Final = "premium"
PREMIUM_DECIMALS: Final = 6
UNIT: Final = 10**PREMIUM_DECIMALS
HOURLY_MOST: Final = 360
BAR_MOST: Final = 40
MARK_SHARE: Final = 4
"""The mark keeps so small a part of the premium: a quarter."""


class Marks:
    """The premium of every bar of *base* in 10⁻⁶, and the prices and candles that follow."""

    def __init__(self, base: CandleTable, seed: int) -> None:
        self._base = base
        self._seed = seed

    @cached_property
    def premiums(self) -> IntArray:
        """The premium of each bar: never near nought, and no function of any price."""
        times = self._base.start_ms
        hours, into = times // HOUR_MS, times % HOUR_MS
        drift = (self._knot(hours) * (HOUR_MS - into) + self._knot(hours + 1) * into) // HOUR_MS
        premium = drift + self._noise(times, BAR_MOST)
        least = np.where(premium < 0, -BAR_MOST, BAR_MOST)
        return np.where(np.abs(premium) < BAR_MOST, least, premium)

    def _knot(self, hours: IntArray) -> IntArray:
        return self._noise(hours, HOURLY_MOST)

    def _noise(self, places: IntArray, most: int) -> IntArray:
        """Return a number from -*most* to *most* for each place."""
        mixed = mix_array(np.uint64(self._seed) ^ places.astype(np.uint64))
        return (mixed % np.uint64(2 * most + 1)).astype(np.int64) - most

    def price(self, measure: str, row: int, last: int) -> int:
        """Return the index or mark price in bar *row* while the last trade is at *last*."""
        premium = int(self.premiums[row])
        if measure == PREMIUM:
            return premium
        share = premium if measure == INDEX else premium // MARK_SHARE
        return last - last * share // (UNIT + share)

    def running(self, measure: str, row: int, candle: Candle) -> Candle:
        """Return the candle of *measure* that belongs to bar *row*, which stands as *candle*.

        It opens at the close of the bar before, as the exchange's do, and has no volume.
        """
        close = self.price(measure, row, candle.close)
        if row > 0:
            opened = self.price(measure, row - 1, int(self._base.close[row - 1]))
        else:
            opened = self.price(measure, row, candle.open)
        high = self.price(measure, row, candle.high)
        low = self.price(measure, row, candle.low)
        return Candle(candle.start_ms, opened, max(opened, high), min(opened, low), close, 0, 0)

    def table(self, measure: str) -> CandleTable:
        """Return the candles of *measure* for all bars."""
        base = self._base
        columns = (base.close, base.high, base.low)
        if measure == PREMIUM:
            close = high = low = self.premiums
        else:
            share = self.premiums if measure == INDEX else self.premiums // MARK_SHARE
            close, high, low = (each - each * share // (UNIT + share) for each in columns)
        first = self.price(measure, 0, int(base.open[0]))
        opened = np.concatenate((np.array([first], dtype=np.int64), close[:-1]))
        nothing = np.zeros(len(base), dtype=np.int64)
        return replace(
            base,
            open=opened,
            high=np.maximum(opened, high),
            low=np.minimum(opened, low),
            close=close,
            volume=nothing,
            turnover=nothing,
        )
