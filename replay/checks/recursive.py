"""The past cut off: after the stated warm-up a later start must judge and signal the same.

The rule is docs/strategies.md, U3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Final

import numpy as np

from tracepaper.daemon.config.loading import Config
from tracepaper.replay.archive import Candles, slice_candles
from tracepaper.replay.backtest.agreement import SHARES, near_measure, predictions_agree
from tracepaper.replay.backtest.build import build
from tracepaper.replay.checks.compare import Difference, decision_differences
from tracepaper.replay.checks.processes import DerivedStep, derived, first_difference
from tracepaper.strategies.errors import DataInvalid
from tracepaper.strategies.gates import GateKind, gate_order
from tracepaper.strategies.types import Bar, Decision

Report = Callable[[str], None]
_RISK: Final = frozenset(gate_order(GateKind.RISK))


@dataclass
class RecursiveFinding:
    """What was found: how many starts, how many steps compared, the first difference."""

    probes: int = 0
    compared: int = 0
    differences: list[Difference] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether nothing differs."""
        return not self.differences


def derive(config: Config, candles: Sequence[Candles], *, mode: str) -> list[DerivedStep]:
    """Return every step of a replay of *candles*; nothing is stored."""
    replay = build(config, candles, started_at_ms=0, mode=mode)
    taken = chain.from_iterable(derived(replay))
    return [one for one in taken if isinstance(one.step.event, Bar)]


def _from_on(steps: Sequence[DerivedStep], from_ms: Mapping[str, int]) -> list[DerivedStep]:
    """Return the *steps* of bars that open at the time *from_ms* of their instrument or later."""
    return [
        one
        for one in steps
        if isinstance(event := one.step.event, Bar)
        and event.open_time_ms >= from_ms[event.instrument]
    ]


def recursive(
    config: Config,
    candles: Sequence[Candles],
    *,
    probes: int,
    warmup: int,
    mode: str = "scan",
    report: Callable[[str], None] = lambda _: None,
) -> RecursiveFinding:
    """Start at *probes* later bars; after *warmup* bars nothing but the account may differ.

    Of several instruments all start at the time of a bar of the first one.
    """
    found = RecursiveFinding()
    for part in candles:
        if len(part) - warmup < 2:  # one bar to start later by, one to compare
            raise DataInvalid(
                f"{part.path} holds {len(part)} bars and the warm-up alone takes {warmup}; "
                "give more data."
            )
    times = candles[0].open_time_ms
    last_ms = min(int(part.open_time_ms[-warmup - 1]) for part in candles)
    room = int(np.searchsorted(times, last_ms, side="right"))
    if room < 2:
        raise DataInvalid(
            f"After the first bar of {candles[0].path} too few bars of the others follow for the "
            f"warm-up of {warmup}; give candles of one time."
        )
    whole = derive(config, candles, mode=mode)
    starts = sorted({max(1, round(room * (turn + 1) / (probes + 1))) for turn in range(probes)})
    for number, start in enumerate(starts):
        report(f"probe {number + 1} of {len(starts)}: starting at bar {start}")
        later = [_cut(part, int(times[start])) for part in candles]
        warm = {part.instrument: int(part.open_time_ms[warmup]) for part in later}
        steps = derive(config, later, mode=mode)
        found.probes += 1
        for one, two in zip(_from_on(whole, warm), _from_on(steps, warm), strict=True):
            found.compared += 1
            if not same_judgement(one, two):
                found.differences.append(difference_of(one, two))
                return found
    return found


def _cut(candles: Candles, open_ms: int) -> Candles:
    row = int(np.searchsorted(candles.open_time_ms, open_ms))
    return slice_candles(candles, slice(row, len(candles)))


def same_judgement(one: DerivedStep, two: DerivedStep) -> bool:
    """Return whether two steps forecast, measure and signal the same, whatever was held before.

    What stands, what a limit of the account refuses and what a horizon closes are the account's;
    the signal before all that is the strategy's alone, and HOLD is a signal like the others.
    """
    a, b = one.step.decision, two.step.decision
    if a is None or b is None:
        return a is b
    if not same_signal(one, two) or not _measures_agree(a, b):
        return False
    judged = a.refused_by not in _RISK and b.refused_by not in _RISK
    same = (a.refused_by, a.regime) == (b.refused_by, b.regime)
    return same or not judged or _at_threshold(a, b)


def same_signal(one: DerivedStep, two: DerivedStep) -> bool:
    """Return whether the strategy signalled the same of forecasts that agree."""
    a, b = one.signal, two.signal
    if a is None or b is None:
        return a is b
    same = a.action is b.action and abs(a.strength - b.strength) <= SHARES
    return same and predictions_agree(one.step.prediction, two.step.prediction)


def _measures_agree(a: Decision, b: Decision) -> bool:
    """Return whether all measures agree but those of the account's limits."""
    if a.gate_set.gates != b.gate_set.gates:
        return False
    kept = [place for place, gate in enumerate(a.gate_set.gates) if gate not in _RISK]
    return all(near_measure(a.measures[at], b.measures[at]) for at in kept)


def _at_threshold(a: Decision, b: Decision) -> bool:
    """Return whether a gate that only one of the two passes stands within 1e-4 of its threshold."""
    for place, threshold in enumerate(a.gate_set.thresholds):
        bit = 1 << place
        if (a.passed ^ b.passed) & bit:
            first, second = a.measures[place], b.measures[place]
            if first is None or second is None or not near_measure(first, threshold):
                return False
    return True


def difference_of(one: DerivedStep, two: DerivedStep) -> Difference:
    """Return the first field in which two steps differ, the signal before all others."""
    event, a, b = one.step.event, one.signal, two.signal
    if isinstance(event, Bar) and a is not None and b is not None:
        at = event.instrument, event.open_time_ms
        if a.action is not b.action:
            return Difference(*at, "signal", a.action, b.action)
        if a.strength != b.strength:
            return Difference(*at, "strength", str(a.strength), str(b.strength))
        if one.step.decision is not None and two.step.decision is not None:
            for name, first, second in decision_differences(one.step.decision, two.step.decision):
                return Difference(*at, name, first, second)
    return first_difference(one.step, two.step)
