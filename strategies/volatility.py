"""Volatility of one instrument from its closed bars: windowed EWMA and HAR, exact after a restart.

Endless smoothing would depend on bars that a restarted process no longer has. Both estimators look
at a stated number of last bars, in integers: so equal bars give equal bits, however many were seen
before them.

Sources: J.P. Morgan/Reuters, RiskMetrics, 1996 (exponential weights); F. Corsi, A simple
approximate long-memory model of realized volatility, 2009 (three horizons).
"""

from __future__ import annotations

import math
from collections import deque
from enum import StrEnum
from typing import Final

_PARTS: Final = 10**9
"""A return is counted in billionths, its square in billionths of billionths."""
_HALF_LIVES: Final = 5
"""Of the EWMA within its window: what lies before it would have had 3 % of the weight."""
_HAR_PARTS: Final = (22, 22 / 5, 1)
"""The window over each of HAR's three horizons: a day, a week and a month of trading, if a day is
the shortest."""
_WEIGHT_BITS: Final = 24


class VolatilityKind(StrEnum):
    """How the variance of one bar's return is estimated."""

    EWMA = "ewma"  # exponentially weighted squared returns, within the window
    HAR = "har"  # the mean of three mean squared returns: of 1/22, 5/22 and all of the window


class WindowedVolatility:
    """The standard deviation of one bar's simple return, from the last *window* returns."""

    def __init__(self, kind: VolatilityKind, window: int) -> None:
        self.bars = window + 1
        """Bars that it depends on."""
        self._window = window
        self._last: int | None = None
        self._squares: deque[int] = deque(maxlen=window)
        self._spans = tuple(max(round(window / part), 1) for part in _HAR_PARTS)
        self._sums = [0] * len(self._spans)
        self._is_har = kind is VolatilityKind.HAR
        halves = window / _HALF_LIVES
        # Newest first, as integers: their sum of products is exact in any order.
        ages = range(window if kind is VolatilityKind.EWMA else 0)
        self._weights = [round(2 ** (_WEIGHT_BITS - age / halves)) for age in ages]
        self._weight = sum(self._weights)

    def add(self, close: int) -> None:
        """Take in the close of the next bar, an integer of any one scale."""
        last, self._last = self._last, close
        if last is None:
            return
        moved = (close - last) * _PARTS // last
        square = moved * moved
        squares = self._squares
        if self._is_har:
            for at, span in enumerate(self._spans):
                if len(squares) >= span:
                    self._sums[at] -= squares[-span]
                self._sums[at] += square
        squares.append(square)

    def of_bars(self, bars: int) -> float | None:
        """Return the deviation of the return over *bars* bars, as a fraction; None until full."""
        if len(self._squares) < self._window:
            return None
        if self._is_har:
            means = [total / span for total, span in zip(self._sums, self._spans, strict=True)]
            variance = math.fsum(means) / len(means)
        else:
            weighted = zip(self._weights, reversed(self._squares), strict=True)
            variance = sum(weight * square for weight, square in weighted) / self._weight
        return math.sqrt(variance * bars) / _PARTS
