"""``TrendStrategy``: direction from the trend of closed hours, size from a volatility target.

Each of several windows says how far the close stands from its mean, in standard deviations, cut at
one; their mean is the trend. A sign in its place would turn at every crossing of a mean, hour by
hour, and trade a whole position each time. The trend is multiplied by target volatility ÷ expected
volatility, at most 1: less is held where the market moves more. Neither windows nor target were
fitted to anything: windows that double, and 40 % a year for each instrument, are the literature's.

Sources: T. Moskowitz, Y. Ooi, L. Pedersen, Time series momentum, 2012 (each instrument at 40 % a
year); R. Carver, Systematic Trading, 2015 (windows that double, distances scaled and cut); J.P.
Morgan/Reuters, RiskMetrics, 1996 (exponential weights).

The rules are docs/strategies.md, U12 to U18.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.market import HOUR_MS, INTERVAL_NAMES, YEAR_MS, interval_text
from tracepaper.strategies.outlook import Outlook
from tracepaper.strategies.signals import Signal
from tracepaper.strategies.strategy import CORE_GATES, MODEL_GATES, Strategy
from tracepaper.strategies.types import Action, Forecast
from tracepaper.strategies.volatility import VolatilityKind, WindowedVolatility

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Integers = npt.NDArray[np.int64]

TREND: Final = "trend"
"""The strategy's name, and that of the direction among its notes."""
SIZE: Final = "size"
"""Among its notes: the direction times the share that volatility leaves of it."""
LEAST_CLOSES: Final = 2
"""A mean of fewer is the close itself."""
MOST_CLOSES: Final = 20_000
"""Of the longest window: they are asked of the exchange at a start."""

_HELD: Final = Signal(Action.HOLD, "no hour has closed")
_NO_FORECAST: Final = Signal(Action.HOLD, "no forecast")
_NO_VOLATILITY: Final = Signal(Action.HOLD, "no volatility is known")


def windows_within(windows_ms: Sequence[int], span_ms: int, bar_ms: int) -> tuple[int, ...]:
    """Return *windows_ms*, halved together until the longest is at most half of *span_ms*.

    Those of fewer than two closes of *bar_ms* are left out, but for the longest, which is not
    halved that far: a shorter span has no trend.
    """
    least_ms = LEAST_CLOSES * max(HOUR_MS, bar_ms)
    found = sorted(windows_ms)
    while found[-1] > span_ms / 2 and found[-1] >= 2 * least_ms:
        found = [window_ms // 2 for window_ms in found]
    return tuple(window_ms for window_ms in found if window_ms >= least_ms)


class SizedBy(StrEnum):
    """What the size of a trend follows."""

    FORECAST = "forecast"  # the model's volatility at the gates' horizon
    EWMA = "ewma"  # exponentially weighted squared returns of the longest window's closes
    CONSTANT = "constant"  # nothing


class Closes(Protocol):
    """Closed bars as columns, oldest first: a history, or those of a higher frame."""

    @property
    def close(self) -> npt.NDArray[np.float64]:
        """Closing prices."""
        ...

    @property
    def time(self) -> Integers:
        """Times at which the bars closed, UTC milliseconds."""
        ...


class ForecastVolatility(NamedTuple):
    """Where a forecast speaks of volatility, and over how long."""

    place: int  # of the horizon, in the forecast
    span: float  # of the horizon, in closes

    def of_close(self, forecast: Forecast) -> float:
        """Return the volatility from one close to the next that *forecast* expects."""
        return forecast.volatility[self.place] / math.sqrt(self.span)


class ClosesVolatility:
    """The volatility from one close to the next, from those of a window that come one by one.

    What it says follows from the closes that it is shown alone: it adds the newest to what it
    knows where only that one is new, and begins anew elsewhere.
    """

    def __init__(self) -> None:
        self._known: WindowedVolatility | None = None
        self._seen = self._newest_ms = 0

    def of_close(self, closes: Integers, times: Integers) -> float:
        """Return the volatility of *closes* [bar], two at least, as a fraction."""
        seen = closes.size
        known = self._known
        if known is not None and seen == self._seen and int(times[-2]) == self._newest_ms:
            known.add(int(closes[-1]))
        else:
            known = WindowedVolatility(VolatilityKind.EWMA, seen - 1)
            for close in closes.tolist():
                known.add(close)
        self._known, self._seen, self._newest_ms = known, seen, int(times[-1])
        found = known.of_bars(1)
        assert found is not None  # its window is full
        return found


class TrendStrategy(Strategy):
    """Long what stands above its means, by how far it does, under a volatility target.

    It decides at the close of an hour, or of a bar where bars are longer, and holds in between.
    """

    exits_freely = True

    def __init__(
        self,
        *,
        windows_ms: Sequence[int],
        interval_ms: int,
        long_only: bool,
        target_volatility: float,
        sized_by: SizedBy,
        volatility: ForecastVolatility | None = None,
        context: int | None = None,
    ) -> None:
        """Take what a model gives of *volatility* and its *context*, where one is to gate."""
        bar_ms = max(HOUR_MS, interval_ms)
        for window_ms in windows_ms:
            if not LEAST_CLOSES * bar_ms <= window_ms <= MOST_CLOSES * bar_ms:
                raise ConfigInvalid(
                    f"strategy.trend_windows has {interval_text(window_ms)}, and closes of "
                    f"{interval_text(bar_ms)} make windows of "
                    f"{interval_text(LEAST_CLOSES * bar_ms)} to "
                    f"{interval_text(MOST_CLOSES * bar_ms)}; write others."
                )
        if sized_by is SizedBy.FORECAST and volatility is None:
            raise ConfigInvalid(
                "strategy.trend_sized_by 'forecast' needs a model that gives volatility; name one, "
                "or write ewma."
            )
        bars = -(-max(windows_ms) // bar_ms)
        if interval_ms < bar_ms:
            frame = INTERVAL_NAMES[bar_ms]
            self.frames, self.frames_warmup = (frame,), {frame: bars}
            self.warmup, self.reads_history = context or 1, False
        else:
            self.warmup = max(bars, context or 1)
        if context is not None:
            self.needs_forecast = True
            # Direction is not the model's, so nothing of the model's direction is asked of it.
            self.gates = MODEL_GATES - {"direction", "edge"}
            self.twins = ("ungated",)
        else:
            self.gates = CORE_GATES
        self._windows = tuple(
            (f"{TREND}_{interval_text(window_ms)}", window_ms) for window_ms in sorted(windows_ms)
        )
        self._long_only = long_only
        self._target = target_volatility
        self._sized_by, self._of_forecast = sized_by, volatility
        self._of_closes = ClosesVolatility()

    def decide(self, now: Outlook) -> Signal:
        """Return the trend of the closed hours, sized; HOLD where none has closed just now."""
        known: Closes = now.frame(self.frames[0]) if self.frames else now.history
        times = known.time
        if times.size < LEAST_CLOSES or times[-1] != now.time:
            return _HELD
        if self.needs_forecast and now.forecast is None:
            return _NO_FORECAST
        # In integers a sum is exact, in whatever order it is made.
        closes = (known.close * 10**now.instrument.price_decimals).round().astype("int64")
        moved = self._of_closes.of_close(closes, times)
        expected = moved
        if self._sized_by is SizedBy.FORECAST:
            assert now.forecast is not None  # or it had held
            assert self._of_forecast is not None  # or the constructor had refused
            expected = self._of_forecast.of_close(now.forecast)
        if not (moved > 0 and expected > 0):
            return _NO_VOLATILITY
        distances = dict(self._distances(closes, times, moved))
        lowest = 0.0 if self._long_only else -1.0
        votes = [min(max(distance, lowest), 1.0) for distance in distances.values()]
        trend = math.fsum(votes) / len(votes)
        note: dict[str, float | str | None] = {**distances, TREND: trend}
        share = 1.0
        if self._sized_by is not SizedBy.CONSTANT:
            # A year has as many closes as their times say: with sessions or holes fewer.
            a_year = (closes.size - 1) * YEAR_MS / int(times[-1] - times[0])
            annual = expected * math.sqrt(a_year)
            share = min(self._target / annual, 1.0)
            note |= {"volatility": annual, "target_volatility": self._target}
        note[SIZE] = trend * share
        if trend > 0:
            return Signal(Action.LONG, "trend up", trend * share, note=note)
        if trend < 0:
            return Signal(Action.SHORT, "trend down", -trend * share, note=note)
        return Signal(Action.FLAT, "no trend up" if self._long_only else "no trend", note=note)

    def _distances(
        self, closes: Integers, times: Integers, moved: float
    ) -> Iterator[tuple[str, float]]:
        """Yield of each window how far the newest close is from its mean, in standard deviations.

        They are those of a random walk that moves by *moved* from close to close: the newest of n
        closes is from their mean by its square root of n / 3 on average.
        """
        newest, newest_ms = int(closes[-1]), int(times[-1])
        for name, window_ms in self._windows:
            first = int(times.searchsorted(newest_ms - window_ms, side="right"))
            count, total = closes.size - first, int(closes[first:].sum())
            distance = (newest * count - total) / total
            yield name, distance / (moved * math.sqrt(count / 3))
