"""What followed fills as maker: whether the market went on against those who waited at a price."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from tracepaper.replay.report.record import Floats, Ints, RunRecord
from tracepaper.strategies.market import DAY_MS
from tracepaper.strategies.types import Liquidity, Side

AFTER_BARS: Final = (1, 5, 30)
"""Bars after the one inside which a fill was made, at whose closes the price is looked at."""


class Aftermath(NamedTuple):
    """What the close some bars after a maker's fill says of its price; for the maker where > 0."""

    name: str
    moved: Floats  # fractions of the fill's price, one a fill that has such a close
    days: Ints  # the UTC day of each

    @property
    def mean(self) -> tuple[float, float | None] | None:
        """The mean and its error by the day of the fill, as fractions; None without fills."""
        if not self.moved.size:
            return None
        mean = float(self.moved.mean())
        names, which = np.unique(self.days, return_inverse=True)
        if names.size < 2:  # the error is of days: one says nothing of others
            return mean, None
        sums = np.bincount(which, weights=self.moved - mean)
        count = self.moved.size
        spread = float(np.sqrt((sums**2).sum() * names.size / (names.size - 1)))
        return mean, spread / count

    @property
    def against(self) -> float | None:
        """The share of fills after which the price was worse than their own."""
        return float((self.moved < 0).mean()) if self.moved.size else None

    @property
    def mean_for(self) -> float | None:
        """The mean of those that were for the maker, as a fraction."""
        return _mean(self.moved[self.moved > 0])

    @property
    def mean_against(self) -> float | None:
        """The mean of those that were against it."""
        return _mean(self.moved[self.moved < 0])


def aftermaths(record: RunRecord) -> list[Aftermath]:
    """Return what followed the fills as maker of the run's account; nothing where it has none."""
    made = [fill for fill in record.account.fills if fill["liquidity"] == Liquidity.MAKER]
    closes = {key: record.closes_of(bars.open_time_ms) for key, bars in record.bars.items()}
    found = []
    for after in AFTER_BARS if made else ():
        moved, days = [], []
        for fill in made:
            key = fill["instrument"]
            at = int(np.searchsorted(closes[key], fill["filled_ms"], side="right")) + after
            if at < closes[key].size:
                change = float(record.bars[key].close[at]) / fill["price"] - 1.0
                moved.append(change if fill["side"] == Side.BUY else -change)
                days.append(fill["filled_ms"] // DAY_MS)
        name = f"{after} bar{'s' if after > 1 else ''}"
        found.append(Aftermath(name, np.array(moved), np.array(days, dtype=np.int64)))
    return found


def _mean(values: Floats) -> float | None:
    return float(values.mean()) if values.size else None
