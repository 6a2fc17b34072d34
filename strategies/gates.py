"""Each gate one function: measure, threshold, verdict; together every reason for a refusal."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

from msgspec import Struct

from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.types import (
    GATE_ORDER,
    Bar,
    Calibration,
    Explanation,
    Forecast,
    Gate,
    GateSet,
    Regime,
)

YARDSTICK_BARS: Final = 60
"""Bars whose ranges are the yardstick, the one that is judged among them."""
YARDSTICK_LEAST: Final = 10
"""Under so many bars there is no yardstick, and every close counts as plausible."""


class Plausibility:
    """Measures each bar of one instrument against the bars before it.

    The yardstick is the median of high - low over the last 60 bars, at least one tick. All of it
    is integers until the one division, so that equal bars give equal bits on every path.
    """

    def __init__(self) -> None:
        self._ranges: deque[int] = deque()
        self._sorted: list[int] = []
        self._last: int | None = None

    def copy(self) -> Plausibility:
        """Return a second one that knows the same bars."""
        other = Plausibility()
        other._ranges, other._sorted, other._last = self._ranges.copy(), self._sorted[:], self._last
        return other

    def add(self, bar: Bar, tick: int) -> float:
        """Take in *bar* and return abs(close - last close) in yardsticks; 0 under ten bars."""
        ordered, ranges = self._sorted, self._ranges
        if len(ranges) == YARDSTICK_BARS:
            del ordered[bisect_left(ordered, ranges.popleft())]
        spread = bar.high - bar.low
        ranges.append(spread)
        insort(ordered, spread)
        last, self._last = self._last, bar.close
        count = len(ordered)
        if count < YARDSTICK_LEAST or last is None:
            return 0.0
        middle = count >> 1
        doubled = ordered[middle] + ordered[middle if count & 1 else middle - 1]
        return 2 * abs(bar.close - last) / max(doubled, 2 * tick)


class GateInputs(Struct, gc=False):
    """What the gates judge at one bar; the engine fills one in and reuses it."""

    running: bool = True
    bars: int = 0
    late_ms: int = 0
    missing_bars: int = 0
    plausible: float = 0.0
    quote_age_ms: int | None = None
    answered: bool = True  # False after ``PredictionTimeout``
    finite: bool | None = None
    forecast: Forecast | None = None
    explanation: Explanation | None = None
    horizon_index: int = 0
    slope: float = 1.0
    round_trip_cost: float = 0.0
    regime: Regime = Regime.UNKNOWN
    regimes: frozenset[Regime] = frozenset()
    reduces: bool = False  # the target lowers the exposure: no risk limit stands in its way
    notional: int = 0
    drawdown: float = 0.0
    daily_loss: float = 0.0
    daily_trades: int = 0


def _operator(seen: GateInputs) -> float | None:
    return 1.0 if seen.running else 0.0


def _warm(seen: GateInputs) -> float | None:
    return float(seen.bars)


def _late(seen: GateInputs) -> float | None:
    return float(seen.late_ms)


def _gap(seen: GateInputs) -> float | None:
    return float(seen.missing_bars)


def _plausible(seen: GateInputs) -> float | None:
    return seen.plausible


def _stale(seen: GateInputs) -> float | None:
    return None if seen.quote_age_ms is None else float(seen.quote_age_ms)


def _deadline(seen: GateInputs) -> float | None:
    return 1.0 if seen.answered else 0.0


def _finite(seen: GateInputs) -> float | None:
    return None if seen.finite is None else float(seen.finite)


def _confidence(seen: GateInputs) -> float | None:
    return None if seen.explanation is None else seen.explanation.confidence


def _collapsed(seen: GateInputs) -> float | None:
    if (explanation := seen.explanation) is None:
        return None
    return explanation.confidence - explanation.content_free


def _shifted(seen: GateInputs) -> float | None:
    return None if seen.explanation is None else seen.explanation.shift


def _regime(seen: GateInputs) -> float | None:
    if seen.explanation is None:
        return None
    return 1.0 if seen.regime in seen.regimes else 0.0


def _direction(seen: GateInputs) -> float | None:
    if (forecast := seen.forecast) is None:
        return None
    up, down = forecast.p_up[seen.horizon_index], forecast.p_down[seen.horizon_index]
    return max(up, down) / (up + down) if up + down > 0 else None


def _edge(seen: GateInputs) -> float | None:
    if seen.forecast is None or seen.round_trip_cost <= 0:
        return None
    mean = seen.forecast.mean_return[seen.horizon_index] * min(1.0, seen.slope)
    return abs(mean) / seen.round_trip_cost


def _risk_notional(seen: GateInputs) -> float | None:
    return 0.0 if seen.reduces else seen.notional / 1e10


def _risk_drawdown(seen: GateInputs) -> float | None:
    return 0.0 if seen.reduces else seen.drawdown


def _risk_daily_loss(seen: GateInputs) -> float | None:
    return 0.0 if seen.reduces else seen.daily_loss


def _risk_daily_trades(seen: GateInputs) -> float | None:
    return 0.0 if seen.reduces else float(seen.daily_trades)


MEASURES: Final[dict[Gate, Callable[[GateInputs], float | None]]] = {
    Gate.OPERATOR: _operator,
    Gate.WARM: _warm,
    Gate.LATE: _late,
    Gate.GAP: _gap,
    Gate.PLAUSIBLE: _plausible,
    Gate.STALE: _stale,
    Gate.DEADLINE: _deadline,
    Gate.FINITE: _finite,
    Gate.CONFIDENCE: _confidence,
    Gate.COLLAPSED: _collapsed,
    Gate.SHIFTED: _shifted,
    Gate.REGIME: _regime,
    Gate.DIRECTION: _direction,
    Gate.EDGE: _edge,
    Gate.RISK_NOTIONAL: _risk_notional,
    Gate.RISK_DRAWDOWN: _risk_drawdown,
    Gate.RISK_DAILY_LOSS: _risk_daily_loss,
    Gate.RISK_DAILY_TRADES: _risk_daily_trades,
}

AT_LEAST: Final = frozenset(
    {
        Gate.OPERATOR,
        Gate.WARM,
        Gate.DEADLINE,
        Gate.FINITE,
        Gate.CONFIDENCE,
        Gate.COLLAPSED,
        Gate.REGIME,
        Gate.DIRECTION,
        Gate.EDGE,
    }
)
"""Gates that pass at or above their threshold; the others pass at or below it."""


_PLAIN: Final = frozenset({Gate.OPERATOR, Gate.WARM, Gate.LATE, Gate.GAP})
"""Gates that look at nothing but the command, the count of bars, the lateness and the hole."""
_NOWHERE: Final = -1


class GateEvaluator:
    """The gates that a strategy declared, with their thresholds, ready to judge bars."""

    def __init__(self, gates: frozenset[Gate], thresholds: Mapping[Gate, float]) -> None:
        ordered = tuple(gate for gate in GATE_ORDER if gate in gates)
        for gate in ordered:
            if not math.isfinite(thresholds[gate]):
                raise ConfigInvalid(f"gate.{gate.value} needs a finite threshold.")
        self.gate_set = GateSet(ordered, tuple(float(thresholds[gate]) for gate in ordered))
        self._tests = tuple(
            (MEASURES[gate], float(thresholds[gate]), gate in AT_LEAST, 1 << index)
            for index, gate in enumerate(ordered)
        )
        self.all_passed = (1 << len(ordered)) - 1
        self._is_plain = (_PLAIN | {Gate.PLAUSIBLE}).issuperset(ordered)
        self._at = ordered.index(Gate.PLAUSIBLE) if Gate.PLAUSIBLE in ordered else _NOWHERE
        self._last_key: tuple[bool, int, int, int] | None = None
        self._last: tuple[tuple[float | None, ...], int] = ((), 0)

    def judge(self, seen: GateInputs) -> tuple[tuple[float | None, ...], int]:
        """Return every gate's measure, and a mask whose bit i says that gate i passed.

        A measure that cannot be computed (or is not finite) is null and fails. Without a model,
        quotes and limits most bars look alike: then only what each bar measures is judged anew.
        """
        if not self._is_plain:
            return self._judged(seen)
        key = (seen.running, seen.bars, seen.late_ms, seen.missing_bars)
        if key != self._last_key:
            self._last_key, self._last = key, self._judged(seen)
        elif (at := self._at) != _NOWHERE:
            measures, passed = self._last
            measure, bit = seen.plausible, 1 << at
            passed = passed | bit if measure <= self._tests[at][1] else passed & ~bit
            self._last = (*measures[:at], measure, *measures[at + 1 :]), passed
        return self._last

    def _judged(self, seen: GateInputs) -> tuple[tuple[float | None, ...], int]:
        measures: list[float | None] = []
        passed = 0
        for measure_of, threshold, at_least, bit in self._tests:
            measure = measure_of(seen)
            if measure is not None:
                if measure >= threshold if at_least else measure <= threshold:
                    passed |= bit
                elif not math.isfinite(measure):
                    measure = None
            measures.append(measure)
        return tuple(measures), passed

    def first_failed(self, passed: int) -> Gate | None:
        """Return the first gate, in the fixed order, that *passed* does not hold."""
        missing = self.all_passed & ~passed
        if not missing:
            return None
        return self.gate_set.gates[(missing & -missing).bit_length() - 1]


def threshold_of(text: str, measure: str, calibration: Calibration | None) -> float:
    """Return a threshold written as a number, or as ``qX``: a quantile of the calibration slice.

    Between the card's percentiles the quantile is interpolated; raises ``ConfigInvalid`` where
    the text is neither, or the model's card has no such measure.
    """
    if not text.startswith("q"):
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ConfigInvalid(
                f"'{text}' is no threshold for {measure}; write a number such as 0.5, or q0.5."
            )
        return value
    try:
        share = float(text[1:])
    except ValueError:
        share = math.nan
    if not 0.01 <= share <= 0.99:  # noqa: PLR2004 - the card's range
        raise ConfigInvalid(f"'{text}' is no quantile for {measure}; write q0.01 to q0.99.")
    quantiles = None if calibration is None else calibration.quantiles.get(measure)
    if quantiles is None:
        raise ConfigInvalid(
            f"The model's card has no quantiles of {measure}; write the threshold as a number."
        )
    position = share * 100 - 1
    index = min(int(position), len(quantiles) - 2)
    rest = position - index
    return quantiles[index] * (1 - rest) + quantiles[index + 1] * rest


def is_finite_forecast(forecast: Forecast) -> bool:
    """Return whether every number of *forecast* is finite and every probability in range."""
    numbers = (
        *forecast.mean_return,
        *forecast.stdev_return,
        *forecast.volatility,
        *forecast.p_down,
        *forecast.p_flat,
        *forecast.p_up,
    )
    if not all(map(math.isfinite, numbers)):
        return False
    if min(*forecast.p_down, *forecast.p_flat, *forecast.p_up) < 0:
        return False
    if (explanation := forecast.explanation) is None:
        return True
    shift = explanation.shift
    return math.isfinite(explanation.confidence + explanation.recent_mass) and (
        shift is None or math.isfinite(shift)
    )
