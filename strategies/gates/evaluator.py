"""Evaluates a strategy's gates on a bar; the plausibility of prices; the regime.

The rules are docs/decisions.md, G7 to G12.
"""

from __future__ import annotations

import math
import struct
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import numpy as np
from msgspec import Struct
from msgspec.structs import astuple
from numpy.lib.stride_tricks import sliding_window_view

from tracepaper.strategies.errors import ConfigInvalid
from tracepaper.strategies.gates import declared
from tracepaper.strategies.gates.gate import (
    AUTO,
    DROPPABLE,
    GATES,
    MILDEST,
    Gate,
    GateInputs,
    GateKind,
    Measure,
    StrategyWarmup,
    ThresholdKey,
    gate_order,
)
from tracepaper.strategies.types.calibration import (
    CALIBRATED,
    ENTROPY,
    MARGIN,
    Calibration,
    FittedConfidence,
)
from tracepaper.strategies.types.decisions import Forecast, GateSet, Regime
from tracepaper.strategies.types.forecast_columns import MAX_PROBABILITY
from tracepaper.strategies.types.market import Bar, BarColumns

Settings = Mapping[str, Mapping[str, object]]
"""The configuration as plain values: section -> key -> value."""


def risk_thresholds(settings: Settings) -> dict[str, float]:
    """Return the thresholds of the configured risk gates, without those in ``gate.drop``.

    The other risk gates are not declared.
    """
    dropped = settings["gate"].get("drop", ())
    assert isinstance(dropped, tuple)
    names = (name for name in gate_order(GateKind.RISK) if name not in dropped)
    thresholds = ((name, configured_threshold(GATES[name], settings)) for name in names)
    active = {name: float(value) for name, value in thresholds if value is not None}
    causes = active.keys() if settings["risk"]["on_breach"] != "refuse" else set[str]()
    return {
        name: value
        for name, value in active.items()
        if not (only_with := GATES[name].only_with) or causes & set(only_with)
    }


def thresholds_of(
    names: Collection[str],
    settings: Settings,
    *,
    warmup: int,
    interval_ms: int,
    calibration: Calibration | None,
) -> dict[str, float]:
    """Return the threshold of each gate in *names*.

    Raises ``ConfigInvalid`` for a quantile that the card lacks.
    """
    thresholds: dict[str, float] = {}
    for name in names:
        gate = GATES[name]
        if isinstance(gate.threshold, StrategyWarmup):
            thresholds[name] = float(warmup)
        elif gate.calibrated_as:
            text = _calibrated(gate, settings, calibration)
            thresholds[name] = threshold_of(
                text, gate.calibrated_as, calibration, key=threshold_key(gate)
            )
        else:
            value = configured_threshold(gate, settings)
            thresholds[name] = float(interval_ms if value is None else value)
    return thresholds


def _calibrated(gate: Gate, settings: Settings, calibration: Calibration | None) -> str:
    """Return the configured threshold, or the replacement of a default: see ``ThresholdKey``.

    The card's ``strict`` applies only to its chosen confidence, at its horizon.
    """
    key, text = gate.threshold, str(configured_threshold(gate, settings))
    if not isinstance(key, ThresholdKey) or text not in (AUTO, key.default):
        return text
    if calibration is None:
        return key.uncalibrated or text
    if text != AUTO:
        return text
    fitted = fitted_confidence(settings, calibration)
    is_strict = fitted is not None and fitted.strict and fitted.chosen == gate.chosen_by
    return key.strict if is_strict else MILDEST


def fitted_confidence(
    settings: Settings, calibration: Calibration | None
) -> FittedConfidence | None:
    """Return the card's fitted confidence at ``gate.horizon``; None without one."""
    fitted = None if calibration is None else calibration.confidence
    return fitted if fitted is not None and fitted.horizon == settings["gate"]["horizon"] else None


def confidence_by(
    settings: Settings, calibration: Calibration | None, measures: Collection[str]
) -> str:
    """Return the confidence that gates use: ``gate.confidence_by``, or for ``auto`` the card's.

    *measures* are the model's. Raises ``ConfigInvalid`` if the model lacks the configured one.
    """
    choice, fitted = (
        str(settings["gate"]["confidence_by"]),
        fitted_confidence(settings, calibration),
    )
    if choice == AUTO:
        return ENTROPY if fitted is None else fitted.chosen
    if choice == CALIBRATED and fitted is None:
        raise ConfigInvalid(
            "gate.confidence_by is 'calibrated', and the model's card has no fitted confidence at "
            f"gate.horizon {settings['gate']['horizon']}; train it again, or choose entropy or "
            "margin."
        )
    if choice == MARGIN and "probabilities" not in measures:
        raise ConfigInvalid(
            "gate.confidence_by is 'margin', and the model gives no probabilities; choose entropy "
            "or auto."
        )
    return choice


def configured_threshold(gate: Gate, settings: Settings) -> Any:  # noqa: ANN401 - as the section holds it
    """Return the configured threshold of a gate; None if it is not set."""
    key = gate.threshold
    return settings[gate.section][key.name] if isinstance(key, ThresholdKey) else key


def threshold_key(gate: Gate) -> str:
    """Return the configuration key of a threshold, such as ``gate.shift``; else the gate's name."""
    key = gate.threshold
    return f"{gate.section}.{key.name}" if isinstance(key, ThresholdKey) else gate.name


def is_movable(gate: Gate) -> bool:
    """Return whether *gate* has a configurable threshold on a continuous measure."""
    is_continuous = isinstance(gate.threshold, ThresholdKey) and not gate.is_switch
    return is_continuous and gate.kind in DROPPABLE


def threshold_of(text: str, measure: str, calibration: Calibration | None, *, key: str) -> float:
    """Return the threshold for *text*: a number, or ``qX``, a quantile of the calibration slice.

    *measure* is the name on the card, *key* the configuration key for error messages. Quantiles
    are interpolated between the card's percentiles. Raises ``ConfigInvalid`` for other text, and
    if the card lacks the measure.
    """
    is_quantile = text.startswith("q")
    try:
        number = float(text.removeprefix("q"))
    except ValueError:
        number = math.nan
    if not (0.01 <= number <= 0.99 if is_quantile else math.isfinite(number)):
        raise ConfigInvalid(
            f"{key} = '{text}' is no threshold; write a number such as 0.5, or q0.01 to q0.99."
        )
    if not is_quantile:
        return number
    quantiles = None if calibration is None else calibration.quantiles.get(measure)
    if quantiles is None:
        raise ConfigInvalid(
            f"{key} = '{text}' is a quantile, and the model's card has no quantiles of {measure}; "
            "write a number, or use a model whose card (of a class: its calibration) has them."
        )
    position = number * 100 - 1
    index = min(int(position), len(quantiles) - 2)
    fraction = position - index
    return quantiles[index] * (1 - fraction) + quantiles[index + 1] * fraction


# ---------------------------------------------------------------- verdict

_PLAIN: Final = frozenset(
    {declared.operator.name, declared.warm.name, declared.late.name, declared.gap.name}
)
"""Gates whose inputs are only the command, the count of bars, the lateness and the gap."""


Verdict = tuple[tuple[float | None, ...], int]
"""Every gate's measure, and a mask whose bit i is set if gate i passed."""
Test = tuple[Measure, float, bool, int]
"""A gate's measure, threshold, whether it passes at or above that, and its bit."""


class GateEvaluator:
    """Evaluates the gates that a strategy declared, with their thresholds."""

    def __init__(self, names: frozenset[str], thresholds: Mapping[str, float]) -> None:
        ordered = tuple(name for name in gate_order() if name in names)
        self.gate_set = GateSet(ordered, tuple(float(thresholds[name]) for name in ordered))
        tests = [
            (GATES[name].measure, float(thresholds[name]), GATES[name].at_least, 1 << index)
            for index, name in enumerate(ordered)
        ]
        leading = [name in _PLAIN for name in (*ordered, "")].index(False)
        self._leading, self._tests = tests[:leading], tests[leading:]
        self._tests_of_exits = [
            (_exit_measure(GATES[name], test[1]), *test[1:])
            for name, test in zip(ordered[leading:], self._tests, strict=True)
        ]
        self._facts: tuple[float, ...] = ()
        self._of_facts: Verdict = (), 0  # on the leading gates, by the inputs ``_facts``
        self.all_passed = (1 << len(ordered)) - 1
        self._never_reducing = self.all_passed & ~sum(
            1 << index for index, name in enumerate(ordered) if GATES[name].is_lasting
        )
        self.is_plain = (_PLAIN | {declared.plausible.name}).issuperset(ordered)
        """Whether the gates need only the bar and the command: no model, quote or account."""
        at = ordered.index(declared.plausible.name) if declared.plausible.name in ordered else None
        self.plausible_at = at
        self.plausible_limit = math.inf if at is None else self.gate_set.thresholds[at]

    def judge(self, inputs: GateInputs) -> Verdict:
        """Return every gate's measure, and a mask whose bit i is set if gate i passed.

        A measure that cannot be computed, or is not finite, is None and fails.
        """
        facts = inputs.running, inputs.bars, inputs.missing_bars, inputs.late_ms
        if facts != self._facts:  # the leading gates measure nothing else
            self._facts, self._of_facts = facts, _verdict(self._leading, inputs)
        measures, passed = self._of_facts
        others, more = _verdict(self._tests_of_exits if inputs.reduces else self._tests, inputs)
        return measures + others, passed | more

    def first_failed(
        self, passed: int, *, reduces: bool = False, without: str | None = None
    ) -> str | None:
        """Return the first gate that did not pass; None if all did. Gate *without* is ignored.

        If the target *reduces* the exposure, lasting gates are ignored too.
        """
        missing = (self._never_reducing if reduces else self.all_passed) & ~passed
        if without is not None and without in self.gate_set.gates:
            missing &= ~(1 << self.gate_set.gates.index(without))
        if not missing:
            return None
        return self.gate_set.gates[(missing & -missing).bit_length() - 1]


def _verdict(tests: Sequence[Test], inputs: GateInputs) -> Verdict:
    measures: list[float | None] = []
    passed = 0
    for measure_of, threshold, at_least, bit in tests:
        measure = measure_of(inputs)
        if measure is not None:
            measure += 0.0  # -0.0 becomes 0.0, so that both have the same hash
            if not math.isfinite(measure):
                measure = None
            elif measure >= threshold if at_least else measure <= threshold:
                passed |= bit
        measures.append(measure)
    return tuple(measures), passed


def _exit_measure(gate: Gate, threshold: float) -> Measure:
    """Return the measure of *gate* for a target that lowers the exposure.

    No risk limit may block it: a maximum measures 0, and a minimum measures its threshold.
    """
    if gate.kind is not GateKind.RISK or gate.is_lasting:
        return gate.measure
    return lambda _: threshold if gate.at_least else 0.0


YARDSTICK_BARS: Final = 60
"""Bars whose true ranges make the yardstick, including the bar being measured."""
YARDSTICK_MEMORY: Final = YARDSTICK_BARS + 1
"""Bars that the yardstick depends on: a true range needs the previous close."""
YARDSTICK_MIN: Final = 10
"""With fewer true ranges above zero there is no yardstick, and every close is plausible."""
_MEASURED_AT_ONCE: Final = 2_048
"""Expected bars that are measured together."""
_EXACT_BELOW: Final = 2**51
"""Four times a smaller price is exact in a float, so that arrays divide as integers do."""


class Plausibility:
    """Measures the move of each close of one instrument against the ranges of recent bars.

    The yardstick is the median true range of the last 60 bars. Bars without a range, as in minutes
    without trades, are ignored. Everything is integer arithmetic up to one division, so equal bars
    give bit-identical results.
    """

    def __init__(self) -> None:
        self._ranges: deque[int] = deque()
        self._sorted: list[int] = []
        self._last: int | None = None
        # The bars that are expected from the last block on, and that block, which was measured.
        self._expected: BarColumns | None = None
        self._block = 0  # its length
        self._times: Sequence[int] = ()
        self._closes: Sequence[int] = ()
        self._spreads: Sequence[int] = ()
        self._measures: Sequence[float] = ()
        self._tick = 0
        self._added = self._settled = (
            0  # bars of the block that were added, and those in ``_ranges``
        )

    @property
    def doubled_median(self) -> int | None:
        """Twice the yardstick; 0 if no bar has a range, None for fewer than ten bars."""
        self._settle()
        if len(self._ranges) < YARDSTICK_MIN:
            return None
        ordered, count = self._sorted, len(self._sorted)
        return ordered[count >> 1] + ordered[(count - 1) >> 1] if count else 0

    def copy(self) -> Plausibility:
        """Return a copy that can continue independently."""
        self._settle()
        other = Plausibility()
        other._ranges, other._sorted, other._last = self._ranges.copy(), self._sorted[:], self._last
        return other

    def add(self, bar: Bar, tick: int) -> float:
        """Add *bar* and return abs(close - last close) ÷ yardstick; 0 without a yardstick."""
        added = self._added
        if added < self._block and self._times[added] == bar.open_time_ms and tick == self._tick:
            self._added = added + 1
            return self._measures[added]
        if self._expected is not None and self._measures_from(bar, tick):
            self._added = 1
            return self._measures[0]
        ordered, ranges, last = self._sorted, self._ranges, self._last
        # Bars without a range count for the window too, so a quiet week does not keep old ranges.
        if len(ranges) == YARDSTICK_BARS and (oldest := ranges.popleft()):
            del ordered[bisect_left(ordered, oldest)]
        self._last = close = bar.close
        high, low = bar.high, bar.low
        spread = high - low  # becomes the true range, which includes the last close
        if last is not None:
            if last > high:
                spread = last - low
            elif last < low:
                spread = high - last
        ranges.append(spread)
        if spread:
            insort(ordered, spread)
        if last is None or (count := len(ordered)) < YARDSTICK_MIN:
            return 0.0
        doubled, minimum = ordered[count >> 1] + ordered[(count - 1) >> 1], 2 * tick
        scale = doubled if doubled > minimum else minimum  # noqa: FURB136 - faster than max()
        return 2 * abs(close - last) / scale

    def measured_ahead(self, bars: Sequence[Bar], tick: int) -> Sequence[float]:
        """Return the measures of the next *bars*, an interval apart, as far as they are known."""
        added = self._added
        end = min(added + len(bars), self._block)
        if end <= added or tick != self._tick or self._times[added] != bars[0].open_time_ms:
            return ()
        return self._measures[added:end]

    def add_measured(self, count: int) -> None:
        """Add the next *count* bars of :meth:`measured_ahead`."""
        self._added += count

    def skip(self, bars: Sequence[Bar]) -> None:
        """Add *bars* without measuring them."""
        self._expect(None)
        closes = [bar.close for bar in bars]
        last_closes = [bars[0].open if self._last is None else self._last, *closes]
        spreads = [
            max(bar.high, last) - min(bar.low, last)
            for bar, last in zip(bars, last_closes)  # noqa: B905 - one longer than bars
        ]
        self._extend(spreads, closes[-1])

    def expect(self, columns: BarColumns | None) -> None:
        """Measure the bars of *columns* in blocks; :meth:`add` then only looks them up.

        Once a bar is added that is not the next of them, each bar is measured by itself.
        """
        self._expect(columns)

    def _expect(self, columns: BarColumns | None) -> None:
        self._settle()
        self._expected, self._block, self._added, self._settled = columns, 0, 0, 0

    def _measures_from(self, bar: Bar, tick: int) -> bool:
        """Measure a block of the expected bars if *bar* is the next; else expect none."""
        assert self._expected is not None
        self._expect(self._expected.between(self._added, self._expected.open_time_ms.size))
        block = self._expected.between(0, _MEASURED_AT_ONCE)
        is_next = block.open_time_ms[:1] == bar.open_time_ms
        if not is_next.all() or not is_next.size or block.high.max() >= _EXACT_BELOW:
            self._expect(None)
            return False
        self._measure(block, tick)
        return True

    def _measure(self, block: BarColumns, tick: int) -> None:
        """Measure the bars of *block* as :meth:`add` would."""
        close, before = block.close, block.close[:1] if self._last is None else [self._last]
        last = np.concatenate((before, close[:-1]))
        spreads = np.maximum(block.high, last) - np.minimum(block.low, last)
        # A range of 0 stands for a bar before the first: the median counts neither.
        absent = [0] * (YARDSTICK_BARS - len(self._ranges))
        ranges = np.concatenate((absent, self._ranges, spreads)).astype(np.int64)
        ordered = np.sort(sliding_window_view(ranges[1:], YARDSTICK_BARS), axis=1)  # [bar, rank]
        zeros = np.cumsum(ranges == 0)
        zeros = zeros[YARDSTICK_BARS:] - zeros[:-YARDSTICK_BARS]  # [bar], in its window
        count = YARDSTICK_BARS - zeros
        ranks = np.stack((zeros + count // 2, zeros + (count - 1) // 2), axis=1)
        middle = np.take_along_axis(ordered, np.minimum(ranks, YARDSTICK_BARS - 1), axis=1)
        scale = np.maximum(middle.sum(axis=1), 2 * tick)
        measures = np.where(count < YARDSTICK_MIN, 0.0, 2 * np.abs(close - last) / scale)
        self._times, self._closes = block.open_time_ms.tolist(), close.tolist()
        self._spreads, self._measures, self._tick = spreads.tolist(), measures.tolist(), tick
        self._block = len(self._measures)

    def _settle(self) -> None:
        """Use the ranges of the bars that were added since the last call."""
        if self._added > self._settled:
            spreads = self._spreads[self._settled : self._added]
            self._extend(spreads, self._closes[self._added - 1])
            self._settled = self._added

    def _extend(self, spreads: Sequence[int], last: int) -> None:
        """Add the true ranges *spreads* of bars, of which the newest closed at *last*."""
        ranges = self._ranges
        ranges.extend(spreads[-YARDSTICK_BARS:])
        while len(ranges) > YARDSTICK_BARS:
            ranges.popleft()
        self._sorted, self._last = sorted(filter(None, ranges)), last

    def range_bp(self) -> float | None:
        """Return the yardstick in basis points of the newest close; None without a yardstick."""
        doubled, last = self.doubled_median, self._last
        return None if doubled is None or not last else 5_000 * doubled / last


def is_finite_forecast(forecast: Forecast) -> bool:
    """Return whether every number of *forecast* is finite and every probability in range."""
    probabilities = forecast.p_down + forecast.p_flat + forecast.p_up
    deviations = forecast.stdev_return + forecast.volatility
    if not _are_finite(forecast.mean_return + deviations + probabilities):
        return False
    if probabilities and not 0 <= min(probabilities) <= max(probabilities) <= MAX_PROBABILITY:
        return False
    if deviations and min(deviations) <= 0:
        return False
    if forecast.heads is not None and not all(map(_all_finite, astuple(forecast.heads))):
        return False
    if (explanation := forecast.explanation) is None:
        return True
    measures = (
        explanation.confidence_entropy, explanation.content_free, explanation.recent_mass,
        explanation.event_focus, explanation.shift,
    )  # fmt: skip
    return _are_finite([*filter(None, measures)])


def _all_finite(packed: bytes) -> bool:
    return _are_finite(struct.unpack(f"<{len(packed) // 4}f", packed))


def _are_finite(numbers: Sequence[float]) -> bool:
    # A sum is finite only if every term is, so that most calls need one test.
    return math.isfinite(sum(numbers)) or all(map(math.isfinite, numbers))


class RegimeBounds(Struct, frozen=True):
    """The thresholds of recent mass and event focus, and the margins for leaving a regime."""

    mean_reversion: float
    momentum: float
    margin: float
    event_focus: float = 1.0
    event_margin: float = 0.0

    @classmethod
    def between(
        cls, *, mean_reversion: float, momentum: float, hysteresis: float, event_focus: float = 1.0
    ) -> RegimeBounds:
        """Return bounds; a margin is *hysteresis* times the way between the thresholds, or to 0."""
        if not mean_reversion < momentum or not 0 <= hysteresis < 1:
            raise ConfigInvalid(
                f"regime.mean_reversion ({mean_reversion}) must lie under regime.momentum "
                f"({momentum}), with regime.hysteresis ({hysteresis}) from 0 to below 1; set such "
                "numbers, also where a model's recent mass is always the same."
            )
        margin = hysteresis * (momentum - mean_reversion)
        return cls(mean_reversion, momentum, margin, event_focus, hysteresis * event_focus)

    def next_regime(self, regime: Regime, recent_mass: float, event_focus: float = 0.0) -> Regime:
        """Return the regime that follows *regime* at this bar's *recent_mass* and *event_focus*.

        Attention on an event is distant, whatever else is recent. A regime includes its threshold,
        and is left only beyond the margin, so that noise at the threshold does not make it flicker.
        """
        held = self.event_margin if regime is Regime.MEAN_REVERSION else 0.0
        if event_focus >= self.event_focus - held:
            return Regime.MEAN_REVERSION
        if recent_mass >= self.momentum:
            return Regime.MOMENTUM
        if recent_mass <= self.mean_reversion:
            return Regime.MEAN_REVERSION
        if recent_mass >= self.momentum - self.margin:
            stays = regime is Regime.MOMENTUM
        else:
            is_near = recent_mass <= self.mean_reversion + self.margin
            stays = is_near and regime is Regime.MEAN_REVERSION
        return regime if stays else Regime.MIXED
