"""The built-in strategies: trend following, and the portfolio weights of a cross-asset network.

For each of several windows, the distance of the close from its mean is measured in standard
deviations and clipped at one; the mean of these is the trend. Using only the sign instead would
trade a whole position at every crossing of a mean. The trend is multiplied by target volatility ÷
expected volatility, at most 1, so positions are smaller in volatile markets. Windows and target are
not fitted: doubling windows and 40 % a year per instrument come from the literature. The position
changes only when it lies outside a band around the target (``NoTradeBand``).

Sources: T. Moskowitz, Y. Ooi, L. Pedersen, Time series momentum, 2012 (each instrument at 40 % a
year); R. Carver, Systematic Trading, 2015 (windows that double, distances scaled and cut); J.P.
Morgan/Reuters, RiskMetrics, 1996 (exponential weights).

A cross-asset network is the run's model: it must answer within the deadline, its forecasts are
gated per symbol, and a symbol's weight is the size of its signal.

The rules are docs/strategies.md, U12 to U18, and docs/several.md, P26 to P28.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Final, Literal, NamedTuple, Protocol

import numpy as np
from msgspec import Meta, Struct
from msgspec.structs import replace

from tracepaper.strategies.allocation import (
    WeightRule,
    allocate,
    covariance_of,
    require_solver,
    volume_bounds,
)
from tracepaper.strategies.api.context import BarContext, Signal
from tracepaper.strategies.api.sizing import NoTradeBand, VolatilityKind, WindowedVolatility
from tracepaper.strategies.api.strategy import (
    CORE_GATES,
    MODEL_GATES,
    MOVES_WITH,
    SHARE_OF,
    PortfolioStrategy,
    Strategy,
    read_options,
)
from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.types.decisions import Action, Forecast
from tracepaper.strategies.types.market import Bar
from tracepaper.strategies.units import HOUR_MS, INTERVAL_NAMES, YEAR_MS, interval_text

if TYPE_CHECKING:
    import numpy.typing as npt

    Integers = npt.NDArray[np.int64]

TREND: Final = "trend"
"""The strategy's name, and the note with the trend."""
SIZE: Final = "size"
"""The note with the trend after volatility scaling."""
BAND: Final = "band"
"""The note with the no-trade band, as a share of a full position."""
MIN_CLOSES: Final = 2
"""Minimum closes in a window; the mean of one is the close itself."""
MAX_CLOSES: Final = 20_000
"""Maximum closes in a window; the exchange must serve them at every start."""

NO_HOUR_CLOSED: Final = Signal(Action.HOLD, "no hour has closed")
_NO_FORECAST: Final = Signal(Action.HOLD, "no forecast")
_NO_VOLATILITY: Final = Signal(Action.HOLD, "no volatility is known")


def windows_within(windows_ms: Sequence[int], span_ms: int, bar_ms: int) -> tuple[int, ...]:
    """Return *windows_ms*, halved together until the longest is at most half of *span_ms*.

    The longest keeps at least two closes of *bar_ms*, since fewer have no trend; other windows with
    fewer are dropped.
    """
    min_ms = MIN_CLOSES * max(HOUR_MS, bar_ms)
    windows = sorted(windows_ms)
    while windows[-1] > span_ms / 2 and windows[-1] >= 2 * min_ms:
        windows = [window_ms // 2 for window_ms in windows]
    return tuple(window_ms for window_ms in windows if window_ms >= min_ms)


class SizedBy(StrEnum):
    """The volatility that scales a trend."""

    FORECAST = "forecast"  # the model's volatility at the gates' horizon
    EWMA = "ewma"  # exponentially weighted squared returns of the longest window's closes
    CONSTANT = "constant"  # no scaling


class Closes(Protocol):
    """Columns of closed bars, oldest first: a history or a higher timeframe."""

    @property
    def close(self) -> npt.NDArray[np.float64]:
        """Closing prices."""
        ...

    @property
    def time(self) -> Integers:
        """Times at which the bars closed, UTC milliseconds."""
        ...


class ForecastVolatility(NamedTuple):
    """The forecast horizon whose volatility scales a trend."""

    place: int  # index among the forecast's horizons
    span: float  # its length in closes

    def of_close(self, forecast: Forecast) -> float:
        """Return the forecast volatility from one close to the next."""
        return forecast.volatility[self.place] / math.sqrt(self.span)


class ClosesVolatility:
    """The volatility from one close to the next over a window of closes, updated incrementally.

    The result depends only on the given closes. If only the newest one is new, it is added to the
    state; otherwise the whole window is recomputed.
    """

    def __init__(self) -> None:
        self._window: WindowedVolatility | None = None
        self._size = self._newest_ms = 0

    def of_close(self, closes: Integers, times: Integers) -> float:
        """Return the volatility of *closes* [bar] (at least two), as a fraction."""
        size, window = closes.size, self._window
        if window is not None and (size, int(times[-2])) == (self._size, self._newest_ms):
            window.add(int(closes[-1]))
        else:
            window = WindowedVolatility(VolatilityKind.EWMA, size - 1)
            for close in closes.tolist():
                window.add(close)
        self._window, self._size, self._newest_ms = window, size, int(times[-1])
        volatility = window.of_bars(1)
        assert volatility is not None  # the window is full
        return volatility


class TrendStrategy(Strategy):
    """Long above the moving averages, in proportion to the distance, with a volatility target.

    It decides at the close of an hour, or of a longer bar, and holds in between.
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
        band: NoTradeBand,
    ) -> None:
        """*volatility* and *context* belong to the gating model, if there is one."""
        bar_ms = max(HOUR_MS, interval_ms)
        _check_windows(windows_ms, bar_ms)
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
            # The model does not choose the direction, so the gates on its direction are left out.
            self.gates = MODEL_GATES - {"direction", "edge"}
            self.shadows = ("ungated",)
        else:
            self.gates = CORE_GATES
        self._windows = tuple(
            (f"{TREND}_{interval_text(window_ms)}", window_ms) for window_ms in sorted(windows_ms)
        )
        self._lowest = 0.0 if long_only else -1.0
        self._target = target_volatility
        self._sized_by, self._forecast_volatility = sized_by, volatility
        self._band = band
        self._closes_volatility = ClosesVolatility()

    def decide(self, context: BarContext) -> Signal:
        """Return the scaled trend of the closed hours; HOLD unless an hour has just closed."""
        table: Closes = context.timeframe(self.frames[0]) if self.frames else context.history
        times = table.time
        if times.size < MIN_CLOSES or times[-1] != context.time:
            return NO_HOUR_CLOSED
        if self.needs_forecast and context.forecast is None:
            return _NO_FORECAST
        # Sums of integers are exact in any order.
        closes = (table.close * 10**context.instrument.price_decimals).round().astype("int64")
        realised = self._closes_volatility.of_close(closes, times)
        forecast = None
        if self._forecast_volatility is not None and context.forecast is not None:
            forecast = self._forecast_volatility.of_close(context.forecast)
        expected = forecast if self._sized_by is SizedBy.FORECAST else realised
        if not (realised > 0 and expected is not None and expected > 0):
            return _NO_VOLATILITY
        distances = dict(self._distances(closes, times, realised))
        clipped = [min(max(distance, self._lowest), 1.0) for distance in distances.values()]
        trend = math.fsum(clipped) / len(clipped)
        note: dict[str, float | str | None] = {**distances, TREND: trend}
        # Closes per year are counted, since sessions and gaps reduce them.
        to_year = math.sqrt((closes.size - 1) * YEAR_MS / int(times[-1] - times[0]))
        share = 1.0
        if self._sized_by is not SizedBy.CONSTANT:
            share = min(self._target / (expected * to_year), 1.0)
            note |= {"volatility": expected * to_year, "target_volatility": self._target}
        note[SIZE] = trend * share
        if trend == 0:
            return Signal(
                Action.FLAT, "no trend up" if self._lowest == 0 else "no trend", note=note
            )
        band = None
        if (sensitivity := self._sensitivity(closes, times, realised)) is not None:
            note[BAND] = band = self._band.half_width(share * sensitivity)
        by_forecast = None
        if forecast:
            by_forecast = abs(trend) * min(self._target / (forecast * to_year), 1.0)
        action, reason = (Action.LONG, "trend up") if trend > 0 else (Action.SHORT, "trend down")
        return Signal(
            action, reason, abs(trend) * share, note=note, band=band, by_forecast=by_forecast
        )

    def _sensitivity(self, closes: Integers, times: Integers, volatility: float) -> float | None:
        """Return the standard deviation of the trend's changes ÷ that of the returns.

        Both are from close to close over the newer half of the closes. A window that would begin
        before the oldest close begins there. None if the price did not move.
        """
        first = closes.size // 2 - 1
        sums = np.concatenate(([0], closes.cumsum()))
        newest, totals = closes[first:], sums[first + 1 :]
        trends = np.zeros(newest.size)
        for _, window_ms in self._windows:
            begin = times.searchsorted(times[first:] - window_ms, side="right")
            counts = np.arange(first + 1, closes.size + 1) - begin
            means = (totals - sums[begin]) / counts
            distances = (newest / means - 1) / (volatility * np.sqrt(counts / 3))
            trends += distances.clip(self._lowest, 1.0)
        moves, returns = np.diff(trends) / len(self._windows), np.diff(newest) / newest[:-1]
        # fsum is exact, so the result does not depend on the processor's order of additions.
        trend_sum, return_sum = (math.fsum((each * each).tolist()) for each in (moves, returns))
        return math.sqrt(trend_sum / return_sum) if return_sum else None

    def _distances(
        self, closes: Integers, times: Integers, volatility: float
    ) -> Iterator[tuple[str, float]]:
        """Yield each window's distance of the newest close from its mean, in standard deviations.

        In a random walk with *volatility* per close, the newest of n closes has a standard
        deviation of √(n / 3) × *volatility* from their mean.
        """
        newest, newest_ms = int(closes[-1]), int(times[-1])
        for name, window_ms in self._windows:
            first = int(times.searchsorted(newest_ms - window_ms, side="right"))
            count, total = closes.size - first, int(closes[first:].sum())
            distance = (newest * count - total) / total
            yield name, distance / (volatility * math.sqrt(count / 3))


def _check_windows(windows_ms: Sequence[int], bar_ms: int) -> None:
    for window_ms in windows_ms:
        if not MIN_CLOSES * bar_ms <= window_ms <= MAX_CLOSES * bar_ms:
            raise ConfigInvalid(
                f"strategy.trend_windows has {interval_text(window_ms)}, but closes of "
                f"{interval_text(bar_ms)} make windows of "
                f"{interval_text(MIN_CLOSES * bar_ms)} to "
                f"{interval_text(MAX_CLOSES * bar_ms)}; write others."
            )


SHRINK: Final = 0.1
"""The default shrinkage of the correlations towards zero."""
BY_NETWORK: Final = "network"
"""The rule that uses the network's weights."""
SHARES_NOTED: Final = 8
"""Number of symbols in a decision's notes on attention or correlation, the largest first."""
WITHOUT_ANSWER: Final = "no_answer"
"""The note that says why the network gave no answer."""
_BASIS_POINTS: Final = 1e4
_FLOATS: Final = np.dtype("<f8")
_BETWEEN: Final = Signal(Action.HOLD, "between two decisions")
_UNANSWERED: Final = Signal(Action.HOLD, "no forecast")
_NO_NOTES: Final[Mapping[str, float]] = MappingProxyType({})
LATE: Final = "a bar came after the others of its close"


class SymbolAnswer(NamedTuple):
    """A cross-asset network's output for one symbol, in addition to its forecast."""

    weight: float  # in [-1, 1], before ``long_only``
    relative: tuple[float, ...]  # [horizon]: expected log return minus the mean over all symbols
    shares: tuple[float, ...]  # [symbol of the run]: shares of attention, which sum to 1

    def encoded(self) -> bytes:
        """Return the encoding for ``Forecast.auxiliary``."""
        return np.array((self.weight, *self.relative, *self.shares), _FLOATS).tobytes()

    @classmethod
    def of(cls, forecast: Forecast) -> SymbolAnswer:
        """Decode the answer from a forecast."""
        weight, *others = np.frombuffer(forecast.auxiliary, _FLOATS).tolist()
        count = len(forecast.horizons)
        return cls(weight, tuple(others[:count]), tuple(others[count:]))


class CommonBars:
    """Checks that several symbols have their last *count* bars without gaps, at the same time.

    The state depends only on the last *count* bars of each symbol.
    """

    def __init__(self, symbols: Sequence[str], count: int) -> None:
        self.count = count
        self.newest_ms: dict[str, int] = dict.fromkeys(symbols, -1)
        self._bars = dict.fromkeys(symbols, 0)
        self._consecutive = dict.fromkeys(symbols, 0)

    def take(self, bar: Bar) -> None:
        """Count a bar of any of the symbols."""
        symbol = symbol_of(bar)
        follows = bar.open_time_ms == self.newest_ms[symbol] + bar.interval_ms
        self._bars[symbol] = min(self._bars[symbol] + 1, self.count)
        count = self._consecutive[symbol] + 1 if follows else 1
        self._consecutive[symbol] = min(count, self.count)
        self.newest_ms[symbol] = bar.open_time_ms

    def forget(self, symbol: str) -> None:
        """Restart the count of *symbol*."""
        self.newest_ms[symbol], self._bars[symbol], self._consecutive[symbol] = -1, 0, 0

    def lacking(self) -> str:
        """Return a sentence that names a symbol without enough bars; empty if all have them."""
        for symbol, bars in self._bars.items():
            if bars < self.count:
                return f"{symbol} has {bars:,} of the {self.count:,} bars it needs"
        for symbol, bars in self._consecutive.items():
            if bars < self.count:
                return f"{symbol} lacks one of the last {self.count:,} bars"
        return LATE if len(set(self.newest_ms.values())) > 1 else ""


NonNegative = Annotated[float, Meta(ge=0)]


class CrossAssetOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """``strategy.options``; those after ``rule`` need a rule that uses the correlations."""

    every: Annotated[int, Meta(ge=1)] | None = None
    long_only: bool = False
    rule: Literal["network", "minimum", "mean_variance"] = BY_NETWORK
    shrink: Annotated[float, Meta(ge=0, le=1)] = SHRINK
    bound: Annotated[float, Meta(gt=0, le=1)] = 1.0
    volume_share: NonNegative = 0.0
    aversion: NonNegative = 5.0
    cost: NonNegative = 0.0006


class CrossAssetStrategy(PortfolioStrategy):
    """Hold every symbol with the weight from the run's cross-asset network.

    A weight is a share of a full position (``[sizing]``). *every* is the number of bars
    between decisions. If the network has no answer for a close, or misses the deadline, all symbols
    hold. If a gate refuses a symbol, only that symbol holds.
    """

    gates = MODEL_GATES - {"direction", "edge"}  # the forecast's sign is not used
    needs_forecast = True
    reads_history = False
    shadows: tuple[str, ...] = ("ungated",)

    def __init__(
        self,
        symbols: Sequence[str],
        options: Mapping[str, object],
        *,
        context: int,
        every: int,
        horizon_index: int,
        has_correlations: bool = False,
    ) -> None:
        self._options = read_options(CrossAssetOptions, options)
        self._rule = _rule(self._options.rule, has_correlations=has_correlations)
        unused = sorted(set(options) - {"every", "long_only", "rule"})
        if self._rule is None and unused:
            raise ConfigInvalid(
                f"strategy.options.{unused[0]} needs a rule by correlations; choose one by rule, "
                "or leave it out."
            )
        self.reads_history = self._options.volume_share > 0.0
        self.sees_account = self._rule is not None
        if self._rule is not None:
            self.shadows = (*self.shadows, "uncorrelated")
        self.symbols = tuple(symbols)
        self.warmup = context
        self._every = self._options.every or every
        self._index = horizon_index
        self._bars = CommonBars(self.symbols, context)

    def observe(self, bar: Bar) -> None:
        """Count a closed bar of any symbol."""
        self._bars.take(bar)

    def decide(self, contexts: Mapping[str, BarContext]) -> Mapping[str, Signal]:
        """Decide for all symbols at every *every*-th close; all hold in between."""
        bar = next(iter(contexts.values())).exact
        if cause := self._no_answer_cause(contexts, bar.open_time_ms):
            held = Signal(Action.HOLD, cause, note={WITHOUT_ANSWER: cause})
            return dict.fromkeys(contexts, held)
        if (bar.open_time_ms // bar.interval_ms + 1) % self._every:
            return dict.fromkeys(contexts, _BETWEEN)
        forecasts = {symbol: context.forecast for symbol, context in contexts.items()}
        answered = {
            symbol: forecast for symbol, forecast in forecasts.items() if forecast is not None
        }
        if self._rule is None:
            signals = {
                symbol: self._signal(SymbolAnswer.of(forecast))
                for symbol, forecast in answered.items()
            }
        elif len(answered) == len(self.symbols):
            signals = self._rule_signals(self._rule, answered, contexts)
        else:  # weights of fewer symbols would be another portfolio
            signals = {}
        return {symbol: signals.get(symbol, _UNANSWERED) for symbol in contexts}

    def _rule_signals(
        self,
        rule: WeightRule,
        forecasts: Mapping[str, Forecast],
        contexts: Mapping[str, BarContext],
    ) -> dict[str, Signal]:
        """Return the signals with weights by *rule* from the network's correlations.

        Empty if a number is not finite; the gate ``finite`` of that symbol reports it.
        """
        ordered = [forecasts[symbol] for symbol in self.symbols]
        deviations = np.array([forecast.volatility[self._index] for forecast in ordered])
        expected = np.array(
            [SymbolAnswer.of(forecast).relative[self._index] for forecast in ordered]
        )
        matrix = np.array([forecast.head("correlations", self._index) for forecast in ordered])
        if not np.isfinite((deviations, expected)).all() or not np.isfinite(matrix).all():
            return {}
        settings = self._options
        of_run = [contexts[symbol] for symbol in self.symbols]
        by_volume = volume_bounds(settings.volume_share, of_run, bars=self._every)
        weights, uncorrelated = (
            allocate(
                rule,
                covariance_of(deviations, correlations, shrink=settings.shrink),
                expected=expected,
                held=np.array([context.share_of_equity for context in of_run]),
                bound=settings.bound,
                by_volume=by_volume,
                aversion=settings.aversion,
                cost=settings.cost,
            ).tolist()
            for correlations in (matrix, np.eye(len(matrix)))
        )
        signals = {}
        for at, symbol in enumerate(self.symbols):
            order = np.argsort(-np.abs(matrix[at]), kind="stable").tolist()
            others = [other for other in order if other != at][:SHARES_NOTED]
            note = {
                f"{MOVES_WITH}{self.symbols[other]}": float(matrix[at, other]) for other in others
            }
            answer = SymbolAnswer.of(ordered[at])._replace(weight=weights[at])
            signals[symbol] = replace(
                self._signal(answer, note | {"volatility": float(deviations[at])}),
                uncorrelated=uncorrelated[at],
            )
        return signals

    def _no_answer_cause(self, contexts: Mapping[str, BarContext], open_ms: int) -> str:
        """Return why the network cannot answer at this close; empty if it can."""
        missing = [symbol for symbol, at_ms in self._bars.newest_ms.items() if at_ms < open_ms]
        if missing:
            return f"{missing[0]} has no bar at this close"
        return self._bars.lacking() or (LATE if len(contexts) < len(self.symbols) else "")

    def _signal(self, answer: SymbolAnswer, notes: Mapping[str, float] = _NO_NOTES) -> Signal:
        """Return the signal of one symbol, sized by its weight, with additional *notes*."""
        weight = max(answer.weight, 0.0) if self._options.long_only else answer.weight
        note = {"weight": weight, "relative_bp": answer.relative[self._index] * _BASIS_POINTS}
        note |= notes
        order = np.argsort(-np.array(answer.shares), kind="stable")[:SHARES_NOTED].tolist()
        note |= {f"{SHARE_OF}{self.symbols[at]}": answer.shares[at] for at in order}
        if weight == 0.0:
            return Signal(Action.FLAT, "no weight", note=note)
        action = Action.LONG if weight > 0.0 else Action.SHORT
        return Signal(action, "held by its weight", min(abs(weight), 1.0), note=note)


def symbol_of(bar: Bar) -> str:
    """Return the symbol of a bar's instrument."""
    return bar.instrument.partition(":")[2]


def _rule(name: str, *, has_correlations: bool) -> WeightRule | None:
    """Return the rule of an option; None uses the network's weights."""
    if name == BY_NETWORK:
        return None
    if not has_correlations:
        raise ConfigInvalid(
            f"strategy.options.rule '{name}' needs correlations of the network, which the "
            "checkpoint does not give; train one with factors = 1 or more."
        )
    rule = WeightRule(name)
    require_solver(rule)
    return rule
