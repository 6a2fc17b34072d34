"""The built-in strategies: trend following, and the portfolio weights of a cross-asset network.

Each of several windows says how far the close stands from its mean, in standard deviations, cut at
one; their mean is the trend. A sign in its place would turn at every crossing of a mean, hour by
hour, and trade a whole position each time. The trend is multiplied by target volatility ÷ expected
volatility, at most 1: less is held where the market moves more. Neither windows nor target were
fitted to anything: windows that double, and 40 % a year for each instrument, are the literature's.
What is held changes where it lies outside a band around the target (``NoTradeBand``).

Sources: T. Moskowitz, Y. Ooi, L. Pedersen, Time series momentum, 2012 (each instrument at 40 % a
year); R. Carver, Systematic Trading, 2015 (windows that double, distances scaled and cut); J.P.
Morgan/Reuters, RiskMetrics, 1996 (exponential weights).

A cross-asset network is the run's model: it answers within the deadline, its forecasts are gated
symbol by symbol, and the weight that it gives a symbol is the size of that symbol's signal.

The rules are docs/strategies.md, U12 to U18, and docs/several.md, P26 to P28.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import numpy as np
from msgspec.structs import replace

from tracepaper.strategies.allocation import (
    SOLVED,
    WeightRule,
    allocate,
    check_prices,
    covariance_of,
    require_solver,
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
)
from tracepaper.strategies.errors import ConfigInvalid, shown
from tracepaper.strategies.types.decisions import Action, Forecast
from tracepaper.strategies.types.market import Bar
from tracepaper.strategies.units import HOUR_MS, INTERVAL_NAMES, YEAR_MS, interval_text

if TYPE_CHECKING:
    import numpy.typing as npt

    Integers = npt.NDArray[np.int64]

TREND: Final = "trend"
"""The strategy's name, and that of the direction among its notes."""
SIZE: Final = "size"
"""Among its notes: the direction times the share that volatility leaves of it."""
BAND: Final = "band"
"""Among its notes: how far what is held may be from the size, in shares of a full position."""
LEAST_CLOSES: Final = 2
"""A mean of fewer is the close itself."""
MOST_CLOSES: Final = 20_000
"""Of the longest window: the exchange must serve them at every start."""

NO_HOUR_CLOSED: Final = Signal(Action.HOLD, "no hour has closed")
_NO_FORECAST: Final = Signal(Action.HOLD, "no forecast")
_NO_VOLATILITY: Final = Signal(Action.HOLD, "no volatility is known")


def windows_within(windows_ms: Sequence[int], span_ms: int, bar_ms: int) -> tuple[int, ...]:
    """Return *windows_ms*, halved together until the longest is at most half of *span_ms*.

    The longest keeps at least two closes of *bar_ms*, since fewer have no trend; other windows with
    fewer are left out.
    """
    least_ms = LEAST_CLOSES * max(HOUR_MS, bar_ms)
    windows = sorted(windows_ms)
    while windows[-1] > span_ms / 2 and windows[-1] >= 2 * least_ms:
        windows = [window_ms // 2 for window_ms in windows]
    return tuple(window_ms for window_ms in windows if window_ms >= least_ms)


class SizedBy(StrEnum):
    """The volatility by which a trend is sized."""

    FORECAST = "forecast"  # the model's volatility at the gates' horizon
    EWMA = "ewma"  # exponentially weighted squared returns of the longest window's closes
    CONSTANT = "constant"  # nothing


class Closes(Protocol):
    """Closed bars as columns, oldest first: a history, or those of a higher timeframe."""

    @property
    def close(self) -> npt.NDArray[np.float64]:
        """Closing prices."""
        ...

    @property
    def time(self) -> Integers:
        """Times at which the bars closed, UTC milliseconds."""
        ...


class ForecastVolatility(NamedTuple):
    """The horizon whose volatility sizes a trend."""

    place: int  # index among the forecast's horizons
    span: float  # its length in closes

    def of_close(self, forecast: Forecast) -> float:
        """Return the volatility from one close to the next that *forecast* expects."""
        return forecast.volatility[self.place] / math.sqrt(self.span)


class ClosesVolatility:
    """The volatility from one close to the next over a window of closes, updated one by one.

    The result depends on the given closes alone: where only the newest is new it is added to the
    last state, else the whole window is computed again.
    """

    def __init__(self) -> None:
        self._window: WindowedVolatility | None = None
        self._size = self._newest_ms = self._newest = 0

    def of_close(self, closes: Integers, times: Integers) -> float:
        """Return the volatility of *closes* [bar], two at least, as a fraction."""
        size, window = closes.size, self._window
        before = int(times[-2]), int(closes[-2])  # a split adjusts what was known
        if window is not None and (size, *before) == (self._size, self._newest_ms, self._newest):
            window.add(int(closes[-1]))
        else:
            window = WindowedVolatility(VolatilityKind.EWMA, size - 1)
            for close in closes.tolist():
                window.add(close)
        self._window, self._size = window, size
        self._newest_ms, self._newest = int(times[-1]), int(closes[-1])
        volatility = window.of_bars(1)
        assert volatility is not None  # its window is full
        return volatility


class TrendStrategy(Strategy):
    """Long where the price is above its means, by how far it is, under a volatility target.

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
        band: NoTradeBand,
    ) -> None:
        """*volatility* and *context* are those of the model that gates, where there is one."""
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
            # Direction is not the model's, so nothing of the model's direction is asked of it.
            self.gates = MODEL_GATES - {"direction", "edge"}
            self.shadows = ("ungated",)
        else:
            self.gates = CORE_GATES
        self._windows = tuple(
            (f"{TREND}_{interval_text(window_ms)}", window_ms) for window_ms in sorted(windows_ms)
        )
        self._lowest = 0.0 if long_only else -1.0
        self._target = target_volatility
        self._sized_by, self._of_forecast = sized_by, volatility
        self._band = band
        self._of_closes = ClosesVolatility()

    def decide(self, context: BarContext) -> Signal:
        """Return the trend of the closed hours, sized; HOLD where none has closed just now."""
        table: Closes = context.timeframe(self.frames[0]) if self.frames else context.history
        times = table.time
        if times.size < LEAST_CLOSES or times[-1] != context.time:
            return NO_HOUR_CLOSED
        if self.needs_forecast and context.forecast is None:
            return _NO_FORECAST
        # Sums of integers are exact in any order.
        closes = (table.close * 10**context.instrument.price_decimals).round().astype("int64")
        realised = self._of_closes.of_close(closes, times)
        forecast = None
        if self._of_forecast is not None and context.forecast is not None:
            forecast = self._of_forecast.of_close(context.forecast)
        expected = forecast if self._sized_by is SizedBy.FORECAST else realised
        if not (realised > 0 and expected is not None and expected > 0):
            return _NO_VOLATILITY
        distances = dict(self._distances(closes, times, realised))
        votes = [min(max(distance, self._lowest), 1.0) for distance in distances.values()]
        trend = math.fsum(votes) / len(votes)
        note: dict[str, float | str | None] = {**distances, TREND: trend}
        # Sessions and holes leave a year fewer closes, so they are counted.
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
        """Return by how much the trend moves with the price; None where the price stood still.

        That is the deviation of its changes over that of the returns, from close to close over the
        newer half of the closes. A window that would begin before the oldest close begins there.
        """
        first = closes.size // 2 - 1
        sums = np.concatenate(([0], closes.cumsum()))
        newest, ended = closes[first:], sums[first + 1 :]
        trends = np.zeros(newest.size)
        for _, window_ms in self._windows:
            begin = times.searchsorted(times[first:] - window_ms, side="right")
            counts = np.arange(first + 1, closes.size + 1) - begin
            means = (ended - sums[begin]) / counts
            distances = (newest / means - 1) / (volatility * np.sqrt(counts / 3))
            trends += distances.clip(self._lowest, 1.0)
        moves, returns = np.diff(trends) / len(self._windows), np.diff(newest) / newest[:-1]
        # Sums that are exact in any order, whatever the processor adds at once.
        moved, went = (math.fsum((changes * changes).tolist()) for changes in (moves, returns))
        return math.sqrt(moved / went) if went else None

    def _distances(
        self, closes: Integers, times: Integers, volatility: float
    ) -> Iterator[tuple[str, float]]:
        """Yield each window's distance of the newest close from its mean, in standard deviations.

        The deviation is that of a random walk of *volatility* from close to close, whose newest of
        n closes lies √(n / 3) times that from their mean.
        """
        newest, newest_ms = int(closes[-1]), int(times[-1])
        for name, window_ms in self._windows:
            first = int(times.searchsorted(newest_ms - window_ms, side="right"))
            count, total = closes.size - first, int(closes[first:].sum())
            distance = (newest * count - total) / total
            yield name, distance / (volatility * math.sqrt(count / 3))


def _check_windows(windows_ms: Sequence[int], bar_ms: int) -> None:
    for window_ms in windows_ms:
        if not LEAST_CLOSES * bar_ms <= window_ms <= MOST_CLOSES * bar_ms:
            raise ConfigInvalid(
                f"strategy.trend_windows has {interval_text(window_ms)}, and closes of "
                f"{interval_text(bar_ms)} make windows of "
                f"{interval_text(LEAST_CLOSES * bar_ms)} to "
                f"{interval_text(MOST_CLOSES * bar_ms)}; write others."
            )


OPTIONS: Final = ("every", "long_only", "rule")
OF_RULES: Final = ("shrink", "bound", "aversion", "cost")
"""Options of a rule that weighs by the network's correlations."""
SHRINK: Final = 0.1
"""The usual share by which these are shrunk towards none."""
BY_NETWORK: Final = "network"
"""The rule that takes the network's weights as they are."""
SHARES_NOTED: Final = 8
"""How many symbols' shares of the attention are noted with a decision, the largest first."""
WITHOUT_ANSWER: Final = "no_answer"
"""The note that says why the network gave no answer."""
_BASIS_POINTS: Final = 1e4
_FLOATS: Final = np.dtype("<f8")
_BETWEEN: Final = Signal(Action.HOLD, "between two decisions")
_UNANSWERED: Final = Signal(Action.HOLD, "no forecast")
_NO_MORE: Final[Mapping[str, float]] = MappingProxyType({})
LATE: Final = "a bar came after the others of its close"


class SymbolAnswer(NamedTuple):
    """The answer of a network over several symbols for one of them, beside its forecast."""

    weight: float  # in [-1, 1], before ``long_only``
    relative: tuple[float, ...]  # expected log return less the mean over the symbols, a horizon
    shares: tuple[float, ...]  # of its attention, one a symbol of the run; they sum to 1

    def encoded(self) -> bytes:
        """Return it as ``Forecast.auxiliary`` holds it."""
        return np.array((self.weight, *self.relative, *self.shares), _FLOATS).tobytes()

    @classmethod
    def of(cls, forecast: Forecast) -> SymbolAnswer:
        """Read it back from a forecast of such a network."""
        weight, *others = np.frombuffer(forecast.auxiliary, _FLOATS).tolist()
        count = len(forecast.horizons)
        return cls(weight, tuple(others[:count]), tuple(others[count:]))


class CommonBars:
    """Counts, for each of several symbols, the bars up to the newest without a gap.

    The state depends on the last *count* bars of each symbol alone.
    """

    def __init__(self, symbols: Sequence[str], count: int) -> None:
        self.count = count
        self.newest_ms: dict[str, int] = dict.fromkeys(symbols, -1)
        self._bars = dict.fromkeys(symbols, 0)
        self._in_a_row = dict.fromkeys(symbols, 0)

    def take(self, bar: Bar) -> None:
        """Count a bar of any of the symbols."""
        symbol = symbol_of(bar)
        follows = bar.open_time_ms == self.newest_ms[symbol] + bar.interval_ms
        self._bars[symbol] = min(self._bars[symbol] + 1, self.count)
        self._in_a_row[symbol] = min(self._in_a_row[symbol] + 1, self.count) if follows else 1
        self.newest_ms[symbol] = bar.open_time_ms

    def forget(self, symbol: str) -> None:
        """Restart the count of *symbol*."""
        self.newest_ms[symbol], self._bars[symbol], self._in_a_row[symbol] = -1, 0, 0

    def lacking(self) -> str:
        """Return which symbol lacks bars, in a sentence; empty where none does."""
        for symbol, bars in self._bars.items():
            if bars < self.count:
                return f"{symbol} has {bars:,} of the {self.count:,} bars that are looked back on"
        for symbol, bars in self._in_a_row.items():
            if bars < self.count:
                return f"{symbol} lacks one of the last {self.count:,} bars"
        return LATE if len(set(self.newest_ms.values())) > 1 else ""


class CrossAssetStrategy(PortfolioStrategy):
    """Hold every symbol by the weight that the run's network over all of them gives it.

    With ``[sizing] mode = "equity"`` a weight is a share of equity. *every* is how many bars lie
    between decisions. Where the network has no answer for a close, or none in time, all symbols
    hold; a symbol that a gate refuses holds alone.
    """

    gates = MODEL_GATES - {"direction", "edge"}  # of the forecast's own sign, which decides nothing
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
        self._rule = _rule(options.get("rule", BY_NETWORK), has_correlations=has_correlations)
        names = OPTIONS if self._rule is None else (*OPTIONS, *OF_RULES)
        if unknown := sorted(set(options) - set(names)):
            raise ConfigInvalid(
                f"strategy.options.{unknown[0]} is of a rule by correlations; choose one by rule, "
                "or leave it out."
                if unknown[0] in OF_RULES
                else f"strategy.options.{unknown[0]} is unknown; use {', '.join(names)}."
            )
        shares = {"shrink": SHRINK, "bound": 1.0, "aversion": 5.0, "cost": 0.0006}
        self._of_rule = {name: _number(name, options, shares[name]) for name in OF_RULES}
        check_prices(**{name: self._of_rule[name] for name in ("bound", "aversion", "cost")})
        if not 0.0 <= self._of_rule["shrink"] <= 1.0:
            raise ConfigInvalid("strategy.options.shrink must be at least 0 and at most 1.")
        self.sees_account = self._rule is not None
        if self._rule is not None:
            self.shadows = (*self.shadows, "uncorrelated")
        self.symbols = tuple(symbols)
        self.warmup = context
        self._every = _every(options.get("every", every))
        long_only = options.get("long_only", False)
        if type(long_only) is not bool:
            raise ConfigInvalid("strategy.options.long_only must be true or false.")
        self._long_only = long_only
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
            signals = self._weighed(self._rule, answered, contexts)
        else:  # the others' weights would be those of another portfolio
            signals = {}
        return {symbol: signals.get(symbol, _UNANSWERED) for symbol in contexts}

    def _weighed(
        self,
        rule: WeightRule,
        forecasts: Mapping[str, Forecast],
        contexts: Mapping[str, BarContext],
    ) -> dict[str, Signal]:
        """Weigh all symbols by *rule* over what the network says of their risk together.

        Nothing is weighed where a number of it is not finite: that symbol's gate says so.
        """
        ordered = [forecasts[symbol] for symbol in self.symbols]
        deviations = np.array([forecast.volatility[self._index] for forecast in ordered])
        expected = np.array(
            [SymbolAnswer.of(forecast).relative[self._index] for forecast in ordered]
        )
        matrix = np.array([forecast.head("correlations", self._index) for forecast in ordered])
        if not np.isfinite((deviations, expected)).all() or not np.isfinite(matrix).all():
            return {}
        chosen = self._of_rule
        weights, alone = (
            allocate(
                rule,
                covariance_of(deviations, correlations, shrink=chosen["shrink"]),
                expected=expected,
                held=np.array([contexts[symbol].share_of_equity for symbol in self.symbols]),
                bound=chosen["bound"],
                aversion=chosen["aversion"],
                cost=chosen["cost"],
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
                uncorrelated=alone[at],
            )
        return signals

    def _no_answer_cause(self, contexts: Mapping[str, BarContext], open_ms: int) -> str:
        """Return why the network cannot answer at this close; empty where it can."""
        missing = [symbol for symbol, at_ms in self._bars.newest_ms.items() if at_ms < open_ms]
        if missing:
            return f"{missing[0]} has no bar at this close"
        return self._bars.lacking() or (LATE if len(contexts) < len(self.symbols) else "")

    def _signal(self, answer: SymbolAnswer, more: Mapping[str, float] = _NO_MORE) -> Signal:
        """Return the signal of one symbol, sized by its weight, with its causes as notes.

        *more* are notes of the rule that found the weight.
        """
        weight = max(answer.weight, 0.0) if self._long_only else answer.weight
        note = {"weight": weight, "relative_bp": answer.relative[self._index] * _BASIS_POINTS}
        note |= more
        order = np.argsort(-np.array(answer.shares), kind="stable")[:SHARES_NOTED].tolist()
        note |= {f"{SHARE_OF}{self.symbols[at]}": answer.shares[at] for at in order}
        if weight == 0.0:
            return Signal(Action.FLAT, "no weight", note=note)
        action = Action.LONG if weight > 0.0 else Action.SHORT
        return Signal(action, "held by its weight", min(abs(weight), 1.0), note=note)


def symbol_of(bar: Bar) -> str:
    """Return the symbol of a bar's instrument."""
    return bar.instrument.partition(":")[2]


def _rule(value: object, *, has_correlations: bool) -> WeightRule | None:
    """Read the option; None takes the network's weights as they are."""
    names = (BY_NETWORK, *sorted(SOLVED))
    if value == BY_NETWORK:
        return None
    if value not in names:
        raise ConfigInvalid(f"strategy.options.rule is {shown(value)}; write {' or '.join(names)}.")
    if not has_correlations:
        raise ConfigInvalid(
            f"strategy.options.rule '{value}' needs correlations of the network, which the "
            "checkpoint does not give; train one with factors = 1 or more."
        )
    rule = WeightRule(str(value))
    require_solver(rule)
    return rule


def _number(name: str, options: Mapping[str, object], usual: float) -> float:
    value = options.get(name, usual)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigInvalid(f"strategy.options.{name} is {shown(value)}; write a number.")
    return float(value)


def _every(value: object) -> int:
    if type(value) is not int or value < 1:
        raise ConfigInvalid(
            f"strategy.options.every is {shown(value)}; it must be a whole number of bars."
        )
    return value
